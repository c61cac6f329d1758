"""What a run of the suite found: the rows of its files, and whether each is at its bar."""

import json
import pathlib
import statistics
from typing import Any

from cases import CALLS, GATES, SHAPES, Case

# Sigmoids and tanhs of a unit, forward; a backward pass may keep them.
CURVES = {"rnn": 1, "gru": 3, "lstm": 5}

Info = dict[str, Any]


def merged(before: Info, info: Info) -> Info:
    """What two visits to a row have by name: all rounds, and of what is one number the larger."""
    if before.keys() != info.keys():
        odd = ", ".join(sorted(before.keys() ^ info.keys()))
        raise ValueError(f"expected the same libraries in both visits to a row, not {odd} in one")
    new = {}
    for name, value in info.items():
        rounds = isinstance(value, list)
        new[name] = before[name] + value if rounds else max(before[name], value)
    return new


def pooled(infos: list[Info]) -> list[Info]:
    """One of each row; of a row that was measured several times all rounds count.

    Another program takes a core for seconds or minutes, and with it all rounds that follow one
    another: those of several visits, far apart, have a median that it does not decide.
    """
    found: dict[tuple[Any, ...], Info] = {}
    for info in infos:
        row = tuple(info.get(name) for name in (*Case._fields, "threads"))
        if before := found.get(row):
            for what in ("seconds", "limits", "errors"):
                if isinstance(info.get(what), dict):
                    info = info | {what: merged(before[what], info[what])}
        found[row] = info
    return list(found.values())


def limits_in(infos: list[Info]) -> dict[int, Info]:
    """The machine's limits by threads, each the largest that was measured.

    Another program on a core for the tenth of a second that one takes would lower it.
    """
    limits: dict[int, Info] = {}
    for info in infos:
        if info["task"].startswith("limits"):
            before = limits.get(info["threads"], info)
            rates = {
                name: {key: max(rate, before[name][key]) for key, rate in info[name].items()}
                for name in ("gflops", "gbytes", "gcurves")
            }
            sgemm = max(info["sgemm"], before["sgemm"])
            limits[info["threads"]] = info | rates | {"sgemm": sgemm}
    return limits


def _origin(report: dict[str, Any]) -> dict[str, Any]:
    """What the parts of a run have in common, and two runs that are compared."""
    machine, commit = report["machine_info"], report["commit_info"]
    cpu = [machine["cpu"].get(name) for name in ("brand_raw", "family", "model")]
    return {
        "the commit": commit["id"] + (", changed" if commit.get("dirty") else ""),
        "--quick": machine["quick"],
        "the processor": [*cpu, machine.get("machine")],
        "the number of cores": machine["cores"],
        "the system": [machine["system"], machine["python_version"]],
        "what is installed": machine["versions"],
    }


def _report(file: pathlib.Path) -> dict[str, Any]:
    """What --benchmark-json wrote."""
    try:
        report = json.loads(file.read_text())
        _origin(report)
        if "left" not in report:
            raise KeyError("left")
    except (ValueError, KeyError, TypeError) as error:
        said = f"{type(error).__name__}: {error}"
        raise ValueError(f"{file}: not what --benchmark-json writes here ({said})") from None
    return report


def expect_same(where: Any, here: dict[str, Any], first: dict[str, Any], other: Any) -> None:
    """Raise a ValueError that says in what two origins differ."""
    for name, value in here.items():
        if value != first[name]:
            raise ValueError(f"{where}: {name} is {value}, of {other} it is {first[name]}")


def read(files: list[pathlib.Path]) -> dict[str, Any]:
    """The reports of the parts of a run, as one: of one machine, and one state of the code.

    A bench that failed in one part may have a row by another.
    """
    reports = [_report(file) for file in files]
    origin = _origin(reports[0])
    for file, report in zip(files, reports, strict=True):
        expect_same(file, _origin(report), origin, files[0])
    entries = [entry for report in reports for entry in report["benchmarks"]]
    infos = [entry["extra_info"] for entry in entries if "task" in entry["extra_info"]]
    done = {entry["name"] for entry in entries if "task" in entry["extra_info"]}
    left = [name for report in reports for name in report["left"]]
    return {
        "commit": reports[0]["commit_info"]["id"],
        "origin": origin,
        "machine_info": reports[0]["machine_info"],
        "parts": [report["machine_info"]["arguments"] for report in reports],
        "limits": limits_in(infos),
        "infos": pooled(infos),
        "failed": list(dict.fromkeys(name for name in left if name not in done)),
    }


def usual(info: Info) -> bool:
    """Whether a case is measured without --full (`cases.Case.usual`)."""
    return info["dtype"] == "float32" and info["nonlinearity"] == "tanh"


def few_steps(info: Info) -> bool:
    """Whether a row is one of `cases.CALLS`, for which there is no bar."""
    return info["task"] in ("forward", "train") and info["T"] in CALLS


def small_size(info: Info) -> bool:
    """Whether a row is one of `cases` "small", which are none of the matrix."""
    return info["task"] == "train" and info["H"] < SHAPES[0][3]


def ratios(info: Info, peer: str) -> list[float]:
    """The peer's time over ours, one of each round: above 1 we are faster."""
    seconds = info["seconds"]
    return [theirs / ours for theirs, ours in zip(seconds[peer], seconds["fastbptt"], strict=True)]


def best(info: Info, library: str = "") -> str:
    """The fastest peer, or the fastest entry of one library; "" if there is none."""
    peers = [name for name in info["seconds"] if "(" in name and name.startswith(library)]
    return min(peers, key=lambda name: statistics.median(info["seconds"][name]), default="")


def ratio(info: Info, library: str = "") -> float:
    """The median against the library at its best number of threads; by default, the best peer."""
    return statistics.median(ratios(info, best(info, library)))


def limit(info: Info, name: str) -> float:
    """One of `limits.of_case`, the median over the rounds."""
    return statistics.median(info["limits"][name])


def gflops(info: Info) -> float:
    """GFLOP/s of fastbptt."""
    return info["flops"] / statistics.median(info["seconds"]["fastbptt"]) / 1e9


def share_of_peak(info: Info) -> float:
    """Of the FMA peak measured in turn with the row."""
    return gflops(info) / limit(info, "gflops")


def limits_of(info: Info) -> dict[str, float]:
    """Seconds a step that arithmetic, the reading of W_hh and curves take at least.

    By what was measured of the machine in turn with the row.  A step goes through all of W_hh
    before the next can begin, on the threads that share it; what can be done for all steps at once
    is arithmetic alone, on all threads.
    """
    peak = limit(info, "gflops") * 1e9
    sweeps = 1 if info["task"] in ("forward", "sizes", "stream") else 2
    recurrent = 2 * info["B"] * (1 + info["k"]) * GATES[info["cell"]] * info["H"] ** 2
    curves = 0 if info["kind"] == "relu" else info["B"] * info["H"] * CURVES[info["cell"]]
    product = recurrent / peak * info["threads"] / info["sharers"]
    parts = {"arithmetic": (info["flops"] - sweeps * recurrent) / peak}
    reading = limit(info, "reading")
    if reading > product:
        parts[f"W from {info['source']}"] = sweeps * reading
    else:
        parts["arithmetic"] += sweeps * product
    return parts | {"curves": curves / (limit(info, "gcurves") * 1e9)}


def spent(info: Info) -> dict[str, float]:
    """Seconds a step of ours, by what they go to: limits, what was timed by itself, the rest.

    The rest of a call of few steps is the call itself, of a training step it is the bridge.  It is
    below 0 where what was timed by itself took longer so.
    """
    own = {name: statistics.median(values) for name, values in info["seconds"].items()}
    ours = own["fastbptt"]
    if info["task"] in ("bridge", "step"):
        rest = "bridge" if "torch alone" in own else "bridge and torch"
        parts = {"layer": own["layer"]}
        if "torch alone" in own:
            parts["torch alone"] = own["torch alone"]
    else:
        rest, parts = "call" if few_steps(info) else "rest", limits_of(info)
        if "packed" in own:
            both = zip(info["seconds"]["fastbptt"], info["seconds"]["packed"], strict=True)
            parts["new weights"] = statistics.median(new - old for new, old in both)
        if "call" in own:
            parts["call"] = own["call"]
    return parts | {rest: ours - sum(parts.values())}


def share_of_limit(info: Info, curves: bool = True) -> float:
    """With or without the curves, whose rate is that of our own code."""
    seconds = sum(s for name, s in limits_of(info).items() if curves or name != "curves")
    return seconds / statistics.median(info["seconds"]["fastbptt"])


def ratio_at_limit(info: Info, library: str = "", curves: bool = True) -> float:
    """What the `ratio` would be if this row took no longer than its limit."""
    return ratio(info, library) / share_of_limit(info, curves)


def small_train(info: Info) -> bool:
    """Whether the bar of small nets holds for a row besides the others'."""
    small = info["B"] == 1 and info["H"] <= 64 and info["cell"] != "lstm"
    return info["task"] == "train" and small


def sweep_bar(info: Info) -> bool | None:
    """1.5 x the best peer, or 85 % of the limit and never slower; more for one small sequence.

    None where one of the strongest peers was not measured.
    """
    asked = ["jax (", "torch"]
    if info["task"] == "forward" and info["dtype"] == "float32":
        asked.append("onnxruntime")
    if not all(best(info, library) for library in asked):
        return None
    share = max(share_of_peak(info), share_of_limit(info, curves=False))
    met = ratio(info) >= 1.5 or (share >= 0.85 and ratio(info) >= 1)
    if small_train(info):
        met = met and ratio(info, "jax (") >= 3 and ratio(info, "torch") >= 30
    return met


def missed_at_limit(info: Info) -> bool:
    """Whether a row below its bar would be below it at its limit, with curves at our own rate."""
    if sweep_bar(info) is not False:
        return False
    at_limit = share_of_limit(info)
    share = max(share_of_peak(info), share_of_limit(info, curves=False)) / at_limit
    ratio_there = ratio_at_limit(info)
    missed = ratio_there < 1.5 and (share < 0.85 or ratio_there < 1)
    if small_train(info):
        missed = missed or ratio_at_limit(info, "jax (") < 3 or ratio_at_limit(info, "torch") < 30
    return missed


def stream_bar(info: Info) -> bool | None:
    """k = 8: 3 x jax, 1.5 x at H = 256 and 70 % of the peak; k = 1, H = 256: 1.15 x forward."""
    large = info["H"] >= 256
    if info["k"] == 16 or (info["k"] == 8 and not best(info, "jax (")):
        return None
    if info["k"] == 1:
        return statistics.median(ratios(info, "forward")) >= 1 / 1.15 if large else None
    if large:
        return ratio(info, "jax (") >= 1.5 and share_of_peak(info) >= 0.7
    return ratio(info, "jax (") >= 3
