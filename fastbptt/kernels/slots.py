"""Products of the rows of steps with the weights of a cell's slots."""

from .jit import kernel
from .panels import BLOCK, nothing, row_matmul, rows_matmul
from .simd import shifted


@kernel(part=True, inlined=True)
def _products(width, Hp, count, j0, j1):
    """(products, first output, outputs of each): within one block slots are packed as one matrix.

    See `packing.pack`.
    """
    if Hp <= BLOCK * width:
        return min(count, 1), 0, count * Hp
    return count, j0, j1 - j0


@kernel(part=True, inlined=True)
def row_slots_matmul(A, W, K, width, Hp, count, j0, j1, S, C):
    """`slots_matmul` of one row, as a part of whoever asks for it: for the loops over time."""
    count, j0, N = _products(width, Hp, count, j0, j1)
    for s in range(count):
        j = (count - 1 - s if W[1] == 1 else s) * Hp + j0
        w = shifted(W, j * K, W[1])
        row_matmul(A, w, K, width, N, shifted(S, j, S[1]), shifted(C, j, C[1]))


@kernel(part=True)
def slots_matmul(A, M, W, K, width, Hp, count, j0, j1, S, C, soon):
    """C = S + A W' for the units j0 <= j < j1 of `count` slots, W their panels in order.

    W's stride is 1 if the last are to be read first, as in `panels.panel_matmul`.  With rows
    enough the first product fetches `soon`, see `panels.rows_matmul`.
    """
    if M == 1:
        row_slots_matmul(A, W, K, width, Hp, count, j0, j1, S, C)
        return
    count, j0, N = _products(width, Hp, count, j0, j1)
    for s in range(count):
        j = (count - 1 - s if W[1] == 1 else s) * Hp + j0
        w = shifted(W, j * K, W[1])
        rows_matmul(A, M, w, K, width, N, shifted(S, j, S[1]), shifted(C, j, C[1]), soon)
        soon = nothing(A)


@kernel(inlined=True)
def active(starts, t, b0, b1):
    """How many of the sequences b0 .. b1-1 have a step t."""
    return max(0, min(b1, starts[t + 2] - starts[t + 1]) - b0)


@kernel(part=True)
def matmul_steps(A, W, K, width, Hp, count, S, C, starts, span, units):
    """C = S + A W', `slots_matmul` for steps and sequences, as few and long ones.

    A and C begin with step t0.
    """
    t0, t1, b0, b1 = span
    u0, u1 = units
    origin = starts[t0 + 1]
    first, last = active(starts, t0, b0, b1), active(starts, t1 - 1, b0, b1)
    every = starts[t0 + 2] - origin
    if b0 == 0 and first == every:
        n = starts[t1 + 1] - origin
        slots_matmul(A, n, W, K, width, Hp, count, u0, u1, S, C, nothing(A))
    elif first == last and every == starts[t1 + 1] - starts[t1] and first < t1 - t0:
        for b in range(b0, b0 + first):
            a, c = shifted(A, b * A[1], every * A[1]), shifted(C, b * C[1], every * C[1])
            slots_matmul(a, t1 - t0, W, K, width, Hp, count, u0, u1, S, c, nothing(a))
    else:
        for t in range(t0, t1):
            M, r = active(starts, t, b0, b1), starts[t + 1] - origin + b0
            a, c = shifted(A, r * A[1], A[1]), shifted(C, r * C[1], C[1])
            slots_matmul(a, M, W, K, width, Hp, count, u0, u1, S, c, nothing(a))
