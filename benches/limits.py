"""What the machine can do at most: arithmetic, and reading from each level of the memory."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
from timing import fma_peak

from fastbptt.kernels import elementary

# Bytes of a server core's own caches, and of the L3 it shares.
CACHES = {"L1": 32 << 10, "L2": 1 << 20, "L3": 16 << 20}
# What fits beside the vectors that a step also touches.
CAPACITY = {name: size * 7 // 8 for name, size in CACHES.items()}
# Bytes that each thread reads again and again.
LEVELS = {"L1": CACHES["L1"] // 2, "L2": CACHES["L2"] // 2, "L3": 3 * CACHES["L2"]}
LEVELS["memory"] = 8 * CACHES["L3"]
_SECONDS = 0.02
_SGEMM = 1024


@numba.njit(nogil=True, fastmath={"reassoc", "nsz", "contract"})
def _read(a, b, c, d, times):
    """Four streams to one sum, which else would wait for itself."""
    total = a.dtype.type(0)
    for _ in range(times):
        for i in range(a.size):
            total += (a[i] + b[i]) + (c[i] + d[i])
    return total


@numba.njit(nogil=True, error_model="numpy")
def _curves(x, y, times):
    """The three sigmoids and two tanhs of so many units of an LSTM."""
    for _ in range(times):
        for i in range(x.size):
            gates = elementary.sigmoid(x[i]) * elementary.sigmoid(y[i])
            candidate = elementary.sigmoid(x[i] + y[i]) * elementary.tanh(x[i])
            y[i] = gates + elementary.tanh(candidate)


def curve_rate(dtype: str, threads: int) -> float:
    """10^9 sigmoids or tanhs a second of our own code on data in L1, on so many threads at once."""
    elements = LEVELS["L1"] // 16

    def one(_: int) -> float:
        x, y = np.linspace(-4, 4, elements, dtype=dtype), np.zeros(elements, dtype)
        times, seconds = 1, 0.0
        while seconds < _SECONDS:
            times *= 2
            start = time.perf_counter()
            _curves(x, y, times)
            seconds = time.perf_counter() - start
        return 5 * elements * times / seconds / 1e9

    one(0)
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(one, range(threads)))


def bandwidth(size: int, threads: int) -> float:
    """GB/s of so many threads at once, each reading its own `size` bytes."""

    def one(_: int) -> float:
        parts = np.ones((4, size // 16), np.float32)
        times, seconds = 1, 0.0
        while seconds < _SECONDS:
            times *= 2
            start = time.perf_counter()
            _read(*parts, times)
            seconds = time.perf_counter() - start
        return times * size / seconds / 1e9

    one(0)
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(one, range(threads)))


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
