"""Long short-term memory: c[t+1] = f c[t] + i g, h[t+1] = o tanh(c[t+1]).

i, f, o = sigmoid(a), g = tanh(a), a = x[t] W_ih' + b_ih + W_hh h[t] + b_hh.
Hochreiter and Schmidhuber 1997; Gers et al. 2000 (f); in PyTorch's notation (torch.nn.LSTM).
"""

from typing import NamedTuple

import numpy as np

from ..elementary import sigmoid, sigmoid_and_slope, tanh, tanh_and_slope
from ..jit import implements
from ..lines import line
from . import Design, Slots, adjoint, cotangent, linearise, slots, step, tangent

SLOTS = Slots(x=4, first=0, gate=0, last=4, direct=False, factors=6)  # i f g o


class LSTM(NamedTuple):
    """Packed weights (`weights.Layer`)."""

    w_ih: np.ndarray
    w_hh: np.ndarray
    bias: np.ndarray


DESIGN = Design(LSTM, SLOTS, "ifgo", "ifgo", "ifgo", has_c=True, kept="ifgo")


@implements(slots, LSTM)
def _lstm_slots(cell):
    return SLOTS


@implements(step, LSTM)
def _lstm_step(cell, m, at, M, j0, j1):
    """c = f c + i g, h = o tanh(c); the gates stay in a."""
    n, wide = m.h.shape[1], m.a.shape[1]
    for b in range(M):
        a = (at.a + b) * wide
        i, f = line(m.a, a, "a0"), line(m.a, a + n, "a1")
        g, o = line(m.a, a + 2 * n, "a2"), line(m.a, a + 3 * n, "a3")
        for j in range(j0, j1):
            i[j], f[j], o[j] = sigmoid(i[j]), sigmoid(f[j]), sigmoid(o[j])
        for j in range(j0, j1):  # on its own: with 16 registers a tenth of all curves' time
            g[j] = tanh(g[j])
    # Rows anew: in one loop the processor cannot look past a chain of two transcendentals.
    for b in range(M):
        a = (at.a + b) * wide
        i, f = line(m.a, a, "a0"), line(m.a, a + n, "a1")
        g, o = line(m.a, a + 2 * n, "a2"), line(m.a, a + 3 * n, "a3")
        c_before, c = line(m.c, (at.c + b) * n, "c"), line(m.c, (at.c_next + b) * n, "c")
        h = line(m.h, (at.h_next + b) * n, "h")
        for j in range(j0, j1):
            c[j] = f[j] * c_before[j] + i[j] * g[j]
            h[j] = o[j] * tanh(c[j])


@implements(adjoint, LSTM)
def _lstm_adjoint(cell, m, d, at, M, j0, j1):
    """dc += dh o (1 - tanh² c); each da is what reaches its gate times the slope; dc <- dc f."""
    n, wide = m.h.shape[1], m.a.shape[1]
    one = m.h.dtype.type(1)
    for b in range(M):
        c, do = line(m.c, (at.c_next + b) * n, "c"), line(d.da, (at.da + b) * wide + 3 * n, "da3")
        for j in range(j0, j1):
            do[j] = tanh(c[j])
    for b in range(M):
        o, do = (
            line(m.a, (at.a + b) * wide + 3 * n, "a3"),
            line(d.da, (at.da + b) * wide + 3 * n, "da3"),
        )
        dh, dc = line(d.dh, (at.d + b) * n, "dh"), line(d.dc, (at.d + b) * n, "dc")
        for j in range(j0, j1):
            tanh_c = do[j]
            dc[j] += dh[j] * o[j] * (one - tanh_c) * (one + tanh_c)
            do[j] = dh[j] * tanh_c * o[j] * (one - o[j])
    if d.step_c.shape[0] > 0:
        for b in range(M):
            dc, record = line(d.dc, (at.d + b) * n, "dc"), line(d.step_c, (at.step + b) * n, "step")
            for j in range(j0, j1):
                record[j] = dc[j]
    for b in range(M):
        a, s = (at.a + b) * wide, (at.da + b) * wide
        i, f, g = line(m.a, a, "a0"), line(m.a, a + n, "a1"), line(m.a, a + 2 * n, "a2")
        di, df, dg = line(d.da, s, "da0"), line(d.da, s + n, "da1"), line(d.da, s + 2 * n, "da2")
        c, dc = line(m.c, (at.c + b) * n, "c"), line(d.dc, (at.d + b) * n, "dc")
        for j in range(j0, j1):
            di[j] = dc[j] * g[j] * i[j] * (one - i[j])
            df[j] = dc[j] * c[j] * f[j] * (one - f[j])
            dg[j] = dc[j] * i[j] * (one - g[j]) * (one + g[j])
            dc[j] *= f[j]


@implements(linearise, LSTM)
def _lstm_linearise(cell, p, at, j0, j1):
    """h and c as in `step`; the factors f, c f', g i', i g', tanh(c) o', o tanh'(c)."""
    n = p.factors.shape[1] // slots(cell).factors
    h, c = line(p.after, at.after, "h"), line(p.after, at.after + n, "c")
    before = line(p.now, at.now + n, "c")
    i, f = line(p.a, at.a, "a0"), line(p.a, at.a + n, "a1")
    g, o = line(p.a, at.a + 2 * n, "a2"), line(p.a, at.a + 3 * n, "a3")
    s = at.factors
    by_c, by_f = line(p.factors, s, "factors"), line(p.factors, s + n, "factors")
    by_i, by_g = line(p.factors, s + 2 * n, "factors"), line(p.factors, s + 3 * n, "factors")
    by_o, by_h = line(p.factors, s + 4 * n, "factors"), line(p.factors, s + 5 * n, "factors")
    # no loop writes two lines of one region: LLVM would fear that they overlap
    for j in range(j0, j1):
        i[j], by_i[j] = sigmoid_and_slope(i[j])
    for j in range(j0, j1):
        f[j], by_f[j] = sigmoid_and_slope(f[j])
    for j in range(j0, j1):
        g[j], by_g[j] = tanh_and_slope(g[j])
    for j in range(j0, j1):
        o[j], by_o[j] = sigmoid_and_slope(o[j])
    for j in range(j0, j1):
        c[j] = f[j] * before[j] + i[j] * g[j]
        by_c[j] = f[j]
    for j in range(j0, j1):
        by_f[j] *= before[j]
    for j in range(j0, j1):
        by_i[j] *= g[j]
    for j in range(j0, j1):
        by_g[j] *= i[j]
    for j in range(j0, j1):
        h[j], by_h[j] = tanh_and_slope(c[j])
    for j in range(j0, j1):
        by_o[j] *= h[j]
    for j in range(j0, j1):
        by_h[j] *= o[j]
        h[j] *= o[j]


@implements(tangent, LSTM)
def _lstm_tangent(cell, p, at, j0, j1):
    """c_dot = f c_dot + c f' a_f + g i' a_i + i g' a_g, h_dot = tanh(c) o' a_o + o tanh' c_dot."""
    n, s = p.factors.shape[1] // slots(cell).factors, at.factors
    by_c, by_f = line(p.factors, s, "factors"), line(p.factors, s + n, "factors")
    by_i, by_g = line(p.factors, s + 2 * n, "factors"), line(p.factors, s + 3 * n, "factors")
    by_o, by_h = line(p.factors, s + 4 * n, "factors"), line(p.factors, s + 5 * n, "factors")
    for r in range(at.rows):
        after, a = at.after + r * at.stride, at.a + r * at.wide
        h_dot, c_dot = line(p.after, after, "h"), line(p.after, after + n, "c")
        c_dot_before = line(p.now, at.now + r * at.stride + n, "c")
        i_dot, f_dot = line(p.a, a, "a0"), line(p.a, a + n, "a1")
        g_dot, o_dot = line(p.a, a + 2 * n, "a2"), line(p.a, a + 3 * n, "a3")
        for j in range(j0, j1):
            c_dot[j] = (
                by_c[j] * c_dot_before[j]
                + by_f[j] * f_dot[j]
                + by_i[j] * i_dot[j]
                + by_g[j] * g_dot[j]
            )
            h_dot[j] = by_o[j] * o_dot[j] + by_h[j] * c_dot[j]


@implements(cotangent, LSTM)
def _lstm_cotangent(cell, p, at, j0, j1):
    """dc += o tanh' dh; di = g i' dc and so on; dc <- f dc."""
    n, s = p.factors.shape[1] // slots(cell).factors, at.factors
    by_c, by_f = line(p.factors, s, "factors"), line(p.factors, s + n, "factors")
    by_i, by_g = line(p.factors, s + 2 * n, "factors"), line(p.factors, s + 3 * n, "factors")
    by_o, by_h = line(p.factors, s + 4 * n, "factors"), line(p.factors, s + 5 * n, "factors")
    for r in range(at.rows):
        now, a = at.now + r * at.stride, at.a + r * at.wide
        dh, dc = line(p.now, now, "dh"), line(p.now, now + n, "dc")
        di, df = line(p.a, a, "da0"), line(p.a, a + n, "da1")
        dg, do = line(p.a, a + 2 * n, "da2"), line(p.a, a + 3 * n, "da3")
        for j in range(j0, j1):
            total = dc[j] + by_h[j] * dh[j]
            do[j] = by_o[j] * dh[j]
            di[j], df[j], dg[j] = by_i[j] * total, by_f[j] * total, by_g[j] * total
            dc[j] = by_c[j] * total
