"""Products whose norms are known, and the functions that tell norms: tables for tests."""

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from products import eps_of, orthogonal

import fastbptt as fb

ROUNDED = {"float32": 2e-4, "float64": 1e-6}  # of windows by frames, as in test_windows
SURE = 1e-9  # delta: of the windows below none is ever outside its interval by chance


class Known(NamedTuple):
    chain: fb.Chain
    nats: Any  # (t, s) -> log ||P(t,s)|| of arrays of them
    values: Any  # (t, s) -> all log singular values of one window, falling; None: not known
    rates: Any  # nats a step of all Lyapunov exponents; None: the product has none
    net: Any = None  # and its inputs: what a stream reads
    x: Any = None
    digits: float = 1e-11  # of the formula in float64, nats

    def near(self, steps):
        """How far rounding moves the log norm of as many steps."""
        return 4 * eps_of(self.chain.dtype, steps, self.chain.size(0)) + self.digits


class Found(NamedTuple):
    t: Any
    s: Any
    lower: Any
    estimate: Any
    upper: Any
    bounded: bool = True  # upper is a bound
    off: float = math.inf  # nats by which the estimate may be wrong
    near: float = 0.0  # what more rounding moves


# ---- the cases: a dtype and T -> Known


def isometry(dtype, T=300):
    """a_t Q_t: the sum of log a_t, whatever the directions."""
    rng = np.random.default_rng(0)
    N, a = 12, np.exp(rng.normal(size=T) + math.log(1000))
    J = np.stack([one * orthogonal(N, rng) for one in a]).astype(dtype)
    path = np.append(0, np.cumsum(np.log(a)))
    return Known(
        fb.MatrixChain(J),
        lambda t, s: path[t] - path[s],
        lambda t, s: np.full(N, path[t] - path[s]),
        None,
    )


def turned(dtype, T=100_000, N=4, a=1000.0):
    """a times the same permutation: T log a, and not a digit is rounded."""
    J = np.zeros((N, N), dtype)
    J[np.arange(N), np.arange(N) - 1] = a
    return Known(
        fb.MatrixChain(np.broadcast_to(J, (T, N, N))),
        lambda t, s: (t - s) * math.log(a),
        lambda t, s: np.full(N, (t - s) * math.log(a)),
        np.full(N, math.log(a)),
        digits=1e-12 * T,
    )


def permuted(dtype, T=300, N=12):
    """diag(d_t) times a permutation: sorted sums along N paths; the leader changes."""
    rng = np.random.default_rng(1)
    J = np.zeros((T, N, N), dtype)
    paths, at = np.zeros((T + 1, N)), np.arange(N)
    for t in range(T):
        order, d = rng.permutation(N), np.exp(0.3 * rng.normal(size=N)).astype(dtype)
        J[t, order, np.arange(N)] = d[order]
        at = order[at]
        paths[t + 1] = paths[t] + np.log(d[at].astype(float))
    return Known(
        fb.MatrixChain(J),
        lambda t, s: (paths[t] - paths[s]).max(axis=-1),
        lambda t, s: np.sort(paths[t] - paths[s])[::-1],
        None,
    )


def rank_one(dtype, T=200, N=11, lost=None):
    """x_t y_t' of dyadic numbers, which no dtype rounds; zero over step `lost`, if any."""
    x, y = (2 * np.random.default_rng(2).integers(-4, 4, size=(2, T, N)) + 1) / 8
    if lost is not None:
        x[lost, N // 2 :] = y[lost + 1, : N // 2] = 0
    with np.errstate(divide="ignore"):  # a sum of odd numbers of odd numbers is not zero
        inner = np.log(np.abs(np.einsum("tn,tn->t", y[1:], x[:-1])))
    zeros = np.append(0, np.cumsum(inner == -np.inf))
    terms = np.where(inner == -np.inf, 0, inner)  # a sum of 1e6 in float64 is 1e-6 off
    inner = np.append(0, np.cumsum(terms, dtype=np.longdouble))
    ends = np.log(np.linalg.norm(x, axis=1)), np.log(np.linalg.norm(y, axis=1))

    def nats(t, s):
        last = np.maximum(t - 1, s)  # of no step there is no last one
        first = np.minimum(s, T - 1)
        last = np.minimum(last, T - 1)
        found = ends[0][last] + ends[1][first] + inner[last] - inner[first]
        found = np.where(zeros[last] > zeros[first], -np.inf, found)
        return np.where(t == s, 0.0, found).astype(float)

    J = np.einsum("ti,tj->tij", x, y).astype(dtype)
    return Known(
        fb.MatrixChain(J),
        nats,
        lambda t, s: np.r_[nats(t, s), np.full(N - 1, -np.inf)],
        None,
        digits=1e-12 * T,
    )


def at_rest(dtype, T=200, reset_after=True, doublings=3):
    """A GRU with zero states and gates: J = I/2 + W_hn/4, of eigenvalues that are known."""
    H = np.array([[1.0]])
    for _ in range(doublings):
        H = np.block([[H, H], [H, -H]])  # Hadamard's: H H' = N
    N = len(H)
    w = np.array([3, -1, 2.5, 2, -6, 1, 0.5, 0])[:N]
    net = fb.GRU(1, N, bias=False, dtype=dtype, reset_after=reset_after)
    w_hn = (H * w) @ H.T / N  # dyadic
    net.weight_hh_l0 = np.concatenate([np.zeros((2 * N, N)), w_hn]).astype(dtype)
    x = np.zeros((T, 1), dtype)
    rates = np.sort(np.log(np.abs(0.5 + w / 4)))[::-1]
    return Known(
        net.trace(x).chain(),
        lambda t, s: (t - s) * rates[0],
        lambda t, s: (t - s) * rates,
        rates,
        net,
        x,
        digits=1e-11 + 1e-13 * T,
    )


def logistic(dtype, T=2000):
    """x -> 4x(1 - x): T log 2 + log[x_T(1-x_T) / (x_0(1-x_0))] / 2."""
    x = np.empty(T + 1)
    x[0] = 0.3
    for t in range(T):
        x[t + 1] = 4 * x[t] * (1 - x[t])
    ends = np.log(x * (1 - x)) / 2

    def nats(t, s):
        return (t - s) * math.log(2) + ends[t] - ends[s]

    J = (4 - 8 * x[:-1]).astype(dtype)[:, None, None]
    # a rounded x near 1 is off by eps/(1 - x) in 1 - x, and the formula with it
    digits = 1e-11 + np.finfo(float).eps * (1 / (1 - x)).sum()
    rates = np.array([math.log(2)])
    return Known(fb.MatrixChain(J), nats, lambda t, s: np.array([nats(t, s)]), rates, digits=digits)


def henon_steps(T):
    x, y, J = 0.1, 0.1, np.zeros((T, 2, 2))
    for t in range(T):
        J[t] = [[-2.8 * x, 1.0], [0.3, 0.0]]
        x, y = 1 - 1.4 * x * x + y, 0.3 * x
    return J


def henon(dtype, T=160):
    """log sigma_1 + log sigma_2 = n log 0.3; sigma_2 from products of inverses."""
    J = henon_steps(T).astype(dtype)
    inverse = np.linalg.inv(J.astype(float))
    table = np.full((T + 1, T + 1), np.nan)  # log ||P(t,s)^-1||
    P, scale = np.tile(np.eye(2), (T + 1, 1, 1)), np.zeros(T + 1)
    for s in range(T, -1, -1):  # P[t] = J_{s+1}^-1 .. J_t^-1, put together from the left
        P[s], scale[s] = np.eye(2), 0
        if s < T:
            for_all = slice(s + 1, T + 1)
            P[for_all] = inverse[s] @ P[for_all]
            # P(t,s)^-1 = J_{s+1}^-1 P(t,s+1)^-1
            largest = np.abs(P[for_all]).max(axis=(1, 2))
            P[for_all] /= largest[:, None, None]
            scale[for_all] += np.log(largest)
        table[s:, s] = scale[s:] + np.log(np.linalg.norm(P[s:], 2, axis=(1, 2)))
    area = math.log(0.3)

    def values(t, s):
        return np.array([(t - s) * area + table[t, s], -table[t, s]])

    return Known(fb.MatrixChain(J), lambda t, s: (t - s) * area + table[t, s], values, None)


def shear(dtype, T=1000):
    """A Jordan block of eigenvalue 1: log ||J^n|| = asinh(n/2); it has no gap."""
    J = np.array([[1, 1], [0, 1]], dtype)
    return Known(
        fb.MatrixChain(np.broadcast_to(J, (T, 2, 2))),
        lambda t, s: np.arcsinh((t - s) / 2),
        lambda t, s: np.arcsinh((t - s) / 2) * np.array([1, -1]),
        np.zeros(2),
    )


CASES = {
    "isometry": isometry,
    "permuted diagonals": permuted,
    "rank one": rank_one,
    "rank one and zero": functools.partial(rank_one, lost=140),
    "GRU at rest": at_rest,
    "GRU at rest, reset before": functools.partial(at_rest, reset_after=False),
    "logistic map": logistic,
    "Henon map": henon,
    "shear": shear,
}


@functools.lru_cache(maxsize=4)
def known(name, dtype):
    return CASES[name](dtype)


# ---- the functions: a case -> (t, s, lower, estimate, upper, upper is a bound, promised error)


def _norm(method, **options):
    def found(case):
        T = len(case.chain)
        for t, s in ((T, 0), (T, T // 3), (T // 2, T // 4)):
            got = fb.log_norm(case.chain, t, s, method=method, delta=SURE, **options)
            assert got.converged or method == "block", (t, s, got)
            off = 1e-3 if got.converged else math.inf
            yield Found(t, s, got.lower, got.estimate, got.upper, True, off)

    return found


def _curve(function, *where, probes=None, **options):
    def found(case):
        N = case.chain.size(0)
        k = N if probes is None else probes
        got = function(case.chain, *where, probes=k, delta=SURE, **options)
        assert got.delta == (0 if k >= N else SURE)
        off = 0 if k >= N else math.inf
        yield Found(got.t, got.s, got.lower, got.estimate, got.upper, True, off)

    return found


def _windows(method, off, probes=8, long=False):
    def found(case):
        T = len(case.chain)
        for lag in (T - 9,) if long else (T // 4, T - 9):
            got = fb.growth_window(case.chain, lag, method=method, probes=probes)
            solved = not math.isnan(got.delta)
            bounds = got.lower, got.estimate, got.upper
            yield Found(
                got.t, got.s, *bounds, solved, off, 0 if solved else ROUNDED[case.chain.dtype.name]
            )

    return found


def _map(case, shares=(100, 50, 8, 2, 1), **options):
    T = len(case.chain)
    lags = [T // share for share in shares]
    got = fb.growth_map(case.chain, lags, **options)
    for i, lag in enumerate(lags):
        rows = (y[i, lag:] for y in (got.lower, got.estimate, got.upper))
        t = np.arange(lag, T + 1)
        solved = not math.isnan(got.delta[i])
        yield Found(t, t - lag, *rows, solved, 0.1, 0 if solved else ROUNDED[case.chain.dtype.name])


def _values(case):
    T = len(case.chain)
    for t, s in ((T, 0), (T, T // 3), (T // 2, T // 4)):
        first = fb.log_singular_values(case.chain, t, s)[0]
        yield Found(t, s, first, first, first, off=0)


def _sensitivity(case):
    T = len(case.chain)
    for t, s in ((T // 2, T // 4), (T, 3 * T // 4)):
        one = fb.sensitivity(case.chain, t, s).log_norm
        yield Found(t, s, one, one, one, off=1e-6)


def _stream(probes):
    def found(case):
        if case.net is None:
            return
        stream = fb.JacobianStream(case.net, probes=probes)
        for chunk in np.array_split(case.x, 3):
            stream.update(chunk)
        got = stream.result(SURE)
        off = 0 if probes >= case.chain.size(0) else math.inf
        yield Found(stream.steps, 0, got.lower, got.estimate, got.upper, off=off)

    return found


FUNCTIONS = {
    "log_norm, auto": _norm("auto"),
    "log_norm, explicit": _norm("explicit"),
    "log_norm, lanczos": _norm("lanczos"),
    "log_norm, block": _norm("block", probes=3, max_sweeps=8),
    "growth_from": _curve(fb.growth_from),
    "growth_from, three probes": _curve(fb.growth_from, probes=3),
    "growth_to": _curve(fb.growth_to),
    "growth_to, three probes": _curve(fb.growth_to, probes=3),
    "growth_window, auto": _windows("auto", 0.1),
    "growth_window, sweeps": _windows("sweeps", 0.01),
    "growth_window, frames": _windows("frames", math.inf),
    "growth_window, whole frames": _windows("frames", 0.03, probes=12),
    "growth_map": _map,
    "log_singular_values": _values,
    "sensitivity": _sensitivity,
    "JacobianStream": _stream(8),
    "JacobianStream, three probes": _stream(3),
}


def apart(one, other):
    """|one - other|, of two -inf 0."""
    with np.errstate(invalid="ignore"):
        return np.where(np.equal(one, other), 0.0, np.abs(np.subtract(one, other)))


def check(case, found):
    for t, s, lower, estimate, upper, bounded, off, more in found:
        exact, near = case.nats(t, s), case.near(np.subtract(t, s)) + more
        assert not np.isnan(lower).any()
        assert (lower <= exact + near).all(), np.max(lower - exact)
        assert (lower <= estimate + near).all()
        assert (estimate <= upper + near).all()
        if bounded:
            assert (upper >= exact - near).all(), np.max(exact - upper)
        if off < math.inf:
            error = apart(estimate, exact)
            assert (error <= off + near).all(), error.max()


# a case, T, and what of it takes no time
LONG = {
    "a thousand": (turned, 100_000, ("map",)),
    "three halves": (functools.partial(turned, N=2, a=1.5), 1_000_000, ()),
    "GRU at rest": (functools.partial(at_rest, doublings=1), 20_000, ("stream",)),
    "rank one": (functools.partial(rank_one, N=3), 100_000, ("lanczos",)),
    "logistic map": (logistic, 1_000_000, ()),
}
FUNCTIONS_OF_LONG = {
    "auto": FUNCTIONS["log_norm, auto"],
    "lanczos": FUNCTIONS["log_norm, lanczos"],
    "from": FUNCTIONS["growth_from"],
    "to": FUNCTIONS["growth_to"],
    "values": FUNCTIONS["log_singular_values"],
    "stream": FUNCTIONS["JacobianStream"],
    "sweeps": _windows("sweeps", 0.01, long=True),
    "map": functools.partial(_map, shares=(2,), method="frames"),
}
