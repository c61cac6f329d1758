"""The gradient of a next-step loss, and its norm by lag, from BPTT at a few places."""

from typing import Any, NamedTuple

import numpy as np

from ..networks import RNN
from .sources import OneHot

_SEGMENT = 16  # steps BPTT goes back before it is rescaled: float32 holds 80 nats


class GradientByLag(NamedTuple):
    """log ||dL_t/dh_{t-lag}|| - log ||dL_t/dh_t||, nats."""

    lags: np.ndarray  # (L,)
    log_norms: np.ndarray  # (L, places): 0 at lag 0, -inf where the gradient is zero


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
    net: RNN, windows: np.ndarray, start: np.ndarray, d_state: np.ndarray
) -> GradientByLag:
    """Back from dL/dh_t = d_state (P,H) through windows (L,P,I), which begin at start (P,H)."""
    lags = lag_grid(len(windows))
    states = np.concatenate([start[None], net(windows, start[None])[0]])  # (L+1,P,H)
    d_state = d_state.astype(net.dtype)
    log_norms = np.zeros((lags.size, d_state.shape[0]))
    nats = np.zeros(d_state.shape[0])

    def rescaled(gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        norm = np.linalg.norm(gradient.astype(np.float64), axis=1)
        with np.errstate(divide="ignore"):
            return (gradient / np.where(norm > 0, norm, 1)[:, None]).astype(net.dtype), np.log(norm)

    d_state, _ = rescaled(d_state)
    L = len(windows)
    for i in range(1, lags.size):
        s0, s1 = L - lags[i], L - lags[i - 1]
        trace = net.trace(windows[s0:s1], states[s0][None])
        d_state, growth = rescaled(trace.backward(d_state=d_state[None]).state[0])
        nats = nats + growth
        log_norms[i] = nats
    return GradientByLag(lags, log_norms)


def lag_of_factor(by_lag: GradientByLag, factor: float) -> int | None:
    """The first lag whose median over places is beyond 1/factor .. factor; None if none is."""
    median = np.median(by_lag.log_norms, axis=1)
    beyond = np.flatnonzero(np.abs(median) >= np.log(factor))
    if not beyond.size:
        return None
    i = beyond[0]
    before, after = np.abs(median[i - 1]), np.abs(median[i])
    share = (np.log(factor) - before) / (after - before) if np.isfinite(after) else 1.0
    return int(np.ceil(by_lag.lags[i - 1] + share * (by_lag.lags[i] - by_lag.lags[i - 1])))
