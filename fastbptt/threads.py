"""Plain threads over serial kernels that release the GIL (design.md D5)."""

import atexit
import contextlib
import ctypes
import functools
import itertools
import math
import os
import pathlib
import threading
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import TypeAlias

import numpy as np

from . import checks
from .kernels.team import awaited, cache_lines

# Multiply-adds, 0.2 to 0.7 ms: of 1.5e7 to 2e7 two threads take 0.85 to 0.95 of the time of one,
# of 1e7 the hand-over costs what it gains.
_WORTH_SHARING = 1.5e7

# Calls the first of some functions here and the others elsewhere, and here too, when the first has
# ended or will not begin, what is given for that.  It may have fewer threads than functions and
# call several in turn: none may wait without end for another to begin.
SideBySide: TypeAlias = Callable[[Sequence[Callable[[], None]], Callable[[], None]], None]

_count: int | None = None
_within = threading.local()  # count and lender of `num_threads`, in the threads that are within


@functools.cache
def quota(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> float | None:
    """How many cores' time a control group of Linux has, a container's as a rule.

    With more threads than that the kernel stops all of them for a part of each tenth of a second.
    None where there is no such limit, or none can be read.
    """
    folders = [pathlib.Path(root)]
    with contextlib.suppress(OSError, ValueError):
        for line in pathlib.Path(own).read_text().splitlines():
            if line.startswith("0::"):  # of control groups 2; those above have limits, too
                for part in pathlib.PurePosixPath(line[3:]).parts[1:]:
                    folders.append(folders[-1] / part)
    files = [[folder / "cpu.max"] for folder in folders]
    files.append([folders[0] / "cpu" / f"cpu.cfs_{name}_us" for name in ("quota", "period")])
    found = []
    for some in files:
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # not there; "max"
            most, period = map(int, " ".join(file.read_text() for file in some).split())
            if most > 0:
                found.append(most / period)
    return min(found, default=None)


def _default_count() -> int:
    """OMP_NUM_THREADS, as NumPy and torch read it, or the cores this process may keep busy."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux knows affinities
        cores = os.cpu_count() or 1
    return min(cores, math.ceil(quota() or cores))


def get_num_threads() -> int:
    """Threads that a call from the main thread uses; a call from any other thread uses one.

    What `set_num_threads` or else OMP_NUM_THREADS says; by default the cores that this process may
    run on, in a container of Linux no more than its quota pays for, rounded up.

    Examples
    --------
    >>> import fastbptt as fb
    >>> fb.get_num_threads() >= 1
    True
    """
    within = getattr(_within, "count", None)
    if within is not None:
        return within
    return _default_count() if _count is None else _count


def set_num_threads(count: int) -> None:
    """Set the number of threads; results do not depend on it, to the bit.

    Parameters
    ----------
    count : int
        At least 1.

    Raises
    ------
    TypeError, ValueError
        If `count` is not an integer, or below 1.
    """
    global _count
    _count = checks.size(count, "count")


@contextlib.contextmanager
def num_threads(count: int, lender: SideBySide | None = None) -> Iterator[None]:
    """Calls from this thread, inside the block, use `count` threads, those of a `lender` if any."""
    before = vars(_within).copy()
    _within.count, _within.lender = count, lender
    try:
        yield
    finally:
        vars(_within).clear()
        vars(_within).update(before)


_BEGUN, _ENDED = 0, 1  # lines of a worker's board: how many calls it was given, and has done
# Pauses, 12 to 22 us, until the thread that gave a call is in its own kernel: whoever asks for the
# GIL before that has to be woken when it is free.
_HEAD_START = 500
_AWAKE = 80_000  # pauses, some 2 ms, most of them in naps, until a worker sleeps
_Outcome: TypeAlias = SimpleQueue[BaseException | None]


class _Worker(threading.Thread):
    """A thread that waits for calls, awake for some 2 ms and then asleep.

    To wake a thread takes some 40 us, and to wake the one that waits for its end as long again: by
    ThreadPoolExecutor, which has them sleep, a call of nothing took 115 us and takes 40, soon after
    another; later a nap of 50 us may have to end first.  A step of training makes a handful.
    """

    def __init__(self) -> None:
        super().__init__(name="fastbptt", daemon=True)
        self._calls: SimpleQueue[tuple[Callable[[], None], _Outcome] | None] = SimpleQueue()
        self._board, self._given, self.asleep = cache_lines(2), 0, True
        awaited(self._board, _ENDED, 0, 0, 0)  # compiled here
        self.start()

    def begin(self, work: Callable[[], None]) -> Callable[[], BaseException | None]:
        """Have work() called; the function returned waits for its end and returns its error."""
        self._given += 1
        outcome: _Outcome = SimpleQueue()
        self._calls.put((work, outcome))
        self._board[_BEGUN, 0] = self._given
        return functools.partial(self._outcome, self._given, outcome)

    def _outcome(self, number: int, outcome: _Outcome) -> BaseException | None:
        awaited(self._board, _ENDED, number, _AWAKE, 0)
        return outcome.get()  # Ctrl-C is heard here

    def end(self) -> None:
        """End the thread, which has no call."""
        self._calls.put(None)
        self._board[_BEGUN, 0] = self._given + 1
        self.join()

    def run(self) -> None:
        for number in itertools.count(1):
            self.asleep = not awaited(self._board, _BEGUN, number, _AWAKE, _HEAD_START)
            call = self._calls.get()
            self.asleep = False
            if call is None:
                return
            work, outcome = call
            try:
                work()
                error = None
            except BaseException as raised:
                error = raised
            _idle.append(self)
            outcome.put(error)
            self._board[_ENDED, 0] = number
            del call, work, outcome, error  # nothing is kept alive until the next call


_idle: list[_Worker] = []


def _worker() -> _Worker:
    """One that has no call; whoever takes it may be any thread."""
    try:
        return _idle.pop()
    except IndexError:
        return _Worker()


@atexit.register
def _end() -> None:
    while _idle:
        _idle.pop().end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # the child has none of the parent's threads


def available(cost: float) -> int:
    """Threads for so many multiply-adds.

    A thread that is not the main one may be a worker of Dask or joblib, whose other workers have
    the other cores: it has no other threads.
    """
    if cost < _WORTH_SHARING or threading.get_ident() != threading.main_thread().ident:
        return 1
    return get_num_threads()


def slices(weights: int | np.ndarray, count: int) -> list[tuple[int, int]]:
    """Slices [first, last) of so many of like sums, `count` if there are as many; an int is a size.

    Of elements that weigh alike, then: NumPy took as long for it as to wake a thread.
    """
    size = weights if isinstance(weights, int) else len(weights)
    count = min(count, size)
    if count <= 1:
        return [(0, size)] if size else []
    if isinstance(weights, int):
        ends = [-(-size * i // count) for i in range(1, count)]
    else:
        total = np.cumsum(weights)
        ends = (np.searchsorted(total, total[-1] * np.arange(1, count) / count - 1e-9) + 1).tolist()
    cuts = [0, *ends, size]
    return [(first, last) for first, last in itertools.pairwise(cuts) if first < last]


def share(work: Callable[[int, int], None], weights: int | np.ndarray, cost: float) -> None:
    """Call work(first, last) for the `slices`, side by side; `cost` multiply-adds in all."""
    side_by_side([functools.partial(work, *own) for own in slices(weights, available(cost))])


def both(one: Callable[[], None], other: Callable[[], None], cost: float) -> None:
    """Call one() and other(), side by side if `cost` multiply-adds are worth it."""
    if available(cost) > 1:
        side_by_side([one, other])
    else:
        one()
        other()


if hasattr(os, "sched_getaffinity"):  # Linux
    _current_core: Callable[[], int] = ctypes.PyDLL(None).sched_getcpu
    _give_way: Callable[[], int] = ctypes.CDLL(None).sched_yield

    def _keep_to(cores: set[int]) -> None:
        with contextlib.suppress(OSError):  # speed alone depends on it, and a sandbox may forbid it
            os.sched_setaffinity(0, cores)

    @contextlib.contextmanager
    def _apart(taken: set[int], allowed: set[int]) -> Iterator[None]:
        """This thread keeps off the cores `taken` if others are `allowed`, and takes its own.

        Some schedulers wake a thread on the core of whoever woke it, and leave it there for
        milliseconds with the other cores idle.
        """
        try:
            _keep_to(allowed - taken or allowed)
            taken.add(_current_core())
            yield
        finally:
            _keep_to(allowed)

    @contextlib.contextmanager
    def _cores() -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
        """`_apart` for a few threads beside this one, which stays where it is."""
        allowed, core = os.sched_getaffinity(0), _current_core()
        with _apart(allowed - {core}, allowed):
            yield functools.partial(_apart, {core}, allowed)

else:

    @contextlib.contextmanager
    def _cores() -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
        yield contextlib.nullcontext

    def _give_way() -> int:
        return 0


def side_by_side(
    works: Sequence[Callable[[], None]], ended: Callable[[], None] = lambda: None
) -> None:
    """Call the first here and each other in a thread of ours, or all on a lender's (`SideBySide`).

    ended() is called here when the first has ended or, by an error, will not begin.
    """
    if len(works) > 1:
        lender: SideBySide | None = getattr(_within, "lender", None)
        (lender or _on_workers)(works, ended)
    elif works:
        works[0]()


def _on_workers(works: Sequence[Callable[[], None]], ended: Callable[[], None]) -> None:
    """`side_by_side` on our own threads, on Linux each on its own core."""

    def elsewhere(work: Callable[[], None]) -> None:
        with apart():
            work()

    workers: list[_Worker] = []
    outcomes: list[Callable[[], BaseException | None]] = []
    errors: list[BaseException] = []
    try:
        for _ in works[1:]:
            workers.append(_worker())
        with _cores() as apart:
            try:
                for worker, work in zip(workers, works[1:], strict=True):
                    outcomes.append(worker.begin(functools.partial(elsewhere, work)))
                if any(worker.asleep for worker in workers):
                    _give_way()  # to those that woke here
                works[0]()
            finally:
                ended()
                errors += [e for e in [outcome() for outcome in outcomes] if e is not None]
        if errors:
            raise errors[0]
    finally:
        _idle.extend(workers[len(outcomes) :])  # those that never began
        errors.clear()  # an error knows this frame, and the frame would know the error
