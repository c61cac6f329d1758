"""What the loops over time (sweeps.py) have brought to a cache before they read it.

Rows are numbered as theirs.
"""

from .jit import kernel
from .panels import nothing
from .simd import fetch, fetch_to_L2, lanes_of, rows, shifted

# Of few sequences, what a step back reads is fetched a step before, where all of it is more bytes
# than L2 keeps from the forward pass: 1000 and 2000 steps of 64 units took 1 to 4 % longer with it.
AWAY = 1536 << 10
# And where W_hh leaves it room in L2.  With 1 MB, an LSTM of 256 units took 0.96 of the time on
# Zen 5, a plain net of 512 as long, on Zen 4 1.02.
STAYS = 1 << 20


@kernel(part=True, inlined=True)
def fetch_rows(place, M, n):
    """Have M rows of n elements brought here, all at once, from the other members of a team.

    A product asks for one line at a time, and each takes as long as a barrier.
    """
    for r in range(M):
        for j in range(0, n, lanes_of(place)):
            fetch(shifted(place, r * place[1] + j, 0))


@kernel(part=True)
def soon_forward(m, starts, t, t1, ahead, b0, M, first):
    """What `forward` comes to next, for the `first` product of step t to fetch.

    That are the state after t+1, to be written, and step t + `ahead`, to be projected.
    """
    if not first:
        return nothing(rows(m.h, 0, 0))
    N, Hp, wide_a, wide_x = starts[1], m.h.shape[1], m.a.shape[1], m.x.shape[1]
    state, step = starts[min(t + 2, t1)] + b0, starts[min(t + ahead, t1 - 1) + 1] - N + b0
    return (
        rows(m.h, state * Hp, M * Hp),
        rows(m.c, state * Hp, M * Hp if m.kept and m.c.shape[0] > 0 else 0),
        rows(m.a, step * wide_a, M * wide_a if m.kept else 0),
        rows(m.x, step * wide_x, M * wide_x),
        rows(m.x, 0, 0),
    )


@kernel(part=True)
def soon_backward(m, d, starts, t, b0, M, first):
    """What `backward` comes to next: all that step t-1 reads, and dx to be written.

    Of the states t-1: some cells read that one, others state t, fetched a step before.
    """
    if not first:
        return nothing(rows(m.h, 0, 0))
    Hp, wide_a, wide_x = m.h.shape[1], m.a.shape[1], d.dx.shape[1]
    before = max(t - 1, 0)
    step = starts[before + 1] - starts[1] + b0
    return (
        rows(d.dy, step * Hp, M * Hp),
        rows(m.h, (starts[before] + b0) * Hp, M * Hp),
        rows(m.c, (starts[before] + b0) * Hp, M * Hp if m.c.shape[0] > 0 else 0),
        rows(m.a, step * wide_a, M * wide_a if m.a.shape[0] > 0 else 0),
        rows(d.dx, step * wide_x, M * wide_x if d.dx.shape[0] > 0 else 0),
    )


@kernel(part=True)
def fetch_before(dy, m, starts, t, some, units):
    """Have what step t-1 reads of the `units` j0 .. j1-1 of `some` (b0, M) sequences brought to L2.

    As `soon_backward` says, for rows too few for a product to do it: without it, a train step of 1
    to 4 long sequences of 64 units took 10 to 40 % longer, of 256 units 5 %.
    """
    (b0, M), (j0, j1) = some, units
    Hp, wide, width = m.h.shape[1], m.a.shape[1], lanes_of(m.h)
    state, step = starts[t - 1] + b0, starts[t] - starts[1] + b0
    for r in range(M):
        for j in range(j0, j1, width):
            fetch_to_L2(rows(dy, (step + r) * Hp + j, 0))
            fetch_to_L2(rows(m.h, (state + r) * Hp + j, 0))
            if m.c.shape[0] > 0:
                fetch_to_L2(rows(m.c, (state + r) * Hp + j, 0))
    if m.a.shape[0] > 0:
        # what sets rows apart is less than a slot (`memory.row_stride`)
        for slot in range(0, wide - Hp + 1, Hp):
            for r in range(M):
                for j in range(j0, j1, width):
                    fetch_to_L2(rows(m.a, (step + r) * wide + slot + j, 0))
