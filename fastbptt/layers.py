"""One layer in one direction: its forward pass, and back-propagation through it."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from . import checks
from .kernels.cells import Adjoints, Memory
from .kernels.memory import aligned, pieces
from .kernels.panels import BLOCK, GRADIENT_ROWS, TURNED, gradient_scratch
from .kernels.sweeps import CHUNK_ROWS, Sums, backward, descend, forward, weight_gradients
from .kernels.team import ALONE, Team, board
from .sequences import Sequences
from .threads import available, share, side_by_side, slices, together
from .weights import Layer, Sizes

# Of da in one chunk: half of L2, where the weight gradients find it.  Four times that, in L3, took
# 7 % more of an LSTM's train step at B = 32, H = 256.
_CHUNK_BYTES = 1 << 19
# Chunks for each of several threads before the weight gradients are handed out: the hand-over of
# one at a time took two threads 8 % of that step, and their caches hold more.
_CHUNKS_AHEAD = 2
_CHUNKS_A_CALL = 16  # of a kernel, some tens of ms: Ctrl-C is heard between two
# Of W_hh for each member of a team: half a microsecond of reading it from L2.  A barrier of two
# takes 0.05 us, and to fetch the other's part of h another 0.1.  With 24 KB (a GRU of 64 units) two
# members took 0.75 us a step and one 0.60.  Where there are rows enough for all threads a team does
# not pay: at B = 64, H = 1024 an LSTM ran at 103 GFLOP/s on shared units, at 162 on shared rows.
_MEMBER_BYTES = 1 << 16


def _chunk_steps(N: int, width: int, dtype: np.dtype) -> int:
    """Steps of a chunk of time: a function of the shape alone, so that sums keep their order."""
    bytes_a_step = max(N, 1) * width * dtype.itemsize
    return max(1, -(-GRADIENT_ROWS // max(N, 1)), _CHUNK_BYTES // bytes_a_step)


def _side_by_side(
    rows: Callable[[int, int], Callable[[Team], None]],
    layer: Layer,
    sequences: Sequences,
    cost: float,
) -> None:
    """Run rows(b0, b1) for all sequences: some in each thread, or all by a team that shares units.

    A team pays where there are more threads than sequences, and where what a member reads of W_hh
    at each step takes longer than the barrier.
    """
    threads = available(cost)
    if threads == 1 and sequences.N:
        rows(0, sequences.N)(ALONE)
        return
    members = min(threads, layer.cell.w_hh.nbytes // _MEMBER_BYTES)
    one_block = layer.sizes.Hp <= BLOCK * layer.sizes.lanes
    if members <= sequences.N or one_block:
        share(lambda b0, b1: rows(b0, b1)(ALONE), sequences.lengths, cost)
    elif sequences.N:
        whole, common = rows(0, sequences.N), board(members)
        together(lambda leads: whole(Team(common, leads)), members)


class LayerGradients(NamedTuple):
    """What `LayerPass.backward` returns."""

    parameters: tuple[np.ndarray, ...]  # of w_ih, w_hh, bias_ih, bias_hh
    x: np.ndarray  # (S,Ip), no rows if not wanted
    state: list[np.ndarray]  # (B,H) each
    steps: list[np.ndarray]  # dL/dh (and dc) of every step, (S,Hp); no rows if not wanted


class _Plan(NamedTuple):
    """How a backward pass over so many rows goes about."""

    ahead: int  # steps between two turns of Python
    shares: list[np.ndarray]  # `Sums.share` of each thread, never written
    shapes: tuple[tuple[int, ...], ...]  # of dh, dc and da, then what each thread's `Sums` scratch


@lru_cache
def _plan(
    sizes: Sizes,
    dtype: np.dtype,
    parts: int,
    N: int,
    T: int,
    steps: int,
    dense: bool,
    threads: int,
) -> _Plan:
    """The `_Plan` for N sequences of up to T steps, a state of so many parts, chunks of `steps`."""
    (rows_ih, whole_I), (rows_hh, whole_H), db = sizes.gradients
    gated = sizes.gated
    if threads == 1:
        shares = [np.array([(0, rows_hh - gated), (0, rows_ih), (0, gated), (0, 1)])]
        ahead, held = _CHUNKS_A_CALL, 1
    else:
        shares = _shares(
            [(rows_hh - gated, whole_H), (rows_ih, whole_I), (gated, whole_H)], threads
        )
        ahead = held = _CHUNKS_AHEAD * len(shares)
    state, before = (N, sizes.Hp), (0 if dense else min(steps, T) * N, sizes.Hp)
    return _Plan(
        ahead * steps,
        shares,
        (
            state,
            state if parts == 2 else (0, sizes.Hp),
            (min(held * steps, T) * N, sizes.wide),
            *(before, gradient_scratch(dtype), db) * len(shares),
        ),
    )


def _shares(heights: list[tuple[int, int]], threads: int) -> list[np.ndarray]:
    """`Sums.share` of each thread, for three products of (rows, columns)."""
    counts = [-(-height // TURNED) for height, _ in heights]
    weights = [K for (_, K), count in zip(heights, counts, strict=True) for _ in range(count)]
    shares = []
    for first, last in slices(weights, threads):
        share, origin = np.zeros((4, 2), np.int64), 0
        for n, count in enumerate(counts):
            own = [min(max(i - origin, 0), count) * TURNED for i in (first, last)]
            share[n] = np.minimum(own, heights[n][0])
            origin += count
        share[3, 1] = first == 0
        shares.append(share)
    return shares


@lru_cache
def _none(width: int, dtype: np.dtype) -> np.ndarray:
    """No rows, one array for all calls."""
    return np.empty((0, width), dtype)


class LayerPass:
    """A forward pass over x (S,I..), whose rows lie as `sequences` says.

    Attributes
    ----------
    h : ndarray (N+S,Hp)
        All states; `c` likewise if `keep`.
    x : ndarray (S,I..)
    """

    def __init__(
        self,
        layer: Layer,
        x: np.ndarray,
        sequences: Sequences,
        state: tuple[np.ndarray | None, ...],
        keep: bool,
    ) -> None:
        """From state (B,H) each, None for zeros."""
        design, dtype, sizes = layer.design, layer.dtype, layer.sizes
        N, S, T, Hp = sequences.N, sequences.S, sequences.longest, sizes.Hp
        kept = keep and bool(design.kept)
        h, c, a = aligned((N + S, Hp), dtype), _none(Hp, dtype), _none(sizes.wide, dtype)
        sequences.begin(state[0], h[:N])
        if design.has_c:
            c = aligned((N + S if kept else 2 * N, Hp), dtype)
            sequences.begin(state[1], c[:N])
        if kept:
            a = aligned((S, sizes.wide), dtype)
        x, starts, cell = checks.read_only(x), sequences.starts, layer.cell

        self._steps = _chunk_steps(N, sizes.wide, dtype)
        steps = _CHUNKS_A_CALL * self._steps
        for t0 in range(0, T, steps):
            t1 = min(t0 + steps, T)

            def rows(b0: int, b1: int, t0: int = t0, t1: int = t1) -> Callable[[Team], None]:
                some = max(1, CHUNK_ROWS // (b1 - b0)) * N
                own = a if kept else aligned((some, sizes.wide), dtype)
                memory, span = Memory(h, c, own, kept), (t0, t1, b0, b1)
                return lambda team: forward(cell, x, memory, starts, sizes.lanes, span, team)

            _side_by_side(rows, layer, sequences, self._cost(layer, sequences, t0, t1))
        self.layer, self.sequences, self.h, self.c = layer, sequences, h, c
        self.x, self._a, self._kept = x, a, kept

    @staticmethod
    def _cost(layer: Layer, sequences: Sequences, t0: int, t1: int) -> float:
        """Multiply-adds of the steps t0 .. t1-1."""
        n = int(sequences.starts[t1 + 1] - sequences.starts[t0 + 1])
        H = layer.hidden_size
        return n * len(layer.design.gates) * H * (layer.input_size + H)

    def end(self) -> list[np.ndarray]:
        """The last state of each sequence, (B,H) each; copies."""
        H = self.layer.hidden_size
        state = [self.sequences.end(self.h, H)]
        if self.layer.design.has_c:
            state.append(self.sequences.end(self.c, H, halves=not self._kept))
        return state

    def backward(
        self,
        dy: np.ndarray,
        d_state: tuple[np.ndarray | None, ...],
        input_gradient: bool,
        per_step: bool,
    ) -> LayerGradients:
        """BPTT from dy (S,Hp), zeros in its padding, and d_state (B,H) each, zeros if None."""
        layer, sequences, steps = self.layer, self.sequences, self._steps
        sizes, dtype, parts = layer.sizes, layer.dtype, 1 + layer.design.has_c
        N, S, T, starts = sequences.N, sequences.S, sequences.longest, sequences.starts
        # no later chunk has more rows
        cost = self._cost(layer, sequences, 0, min(_CHUNKS_AHEAD * steps, T))
        threads = available(cost)
        plan = _plan(sizes, dtype, parts, N, T, steps, sequences.dense, threads)
        # all that goes when this layer is done: nothing that is returned may look at it
        dh, dc, chunk, *scratch = pieces(dtype, plan.shapes)
        for part, given in zip((dh, dc)[:parts], d_state, strict=False):
            sequences.ended(given, part)
        sequences.add_last(dy, dh)
        dx = aligned((S, sizes.Ip), dtype) if input_gradient else _none(sizes.Ip, dtype)
        step_h = step_c = _none(sizes.Hp, dtype)
        if per_step:
            step_h = aligned((S, sizes.Hp), dtype)
            step_c = aligned((S, sizes.Hp), dtype) if parts == 2 else step_c
        d = Adjoints(dh, dc, chunk, dx, step_h, step_c)

        dw_ih, dw_hh, db = pieces(dtype, sizes.gradients, zeros=True)
        I, H = layer.input_size, layer.hidden_size
        sums = [
            Sums(dw_ih, dw_hh, db, I, H, share, *scratch[3 * i : 3 * i + 3])
            for i, share in enumerate(plan.shares)
        ]
        memory = Memory(self.h, self.c, self._a, self._kept)
        cell, x, dy, width = layer.adjoint_cell, self.x, checks.read_only(dy), sizes.lanes
        for t1 in range(T, 0, -plan.ahead):
            t0 = max(0, t1 - plan.ahead)
            if threads == 1:
                span = (t0, t1, 0, N)
                descend(cell, dy, x, memory, d, sums[0], starts, width, span, steps, ALONE)
                continue

            def rows(b0: int, b1: int, t0: int = t0, t1: int = t1) -> Callable[[Team], None]:
                span = (t0, t1, b0, b1)
                return lambda team: backward(cell, dy, memory, d, starts, width, span, team)

            _side_by_side(rows, layer, sequences, self._cost(layer, sequences, t0, t1))
            add = partial(weight_gradients, cell, x, memory, chunk)
            side_by_side([partial(add, own, starts, (t0, t1), steps) for own in sums])
        return LayerGradients(
            layer.parameter_gradients(dw_ih, dw_hh, db),
            dx,
            [sequences.begun(part, H) for part in (dh, dc)[:parts]],
            [step_h, step_c][:parts],
        )

    def kept_states(self) -> tuple[np.ndarray, ...]:
        """(N+S,Hp) of each part of the state."""
        return (self.h, self.c) if self.layer.design.has_c else (self.h,)

    def inside(self) -> dict[str, np.ndarray]:
        """Rows (S,Hp) of h and, where the cell keeps them, of c and each gate."""
        N, Hp, design = self.sequences.N, self.h.shape[1], self.layer.design
        rows = {"h": self.h[N:]}
        if design.has_c:
            rows["c"] = self.c[N:]
        return rows | {
            letter: self._a[:, s * Hp : (s + 1) * Hp] for s, letter in enumerate(design.kept)
        }
