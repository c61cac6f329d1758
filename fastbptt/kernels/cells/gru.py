"""Gated recurrent units: h[t+1] = (1 - z) n + z h[t].

r, z = sigmoid(a) with a = x[t] W_ih' + b_ih + W_hh h[t] + b_hh, and
GRU:             n = tanh(x[t] W_in' + b_in + r (W_hn h[t] + b_hn)), PyTorch's and cuDNN's;
GRUResetBefore:  n = tanh(x[t] W_in' + b_in + W_hn (r h[t]) + b_hn), Cho et al. 2014, equation 8.
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

# n, r, z of x and r, z, n of h overlap in r and z: the n of x and that of h are not added up.
SLOTS = Slots(x=3, first=1, gate=1, last=4, direct=True, factors=5)
SLOTS_BEFORE = Slots(x=3, first=0, gate=2, last=3, direct=True, factors=5)  # r z n, and r h


class GRU(NamedTuple):
    """Packed weights (`weights.Layer`)."""

    w_ih: np.ndarray
    w_hh: np.ndarray
    bias: np.ndarray


class GRUResetBefore(NamedTuple):
    """Packed weights (`weights.Layer`)."""

    w_ih: np.ndarray
    w_hh: np.ndarray
    bias: np.ndarray


DESIGN = Design(GRU, SLOTS, "rzn", "nrz", "rzn", has_c=False, kept="nrz")
DESIGN_BEFORE = Design(GRUResetBefore, SLOTS_BEFORE, "rzn", "rzn", "rzn", has_c=False, kept="rzn")


@implements(slots, GRU)
def _gru_slots(cell):
    return SLOTS


@implements(slots, GRUResetBefore)
def _gru_before_slots(cell):
    return SLOTS_BEFORE


@implements(step, GRU)
def _gru_step(cell, m, at, M, j0, j1):
    """h = n + z (h - n); n, r, z and what r multiplies stay in a."""
    k, wide = m.h.shape[1], m.a.shape[1]
    for b in range(M):
        a = (at.a + b) * wide
        n, r = line(m.a, a, "a0"), line(m.a, a + k, "a1")
        z, hn = line(m.a, a + 2 * k, "a2"), line(m.a, a + 3 * k, "a3")
        before, h = line(m.h, (at.h + b) * k, "h"), line(m.h, (at.h_next + b) * k, "h")
        for j in range(j0, j1):
            r[j], z[j] = sigmoid(r[j]), sigmoid(z[j])
        for j in range(j0, j1):  # on its own: in one loop the chain of dependent steps is too long
            n[j] = tanh(n[j] + r[j] * hn[j])
            h[j] = n[j] + z[j] * (before[j] - n[j])


@implements(adjoint, GRU)
def _gru_adjoint(cell, m, d, at, M, j0, j1):
    """Through h = (1 - z) n + z h to n, z and h, through n to r and to what r multiplies."""
    k, wide = m.h.shape[1], m.a.shape[1]
    one = m.h.dtype.type(1)
    for b in range(M):
        a, s = (at.a + b) * wide, (at.da + b) * wide
        n, r = line(m.a, a, "a0"), line(m.a, a + k, "a1")
        z, hn = line(m.a, a + 2 * k, "a2"), line(m.a, a + 3 * k, "a3")
        dn, dr = line(d.da, s, "da0"), line(d.da, s + k, "da1")
        dz, dhn = line(d.da, s + 2 * k, "da2"), line(d.da, s + 3 * k, "da3")
        h, dh = line(m.h, (at.h + b) * k, "h"), line(d.dh, (at.d + b) * k, "dh")
        for j in range(j0, j1):
            dn[j] = dh[j] * (one - z[j]) * (one - n[j]) * (one + n[j])
            dz[j] = dh[j] * (h[j] - n[j]) * z[j] * (one - z[j])
            dr[j] = dn[j] * hn[j] * r[j] * (one - r[j])
            dhn[j] = dn[j] * r[j]
            dh[j] *= z[j]


@implements(gate, GRUResetBefore)
def _gru_before_gate(cell, m, at, M, j0, j1):
    """r h."""
    k, wide = m.h.shape[1], m.a.shape[1]
    for b in range(M):
        a = (at.a + b) * wide
        r, z, rh = line(m.a, a, "a0"), line(m.a, a + k, "a1"), line(m.a, a + 3 * k, "a3")
        h = line(m.h, (at.h + b) * k, "h")
        for j in range(j0, j1):
            r[j], z[j] = sigmoid(r[j]), sigmoid(z[j])
            rh[j] = r[j] * h[j]


@implements(step, GRUResetBefore)
def _gru_before_step(cell, m, at, M, j0, j1):
    """h = n + z (h - n)."""
    k, wide = m.h.shape[1], m.a.shape[1]
    for b in range(M):
        a = (at.a + b) * wide
        z, n = line(m.a, a + k, "a1"), line(m.a, a + 2 * k, "a2")
        before, h = line(m.h, (at.h + b) * k, "h"), line(m.h, (at.h_next + b) * k, "h")
        for j in range(j0, j1):
            n[j] = tanh(n[j])
            h[j] = n[j] + z[j] * (before[j] - n[j])


@implements(adjoint, GRUResetBefore)
def _gru_before_adjoint(cell, m, d, at, M, j0, j1):
    """Through h = (1 - z) n + z h to n, z and h."""
    k, wide = m.h.shape[1], m.a.shape[1]
    one = m.h.dtype.type(1)
    for b in range(M):
        a, s = (at.a + b) * wide, (at.da + b) * wide
        z, n = line(m.a, a + k, "a1"), line(m.a, a + 2 * k, "a2")
        dz, dn = line(d.da, s + k, "da1"), line(d.da, s + 2 * k, "da2")
        h, dh = line(m.h, (at.h + b) * k, "h"), line(d.dh, (at.d + b) * k, "dh")
        for j in range(j0, j1):
            dn[j] = dh[j] * (one - z[j]) * (one - n[j]) * (one + n[j])
            dz[j] = dh[j] * (h[j] - n[j]) * z[j] * (one - z[j])
            dh[j] *= z[j]


@implements(gate_adjoint, GRUResetBefore)
def _gru_before_gate_adjoint(cell, m, d, at, M, j0, j1):
    """Through r h to r and to h."""
    k, wide = m.h.shape[1], m.a.shape[1]
    one = m.h.dtype.type(1)
    for b in range(M):
        s = (at.da + b) * wide
        r, h = line(m.a, (at.a + b) * wide, "a0"), line(m.h, (at.h + b) * k, "h")
        dr, drh, dh = (
            line(d.da, s, "da0"),
            line(d.da, s + 3 * k, "da3"),
            line(d.dh, (at.d + b) * k, "dh"),
        )
        for j in range(j0, j1):
            dr[j] = drh[j] * h[j] * r[j] * (one - r[j])
            dh[j] += drh[j] * r[j]


@implements(linearise, GRU)
def _gru_linearise(cell, p, at, j0, j1):
    """h as in `step`; the factors z, (h - n) z', (1 - z) n' and of that r and hn r'."""
    k, s = p.factors.shape[1] // slots(cell).factors, at.factors
    h, before = line(p.after, at.after, "h"), line(p.now, at.now, "h")
    n, r = line(p.a, at.a, "a0"), line(p.a, at.a + k, "a1")
    z, hn = line(p.a, at.a + 2 * k, "a2"), line(p.a, at.a + 3 * k, "a3")
    by_h, by_z = line(p.factors, s, "factors"), line(p.factors, s + k, "factors")
    by_n, by_r = line(p.factors, s + 2 * k, "factors"), line(p.factors, s + 3 * k, "factors")
    by_hn = line(p.factors, s + 4 * k, "factors")
    for j in range(j0, j1):
        r[j], by_r[j] = sigmoid_and_slope(r[j])
    for j in range(j0, j1):
        by_hn[j] = sigmoid(-z[j])  # 1 - z, which near 1 would lose its digits
    for j in range(j0, j1):
        z[j], by_z[j] = sigmoid_and_slope(z[j])
    for j in range(j0, j1):
        n[j], by_n[j] = tanh_and_slope(n[j] + r[j] * hn[j])
    for j in range(j0, j1):
        h[j] = n[j] + z[j] * (before[j] - n[j])
        by_h[j] = z[j]
    for j in range(j0, j1):
        by_z[j] *= before[j] - n[j]
    for j in range(j0, j1):
        by_n[j] *= by_hn[j]
    for j in range(j0, j1):
        by_r[j] *= by_n[j] * hn[j]
    for j in range(j0, j1):
        by_hn[j] = by_n[j] * r[j]


@implements(tangent, GRU)
def _gru_tangent(cell, p, at, j0, j1):
    """h_dot = z h_dot + (h - n) z' a_z + (1 - z) n' (a_n + r a_hn + hn r' a_r)."""
    k, s = p.factors.shape[1] // slots(cell).factors, at.factors
    by_h, by_z = line(p.factors, s, "factors"), line(p.factors, s + k, "factors")
    by_n, by_r = line(p.factors, s + 2 * k, "factors"), line(p.factors, s + 3 * k, "factors")
    by_hn = line(p.factors, s + 4 * k, "factors")
    for row in range(at.rows):
        a = at.a + row * at.wide
        n_dot, r_dot = line(p.a, a, "a0"), line(p.a, a + k, "a1")
        z_dot, hn_dot = line(p.a, a + 2 * k, "a2"), line(p.a, a + 3 * k, "a3")
        h_dot = line(p.after, at.after + row * at.stride, "h")
        h_dot_before = line(p.now, at.now + row * at.stride, "h")
        for j in range(j0, j1):
            h_dot[j] = (
                by_h[j] * h_dot_before[j]
                + by_z[j] * z_dot[j]
                + by_n[j] * n_dot[j]
                + by_hn[j] * hn_dot[j]
                + by_r[j] * r_dot[j]
            )


@implements(cotangent, GRU)
def _gru_cotangent(cell, p, at, j0, j1):
    """Each slot's factor times dh; dh <- z dh."""
    k, s = p.factors.shape[1] // slots(cell).factors, at.factors
    by_h, by_z = line(p.factors, s, "factors"), line(p.factors, s + k, "factors")
    by_n, by_r = line(p.factors, s + 2 * k, "factors"), line(p.factors, s + 3 * k, "factors")
    by_hn = line(p.factors, s + 4 * k, "factors")
    for row in range(at.rows):
        a = at.a + row * at.wide
        dn, dr = line(p.a, a, "da0"), line(p.a, a + k, "da1")
        dz, dhn = line(p.a, a + 2 * k, "da2"), line(p.a, a + 3 * k, "da3")
        dh = line(p.now, at.now + row * at.stride, "dh")
        for j in range(j0, j1):
            dn[j], dr[j] = by_n[j] * dh[j], by_r[j] * dh[j]
            dz[j], dhn[j] = by_z[j] * dh[j], by_hn[j] * dh[j]
            dh[j] *= by_h[j]


@implements(gate_linearise, GRUResetBefore)
def _gru_before_gate_linearise(cell, p, at, j0, j1):
    """r h; the factors r, h r'."""
    k, s = p.factors.shape[1] // slots(cell).factors, at.factors
    h, r = line(p.now, at.now, "h"), line(p.a, at.a, "a0")
    rh = line(p.a, at.a + 3 * k, "a3")
    by_h, by_r = line(p.factors, s, "factors"), line(p.factors, s + k, "factors")
    for j in range(j0, j1):
        rh[j], by_r[j] = sigmoid_and_slope(r[j])
    for j in range(j0, j1):
        by_r[j] *= h[j]
    for j in range(j0, j1):
        by_h[j] = rh[j]
        rh[j] *= h[j]


@implements(gate_tangent, GRUResetBefore)
def _gru_before_gate_tangent(cell, p, at, j0, j1):
    """(r h)_dot = r h_dot + h r' a_r."""
    k, s = p.factors.shape[1] // slots(cell).factors, at.factors
    by_h, by_r = line(p.factors, s, "factors"), line(p.factors, s + k, "factors")
    for row in range(at.rows):
        a = at.a + row * at.wide
        r_dot, rh_dot = line(p.a, a, "a0"), line(p.a, a + 3 * k, "a3")
        h_dot = line(p.now, at.now + row * at.stride, "h")
        for j in range(j0, j1):
            rh_dot[j] = by_h[j] * h_dot[j] + by_r[j] * r_dot[j]


@implements(gate_cotangent, GRUResetBefore)
def _gru_before_gate_cotangent(cell, p, at, j0, j1):
    """dr = h r' d(rh), dh += r d(rh)."""
    k, s = p.factors.shape[1] // slots(cell).factors, at.factors
    by_h, by_r = line(p.factors, s, "factors"), line(p.factors, s + k, "factors")
    for row in range(at.rows):
        a = at.a + row * at.wide
        dr, drh = line(p.a, a, "da0"), line(p.a, a + 3 * k, "da3")
        dh = line(p.now, at.now + row * at.stride, "dh")
        for j in range(j0, j1):
            dr[j] = by_r[j] * drh[j]
            dh[j] += by_h[j] * drh[j]


@implements(linearise, GRUResetBefore)
def _gru_before_linearise(cell, p, at, j0, j1):
    """h as in `step`; the factors z, (h - n) z', (1 - z) n'."""
    k, s = p.factors.shape[1] // slots(cell).factors, at.factors
    h, before = line(p.after, at.after, "h"), line(p.now, at.now, "h")
    z, n = line(p.a, at.a + k, "a1"), line(p.a, at.a + 2 * k, "a2")
    by_h, by_z = line(p.factors, s + 2 * k, "factors"), line(p.factors, s + 3 * k, "factors")
    by_n = line(p.factors, s + 4 * k, "factors")
    for j in range(j0, j1):
        by_h[j] = sigmoid(-z[j])  # 1 - z, which near 1 would lose its digits
    for j in range(j0, j1):
        z[j], by_z[j] = sigmoid_and_slope(z[j])
    for j in range(j0, j1):
        n[j], by_n[j] = tanh_and_slope(n[j])
    for j in range(j0, j1):
        by_n[j] *= by_h[j]
    for j in range(j0, j1):
        h[j] = n[j] + z[j] * (before[j] - n[j])
        by_h[j] = z[j]
    for j in range(j0, j1):
        by_z[j] *= before[j] - n[j]


@implements(tangent, GRUResetBefore)
def _gru_before_tangent(cell, p, at, j0, j1):
    """h_dot = z h_dot + (h - n) z' a_z + (1 - z) n' a_n."""
    k, s = p.factors.shape[1] // slots(cell).factors, at.factors
    by_h, by_z = line(p.factors, s + 2 * k, "factors"), line(p.factors, s + 3 * k, "factors")
    by_n = line(p.factors, s + 4 * k, "factors")
    for row in range(at.rows):
        a = at.a + row * at.wide
        z_dot, n_dot = line(p.a, a + k, "a1"), line(p.a, a + 2 * k, "a2")
        h_dot = line(p.after, at.after + row * at.stride, "h")
        h_dot_before = line(p.now, at.now + row * at.stride, "h")
        for j in range(j0, j1):
            h_dot[j] = by_h[j] * h_dot_before[j] + by_z[j] * z_dot[j] + by_n[j] * n_dot[j]


@implements(cotangent, GRUResetBefore)
def _gru_before_cotangent(cell, p, at, j0, j1):
    """dz = (h - n) z' dh, dn = (1 - z) n' dh, dh <- z dh."""
    k, s = p.factors.shape[1] // slots(cell).factors, at.factors
    by_h, by_z = line(p.factors, s + 2 * k, "factors"), line(p.factors, s + 3 * k, "factors")
    by_n = line(p.factors, s + 4 * k, "factors")
    for row in range(at.rows):
        a = at.a + row * at.wide
        dz, dn = line(p.a, a + k, "da1"), line(p.a, a + 2 * k, "da2")
        dh = line(p.now, at.now + row * at.stride, "dh")
        for j in range(j0, j1):
            dz[j], dn[j] = by_z[j] * dh[j], by_n[j] * dh[j]
            dh[j] *= by_h[j]
