"""Write the tables into README.md, between its two markers.

    python benches/table.py [FILE...] [--again FILE...]

FILE is what `python -m pytest benches --benchmark-json=FILE` wrote; without one the suite is run.
Several are the parts of one run; of a row in more than one of them all rounds count.  A second run
is compared: do both say who is the fastest?
"""

import argparse
import collections
import contextlib
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from results import (
    Info,
    best,
    expect_same,
    few_steps,
    gflops,
    limit,
    limits_of,
    ratio,
    ratio_at_limit,
    ratios,
    read,
    share_of_limit,
    share_of_peak,
    small_train,
    spent,
    stream_bar,
    sweep_bar,
    usual,
)
from timing import TURN

HERE = pathlib.Path(__file__).resolve().parent
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def micro(values: list[float]) -> str:
    return f"{statistics.median(values) * 1e6:.3g}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def verdict(met: bool | None) -> str:
    return "–" if met is None else "met" if met else "**missed**"


def shares(info: Info) -> str:
    """What our time goes to, the largest first."""
    ours = statistics.median(info["seconds"]["fastbptt"])
    return ", ".join(
        f"{name} {seconds / ours:.0%}"
        for name, seconds in sorted(spent(info).items(), key=lambda part: -part[1])
        if seconds >= 0.005 * ours
    )


def binding(info: Info, met: bool) -> str:
    """The limit that most of the time goes to; of a row below its bar all that the time goes to."""
    if met:
        parts = limits_of(info)
        name = max(parts, key=parts.get)
        return f"{name} {parts[name] / statistics.median(info['seconds']['fastbptt']):.0%}"
    text = shares(info)
    if not best(info):
        return text
    text = f"{text}; at the limit {ratio_at_limit(info):.2f} x"
    return f"{text}, {ratio_at_limit(info, 'jax ('):.2f} x jax" if small_train(info) else text


def against(info: Info, library: str) -> str:
    """The ratio to a library at its best, if it was measured."""
    return f"{ratio(info, library):.3g}" if best(info, library) else "–"


def rival(info: Info, steps: int = 1) -> list[str]:
    """The fastest peer with its time for so many steps, and the ratio with its spread."""
    peer = best(info)
    if not peer:
        return ["–", "–"]
    spread, seconds = ratios(info, peer), [steps * each for each in info["seconds"][peer]]
    return [
        f"{peer}: {micro(seconds)}",
        f"{ratio(info):.2f} ({min(spread):.2f}–{max(spread):.2f})",
    ]


def measured(info: Info) -> list[str]:
    """The columns that every comparison has."""
    return [
        micro(info["seconds"]["fastbptt"]),
        f"{gflops(info):.3g}",
        f"{share_of_peak(info):.0%}",
        *rival(info),
        against(info, "torch"),
        against(info, "jax ("),
    ]


COLUMNS = ["µs/step", "GFLOP/s", "of peak", "best peer (threads): µs/step", "ratio (min–max)"]
COLUMNS += ["torch", "jax"]


def sweep_rows(infos: list[Info]) -> str:
    """The table of some cases, a row each."""
    head = ["T, B, I, H", "cell", "threads", *COLUMNS, "of limit", "limited by", "error", "bar"]
    rows = []
    for info in infos:
        met = sweep_bar(info)
        dtype = "" if info["dtype"] == "float32" else f", {info['dtype']}"
        rows.append(
            [
                shape(info),
                info["kind"] + dtype,
                str(info["threads"]),
                *measured(info),
                f"{share_of_limit(info):.0%}",
                binding(info, met is not False),
                f"{info['errors']['fastbptt']:.0e}",
                verdict(met),
            ]
        )
    return table(head, rows)


def beside(infos: list[Info]) -> str:
    """What --full measures beside the usual rows: a line for each kind, and the rows missed."""
    groups: dict[tuple[str, ...], list[Info]] = {}
    infos = [info for info in infos if best(info)]
    for info in infos:
        groups.setdefault((info["task"], info["kind"], info["dtype"]), []).append(info)
    missed = [info for info in infos if sweep_bar(info) is False]
    rows = []
    for kind, group in groups.items():
        values = [ratio(info) for info in group]
        won = sum(value >= 1 for value in values)
        at_bar = sum(sweep_bar(info) is True for info in group)
        counts = [f"{n} of {len(group)}" for n in (won, at_bar)]
        mean = statistics.geometric_mean(values)
        rows.append([*kind, *counts, f"{min(values):.2f}", f"{mean:.2f}"])
    head = ["task", "cell", "dtype", "fastest in", "at the bar in", "least ratio", "geometric mean"]
    parts = ["The other nonlinearity and dtype, over the same shapes and threads:"]
    parts.append(table(head, rows))
    if missed:
        parts += ["Those below their bar:", sweep_rows(missed)]
    return "\n\n".join(parts)


def sweeps(infos: list[Info]) -> str:
    parts = []
    for task in dict.fromkeys(info["task"] for info in infos):
        some = [info for info in infos if info["task"] == task]
        met = sum(sweep_bar(info) is True for info in some)
        parts.append(f"{task.capitalize()}, {met} of {len(some)} rows at their bar:")
        parts.append(sweep_rows(some))
    rivalled = [info for info in infos if best(info)]
    if not rivalled:
        return "\n\n".join(parts)
    mean = statistics.geometric_mean(ratio(info) for info in rivalled)
    most = statistics.geometric_mean(ratio_at_limit(info, curves=False) for info in rivalled)
    parts.append(
        f"Geometric mean of these rows' ratios: {mean:.2f}, the bar: 3; with every row at "
        f"its limit without curves: {most:.2f}. The limit of a row: the FMA peak, or where that "
        "takes longer, reading W_hh once a step from its cache; and the sigmoids and tanhs, the "
        "curves; each measured in turn with the row. Limited by: the largest of these and its "
        "share of our time; where the bar is missed, all that the time goes to - `call`: a call "
        "of one step, divided by T; `rest`: operations of a step that wait for one another, and "
        "what no limit explains; and what the ratio would be at the limit. "
        "The bar: 1.5, or 85 % of peak or of the limit without curves, whose rate is our own "
        "code's, and never slower; for B = 1, H = 64, RNN and GRU train also 3 x jax and 30 x "
        "torch."
    )
    return "\n\n".join(parts)


def shape(info: Info) -> str:
    return f"{info['T']}, {info['B']}, {info['I']}, {info['H']}"


def winners(infos: list[Info]) -> dict[str, tuple[str, float]]:
    """{row: (the fastest library, the ratio)}."""
    found = {}
    for info in infos:
        if "k" in info and best(info):
            probes = f", k = {info['k']}" if info["k"] else ""
            row = f"{info['task']}, {info['kind']}, {info['dtype']}, {shape(info)}{probes}"
            value = ratio(info)
            first = "fastbptt" if value >= 1 else best(info).split(" (")[0]
            found[f"{row}, threads: {info['threads']}"] = first, value
    return found


def counted(infos: list[Info]) -> str:
    """How many rows of each task are at their bar."""
    counts = []
    for task in ("forward", "train"):
        some = [info for info in infos if info["task"] == task and usual(info)]
        some = [info for info in some if not few_steps(info)]
        if some:
            met = sum(sweep_bar(info) is True for info in some)
            counts.append(f"{met} of {len(some)} rows of {task}")
    return " and ".join(counts)


def agreement(infos: list[Info], again: list[Info]) -> str:
    """How many rows of two runs have the same winner, those that have not, and the second's bars.

    On a shared machine a row near its bar meets it in one run and not in the next.
    """
    first, second = winners(infos), winners(again)
    both = [row for row in first if row in second]
    rows = [
        [row, *(f"{found[row][0]}, {found[row][1]:.2f}" for found in (first, second))]
        for row in both
        if first[row][0] != second[row][0]
    ]
    won = sum(first[row][0] == "fastbptt" for row in both)
    said = (
        f"A second run agrees on who is fastest in {len(both) - len(rows)} of {len(both)} rows; "
        f"the first has fastbptt ahead in {won}."
    )
    if left := len(first) - len(both):
        said += f" {left} more rows were measured once."
    if counts := counted(again):
        said = f"In a second run {counts} are at their bar.\n\n{said}"
    if not rows:
        return said
    head = ["row", "fastest, ratio", "in the second run"]
    return f"{said} The others:\n\n{table(head, rows)}"


def roofline(limits: dict[int, Info]) -> str:
    rows = [
        [
            str(threads),
            *(f"{info['gflops'][dtype]:.0f}" for dtype in ("float32", "float64")),
            f"{info['sgemm']:.0f}",
            f"{info['gcurves']['float32']:.1f}",
            *(f"{value:.0f}" for value in info["gbytes"].values()),
        ]
        for threads, info in sorted(limits.items())
    ]
    head = ["threads", "FMA float32, GFLOP/s", "float64", "NumPy's sgemm"]
    head += ["our sigmoid and tanh, 10⁹/s", "L1, GB/s", "L2", "L3", "memory"]
    return f"The machine's limits:\n\n{table(head, rows)}"


def streams(infos: list[Info]) -> str:
    rows = []
    for info in infos:
        met = stream_bar(info)
        times = [
            against(info, library) for library in ("jax QR each 40", "numpy", "lyapax", "lyapynov")
        ]
        jax = best(info, "jax (")
        rows.append(
            [
                f"{info['H']}, {info['k']}",
                *measured(info),
                *times,
                f"{ratio_at_limit(info, 'jax ('):.2f}" if jax else "–",
                f"{1 / statistics.median(ratios(info, 'forward')):.2f}",
                binding(info, met is not False),
                f"{info['errors']['fastbptt']:.0e}",
                verdict(met),
            ]
        )
    head = [
        "H, k",
        *COLUMNS,
        "jax, QR each 40",
        "numpy",
        "lyapax",
        "lyapynov",
        "jax, at the limit",
        "÷ forward",
    ]
    head += ["limited by", "error", "bar"]
    return (
        f"`JacobianStream`, B = 1, one thread:\n\n{table(head, rows)}\n\nThe bar: k = 8: 3 x jax "
        "at H = 64, 1.5 x and 70 % of the FMA peak at H = 256; k = 1: 1.15 x the time of the "
        "forward pass alone at H = 256. At the limit: what the ratio to jax would be if a step "
        "were its multiply-adds at the FMA peak, or W_hh from its cache, and its tanhs at our own "
        "rate alone. jax, torch, numpy and lyapax with a QR every eighth step, lyapynov at each; "
        "jax also with one every fortieth; here how the tangents grow says when."
    )


def calls(infos: list[Info]) -> str:
    rows, others = [], ("onnxruntime", "numpy", "numba")
    for info in infos:
        rows.append(
            [
                info["task"],
                info["cell"],
                str(info["T"]),
                micro([info["T"] * each for each in info["seconds"]["fastbptt"]]),
                *rival(info, info["T"]),
                *(against(info, name) for name in ("torch", "jax (", *others)),
                shares(info),
            ]
        )
    head = ["task", "cell", "T", "µs a call", "best peer (threads): µs a call", "ratio (min–max)"]
    head += ["torch", "jax", *others, "our time goes to"]
    B, I, H = (infos[0][name] for name in "BIH")
    return (
        f"Calls of few steps, B = {B}, I = {I}, H = {H}, one thread, from a state of zeros; in "
        f"train only ours gets new weights at each call:\n\n{table(head, rows)}\n\n"
        "`new weights`: by so much a call is shorter that has the last one's; `call`: what no "
        "limit explains, nearly all of it Python - checks, the order of kernels, results' arrays. "
        "Loops under `@njit` have none of that."
    )


def bridges(infos: list[Info]) -> str:
    rows = []
    for info in infos:
        spread, plain = ratios(info, best(info)), info["cell"] != "lstm"
        rows.append(
            [
                info["cell"],
                micro(info["seconds"]["fastbptt"]),
                f"{best(info)}: {micro(info['seconds'][best(info)])}",
                f"{ratio(info):.1f} ({min(spread):.1f}–{max(spread):.1f})",
                shares(info),
                verdict(ratio(info) >= 10) if plain else verdict(None),
            ]
        )
    head = ["layer", "µs/step", "torch.nn (threads): µs/step", "ratio (min–max)"]
    head += ["our time goes to", "bar"]
    return (
        "Forward and backward through `fastbptt.bridges.torch` inside torch's autograd, T = 1000, "
        f"B = 1, H = 64:\n\n{table(head, rows)}\n\nThe bar: 10 for RNN and GRU. `layer`: the same "
        "by fastbptt's own functions, without torch."
    )


def steps(infos: list[Info]) -> str:
    rows = []
    for info in infos:
        spread, whole = ratios(info, best(info)), 1e3 * info["T"]
        ours, theirs = (
            f"{whole * statistics.median(info['seconds'][name]):.3g}"
            for name in ("fastbptt", best(info))
        )
        rows.append(
            [
                shape(info),
                info["cell"],
                str(info["threads"]),
                ours,
                f"{best(info)}: {theirs}",
                f"{ratio(info):.2f} ({min(spread):.2f}–{max(spread):.2f})",
                shares(info),
            ]
        )
    head = ["T, B, I, H", "layer", "threads", "ms", "torch.nn (threads): ms", "ratio (min–max)"]
    head += ["our time goes to"]
    return (
        "A whole training step of torch - the layer, a dense one, a loss, backward, Adam - with "
        f"the layer through the bridge:\n\n{table(head, rows)}\n\n`layer`: its passes and "
        "gradients by fastbptt's own functions; `torch alone`: the same step with the layer's "
        "output and gradients given, which torch.nn's has to do as well; `bridge`: the rest, and "
        "what one of these finds in the caches where it runs alone."
    )


def starts(infos: dict[str, Info]) -> str:
    rows = []
    if "import" in infos:
        both = infos["import"]["seconds"]
        values = [a / b for a, b in zip(both["fastbptt"], both["numba"], strict=True)]
        median = statistics.median(values)
        text = f"{median:.2f} ({min(values):.2f}–{max(values):.2f}) x `import numba`"
        rows.append(["`import fastbptt`", text, "1.3", verdict(median <= 1.3)])
    for cell in ("rnn", "gru", "lstm"):
        for state, bar in (("warm", 1), ("cold", 20)) if f"first call {cell}" in infos else ():
            value = statistics.median(infos[f"first call {cell}"]["seconds"][state])
            what = f"first train call, {cell}, {state} cache"
            rows.append([what, f"{value:.2g} s", f"{bar} s", verdict(value <= bar)])
    if "long" in infos:
        seconds, growth = infos["long"]["seconds"], infos["long"]["growth_bytes"]
        what = "stream of 10⁷ steps, H = 64, k = 8, one core"
        text = f"{seconds:.3g} s, peak memory + {growth / 1e6:.1f} MB"
        rows.append([what, text, "60 s, 50 MB", verdict(seconds <= 60 and growth <= 50e6)])
    rows += lengthy(infos) + lengths(infos)
    return table(["what", "measured", "bar", ""], rows)


def compared(seconds: Info, name: str, other: str) -> tuple[float, str]:
    """The median of the ratios of the rounds, and it with its spread."""
    values = [a / b for a, b in zip(seconds[name], seconds[other], strict=True)]
    median = statistics.median(values)
    return median, f"{median:.2f} ({min(values):.2f}–{max(values):.2f})"


def lengthy(infos: dict[str, Info]) -> list[list[str]]:
    """Rows of what long sequences cost."""
    rows = []
    for info in [info for task, info in infos.items() if task.startswith("checkpoints ")]:
        median, text = compared(info["seconds"], "checkpoints", "whole")
        growth = info["growth_bytes"] / 1e6
        what = (
            f"train without dL/dx, checkpoints every {info['segment']:,} steps, T = {info['T']:,}, "
            "H = 64, B = 1"
        )
        text = f"{text} x without, {growth:.0f} MB above x and d_output"
        rows.append([what, text, "1.4, 100 MB", verdict(median <= 1.4 and growth < 100)])
    if "truncated" in infos:
        info = infos["truncated"]
        _, text = compared(info["seconds"], "truncated", "whole")
        what = (
            f"truncated BPTT, windows of {info['window']:,} steps, T = {info['T']:,}, H = 64, B = 1"
        )
        growth = info["growth_bytes"] / 1e6
        text = f"{text} x the whole, {growth:.0f} MB above x and d_output"
        rows.append([what, text, "–", verdict(None)])
    for cell in ("rnn", "gru", "lstm"):
        if f"subnormal {cell}" in infos:
            info = infos[f"subnormal {cell}"]
            for name, bar in (("vanishing", "1.1"), ("saturated", "–")):
                median, text = compared(info["seconds"], name, "healthy")
                what = f"train, {cell}, T = {info['T']:,}, H = {info['size']}, {name}"
                met = verdict(median <= 1.1) if name == "vanishing" else verdict(None)
                rows.append([what, f"{text} x healthy", bar, met])
    return rows


def lengths(infos: dict[str, Info]) -> list[list[str]]:
    """Rows of forward and train over T = 10^5 to 10^7."""
    rows = []
    for task, info in infos.items():
        if " sequence " in task:
            name, growth = task.split()[0], info["growth_bytes"] / 1e6
            name = "train without dL/dx" if name == "train" else name
            long, short = (info["seconds"][which] for which in ("long", "short"))
            what = f"{name}, T = {info['T']:,}, B = 1, H = {info['size']}"
            text = f"{long * 1e6:.3g} µs/step, {long / short:.2f} x that of T = 1000"
            rows.append([what, f"{text}; memory + {growth:.0f} MB", "–", verdict(None)])
    return rows


def memory(infos: list[Info]) -> str:
    names = list(dict.fromkeys(name for info in infos for name in info["growth_bytes"]))
    rows = [
        [
            info["task"].split()[1],
            *(f"{info['growth_bytes'][name] / 1e6:.0f}" for name in names),
        ]
        for info in infos
    ]
    T, B, I, H = infos[0]["shape"]
    return (
        "Peak memory of setting up and of a first train call above the inputs, MB, "
        f"T = {T}, B = {B}, I = {I}, H = {H}:"
        f"\n\n{table(['cell', *names], rows)}"
    )


def norms(infos: dict[str, Info]) -> str:
    rows = []
    windows = [infos[task] for task in sorted(infos) if task.startswith("windows")]
    for info in windows:
        peer, bar = best(info), info["bar"]
        spread = ratios(info, peer)
        ours, theirs = (micro(info["seconds"][name]) for name in ("fastbptt", peer))
        rows.append(
            [
                f"`growth_window(lag={info['lag']})`, T = {info['T']:,}, H = {info['size']}, "
                f"threads: {info['threads']}",
                f"{ours} µs/step; explicit products in {peer} {theirs}",
                f"{statistics.median(spread):.2f} ({min(spread):.2f}–{max(spread):.2f}) x faster",
                f"{info['error']:.0e}, the median",
                f"{bar or '–'}",
                verdict(statistics.median(spread) >= bar) if bar else "–",
            ]
        )
    if "log_norm" in infos:
        info = infos["log_norm"]
        spread = [1 / value for value in ratios(info, "passes")]
        ours, theirs, explicit = (
            micro(info["seconds"][name]) for name in ("fastbptt", "passes", "numpy")
        )
        rows.append(
            [
                f"`log_norm`, T = {info['T']:,}, H = {info['size']}, one thread, "
                f"{info['half_sweeps']} half-sweeps",
                f"{ours} µs/step; a forward pass and one vector back {theirs}; the explicit "
                f"product and its SVD {explicit}",
                f"{statistics.median(spread):.2f} ({min(spread):.2f}–{max(spread):.2f}) x the time "
                "of the passes",
                f"{info['error']:.0e}; its interval {info['width']:.0e}",
                "5",
                verdict(statistics.median(spread) <= 5),
            ]
        )
    notes = [f"Windows of lag {info['lag']}: {info['note']}." for info in windows]
    head = ["what", "measured", "ratio (min–max)", "off the explicit, nats", "bar", ""]
    return "\n\n".join(["Norms:", table(head, rows), *dict.fromkeys(notes)])


def commands(parts: list[list[str]]) -> str:
    """What was run, each command once."""
    runs = collections.Counter(f"`python -m pytest {shlex.join(part)}`" for part in parts)
    return "; ".join(f"{run} ({n} times)" if n > 1 else run for run, n in runs.items())


def text(report: dict[str, Any], again: dict[str, Any] | None) -> str:
    """All tables of a report of pytest-benchmark, with the machine they were measured on."""
    machine = report["machine_info"]
    limits, infos = report["limits"], report["infos"]
    measured_peaks = [(info["threads"], limit(info, "gflops")) for info in infos if "H" in info]
    peaks = dict(sorted(measured_peaks))  # the highest of each
    rounds = sorted(len(info["seconds"]["fastbptt"]) for info in infos if "H" in info)
    span = " to ".join(str(n) for n in dict.fromkeys(rounds[:1] + rounds[-1:]))
    cpu = machine["cpu"]
    brand = cpu.get("brand_raw", machine["processor"])
    if "family" in cpu:  # the name alone may be that of many
        brand += f" (family {cpu['family']}, model {cpu.get('model', 0)})"
    widths = {"avx512f": 512, "avx": 256}
    known = [bits for flag, bits in widths.items() if flag in cpu.get("flags", [])]
    brand += f", registers of {known[0]} bits" if known else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    peak = ", ".join(f"{value:.0f} GFLOP/s ({n})" for n, value in peaks.items())
    kept_to = "pinned to" if machine.get("pinned", True) else "told, but not made, to have"
    changed = ", with changes," if report["origin"]["the commit"] != report["commit"] else ""
    parts = [
        f"Measured at commit {report['commit'][:7]}{changed} on {brand}, {machine['cores']} cores, "
        f"{machine['system']}, Python "
        f"{machine['python_version']}, {versions}, with "
        f"{commands(report['parts'])}. "
        f"All libraries take turns in every round, each in a process {kept_to} its threads: calls "
        f"that are not timed, then calls for {1000 * TURN:.0f} ms, or one that takes longer, whose "
        f"median is the time of the turn. A time is the median over the {span} rounds of a row, a "
        "ratio the median over its rounds of the peer's time over ours in the same round, above 1 "
        f"where we are faster. FMA peak, by threads: {peak}. jax is jit(vjp), "
        "`jax expert` has its weight gradients taken out of the scan by hand. Errors are "
        "against float64, relative to the largest element."
    ]
    parts += [roofline(limits)] if limits else []
    rivalled = [info for info in infos if info["task"] in ("forward", "train")]
    called = [info for info in rivalled if few_steps(info)]
    unusual = [info for info in rivalled if not usual(info)]
    rivalled = [info for info in rivalled if usual(info) and not few_steps(info)]
    streamed = [info for info in infos if info["task"] == "stream"]
    others = {info["task"]: info for info in infos if "H" not in info}
    parts += [sweeps(rivalled)] if rivalled else []
    parts += [beside(unusual)] if unusual else []
    parts += [calls(called)] if called else []
    bridged = [info for info in infos if info["task"] == "bridge"]
    parts += [bridges(bridged)] if bridged else []
    stepped = [info for info in infos if info["task"] == "step"]
    parts += [steps(stepped)] if stepped else []
    parts += [streams(streamed)] if streamed else []
    parts += (
        [norms(others)] if any(task.startswith(("windows", "log_norm")) for task in others) else []
    )
    remembered = [info for task, info in others.items() if task.startswith("memory")]
    parts += [memory(remembered)] if remembered else []
    parts += [starts(others)] if others else []
    if report["failed"]:
        parts.append(f"Failed or not run, and without a row: {', '.join(report['failed'])}.")
    if again:
        parts.append(agreement(infos, again["infos"]))
    return "\n\n".join(parts)


def measure() -> dict[str, Any]:
    """Run the suite, of which one bench may fail; what it wrote stays."""
    file = pathlib.Path(tempfile.mkdtemp(), "bench.json")
    command = [sys.executable, "-m", "pytest", "benches", "--long", "--full"]
    command.append(f"--benchmark-json={file}")
    print(f"the suite's report: {file}", file=sys.stderr)
    with subprocess.Popen(command, cwd=HERE.parent) as suite:
        with contextlib.suppress(KeyboardInterrupt):  # which it hears, and writes what there is
            suite.wait()
        suite.wait()
    return read([file])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=pathlib.Path, help="made by --benchmark-json")
    parser.add_argument(
        "--again", nargs="+", type=pathlib.Path, help="a second run, to compare winners"
    )
    parser.add_argument("--readme", type=pathlib.Path, default=HERE.parent / "README.md")
    given = parser.parse_args()
    readme = given.readme.read_text(encoding="utf-8")
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        parser.error(f"{given.readme}: expected {BEGIN} and {END} once each")
    try:
        report = read(given.files) if given.files else measure()
        again = read(given.again) if given.again else None
        if again:
            expect_same("--again", again["origin"], report["origin"], "the first run")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if any(run["machine_info"]["quick"] for run in (report, again) if run):
        parser.error("expected a run without --quick, whose times mean nothing")
    before, after = readme.split(BEGIN)[0], readme.split(END)[1]
    new = f"{before}{BEGIN}\n{text(report, again)}\n{END}{after}"
    given.readme.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
