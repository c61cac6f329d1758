"""One layer in one direction: its forward pass, and back-propagation through it."""

import copy
import os
import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from . import checks
from .kernels.cells import Adjoints, Memory
from .kernels.gradients import Sums
from .kernels.memory import Pieces, aligned, bring_back, pieces, taken
from .kernels.panels import GRADIENT_ROWS, gradient_scratch
from .kernels.simd import REGISTERS
from .kernels.slots import shareable
from .kernels.sweeps import CHUNK_ROWS, descend, forward
from .kernels.team import ALONE, Team, board, close, incomplete
from .sequences import Sequences
from .threads import available, share, side_by_side
from .weights import Layer, Sizes

# Of da in one chunk: half of L2, where the weight gradients find it.  Four times that, in L3, took
# 7 % more of an LSTM's train step at B = 32, H = 256.
_CHUNK_BYTES = 1 << 19
# Chunks for each of several threads between two meetings: 1 and 4 take as long, within 3 %.
_CHUNKS_AHEAD = 2
# Multiply-adds of one call of a forward kernel, some 50 ms: Ctrl-C is heard between two.  For
# several threads a call is a hand-over of 0.1 ms: calls a quarter as long took two 1 to 8 % more.
_CALL = 4e9
_STEP = 5000  # multiply-adds that a step takes as long as, beside its own
# Of W_hh for each member of a team.  A barrier of two takes 0.05 us, and to fetch the other's part
# of h another 0.1, as long as to read 16 KB from L2: with AVX2 two members of 32 KB (an LSTM of 64
# units) take 0.85 us a step and one 1.04, two of 24 KB (a GRU) 0.65 to 0.8 and one 0.75, of 18 KB
# 1.1 times as long as one.  With AVX-512 the rest of a step is shorter: of 24 KB 0.75 us and one
# 0.60.  Where two cores are far apart, as those of a virtual machine are for moments, a barrier
# takes four times as long.  Where there are rows enough for all threads a team does not pay: at
# B = 64, H = 1024 an LSTM ran at 103 GFLOP/s on shared units, at 162 on shared rows.
_MEMBER_BYTES = (32 if REGISTERS == 16 else 64) << 10


class _Others:
    """What else runs on the cores, as teams that share units find it.

    A member whose core another program has holds all of them up at each step: where one had one of
    two cores, a train step of one sequence of 256 units took a team 16 us and one thread 8.  So
    where two calls on end were held up, one thread works alone for some time.  Beside a program of
    the lowest priority one call in ten is, and there a team pays.  Other libraries' threads, which
    spin for some ms after their last call, soon sleep: the more calls on end, the longer alone.
    """

    SECONDS = 0.1  # at most, from the sixth call on; a sixteenth of it after two
    SHARE = 0.25  # of a call: what a team gains is a third and more
    # Elsewhere nobody naps, and Windows counts a thread's time in ticks of 16 ms.
    SEEN = os.name == "posix"

    def __init__(self) -> None:
        self._calls, self._until = 0, 0.0

    def saw(self, board: np.ndarray, elapsed: float, own: float) -> None:
        """A call of the board's team took its leader so many seconds, and `own` of a core's time.

        The leader has less of those when it has no core, or naps (`kernels.team`) because another
        has none.  The call was also held up if a member came too late or the team parted, as it
        does at once where it has fewer cores than members.
        """
        held_up = incomplete(board) or (self.SEEN and elapsed - own > self.SHARE * elapsed)
        self._calls = self._calls + 1 if held_up else 0
        if self._calls >= 2:
            self._until = time.monotonic() + self.SECONDS / 2 ** max(0, 6 - self._calls)

    def expected(self) -> bool:
        """Whether a team would be held up again."""
        return time.monotonic() < self._until


_others = _Others()


def _chunk_steps(N: int, width: int, dtype: np.dtype) -> int:
    """Steps of a chunk of time: a function of the shape alone, so that sums keep their order."""
    bytes_a_step = max(N, 1) * width * dtype.itemsize
    return max(1, -(-GRADIENT_ROWS // max(N, 1)), _CHUNK_BYTES // bytes_a_step)


def members_by_units(threads: int, N: int, W_bytes: int, Hp: int, dtype: np.dtype) -> int:
    """Members of a team that shares the Hp units, and W_bytes of W_hh, of N sequences, or 0.

    A team pays where there are more threads than sequences, and where what a member reads of W_hh
    at each step takes longer than the barrier.
    """
    members = min(threads, W_bytes // _MEMBER_BYTES) if shareable(Hp, dtype) else 0
    return members if members > N else 0


def _unit_members(threads: int, layer: Layer, N: int) -> int:
    """`members_by_units` of a layer, if the cores are likely to be their own."""
    if N == 0 or _others.expected():
        return 0
    return members_by_units(threads, N, layer.cell.w_hh.nbytes, layer.sizes.Hp, layer.dtype)


def _together(work: Callable[[int, Team], None], members: int, by_units: bool = True) -> None:
    """Call work(i, team) for each member of a team, side by side."""
    common = board(members)
    works = [partial(work, i, Team(common, i == 0, by_units)) for i in range(members)]
    # Ctrl-C may come while the leader's kernel is compiled, and the others wait for it
    start, own = time.perf_counter(), time.thread_time()
    side_by_side(works, partial(close, common))
    if by_units:
        _others.saw(common, time.perf_counter() - start, time.thread_time() - own)


class LayerGradients(NamedTuple):
    """What `LayerPass.backward` returns."""

    parameters: tuple[np.ndarray, ...]  # of w_ih, w_hh, bias_ih, bias_hh
    x: np.ndarray  # (S,Ip), no rows if not wanted
    state: list[np.ndarray]  # (B,H) each
    steps: list[np.ndarray]  # dL/dh (and dc) of every step, (S,Hp); no rows if not wanted


@lru_cache
def _scratch(
    sizes: Sizes,
    dtype: np.dtype,
    parts: int,
    N: int,
    T: int,
    steps: int,
    dense: bool,
    threads: int,
) -> Pieces:
    """Of dh, dc and da, and of what the `Sums` of each thread write to.

    For a backward pass over N sequences of up to T steps, a state of so many parts, chunks of
    `steps`.
    """
    held = 1 if threads == 1 else _CHUNKS_AHEAD * threads
    state, before = (N, sizes.Hp), (0 if dense else min(steps, T) * N, sizes.Hp)
    shapes = (
        state,
        state if parts == 2 else (0, sizes.Hp),
        (min(held * steps, T) * N, sizes.wide),
        *(before, gradient_scratch(dtype), sizes.gradients.places[2][0]) * threads,
    )
    return Pieces(dtype, shapes)


@lru_cache
def _chunk(rows: int, wide: int, dtype: np.dtype) -> Pieces:
    """Of `a`, where a forward pass keeps a chunk alone."""
    return Pieces(dtype, ((rows, wide),))


@lru_cache
def _none(width: int, dtype: np.dtype) -> np.ndarray:
    """No rows, one array for all calls."""
    return np.empty((0, width), dtype)


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

        def run(t0: int, t1: int, b0: int, b1: int, members: int = 1) -> None:
            chunk = _chunk(max(1, CHUNK_ROWS // (b1 - b0)) * N, sizes.wide, dtype)
            working = [a] if kept else taken(chunk)
            memory, span = Memory(x, h, c, working[0], kept), (t0, t1, b0, b1)

            def work(_: int, team: Team) -> None:
                forward(cell, tuple(memory), starts, span, tuple(team))

            if members == 1:
                work(0, ALONE)
            else:
                _together(work, members)
            if not kept:
                bring_back(chunk, working)

        call = self._call_steps(layer, N, T)
        for t0 in range(0, T, call):
            t1 = min(t0 + call, T)
            cost = self._cost(layer, sequences, t0, t1)
            threads = available(cost)
            if threads == 1 and N:
                run(t0, t1, 0, N)
            elif members := _unit_members(threads, layer, N):
                run(t0, t1, 0, N, members)
            else:
                share(partial(run, t0, t1), sequences.lengths, cost)
        self.layer, self.sequences, self.h, self.c = layer, sequences, h, c
        self.x, self._a, self._kept = x, a, kept
        if keep and Hp > layer.hidden_size:
            self._clear_padding()

    def _call_steps(self, layer: Layer, N: int, T: int, work: int = 1) -> int:
        """Steps of a call of a kernel that does `work` times what a forward pass does."""
        if self._steps >= T:
            return self._steps
        H, Hp = layer.hidden_size, layer.sizes.Hp
        step = N * len(layer.design.gates) * Hp * (layer.input_size + H) + _STEP
        return max(1, int(_CALL / (work * step * self._steps))) * self._steps

    @staticmethod
    def _cost(layer: Layer, sequences: Sequences, t0: int, t1: int) -> float:
        """Multiply-adds of the steps t0 .. t1-1."""
        H = layer.hidden_size
        return sequences.rows(t0, t1) * len(layer.design.gates) * H * (layer.input_size + H)

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
        call = self._call_steps(layer, N, T, work=2)
        # no later steps have more rows
        threads = available(self._cost(layer, sequences, 0, min(call, T)))
        members = _unit_members(threads, layer, N) if threads > 1 else 0
        # members without a sequence would only have a part of the weight gradients: of one of 64
        # units and 1000 steps two threads take 0.97 to 1.1 times as long as one
        by_units, threads = members > 0, members or max(1, min(threads, N))
        # of calls with as many steps again and again, or nearly, all but the first find it ready
        most = 1 << (T - 1).bit_length()
        needed = _scratch(sizes, dtype, parts, N, most, steps, sequences.dense, threads)
        # brought back when this layer is done: nothing that is returned may look at it
        dh, dc, chunk, *scratch = working = taken(needed)
        sequences.ended(d_state[0], dh, dy)
        if parts == 2:
            sequences.ended(d_state[1], dc)
        dx = aligned((S, sizes.Ip), dtype) if input_gradient else _none(sizes.Ip, dtype)
        step_h = step_c = _none(sizes.Hp, dtype)
        if per_step:
            step_h = aligned((S, sizes.Hp), dtype)
            step_c = aligned((S, sizes.Hp), dtype) if parts == 2 else step_c
        d = Adjoints(checks.read_only(dy), dh, dc, chunk, dx, step_h, step_c)

        dw_ih, dw_hh, db = pieces(sizes.gradients, zeros=True)
        I, H = layer.input_size, layer.hidden_size
        sums = [Sums(dw_ih, dw_hh, db, I, H, *scratch[3 * i : 3 * i + 3]) for i in range(threads)]
        memory, cell = Memory(self.x, self.h, self.c, self._a, self._kept), layer.adjoint_cell

        def work(span: tuple[int, int, int], i: int, team: Team) -> None:
            descend(cell, tuple(memory), tuple(d), tuple(sums[i]), starts, span, tuple(team))

        for t1 in range(T, 0, -call):
            t0 = max(0, t1 - call)
            span = (t0, t1, steps)
            held_up = by_units and _others.expected()
            if threads == 1 or held_up or available(self._cost(layer, sequences, t0, t1)) == 1:
                work(span, 0, ALONE)
            else:
                _together(partial(work, span), threads, by_units)
        d_begun = [sequences.begun(part, H) for part in (dh, dc)[:parts]]
        bring_back(needed, working)
        parameters = layer.parameter_gradients(dw_ih, dw_hh, db)
        return LayerGradients(parameters, dx, d_begun, [step_h, step_c][:parts])

    def _clear_padding(self) -> None:
        """Zeros beyond the units: 0 · inf, of an x with infinite numbers, is NaN there.

        The way back multiplies by it, and would spread it over all units and to earlier steps.
        """
        H, Hp = self.layer.hidden_size, self.layer.sizes.Hp
        self.h[:, H:] = self.c[:, H:] = 0
        for slot in range(self.layer.design.slots.width):
            self._a[:, slot * Hp + H : (slot + 1) * Hp] = 0

    def taken_apart(self) -> tuple["LayerPass", list[np.ndarray]]:
        """This pass without x and what it made, and that; `put_together` has it back."""
        shell = copy.copy(self)
        del shell.x
        arrays = [vars(shell).pop(name) for name in _ARRAYS if getattr(self, name).size]
        return shell, arrays

    def put_together(
        self, layer: Layer, x: np.ndarray, arrays: Iterator[np.ndarray]
    ) -> "LayerPass":
        """The pass that was `taken_apart`, from the next of its arrays or of copies of them."""
        whole = copy.copy(self)
        whole.layer, whole.x = layer, checks.read_only(x)
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
