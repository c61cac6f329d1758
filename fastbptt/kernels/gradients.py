"""The gradients of a layer's weights, from what a backward pass over some steps leaves."""

from typing import NamedTuple

import numpy as np

from .cells import slots
from .jit import kernel
from .panels import TURNED, bias_gradient, weight_gradient
from .simd import flush_subnormals, restore, rows


class Sums(NamedTuple):
    """The gradients of a layer's weights, and what one thread needs to add to its part of them."""

    w_ih: np.ndarray  # (x·Hp, I in whole panels)
    w_hh: np.ndarray  # ((last - first)·Hp, H in whole panels)
    bias: np.ndarray  # (last·Hp,)
    I: int
    H: int
    before: np.ndarray  # (rows of a chunk, Hp), no rows where all lengths are equal
    scratch: np.ndarray  # `panels.gradient_scratch`
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
