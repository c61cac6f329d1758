"""Rounds in which every library takes its turn, each in a process born with its threads."""

import contextlib
import functools
import importlib
import multiprocessing
import os
import signal
import statistics
import time
import traceback
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import threadpoolctl
from cases import CORES, TOLERANCE, Case, inputs
from limits import of_case, sharers, source
from peers import (
    PEERS,
    SLOPES,
    Call,
    Setup,
    checked,
    libraries,
    numbers_of_threads,
    numpy_forward,
    numpy_train,
    timed,
)

import fastbptt as fb

MODULES = {"onnxruntime": ["onnxruntime", "onnx"]}  # of who needs another one than its own
_WARM = 0.01  # seconds of untimed calls before timed ones: the others' threads stop to spin
TURN = 0.02  # seconds of timed calls in a library's turn, at least one of them


class NotThere(ImportError):
    """A peer is installed, and cannot be imported."""


class Pace(NamedTuple):
    """How much of a comparison is timed.

    One call of a millisecond says little, and what is cheap may have more rounds: with one call in
    each of 5 rounds, a row of B = 1 had a ratio of 0.97 in one run and of 1.52 in another.
    """

    rounds: int  # at least
    most: int = 15  # of a comparison that has taken less than `enough`
    enough: float = 3.0  # seconds from the first round on
    turn: float = TURN  # 0: one call, and none ahead of it


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[None]:
    """This thread, fastbptt and every process begun in here keep to so many cores.

    XLA's own flags for one thread are not obeyed: with both of them set it used 1.8 cores.
    OpenBLAS's threads would spin for 25 ms after each call, on the core of whoever is next: the
    time to sleep, a power of two of cycles, is 26 if unsaid.  At 16 its own times stay the same.
    LLVM's OpenMP, that of torch on a Mac, spins for 200 ms if unsaid.
    """
    counts = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")
    counts += ("VECLIB_MAXIMUM_THREADS",)
    wanted = dict.fromkeys(counts, str(threads)) | {
        "JAX_PLATFORMS": "cpu",
        "OPENBLAS_THREAD_TIMEOUT": "16",
        "KMP_BLOCKTIME": "1",
    }
    environment, before = {name: os.environ.get(name) for name in wanted}, fb.get_num_threads()
    os.environ.update(wanted)
    if CORES:
        os.sched_setaffinity(0, CORES[:threads])
    fb.set_num_threads(threads)
    try:
        # of this process's own NumPy, which has read the environment long ago
        with threadpoolctl.threadpool_limits(threads, user_api="blas"):
            yield
    finally:
        fb.set_num_threads(before)
        if CORES:
            os.sched_setaffinity(0, CORES)
        for name, value in environment.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def warm(call: Call, long: bool = False) -> None:
    """Untimed calls, so that what the library needs is in the cache again.

    A long call has filled the caches within its first hundredth, and only waits.
    """
    start = time.perf_counter()
    if long:
        time.sleep(_WARM)
    while time.perf_counter() - start < _WARM:
        call()


def turn(call: Call, seconds: float, long: bool = False) -> tuple[float, float]:
    """Seconds of a call, their median over a turn of so many, and the cores that it kept busy."""
    if seconds:
        warm(call, long)
    taken: list[float] = []
    begin, cpu = time.perf_counter(), time.process_time()
    while not taken or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    busy = (time.process_time() - cpu) / (time.perf_counter() - begin)
    return statistics.median(taken), busy


def _arrays(results: list[Any]) -> list[np.ndarray]:
    return [np.array(result) for result in results]


def _serve(connection: Connection, threads: int) -> None:
    """The life of a process: set a library up, or time a turn of it; None ends it.

    Ctrl-C is for who began it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ready: dict[str, tuple[Call, Case]] = {}
    while (message := connection.recv()) is not None:
        library, *rest = message
        try:
            for module in MODULES.get(library, [library.split()[0]]):
                importlib.import_module(module)
        except Exception as error:  # a part may be missing, or of a version that does not fit
            connection.send(NotThere(f"{type(error).__name__}: {error}"))
            continue
        try:
            if len(rest) == 2:
                case, few = rest
                if library == "torch":
                    import torch

                    torch.set_num_threads(threads)
                setup = PEERS[case.task][library]
                call = setup(case, inputs(case))
                ready[library] = call, case
                check = call if few == case else setup(few, inputs(few))
                connection.send(_arrays(check()))
            else:
                call, case = ready[library]
                once, busy = turn(call, *rest, case.long)
                connection.send((once / case.T, busy))
        except Exception:
            connection.send(traceback.format_exc())


class Fleet:
    """A process for each package and number of threads, begun when first needed.

    None is stopped by a signal while it is another's turn: after that jax took 1.3 to 1.5 times as
    long in calls of 30 ms and more, and torch and onnxruntime on two threads in some short ones.
    """

    def __init__(self) -> None:
        self._workers: dict[tuple[str, int], tuple[Any, Connection]] = {}
        self._ready: dict[tuple[str, int], tuple[Case, float]] = {}

    def _ask(self, library: str, threads: int, *rest: Any) -> Any:
        key = (library.split()[0], threads)
        if key not in self._workers:
            context = multiprocessing.get_context("spawn")
            ours, theirs = context.Pipe()
            with pinned(threads):
                process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
                process.start()
            theirs.close()
            self._workers[key] = process, ours
        connection = self._workers[key][1]
        try:
            connection.send((library, *rest))
            answer = connection.recv()
        except (EOFError, OSError):
            del self._workers[key]  # the next row has another, in which nothing is set up
            for one in [one for one in self._ready if (one[0].split()[0], one[1]) == key]:
                del self._ready[one]
            raise RuntimeError(f"{library} with {threads} threads: its process died") from None
        if isinstance(answer, NotThere):
            raise answer
        if isinstance(answer, str):
            raise RuntimeError(f"{library} with {threads} threads:\n{answer}")
        return answer

    def prepare(self, library: str, threads: int, case: Case) -> float:
        """Set a library up for a case, unless it is; the error of what it computes."""
        before, error = self._ready.pop((library, threads), (None, 0.0))
        if before != case:
            few = checked(case, library)
            results = self._ask(library, threads, timed(case, library), few)
            error = relative_error(few, library, results)
        self._ready[library, threads] = case, error
        return error

    def time(self, library: str, threads: int, seconds: float) -> tuple[float, float]:
        """A turn of what was set up last: seconds per step, and the cores it kept busy."""
        return self._ask(library, threads, seconds)

    def close(self) -> None:
        """End the processes."""
        for _, connection in self._workers.values():
            with contextlib.suppress(OSError):  # a process that has died
                connection.send(None)
            connection.close()
        for process, _ in self._workers.values():
            process.join(10)


@functools.lru_cache(maxsize=4)
def reference(case: Case, columns: int) -> list[np.ndarray]:
    """The results in float64; of a stream the log-norm of so many columns of P V."""
    data = inputs(case, "float64")
    if case.task == "forward":
        return numpy_forward(case, data)()
    if case.task in ("train", "bridge", "step"):
        return numpy_train(case, data)()
    (h,) = numpy_forward(case, data)()
    product = data.V[:, :columns]
    for t in range(case.T):
        a_dot = data.weights["weight_hh_l0"] @ product
        product = SLOPES[case.nonlinearity](h[t, 0])[:, None] * a_dot
    return [np.log(np.linalg.norm(product, 2))]


def relative_error(case: Case, library: str, results: list[np.ndarray]) -> float:
    """The largest error of any result, in parts of its largest element; it has to be small.

    What is all zeros, as dL/dW_hh of one step from a state of zeros, has no such part.
    """
    expected = reference(case, case.k if library == "fastbptt" else min(case.k, 1))
    pairs = zip(results, expected, strict=True)
    # NumPy's max and not Python's, which may lose a NaN.
    errors = [np.abs(result - y).max() / (np.abs(y).max() or 1.0) for result, y in pairs]
    error = float(np.max(errors))
    assert error <= TOLERANCE[case.dtype], f"{library}, {case.name}: relative error {error:.2e}"
    return error


def compare(
    benchmark: Any,
    fleet: Fleet,
    case: Case,
    threads: int,
    peer_threads: list[int],
    pace: Pace,
    own: dict[str, Setup],
) -> None:
    """Check every library, then time them in turn; figures per step go to `extra_info`.

    `own` are further tasks of fastbptt to time beside it.  pytest-benchmark is told its turns.
    """
    few = checked(case, "fastbptt")
    setup, data = PEERS[case.task]["fastbptt"], inputs(case)
    results = _arrays(setup(few, inputs(few))())
    errors = {"fastbptt": relative_error(few, "fastbptt", results)}
    rivals: dict[str, tuple[str, int]] = {}
    for library in libraries(case):
        if library == "fastbptt":
            continue
        for n in numbers_of_threads(case, library, peer_threads):
            name = f"{library} ({n})"
            try:
                errors[name] = fleet.prepare(library, n, case)
            except NotThere as error:
                warnings.warn(f"{library} is installed and left out: {error}", stacklevel=2)
                break
            rivals[name] = library, n

    call, beside = setup(case, data), {name: make(case, data) for name, make in own.items()}
    turns: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in (*rivals, *beside)}
    busy_cores: dict[str, float] = {}
    limits: list[dict[str, float]] = []

    def one_round() -> None:
        limits.append(of_case(case, threads))
        for name, rival in rivals.items():
            once, busy_cores[name] = fleet.time(*rival, pace.turn)
            seconds[name].append(once)
        for name, function in beside.items():
            seconds[name].append(turn(function, pace.turn)[0] / case.T)
        turns.append(turn(call, pace.turn, case.long)[0])

    with pinned(threads):
        one_round()
        end = time.perf_counter() + pace.enough  # the first one may have compiled
        while len(turns) < pace.rounds or (len(turns) < pace.most and time.perf_counter() < end):
            one_round()
        last = benchmark.pedantic(call, rounds=1)
    if few == case:  # what was timed: the first calls of a shape are made without a team
        again = relative_error(case, "fastbptt", _arrays(last))
        errors["fastbptt"] = max(errors["fastbptt"], again)
    if benchmark.enabled:
        for once in turns:
            benchmark.stats.update(once)
    ours = [once / case.T for once in turns]
    benchmark.extra_info.update(
        case._asdict(),
        kind=case.kind,
        threads=threads,
        errors=errors,
        seconds={"fastbptt": ours, **seconds},
        busy_cores=busy_cores,
        flops=case.flops,
        limits={name: [one[name] for one in limits] for name in limits[0]},
        sharers=sharers(case, threads),
        source=source(case, threads).level,
    )
