import argparse
import contextlib
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import pytest
from cases import CORES, QUICK_STEPS, THREADS, Case
from timing import Fleet, Pace
from timing import compare as compare_in_turn
from tqdm import tqdm

import fastbptt

PACKAGES = ("numba", "numpy", "torch", "jax", "onnxruntime", "lyapax", "lyapynov")


class Progress:
    """The case that runs, how many are done, the time left: on stderr, instead of the dots."""

    def __init__(self, uncaptured: Callable[[], AbstractContextManager[None]]) -> None:
        self._uncaptured = uncaptured

    def pytest_collection_finish(self, session: Any) -> None:
        with self._uncaptured():
            self._bar = tqdm(total=len(session.items), unit="case", smoothing=0, dynamic_ncols=True)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        with self._uncaptured():
            self._bar.set_postfix_str(nodeid.split("::")[-1])

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        with self._uncaptured():
            self._bar.update()

    def pytest_report_teststatus(self, report: Any) -> tuple[str, str, str] | None:
        return ("passed", "", "") if report.passed and report.when == "call" else None

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        with self._uncaptured():
            self._bar.close()


class Left:
    """The benches that have not passed: a comparison that fails has noted nothing."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}  # by the nodes' ids

    def pytest_collection_finish(self, session: Any) -> None:
        self.names = {item.nodeid: item.name for item in session.items}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" and report.passed:
            self.names.pop(report.nodeid, None)


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--quick", action="store_true", help="check the numbers; judge no time")
    parser.addoption("--long", action="store_true", help="also 10^7 steps, some minutes each")
    parser.addoption("--full", action="store_true", help="also relu and float64, half an hour")
    parser.addoption("--short", action="store_true", help="some shapes, few rounds: five minutes")
    parser.addoption("--rounds", type=int, help="of a comparison, at least; 5, or 3 with --short")


def pytest_configure(config: Any) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    config.addinivalue_line("markers", "long: a minute or several; left out without --long")
    # one that Ctrl-C or a failure ended has no time, and to say so as an error would hide which
    config.addinivalue_line("filterwarnings", "ignore:Benchmark fixture was not used")
    if not config.getoption("--quick"):  # CI has all that is measured, other machines may not
        config.addinivalue_line("filterwarnings", "default:.*is installed and left out")
    # pytest-xdist's own lines say what its workers do, and nothing is noted then
    if hasattr(config, "workerinput") or config.getoption("dist", "no") != "no":
        return
    config.pluginmanager.register(Left(), "left")
    uncaptured = config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled
    with uncaptured():
        watched = sys.stderr.isatty()
    if watched:
        config.pluginmanager.register(Progress(uncaptured))


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    def chosen(item: Any) -> bool:
        case = item.callspec.params.get("case") if hasattr(item, "callspec") else None
        if item.get_closest_marker("long"):
            return config.getoption("--long")
        if config.getoption("--short"):
            return not item.get_closest_marker("slow") and (case is None or case.short)
        return case is None or case.usual or config.getoption("--full")

    left_out = [item for item in items if not chosen(item)]
    items[:] = [item for item in items if chosen(item)]
    config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: Any) -> Generator[None, Any, Any]:
    """Of a run that Ctrl-C ended: pytest-benchmark writes nothing if one bench has no time yet."""
    benches = session.config._benchmarksession.benchmarks
    benches[:] = [bench for bench in benches if bench]
    return (yield)


def _version(name: str) -> str:
    """A module's version, which may have come with a distribution of another name."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    given = config.invocation_params.args
    machine_info["cores"], machine_info["pinned"] = THREADS[-1], bool(CORES)
    machine_info["quick"] = config.getoption("--quick")
    installed = [name for name in PACKAGES if find_spec(name)]
    machine_info["versions"] = {name: _version(name) for name in installed} | {
        "fastbptt": fastbptt.__version__
    }
    written = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    written.add_argument("--benchmark-json")  # where to, which is no part of what was run
    machine_info["arguments"] = written.parse_known_args(given)[1]


def pytest_benchmark_update_commit_info(config: Any, commit_info: dict[str, Any]) -> None:
    """Whether code has changed: the tables and pictures that a run writes do not count."""
    command = ["git", "status", "--porcelain", "--untracked-files=no", "--", "."]
    command += [":(exclude)*.md", ":(exclude)benches/pictures"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no git, or no repository
        known = subprocess.run(command, cwd=config.rootpath, capture_output=True, check=True)
        commit_info["dirty"] = bool(known.stdout)


def pytest_benchmark_update_json(
    config: Any, benchmarks: list[Any], output_json: dict[str, Any]
) -> None:
    output_json["left"] = list(config.pluginmanager.getplugin("left").names.values())


@pytest.fixture(scope="session")
def fleet() -> Iterator[Fleet]:
    fleet = Fleet()
    yield fleet
    fleet.close()


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    option = request.config.getoption
    return 1 if option("--quick") else option("--rounds") or (3 if option("--short") else 5)


@pytest.fixture
def compare(
    benchmark: Any, fleet: Fleet, rounds: int, request: pytest.FixtureRequest
) -> Callable[..., None]:
    """Measure a case against its peers, as `timing.compare`; a few steps of it if --quick."""

    def run(
        case: Case, threads: int, peer_threads: list[int], rounds: int = rounds, **own: Any
    ) -> None:
        option = request.config.getoption
        pace = Pace(rounds, enough=1.0) if option("--short") else Pace(rounds)
        if option("--quick"):
            case, peer_threads = case.shortened(QUICK_STEPS), peer_threads[-1:]
            pace = Pace(rounds=1, most=1, turn=0)
        compare_in_turn(benchmark, fleet, case, threads, peer_threads, pace, own)

    return run
