"""The minimal gated unit: h[t+1] = (1 - f) h[t] + f n.

f = sigmoid(x[t] W_if' + b_if + W_hf h[t] + b_hf), n = tanh(x[t] W_in' + b_in + W_hn (f h[t]) +
b_hn).  Zhou, Wu, Zhang, Zhou 2016 (arXiv 1603.09420), equations 7 to 9.
"""

from typing import NamedTuple

import numpy as np

from ..elementary import sigmoid, sigmoid_and_slope, tanh, tanh_and_slope
from ..jit import implements
from ..lines import line
from . import (
    Design,
    Slots,
    adjoint,
    cotangent,
    gate,
    gate_adjoint,
    gate_cotangent,
    gate_linearise,
    gate_tangent,
    linearise,
    slots,
    step,
    tangent,
)

SLOTS = Slots(x=2, first=0, gate=1, last=2, direct=True, factors=5)  # f n, and f h


class MGU(NamedTuple):
    """Packed weights (`weights.Layer`)."""

    w_ih: np.ndarray
    w_hh: np.ndarray
    bias: np.ndarray


DESIGN = Design(MGU, SLOTS, "fn", "fn", "fn", has_c=False, kept="fn")


@implements(slots, MGU)
def _mgu_slots(cell):
    return SLOTS


@implements(gate, MGU)
def _mgu_gate(cell, m, at, M, j0, j1):
    """f h."""
    k, wide = m.h.shape[1], m.a.shape[1]
    for b in range(M):
        a = (at.a + b) * wide
        f, fh, h = line(m.a, a, "a0"), line(m.a, a + 2 * k, "a2"), line(m.h, (at.h + b) * k, "h")
        for j in range(j0, j1):
            f[j] = sigmoid(f[j])
            fh[j] = f[j] * h[j]


@implements(step, MGU)
def _mgu_step(cell, m, at, M, j0, j1):
    """h = h + f (n - h)."""
    k, wide = m.h.shape[1], m.a.shape[1]
    for b in range(M):
        a = (at.a + b) * wide
        f, n = line(m.a, a, "a0"), line(m.a, a + k, "a1")
        before, h = line(m.h, (at.h + b) * k, "h"), line(m.h, (at.h_next + b) * k, "h")
        for j in range(j0, j1):
            n[j] = tanh(n[j])
            h[j] = before[j] + f[j] * (n[j] - before[j])


@implements(adjoint, MGU)
def _mgu_adjoint(cell, m, d, at, M, j0, j1):
    """Through h = (1 - f) h + f n to n, to h, and for `gate_adjoint` to f."""
    k, wide = m.h.shape[1], m.a.shape[1]
    one = m.h.dtype.type(1)
    for b in range(M):
        a, s = (at.a + b) * wide, (at.da + b) * wide
        f, n = line(m.a, a, "a0"), line(m.a, a + k, "a1")
        df, dn = line(d.da, s, "da0"), line(d.da, s + k, "da1")
        h, dh = line(m.h, (at.h + b) * k, "h"), line(d.dh, (at.d + b) * k, "dh")
        for j in range(j0, j1):
            dn[j] = dh[j] * f[j] * (one - n[j]) * (one + n[j])
            df[j] = dh[j] * (n[j] - h[j])
            dh[j] *= one - f[j]


@implements(gate_adjoint, MGU)
def _mgu_gate_adjoint(cell, m, d, at, M, j0, j1):
    """Through f h to f and to h."""
    k, wide = m.h.shape[1], m.a.shape[1]
    one = m.h.dtype.type(1)
    for b in range(M):
        s = (at.da + b) * wide
        f, h = line(m.a, (at.a + b) * wide, "a0"), line(m.h, (at.h + b) * k, "h")
        df, dfh = line(d.da, s, "da0"), line(d.da, s + 2 * k, "da2")
        dh = line(d.dh, (at.d + b) * k, "dh")
        for j in range(j0, j1):
            df[j] = (df[j] + dfh[j] * h[j]) * f[j] * (one - f[j])
            dh[j] += dfh[j] * f[j]


@implements(gate_linearise, MGU)
def _mgu_gate_linearise(cell, p, at, j0, j1):
    """f h; the factors f, h f'; f stays a pre-activation, for `linearise` to begin with."""
    k, s = p.factors.shape[1] // slots(cell).factors, at.factors
    h, f, fh = line(p.now, at.now, "h"), line(p.a, at.a, "a0"), line(p.a, at.a + 2 * k, "a2")
    by_h, by_f = line(p.factors, s, "factors"), line(p.factors, s + k, "factors")
    for j in range(j0, j1):
        fh[j], by_f[j] = sigmoid_and_slope(f[j])
    for j in range(j0, j1):
        by_f[j] *= h[j]
    for j in range(j0, j1):
        by_h[j] = fh[j]
        fh[j] *= h[j]


@implements(gate_tangent, MGU)
def _mgu_gate_tangent(cell, p, at, j0, j1):
    """(f h)_dot = f h_dot + h f' a_f."""
    k, s = p.factors.shape[1] // slots(cell).factors, at.factors
    by_h, by_f = line(p.factors, s, "factors"), line(p.factors, s + k, "factors")
    for row in range(at.rows):
        a = at.a + row * at.wide
        f_dot, fh_dot = line(p.a, a, "a0"), line(p.a, a + 2 * k, "a2")
        h_dot = line(p.now, at.now + row * at.stride, "h")
        for j in range(j0, j1):
            fh_dot[j] = by_h[j] * h_dot[j] + by_f[j] * f_dot[j]


@implements(gate_cotangent, MGU)
def _mgu_gate_cotangent(cell, p, at, j0, j1):
    """df += h f' d(fh), dh += f d(fh)."""
    k, s = p.factors.shape[1] // slots(cell).factors, at.factors
    by_h, by_f = line(p.factors, s, "factors"), line(p.factors, s + k, "factors")
    for row in range(at.rows):
        a = at.a + row * at.wide
        df, dfh = line(p.a, a, "da0"), line(p.a, a + 2 * k, "da2")
        dh = line(p.now, at.now + row * at.stride, "dh")
        for j in range(j0, j1):
            df[j] += by_f[j] * dfh[j]
            dh[j] += by_h[j] * dfh[j]


@implements(linearise, MGU)
def _mgu_linearise(cell, p, at, j0, j1):
    """h as in `step`; the factors 1 - f, (n - h) f', f n'."""
    k, s = p.factors.shape[1] // slots(cell).factors, at.factors
    h, before = line(p.after, at.after, "h"), line(p.now, at.now, "h")
    f, n = line(p.a, at.a, "a0"), line(p.a, at.a + k, "a1")
    by_h, by_f = line(p.factors, s + 2 * k, "factors"), line(p.factors, s + 3 * k, "factors")
    by_n = line(p.factors, s + 4 * k, "factors")
    for j in range(j0, j1):
        by_h[j] = sigmoid(-f[j])  # 1 - f, which near 1 would lose its digits
    for j in range(j0, j1):
        f[j], by_f[j] = sigmoid_and_slope(f[j])
    for j in range(j0, j1):
        n[j], by_n[j] = tanh_and_slope(n[j])
    for j in range(j0, j1):
        by_n[j] *= f[j]
        h[j] = before[j] + f[j] * (n[j] - before[j])
    for j in range(j0, j1):
        by_f[j] *= n[j] - before[j]


@implements(tangent, MGU)
def _mgu_tangent(cell, p, at, j0, j1):
    """h_dot = (1 - f) h_dot + (n - h) f' a_f + f n' a_n."""
    k, s = p.factors.shape[1] // slots(cell).factors, at.factors
    by_h, by_f = line(p.factors, s + 2 * k, "factors"), line(p.factors, s + 3 * k, "factors")
    by_n = line(p.factors, s + 4 * k, "factors")
    for row in range(at.rows):
        a = at.a + row * at.wide
        f_dot, n_dot = line(p.a, a, "a0"), line(p.a, a + k, "a1")
        h_dot = line(p.after, at.after + row * at.stride, "h")
        h_dot_before = line(p.now, at.now + row * at.stride, "h")
        for j in range(j0, j1):
            h_dot[j] = by_h[j] * h_dot_before[j] + by_f[j] * f_dot[j] + by_n[j] * n_dot[j]


@implements(cotangent, MGU)
def _mgu_cotangent(cell, p, at, j0, j1):
    """df = (n - h) f' dh, dn = f n' dh, dh <- (1 - f) dh."""
    k, s = p.factors.shape[1] // slots(cell).factors, at.factors
    by_h, by_f = line(p.factors, s + 2 * k, "factors"), line(p.factors, s + 3 * k, "factors")
    by_n = line(p.factors, s + 4 * k, "factors")
    for row in range(at.rows):
        a = at.a + row * at.wide
        df, dn = line(p.a, a, "da0"), line(p.a, a + k, "da1")
        dh = line(p.now, at.now + row * at.stride, "dh")
        for j in range(j0, j1):
            df[j], dn[j] = by_f[j] * dh[j], by_n[j] * dh[j]
            dh[j] *= by_h[j]
