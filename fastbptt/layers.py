"""One layer in one direction: its forward pass, and back-propagation through it."""

import math
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from . import checks
from .kernels.gradients import GRADIENT_ROWS, gradient_scratch
from .kernels.memory import Pieces, aligned, bring_back, pieces, rows_of_call, taken
from .kernels.simd import REGISTER_BYTES, VECTORS, lanes
from .kernels.sweeps import CHUNK_ROWS
from .kernels.team import ALONE, Team
from .sequences import Sequences
from .teams import members_by_units, record, together
from .threads import available, share
from .weights import Layer, Sizes

# Of da in one chunk: half of L2, where the weight gradients find it.  Four times that, in L3, took
# 7 % more of an LSTM's train step at B = 32, H = 256.
_CHUNK_BYTES = 1 << 19
# Chunks for each of several threads between two meetings: 1 and 4 take as long, within 3 %.  Where
# one has more bytes than _MOST_AHEAD, one for all: a train step of 1024 units then takes 0.985 of
# the time (two threads).
_CHUNKS_AHEAD, _MOST_AHEAD = 2, 1 << 21
# Multiply-adds of a thread in one call of a forward kernel, 0.08 to 0.18 s: Ctrl-C is heard between
# two.  A call is a hand-over, 0.3 ms where a long one has emptied the caches: calls of two threads
# a quarter as long, all but the last, took 2 to 4 % more with 512 and 1024 units.
_CALL = 1e10
_STEP = 5000  # multiply-adds that a step takes as long as, beside its own
_FEW = 4  # sequences that take as long as one, whose W_hh comes from L2 or L3
# Bytes of W_hh for each of two members with which a step begins with the half of the state that is
# there (`sweeps.forward`): up to what L1 holds, or between what L1 is to L2 and what L2 holds.  A
# step of a GRU or LSTM of 64 or 256 units then takes 0.95 of the time, of a plain net of 128 units
# 0.9.  Outside, where going through W_hh to and fro finds a part of it in L1 or L2, which halves do
# not, they take 1.02 to 1.08 times as long; so do those of 384 and 512 KB beside the 512 KB of L2
# that processors with registers of 256 bits have (Zen 3: a GRU and an LSTM of 256 units).
_HALVES = [range(1, (32 << 10) + 1)]
if REGISTER_BYTES != 32:
    _HALVES.append(range(192 << 10, 640 << 10))


@lru_cache
def _chunk_steps(sizes: Sizes, N: int) -> int:
    """Steps of a chunk of time: a function of the shape alone, so that sums keep their order."""
    bytes_a_step = max(N, 1) * sizes.wide * sizes.dtype.itemsize
    return max(1, -(-GRADIENT_ROWS // max(N, 1)), _CHUNK_BYTES // bytes_a_step)


class LayerGradients(NamedTuple):
    """What `LayerPass.backward` returns."""

    parameters: tuple[np.ndarray, ...]  # of w_ih, w_hh, bias_ih, bias_hh
    x: np.ndarray  # (S,Ip), no rows if not wanted
    state: list[np.ndarray]  # (B,H) each
    steps: list[np.ndarray]  # dL/dh (and dc) of every step, (S,Hp); no rows if not wanted


@lru_cache
def _scratch(sizes: Sizes, N: int, T: int, steps: int, dense: bool, threads: int) -> Pieces:
    """Of dh, dc and da, and of what the `Sums` of each thread write to.

    For a backward pass over N sequences of up to T steps, in chunks of `steps`.
    """
    chunk = steps * N * sizes.wide * sizes.dtype.itemsize
    held = 1 if threads == 1 or chunk > _MOST_AHEAD else _CHUNKS_AHEAD * threads
    state, before = (N, sizes.Hp), (0 if dense else min(steps, T) * N, sizes.Hp)
    shapes = (
        state,
        state if sizes.parts == 2 else (0, sizes.Hp),
        (min(held * steps, T) * N, sizes.wide),
        *(before, gradient_scratch(sizes.dtype), sizes.gradients.places[2][0]) * threads,
    )
    return Pieces(sizes.dtype, shapes)


@lru_cache
def _chunk(sizes: Sizes, rows: int) -> Pieces:
    """Of `a`, where a forward pass keeps a chunk alone."""
    return Pieces(sizes.dtype, ((rows, sizes.wide),))


_T = TypeVar("_T")


def alike(one: _T) -> _T:
    """One more with the same attributes; `copy.copy` looks for hooks first, and calls them."""
    other = object.__new__(type(one))
    vars(other).update(vars(one))
    return other


_ALONE = tuple(ALONE)
_ARRAYS = ("h", "c", "_a")  # of a pass, all that it makes


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
        """From state (B,H) each, None for zeros; x is read-only."""
        sizes, N, S, T = layer.sizes, sequences.N, sequences.S, sequences.longest
        Hp, dtype = sizes.Hp, sizes.dtype
        kept = keep and layer.design.kept != ""
        h, c, a = rows_of_call((N + S, Hp), dtype), sizes.no_state, sizes.no_slots
        sequences.begin(state[0], h)
        if sizes.parts == 2:
            c = rows_of_call((N + S if kept else 2 * N, Hp), dtype)
            sequences.begin(state[1], c)
        if kept:
            a = rows_of_call((S, sizes.wide), dtype)
        self.layer, self.sequences, self.x, self.h, self.c = layer, sequences, x, h, c
        self._a, self._kept, self._steps = a, kept, _chunk_steps(sizes, N)
        if keep:
            layer.pack()

        cell, call = layer.cell, self._steps
        if call < T:  # of fewer it need not be asked
            call = self._call_steps(layer, N, T)
        for t0 in range(0, T, call):
            t1 = min(t0 + call, T)
            cost = sequences.rows(t0, t1) * sizes.work
            threads = available(cost)
            if threads == 1:
                if N:
                    self._forward(cell, t0, t1, 0, N)
                continue
            steps = partial(self._forward, cell, t0, t1)
            weights = N if sequences.dense else sequences.lengths
            by_sequences = partial(share, steps, weights, cost)
            if members := self._unit_members(layer, threads, N):
                known = record(sizes, N, members, (t1 - t0).bit_length(), False)
                known.call(partial(steps, 0, N, members), by_sequences, t1 - t0)
            else:
                by_sequences()
        if keep and Hp > layer.hidden_size:
            self._clear_padding()

    def _forward(self, cell: Any, t0: int, t1: int, b0: int, b1: int, members: int = 1) -> None:
        """The steps t0 .. t1-1 of the sequences b0 .. b1-1, whose units the members share."""
        layer, sizes, starts = self.layer, self.layer.sizes, self.sequences.starts
        working = [self._a]
        if not self._kept:
            chunk = _chunk(sizes, max(1, CHUNK_ROWS // (b1 - b0)) * self.sequences.N)
            working = taken(chunk)
        halves = self._halves(layer) if members == 2 else sizes.no_slots
        # a `Memory`, which kernels take as a plain tuple
        memory = (self.x, self.h, self.c, working[0], self._kept, halves)
        span = (t0, t1, b0, b1)
        if members == 1:  # `together` says the same by four more calls
            sizes.forward.call(cell, memory, starts, span, _ALONE)
        else:

            def work(_: int, team: Team) -> None:
                sizes.forward.call(cell, memory, starts, span, tuple(team))

            together(work, members, by_units=True)
        if not self._kept:
            bring_back(chunk, working)

    def _call_steps(self, layer: Layer, N: int, T: int, work: int = 1) -> int:
        """Steps of a call of a kernel that does `work` times what a forward pass does, for T."""
        H, Hp = layer.hidden_size, layer.sizes.Hp
        sharers = min(available(math.inf), max(N, 1))  # of one sequence a team may find it slow
        rows = max(_FEW, N / sharers)
        step = rows * len(layer.design.gates) * Hp * (layer.input_size + H) + _STEP
        chunks = -(-T // self._steps)
        most = max(1, int(_CALL / (work * step * self._steps)))
        calls = -(-chunks // most)
        return -(-chunks // calls) * self._steps  # of nearly equal length

    @staticmethod
    def _unit_members(layer: Layer, threads: int, N: int) -> int:
        """Members of a team that may share the units of N sequences, or 0."""
        if threads == 1 or N == 0:
            return 0
        slots, W_bytes = layer.design.slots, layer.cell.w_hh.nbytes
        meetings = 1 + (slots.gate > slots.first)
        return members_by_units(threads, N, W_bytes, layer.sizes.Hp, layer.dtype, meetings)

    @staticmethod
    def _halves(layer: Layer) -> np.ndarray:
        """`Memory.halves` of two members that share the units: with rows if they are worth it."""
        slots, sizes = layer.design.slots, layer.sizes
        panels = 2 * VECTORS * lanes(layer.dtype)  # of equal parts, each with whole panels
        own = layer.cell.w_hh.nbytes // 2
        in_halves = slots.gate == slots.first and layer.hidden_size % panels == 0
        if not in_halves or not any(own in some for some in _HALVES):
            return sizes.no_slots
        halves = aligned((3, sizes.wide), layer.dtype)
        halves[0] = 0
        return halves

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
        """BPTT from dy (S,Hp), read-only, its padding unread, and d_state (B,H), zeros if None."""
        layer, sequences, call = self.layer, self.sequences, self._steps
        sizes, H = layer.sizes, layer.hidden_size
        dtype, parts = sizes.dtype, sizes.parts
        N, S, T, starts = sequences.N, sequences.S, sequences.longest, sequences.starts
        if call < T:
            call = self._call_steps(layer, N, T, work=2)
        # no later steps have more rows
        threads = available(sequences.rows(0, min(call, T)) * sizes.work)
        members, by_sequences = 0, 1
        if threads > 1:
            members = self._unit_members(layer, threads, N)
            # members without a sequence would only have a part of the weight gradients: of one of
            # 64 units and 1000 steps two threads take 0.97 to 1.1 times as long as one
            by_sequences = max(1, min(threads, N))
            threads = max(members, by_sequences)
        # of calls with as many steps again and again, or nearly, all but the first find it ready
        most = 1 << (T - 1).bit_length()
        needed = _scratch(sizes, N, most, self._steps, sequences.dense, threads)
        # brought back when this layer is done: nothing that is returned may look at it
        dh, dc, chunk, *scratch = working = taken(needed)
        sequences.ended(d_state[0], dh, dy)
        if parts == 2:
            sequences.ended(d_state[1], dc)
        dx = rows_of_call((S if input_gradient else 0, sizes.Ip), dtype)
        step_h = step_c = sizes.no_state
        if per_step:
            step_h = rows_of_call((S, sizes.Hp), dtype)
            step_c = rows_of_call((S, sizes.Hp), dtype) if parts == 2 else step_c
        gradients = pieces(sizes.gradients, zeros=True)
        totals = (*gradients, layer.input_size, H)
        # a `Memory`, `Adjoints` and the `Sums` of each thread, as kernels take them
        memory = (self.x, self.h, self.c, self._a, self._kept, sizes.no_slots)
        d = (dy, dh, dc, chunk, dx, step_h, step_c)
        sums = [(*totals, *scratch[i : i + 3]) for i in range(0, 3 * threads, 3)]
        cell = layer.adjoint_cell

        def work(span: tuple[int, int, int], i: int, team: Team) -> None:
            sizes.descend.call(cell, memory, d, sums[i], starts, span, tuple(team))

        for t1 in range(T, 0, -call):
            t0 = max(0, t1 - call)
            span = (t0, t1, self._steps)
            if threads == 1 or available(sequences.rows(t0, t1) * sizes.work) == 1:
                sizes.descend.call(cell, memory, d, sums[0], starts, span, _ALONE)
                continue
            turn = partial(work, span)
            if members:
                known = record(sizes, N, members, (t1 - t0).bit_length(), True)
                by_units = partial(together, turn, members, by_units=True)
                known.call(by_units, partial(together, turn, by_sequences), t1 - t0)
            else:
                together(turn, by_sequences)
        d_begun = [sequences.begun(dh, H)]
        if parts == 2:
            d_begun.append(sequences.begun(dc, H))
        bring_back(needed, working)
        parameters = layer.parameter_gradients(*gradients)
        return LayerGradients(parameters, dx, d_begun, [step_h, step_c][:parts])

    def _clear_padding(self) -> None:
        """Zeros beyond the units: 0 · inf, of an x with infinite numbers, is NaN there.

        The way back multiplies by it, and would spread it over all units and to earlier steps.
        """
        H, Hp = self.layer.hidden_size, self.layer.sizes.Hp
        self.h[:, H:] = self.c[:, H:] = 0
        for slot in range(self.layer.design.slots.width):
            self._a[:, slot * Hp + H : (slot + 1) * Hp] = 0

    def __getstate__(self) -> dict[str, Any]:
        """Without the layer, which whoever keeps a pass has among its weights."""
        return {name: value for name, value in vars(self).items() if name != "layer"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy, whose arrays may be written: kernels would be compiled for such an x anew."""
        vars(self).update(state)
        if "x" in state:  # not of one that is `taken_apart`
            self.x = checks.read_only(self.x)

    def taken_apart(self) -> tuple["LayerPass", list[np.ndarray]]:
        """This pass without x and what it made, and that; `put_together` has it back."""
        shell = alike(self)
        del shell.x
        arrays = [vars(shell).pop(name) for name in _ARRAYS if getattr(self, name).size]
        return shell, arrays

    def put_together(
        self, layer: Layer, x: np.ndarray, arrays: Iterator[np.ndarray]
    ) -> "LayerPass":
        """The pass that was `taken_apart`, from the next of its arrays or of copies of them."""
        whole = alike(self)
        whole.layer, whole.x = layer, x
        for name in _ARRAYS:
            if name not in vars(self):
                setattr(whole, name, next(arrays))
        return whole

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
