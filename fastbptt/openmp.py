"""The threads of another library's OpenMP runtime, lent to fastbptt.

After each of that library's parallel loops its threads stay awake for milliseconds, each on a core.
Ours would share the cores with them: two calls of 0.15 ms, soon after a torch.matmul, took our two
threads 0.3 ms, one time in ten 2.5 ms, and take torch's 0.2 ms.
"""

import ctypes
import itertools
import os
from collections.abc import Callable, Sequence

_Member = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


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
    """Parallel regions of the OpenMP runtime that a library, already loaded, is linked with.

    Before its version 4.9, GCC made of `omp parallel` a call of GOMP_parallel_start and one of
    GOMP_parallel_end; every libgomp has both, and so have the runtimes of LLVM and Intel.  Between
    the two the calling thread does its own part, so Ctrl-C is heard there as anywhere else.
    """

    @classmethod
    def of(cls, library: str) -> "OpenMP | None":
        """None if the library is not there, or linked with no such runtime."""
        try:
            return cls(library)
        except (OSError, AttributeError):
            return None

    def __init__(self, library: str) -> None:
        released, held = ctypes.CDLL(library), ctypes.PyDLL(library)
        self._start, self._end = released.GOMP_parallel_start, released.GOMP_parallel_end
        self._start.argtypes = [_Member, ctypes.c_void_p, ctypes.c_uint]
        self._number, self._size = held.omp_get_thread_num, held.omp_get_num_threads
        self._level = held.omp_get_level
        self._process, self._keys = os.getpid(), itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._member = _Member(self._take_part)  # kept: a thread may be about to call it

    def usable(self) -> bool:
        """Not in a child made by fork: libgomp would wait there for threads of the parent."""
        return os.getpid() == self._process

    def _take_part(self, key: int) -> None:
        """What each of the runtime's own threads does, those included that find no work."""
        self._calls[key].run(self._number(), self._size())

    def side_by_side(self, works: Sequence[Callable[[], None]], ended: Callable[[], None]) -> None:
        """As `threads.side_by_side`; each thread does several where there are fewer than works.

        All threads take part, as in torch's own loops: libgomp ends those that a smaller team does
        not need, and has to start them again.
        """
        call, key, level = _Call(works), next(self._keys), self._level()
        self._calls[key] = call
        try:
            try:
                self._start(self._member, key, 0)
                size = self._size()
                call.run(0, len(works))
            finally:
                ended()
            call.run(size, size)
        finally:
            if self._level() > level:
                self._end()
            del self._calls[key]
        for error in call.errors:
            if error is not None:
                raise error
