"""Products whose norms are known (spectral.md section 7), on every function that can tell them."""

import functools
import itertools
import math

import numpy as np
import pytest
import reference
from known import CASES, FUNCTIONS, FUNCTIONS_OF_LONG, LONG, Known, apart, check, henon_steps, known
from numpy.testing import assert_allclose
from products import DTYPES, METHODS, eps_of, orthogonal
from scipy.special import digamma, polygamma

import fastbptt as fb


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_known_norms(function, name, dtype):
    check(known(name, dtype), FUNCTIONS[function](known(name, dtype)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LONG)
def test_known_norms_of_long_products(name, dtype):
    case, T, also = LONG[name]
    one = case(dtype, T)
    for function in ("auto", "from", "to", "values", "sweeps", *also):
        check(one, FUNCTIONS_OF_LONG[function](one))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_known_singular_values(name, dtype):
    case = known(name, dtype)
    T = len(case.chain)
    for t, s in ((T, 0), (T // 2, T // 4), (7, 0)):
        exact, got = case.values(t, s), fb.log_singular_values(case.chain, t, s)
        assert (apart(got, exact) <= case.near(t - s)).all(), (t, s, got - exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["GRU at rest", "GRU at rest, reset before", "logistic map",
                                  "shear"])  # fmt: skip
def test_known_exponents(name, dtype):
    """What a transient adds is less than 20 nats."""
    case = known(name, dtype)
    found, finite = fb.lyapunov_spectrum(case.chain), np.isfinite(case.rates)
    assert_allclose(found.exponents[finite], case.rates[finite], atol=20 / len(case.chain))
    assert np.isneginf(found.exponents[~finite]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_henon_keeps_its_area(dtype):
    J = henon_steps(100_000).astype(dtype)
    for t, s in ((100_000, 0), (70_000, 20_000)):
        both = fb.log_singular_values(fb.MatrixChain(J), t, s)
        area = (t - s) * math.log(float(dtype(0.3)))  # what the chain holds
        assert_allclose(both.sum(), area, atol=4 * eps_of(dtype, t - s, 2) + 1e-14 * t)
        assert both[0] > 0.4 * (t - s)  # the exponent is 0.42
    found = fb.lyapunov_spectrum(fb.MatrixChain(J[:10_000]))
    assert_allclose(found.exponents.sum(), math.log(0.3), atol=eps_of(dtype, 1, 2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gaussian_matrices(dtype):
    """Newman 1986: log ||P'u|| is a sum of independent terms, and no transient comes before."""
    N, T, sigma = 5, 20_000, 0.4
    J = (sigma * np.random.default_rng(3).normal(size=(T, N, N))).astype(dtype)
    chain = fb.MatrixChain(J)
    i = np.arange(1, N + 1)
    rates = math.log(sigma) + (math.log(2) + digamma((N - i + 1) / 2)) / 2
    spread = np.sqrt(polygamma(1, (N - i + 1) / 2) / 4 * T)
    u = np.eye(N, dtype=dtype)[0]
    terms = np.diff(fb.growth_to(chain, cotangent=u).estimate)
    assert abs(terms.sum() - T * rates[0]) < 5 * spread[0]
    assert_allclose(terms.var(), spread[0] ** 2 / T, rtol=0.1)
    assert abs(np.corrcoef(terms[1:], terms[:-1])[0, 1]) < 5 / math.sqrt(T)
    assert (np.abs(fb.log_singular_values(chain) - T * rates) < 5 * spread + 5).all()
    found = fb.lyapunov_spectrum(chain)
    assert (np.abs(found.exponents - rates) < 5 * found.standard_error).all()
    assert_allclose(found.standard_error, spread / T / math.sqrt(7 / 8), rtol=0.6)
    whole = [fb.log_norm(chain, method=method).estimate for method in METHODS]
    whole += [fb.growth_from(chain).estimate[-1], fb.growth_to(chain, probes=2).estimate[-1]]
    assert_allclose(whole, terms.sum(), atol=5)  # one product: what is left is a transient
    lags = fb.growth_map(chain, [100, 1000])
    for lag, row in zip(lags.lags, lags.estimate, strict=True):
        off = 5 * spread[0] / math.sqrt(T) * math.sqrt(1 / T) + 2 / lag
        assert abs(np.nanmean(row) / lag - rates[0]) < off


# ---- how often upper is false, and nets


STREAMED = {
    "isometry": orthogonal(16, np.random.default_rng(4)),
    "rank one": np.outer(*np.random.default_rng(5).normal(size=(2, 16))) / 4,
    "Jordan": 0.9 * np.eye(16) + np.eye(16, k=1),
    "random": np.random.default_rng(6).normal(size=(16, 16)) / 2,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", STREAMED)
def test_upper_is_false_no_more_often_than_delta(name, dtype):
    """Of 1000 starts each, at every state of a curve: four standard deviations."""
    T, seeds, delta = 6, 1000, 0.05
    net = fb.RNN(1, 16, bias=False, dtype=dtype, rng=0)
    net.weight_hh_l0 = STREAMED[name].astype(dtype)
    x = np.zeros((T, 1), dtype)
    if name == "random":  # each step has slopes of its own
        x = np.random.default_rng(7).normal(size=(T, 1)).astype(dtype)
    chain = net.trace(x).chain()
    J = np.stack([chain.matrix(t + 1, t) for t in range(T)]).astype(float)
    ahead = np.append(0, reference.curve_of_log_norms(J))
    back = np.append(0, reference.curve_of_log_norms(J[::-1].transpose(0, 2, 1)))
    false = dict.fromkeys(("from", "to", "window", "stream"), 0)
    for seed in range(seeds):
        options = {"rng": seed, "delta": delta}
        window = fb.growth_window(chain, T, method="sweeps", **options)
        stream = fb.JacobianStream(net, probes=3, rng=seed)
        stream.update(x)
        near = eps_of(dtype, T, 16)
        false["from"] += fb.growth_from(chain, probes=3, **options).upper < ahead - near
        false["to"] += fb.growth_to(chain, probes=3, **options).upper < back - near
        false["window"] += window.upper[0] < ahead[-1] - near
        false["stream"] += stream.result(delta).upper < ahead[-1] - near
    most = seeds * delta + 4 * math.sqrt(seeds * delta * (1 - delta))
    assert all(np.max(count) <= most for count in false.values()), false
    if name == "rank one":  # for which the bound is sharp
        assert min(false["from"][-1], false["to"][-1], false["stream"]) > 10


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("nonlinearity", ["sigmoid", "tanh", "relu"])
def test_feed_forward_depth_100_against_svd(nonlinearity, square, dtype):
    rng = np.random.default_rng(8)
    sizes = np.full(101, 24) if square else rng.integers(16, 33, size=101)
    weights = [
        (rng.normal(size=(m, n)) * np.sqrt(2 / n)).astype(dtype)
        for n, m in itertools.pairwise(sizes)
    ]
    biases = [(0.1 * rng.normal(size=len(w))).astype(dtype) for w in weights]
    x = rng.normal(size=sizes[0]).astype(dtype)
    chain = fb.FeedForward(weights, biases, nonlinearity).trace(x).chain()
    h, J = x.astype(float), []
    for w, bias in zip(weights, biases, strict=True):
        a = w.astype(float) @ h + bias
        h = reference.VALUE[nonlinearity](a)
        J.append(reference.SLOPE[nonlinearity](a)[:, None] * w)

    @functools.cache
    def values(t, s):
        P, nats = np.eye(sizes[s]), 0.0
        for step in J[s:t]:
            P = step @ P
            largest = np.abs(P).max()
            P, nats = P / largest, nats + math.log(largest)
        return nats + np.log(np.linalg.svd(P, compute_uv=False)[:8])

    def nats(t, s):
        pairs = np.broadcast_arrays(t, s)
        some = [values(int(t), int(s))[0] for t, s in zip(*map(np.ravel, pairs), strict=True)]
        return np.reshape(some, pairs[0].shape)

    case = Known(chain, nats, None, None, digits=1e-10 if dtype == np.float64 else 2e-3)
    for name, function in FUNCTIONS.items():
        if square or not name.startswith(("growth_window", "growth_map", "sens")):
            check(case, function(case))
    exact = values(100, 0)
    near = exact > exact[0] - 20  # what NumPy's product holds
    assert near.sum() > 1
    got = fb.log_singular_values(chain)[:8]
    assert_allclose(got[near], exact[near], atol=1e-2 if dtype == np.float32 else 1e-5)
