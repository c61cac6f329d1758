"""RNN, GRU and LSTM in plain loops under `@njit(fastmath=True)`, as a user of Numba writes them.

PyTorch's formulas and order of gates.  One thread, every product a loop over rows and columns, the
weight gradients summed step by step; nothing is packed, blocked or hoisted out of time.
"""

import numba
import numpy as np
from cases import Case, Inputs

njit = numba.njit(fastmath=True)

TANH, RELU, GRU, LSTM = range(4)  # numbers: a string would be compared anew for every unit
KINDS = {"tanh": TANH, "relu": RELU, "gru": GRU, "lstm": LSTM}


@njit
def _sigmoid(a):
    return 1 / (1 + np.exp(-a))


@njit
def _affine(w, bias, v, a):
    """a = W v + bias."""
    for i in range(w.shape[0]):
        total = bias[i]
        for j in range(w.shape[1]):
            total += w[i, j] * v[j]
        a[i] = total


@njit
def _affine_adjoint(w, v, da, dw, dbias, dv):
    """What da adds to the gradients of W, bias and v."""
    for i in range(w.shape[0]):
        dbias[i] += da[i]
        for j in range(w.shape[1]):
            dw[i, j] += da[i] * v[j]
            dv[j] += da[i] * w[i, j]


@njit
def _gate(kind, H, ax, ah, h, c, c_next, kept, h_next):
    """One row: its state from its pre-activations; the gates are kept."""
    for i in range(H):
        if kind == TANH:
            h_next[i] = np.tanh(ax[i] + ah[i])
        elif kind == RELU:
            h_next[i] = max(ax[i] + ah[i], 0)
        elif kind == GRU:
            r, z = _sigmoid(ax[i] + ah[i]), _sigmoid(ax[H + i] + ah[H + i])
            n = np.tanh(ax[2 * H + i] + r * ah[2 * H + i])
            h_next[i] = (1 - z) * n + z * h[i]
            kept[i], kept[H + i], kept[2 * H + i] = r, z, n
            kept[3 * H + i] = ah[2 * H + i]
        else:
            gi, gf = _sigmoid(ax[i] + ah[i]), _sigmoid(ax[H + i] + ah[H + i])
            g, o = np.tanh(ax[2 * H + i] + ah[2 * H + i]), _sigmoid(ax[3 * H + i] + ah[3 * H + i])
            c_next[i] = gf * c[i] + gi * g
            h_next[i] = o * np.tanh(c_next[i])
            kept[i], kept[H + i], kept[2 * H + i], kept[3 * H + i] = gi, gf, g, o


@njit
def _gate_adjoint(kind, H, kept, h, h_next, c, c_next, dh, dc, dax, dah):
    """One row: da of both products from dh and dc, which become those of the step before."""
    for i in range(H):
        if kind == TANH:
            dax[i] = dah[i] = dh[i] * (1 - h_next[i] * h_next[i])
            dh[i] = 0
        elif kind == RELU:
            dax[i] = dah[i] = dh[i] if h_next[i] > 0 else 0
            dh[i] = 0
        elif kind == GRU:
            r, z, n, hn = kept[i], kept[H + i], kept[2 * H + i], kept[3 * H + i]
            da_n = dh[i] * (1 - z) * (1 - n * n)
            dax[i] = dah[i] = da_n * hn * r * (1 - r)
            dax[H + i] = dah[H + i] = dh[i] * (h[i] - n) * z * (1 - z)
            dax[2 * H + i], dah[2 * H + i] = da_n, da_n * r
            dh[i] *= z
        else:
            gi, gf, g, o = kept[i], kept[H + i], kept[2 * H + i], kept[3 * H + i]
            tanh_c = np.tanh(c_next[i])
            dc[i] += dh[i] * o * (1 - tanh_c * tanh_c)
            dax[i] = dah[i] = dc[i] * g * gi * (1 - gi)
            dax[H + i] = dah[H + i] = dc[i] * c[i] * gf * (1 - gf)
            dax[2 * H + i] = dah[2 * H + i] = dc[i] * gi * (1 - g * g)
            dax[3 * H + i] = dah[3 * H + i] = dh[i] * tanh_c * o * (1 - o)
            dc[i] *= gf
            dh[i] = 0


@njit
def _states(kind, x, w_ih, w_hh, b_ih, b_hh):
    """h and c (T+1,B,H), the gates (T,B,4H)."""
    T, B, H = x.shape[0], x.shape[1], w_hh.shape[1]
    h, c = np.zeros((T + 1, B, H), x.dtype), np.zeros((T + 1, B, H), x.dtype)
    kept = np.empty((T, B, 4 * H), x.dtype)
    ax, ah = np.empty_like(b_ih), np.empty_like(b_hh)
    for t in range(T):
        for b in range(B):
            _affine(w_ih, b_ih, x[t, b], ax)
            _affine(w_hh, b_hh, h[t, b], ah)
            _gate(kind, H, ax, ah, h[t, b], c[t, b], c[t + 1, b], kept[t, b], h[t + 1, b])
    return h, c, kept


@njit
def _gradients(kind, x, w_ih, w_hh, b_ih, b_hh, dy):
    """Of the weights and of x."""
    (T, B, _), H = x.shape, w_hh.shape[1]
    h, c, kept = _states(kind, x, w_ih, w_hh, b_ih, b_hh)
    dw_ih, dw_hh, dx = np.zeros_like(w_ih), np.zeros_like(w_hh), np.zeros_like(x)
    db_ih, db_hh = np.zeros_like(b_ih), np.zeros_like(b_hh)
    dh, dc = np.zeros((B, H), x.dtype), np.zeros((B, H), x.dtype)
    dax, dah = np.empty_like(b_ih), np.empty_like(b_hh)
    for t in range(T - 1, -1, -1):
        for b in range(B):
            for i in range(H):
                dh[b, i] += dy[t, b, i]
            state = h[t, b], h[t + 1, b], c[t, b], c[t + 1, b]
            _gate_adjoint(kind, H, kept[t, b], *state, dh[b], dc[b], dax, dah)
            _affine_adjoint(w_ih, x[t, b], dax, dw_ih, db_ih, dx[t, b])
            _affine_adjoint(w_hh, h[t, b], dah, dw_hh, db_hh, dh[b])
    return dw_ih, dw_hh, db_ih, db_hh, dx


def forward(case: Case, data: Inputs):
    return lambda: [_states(KINDS[case.kind], data.x, *data.weights.values())[0][1:]]


def train(case: Case, data: Inputs):
    return lambda: list(_gradients(KINDS[case.kind], data.x, *data.weights.values(), data.dy))
