"""Norms of products and their intervals: against explicit products and closed forms."""

import itertools
import math

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from products import DTYPES, METHODS, eps_of, orthogonal, permuted, rank_one
from strategies import dtypes

import fastbptt as fb
from fastbptt.kernels import frames
from fastbptt.spectral.norm import room_of


def log_norm_in_many_digits(J):
    """log ||J_T ... J_1|| of given floats, whatever a product in float64 would lose."""
    import mpmath

    with mpmath.workdps(400):
        P = mpmath.eye(J.shape[1])
        for step in J:
            P = mpmath.matrix(step.tolist()) * P
        return float(mpmath.log(max(mpmath.svd_r(P, compute_uv=False))))


@given(
    st.integers(1, 20), st.integers(0, 30), dtypes(), st.integers(0, 2**32 - 1),
    st.sampled_from([0.3, 1.0, 5.0]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_every_method_against_the_explicit_product(N, T, dtype, seed, scale):
    rng = np.random.default_rng(seed)
    J = (scale * rng.normal(size=(T, N, N)) / np.sqrt(N)).astype(dtype)
    chain = fb.MatrixChain(J)
    t = int(rng.integers(0, T + 1))
    s = int(rng.integers(0, t + 1))
    exact = reference.log_norm_of_product(J[s:t].astype(float))
    for method in METHODS:
        got = fb.log_norm(chain, t, s, method=method, delta=1e-9, max_sweeps=60)
        near = eps_of(dtype, t - s, N) * max(1.0, got.condition)
        assert got.lower <= exact + near
        assert got.upper >= exact - near
        assert got.lower <= got.estimate <= got.upper
        if got.converged:
            assert abs(got.estimate - exact) <= 1e-3 + near
        if method == "explicit":
            assert got.upper == got.lower
    # the vectors are those of the norm
    P = chain.matrix(t, s).astype(float)
    got = fb.log_norm(chain, t, s, method="lanczos", tol=1e-7, delta=1e-9, max_sweeps=200)
    assert_allclose(np.linalg.norm(got.u), 1, atol=1e-6)
    assert_allclose(got.u @ P @ got.v, math.exp(exact), rtol=1e-3 + 10 * near)


@pytest.mark.parametrize(
    ("N", "steps", "method"),
    [
        (8, 50, "explicit"), (9, 32, "explicit"), (9, 33, "lanczos"), (64, 9, "explicit"),
        (64, 10, "lanczos"), (200, 1, "explicit"), (201, 1, "lanczos"),
    ],
)  # fmt: skip
def test_auto_takes_the_product_where_it_is_short(N, steps, method):
    chain = fb.MatrixChain(np.broadcast_to(2 * np.eye(N), (steps, N, N)))
    got = fb.log_norm(chain)
    assert got.method == method
    assert_allclose(got.estimate, steps * math.log(2))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_isometries_of_any_size(method, dtype):
    rng = np.random.default_rng(0)
    T, N, a = 2000, 24, 1000.0
    J = np.stack([a * orthogonal(N, rng) for _ in range(T)]).astype(dtype)
    got = fb.log_norm(fb.MatrixChain(J), method=method, max_sweeps=9)
    assert_allclose(got.lower, T * math.log(a), atol=eps_of(dtype, T, N) * 4)
    if method in ("lanczos", "explicit"):
        assert got.converged
        assert got.half_sweeps <= 2
    assert got.upper >= got.lower


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_leading_directions_that_change_on_the_way(method, dtype):
    """Singular vectors are unit vectors; those that lead on the way hide them in rounding."""
    for seed in range(24, 30):
        J, nats = permuted(600, 24, np.random.default_rng(seed))
        near = 600 * np.finfo(dtype).eps * 16
        for most in (2, 64):
            got = fb.log_norm(fb.MatrixChain(J.astype(dtype)), method=method, max_sweeps=most)
            assert got.lower - near <= nats[0] <= got.upper + near
            assert abs(got.estimate - nats[0]) <= 1e-3 + near


@pytest.mark.parametrize("method", METHODS)
def test_what_is_lost_in_rounding_is_said(method):
    """The same seen along other axes: a rounded step weighs more than all the product."""
    told = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        J, turn = permuted(250, 6, rng)[0], orthogonal(6, rng)
        J = turn @ J @ turn.T
        exact = log_norm_in_many_digits(J)
        got = fb.log_norm(fb.MatrixChain(J), method=method)
        assert got.lower <= exact + 1e-3  # tol: less is not told
        assert got.upper >= exact - 1e-3
        if got.rounding > 0.1:
            told += 1
            assert not got.converged
            assert got.lower == -math.inf
            assert "lost in rounding" in str(got)
        elif got.converged:
            assert abs(got.estimate - exact) < 1e-3
    assert told


def test_what_is_exact_has_no_risk():
    """As many probes as the state has numbers, or a Krylov space that has been used up."""
    rng = np.random.default_rng(36)
    chain = fb.MatrixChain(rng.normal(size=(5, 9, 9)))
    for method, probes, delta in (
        ("block", 9, 0.0), ("block", 3, 0.05), ("lanczos", 1, 0.05), ("explicit", 1, 0.0)
    ):  # fmt: skip
        got = fb.log_norm(chain, method=method, probes=probes)
        assert got.delta == delta
        assert ("exact" in str(got)) == (delta == 0)
    assert fb.log_norm(fb.MatrixChain(np.stack([np.eye(9)] * 5)), method="lanczos").delta == 0


@pytest.mark.parametrize("method", ["block", "lanczos"])
def test_the_product_itself_is_one_half_sweep_more(method):
    chain = fb.MatrixChain(permuted(600, 24, np.random.default_rng(24))[0])
    for most in (1, 2, 5):
        # what rounding does, 6e-4 nats or more by the registers' width, is more than this
        got = fb.log_norm(chain, tol=1e-6, method=method, max_sweeps=most)
        assert got.method == "explicit"
        assert got.half_sweeps <= most + 1


def test_ranges_beyond_every_float():
    J = np.stack([math.exp(100.0) * np.eye(3), math.exp(-99.0) * np.eye(3)] * 3)
    up = np.repeat(J[:1], 10_000, axis=0)
    assert_allclose(fb.log_norm(fb.MatrixChain(up)).estimate, 1e6, rtol=1e-12)
    assert_allclose(fb.log_norm(fb.MatrixChain(1 / np.where(up, up, 1) * np.eye(3))).estimate, -1e6)
    assert_allclose(fb.log_norm(fb.MatrixChain(J)).estimate, 3.0, rtol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_rank_one_zero_and_orthogonal_products(method):
    rng = np.random.default_rng(1)
    J, nats = rank_one(50, 30, rng)
    got = fb.log_norm(fb.MatrixChain(J), method=method, max_sweeps=8)
    assert_allclose(got.estimate, nats, rtol=1e-10)
    assert got.lower - 1e-9 <= nats <= got.upper + 1e-9
    if method in ("lanczos", "explicit"):
        assert got.converged
    J[20:22] = 0
    J[20, 3, 4] = J[21, 7, 8] = 1.0  # e_3 e_4' after e_7 e_8': the product is exactly zero
    zero = fb.log_norm(fb.MatrixChain(J), method=method)
    assert zero.lower == zero.estimate == zero.upper == -math.inf
    assert (zero.condition, zero.rounding, zero.delta) == (math.inf, 0, 0)


def test_a_nan_stays_one():
    J = np.stack([np.eye(20)] * 5)
    J[3, 0, 0] = np.nan
    for method in METHODS:
        got = fb.log_norm(fb.MatrixChain(J), method=method)
        assert math.isnan(got.lower)
        assert math.isnan(got.upper)
        assert not got.converged
    chain = fb.MatrixChain(J)
    for curve in (fb.growth_from(chain), fb.growth_to(chain, cotangent=np.ones(20))):
        assert len(curve.t) == len(curve.lower) == len(curve.upper) == 6
    assert np.isnan(fb.growth_from(chain).estimate).tolist() == [False] * 4 + [True] * 2
    assert np.isnan(fb.growth_to(chain).estimate).tolist() == [False] * 2 + [True] * 4
    for method in ("auto", "frames", "sweeps"):
        found = fb.growth_window(chain, 2, method=method).estimate
        assert np.isnan(found).tolist() == [False, False, True, True]
    assert np.isnan(fb.lyapunov_spectrum(chain).exponents).all()
    assert np.isnan(fb.log_singular_values(chain)).all()


def test_exponents_of_a_chain_with_a_nan_in_it():
    J = np.random.default_rng(0).normal(size=(200, 8, 8))
    J[101] = np.nan  # after many stretches, before many
    found = fb.lyapunov_spectrum(fb.MatrixChain(J))
    for y in (found.exponents, found.standard_error, found.kaplan_yorke, found.entropy_rate):
        assert np.isnan(y).all()
    assert found.steps == 200
    assert np.isfinite(found.history[:-1]).all()
    net = fb.RNN(2, 4, rng=0)
    x = np.random.default_rng(1).normal(size=(3000, 2)).astype(np.float32)
    x[2000] = np.nan
    assert np.isnan(fb.lyapunov_spectrum(net.trace(x).chain()).exponents).all()
    stream = fb.JacobianStream(net, probes=2)
    stream.update(x)
    assert math.isnan(fb.lyapunov_spectrum(stream).entropy_rate)


@pytest.mark.parametrize("diagonal", [[0.25, 4.0], [0.0, 4.0], [0.0, 1.0, 4.0], [1e-3, 0.5, 1.0]])
def test_growth_that_rises_by_more_than_float64_reaches(diagonal):
    """Rows of zeros but for one: what is 0 has no exponent, however large the other's."""
    T = 1000
    chain = fb.MatrixChain(np.stack([np.diag(diagonal)] * T))
    with np.errstate(divide="ignore"):
        nats = T * np.log(np.sort(diagonal)[::-1])
    assert_allclose(fb.log_singular_values(chain), nats, rtol=1e-12, atol=1e-9)
    for method in METHODS:
        got = fb.log_norm(chain, method=method, probes=len(diagonal))
        assert_allclose([got.lower, got.estimate], nats[0], atol=1e-3)
    curve = fb.growth_from(chain)
    assert_allclose(curve.lower, np.arange(T + 1) * nats[0] / T, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", [0, 1, 1000, 1022, 1023, 1024, 1025, 1026, 1100, 2047, 5000, 10**9])
def test_factors_of_any_two_sizes(n):
    R, row = np.eye(2), np.empty(2)
    for sizes in ([0, n], [n, 0], [-n, 0]):
        U, e = np.eye(2), np.array(sizes)
        frames.multiply_factor(R, U, e, row)
        assert (0.5 * np.eye(2) == U).all()
        assert e.tolist() == [one + 1 for one in sizes]
        frames.multiply_factor(np.array([[1.0, 1.0], [0.0, 0.0]]), U, e, row)
        assert np.isfinite(U).all()
        assert (U[1] == 0).all()
        assert e[1] == frames.EMPTY


def test_a_product_that_loses_its_rank():
    J, nats = rank_one(200, 6, np.random.default_rng(23))
    chain = fb.MatrixChain(J)
    assert_allclose(fb.log_singular_values(chain)[0], nats, rtol=1e-9)
    assert (fb.log_singular_values(chain)[1:] == -np.inf).all()
    spectrum = fb.lyapunov_spectrum(chain)
    assert (spectrum.exponents[1:] == -np.inf).all()
    assert abs(spectrum.exponents[0] - nats / 200) < 0.2
    exact = [reference.log_norm_of_product(J[s : s + 3]) for s in range(198)]
    for method in ("auto", "frames", "sweeps"):
        assert_allclose(fb.growth_window(chain, 3, method=method).estimate, exact, atol=1e-3)
    J[50] = 0
    assert (fb.growth_from(chain).estimate[51:] == -np.inf).all()
    for method in ("auto", "frames", "sweeps"):
        found = fb.growth_window(chain, 3, method=method).estimate
        assert (found[48:51] == -np.inf).all()
        assert_allclose(np.delete(found, [48, 49, 50]), np.delete(exact, [48, 49, 50]), atol=1e-3)


def test_entries_at_the_end_of_the_range_end():
    got = fb.log_norm(fb.MatrixChain(np.full((2, 20, 20), 3e307)), method="lanczos")
    assert math.isnan(got.upper) or got.upper >= got.lower


def cases_of_coverage():
    rng = np.random.default_rng(2)
    N = 20
    jordan = np.eye(N) + 0.5 * np.eye(N, k=1)
    return {
        "isometry": np.stack([orthogonal(N, rng) for _ in range(3)]),
        "rank one": rank_one(3, N, rng)[0],
        "jordan": np.stack([jordan] * 6),
        "random": rng.normal(size=(2, N, N)),
    }


@pytest.mark.parametrize(("method", "sweeps"), [("block", 1), ("block", 2), ("lanczos", 1),
                                                ("lanczos", 2), ("lanczos", 5)])  # fmt: skip
@pytest.mark.parametrize("name", cases_of_coverage())
def test_upper_is_false_no_more_often_than_delta(method, sweeps, name):
    J = cases_of_coverage()[name]
    chain, exact = fb.MatrixChain(J), reference.log_norm_of_product(J)
    false = sum(
        fb.log_norm(
            chain, method=method, max_sweeps=sweeps, delta=0.05, tol=0, probes=3, rng=seed
        ).upper
        < exact - 1e-9
        for seed in range(1000)
    )
    assert false <= 50 + 4 * math.sqrt(1000 * 0.05 * 0.95)  # four standard deviations


def test_the_margin_falls_with_every_sweep():
    rng = np.random.default_rng(3)
    chain = fb.MatrixChain(rng.normal(size=(4, 40, 40)))
    widths = []
    for sweeps in (1, 2, 4, 8, 16):
        got = fb.log_norm(chain, method="lanczos", max_sweeps=sweeps, tol=0)
        widths.append(got.upper - got.lower)
    assert all(a > b for a, b in itertools.pairwise(widths))
    assert widths[-1] < 0.01


def test_forward_and_reverse_vectors_agree_everywhere():
    """f + b + log|u·v| is the same at every state (spectral.md section 5)."""
    rng = np.random.default_rng(4)
    J = rng.normal(size=(60, 12, 12)) / 3
    chain = fb.MatrixChain(J)
    got = fb.log_norm(chain, tol=1e-9)
    v, f, constants = got.v.copy(), 0.0, []
    back = [got.u.copy()]
    for step in J[::-1]:
        back.append(step.T @ back[-1])
    for step, u in zip([np.eye(12), *J], back[::-1], strict=True):
        v = step @ v
        constants.append(math.log(abs(u @ v)) + f)
    assert_allclose(constants, got.estimate, atol=1e-9)
    from fastbptt.spectral.norm import along

    states = np.arange(61)
    ahead, fs = along(chain, states, got.v)
    behind, bs = along(chain, states[::-1], got.u)
    dots = np.abs(np.einsum("tn,tn->t", ahead, behind[::-1]))
    assert_allclose(fs + bs[::-1] + np.log(dots), got.estimate, atol=1e-9)
    assert_allclose(got.condition, (1 / dots).max(), rtol=1e-6)


def test_the_mean_shortfall_is_the_formulas():
    """E[log ||P V|| - log sigma_1] with a gap is (psi(k/2) - psi(N/2))/2: 64, 8 gives -1.10."""
    rng = np.random.default_rng(5)
    N, T = 64, 4
    J = rank_one(T, N, rng)[0]
    exact = reference.log_norm_of_product(J)
    for k, mean, spread in ((1, -2.71, 1.11), (4, -1.51, 0.39), (8, -1.10, 0.25)):
        short = [
            fb.log_norm(
                fb.MatrixChain(J), method="block", max_sweeps=1, probes=k, rng=seed, tol=0
            ).lower
            - exact
            for seed in range(400)
        ]
        assert abs(np.mean(short) - mean) < 4 * spread / 20 + 0.006
        assert abs(np.std(short) - spread) < 0.2 * spread


def test_henon_keeps_its_area_on_every_window():
    """log sigma_1 + log sigma_2 = n log 0.3 for the Henon map."""
    x, y, J = 0.1, 0.1, []
    for _ in range(400):
        J.append([[-2.8 * x, 1.0], [0.3, 0.0]])
        x, y = 1 - 1.4 * x * x + y, 0.3 * x
    chain = fb.MatrixChain(np.array(J))
    for s, t in ((0, 400), (3, 4), (100, 355)):
        both = fb.log_singular_values(chain, t, s)
        assert_allclose(both.sum(), (t - s) * math.log(0.3), rtol=1e-10)
    exponents = fb.lyapunov_spectrum(chain)
    assert_allclose(exponents.exponents.sum(), math.log(0.3), rtol=1e-9)
    assert 1.1 < exponents.kaplan_yorke < 1.4  # 1.26
    assert_allclose(exponents.entropy_rate, exponents.exponents[0])


def test_the_logistic_map():
    x, J = 0.3, []
    start = x
    for _ in range(2000):
        J.append([[4 - 8 * x]])
        x = 4 * x * (1 - x)
    exact = 2000 * math.log(2) + 0.5 * math.log(x * (1 - x) / (start * (1 - start)))
    for method in METHODS:
        assert_allclose(fb.log_norm(fb.MatrixChain(np.array(J)), method=method).estimate, exact,
                        rtol=1e-6)  # fmt: skip
    assert_allclose(fb.lyapunov_spectrum(fb.MatrixChain(np.array(J))).exponents[0], math.log(2),
                    atol=0.05)  # fmt: skip


def test_every_singular_value_over_hundreds_of_nats():
    """Against 260-digit arithmetic: what float64 loses below e^-36 of the first."""
    import mpmath

    rng = np.random.default_rng(9)
    N, T = 8, 60
    grade = np.exp(-np.arange(N) * 1.2)
    J = np.array([orthogonal(N, rng) @ np.diag(grade) @ orthogonal(N, rng) for _ in range(T)])
    with mpmath.workdps(260):
        P = mpmath.eye(N)
        for step in J:
            P = mpmath.matrix(step.tolist()) * P
        values = mpmath.svd_r(P, compute_uv=False)
        exact = np.array([float(mpmath.log(value)) for value in values])
    assert np.ptp(exact) > 250
    got = fb.log_singular_values(fb.MatrixChain(J))
    assert_allclose(got, np.sort(exact)[::-1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("N", [8, 16])
def test_every_singular_value_of_random_matrices(N):
    """Rows that a long stretch leaves far apart in size lose up to half of their digits."""
    import mpmath

    J = np.random.default_rng(0).normal(size=(60, N, N)) / np.sqrt(N)
    with mpmath.workdps(100):
        P = mpmath.eye(N)
        for step in J:
            P = mpmath.matrix(step.tolist()) * P
        exact = [float(mpmath.log(value)) for value in mpmath.svd_r(P, compute_uv=False)]
    got = fb.log_singular_values(fb.MatrixChain(J))
    assert_allclose(got, np.sort(exact)[::-1], rtol=0, atol=2e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_singular_values_of_permuted_diagonals(dtype):
    J, nats = permuted(700, 12, np.random.default_rng(10))
    got = fb.log_singular_values(fb.MatrixChain(J.astype(dtype)))
    assert_allclose(got, nats, atol=700 * np.finfo(dtype).eps * 10, rtol=1e-6)
    zeros = J.copy()
    zeros[5, :, 0] = 0
    lost = fb.log_singular_values(fb.MatrixChain(zeros.astype(dtype)))
    assert (lost == -np.inf).sum() == 1


def test_exponents_of_random_matrices():
    """Newman 1986: log sigma + [log 2 + psi((N-i+1)/2)]/2."""
    rng = np.random.default_rng(11)
    N, T, sigma = 6, 20_000, 0.4
    found = fb.lyapunov_spectrum(fb.MatrixChain(sigma * rng.normal(size=(T, N, N))))
    euler = 0.5772156649015329
    psi = {2: -euler, 1: -euler - 2 * math.log(2)}
    for n in range(3, N + 1):
        psi[n] = psi[n - 2] + 2 / (n - 2)
    exact = [math.log(sigma) + (math.log(2) + psi[N - i]) / 2 for i in range(N)]
    assert (np.abs(found.exponents - exact) < 5 * found.standard_error).all()
    assert (found.standard_error < 0.02).all()
    assert_allclose(found.history[-1], exact, atol=0.05)
    # the variance a step is psi'((N-i+1)/2)/4, psi'(1/2) = pi²/2, psi'(1) = pi²/6
    slope = {1: math.pi**2 / 2, 2: math.pi**2 / 6}
    for n in range(3, N + 1):
        slope[n] = slope[n - 2] - 4 / (n - 2) ** 2
    variance = np.array([slope[N - i] / 4 for i in range(N)])
    # of 32 blocks: the error of a variance is sqrt(2/31) of it
    assert_allclose(found.standard_error**2 * T * 7 / 8, variance, rtol=4 * math.sqrt(2 / 31))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_near_isometries_have_standard_errors(kind):
    """Their stretches are hundreds of steps long: blocks end within them."""
    rng = np.random.default_rng(35)
    T, H, k = 1500, 12, 2
    net = getattr(fb, kind)(4, H, dtype=np.float64, rng=0)
    state = net.state_dict()
    if kind == "RNN":  # linear: with relu's slope of 1 throughout it is orthogonal
        net = fb.RNN(4, H, nonlinearity="relu", dtype=np.float64, rng=0)
        state["weight_hh_l0"] = np.roll(np.eye(H), 1, axis=0)
        state["weight_ih_l0"] = np.abs(state["weight_ih_l0"])
    else:
        state["bias_hh_l0"][H : 2 * H] += 5  # of f of i f g o, of z of r z n
    net.load_state_dict(state)
    x = rng.normal(size=(T, 4)) if kind != "RNN" else np.ones((T, 4))
    chain = net.trace(x).chain()
    found = fb.lyapunov_spectrum(chain, k)
    if kind == "RNN":
        assert_allclose([found.exponents, found.standard_error], 0, atol=1e-12)
        return
    J = np.stack([chain.matrix(t + 1, t) for t in range(T)])
    factors = reference.triangular_factors(J, k, np.random.default_rng(0))  # from the same frame
    grown = np.cumsum(np.log(np.abs(np.diagonal(factors, axis1=1, axis2=2))), axis=0)
    marks = np.linspace(T // 8, T, 33).astype(int)
    rates = np.diff(grown[marks - 1], axis=0) / np.diff(marks)[:, None]
    assert_allclose(found.standard_error, rates.std(axis=0, ddof=1) / math.sqrt(32), rtol=1e-6)
    assert_allclose(found.exponents, (grown[-1] - grown[T // 8 - 1]) / (T - T // 8), rtol=1e-6)
    for T in (64, 40, 20, 10):
        found = fb.lyapunov_spectrum(net.trace(x[:T]).chain(), k)
        assert np.isfinite(found.standard_error).all()


def test_a_net_below_the_transition():
    """g < 1: the state goes to zero and l_1 to the log of the largest eigenvalue, about log g."""
    rng = np.random.default_rng(34)
    N, g = 400, 0.7
    w = (g * rng.normal(size=(N, N)) / np.sqrt(N)).astype(np.float32)
    net = fb.RNN(1, N, bias=False, rng=0)
    net.load_state_dict({"weight_ih_l0": np.zeros((N, 1), np.float32), "weight_hh_l0": w})
    trace = net.trace(np.zeros((400, 1), np.float32), rng.normal(size=(1, N)).astype(np.float32))
    found = fb.lyapunov_spectrum(trace.chain(), 2).exponents[0]
    assert abs(found - math.log(g)) < 0.05


def test_the_spectrum_of_a_stream_is_that_of_its_chain():
    rng = np.random.default_rng(12)
    net = fb.RNN(3, 20, dtype=np.float64, rng=0)
    net.weight_hh_l0 = 2.0 * rng.normal(size=(20, 20)) / np.sqrt(20)
    x = rng.normal(size=(4000, 3))
    stream = fb.JacobianStream(net, probes=4)
    stream.update(x)
    one, other = fb.lyapunov_spectrum(stream), fb.lyapunov_spectrum(net.trace(x).chain(), 4)
    error = np.hypot(one.standard_error, other.standard_error)
    assert (np.abs(one.exponents - other.exponents) < 5 * error + 1e-3).all()
    assert other.steps == one.steps == 4000
    assert one.history.shape == (len(one.history_steps), 4)
    assert_allclose(one.history[-1], one.exponents, atol=0.02)
    pytest.importorskip("matplotlib")
    assert len(one.plot().lines) == 4
    both = fb.JacobianStream(net, probes=4)
    both.update(np.stack([x, x], axis=1))
    assert fb.lyapunov_spectrum(both).plot().texts[0].get_text() == "no history is kept"


def test_the_mean_field_exponent():
    rng = np.random.default_rng(21)
    N, g = 400, 3.0
    net = fb.RNN(1, N, bias=False, rng=0)
    net.load_state_dict(
        {
            "weight_ih_l0": np.zeros((N, 1), np.float32),
            "weight_hh_l0": (g * rng.normal(size=(N, N)) / np.sqrt(N)).astype(np.float32),
        }
    )
    trace = net.trace(np.zeros((1500, 1), np.float32), rng.normal(size=(1, N)).astype(np.float32))
    exact, _ = reference.mean_field_exponent(g)
    assert abs(exact - 0.3102) < 1e-3
    assert abs(fb.lyapunov_spectrum(trace.chain(), 2).exponents[0] - exact) < 0.05


def test_a_million_steps():
    net = fb.RNN(1, 8, dtype=np.float32, rng=0)
    x = np.sin(np.arange(1_000_000, dtype=np.float32))[:, None]
    chain = net.trace(x).chain()
    got = fb.log_norm(chain)
    back = fb.log_norm(chain, method="block", probes=2, max_sweeps=1)
    assert got.converged
    assert abs(got.estimate - back.estimate) < 1e-3 * abs(got.estimate)
    curve = fb.growth_from(chain, 900_000)
    exact = fb.log_norm(chain, s=900_000).estimate
    assert_allclose(curve.estimate[-1], exact, rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_million_exact_steps(dtype):
    """a·Q: T log a, the sum of logs in float64 whatever the chain's dtype."""
    T, a = 1_000_000, 1.5
    turn = np.zeros((4, 4), dtype)
    turn[[1, 2, 3, 0], [0, 1, 2, 3]] = a  # no rounding at all
    chain = fb.MatrixChain(np.broadcast_to(turn, (T, 4, 4)))
    got = fb.log_norm(chain)
    assert_allclose(got.estimate, T * math.log(a), atol=1e-4)
    assert_allclose(got.condition, 1, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_hundred_thousand_steps_of_a_thousand(dtype):
    turn = np.zeros((20, 20), dtype)
    turn[np.arange(20), np.arange(20) - 1] = 1000
    chain = fb.MatrixChain(np.broadcast_to(turn, (100_000, 20, 20)))
    for method in ("lanczos", "block"):
        got = fb.log_norm(chain, method=method, max_sweeps=2)
        assert_allclose(got.lower, 690775.5278982137, atol=1e-2 if dtype == np.float32 else 1e-6)


@pytest.mark.parametrize("L", [1, 3])
def test_deep_linear_nets_at_initialisation(L):
    """sigma_1² = (L+1)^(L+1) / L^L sigma_w^(2L) in the wide limit (Pennington et al. 2017)."""
    rng = np.random.default_rng(25)
    N, scale = 500, 1.3
    J = scale * rng.normal(size=(L, N, N)) / np.sqrt(N)
    limit = 0.5 * ((L + 1) * math.log(L + 1) - L * math.log(L)) + L * math.log(scale)
    assert abs(fb.log_norm(fb.MatrixChain(J)).estimate - limit) < 0.05


@pytest.mark.parametrize("delta", [1e-6, 0.05])
def test_the_chance_of_a_start_without_the_first_vector(delta):
    """epsilon is such that a standard normal lies within epsilon·length with probability delta."""
    within = math.erf(7.0 * math.exp(-room_of(delta, 7.0)) / math.sqrt(2))
    assert 0.999 * delta < within <= delta


@pytest.mark.parametrize("method", ["auto", "explicit", "lanczos"])
@pytest.mark.parametrize("size", [2.0**1023, 1e308, np.finfo(float).max])
def test_numbers_at_the_end_of_the_range(size, method):
    chain = fb.MatrixChain(np.array([[[size]], [[0.5]]]))
    assert_allclose(fb.log_norm(chain, method=method).estimate, np.log(size) - np.log(2))
