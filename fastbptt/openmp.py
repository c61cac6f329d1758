"""The threads of another library's OpenMP runtime, lent to fastbptt (Linux).

After each of that library's parallel loops its threads stay awake for milliseconds, each on a core.
Ours would share the cores with them: two calls of 0.15 ms, soon after a torch.matmul, took our two
threads 0.3 ms, one time in ten 2.5 ms, and take torch's 0.2 ms.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

_Member = ctypes.CFUNCTYPE(None, ctypes.py_object)
_FORKED = 0x40  # of Linux' process flags: by fork, and without a program of its own since then


def _forked() -> bool:
    """Whether this process is a copy of another, whose threads it has not."""
    try:
        told = Path("/proc/self/stat").read_text()
    except OSError:
        return True  # for all that is known
    return bool(int(told.rpartition(")")[2].split()[6]) & _FORKED)


class _Call:
    """Works that the threads of one parallel region share, and how each ended."""

    def __init__(self, works: Sequence[Callable[[], None]]) -> None:
        self._works = works
        self.errors: list[BaseException | None] = [RuntimeError("not begun") for _ in works]

    def run(self, first: int, step: int) -> None:
        for i in range(first, len(self._works), step):
            try:
                self._works[i]()
                self.errors[i] = None
            except BaseException as error:
                self.errors[i] = error


class OpenMP:
    """Parallel regions of the OpenMP runtime that the libraries of this process call.

    Before its version 4.9, GCC made of `omp parallel` a call of GOMP_parallel_start and one of
    GOMP_parallel_end; every libgomp has both, and so have the runtimes of LLVM and Intel.  Between
    the two the calling thread does its own part and hears Ctrl-C; in the second it waits for the
    others, and hears it when they have ended.
    """

    @classmethod
    def found(cls) -> "OpenMP | None":
        """None where no loaded library offers such a runtime to the others."""
        try:
            return cls() if sys.platform == "linux" else None
        except AttributeError:
            return None

    def __init__(self) -> None:
        released, held = ctypes.CDLL(None), ctypes.PyDLL(None)
        self._start, self._end = released.GOMP_parallel_start, released.GOMP_parallel_end
        self._start.argtypes = [_Member, ctypes.py_object, ctypes.c_uint]
        self._number, self._size = held.omp_get_thread_num, held.omp_get_num_threads
        self._member = _Member(self._take_part)  # made once: that takes longer than a call
        self._process = 0 if _forked() else os.getpid()

    def usable(self) -> bool:
        """Not in a child made by fork: libgomp would wait there for threads of the parent."""
        return os.getpid() == self._process

    def _take_part(self, call: _Call) -> None:
        """What each of the runtime's own threads does, those included that find no work."""
        call.run(self._number(), self._size())

    def side_by_side(self, works: Sequence[Callable[[], None]], ended: Callable[[], None]) -> None:
        """As `threads.side_by_side`; each thread does several where there are fewer than works.

        All threads take part, as in torch's own loops: libgomp ends those that a smaller team does
        not need, and has to start them again.  (Who finds no work takes the GIL once.)
        """
        call = _Call(works)
        try:
            try:
                # nothing between `try` and this, nor between `finally` and the other: an interrupt
                # is raised where a call returns, so that the region ends if and only if it began
                self._start(self._member, call, 0)
                call.run(0, len(works))  # the first alone
            finally:
                ended()
            size = self._size()
            call.run(size, size)
        finally:
            self._end()
        first = next((error for error in call.errors if error is not None), None)
        if first is not None:
            try:
                raise first
            finally:
                call.errors.clear()  # an error knows these frames, and they would know the error
                del first
