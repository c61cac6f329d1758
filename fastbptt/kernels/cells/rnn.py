"""The plain recurrent net: h[t+1] = f(a), a = x[t] W_ih' + b_ih + W_hh h[t] + b_hh.

Elman 1990 in PyTorch's notation (torch.nn.RNN).
"""

from typing import NamedTuple

import numpy as np

from ..activations import slope_at_value, value, value_and_slope
from ..jit import implements
from ..lines import line
from . import Design, Slots, adjoint, cotangent, linearise, slots, step, tangent

SLOTS = Slots(x=1, first=0, gate=0, last=1, direct=False, factors=1)


class RNN(NamedTuple):
    """Packed weights (`weights.Layer`); act is a tag of `activations`."""

    w_ih: np.ndarray
    w_hh: np.ndarray
    bias: np.ndarray
    act: NamedTuple


DESIGN = Design(RNN, SLOTS, "a", "a", "a", has_c=False, kept="")


@implements(slots, RNN)
def _rnn_slots(cell):
    return SLOTS


@implements(step, RNN)
def _rnn_step(cell, m, at, M, j0, j1):
    """h[t+1] = f(a)."""
    n, wide = m.h.shape[1], m.a.shape[1]
    for b in range(M):
        a, h = line(m.a, (at.a + b) * wide, "a0"), line(m.h, (at.h_next + b) * n, "h")
        for j in range(j0, j1):
            h[j] = value(cell.act, a[j])


@implements(adjoint, RNN)
def _rnn_adjoint(cell, m, d, at, M, j0, j1):
    """da = dh f'(a)."""
    n, wide = m.h.shape[1], m.a.shape[1]
    for b in range(M):
        h, da = line(m.h, (at.h_next + b) * n, "h"), line(d.da, (at.da + b) * wide, "da0")
        dh = line(d.dh, (at.d + b) * n, "dh")
        for j in range(j0, j1):
            da[j] = dh[j] * slope_at_value(cell.act, h[j])


@implements(linearise, RNN)
def _rnn_linearise(cell, p, at, j0, j1):
    """h = f(a); the factor f'(a)."""
    a, h = line(p.a, at.a, "a0"), line(p.after, at.after, "h")
    s = line(p.factors, at.factors, "factors")
    for j in range(j0, j1):
        h[j], s[j] = value_and_slope(cell.act, a[j])


@implements(tangent, RNN)
def _rnn_tangent(cell, p, at, j0, j1):
    """h_dot = f'(a) a_dot: J_t = diag(f'(a_t)) W_hh."""
    s = line(p.factors, at.factors, "factors")
    for r in range(at.rows):
        a_dot = line(p.a, at.a + r * at.wide, "a0")
        h_dot = line(p.after, at.after + r * at.stride, "h")
        for j in range(j0, j1):
            h_dot[j] = s[j] * a_dot[j]


@implements(cotangent, RNN)
def _rnn_cotangent(cell, p, at, j0, j1):
    """da = f'(a) dh."""
    s = line(p.factors, at.factors, "factors")
    for r in range(at.rows):
        da, dh = line(p.a, at.a + r * at.wide, "da0"), line(p.now, at.now + r * at.stride, "dh")
        for j in range(j0, j1):
            da[j] = s[j] * dh[j]
