"""The gradients of a layer's weights, from what a backward pass leaves (design.md D4)."""

from typing import Any, NamedTuple

import numpy as np

from .cells import slots
from .jit import kernel
from .panels import MOST_SOON, copy_panel_row
from .simd import REGISTER_BYTES, VECTORS, copy_run, flush_subnormals, lanes, restore, rows, shifted
from .tiles import ROWS, SPREAD, tiles

GROUP = 16  # panels of b packed at once: half of L2
TURNED = 2 * ROWS  # columns of da packed at once: at most a cache line of them in float32
GRADIENT_ROWS = 192  # rows of one partial sum: a panel of them, 24 KB, and a tile of da stay in L1

_turned = tiles(ROWS, kind="transposed")
_turned_half = tiles(ROWS, vectors=1, kind="transposed")
_copy_tile_row = copy_run(elements=TURNED)


def gradient_scratch(dtype: Any) -> tuple[int, ...]:
    """The shape of what `weight_gradient` packs into: some panels of b, some columns of da."""
    panel = VECTORS * lanes(dtype)
    return GROUP + -(-TURNED // panel), GRADIENT_ROWS, panel


class Sums(NamedTuple):
    """The gradients of a layer's weights, and what one thread needs to add to its part of them."""

    w_ih: np.ndarray  # (x·Hp, I in whole panels)
    w_hh: np.ndarray  # ((last - first)·Hp, H in whole panels)
    bias: np.ndarray  # (last·Hp,)
    I: int
    H: int
    before: np.ndarray  # (rows of a chunk, Hp), no rows where all lengths are equal
    scratch: np.ndarray  # `gradient_scratch`
    partial: np.ndarray  # as bias


@kernel(part=True)
def _states_before(h, starts, t0, t1, scratch):
    """The states that the steps t0 .. t1-1 begin with, as many rows and in the order of the steps'.

    Where no sequence ends among them they lie like that.
    """
    Hp = h.shape[1]
    if starts[t1] - starts[t0] == starts[t1 + 1] - starts[t0 + 1]:
        return rows(h, starts[t0] * Hp, Hp)
    r = 0
    for t in range(t0, t1):
        for b in range(starts[t + 2] - starts[t + 1]):
            for j in range(Hp):
                scratch[r, j] = h[starts[t] + b, j]
            r += 1
    return rows(scratch, 0, Hp)


@kernel(part=True)
def _own_rows(height, K, before, total, number, members):
    """The member's part of the rows of a gradient (height,K), in whole groups of TURNED.

    A group counts as K: so much of all three gradients is `total`, and `before` this one.
    """
    count = (height + TURNED - 1) // TURNED
    low, high = total * number // members - before, total * (number + 1) // members - before
    first, last = min(max(0, (low + K - 1) // K), count), min(max(0, (high + K - 1) // K), count)
    return min(first * TURNED, height), min(last * TURNED, height)


@kernel(part=True)
def weight_gradient(da, some, columns, b, K, gradient, scratch):
    """gradient[i - i0, j] += sum_s da[s,i] b[s - r0, j] for r0 <= s < r1, i0 <= i < i1, j < K.

    da is an array, `some` (r0, r1), `columns` (i0, i1); b and gradient are `rows`, gradient's of K
    in whole panels; scratch as `gradient_scratch` says.  Both operands are packed, as rows a power
    of two apart fall into one set of L1, but for what lies as if it were: packing was half of what
    16 units took.  Sums of GRADIENT_ROWS rows are added up in order: the error grows with their
    number, not with that of the rows.
    """
    (r0, r1), (i0, i1) = some, columns
    wide, Kp = da.shape[1], gradient[1]
    panel = scratch.shape[2]
    size = GRADIENT_ROWS * panel
    turned = rows(scratch, GROUP * size, TURNED)
    itemsize = VECTORS * REGISTER_BYTES // panel
    register = panel // VECTORS
    as_it_lies = b[1] == K and K in (register, panel)
    half = as_it_lies and register == K
    for s0 in range(r0, r1, GRADIENT_ROWS):
        n = min(GRADIENT_ROWS, r1 - s0)
        origin = (s0 - r0) * b[1]
        # the rows of b that the next block reads: a part by each tile but those that fetch da
        fetching = min(SPREAD, Kp // panel)
        count = (i1 - i0 + ROWS - 1) // ROWS * (Kp // panel) - (i1 - i0) // TURNED * fetching
        later = min(GRADIENT_ROWS, r1 - s0 - n) * b[1]
        steps = max(1, count) * n
        share = (later + steps - 1) // steps if later * itemsize <= MOST_SOON else 0
        soon = shifted(b, origin + GRADIENT_ROWS * b[1], share)
        for p0 in range(0, Kp // panel, GROUP):
            group = min(GROUP, Kp // panel - p0)
            panels = rows(scratch, 0, size)
            if as_it_lies:
                panels = shifted(b, origin, size)
            for p in range(0 if as_it_lies else group):
                j = (p0 + p) * panel
                if j + panel <= K:
                    for s in range(n):
                        target = rows(scratch, p * size + s * panel, panel)
                        copy_panel_row(shifted(b, origin + s * b[1] + j, 0), target)
                else:
                    scratch[p, :n] = 0
                    for s in range(n):
                        for i in range(K - j):
                            scratch[p, s, i] = b[0][origin + s * b[1] + j + i]
            for i in range(i0, i1, TURNED):
                a = rows(da, s0 * wide + i, wide)
                if wide > TURNED and i + TURNED <= wide:
                    for s in range(n):
                        source = rows(da, (s0 + s) * wide + i, 0)
                        _copy_tile_row(source, shifted(turned, s * TURNED, 0))
                    a = turned
                # the next columns: from L3 they took as long as a third of their products
                ahead = rows(da, s0 * wide + min(i + TURNED, wide - 1), wide // SPREAD)
                for r in range(0, min(TURNED, i1 - i), ROWS):
                    # all panels for one tile's rows: those of two tiles, a power of two apart,
                    # would drive each other out of L1
                    height = min(ROWS, i1 - i - r)
                    own = shifted(a, r, a[1])
                    c = shifted(gradient, (i - i0 + r) * Kp + p0 * panel, Kp)
                    if half:
                        _turned_half(height, 1, own, panels, n, c, c, ahead)
                        continue
                    begin = 0
                    if r == 0:
                        begin = min(SPREAD, group)
                        _turned(height, begin, own, panels, n, c, c, ahead)
                    w, c = shifted(panels, begin * size, size), shifted(c, begin * panel, Kp)
                    _turned(height, group - begin, own, w, n, c, c, soon)
                    later -= (group - begin) * n * share
                    soon = shifted(soon, (group - begin) * n * share, share if later > 0 else 0)


@kernel(part=True)
def bias_gradient(da, some, gradient, partial):
    """gradient[j] += sum_s da[s,j], s from r0 to r1-1 (`some`), in sums of GRADIENT_ROWS.

    partial is scratch.
    """
    r0, r1 = some
    for s0 in range(r0, r1, GRADIENT_ROWS):
        for j in range(gradient.size):
            partial[j] = 0
        for s in range(s0, min(s0 + GRADIENT_ROWS, r1)):
            for j in range(gradient.size):
                partial[j] += da[s, j]
        for j in range(gradient.size):
            gradient[j] += partial[j]


@kernel(part=True)
def weight_gradients(cell, m, da, sums, starts, span, member):
    """Add the steps t0 .. t1-1 to the gradients, a chunk of `steps`, the last, at first.

    `span` is (t0, t1, steps), and rows of da begin with those of step t0.  `member` is (own number,
    members), who share the rows of the gradients, which are columns of da: each reads some of da,
    which is wide, and all of h and x, which are narrow.  Subnormal results are 0.
    """
    state = flush_subnormals()
    (t0, t1, steps), (number, members) = span, member
    n = slots(cell)
    Hp, N, wide_x, wide_a = m.h.shape[1], starts[1], m.x.shape[1], m.a.shape[1]
    wide_hh, wide_ih = sums.w_hh.shape[1], sums.w_ih.shape[1]
    split = n.gate if n.gate > n.first else n.last  # the first slot that the gated state gives to
    of_h, of_x, of_gated = (split - n.first) * Hp, n.x * Hp, (n.last - split) * Hp
    first = (of_h + TURNED - 1) // TURNED * wide_hh
    second = first + (of_x + TURNED - 1) // TURNED * wide_ih
    total = second + (of_gated + TURNED - 1) // TURNED * wide_hh
    h0, h1 = _own_rows(of_h, wide_hh, 0, total, number, members)
    x0, x1 = _own_rows(of_x, wide_ih, first, total, number, members)
    g0, g1 = _own_rows(of_gated, wide_hh, second, total, number, members)
    for end in range(t1, t0, -steps):
        begin = max(t0, end - steps)
        row = starts[begin + 1] - N
        some = (starts[begin + 1] - starts[t0 + 1], starts[end + 1] - starts[t0 + 1])
        if h0 < h1:
            b = _states_before(m.h, starts, begin, end, sums.before)
            target, column = rows(sums.w_hh, h0 * wide_hh, wide_hh), n.first * Hp
            columns = (column + h0, column + h1)
            weight_gradient(da, some, columns, b, sums.H, target, sums.scratch)
        if x0 < x1:
            b, target = rows(m.x, row * wide_x, wide_x), rows(sums.w_ih, x0 * wide_ih, wide_ih)
            weight_gradient(da, some, (x0, x1), b, sums.I, target, sums.scratch)
        if g0 < g1:
            b = rows(m.a, row * wide_a + n.last * Hp, wide_a)
            target, column = rows(sums.w_hh, (of_h + g0) * wide_hh, wide_hh), split * Hp
            columns = (column + g0, column + g1)
            weight_gradient(da, some, columns, b, sums.H, target, sums.scratch)
        if number == 0:
            bias_gradient(da, some, sums.bias, sums.partial)
    restore(state)
