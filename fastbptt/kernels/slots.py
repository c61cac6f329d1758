"""Products of the rows of steps with the weights of a cell's slots."""

from typing import Any

from .jit import kernel
from .panels import (
    BLOCK,
    LONG,
    VECTORS,
    Packed,
    from_output,
    nothing,
    row_matmul,
    rows_matmul,
)
from .simd import lanes, lanes_of, shifted
from .tiles import tile

_half1, _half2, _half4 = (tile(1, panels=panels, kind="half") for panels in (1, 2, 4))


def shareable(Hp: int, dtype: Any) -> bool:
    """Whether the members of a team can each have some units, in whole panels, of all slots."""
    width = lanes(dtype)
    return BLOCK * width < Hp or Hp % (VECTORS * width) == 0


@kernel(part=True, inlined=True)
def slots_apart(W, apart):
    """W, of which `slots_matmul` is asked for some of the units if `apart` is true.

    That is known before a loop over time: looked up in the units, at each of its products, it took
    3 % of a step of an LSTM of 64 units.
    """
    return Packed(W.panels, W.K, W.back, 1 if apart else 0)


@kernel(part=True, inlined=True)
def _products(width, W, count, units):
    """(products, first output, outputs of each): up to BLOCK, slots are packed as one matrix.

    See `packing.pack`.  Who has some of the units, if they are `shareable`, finds them in it too.
    """
    Hp, j0, j1 = units
    if Hp <= BLOCK * width and W.apart == 0:
        return min(count, 1), 0, count * Hp
    return count, j0, j1 - j0


@kernel(part=True, inlined=True)
def row_slots_matmul(A, W, count, units, S, C):
    """`slots_matmul` of one row, as a part of whoever asks for it: for the loops over time."""
    Hp = units[0]
    count, j0, N = _products(lanes_of(A), W, count, units)
    for s in range(count):
        j = (count - 1 - s if W.back == 1 else s) * Hp + j0
        row_matmul(A, from_output(W, j), N, shifted(S, j, S[1]), shifted(C, j, C[1]))


@kernel(part=True)
def slots_matmul(A, M, W, count, units, S, C, soon):
    """C = S + A W' for M rows and some units of `count` slots, W those slots as they are packed.

    `units` are (Hp, j0, j1): of each slot's Hp those from j0 to j1-1, but all of them where they
    are no more than a BLOCK, unless W is `slots_apart`.  With rows enough the first product fetches
    `soon`, see `panels.rows_matmul`.
    """
    if M == 1:
        row_slots_matmul(A, W, count, units, S, C)
        return
    Hp = units[0]
    count, j0, N = _products(lanes_of(A), W, count, units)
    for s in range(count):
        j = (count - 1 - s if W.back == 1 else s) * Hp + j0
        w, s_j, c_j = from_output(W, j), shifted(S, j, S[1]), shifted(C, j, C[1])
        rows_matmul(A, M, w, N, s_j, c_j, soon)
        soon = nothing(A)


@kernel(part=True)
def half_slots_matmul(A, W, half, count, units, S, more, C):
    """C = (S + A W') + more for one row and half of its elements, the first if `half` is 0.

    `slots_matmul` adds in this order: S and the first half, and then what the second one is from 0.
    The units are those of whole panels.  Panels of several slots are read side by side, of a slot
    that is alone its own: four sums more than one panel's do not wait for the FMA.  Where several
    slots are more than L1 holds, two at a time: a whole power of two apart, four read L2 at 144
    GB/s and two at 235 (Zen 5, LSTM of 256 units).
    """
    Hp, j0, j1 = units
    panel = VECTORS * lanes_of(A)
    near = count == 1 or count * (j1 - j0) * W.K <= LONG * lanes_of(A)
    first = W.K - W.K // 2
    K = W.K - first if half == 1 else first
    begin = first if half == 1 else 0
    a = shifted(A, begin, 0)
    own = (j1 - j0) // panel
    turns, across, apart = (1, own, panel) if count == 1 else (own, count, Hp)
    for turn in range(turns):
        n = 0
        while n < across:
            j = j0 + turn * panel + n * apart
            w = shifted(W.panels, j * W.K + begin * panel, apart * W.K)
            s, m, c = shifted(S, j, apart), shifted(more, j, apart), shifted(C, j, apart)
            if near and n + 4 <= across:
                _half4(a, w, K, s, c, m)
                n += 4
            elif n + 2 <= across:
                _half2(a, w, K, s, c, m)
                n += 2
            else:
                _half1(a, w, K, s, c, m)
                n += 1


@kernel(inlined=True)
def active(starts, t, b0, b1):
    """How many of the sequences b0 .. b1-1 have a step t."""
    return max(0, min(b1, starts[t + 2] - starts[t + 1]) - b0)


@kernel(part=True)
def matmul_steps(A, W, count, units, S, C, starts, span):
    """C = S + A W', `slots_matmul` for steps and sequences, as few and long ones.

    `span` is (t0, t1, b0, b1); A and C begin with step t0.
    """
    t0, t1, b0, b1 = span
    origin = starts[t0 + 1]
    first, last = active(starts, t0, b0, b1), active(starts, t1 - 1, b0, b1)
    every = starts[t0 + 2] - origin
    if b0 == 0 and first == every:
        n = starts[t1 + 1] - origin
        slots_matmul(A, n, W, count, units, S, C, nothing(A))
    elif first == last and every == starts[t1 + 1] - starts[t1] and first < t1 - t0:
        for b in range(b0, b0 + first):
            a, c = shifted(A, b * A[1], every * A[1]), shifted(C, b * C[1], every * C[1])
            slots_matmul(a, t1 - t0, W, count, units, S, c, nothing(a))
    else:
        for t in range(t0, t1):
            M, r = active(starts, t, b0, b1), starts[t + 1] - origin + b0
            a, c = shifted(A, r * A[1], A[1]), shifted(C, r * C[1], C[1])
            slots_matmul(a, M, W, count, units, S, c, nothing(a))
