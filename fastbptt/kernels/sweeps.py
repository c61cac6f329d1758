"""The loops over time, forward and backward, blind to the cell (design.md D4).

Only what is sequential stays in the loop over t: the products with the input weights are done for
a chunk of steps ahead of it and the weight gradients (`weight_gradients`) behind it.

Rows.  N sequences lie longest first, and after each other lie the rows of the steps: state t has
rows starts[t] .. starts[t+1]-1 of h, one for each sequence of at least t steps, so that state 0 has
N; what belongs to step t (x, a, dy) has the same rows less N as state t+1.  Where all lengths are
equal this is (T,B,...) flattened.  A thread has the sequences b0 .. b1-1, or as one of a team a
part of all sequences' units: then they meet in each step.
"""

from .ahead import AWAY, STAYS, fetch_before, fetch_rows, soon_backward, soon_forward
from .cells import Adjoints, At, Memory, adjoint, gate, gate_adjoint, slots, step
from .gradients import Sums, weight_gradients
from .jit import kernel
from .lines import clear, line, whole
from .panels import (
    BLOCK,
    FETCHING,
    VECTORS,
    from_output,
    nothing,
    packed,
    row_matmul,
    rows_matmul,
    to_and_fro,
)
from .simd import REGISTER_BYTES, flush_subnormals, lanes_of, restore, rows, shifted
from .slots import (
    active,
    half_slots_matmul,
    matmul_steps,
    row_slots_matmul,
    slots_apart,
    slots_matmul,
)
from .team import Team, barrier, come, join, meet, part

# Sequences from which a step goes on after more registers than BLOCK: so many rows are not in L1
# anyway, and runs of 2 KB come faster from L3 than of 512 bytes.  Train steps of GRUs and LSTMs of
# 512 units take 0.97 of the time, a forward pass of an LSTM over eight sequences of 1024 units 0.9,
# and as long with half and twice as many (Granite Rapids).
_MANY, _ACROSS = 8, 16 * VECTORS
CHUNK_ROWS = 64  # rows projected ahead: they are still in L1 or L2 when the recurrence needs them


@kernel(part=True)
def _half(cell, m, source, w, units, row, number, second):
    """The products of a step with half of its state, by one of two members of a team.

    The first is with the half that the member itself has made, while the other's is on its way; its
    sums go to m.halves.  The `second` is with the other's, and makes the pre-activations of both.
    """
    n, Hp, (w_shared, w_alone) = slots(cell), units[0], w
    mixed = max(n.gate, min(n.x, n.last))
    alone = (mixed - n.gate) * Hp
    a, zeros = rows(m.a, row * m.a.shape[1] + n.gate * Hp, 0), rows(m.halves, 0, 0)
    own, bias = rows(m.halves, (1 + number) * m.halves.shape[1], 0), rows(cell.bias, mixed * Hp, 0)
    half = 1 - number if second else number
    begin, bias = (a, bias) if half == 0 else (zeros, zeros)
    more, target = (own, a) if second else (zeros, own)
    half_slots_matmul(source, w_shared, half, mixed - n.gate, units, begin, more, target)
    more, target = shifted(more, alone, 0), shifted(target, alone, 0)
    half_slots_matmul(source, w_alone, half, n.last - mixed, units, bias, more, target)


@kernel
def forward(cell, m, starts, span, team):
    """m.h (and c, a) of the steps t0 .. t1-1 from state t0 and m.x; `span` is (t0, t1, b0, b1).

    A team of several shares all of m, whose units are `slots.shareable`.  m and team are plain
    tuples of what a `Memory` and a `Team` have: a named one takes a microsecond more to hand over.
    Subnormal results are 0.
    """
    m, team = Memory(*m), Team(*team)
    number, members = join(team)
    if members == 0:
        return
    state = flush_subnormals()
    t0, t1, b0, b1 = span
    n = slots(cell)
    Hp, wide, N, width = m.h.shape[1], m.a.shape[1], starts[1], lanes_of(m.h)
    H = cell.w_hh.size // ((n.last - n.first) * Hp)
    I = cell.w_ih.size // (n.x * Hp)
    u0, u1 = part(number, members, Hp, VECTORS * width)
    meeting = 1
    halved = members == 2 and m.halves.shape[0] > 0
    block = (_ACROSS if b1 - b0 >= _MANY else BLOCK) * width
    last = (u1 - u0 - 1) // block
    chunk = max(1, CHUNK_ROWS // (b1 - b0))
    w_ih, bias = slots_apart(packed(cell.w_ih, 0, I), members > 1), rows(cell.bias, 0, 0)
    w_gate = slots_apart(packed(cell.w_hh, 0, H), members > 1)
    w_hh = from_output(w_gate, (n.gate - n.first) * Hp)
    mixed = max(n.gate, min(n.x, n.last))  # the first slot of h's alone
    w_alone = from_output(w_gate, (mixed - n.first) * Hp)
    for c in range(t0, t1, chunk):
        end = min(c + chunk, t1)
        origin = N if m.kept else starts[c + 1]
        source = rows(m.x, (starts[c + 1] - N) * m.x.shape[1], m.x.shape[1])
        target = rows(m.a, (starts[c + 1] - origin) * wide, wide)
        span = (c, end, b0, b1)
        matmul_steps(source, w_ih, n.x, (Hp, u0, u1), bias, target, starts, span)
        if members > 1:
            # not before: who goes on alone needs what all have projected
            come(team, number, meeting)
        for t in range(c, end):
            M = active(starts, t, b0, b1)
            c_now, c_next = starts[t], starts[t + 1]
            if not m.kept:
                c_now, c_next = N * (t % 2), N * ((t + 1) % 2)
            row = starts[t + 1] - origin + b0
            at = At(starts[t] + b0, starts[t + 1] + b0, c_now + b0, c_next + b0, row, 0, 0, 0)
            source = rows(m.h, at.h * Hp, Hp)
            if members > 1:
                if halved:
                    _half(cell, m, source, (w_hh, w_alone), (Hp, u0, u1), row, number, False)
                members, meeting = barrier(team, number, members, meeting)
                if members == 0:
                    restore(state)
                    return
                u0, u1 = part(number, members, Hp, VECTORS * width)
                last = (u1 - u0 - 1) // block
                halved = halved and members == 2
                fetch_rows(source, M, Hp)
            if n.gate > n.first:
                for q in range(last + 1):
                    j0 = u0 + block * q
                    j1 = j0 + whole(m.h, min(block, u1 - j0))
                    a = rows(m.a, row * wide + n.first * Hp, wide)
                    count, units = n.gate - n.first, (Hp, j0, j1)
                    slots_matmul(source, M, w_gate, count, units, a, a, nothing(a))
                    gate(cell, m, at, M, j0, j1)
                source = rows(m.a, row * wide + n.last * Hp, wide)
                if members > 1:
                    come(team, number, meeting)
                    members, meeting = barrier(team, number, members, meeting)
                    if members == 0:
                        restore(state)
                        return
                    u0, u1 = part(number, members, Hp, VECTORS * width)
                    last = (u1 - u0 - 1) // block
                    fetch_rows(source, M, Hp)
            # to and fro: what of W_hh the last step left in the cache is read first
            back = t % 2
            w_shared, w_own = to_and_fro(w_hh, back), to_and_fro(w_alone, back)
            for q in range(last + 1):
                j0 = u0 + block * (q if back == 0 else last - q)
                j1 = j0 + whole(m.h, min(block, u1 - j0))
                if halved:
                    _half(cell, m, source, (w_hh, w_alone), (Hp, j0, j1), row, number, True)
                for turn in range(0 if halved else 1 + (mixed < n.last)):
                    if turn == back or mixed == n.last:
                        count, w = mixed - n.gate, w_shared
                        a = begin = rows(m.a, row * wide + n.gate * Hp, wide)
                    else:
                        count, w = n.last - mixed, w_own
                        a = rows(m.a, row * wide + mixed * Hp, wide)
                        begin = rows(cell.bias, mixed * Hp, 0)
                    units = (Hp, j0, j1)
                    if M == 1:
                        row_slots_matmul(source, w, count, units, begin, a)
                    else:
                        soon = soon_forward(m, starts, t, t1, chunk, b0, M, q + turn == 0)
                        slots_matmul(source, M, w, count, units, begin, a, soon)
                step(cell, m, at, M, j0, j1)
            if members > 1 and t + 1 < end:
                come(team, number, meeting)
    restore(state)


@kernel(part=True)
def _backward(cell, m, d, H, starts, span, team, member):
    """d.da and d.dx of the steps t0 .. t1-1, d.dh (and dc) of state t0 from those of state t1.

    d.dh holds all of dL/dh, with d.dy of that step, as it does for a sequence's last state before
    its last step.  Rows of d.da begin with those of step t0.  Subnormal results are 0.
    `member` is (own number, members, next meeting) of the team that shares the units; the last two
    are returned.
    """
    number, members, meeting = member
    state = flush_subnormals()
    t0, t1, b0, b1 = span
    n = slots(cell)
    Hp, wide, N, width = m.h.shape[1], d.da.shape[1], starts[1], lanes_of(m.h)
    gated = n.gate > n.first
    head = n.gate - n.first if gated else n.last - n.first  # slots that h is multiplied into
    Ip = cell.w_ih.size // (n.x * Hp)
    u0, u1 = part(number, members, Hp, VECTORS * width)
    block = (_ACROSS if b1 - b0 >= _MANY else BLOCK) * width
    last = (u1 - u0 - 1) // block
    chunk = max(1, CHUNK_ROWS // (b1 - b0))
    w_ih, w_hh = packed(cell.w_ih, 0, n.x * Hp), packed(cell.w_hh, 0, head * Hp)
    w_gate = packed(cell.w_hh, head * Hp * Hp, (n.last - n.gate) * Hp)
    zeros = rows(cell.bias, 0, 0)
    itemsize = REGISTER_BYTES // width
    read = (d.dy.size + m.h.size + m.c.size + m.a.size) * itemsize * (b1 - b0) // N
    of_W = (n.last - n.first) * Hp * (u1 - u0) * itemsize
    fetches = read > AWAY and of_W <= STAYS
    for c in range(t1, t0, -chunk):
        c0 = max(t0, c - chunk)
        for t in range(c - 1, c0 - 1, -1):
            M = active(starts, t, b0, b1)
            later = active(starts, t + 1, b0, b1) if t + 1 < t1 else 0
            row = starts[t + 1] - starts[t0 + 1] + b0
            s = starts[t + 1] - N + b0
            c_now, c_next = starts[t] + b0, starts[t + 1] + b0
            at = At(c_now, c_next, c_now, c_next, s, row, b0, s)
            source = rows(d.da, (starts[t + 2] - starts[t0 + 1] + b0) * wide + n.first * Hp, wide)
            if members > 1:
                fetch_rows(source, later, head * Hp)
            for q in range(last + 1):
                j0 = u0 + block * (q if t % 2 == 0 else last - q)
                j1 = j0 + whole(m.h, min(block, u1 - j0))
                dh = rows(d.dh, b0 * Hp + j0, Hp)
                w = to_and_fro(from_output(w_hh, j0), t % 2)
                above = dh if n.direct else rows(d.dy, s * Hp + j0, Hp)
                if fetches and M < FETCHING and t > 0:
                    fetch_before(d.dy, m, starts, t, (b0, M), (j0, j1))
                if later == 1:
                    row_matmul(source, w, j1 - j0, above, dh)
                else:
                    soon = soon_backward(m, d, starts, t, b0, M, q == 0)
                    rows_matmul(source, later, w, j1 - j0, above, dh, soon)
                clear(d.dh, b0, M, max(H, j0), j1)
                if d.step_h.shape[0] > 0:
                    for b in range(M):
                        record = line(d.step_h, (s + b) * Hp, "step")
                        reached = line(d.dh, (b0 + b) * Hp, "dh")
                        for j in range(j0, j1):
                            record[j] = reached[j]
                adjoint(cell, m, d, at, M, j0, j1)
                if n.direct and not gated and t > 0:
                    _add(d.dh, b0, d.dy, starts[t] - N + b0, M, j0, j1)
            if gated:
                if members > 1:
                    come(team, number, meeting)
                    members, meeting = barrier(team, number, members, meeting)
                    if members == 0:
                        restore(state)
                        return members, meeting
                    u0, u1 = part(number, members, Hp, VECTORS * width)
                    last = (u1 - u0 - 1) // block
                source = rows(d.da, row * wide + n.gate * Hp, wide)
                if members > 1:
                    fetch_rows(source, M, (n.last - n.gate) * Hp)
                for q in range(last + 1):
                    j0 = u0 + block * q
                    j1 = j0 + whole(m.h, min(block, u1 - j0))
                    target = rows(d.da, row * wide + n.last * Hp + j0, wide)
                    w, units = from_output(w_gate, j0), (j1 - j0, 0, j1 - j0)
                    # as of one slot: what is compiled for the forward pass serves here too
                    slots_matmul(source, M, w, 1, units, zeros, target, nothing(zeros))
                    clear(d.da, row, M, n.last * Hp + max(H, j0), n.last * Hp + j1)
                    gate_adjoint(cell, m, d, at, M, j0, j1)
                    if t > 0:
                        _add(d.dh, b0, d.dy, starts[t] - N + b0, M, j0, j1)
            if members > 1:
                come(team, number, meeting)
                members, meeting = barrier(team, number, members, meeting)
                if members == 0:
                    restore(state)
                    return members, meeting
                u0, u1 = part(number, members, Hp, VECTORS * width)
                last = (u1 - u0 - 1) // block
        own0, own1 = part(number, members, c - c0, 1)
        own0, own1 = c0 + own0, c0 + own1
        if d.dx.shape[0] > 0 and own0 < own1:
            stride = d.dx.shape[1]
            source = rows(d.da, (starts[own0 + 1] - starts[t0 + 1]) * wide, wide)
            target = rows(d.dx, (starts[own0 + 1] - N) * stride, stride)
            span = (own0, own1, b0, b1)
            matmul_steps(source, w_ih, 1, (Ip, 0, Ip), zeros, target, starts, span)
    source = rows(d.da, b0 * wide + n.first * Hp, wide)
    dh = rows(d.dh, b0 * Hp + u0, Hp)
    M = active(starts, t0, b0, b1)
    above = dh
    if not n.direct:
        above = rows(d.dy, (starts[t0] - N + b0) * Hp + u0, Hp) if t0 > 0 else zeros
    soon = soon_backward(m, d, starts, t0, b0, M, t0 > 0)
    units = (u1 - u0, 0, u1 - u0)
    slots_matmul(source, M, from_output(w_hh, u0), 1, units, above, dh, soon)
    restore(state)
    return members, meeting


@kernel(part=True, inlined=True)
def _add(dh, b0, dy, s, M, j0, j1):
    """dh[b0+b] += dy[s+b]: the gradient from above."""
    Hp = dh.shape[1]
    for b in range(M):
        total, above = line(dh, (b0 + b) * Hp, "dh"), line(dy, (s + b) * Hp, "dy")
        for j in range(j0, j1):
            total[j] += above[j]


@kernel(part=True)
def _sequences_of(starts, t0, t1, number, members):
    """The member's sequences b0 .. b1-1: as many of the steps t0 .. t1-1 for each as can be."""
    N, steps = starts[1], starts[t1 + 1] - starts[t0 + 1]
    if steps == (t1 - t0) * N:
        return part(number, members, N, 1)
    first = low = 0
    for end in range(2):
        first, low, high = low, 0, N
        while low < high:
            middle, before = (low + high) // 2, 0
            for t in range(t0, t1):
                before += active(starts, t, 0, middle)
            if before * members < steps * (number + end):
                low = middle + 1
            else:
                high = middle
    return first, low


@kernel
def descend(cell, m, d, sums, starts, span, team):
    """`_backward` and `gradients.weight_gradients` for the steps t0 .. t1-1, the last at first.

    `span` is (t0, t1, steps), steps those of a chunk, of which d.da holds one or several.  Members
    of the team meet before and after the weight gradients, of which each adds its own rows.  Python
    has no turn in between: that would cost one thread a tenth of a step of few flops, and several
    an eighth at B = 32, H = 64.  m, d, sums and team are plain tuples, as in `forward`.
    """
    m, d, sums, team = Memory(*m), Adjoints(*d), Sums(*sums), Team(*team)
    number, members = join(team)
    t0, t1, steps = span
    meeting = 1
    b0, b1 = 0, starts[1]
    held = d.da.shape[0] // max(1, starts[1])
    if held < t1 - t0:
        held = max(steps, held // steps * steps)
    end = t1
    while end > t0 and members > 0:
        begin = max(t0, end - held)
        if not team.by_units and members > 1:
            b0, b1 = _sequences_of(starts, begin, end, number, members)
        own = (begin, end, b0, b1)
        if team.by_units:
            member = (number, members, meeting)
            members, meeting = _backward(cell, m, d, sums.H, starts, own, team, member)
        elif b0 < b1:
            _backward(cell, m, d, sums.H, starts, own, team, (0, 1, 0))
        if members > 1:
            meet(team, number, members, meeting)
            meeting += 1
        if members > 0:
            some = (begin, end, steps)
            weight_gradients(cell, m, d.da, sums, starts, some, (number, members))
        if members > 1:
            meet(team, number, members, meeting)
            meeting += 1
        end = begin
