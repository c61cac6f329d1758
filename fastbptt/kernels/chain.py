"""Chains of Jacobians: P(t,s) = J_t ... J_{s+1} and its transpose, applied to rows of vectors.

A chain is a NamedTuple; what one of its steps does is chosen by its type, the loops are written
once.  Rows lie in groups: group g begins at step firsts[g], all groups go the same number of steps.
Nothing is scaled here: the floor above chooses how far to go.
"""

from typing import Any, NamedTuple

import numpy as np

from .cells import (
    TangentAt,
    Tangents,
    cotangent,
    gate_cotangent,
    gate_linearise,
    gate_tangent,
    linearise,
    slots,
    tangent,
)
from .jit import implements, kernel
from .lines import clear
from .panels import from_output, nothing, packed, panel_matmul
from .simd import fetch_to_L2, lanes_of, rows, shifted
from .slots import slots_matmul
from .small import copy


class Linearised(NamedTuple):
    """The steps of one sequence through a net of L layers: weights, and factors of every step."""

    cell: Any  # `weights.Weights.stacked_cell`
    adjoint: Any  # the same, packed for the adjoint, a layer's arrays beside those of the next
    factors: np.ndarray  # (T·L,factors·Hp)
    zeros: np.ndarray  # (slots·Hp,)
    H: int
    I: int  # of the first layer
    Hp: int
    Ip: int
    parts: int
    layers: int


class Matrices(NamedTuple):
    """Given square Jacobians."""

    J: np.ndarray  # (T,N,N)


class Block(NamedTuple):
    """Rows of vectors and their work space."""

    now: np.ndarray  # (groups·k,stride)
    after: np.ndarray  # likewise
    a: np.ndarray  # (groups·k,slots·Hp), or L·slots·Hp to keep every layer's; none for matrices
    k: int


def push_step(chain: Any, steps: Any, rows: Block) -> None:
    """rows.after = rows.now J': group g by the Jacobian of step steps[g]."""


def pull_step(chain: Any, steps: Any, rows: Block) -> None:
    """rows.now = rows.now J: group g by the Jacobian of step steps[g]; rows.after is scratch."""


@implements(push_step, Matrices)
def _push_matrices(chain, steps, rows):
    N = chain.J.shape[1]
    for r in range(rows.now.shape[0]):
        t = steps[r // rows.k]
        for i in range(N):
            total = rows.now.dtype.type(0)
            for j in range(N):
                total += chain.J[t, i, j] * rows.now[r, j]
            rows.after[r, i] = total


@implements(pull_step, Matrices)
def _pull_matrices(chain, steps, rows):
    N = chain.J.shape[1]
    for r in range(rows.now.shape[0]):
        t = steps[r // rows.k]
        for j in range(N):
            rows.after[r, j] = 0
        for i in range(N):
            u = rows.now[r, i]
            for j in range(N):
                rows.after[r, j] += u * chain.J[t, i, j]
        for j in range(N):
            rows.now[r, j] = rows.after[r, j]


@kernel(part=True)
def _first_column(chain, n, block, l):
    """Where the slots of layer l begin in a row of block.a: at 0 if all layers share them."""
    own = (n.last + (n.gate > n.first)) * chain.Hp
    return l * own if block.a.shape[1] > own else 0


@kernel(part=True)
def _fetch_before(chain, n, l, t):
    """Have the factors of step t-1 brought to L2: one row back waited for them.

    Through GRUs and LSTMs it took 6 and 17 % longer; eight rows take as long.
    """
    count = n.factors * chain.Hp
    place = ((t - 1) * chain.layers + l) * count
    for j in range(0, count, lanes_of(chain.factors)):
        fetch_to_L2(rows(chain.factors, place + j, 0))


@kernel(part=True)
def _at(chain, n, block, g, l, t):
    """The rows of group g in layer l at step t."""
    stride, wide = block.now.shape[1], block.a.shape[1]
    place = g * block.k * stride + l * chain.parts * chain.Hp
    return TangentAt(
        place,
        place,
        g * block.k * wide + _first_column(chain, n, block, l),
        (t * chain.layers + l) * n.factors * chain.Hp,
        stride,
        wide,
        block.k,
    )


@implements(push_step, Linearised)
def _push_linearised(chain, steps, block):
    cell, H, Hp = chain.cell, chain.H, chain.Hp
    n, units = slots(cell), (Hp, 0, Hp)
    p = Tangents(block.now, block.after, block.a, chain.factors)
    M, stride, wide = block.now.shape[0], block.now.shape[1], block.a.shape[1]
    groups = M // block.k
    zeros = rows(chain.zeros, 0, 0)
    mixed = max(n.gate, min(n.x, n.last))
    for l in range(chain.layers):
        column = l * chain.parts * Hp
        source = rows(block.now, column, stride)
        a = rows(block.a, _first_column(chain, n, block, l), wide)
        start = zeros
        if l > 0:
            below = rows(block.after, column - chain.parts * Hp, stride)
            w = packed(cell.w_ih, n.x * Hp * (chain.I + (l - 1) * H), H)
            slots_matmul(below, M, w, n.x, units, zeros, a, nothing(below))
            start = a
        else:
            # slots that get W_ih x alone: x has no tangent
            for r in range(M):
                for j in range(n.first * Hp):
                    block.a[r, j] = 0
        w_hh = packed(cell.w_hh, l * (n.last - n.first) * Hp * H, H)
        if n.gate > n.first:
            s, c = shifted(start, n.first * Hp, start[1]), shifted(a, n.first * Hp, wide)
            slots_matmul(source, M, w_hh, n.gate - n.first, units, s, c, nothing(source))
            for g in range(groups):
                gate_tangent(cell, p, _at(chain, n, block, g, l, steps[g]), 0, Hp)
            source = shifted(a, n.last * Hp, wide)
        w = from_output(w_hh, (n.gate - n.first) * Hp)
        s, c = shifted(start, n.gate * Hp, start[1]), shifted(a, n.gate * Hp, wide)
        slots_matmul(source, M, w, mixed - n.gate, units, s, c, nothing(source))
        if mixed < n.last:
            w, c = from_output(w_hh, (mixed - n.first) * Hp), shifted(a, mixed * Hp, wide)
            slots_matmul(source, M, w, n.last - mixed, units, zeros, c, nothing(source))
        for g in range(groups):
            tangent(cell, p, _at(chain, n, block, g, l, steps[g]), 0, Hp)


@implements(pull_step, Linearised)
def _pull_linearised(chain, steps, block):
    cell, Hp = chain.adjoint, chain.Hp
    n = slots(cell)
    p = Tangents(block.now, block.after, block.a, chain.factors)
    M, stride, wide = block.now.shape[0], block.now.shape[1], block.a.shape[1]
    groups = M // block.k
    zeros = rows(chain.zeros, 0, 0)
    gated = n.gate > n.first
    head = n.gate - n.first if gated else n.last - n.first
    for l in range(chain.layers - 1, -1, -1):
        column = l * chain.parts * Hp
        offset = l * (n.last - n.first) * Hp * Hp
        a = rows(block.a, _first_column(chain, n, block, l), wide)
        for part in range(chain.parts):
            clear(block.now, 0, M, column + part * Hp + chain.H, column + (part + 1) * Hp)
        for g in range(groups):
            if M == 1 and steps[g] > 0:
                _fetch_before(chain, n, l, steps[g])
            cotangent(cell, p, _at(chain, n, block, g, l, steps[g]), 0, Hp)
        if gated:
            source, c = shifted(a, n.gate * Hp, wide), shifted(a, n.last * Hp, wide)
            w = packed(cell.w_hh, offset + head * Hp * Hp, (n.last - n.gate) * Hp)
            panel_matmul(source, M, w, Hp, zeros, c)
            gated_state = _first_column(chain, n, block, l) + n.last * Hp
            clear(block.a, 0, M, gated_state + chain.H, gated_state + Hp)
            for g in range(groups):
                gate_cotangent(cell, p, _at(chain, n, block, g, l, steps[g]), 0, Hp)
        source, dh = shifted(a, n.first * Hp, wide), rows(block.now, column, stride)
        above = dh if n.direct else zeros
        panel_matmul(source, M, packed(cell.w_hh, offset, head * Hp), Hp, above, dh)
        if l > 0:
            below = rows(block.now, column - chain.parts * Hp, stride)
            w = packed(cell.w_ih, n.x * Hp * (chain.Ip + (l - 1) * Hp), n.x * Hp)
            panel_matmul(a, M, w, Hp, below, below)


@kernel(allocates=True)
def push(chain, firsts, count, block, record):
    """block.now <- its rows `count` steps on; record (count,groups·k,.) gets each or is empty."""
    _push(chain, firsts, count, block, record, np.empty(firsts.size, np.int64))


@kernel(part=True)
def _push(chain, firsts, count, block, record, steps):
    now, after = block.now, block.after
    for i in range(count):
        for g in range(firsts.size):
            steps[g] = firsts[g] + i
        push_step(chain, steps, Block(now, after, block.a, block.k))
        now, after = after, now
        if record.shape[0] > 0:
            copy(now, record[i])
    if count % 2 == 1:
        copy(now, block.now)


@kernel(allocates=True)
def pull(chain, firsts, count, block, record):
    """block.now <- its rows `count` steps back, group g from state firsts[g] on; as `push`."""
    _pull(chain, firsts, count, block, record, np.empty(firsts.size, np.int64))


@kernel(part=True)
def _pull(chain, firsts, count, block, record, steps):
    for i in range(count):
        for g in range(firsts.size):
            steps[g] = firsts[g] - 1 - i
        pull_step(chain, steps, block)
        if record.shape[0] > 0:
            copy(block.now, record[i])


@kernel
def linearise_layer(cell, x, state, after, a, factors, place):
    """factors of one layer at some steps, from what it reads x (T,.) and its states (T,parts·Hp).

    place: the first of the steps' rows of `factors`, and how far they are apart; after (1,.) and
    a (T,slots·Hp) are work space.
    """
    first, layers = place
    n = slots(cell)
    T, wide = a.shape
    Hp = factors.shape[1] // n.factors
    H = cell.w_hh.size // ((n.last - n.first) * Hp)
    I = cell.w_ih.size // (n.x * Hp)
    units = (Hp, 0, Hp)
    stride = state.shape[1]
    p = Tangents(state, after, a, factors)
    bias, c = rows(cell.bias, 0, 0), rows(a, 0, wide)
    below, w_ih = rows(x, 0, x.shape[1]), packed(cell.w_ih, 0, I)
    slots_matmul(below, T, w_ih, n.x, units, bias, c, nothing(c))
    source, w_hh = rows(state, 0, stride), packed(cell.w_hh, 0, H)
    if n.gate > n.first:
        s = shifted(c, n.first * Hp, wide)
        slots_matmul(source, T, w_hh, n.gate - n.first, units, s, s, nothing(source))
        for t in range(T):
            f = (first + t * layers) * factors.shape[1]
            gate_linearise(cell, p, TangentAt(t * stride, 0, t * wide, f, 0, 0, 1), 0, Hp)
        source = shifted(c, n.last * Hp, wide)
    mixed = max(n.gate, min(n.x, n.last))
    s, w = shifted(c, n.gate * Hp, wide), from_output(w_hh, (n.gate - n.first) * Hp)
    slots_matmul(source, T, w, mixed - n.gate, units, s, s, nothing(source))
    if mixed < n.last:
        own, s = rows(cell.bias, mixed * Hp, 0), shifted(c, mixed * Hp, wide)
        w = from_output(w_hh, (mixed - n.first) * Hp)
        slots_matmul(source, T, w, n.last - mixed, units, own, s, nothing(source))
    for t in range(T):
        f = (first + t * layers) * factors.shape[1]
        linearise(cell, p, TangentAt(t * stride, 0, t * wide, f, 0, 0, 1), 0, Hp)
