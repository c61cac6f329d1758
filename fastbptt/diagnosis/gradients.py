"""The gradient of a next-step loss, and its norm by lag, from BPTT at a few places."""

import itertools
from typing import Any, NamedTuple

import numpy as np

from ..network import Network
from .sources import OneHot

_SEGMENT = 16  # steps BPTT goes back before it is rescaled, fewer where it leaves the range
# Of the nats between 1 and the smallest normal number, those a norm may change by: what is left
# holds the elements that are smaller than the norm.
_RANGE = 0.7


class GradientByLag(NamedTuple):
    """log ||dL_t/dh_{t-lag}|| - log ||dL_t/dh_t||, nats."""

    lags: np.ndarray  # (L,)
    # (L, places·B): 0 at lag 0, -inf where the gradient is zero, NaN where dL_t/dh_t is
    log_norms: np.ndarray

    def median(self, rows: np.ndarray | None = None) -> np.ndarray:
        """(L,) over the places of all batch rows, or of those that `rows`, (B,) of bool, names.

        Of those whose loss has a gradient; NaN if none has.
        """
        known = ~np.isnan(self.log_norms[0])
        if rows is not None:
            known &= np.tile(rows, known.size // rows.size)
        if not known.any():
            return np.full(self.lags.size, np.nan)
        return np.median(self.log_norms[:, known], axis=1)


def joined(state: Any) -> np.ndarray:
    """A net's state, (L,B,H) or an LSTM's (h, c), as one array (L,B,H) or (2·L,B,H)."""
    return np.concatenate(state) if isinstance(state, tuple) else state


def parted(net: Network, state: np.ndarray) -> Any:
    """The inverse of `joined`."""
    return tuple(np.split(state, 2)) if net.weights.design.has_c else state


def lag_grid(longest: int) -> np.ndarray:
    """0, 1, 2, ..., 16, 32, 48, ..., and `longest`."""
    return np.unique([*range(min(_SEGMENT, longest) + 1), *range(0, longest, _SEGMENT), longest])


def loss_gradient(x: Any, t: int, h: np.ndarray, readout: np.ndarray) -> np.ndarray:
    """dL/dh_t (B,H) of predicting x[t] from h (B,H) through `readout` (I,H).

    Cross-entropy of a softmax if x is one-hot, half the squared error if not.
    """
    target = x[t : t + 1].reshape(-1, x.shape[-1])  # (B,I)
    prediction = h @ readout.T
    if isinstance(x, OneHot):
        prediction = np.exp(prediction - prediction.max(axis=1, keepdims=True))
        prediction /= prediction.sum(axis=1, keepdims=True)
    return (prediction - target) @ readout


def gradient_by_lag(
    net: Network, windows: np.ndarray, start: np.ndarray, d_state: np.ndarray
) -> GradientByLag:
    """Back from dL/d state_t = d_state through windows (L,P,I), which begin at state `start`.

    States are `joined`, (.,P,H); norms are over all of a place's state.
    """
    L, P = len(windows), d_state.shape[1]
    lags = lag_grid(L)
    cuts = (L - lags)[::-1].tolist()  # 0 .. L
    states = {0: start}
    for s0, s1 in itertools.pairwise(cuts):
        states[s1] = joined(net(windows[s0:s1], parted(net, states[s0]))[1])
    log_norms = np.zeros((lags.size, P))
    nats = np.zeros(P)
    most = -_RANGE * np.log(np.finfo(net.dtype).tiny)

    def rescaled(gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        norm = np.linalg.norm(gradient.astype(np.float64).swapaxes(0, 1).reshape(P, -1), axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = gradient / np.where(norm > 0, norm, 1)[:, None]
            return scaled.astype(net.dtype), np.log(norm)

    def back(
        s0: int, s1: int, begin: np.ndarray, d_state: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """dL/d state s0 from d_state, that of s1, both of norm 1, and the nats between them."""
        trace = net.trace(windows[s0:s1], parted(net, begin))
        gradient = trace.backward(d_state=parted(net, d_state), input_gradient=False).state
        d_begin, growth = rescaled(joined(gradient))
        if s1 - s0 == 1 or (np.abs(growth) <= most).all():
            return d_begin, growth
        middle = (s0 + s1) // 2
        state = joined(net(windows[s0:middle], parted(net, begin))[1])
        d_middle, late = back(middle, s1, state, d_state)
        d_begin, early = back(s0, middle, begin, d_middle)
        return d_begin, early + late

    d_state, begun = rescaled(d_state.astype(net.dtype))
    for i in range(1, lags.size):
        s0, s1 = L - lags[i], L - lags[i - 1]
        d_state, growth = back(int(s0), int(s1), states[s0], d_state)
        nats = nats + growth
        log_norms[i] = nats
    log_norms[:, begun == -np.inf] = np.nan
    return GradientByLag(lags, log_norms)


def lag_of_factor(
    by_lag: GradientByLag, factor: float, rows: np.ndarray | None = None
) -> int | None:
    """The first lag whose `median` is beyond 1/factor .. factor; None if none is."""
    median = by_lag.median(rows)
    beyond = np.flatnonzero(np.abs(median) >= np.log(factor))
    if not beyond.size:
        return None
    i = beyond[0]
    before, after = np.abs(median[i - 1]), np.abs(median[i])
    share = (np.log(factor) - before) / (after - before) if np.isfinite(after) else 1.0
    return int(np.ceil(by_lag.lags[i - 1] + share * (by_lag.lags[i] - by_lag.lags[i - 1])))
