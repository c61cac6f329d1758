"""What `python -m fastbptt info` says of the machine, and `warmup` compiles on it."""

import platform
from collections.abc import Callable
from typing import Any

import llvmlite
import numba
import numpy as np

from . import networks
from .kernels.activations import TAGS
from .kernels.jit import cache_folder
from .kernels.simd import lanes
from .kernels.sweeps import forward
from .spectral import JacobianStream, log_norm
from .threads import get_num_threads


def _processor() -> str:
    """The processor's own name, where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [
                line.partition(":")[2].strip() for line in file if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def info(version: str) -> str:
    """Versions, processor, registers, threads and cache, a line each."""
    rows = [
        ("fastbptt", version),
        ("numba", numba.__version__),
        ("numpy", np.__version__),
        ("llvmlite", llvmlite.__version__),
        ("python", platform.python_version()),
        ("processor", _processor()),
        ("lanes", f"{lanes(np.float32)} of float32, {lanes(np.float64)} of float64"),
        ("threads", str(get_num_threads())),
        ("cache", cache_folder(forward) or "none: no folder can be written"),
    ]
    return "\n".join(f"{name:<10} {value}" for name, value in rows)


def warmup(log: Callable[[str], None]) -> None:
    """Compile what passes, streams and short norms of every cell and dtype need; tell `log`."""
    kinds: list[tuple[str, dict[str, Any]]] = [("RNN", {"nonlinearity": tag}) for tag in TAGS]
    kinds += [("GRU", {"reset_after": True}), ("GRU", {"reset_after": False})]
    kinds += [(kind, {}) for kind in networks.NETWORKS if kind not in ("RNN", "GRU")]
    for kind, options in kinds:
        for dtype in (np.float32, np.float64):
            x = np.zeros((2, 1, 2), dtype)
            net = networks.NETWORKS[kind](2, 3, dtype=dtype, **options)
            trace = net.trace(x)
            trace.backward()
            log_norm(trace.chain())
            JacobianStream(net).update(x)
            log(f"{net} is compiled")
