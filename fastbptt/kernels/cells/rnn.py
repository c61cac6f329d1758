"""The plain recurrent net: h[t+1] = f(a), a = x[t] W_ih' + b_ih + W_hh h[t] + b_hh.

Elman 1990 in PyTorch's notation (torch.nn.RNN).
"""

from typing import NamedTuple

import numpy as np

from ..activations import slope, slope_at_value, value
from ..jit import implements
from . import adjoint, step, tangent


class RNN(NamedTuple):
    """What a forward step reads."""

    w_ih: np.ndarray  # panels of (H,I)
    w_hh: np.ndarray  # panels of (H,H)
    bias: np.ndarray  # (Hp,): b_ih + b_hh, zeros in the padding
    act: NamedTuple


class RNNAdjoint(NamedTuple):
    """What a backward step reads."""

    w_ih: np.ndarray  # panels of W_ih' (I,H)
    w_hh: np.ndarray  # panels of W_hh' (H,H)
    zeros: np.ndarray  # (max(Hp,Ip),)
    act: NamedTuple


@implements(step, RNN)
def _rnn_step(cell, h, t, b0, b1, j0, j1):
    """h[t+1] = f(a)."""
    for b in range(b0, b1):
        for j in range(j0, j1):
            h[t + 1, b, j] = value(cell.act, h[t + 1, b, j])


@implements(adjoint, RNNAdjoint)
def _rnn_adjoint(cell, h, t, da, s, b0, b1, j0, j1):
    """da = dh f'(a)."""
    for b in range(b0, b1):
        for j in range(j0, j1):
            da[s, b, j] *= slope_at_value(cell.act, h[t + 1, b, j])


@implements(tangent, RNN)
def _rnn_tangent(cell, panel, side, slopes, b0, b1, j0, j1):
    """h = f(a) and v <- f'(a) W_hh v: J_t = diag(f'(a_t)) W_hh."""
    for b in range(b0, b1):
        for j in range(j0, j1):
            slopes[j] = slope(cell.act, panel[side, b, 0, j])
        for j in range(j0, j1):
            panel[side, b, 0, j] = value(cell.act, panel[side, b, 0, j])
        for r in range(1, panel.shape[2]):
            for j in range(j0, j1):
                panel[side, b, r, j] *= slopes[j]
