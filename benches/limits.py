"""What the machine can do at most: arithmetic, and reading from each level of the memory."""

import pathlib
import time
from typing import Any

import numba
import numpy as np
from timing import fma_peak, on_cores

from fastbptt.kernels import elementary
from fastbptt.kernels.lines import line
from fastbptt.kernels.memory import aligned


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
_SECONDS = 0.02
_SGEMM = 1024


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


def curve_rate(dtype: str, threads: int) -> float:
    """10^9 sigmoids or tanhs a second of our own code on data in L1, on so many threads at once."""
    elements = LEVELS["L1"] // 16

    def one() -> float:
        values = aligned((2, elements), dtype)
        values[:] = np.linspace(-4, 4, elements)
        times, seconds = 1, 0.0
        while seconds < _SECONDS:
            times *= 2
            start = time.perf_counter()
            _curves(values, times)
            seconds = time.perf_counter() - start
        return 5 * elements * times / seconds / 1e9

    one()
    return on_cores(one, threads)


def bandwidth(size: int, threads: int) -> float:
    """GB/s of so many threads at once, each reading its own `size` bytes."""

    def one() -> float:
        parts = aligned((8, size // 32), np.float32)  # a register across two lines costs double
        parts.fill(1)
        times, seconds = 1, 0.0
        while seconds < _SECONDS:
            times *= 2
            start = time.perf_counter()
            _read(parts, times)
            seconds = time.perf_counter() - start
        return times * size / seconds / 1e9

    one()
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
