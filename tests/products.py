"""Products whose norms are known, and what all tests of norms share."""

import math

import numpy as np
from tolerances import tolerance

METHODS = ("auto", "block", "lanczos", "explicit")
DTYPES = (np.float32, np.float64)


def orthogonal(N, rng):
    return np.linalg.qr(rng.normal(size=(N, N)))[0]


def rank_one(T, N, rng):
    """J_t = x_t y_t' and log ||P(T,0)||."""
    x, y = rng.normal(size=(2, T, N))
    nats = np.log(np.abs(np.einsum("tn,tn->t", y[1:], x[:-1]))).sum()
    nats += math.log(np.linalg.norm(x[-1])) + math.log(np.linalg.norm(y[0]))
    return np.einsum("ti,tj->tij", x, y), nats


def permuted(T, N, rng):
    """diag(d_t) times a permutation, and all log singular values of the product."""
    J, nats = np.zeros((T, N, N)), np.zeros(N)
    at = np.arange(N)
    for t in range(T):
        order, d = rng.permutation(N), np.exp(2 * rng.normal(size=N))
        J[t, order, np.arange(N)] = d[order]
        at = order[at]
        nats += np.log(d[at])
    return J, np.sort(nats)[::-1]


def eps_of(dtype, T, N):
    """How far rounding moves a log norm, nats."""
    return tolerance(dtype, T, N)[0]
