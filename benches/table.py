"""Write the tables into README.md, between its two markers.

    python benches/table.py [FILE...] [--again FILE...]

FILE is what `python -m pytest benches --benchmark-json=FILE` wrote; without one the suite is run,
and the pictures of `pictures.py` are drawn too.
Several are the parts of one run; of a row in more than one of them all rounds count.  A second run
is compared: do both say who is the fastest?
"""

import argparse
import collections
import contextlib
import pathlib
import shlex
import subprocess
import sys
import tempfile
from typing import Any

from cases import CASES
from other_tables import bridges, calls, memory, norms, roofline, starts, steps, streams
from results import Info, expect_same, few_steps, limit, read, small_size, usual
from sweep_tables import agreement, beside, sized, sweep_rows, sweeps
from timing import TURN

HERE = pathlib.Path(__file__).resolve().parent
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


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
    smaller = [info for info in rivalled if small_size(info)]
    rivalled = [info for info in rivalled if not small_size(info)]
    sizes = [info for info in infos if info["task"] == "sizes"]
    streamed = [info for info in infos if info["task"] == "stream"]
    others = {info["task"]: info for info in infos if "H" not in info}
    parts += [sweeps(rivalled)] if rivalled else []
    if smaller:
        said = "Train, smaller nets, whose bar is that of the smallest above:"
        parts.append(f"{said}\n\n{sweep_rows(smaller)}")
    parts += [beside(unusual)] if unusual else []
    parts += [sized(sizes)] if sizes else []
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


def draw_all(infos: list[Info]) -> None:
    """The pictures, if no size is missing."""
    from pictures import draw  # and with it all of matplotlib

    sizes = [info for info in infos if info["task"] == "sizes"]
    if len(sizes) == len(CASES["sizes"]):
        draw(sizes)
    else:
        print("no pictures: some sizes were not measured", file=sys.stderr)


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
    if not given.files:
        draw_all(report["infos"])


if __name__ == "__main__":
    main()
