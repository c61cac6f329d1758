"""What is measured: one table of cases, and the seeded inputs that every library gets."""

import itertools
import os
import pathlib
from typing import NamedTuple

import numpy as np

from fastbptt.threads import quota

WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def one_of_each_first(cpus: list[int], root: str = "/sys/devices/system/cpu") -> list[int]:
    """One hardware thread of each core, then the others: two of one core share its arithmetic."""
    cores: dict[str, list[int]] = {}
    for cpu in cpus:
        file = pathlib.Path(root, f"cpu{cpu}", "topology", "thread_siblings_list")
        cores.setdefault(file.read_text() if file.exists() else str(cpu), []).append(cpu)
    ranks = itertools.zip_longest(*cores.values())
    return [cpu for rank in ranks for cpu in rank if cpu is not None]


def _cores() -> list[int]:
    """Those this process may run on; each worker of pytest-xdist begins with another one."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    cores = one_of_each_first(cores)[: max(1, int(quota() or len(cores)))]
    first = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % max(1, len(cores))
    return cores[first:] + cores[:first]


CORES = _cores()
_MOST = len(CORES) or os.cpu_count() or 1
THREADS = sorted({1, _MOST})
# A peer's best number of threads lies between, where there are many cores.
PEER_THREADS = sorted({1, _MOST, *(2**n for n in range(_MOST.bit_length()) if 2**n < _MOST)})

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
CALLS = (1, 10)  # steps of a call that is hardly more than a call
LONG_FLOPS = 10**10
SMALL_STEP = 2048  # pre-activations


class Case(NamedTuple):
    """One task on one shape; `k` probes if it is a stream."""

    task: str
    T: int
    B: int
    I: int
    H: int
    k: int = 0
    nonlinearity: str = "tanh"
    dtype: str = "float32"
    cell: str = "rnn"

    @property
    def kind(self) -> str:
        """The cell, of the plain one its nonlinearity."""
        return self.nonlinearity if self.cell == "rnn" else self.cell

    @property
    def usual(self) -> bool:
        """Whether it is measured without --full."""
        return self.dtype == "float32" and self.nonlinearity == "tanh"

    @property
    def short(self) -> bool:
        """Whether it is measured with --short: the small shapes and one of the middle."""
        small = (self.B, self.H) in ((1, 64), (1, 256), (32, 256)) and self.T not in CALLS
        return self.usual and small and self.k in (0, 8)

    @property
    def name(self) -> str:
        probes = f"-k{self.k}" if self.k else ""
        shape = f"T{self.T}-B{self.B}-I{self.I}-H{self.H}{probes}"
        return f"{self.task}-{self.kind}-{self.dtype}-{shape}"

    @property
    def weights(self) -> int:
        """Bytes of W_hh."""
        return GATES[self.cell] * self.H**2 * np.dtype(self.dtype).itemsize

    @property
    def flops(self) -> int:
        """Of one step; the elementwise part is not counted."""
        if self.task == "stream":
            return 2 * self.B * self.H * (self.I + self.H * (1 + self.k))
        passes = 2 if self.task == "forward" else 6
        return passes * self.B * GATES[self.cell] * self.H * (self.I + self.H)

    @property
    def long(self) -> bool:
        """Whether a call takes some tenth of a second even at the FMA peak."""
        return self.T * self.flops >= LONG_FLOPS

    @property
    def small_steps(self) -> bool:
        """Whether a step has one sequence or few units, so that how a loop is unrolled may tell."""
        return self.B == 1 or self.B * GATES[self.cell] * self.H <= SMALL_STEP

    def shortened(self, T: int) -> "Case":
        """The same with at most T steps."""
        return self._replace(T=min(self.T, T))


SHAPES = [
    (1000, 1, 32, 64),
    (1000, 1, 64, 256),
    (1000, 32, 64, 64),
    (300, 32, 64, 256),
    (200, 64, 256, 512),
    (50, 64, 256, 1024),
]
# Beside those, with --full: the other nonlinearity and the other dtype.
_KINDS = [{"cell": cell} for cell in GATES]
_FULL = [{"nonlinearity": "relu"}, {"nonlinearity": "relu", "dtype": "float64"}]
_FULL += [{"cell": cell, "dtype": "float64"} for cell in GATES]
# From small to large nets: so many steps that a call takes some tens of milliseconds, but for
# torch's at B = 1, whose step costs that much with any H.
SIZES = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


def _sized(B: int, H: int, cell: str) -> Case:
    one = Case("forward", 1, B, 64, H, cell=cell)
    return one._replace(T=min(2000, max(16, 10**9 // one.flops)))


CASES = {
    task: [Case(task, *shape, **kind) for kind in _KINDS + _FULL for shape in SHAPES]
    for task in ("forward", "train")
} | {
    # whose bar is that of the first shape
    "small": [
        Case("train", 1000, 1, 32, H, cell=cell) for cell in ("rnn", "gru") for H in (16, 32)
    ],
    "calls": [
        Case(task, T, *SHAPES[0][1:], cell=cell)
        for task in ("forward", "train")
        for T in CALLS
        for cell in GATES
    ],
    "bridge": [Case("bridge", *SHAPES[0], cell=cell) for cell in GATES],
    # those of examples/characters.py, and larger ones
    "step": [
        Case("step", *shape, cell=cell)
        for shape in ((128, 8, 64, 128), (100, 32, 64, 256))
        for cell in GATES
    ],
    "sizes": [_sized(B, H, cell) for B in (1, 32) for cell in GATES for H in SIZES],
    "stream": [
        Case("stream", 10_000, 1, I, H, k) for I, H in ((32, 64), (64, 256)) for k in (1, 8, 16)
    ],
}

QUICK_STEPS = 16
# Past this many steps an explicit product has left the range of float64.
CHECKED_STEPS = {"stream": 200}
# Loops in Python take the same time at every step: fewer steps say as much.
LOOP_STEPS = 500
NAIVE_FLOPS = 10**9  # a tenth of a second of loops that nobody has blocked
NAIVE_CHECKED = 16  # steps
# Of the largest element, over sums of up to T B products in contracting nets.
TOLERANCE = {"float32": 1e-4, "float64": 1e-12}
_CORNER = 1e-5  # of a relu's argument, about 0.4: ten times and more what float32 gets wrong


class Inputs(NamedTuple):
    weights: dict[str, np.ndarray]
    x: np.ndarray  # (T,B,I)
    dy: np.ndarray  # (T,B,H): dL/d output
    V: np.ndarray  # (H,k): the probes, those of JacobianStream(rng=0)


def _leave_corners(weights: dict[str, np.ndarray], x: np.ndarray, rng: np.random.Generator) -> None:
    """Draw those x[t, b] again with which a relu's argument comes near its corner.

    Where rounding decides, its slope is 0 for one library and 1 for the next, and so would be what
    goes back through it: with 512 units an element of dx was off by a fiftieth of the largest.
    """
    w_ih, w_hh, b_ih, b_hh = (y.astype(float) for y in weights.values())
    h = np.zeros((x.shape[1], len(w_hh)))
    for step in x:
        of_h = h @ w_hh.T + (b_ih + b_hh)
        a = step @ w_ih.T + of_h
        while (near := (np.abs(a) <= _CORNER).any(axis=1)).any():
            step[near] = rng.standard_normal(step[near].shape, np.float32)
            a[near] = step[near] @ w_ih.T + of_h[near]
        h = np.maximum(a, 0)


def inputs(case: Case, dtype: str | None = None) -> Inputs:
    """The inputs of a case; PyTorch's initialisation of the weights."""
    T, B, I, H = case.T, case.B, case.I, case.H
    rng, bound, rows = np.random.default_rng(0), H**-0.5, GATES[case.cell] * H
    shapes = zip(WEIGHTS, ((rows, I), (rows, H), (rows,), (rows,)), strict=True)

    def cast(y: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(y.astype(case.dtype).astype(dtype or case.dtype))

    weights = {name: cast(rng.uniform(-bound, bound, shape)) for name, shape in shapes}
    x = cast(rng.standard_normal((T, B, I), np.float32))
    dy = cast(rng.standard_normal((T, B, H), np.float32))
    if case.task == "train" and case.nonlinearity == "relu":
        _leave_corners(weights, x, rng)
    V, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((H, case.k)))
    return Inputs(weights, x, dy, cast(V))
