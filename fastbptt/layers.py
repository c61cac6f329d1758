"""One layer in one direction: its forward pass, and back-propagation through it."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from . import checks
from .kernels.cells import Adjoints, Memory
from .kernels.memory import aligned, pieces
from .kernels.panels import (
    BLOCK,
    GRADIENT_ROWS,
    TURNED,
    gradient_scratch,
    padded,
)
from .kernels.simd import VECTORS, lanes
from .kernels.sweeps import CHUNK_ROWS, Sums, backward, descend, forward, weight_gradients
from .kernels.team import ALONE, Team, board
from .sequences import Sequences
from .threads import available, share, side_by_side, slices, together
from .weights import Layer

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
    one_block = padded(layer.hidden_size, layer.dtype) <= BLOCK * lanes(layer.dtype)
    if members <= sequences.N or one_block:
        share(lambda b0, b1: rows(b0, b1)(ALONE), sequences.lengths, cost)
    elif sequences.N:
        whole, common = rows(0, sequences.N), board(members)
        together(lambda leads: whole(Team(common, leads)), members)


class LayerGradients(NamedTuple):
    """What `LayerPass.backward` returns."""

    parameters: tuple[np.ndarray, ...]  # of w_ih, w_hh, bias_ih, bias_hh
    x: np.ndarray  # (S,Ip), no rows if not wanted
    state: tuple[np.ndarray, ...]  # (B,H) each
    steps: tuple[np.ndarray, ...]  # dL/dh (and dc) of every step, (S,Hp); no rows if not wanted


@lru_cache
def _whole(*heights: int) -> np.ndarray:
    """`Sums.share` of a thread that does all of three products of so many rows."""
    return np.array([*((0, height) for height in heights), (0, 1)])


def _shares(heights: list[tuple[int, int]], cost: float) -> list[np.ndarray]:
    """`Sums.share` of each thread, for three products of (rows, columns).

    `cost` is the multiply-adds behind them.
    """
    counts = [-(-height // TURNED) for height, _ in heights]
    weights = [K for (_, K), count in zip(heights, counts, strict=True) for _ in range(count)]
    shares = []
    for first, last in slices(weights, cost):
        share, origin = np.zeros((4, 2), np.int64), 0
        for n, count in enumerate(counts):
            own = [min(max(i - origin, 0), count) * TURNED for i in (first, last)]
            share[n] = np.minimum(own, heights[n][0])
            origin += count
        share[3, 1] = first == 0
        shares.append(share)
    return shares


class LayerPass:
    """A forward pass over x (S,I..), whose rows lie as `sequences` says.

    Attributes
    ----------
    h : ndarray (N+S,Hp)
        All states; `c` likewise if `keep`.
    x : ndarray (S,I..)
    state : tuple of ndarray (B,H)
        The last of each sequence.
    """

    def __init__(
        self,
        layer: Layer,
        x: np.ndarray,
        sequences: Sequences,
        state: tuple[np.ndarray, ...],
        keep: bool,
    ) -> None:
        design, dtype, H = layer.design, layer.dtype, layer.hidden_size
        N, S, T = sequences.N, sequences.S, sequences.longest
        Hp = padded(H, dtype)
        width = design.slots.width * Hp
        kept = keep and bool(design.kept)
        h = aligned((N + S, Hp), dtype)
        h[:N] = sequences.begin(state[0], Hp)
        c = aligned(((N + S if kept else 2 * N) if design.has_c else 0, Hp), dtype)
        if design.has_c:
            c[:N] = sequences.begin(state[1], Hp)
        a = aligned((S if kept else 0, width), dtype)
        x, starts, cell = checks.read_only(x), sequences.starts, layer.cell

        steps = _CHUNKS_A_CALL * _chunk_steps(N, width, dtype)
        for t0 in range(0, T, steps):
            t1 = min(t0 + steps, T)

            def rows(b0: int, b1: int, t0: int = t0, t1: int = t1) -> Callable[[Team], None]:
                own = a if kept else aligned((max(1, CHUNK_ROWS // (b1 - b0)) * N, width), dtype)
                memory, span = Memory(h, c, own, kept), (t0, t1, b0, b1)
                return lambda team: forward(cell, x, memory, starts, lanes(dtype), span, team)

            _side_by_side(rows, layer, sequences, self._cost(layer, sequences, t0, t1))
        self.layer, self.sequences, self.h, self.c = layer, sequences, h, c
        self.x, self._a, self._kept = x, a, kept
        self.state: tuple[np.ndarray, ...] = (sequences.end(h, H),)
        if design.has_c:
            self.state += (sequences.end(c, H, halves=not kept),)

    @staticmethod
    def _cost(layer: Layer, sequences: Sequences, t0: int, t1: int) -> float:
        """Multiply-adds of the steps t0 .. t1-1."""
        n = int(sequences.starts[t1 + 1] - sequences.starts[t0 + 1])
        H = layer.hidden_size
        return n * len(layer.design.gates) * H * (layer.input_size + H)

    def backward(
        self,
        dy: np.ndarray,
        d_state: tuple[np.ndarray, ...],
        input_gradient: bool,
        per_step: bool,
    ) -> LayerGradients:
        """BPTT: from dy (S,Hp), zeros in its padding, and d_state (B,H) each."""
        layer, sequences = self.layer, self.sequences
        design, dtype, slots = layer.design, layer.dtype, layer.design.slots
        H, I = layer.hidden_size, layer.input_size
        N, S, starts = sequences.N, sequences.S, sequences.starts
        Hp = self.h.shape[1]
        wide, panel = slots.width * Hp, VECTORS * lanes(dtype)
        steps, longest = _chunk_steps(N, wide, dtype), sequences.longest
        # no later chunk has more rows
        cost = self._cost(layer, sequences, 0, min(_CHUNKS_AHEAD * steps, longest))
        alone = available(cost) == 1
        gated = (slots.last - slots.gate) * Hp if slots.gate > slots.first else 0
        rows_ih, rows_hh = slots.x * Hp, (slots.last - slots.first) * Hp
        if alone:
            shares, ahead, held = [_whole(rows_hh - gated, rows_ih, gated)], _CHUNKS_A_CALL, 1
        else:
            shares = _shares([(rows_hh - gated, H), (rows_ih, I), (gated, H)], cost)
            ahead = held = _CHUNKS_AHEAD * len(shares)
        ahead *= steps
        before = 0 if sequences.dense else min(steps, longest) * N
        work = (before, Hp), gradient_scratch(dtype), (slots.last * Hp,)
        state = (N, Hp), (N if design.has_c else 0, Hp)
        chunk_rows = min(held * steps, longest) * N
        # all that goes when this layer is done: nothing that is returned may look at it
        dh, dc, chunk, *scratch = pieces(dtype, *state, (chunk_rows, wide), *work * len(shares))
        for part, given in zip((dh, dc), d_state, strict=False):
            sequences.ended(given, part)
        ends, last = sequences.last_steps()
        dh[ends] += dy[last]
        dx = aligned((S if input_gradient else 0, padded(I, dtype)), dtype)
        step_h = aligned((S if per_step else 0, Hp), dtype)
        step_c = aligned((S if per_step and design.has_c else 0, Hp), dtype)
        d = Adjoints(dh, dc, chunk, dx, step_h, step_c)

        dw_ih = aligned((rows_ih, -(-I // panel) * panel), dtype)
        dw_hh = aligned((rows_hh, -(-H // panel) * panel), dtype)
        db = np.zeros(slots.last * Hp, dtype)
        for total in (dw_ih, dw_hh):
            total.fill(0)
        sums = [
            Sums(dw_ih, dw_hh, db, I, H, share, *scratch[3 * i : 3 * i + 3])
            for i, share in enumerate(shares)
        ]
        memory = Memory(self.h, self.c, self._a, self._kept)
        cell, x, dy = layer.adjoint_cell, self.x, checks.read_only(dy)
        for t1 in range(longest, 0, -ahead):
            t0 = max(0, t1 - ahead)
            if alone:
                span = (t0, t1, 0, N)
                descend(cell, dy, x, memory, d, sums[0], starts, lanes(dtype), span, steps, ALONE)
                continue

            def rows(b0: int, b1: int, t0: int = t0, t1: int = t1) -> Callable[[Team], None]:
                span = (t0, t1, b0, b1)
                return lambda team: backward(cell, dy, memory, d, starts, lanes(dtype), span, team)

            _side_by_side(rows, layer, sequences, self._cost(layer, sequences, t0, t1))
            add = partial(weight_gradients, cell, x, memory, chunk)
            side_by_side([partial(add, own, starts, (t0, t1), steps) for own in sums])
        return LayerGradients(
            layer.parameter_gradients(dw_ih, dw_hh, db),
            dx,
            tuple(sequences.begun(y, H) for y in ((dh, dc) if design.has_c else (dh,))),
            (step_h, step_c) if design.has_c else (step_h,),
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
