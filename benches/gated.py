"""GRU and LSTM as NumPy and JAX users write them; `peers.py` has the plain net and the registry.

PyTorch's formulas and order of gates, the input projection ahead of the loop, the weight gradients
of the "expert" behind it as one product each.
"""

from functools import partial
from typing import Any

import numpy as np
from cases import Case, Inputs


def _sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def at_once(x: Any, w: Any) -> Any:
    """x (T,B,n) times w (n,m), as one product: NumPy by itself makes T of them."""
    return (x.reshape(-1, x.shape[2]) @ w).reshape(*x.shape[:2], -1)


def numpy_states(case: Case, data: Inputs) -> tuple[np.ndarray, list[Any]]:
    """h (T+1,B,H), and of each step what its adjoint reads."""
    w_ih, w_hh, b_ih, b_hh = data.weights.values()
    gru, H = case.cell == "gru", case.H
    ax = at_once(data.x, w_ih.T) + (b_ih if gru else b_ih + b_hh)
    h = np.zeros((case.T + 1, case.B, H), data.x.dtype)
    c, kept = h[0], []
    for t in range(case.T):
        a = h[t] @ w_hh.T
        if gru:
            a += b_hh
            r, z = (_sigmoid(ax[t, :, s] + a[:, s]) for s in (slice(H), slice(H, 2 * H)))
            hn = a[:, 2 * H :]
            n = np.tanh(ax[t, :, 2 * H :] + r * hn)
            h[t + 1] = (1 - z) * n + z * h[t]
            kept.append((r, z, n, hn))
        else:
            i, f, g, o = np.split(ax[t] + a, 4, axis=1)
            i, f, g, o, before = _sigmoid(i), _sigmoid(f), np.tanh(g), _sigmoid(o), c
            c = f * c + i * g
            tanh_c = np.tanh(c)
            h[t + 1] = o * tanh_c
            kept.append((i, f, g, o, before, tanh_c))
    return h, kept


def numpy_gradients(case: Case, data: Inputs) -> list[np.ndarray]:
    """Of the weights and of x."""
    w_ih, w_hh, _, _ = data.weights.values()
    h, kept = numpy_states(case, data)
    dh, dc = np.zeros_like(h[0]), np.zeros_like(h[0])
    of_x = np.empty((case.T, case.B, len(w_ih)), data.x.dtype)
    of_h = np.empty_like(of_x)
    for t in range(case.T - 1, -1, -1):
        dh = dh + data.dy[t]
        if case.cell == "gru":
            r, z, n, hn = kept[t]
            da_n = dh * (1 - z) * (1 - n * n)
            rz = da_n * hn * r * (1 - r), dh * (h[t] - n) * z * (1 - z)
            of_x[t] = np.concatenate([*rz, da_n], axis=1)
            of_h[t] = np.concatenate([*rz, da_n * r], axis=1)
            dh = dh * z + of_h[t] @ w_hh
        else:
            i, f, g, o, before, tanh_c = kept[t]
            dc = dc + dh * o * (1 - tanh_c * tanh_c)
            gates = dc * g * i * (1 - i), dc * before * f * (1 - f), dc * i * (1 - g * g)
            of_h[t] = np.concatenate([*gates, dh * tanh_c * o * (1 - o)], axis=1)
            of_x[t] = of_h[t]
            dc, dh = dc * f, of_h[t] @ w_hh
    return _products(case, np, data.x, h[:-1], of_x, of_h, w_ih)


def _products(
    case: Case, xp: Any, x: Any, before: Any, of_x: Any, of_h: Any, w_ih: Any
) -> list[Any]:
    """The weight gradients, one product each, and dx."""
    flat_x, flat_h = (y.reshape(-1, y.shape[2]) for y in (of_x, of_h))
    dw_ih, dw_hh = flat_x.T @ x.reshape(-1, case.I), flat_h.T @ before.reshape(-1, case.H)
    return [dw_ih, dw_hh, flat_x.sum(axis=0), flat_h.sum(axis=0), at_once(of_x, w_ih)]


def _jax_step(case: Case, jax: Any, w_hh: Any, b_hh: Any, now: Any, ax: Any) -> tuple[Any, Any]:
    """The next (h, c), and (h, what the expert's adjoint reads)."""
    jnp, sigmoid = jax.numpy, jax.nn.sigmoid
    h, c = now
    a = h @ w_hh.T
    if case.cell == "gru":
        a = a + b_hh
        H = case.H
        rz = sigmoid(ax[:, : 2 * H] + a[:, : 2 * H])
        r, z, hn = rz[:, :H], rz[:, H:], a[:, 2 * H :]
        n = jnp.tanh(ax[:, 2 * H :] + r * hn)
        after = (1 - z) * n + z * h
        return (after, c), (after, (r, z, n, hn, h))
    i, f, g, o = jnp.split(ax + a, 4, axis=1)
    i, f, g, o = sigmoid(i), sigmoid(f), jnp.tanh(g), sigmoid(o)
    after = f * c + i * g
    tanh_c = jnp.tanh(after)
    return (o * tanh_c, after), (o * tanh_c, (i, f, g, o, c, tanh_c))


def _jax_scan(case: Case, jax: Any, unroll: int, weights: list[Any], x: Any) -> tuple[Any, Any]:
    w_ih, w_hh, b_ih, b_hh = weights
    ax = x @ w_ih.T + (b_ih if case.cell == "gru" else b_ih + b_hh)
    zeros = jax.numpy.zeros((case.B, case.H), x.dtype)
    step = partial(_jax_step, case, jax, w_hh, b_hh)
    return jax.lax.scan(step, (zeros, zeros), ax, unroll=unroll)[1]


def jax_states(case: Case, jax: Any, unroll: int, weights: list[Any], x: Any) -> Any:
    """h[1:]."""
    return _jax_scan(case, jax, unroll, weights, x)[0]


def jax_expert(case: Case, jax: Any, unroll: int, weights: list[Any], x: Any, dy: Any) -> list[Any]:
    """Gradients of the weights and of x by a backward scan written by hand."""
    jnp = jax.numpy
    w_ih, w_hh, _, _ = weights
    h, kept = _jax_scan(case, jax, unroll, weights, x)

    def gru(now: Any, this: Any) -> Any:
        dh, (dy, (r, z, n, hn, h)) = now[0], this
        dh = dh + dy
        da_n = dh * (1 - z) * (1 - n * n)
        rz = da_n * hn * r * (1 - r), dh * (h - n) * z * (1 - z)
        of_h = jnp.concatenate([*rz, da_n * r], axis=1)
        return (dh * z + of_h @ w_hh, now[1]), (jnp.concatenate([*rz, da_n], axis=1), of_h)

    def lstm(now: Any, this: Any) -> Any:
        (dh, dc), (dy, (i, f, g, o, before, tanh_c)) = now, this
        dh = dh + dy
        dc = dc + dh * o * (1 - tanh_c * tanh_c)
        gates = dc * g * i * (1 - i), dc * before * f * (1 - f), dc * i * (1 - g * g)
        da = jnp.concatenate([*gates, dh * tanh_c * o * (1 - o)], axis=1)
        return (da @ w_hh, dc * f), da

    zeros = jnp.zeros_like(h[0])
    step = gru if case.cell == "gru" else lstm
    _, da = jax.lax.scan(step, (zeros, zeros), (dy, kept), reverse=True, unroll=unroll)
    of_x, of_h = da if case.cell == "gru" else (da, da)
    before = jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])
    return _products(case, jnp, x, before, of_x, of_h, w_ih)
