"""JacobianStream against explicit products, closed forms, laws and its own promises."""

import copy
import math

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import digamma
from streamed import driven, streamed

import fastbptt as fb

DTYPES = (np.float32, np.float64)


def linear_net(W, dtype=np.float64):
    """A net whose Jacobian is W at every step: tanh at zero input and state has slope 1."""
    net = fb.RNN(1, len(W), bias=False, dtype=dtype, rng=0)
    net.weight_hh_l0 = np.asarray(W, dtype)
    return net


def rest(T, dtype=np.float64):
    return np.zeros((T, 1), dtype)


def orthogonal(N, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(N, N)))[0]


def jacobians(net, x, b):
    params = {name: y.astype(np.float64) for name, y in net.state_dict().items()}
    x = x.astype(np.float64)
    h0 = np.zeros((x.shape[1], net.hidden_size))
    _, a = reference.rnn_forward(params, x, h0, net.nonlinearity)
    return reference.rnn_jacobians(params, a, net.nonlinearity, b)


@settings(deadline=None, max_examples=60)
@given(
    H=st.integers(1, 20),
    T=st.integers(0, 40),
    B=st.integers(1, 3),
    gain=st.sampled_from([0.1, 0.9, 1.5, 4.0]),
    nonlinearity=st.sampled_from(["tanh", "relu", "sigmoid"]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 999),
)
def test_as_many_probes_as_units_give_the_norm(H, T, B, gain, nonlinearity, dtype, seed):
    net, x = driven(H, gain, T=T, B=B, nonlinearity=nonlinearity, dtype=dtype, seed=seed)
    result = streamed(net, x, probes=H)
    tolerance = 1e-10 if dtype is np.float64 else 2e-3
    for b in range(B):
        wanted = reference.log_norm_of_product(jacobians(net, x, b))
        if wanted > -60 or not np.isneginf(
            result.lower[b]
        ):  # relu: a rank lost to rounding is zero
            assert_allclose(result.lower[b], wanted, atol=tolerance * (1 + T), rtol=1e-6)
    assert_array_equal(result.lower, result.upper)
    assert_array_equal(result.lower, result.estimate)


@settings(deadline=None, max_examples=60)
@given(
    H=st.integers(2, 40),
    k=st.integers(1, 9),
    T=st.integers(1, 60),
    gain=st.sampled_from([0.3, 1.0, 3.0]),
    seed=st.integers(0, 999),
)
def test_the_interval_holds_the_norm(H, k, T, gain, seed):
    net, x = driven(H, gain, T=T, B=1, seed=seed)
    result = streamed(net, x, probes=k, rng=seed, delta=1e-9)
    wanted = reference.log_norm_of_product(jacobians(net, x, 0))
    assert result.lower[0] - 1e-9 <= wanted <= result.upper[0] + 1e-9
    assert result.lower[0] <= result.estimate[0] <= result.upper[0]


@pytest.mark.parametrize("seed", range(5))
def test_the_published_mistakes_lie_outside_the_interval(seed):
    """With as many probes as units the interval is a point: each mistake would be seen."""
    net, x = driven(8, 2.0, T=25, B=1, seed=seed)
    J, rng = jacobians(net, x, 0), np.random.default_rng(seed)
    lower = streamed(net, x, probes=8).lower[0]
    assert_allclose(lower, reference.log_norm_of_product(J), atol=1e-9)
    for mistake in (
        reference.wrong_order(J),
        reference.only_r11(J, 8, rng),
        reference.sum_of_log_diagonal(J, 8, rng),
    ):
        assert abs(mistake - lower) > 1e-3


@pytest.mark.parametrize("a", [0.5, 1.0, 1000.0])
@pytest.mark.parametrize("probes", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scaled_orthogonal_is_exact_at_every_length(a, probes, dtype):
    net = linear_net(a * orthogonal(12), dtype)
    stream = fb.JacobianStream(net, probes=probes)
    for _ in range(20):
        stream.update(rest(5000, dtype))
    result = stream.result()
    # a product of rounded orthogonal matrices drifts by about eps a step
    drift = 100_000 * np.finfo(dtype).eps * 4
    assert_allclose(result.lower, 100_000 * math.log(a), rtol=1e-12, atol=drift)
    assert_allclose(result.curve_lower, result.curve_steps * math.log(a), rtol=1e-12, atol=drift)
    assert_allclose(result.exponents, math.log(a), atol=drift)
    if probes > 1:  # an isometry has no gap, so nothing may be added
        assert_allclose(result.estimate, result.lower, atol=0.2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nonlinearity", ["tanh", "sigmoid", "relu"])
def test_one_unit_is_a_product_of_scalars(dtype, nonlinearity):
    net, x = driven(1, 0.7, I=2, T=3000, B=1, nonlinearity=nonlinearity, dtype=dtype)
    net.bias_ih_l0 = np.full(1, 4, dtype)  # a relu that never closes
    wanted = np.log(np.abs(jacobians(net, x, 0))).sum()
    result = streamed(net, x)
    assert_allclose(result.lower[0], wanted, rtol=3000 * np.finfo(dtype).eps)
    assert_array_equal(result.upper, result.lower)


def test_saturated_slopes_come_from_the_pre_activation():
    net = fb.RNN(1, 4, bias=False, rng=0)
    net.weight_ih_l0 = np.full((4, 1), 12, np.float32)
    net.weight_hh_l0 = np.eye(4, dtype=np.float32) * np.float32(0.5)
    result = streamed(net, np.ones((200, 1), np.float32))
    # 1 - h*h is 0 in float32 from |a| = 9 on, and the log of the product would be -inf
    J = jacobians(net, np.ones((200, 1, 1), np.float32), 0)
    assert_allclose(result.lower, reference.log_norm_of_product(J), rtol=1e-6)


def test_rank_one_and_nilpotent():
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(2, 9))
    result = streamed(linear_net(np.outer(u, v) / 9), rest(50), delta=1e-6)
    wanted = reference.log_norm_of_product(np.broadcast_to(np.outer(u, v) / 9, (50, 9, 9)))
    assert result.lower <= wanted + 1e-12
    assert wanted <= result.upper
    shift = np.eye(9, k=1)
    stream = fb.JacobianStream(linear_net(shift), probes=3)
    stream.update(rest(8))
    assert stream.result().lower > -10
    stream.update(rest(1))
    result = stream.result()
    assert result.lower == result.estimate == result.upper == -math.inf


@pytest.mark.parametrize("gain", [1.5, 3.0])
def test_large_random_tanh_net_has_the_exponent_of_its_mean_field(gain):
    rate, _ = reference.mean_field_exponent(gain)
    N, T = 512, 1500
    net = linear_net(np.random.default_rng(0).normal(size=(N, N)) * gain / math.sqrt(N), np.float32)
    start = np.random.default_rng(1).normal(size=(1, N)).astype(np.float32)
    stream = fb.JacobianStream(net, probes=1, state=start)
    stream.update(rest(T, np.float32))
    result = stream.result()
    # O(1/N) of the mean field, and the error of a mean over T steps
    assert abs(result.exponents[0] - rate) < 0.012 + 4 * result.standard_error[0]
    assert result.lower / T == pytest.approx(rate, abs=0.03)


PRODUCTS = {
    "isometry": orthogonal(16),
    "rank one": np.outer(orthogonal(16)[0], orthogonal(16)[1] + orthogonal(16)[0]),
    "Jordan": 0.9 * np.eye(16) + np.eye(16, k=1),
    "Gaussian": np.random.default_rng(5).normal(size=(16, 16)) / 4,
}


@pytest.mark.parametrize("probes", [1, 4])
@pytest.mark.parametrize("kind", PRODUCTS)
def test_upper_fails_no_more_often_than_it_says(kind, probes):
    W, T, delta, seeds = PRODUCTS[kind], 30, 0.05, 500
    net = linear_net(W)
    wanted = reference.log_norm_of_product(np.broadcast_to(W, (T, 16, 16)))
    failed = sum(
        streamed(net, rest(T), probes, seed, delta).upper < wanted - 1e-12 for seed in range(seeds)
    )
    assert failed <= seeds * delta + 4 * math.sqrt(seeds * delta * (1 - delta))


def test_upper_is_not_vacuous():
    """For rank one the chi^2 tail is all there is: at delta 0.5 a bound must fail sometimes."""
    net = linear_net(PRODUCTS["rank one"])
    wanted = reference.log_norm_of_product(np.broadcast_to(PRODUCTS["rank one"], (5, 16, 16)))
    results = [streamed(net, rest(5), 4, seed, 0.5) for seed in range(100)]
    assert 5 < sum(r.upper < wanted for r in results) < 60


def test_the_estimate_adds_the_mean_shortfall():
    net = linear_net(PRODUCTS["rank one"])
    wanted = reference.log_norm_of_product(np.broadcast_to(PRODUCTS["rank one"], (5, 16, 16)))
    results = [streamed(net, rest(5), 4, seed, 1e-6) for seed in range(200)]
    # (psi(16/2) - psi(4/2)) / 2, and the mean of 200 draws of standard deviation 0.36
    assert_allclose([r.estimate - r.lower for r in results], (digamma(8) - digamma(2)) / 2)
    assert_allclose(np.mean([wanted - r.estimate for r in results]), 0, atol=0.1)


@settings(deadline=None, max_examples=40)
@given(cuts=st.lists(st.integers(0, 150), max_size=6), dtype=st.sampled_from(DTYPES))
def test_chunks_of_any_size_give_the_bits_of_one_go(cuts, dtype):
    net, x = driven(33, 2.0, T=150, dtype=dtype)
    whole = streamed(net, x)
    stream = fb.JacobianStream(net)
    for chunk in np.split(x, sorted(cuts)):
        stream.update(chunk)
    cut = stream.result()
    for name in ("lower", "estimate", "upper", "exponents", "standard_error", "state"):
        assert_array_equal(getattr(cut, name), getattr(whole, name))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("H", [40, 150])  # of 150 units a step is one block alone, several in 7
def test_a_sequence_has_the_same_bits_alone_and_in_a_batch(H, dtype):
    net, x = driven(H, 2.0, T=90, B=7, dtype=dtype)
    whole = streamed(net, x)
    for b in range(7):
        alone = streamed(net, x[:, b])
        for name in ("lower", "estimate", "upper", "exponents", "standard_error"):
            assert_array_equal(getattr(alone, name), getattr(whole, name)[b])
        assert_array_equal(alone.state, whole.state[:, b])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("H", [1, 16, 50, 300])
def test_the_state_is_the_one_of_the_forward_pass_to_the_bit(dtype, H):
    net, x = driven(H, 1.2, dtype=dtype)
    start = np.random.default_rng(3).normal(size=(1, 2, H)).astype(dtype)
    stream = fb.JacobianStream(net, state=start)
    stream.update(x)
    assert_array_equal(stream.result().state, net(x, start)[1])


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_a_state_of_several_layers_without_a_batch(kind):
    net, rng = getattr(fb, kind)(3, 5, 2, rng=0), np.random.default_rng(0)
    x = rng.normal(size=(30, 3)).astype(np.float32)
    parts = [rng.normal(size=(2, 5)).astype(np.float32) for _ in range(1 + (kind == "LSTM"))]
    found = []
    for batch in (False, True):
        start = [part[:, None] if batch else part for part in parts]
        stream = fb.JacobianStream(net, state=tuple(start) if kind == "LSTM" else start[0], rng=0)
        stream.update(x[:, None] if batch else x)
        found.append(stream.result())
    assert_array_equal(found[0].estimate, found[1].estimate[0])
    assert_array_equal(found[0].exponents, found[1].exponents[0])


def test_exponents_sum_to_the_log_determinant():
    net, x = driven(6, 2.0, T=400, B=1)
    s = fb.JacobianStream(net, probes=6)
    s.update(x)
    steps = s._carried.block_steps[0].sum() + s._carried.running_steps[0]
    total = s._carried.blocks[0].sum() + s._carried.running[0].sum()
    determinants = np.linalg.slogdet(jacobians(net, x, 0)[:steps])[1].sum()
    assert_allclose(total, determinants, rtol=1e-9)


def test_exponents_and_their_errors_against_qr_at_every_step():
    net, x = driven(20, 3.0, T=6000, B=1)
    result = streamed(net, x, probes=3)
    # an eighth of the blocks is burn-in: this net takes some hundreds of steps to settle
    wanted = reference.lyapunov_exponents(jacobians(net, x, 0)[750:], 3, np.random.default_rng(0))
    assert_allclose(result.exponents[0], wanted, atol=0.01)
    assert (np.abs(result.exponents[0] - wanted) < 5 * result.standard_error[0]).all()
    assert (result.standard_error[0] < 0.01).all()


def test_the_adjoint_of_the_streamed_product_is_the_one_of_bptt():
    """<P v, u> = <v, P' u>, with P v from the stream and P' u from backward."""
    net, x = driven(24, 1.3, T=12, B=1)
    stream = fb.JacobianStream(net, probes=5)
    stream.update(x)
    s = stream._carried
    factor = np.ldexp(s.U[0], s.e[0][:, None].astype(int))
    PV = s.panel[stream.steps % 2, 0, 1:, :24].T @ factor
    u = np.random.default_rng(1).normal(size=24)
    adjoint = net.trace(x).backward(d_state=u.reshape(1, 1, 24)).state.ravel()
    assert_allclose(u @ PV, adjoint @ stream._V, rtol=1e-12, atol=1e-12 * np.abs(PV).max())


def test_ten_thousand_nats_neither_overflow_nor_drown():
    net, x = driven(8, 1.0, T=3000, B=1, dtype=np.float32)
    net.weight_hh_l0 = net.weight_hh_l0 * np.float32(1e-8)
    result = streamed(net, x, probes=8)
    wanted = reference.log_norm_of_product(jacobians(net, x, 0))
    assert wanted < -50_000
    assert_allclose(result.lower[0], wanted, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e6, 1e15])
@pytest.mark.parametrize("probes", [1, 10])
def test_steps_whose_squares_leave_the_range_of_float32(dtype, scale, probes):
    W = (np.random.default_rng(0).normal(size=(10, 10)) * scale).astype(dtype)
    result = streamed(linear_net(W, dtype), rest(60, dtype), probes, delta=1e-9)
    wanted = reference.log_norm_of_product(np.broadcast_to(W.astype(float) / scale, (60, 10, 10)))
    wanted += 60 * math.log(scale)
    assert result.lower <= wanted + 1e-3
    assert wanted <= result.upper + 1e-3
    assert result.upper - result.lower < 25


def test_some_probes_die_and_the_others_go_on():
    W = np.diag([1e-9, 0.0, 1e-25, 1e-30]).astype(np.float32)
    result = streamed(linear_net(W, np.float32), rest(40, np.float32), probes=4)
    assert_allclose(result.lower, 40 * math.log(1e-9), rtol=1e-5)
    assert result.exponents[-1] == -math.inf


def test_curve_keeps_its_ends_and_a_bounded_number_of_points():
    net, x = driven(4, 1.0, T=5000, B=1)
    stream = fb.JacobianStream(net, probes=2)
    for t in range(5000):
        stream.update(x[t : t + 1])
    result = stream.result()
    assert result.curve_steps.size <= 4096
    assert result.curve_lower.shape == (result.curve_steps.size, 1)
    assert (np.diff(result.curve_steps) > 0).all()
    whole = streamed(net, x[: result.curve_steps[-1]], 2)
    assert result.curve_lower[-1] == whole.lower


@pytest.mark.parametrize("shape", [(1, 4), (1, 2, 4)])
def test_no_result_before_the_first_chunk(shape):
    stream = fb.JacobianStream(fb.RNN(3, 4, rng=0), state=np.zeros(shape, np.float32))
    with pytest.raises(RuntimeError, match="update first"):
        stream.result()


def test_no_steps_is_the_identity():
    net, x = driven(5, B=3)
    stream = fb.JacobianStream(net, probes=2)
    stream.update(x[:0])
    result = stream.result()
    assert_allclose(result.lower, 0, atol=1e-15)
    assert (result.upper > 0).all()
    assert np.isnan(result.exponents).all()


def test_an_empty_batch():
    net, _ = driven(5)
    result = streamed(net, np.zeros((4, 0, 3)))
    assert result.lower.shape == (0,)
    assert result.state.shape == (1, 0, 5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_stays_nan_in_its_own_sequence(bad):
    net, x = driven(5, T=30)
    x[12, 0, 1] = bad
    net.weight_ih_l0 = np.abs(net.weight_ih_l0) if bad == np.inf else net.weight_ih_l0
    result = streamed(net, x, probes=2)
    if np.isnan(bad):
        assert np.isnan(result.lower[0])
        assert np.isnan(result.upper[0])
    assert np.isfinite(result.lower[1])


class TestBadInput:
    net, x = driven(5)

    @pytest.mark.parametrize(
        ("keywords", "error", "message"),
        [
            ({"probes": 0}, ValueError, "probes"),
            ({"probes": 2.0}, TypeError, "probes"),
            ({"rng": "seed"}, TypeError, "rng"),
            ({"rng": -1}, ValueError, "rng"),
            ({"state": np.zeros((1, 2, 4))}, ValueError, "state"),
            ({"state": np.zeros(5)}, ValueError, "state"),
            ({"state": np.zeros((1, 2, 5), np.float32)}, TypeError, "state"),
        ],
    )
    def test_constructor(self, keywords, error, message):
        with pytest.raises(error, match=message):
            fb.JacobianStream(self.net, **keywords)

    def test_net(self):
        with pytest.raises(TypeError, match="net"):
            fb.JacobianStream("net")

    def test_update(self):
        stream = fb.JacobianStream(self.net)
        stream.update(self.x)
        for x, error in (
            (self.x[:, :1], ValueError),
            (self.x[:, 0], ValueError),
            (self.x[..., :2], ValueError),
            (self.x.astype(np.float32), TypeError),
        ):
            with pytest.raises(error, match="x: expected"):
                stream.update(x)
        assert stream.steps == len(self.x)

    def test_weights_that_change_under_way(self):
        net, x = driven(5)
        stream = fb.JacobianStream(net)
        stream.update(x)
        net.load_state_dict(net.state_dict())
        with pytest.raises(RuntimeError, match="weights changed"):
            stream.update(x)

    def test_result(self):
        stream = fb.JacobianStream(self.net)
        with pytest.raises(RuntimeError, match="update"):
            stream.result()
        stream.update(self.x)
        for delta, error in (
            (0, ValueError),
            (1, ValueError),
            (np.nan, ValueError),
            ("x", TypeError),
        ):
            with pytest.raises(error, match="delta"):
                stream.result(delta)

    def test_load(self, tmp_path):
        stream = fb.JacobianStream(self.net)
        stream.update(self.x)
        whole = tmp_path / "whole.npz"
        stream.save(whole)
        cut = tmp_path / "cut.npz"
        cut.write_bytes(whole.read_bytes()[:-200])
        pickled = tmp_path / "pickled.npz"
        np.savez(pickled, format=np.array([{}], dtype=object))
        foreign = tmp_path / "foreign.npz"
        np.savez(foreign, x=np.zeros(3))
        text = tmp_path / "text.npz"
        text.write_text("not a file of arrays")
        swapped = tmp_path / "swapped.npz"
        with np.load(whole) as arrays:
            np.savez(swapped, **{**arrays, "carried.U": np.zeros((1, 2, 2))})
        plain = tmp_path / "plain.npy"
        np.save(plain, np.zeros(3))
        for path in (cut, pickled, foreign, text, swapped, plain):
            with pytest.raises(ValueError, match=path.name):
                fb.JacobianStream.load(path)
        with pytest.raises(FileNotFoundError):
            fb.JacobianStream.load(tmp_path / "missing.npz")

    def test_save_leaves_the_old_file_when_it_fails(self, tmp_path):
        stream = fb.JacobianStream(self.net)
        with pytest.raises(OSError, match="no folder"):
            stream.save(tmp_path / "no folder" / "stream.npz")
        folder = tmp_path / "folder"
        folder.mkdir()
        with pytest.raises(OSError, match="folder"):
            stream.save(folder)
        assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_result_is_the_callers_own():
    """What a user writes into it is not in the stream, and what the stream does is not in it."""
    for probes in (2, 64):
        stream = fb.JacobianStream(fb.RNN(3, 64, dtype=np.float64, rng=0), probes=probes)
        x = np.random.default_rng(0).normal(size=(20, 1, 3))
        stream.update(x[:9])
        first, kept = stream.result(), copy.deepcopy(stream.result())
        stream.update(x[9:])
        wanted = copy.deepcopy(stream.result())
        for mine, its in zip(first, kept, strict=True):
            assert_array_equal(mine, its)
        for one in (stream.result(), first):
            assert not np.shares_memory(one.lower, one.upper)
            assert not np.shares_memory(one.curve_lower, one.curve_estimate)
            for name in ("state", "lower", "estimate", "upper", "exponents", "curve_lower"):
                getattr(one, name)[...] = 7.0
        for mine, its in zip(stream.result(), wanted, strict=True):
            assert_array_equal(mine, its)


@pytest.mark.parametrize("state", [0.0, {"h": 1, "c": 2}, np.zeros((1, 2, 5)), (np.zeros((1, 5)),)])
def test_the_state_of_an_lstm_is_a_pair(state):
    with pytest.raises(TypeError, match=r"state: expected a tuple \(h, c\)"):
        fb.JacobianStream(fb.LSTM(3, 5, dtype=np.float64), state=state)
