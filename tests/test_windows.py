"""The norms of windows: of frames, of sweeps, and maps of them, against explicit products."""

import math

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from products import DTYPES, eps_of, orthogonal, permuted
from strategies import dtypes

import fastbptt as fb
from fastbptt.spectral.two_passes import TwoPasses


@pytest.mark.parametrize("method", ["frames", "sweeps", "auto"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_windows_against_the_explicit_products(method, dtype):
    rng = np.random.default_rng(6)
    T, N = 150, 24
    J = (rng.normal(size=(T, N, N)) / np.sqrt(N)).astype(dtype)
    chain = fb.MatrixChain(J)
    worst = {}
    for lag in (1, 2, 20, 60, 100, T):
        if method == "frames" and lag < 20:
            continue
        curve = fb.growth_window(chain, lag, method=method)
        exact = np.array(
            [reference.log_norm_of_product(J[s : s + lag].astype(float)) for s in curve.s]
        )
        assert_allclose(curve.t - curve.s, lag)
        near = 30 * eps_of(dtype, T, N)
        assert (curve.lower <= exact + near).all()
        worst[lag] = np.abs(curve.estimate - exact).max()
        if method != "frames":
            assert worst[lag] < 0.03 + near
            assert (curve.upper >= exact - 0.03 - near).all()
    if method == "frames":  # the error falls with the lag, as exp(-(l_1 - l_{k+1}) lag)
        assert worst[20] > worst[60] > worst[100] - near  # of 60 steps on, float32 rounds
        assert worst[100] < 2e-3


def cases_of_no_gap():
    """Chains whose windows lead where the whole chain does not, and a lag of each."""
    rng = np.random.default_rng(29)
    N = 24
    turns = np.stack([orthogonal(N, rng) for _ in range(150)])
    still = np.stack([0.9 * np.eye(N) for _ in range(300)])
    still[140:150, 5, 5] = math.exp(2)  # a burst in a subspace of its own
    net = fb.RNN(3, N, dtype=np.float64, rng=0)
    net.weight_hh_l0 = np.diag(np.linspace(1, 0.2, N))
    chain = net.trace(3 * rng.normal(size=(300, 3))).chain()
    return {
        "permuted diagonals": (permuted(400, N, rng)[0], 150),
        "jordan": (np.stack([0.97 * np.eye(N) + np.eye(N, k=1)] * 300), 60),
        "two halves": (
            np.concatenate([rng.normal(size=(150, N, N)) / np.sqrt(N), turns]), 60
        ),
        "units alone": (np.stack([chain.matrix(t + 1, t) for t in range(300)]), 30),
        "burst": (still, 40),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name", ["permuted diagonals", "jordan", "two halves", "units alone", "burst"]
)
def test_windows_that_a_frame_of_the_whole_chain_does_not_see(name, dtype):
    J, lag = cases_of_no_gap()[name]
    J = J.astype(dtype)
    some = np.arange(0, len(J) + 1 - lag, 7)
    near = 16 * lag * np.finfo(dtype).eps
    exact = np.array(
        [fb.log_singular_values(fb.MatrixChain(J[s : s + lag].astype(float)))[0] for s in some]
    )
    got = fb.growth_window(fb.MatrixChain(J), lag)
    assert (got.lower[some] <= exact + near).all()
    assert (got.upper[some] >= exact - near).all()
    assert np.abs(got.estimate[some] - exact).max() < 0.1
    frames = fb.growth_window(fb.MatrixChain(J), lag, method="frames")
    assert np.isfinite(frames.estimate).all()
    assert math.isnan(frames.delta) == frames.note.startswith("two passes")


def test_a_burst_in_a_long_good_chain_is_mended():
    """A few windows of thousands: 16 drawn at random would not meet them."""
    rng = np.random.default_rng(30)
    T, lag = 6000, 80
    J = np.zeros((T, 20, 20))
    J[:, :19, :19] = rng.normal(size=(T, 19, 19)) / np.sqrt(19)
    J[:, 19, 19] = 0.5
    J[3000:3020, 19, 19] = math.exp(6)
    got = fb.growth_window(fb.MatrixChain(J), lag)
    assert got.note.startswith("two passes")
    assert "solved by themselves" in got.note
    assert got.worst_error < 0.01
    for s in (2700, 2925, 2940, 2960, 2990, 3015):
        exact = reference.log_norm_of_product(J[s : s + lag])
        assert abs(got.estimate[s] - exact) < 0.02
        assert got.upper[s] >= exact - 1e-6


def test_more_probes_make_frames_better():
    rng = np.random.default_rng(7)
    J = rng.normal(size=(200, 32, 32)) / np.sqrt(32)
    exact = np.array([reference.log_norm_of_product(J[s : s + 25]) for s in range(176)])
    errors = [
        np.median(
            np.abs(
                fb.growth_window(fb.MatrixChain(J), 25, method="frames", probes=k).estimate - exact
            )
        )
        for k in (2, 6, 16)
    ]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


def test_a_map_holds_the_windows_of_each_lag():
    rng = np.random.default_rng(8)
    J = rng.normal(size=(64, 6, 6)) / 2
    chain = fb.MatrixChain(J)
    found = fb.growth_map(chain)
    assert found.lags.tolist() == [1, 2, 4, 8, 16, 32, 64]
    for i, lag in enumerate(found.lags):
        assert np.isnan(found.estimate[i, :lag]).all()
        exact = [reference.log_norm_of_product(J[s : s + lag]) for s in range(65 - lag)]
        assert_allclose(found.estimate[i, lag:], exact, atol=0.02)
        bounds = [chain.step_bounds()[s : s + lag].sum() for s in range(65 - lag)]
        assert np.isnan(found.textbook[i, :lag]).all()
        assert_allclose(found.textbook[i, lag:], bounds, rtol=1e-12)
        assert_allclose(fb.growth_window(chain, int(lag)).textbook, bounds, rtol=1e-12)
    assert fb.growth_map(chain, [3, 5]).lags.tolist() == [3, 5]


@pytest.mark.parametrize("k", [2, 4])
def test_the_error_of_frames_falls_with_the_gap_to_the_next_exponent(k):
    """As exp(-(l_1 - l_{k+1}) lag), the exponents Newman's."""
    rng = np.random.default_rng(33)
    N, T = 12, 3000
    J = rng.normal(size=(T, N, N)) / np.sqrt(N)
    chain = fb.MatrixChain(J)
    psi = {1: -0.5772156649015329 - 2 * math.log(2), 2: -0.5772156649015329}
    for n in range(3, N + 1):
        psi[n] = psi[n - 2] + 2 / (n - 2)
    gap = (psi[N] - psi[N - k]) / 2
    lags = np.arange(10, 31, 5)
    errors = []
    for lag in lags:
        exact = fb.growth_window(chain, int(lag), method="sweeps")
        found = fb.growth_window(chain, int(lag), method="frames", probes=k)
        apart = np.abs(found.estimate - (exact.lower + exact.upper) / 2)
        errors.append(np.log(np.maximum(apart, 1e-12)).mean())
    slope = np.polyfit(lags, errors, 1)[0]
    assert -2.5 * gap < slope < -0.6 * gap


@given(st.integers(1, 5), st.integers(1, 120), st.integers(1, 120), dtypes(), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_passes_of_frames_of_the_whole_space(N, T, lag, dtype, seed):
    """Then what P does to the frame is what it does: both are the norm, in every stretch."""
    rng = np.random.default_rng(seed)
    lag = min(lag, T)
    J = (0.9 * (np.eye(N) + 0.1 * rng.normal(size=(T, N, N)))).astype(dtype)
    exact = [
        reference.log_norm_of_product(J[s : s + lag].astype(float)) for s in range(T + 1 - lag)
    ]
    passes = TwoPasses(fb.MatrixChain(J), N, rng)
    assert passes.whole
    near = 30 * eps_of(dtype, T, N)
    for found, squarings in zip(passes.norms(lag).T[:2], (3, 6), strict=True):  # power methods
        assert_allclose(found, exact, atol=math.log(N) / 2 ** (squarings + 1) + near)


def test_windows_on_a_frame_of_the_whole_space():
    rng = np.random.default_rng(26)
    J = 0.9 * (np.eye(4) + 0.2 * rng.normal(size=(120, 4, 4)))  # all rates near one another
    chain = fb.MatrixChain(J)
    exact = np.array([reference.log_norm_of_product(J[s : s + 30]) for s in range(91)])
    curve = fb.growth_window(chain, 30, method="frames", probes=4)
    assert curve.note.startswith("two passes")
    assert "solved" not in curve.note
    assert_allclose(curve.lower, exact, atol=0.03)
    assert_allclose(curve.estimate, exact, atol=3e-3)
    assert (curve.lower <= exact + 1e-9).all()


def explicit(J, lag):
    return np.array(
        [
            reference.log_norm_of_product(J[s : s + lag].astype(float))
            for s in range(len(J) - lag + 1)
        ]
    )


@pytest.mark.parametrize(("dtype", "near"), [(np.float32, 2e-4), (np.float64, 1e-6)])
@pytest.mark.parametrize(("N", "lag"), [(2, 10), (3, 30), (6, 20)])
def test_windows_of_matrices_some_of_which_are_nearly_singular(N, lag, dtype, near):
    """Stretches of them come apart by more than their rates promise, and come back."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        J = (rng.normal(size=(400, N, N)) / np.sqrt(N)).astype(dtype)
        curve, exact = fb.growth_window(fb.MatrixChain(J), lag), explicit(J, lag)
        assert curve.note.startswith("two passes")
        assert (curve.lower <= exact + near).all()
        assert (np.abs(curve.estimate - exact) <= math.log(N) / 2**7 + near).all()


def test_windows_that_rounding_moves():
    """Eps of a path that the next steps make large outweighs the window."""
    J = permuted(300, 12, np.random.default_rng(2))[0].astype(np.float32)
    chain, exact = fb.MatrixChain(J), explicit(J, 40)
    frames = fb.growth_window(chain, 40, method="frames", probes=12)
    assert "rounding may have moved" in frames.note
    assert np.abs(frames.estimate - exact).max() > 0.1
    curve = fb.growth_window(chain, 40, probes=12)
    near = 30 * eps_of(np.float32, 40, 12)
    assert (curve.lower <= exact + near).all()
    assert (curve.upper >= exact - near).all()
    assert_allclose(curve.estimate, exact, atol=0.02)


@pytest.mark.parametrize("nats", [30, -30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sudden_change_of_rate(nats, dtype):
    """Stretches have become long when a few steps leave the range of float32, or of float64."""
    rng = np.random.default_rng(27)
    turn = orthogonal(5, rng)
    rates = np.repeat([0, nats, 0], [600, 40, 100])
    chain = fb.MatrixChain((np.exp(rates)[:, None, None] * turn).astype(dtype))
    assert_allclose(fb.log_norm(chain).estimate, 40 * nats, atol=0.01)
    curve = fb.growth_from(chain)
    assert_allclose(curve.lower[-41:], 40 * nats, atol=0.01)
    windows = fb.growth_window(chain, 60)
    assert_allclose(
        windows.estimate.max() if nats > 0 else windows.estimate.min(), 40 * nats, atol=0.02
    )


@pytest.mark.parametrize(("dtype", "nats"), [(np.float32, -2.5), (np.float64, -18.5)])
def test_a_sudden_change_of_rate_that_ends_in_subnormal_numbers(dtype, nats):
    """They are finite and not zero, but have lost most of their digits."""
    turn = orthogonal(5, np.random.default_rng(40))
    rates = np.repeat([0, nats, 0], [600, 40, 100])
    assert 0 < np.exp(dtype(40 * nats)) < np.finfo(dtype).tiny
    chain = fb.MatrixChain((np.exp(rates)[:, None, None] * turn).astype(dtype))
    atol = 40 * eps_of(dtype, 740, 5)
    assert_allclose(fb.growth_from(chain).lower[-41:], 40 * nats, atol=atol)
    assert_allclose(fb.log_norm(chain, method="block").estimate, 40 * nats, atol=atol)


@pytest.mark.parametrize(
    ("dtype", "nats"),
    [
        (np.float32, -95),
        (np.float32, 80),
        (np.float64, -380),
        (np.float64, -735),
        (np.float64, 600),
    ],
)
def test_steps_whose_squares_leave_the_range(dtype, nats):
    turn = orthogonal(5, np.random.default_rng(41))
    J = (math.exp(nats) * turn).astype(dtype)
    largest = float(np.abs(J).max())
    product = np.linalg.matrix_power(J.astype(float) / largest, 40)
    exact = math.log(np.linalg.norm(product, 2)) + 40 * math.log(largest)
    # what a step leaves has no more digits than its size over the smallest number
    atol = eps_of(dtype, 40, 5) + 40 * 5 * float(np.finfo(dtype).smallest_subnormal) / largest
    chain = fb.MatrixChain(np.stack([J] * 40))
    assert_allclose(fb.growth_from(chain).estimate[-1], exact, atol=atol)
    assert_allclose(fb.log_norm(chain, method="block").estimate, exact, atol=atol)
    net = fb.RNN(1, 5, bias=False, dtype=dtype)
    net.load_state_dict({"weight_hh_l0": J, "weight_ih_l0": np.zeros((5, 1), dtype)})
    stream = fb.JacobianStream(net, probes=5)
    stream.update(np.zeros((40, 1, 1), dtype))
    assert_allclose(stream.result().estimate, exact, atol=atol)


def test_a_stretch_whose_squares_leave_the_range_of_float64():
    """Of frames between two orthonormalisations all states are asked for, and all windows."""
    turn = orthogonal(5, np.random.default_rng(42))
    for nats in (10.5, -10.5):
        rates = np.repeat([0, nats, 0], [600, 40, 840])  # within one of either pass
        chain = fb.MatrixChain(np.exp(rates)[:, None, None] * turn)
        exact = np.append(0, np.cumsum(rates))
        atol = 10 * eps_of(np.float64, 1480, 5)
        assert_allclose(fb.growth_from(chain).estimate, exact, atol=atol)
        windows = fb.growth_window(chain, 100, method="frames", probes=5)
        assert_allclose(windows.estimate, exact[100:] - exact[:-100], atol=1e-6)
        # d log ||P|| / dJ_t = u_t v_t' / ||J_t|| of diagonal Jacobians
        chain = fb.MatrixChain(np.exp(rates)[:, None, None] * np.diag([1, 0.9, 0.8, 0.7, 0.6]))
        assert_allclose(fb.sensitivity(chain).by_step, np.exp(-rates), rtol=1e-6)
