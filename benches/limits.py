"""What the machine can do at most: arithmetic, and reading from each level of the memory."""

import os
import pathlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numba
import numpy as np
from cases import CORES, Case

from fastbptt.kernels import elementary
from fastbptt.kernels.lines import line
from fastbptt.kernels.memory import aligned
from fastbptt.kernels.panels import padded
from fastbptt.kernels.simd import REGISTER_BYTES, VECTORS, lanes, rows
from fastbptt.kernels.tiles import ROWS, tile
from fastbptt.teams import members_by_units


def _own_cache(level: int, usual: int) -> int:
    """Bytes of a core's own data cache: Linux knows, elsewhere it is taken for the `usual` one."""
    for cache in pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        names = [cache / name for name in ("level", "type", "size")]
        if all(name.exists() for name in names):  # some machines do not say
            depth, kind, size = (name.read_text().strip() for name in names)
            if depth == str(level) and kind != "Instruction":
                return int(size.removesuffix("K")) << 10
    return usual


# Bytes of a core's own caches, and of a core's part of the L3 that a server shares out.
CACHES = {"L1": _own_cache(1, 32 << 10), "L2": _own_cache(2, 1 << 20), "L3": 16 << 20}
# What fits beside the vectors that a step also touches.
CAPACITY = {name: size * 7 // 8 for name, size in CACHES.items()}
# Bytes that each thread reads again and again.
LEVELS = {"L1": CACHES["L1"] // 2, "L2": CACHES["L2"] // 2, "L3": 3 * CACHES["L2"]}
LEVELS["memory"] = 8 * CACHES["L3"]
_SECONDS = 0.02  # of a limit, at least
_BESIDE = 0.004  # of one that is measured in each round of a row
_PEAK_BYTES = 1 << 14  # of either operand at most: half of L1
_SGEMM = 1024
_TOGETHER = 60  # seconds until one that waits for the others, of which one had no memory, gives up

_tile = tile(ROWS, 1)


@numba.njit(nogil=True)
def _tiles(A, W, C, times):
    """The tile alone, again and again: nothing of what chooses it."""
    K = A.shape[1]
    a, w, c = rows(A, 0, K), rows(W, 0, C.shape[1]), rows(C, 0, C.shape[1])
    for _ in range(times):
        _tile(a, w, K, c, c, w)


def on_cores(rate: Callable[[Callable[[], Any]], float], threads: int) -> float:
    """The sum of rate(ready) of so many threads at once, each on a core of its own.

    Left alone, some schedulers keep two on one core for longer than they take.  ready() returns
    when all have called it.
    """
    ready = partial(threading.Barrier(threads).wait, _TOGETHER)

    def alone(core: int) -> float:
        if CORES:
            os.sched_setaffinity(0, {core})
        return rate(ready)

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(alone, CORES[:threads] or range(threads)))


def _per_second(call: Callable[[int], Any], ready: Callable[[], Any], least: float) -> float:
    """Times a second, of the first call(times) that takes the `least` seconds."""
    call(0)  # compiled
    times, seconds = 1, 0.0
    ready()
    while seconds < least:
        times *= 2
        start = time.perf_counter()
        call(times)
        seconds = time.perf_counter() - start
    return times / seconds


def fma_peak(dtype: str, threads: int, least: float = _SECONDS) -> float:
    """GFLOP/s of the register tile on data in L1, on so many cores at once."""
    panel = VECTORS * lanes(dtype)
    K = _PEAK_BYTES // max(VECTORS * REGISTER_BYTES, ROWS * np.dtype(dtype).itemsize)

    def one(ready: Callable[[], Any]) -> float:
        A, W, C = (aligned((m, n), dtype) for m, n in ((ROWS, K), (K, panel), (ROWS, panel)))
        A[:], W[:], C[:] = 0, 0, 0
        rate = _per_second(partial(_tiles, A, W.reshape(-1), C), ready, least)
        return 2 * ROWS * K * panel * rate / 1e9

    return on_cores(one, threads)


@numba.njit(nogil=True, fastmath={"reassoc", "nsz", "contract"})
def _read(parts, times):
    """Eight streams, each to a sum of its own: one sum of all waits for the latency of adding."""
    n = parts.shape[1]
    a, b, c = line(parts, 0, "a0"), line(parts, n, "a0"), line(parts, 2 * n, "a0")
    d, e, f = line(parts, 3 * n, "a0"), line(parts, 4 * n, "a0"), line(parts, 5 * n, "a0")
    g, h = line(parts, 6 * n, "a0"), line(parts, 7 * n, "a0")
    A = B = C = D = E = F = G = H = parts.dtype.type(0)
    for _ in range(times):
        for i in range(n):
            A += a[i]
            B += b[i]
            C += c[i]
            D += d[i]
            E += e[i]
            F += f[i]
            G += g[i]
            H += h[i]
    return A + B + C + D + E + F + G + H


@numba.njit(nogil=True, error_model="numpy")
def _curves(values, times):
    """The three sigmoids and two tanhs of so many units of an LSTM, each in a loop of its own.

    One that waits for another's result fills what the processor looks ahead: 20 cycles, not 15.
    """
    x, y = line(values, 0, "a0"), line(values, values.shape[1], "a1")
    n = values.shape[1]
    for _ in range(times):
        for i in range(n):
            y[i] = elementary.sigmoid(x[i])
        for _ in range(2):
            for i in range(n):
                y[i] = elementary.sigmoid(y[i])
        for _ in range(2):
            for i in range(n):
                y[i] = elementary.tanh(y[i])


def curve_rate(dtype: str, threads: int, least: float = _SECONDS) -> float:
    """10^9 sigmoids or tanhs a second of our own code on data in L1, on so many threads at once."""
    elements = LEVELS["L1"] // 16

    def one(ready: Callable[[], Any]) -> float:
        values = aligned((2, elements), dtype)
        values[:] = np.linspace(-4, 4, elements)
        return 5 * elements * _per_second(partial(_curves, values), ready, least) / 1e9

    return on_cores(one, threads)


def bandwidth(size: int, threads: int, least: float = _SECONDS) -> float:
    """GB/s of so many threads at once, each reading its own `size` bytes."""

    def one(ready: Callable[[], Any]) -> float:
        parts = aligned((8, size // 32), np.float32)  # a register across two lines costs double
        parts.fill(1)
        return size * _per_second(partial(_read, parts), ready, least) / 1e9

    return on_cores(one, threads)


def sgemm(dtype: str) -> float:
    """GFLOP/s of NumPy's product of two square matrices, on the threads this process has."""
    a = np.ones((_SGEMM, _SGEMM), dtype)
    a @ a
    best = np.inf
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * _SGEMM**3 / best / 1e9


class Source(NamedTuple):
    """What each thread reads of W_hh at every step, and where that lies when the step begins.

    Going to and fro, a step finds in the cache below what that one holds.
    """

    size: int  # bytes
    level: str
    below: str  # "" if there is none

    def seconds(self, gbytes: dict[str, float]) -> float:
        """To read it, of the GB/s of one thread from each level."""
        near = CAPACITY[self.below] if self.below else 0
        fast = near / gbytes[self.below] if self.below else 0.0
        return ((self.size - near) / gbytes[self.level] + fast) / 1e9


def sharers(case: Case, threads: int) -> int:
    """Threads that take part in a step: one for each sequence, or a team, see `teams`."""
    dtype = np.dtype(case.dtype)
    members = members_by_units(threads, case.B, case.weights, padded(case.H, dtype), dtype)
    return members or min(threads, case.B)


def source(case: Case, threads: int) -> Source:
    """Of W_hh, for each of so many threads."""
    n = sharers(case, threads)
    own = case.weights if n <= case.B else case.weights // n
    below = ""
    for name, size in CAPACITY.items():
        if own <= size:
            return Source(own, name, below)
        below = name
    return Source(own, "memory", below)


def of_case(case: Case, threads: int) -> dict[str, float]:
    """What limits a case at this moment: a machine that others use is not the same all day.

    GFLOP/s of all threads; 10^9 curves a second of those that take part in a step, and seconds in
    which they read W_hh.
    """
    n, read = sharers(case, threads), source(case, threads)
    levels = {read.level, read.below or read.level}
    gbytes = {level: bandwidth(LEVELS[level], n, _BESIDE) / n for level in levels}
    return {
        "gflops": fma_peak(case.dtype, threads, _BESIDE),
        "gcurves": curve_rate(case.dtype, n, _BESIDE),
        "reading": read.seconds(gbytes),
    }


def roofline(threads: int) -> dict[str, Any]:
    """GFLOP/s, GB/s and 10^9 curves a second, the best of three."""

    def best(measure: Any, names: Any) -> dict[str, float]:
        return {name: max(measure(name, threads) for _ in range(3)) for name in names}

    def read(level: str, threads: int) -> float:
        return bandwidth(LEVELS[level], threads)

    dtypes = ("float32", "float64")
    return {
        "gbytes": best(read, LEVELS),
        "gflops": best(fma_peak, dtypes),
        "gcurves": best(curve_rate, dtypes),
        "sgemm": sgemm("float32"),
    }


if __name__ == "__main__":
    import json
    import sys

    print(json.dumps(roofline(int(sys.argv[1]))))
