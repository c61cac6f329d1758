"""One pass over a sequence with tangents riding along: the state and k probes share each panel.

Memory does not grow with T.  Frames are orthonormalised when their measured conditioning asks for
it (spectral.md sections 1 and 6), each sequence on its own: its bits depend neither on the batch
nor on how the sequence is cut into chunks.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from .cells import (
    TangentAt,
    Tangents,
    gate_linearise,
    gate_tangent,
    linearise,
    slots,
    tangent,
)
from .frames import EMPTY, factor_times, orthonormalise
from .jit import kernel
from .lines import clear, line, whole
from .panels import BLOCK, from_output, nothing, packed, to_and_fro
from .simd import REGISTER_BYTES, lanes_of, rows, shifted
from .slots import matmul_steps, slots_matmul

LONGEST = 64  # steps between two orthonormalisations, at most
# Bytes up to which all units of a step are one block: L1 holds its rows, and L2 all of W_hh, of
# which to and fro over several would find no more.  With it streams of 128 and 256 units take 0.96
# to 0.99 of the time.  Panel by panel, so that the curves of one run beside the next one's product,
# streams of eight probes and 64 or 128 units took 1.05, of one probe 1.15.
_ROWS_NEAR, _W_NEAR = 16 << 10, 256 << 10
# And above which low tiles go through that block to and fro, for L1 to hold a part of W_hh: one
# probe and 256 units take 0.97 to 1.01 of the time on Zen 3, and took 0.91 to 0.96 on Zen 5.  Over
# blocks of an LSTM of 256 units, 1 MB, it was 1.06.
_TO_AND_FRO = 128 << 10
BLOCKS = 128  # blocks of exponents kept for the standard error; when full, pairs are merged


class Stream(NamedTuple):
    """What is carried from chunk to chunk, for each of B sequences."""

    # (2,B,1+k,W): state and k tangents, at the parity of the step; W = L·parts·Hp, the states of L
    # layers side by side, each h and then c
    panel: np.ndarray
    U: np.ndarray  # (B,k,k) and
    e: np.ndarray  # (B,k): the triangular factor diag(2^e) U
    since: np.ndarray  # (B,): steps since the last orthonormalisation
    interval: np.ndarray  # (B,): steps until the next
    running: np.ndarray  # (B,k): sum of log R_ii in the open block
    running_steps: np.ndarray  # (B,)
    blocks: np.ndarray  # (B,BLOCKS,k): sums of log R_ii, nats
    block_steps: np.ndarray  # (B,BLOCKS)
    block_count: np.ndarray  # (B,)
    block_length: np.ndarray  # (B,)

    def sound(self) -> bool:
        """Whether its counts are such as the kernels leave: they find their places by them."""
        known = (self.block_count >= 0) & (self.block_count < BLOCKS) & (self.block_length >= 1)
        known &= (self.interval >= 1) & (self.interval <= LONGEST)
        known &= (self.since >= 0) & (self.running_steps >= 0)
        return bool(known.all() and (self.block_steps >= 0).all())


def begun(panel: np.ndarray) -> Stream:
    """What is carried at the beginning beside a panel of the states and probes."""
    _, B, each, _ = panel.shape
    k = each - 1
    U = np.zeros((B, k, k))
    U.reshape(B, k * k)[:, :: k + 1] = 1
    return Stream(
        panel=panel,
        U=U,
        e=np.zeros((B, k), np.int64),
        since=np.zeros(B, np.int64),
        interval=np.ones(B, np.int64),
        running=np.zeros((B, k)),
        running_steps=np.zeros(B, np.int64),
        blocks=np.zeros((B, BLOCKS, k)),
        block_steps=np.zeros((B, BLOCKS), np.int64),
        block_count=np.zeros(B, np.int64),
        block_length=np.ones(B, np.int64),
    )


def writable(arrays: Iterable[np.ndarray]) -> tuple[np.ndarray, ...]:
    """The arrays, or copies of those that may not be written."""
    return tuple(np.require(y, requirements=["C", "W"]) for y in arrays)


class Work(NamedTuple):
    """Work space, (L·B,1+k,slots·Hp) each."""

    start: np.ndarray  # what W_ih x adds and biases in the first rows, then zeros
    a: np.ndarray  # pre-activations; zeros at first


@kernel(part=True)
def _close_block(s, b):
    """The open block is put beside the others; when there is no more room, pairs become one."""
    n = s.block_count[b]
    k = s.running.shape[1]
    for i in range(k):
        s.blocks[b, n, i] = s.running[b, i]
        s.running[b, i] = 0
    s.block_steps[b, n] = s.running_steps[b]
    s.running_steps[b] = 0
    if n + 1 < BLOCKS:
        s.block_count[b] = n + 1
    else:
        for m in range(BLOCKS // 2):
            for i in range(k):
                s.blocks[b, m, i] = s.blocks[b, 2 * m, i] + s.blocks[b, 2 * m + 1, i]
            s.block_steps[b, m] = s.block_steps[b, 2 * m] + s.block_steps[b, 2 * m + 1]
        s.block_count[b] = BLOCKS // 2
        s.block_length[b] *= 2


@kernel(part=True)
def _settle(s, b, frame, n, scratch):
    """Orthonormalise one frame, multiply its factor, note its growth, choose the next interval."""
    R, row, work = scratch
    k = R.shape[0]
    for padding in range(n.H, n.stride, n.Hp):
        clear(frame, 0, k, padding, padding + n.Hp - n.H)
    orthonormalise(frame, R, work)
    factor_times(R, s.U[b], s.e[b], row)
    steps = s.since[b]
    low, high = math.inf, -math.inf
    for i in range(k):
        growth = math.log(R[i, i]) if R[i, i] > 0 else (-math.inf if R[i, i] == 0 else math.nan)
        s.running[b, i] += growth
        if growth > -math.inf:
            low, high = min(low, growth), max(high, growth)
    s.running_steps[b] += steps
    if s.running_steps[b] >= s.block_length[b]:
        _close_block(s, b)
    # The condition of the frame may reach eps^-1/4 by the rate just seen: a sudden change of rate
    # has the square of that, 1/sqrt(eps), as its room.
    room = -0.25 * math.log(np.finfo(frame.dtype).eps)
    spread = high - low
    longest = min(2 * s.interval[b], LONGEST)
    if spread * longest > room * steps:
        longest = max(1, int(room * steps / spread))
    s.interval[b] = longest
    s.since[b] = 0


@kernel
def finite_time_exponents(s, exponents, error):
    """Growth of |R_ii| per step, (B,k), after a burn-in of an eighth of the blocks, and its error.

    The error is that of the mean of the blocks' rates.  What is not known stays as it is.  s is a
    plain tuple of what a `Stream` has.
    """
    s = Stream(*s)
    B, k = exponents.shape
    for b in range(B):
        n = s.block_count[b]
        burn = n // 8
        length = s.running_steps[b]
        for m in range(burn, n):
            length += s.block_steps[b, m]
        for i in range(k):
            total, mean, square = s.running[b, i], 0.0, 0.0
            for m in range(burn, n):
                total += s.blocks[b, m, i]
                mean += s.blocks[b, m, i] / s.block_steps[b, m] / (n - burn)
            for m in range(burn, n):
                square += (s.blocks[b, m, i] / s.block_steps[b, m] - mean) ** 2
            if length > 0:
                exponents[b, i] = total / length
            if n - burn >= 8:
                error[b, i] = math.sqrt(square / (n - burn - 1) / (n - burn))


class Sizes(NamedTuple):
    """What the loops would else divide shapes for at every step."""

    B: int
    layers: int
    each: int  # 1 + k rows of a sequence
    stride: int  # L·parts·Hp, of a row of the panel
    wide: int  # slots·Hp, of a row of pre-activations
    Hp: int
    H: int
    I: int
    parts: int  # of a layer's state: h, or h and c


@kernel(part=True, inlined=True)
def _leaves_range(first, stride, far):
    """Whether the first tangent nears the end of its range."""
    energy = far * 0
    for j in range(stride):
        energy += first[j] * first[j]
    # an energy of 0 may have underflowed
    return energy > far or energy * far < 1


@kernel(part=True, inlined=True)
def _at(n, l, b, now, column, row):
    """The rows of sequence b from `row` on in layer l, whose states begin at `column`."""
    here = ((now * n.B + b) * n.each + row) * n.stride + column
    there = (((1 - now) * n.B + b) * n.each + row) * n.stride + column
    a = ((l * n.B + b) * n.each + row) * n.wide
    return TangentAt(here, there, a, 0, n.stride, n.wide, n.each - row)


@kernel(part=True)
def _steps(cell, p, ax, tops, n, which, s, scratch):
    """Carry s over some steps, whose inputs are in ax; state 0 is in p.now[now].

    `which` are (steps, now, b0, b1); the scratch is work space: (k,k), (k,), (W,).
    """
    steps, now, b0, b1 = which
    at = slots(cell)
    B, Hp, H, wide, stride, each = n.B, n.Hp, n.H, n.wide, n.stride, n.each
    panel, pre = p.now, p.a
    since, interval, e = s.since, s.interval, s.e
    far = panel.dtype.type(math.sqrt(np.finfo(panel.dtype).max))
    K_ih, K_hh = at.x * Hp, (at.last - at.first) * Hp
    M, width = (b1 - b0) * each, lanes_of(panel)
    itemsize = REGISTER_BYTES // width
    near = M * wide * itemsize <= _ROWS_NEAR and K_hh * H * itemsize <= _W_NEAR
    fro = 1 if near and K_hh * H * itemsize > _TO_AND_FRO else 0
    block = Hp if near else BLOCK * width
    last = (Hp - 1) // block
    mixed = max(at.gate, min(at.x, at.last))
    for t in range(steps):
        for b in range(b0, b1):
            of_x = line(ax, (t * B + b) * K_ih, "ax")
            top = line(tops, b * each * wide, "start")
            alone = line(pre, b * each * wide, "a0")
            for j in range(whole(panel, K_ih)):
                top[j] = of_x[j]
            for j in range(whole(panel, at.first * Hp)):
                alone[j] = of_x[j]
        for l in range(n.layers):
            column = l * n.parts * Hp  # of this layer's state
            origin, first = b0 * each, (l * B + b0) * each
            source = rows(panel, (now * B * each + origin) * stride + column, stride)
            own, c = rows(tops, first * wide, wide), rows(pre, first * wide, wide)
            begin = own
            if l > 0:
                side = (1 - now) * B * each + origin
                below = rows(panel, side * stride + column - n.parts * Hp, stride)
                w = packed(cell.w_ih, K_ih * (n.I + (l - 1) * H), H)
                slots_matmul(below, M, w, at.x, (Hp, 0, Hp), own, c, nothing(c))
                begin = c
            w_hh = to_and_fro(packed(cell.w_hh, l * K_hh * H, H), now * fro)
            if at.gate > at.first:
                begun, to = shifted(begin, at.first * Hp, wide), shifted(c, at.first * Hp, wide)
                for q in range(last + 1):
                    j0 = block * q
                    j1 = j0 + whole(panel, min(block, Hp - j0))
                    count, units = at.gate - at.first, (Hp, j0, j1)
                    slots_matmul(source, M, w_hh, count, units, begun, to, nothing(to))
                    for b in range(b0, b1):
                        gate_linearise(cell, p, _at(n, l, b, now, column, 0), j0, j1)
                        gate_tangent(cell, p, _at(n, l, b, now, column, 1), j0, j1)
                source = shifted(c, at.last * Hp, wide)
            w_gated = from_output(w_hh, (at.gate - at.first) * Hp)
            w_alone = from_output(w_hh, (mixed - at.first) * Hp)
            for q in range(last + 1):
                j0 = block * (q if now == 0 else last - q)
                j1 = j0 + whole(panel, min(block, Hp - j0))
                begun, to = shifted(begin, at.gate * Hp, wide), shifted(c, at.gate * Hp, wide)
                count, units = mixed - at.gate, (Hp, j0, j1)
                slots_matmul(source, M, w_gated, count, units, begun, to, nothing(to))
                if mixed < at.last:
                    begun, to = shifted(own, mixed * Hp, wide), shifted(c, mixed * Hp, wide)
                    count = at.last - mixed
                    slots_matmul(source, M, w_alone, count, units, begun, to, nothing(to))
                for b in range(b0, b1):
                    linearise(cell, p, _at(n, l, b, now, column, 0), j0, j1)
                    tangent(cell, p, _at(n, l, b, now, column, 1), j0, j1)
        now = 1 - now
        for b in range(b0, b1):
            since[b] += 1
            tangents = line(panel, ((now * B + b) * each + 1) * stride, "state")
            if Hp > H:  # asked first: a range of steps of Hp divides
                for padding in range(H, stride, Hp):
                    for j in range(padding, padding + Hp - H):
                        tangents[j] = 0
            # where the product has become zero there is nothing to bring back into range
            if since[b] >= interval[b] or (
                e[b, 0] > EMPTY and _leaves_range(tangents, stride, far)
            ):
                _settle(s, b, panel[now, b, 1:], n, scratch)


@kernel(allocates=True)
def stream(cell, x, ax, m, starts, which, s):
    """Carry the rows b0 .. b1-1 of s over the steps of x (T,B,I), the first of them step `start`.

    `which` are (start, b0, b1); ax (chunk·B,x slots·Hp) and m are work space; starts (chunk+2,)
    numbers the rows of ax.  m and s are plain tuples of what a `Work` and a `Stream` have.
    """
    (start, b0, b1), (T, B, I) = which, x.shape
    m, s = Work(*m), Stream(*s)
    n = slots(cell)
    Hp = ax.shape[1] // n.x
    chunk = starts.size - 2
    layers = cell.bias.size // (n.last * Hp)
    _, _, count, stride = s.panel.shape
    wide, parts = m.a.shape[2], stride // (layers * Hp)
    H = cell.w_hh.size // (layers * Hp) // (n.last - n.first)
    sizes = Sizes(B, layers, count, stride, wide, Hp, H, I, parts)
    w_ih, bias = packed(cell.w_ih, 0, I), rows(cell.bias, 0, 0)
    k = s.e.shape[1]
    factors = np.empty((1, n.factors * Hp), s.panel.dtype)
    scratch = np.empty((k, k)), np.empty(k), np.empty(stride, s.panel.dtype)
    p = Tangents(s.panel, s.panel, m.a, factors)
    for c in range(0, T, chunk):
        steps = min(chunk, T - c)
        source, target = rows(x, c * B * I, I), rows(ax, 0, ax.shape[1])
        some = (0, steps, b0, b1)
        matmul_steps(source, w_ih, n.x, (Hp, 0, Hp), bias, target, starts, some)
        _steps(cell, p, ax, m.start, sizes, (steps, (start + c) % 2, b0, b1), s, scratch)
