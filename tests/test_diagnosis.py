"""diagnose() against explicit products and against nets whose fate is known."""

import json
import math
import re

import numpy as np
import pytest
import reference
from numpy.testing import assert_allclose, assert_array_equal

import fastbptt as fb
from fastbptt.diagnosis import OneHot, norms_report
from fastbptt.diagnosis.gradients import GradientByLag, gradient_by_lag, lag_grid, lag_of_factor
from fastbptt.diagnosis.report import _decades
from fastbptt.diagnosis.sources import language_reference, read, text


def rotation(gain, H=12, dtype=np.float64):
    """A net whose Jacobian is `gain` times an orthogonal matrix, as long as its input is zero."""
    net = fb.RNN(2, H, bias=False, dtype=dtype, rng=0)
    Q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(H, H)))
    net.weight_hh_l0 = (gain * Q).astype(dtype)
    return net


@pytest.mark.parametrize(
    ("gain", "verdict", "lag"),
    [(0.9, "vanishes", 66), (1.1, "explodes", 73), (1.0, "neither", None)],
)
def test_verdict_and_lag_of_a_scaled_rotation(gain, verdict, lag):
    x = np.zeros((1000, 2))
    x[-1] = 1e-12  # nothing to predict would be no gradient at all
    d = fb.diagnose(rotation(gain), x)
    assert d.verdict == verdict
    assert_allclose(d.stream.lower, 1000 * math.log(gain), atol=1e-9)
    assert_allclose(d.classical_rate, math.log(gain), atol=1e-12)
    assert verdict.rstrip("s") in d.sentence
    rates = np.log(np.linalg.norm(rotation(gain).weight_hh_l0, 2))
    by_lag = gradient_by_lag(
        rotation(gain), np.zeros((300, 3, 2)), np.zeros((1, 3, 12)), np.ones((1, 3, 12))
    )
    assert_allclose(by_lag.log_norms, np.outer(by_lag.lags, [rates] * 3), atol=1e-9)
    assert lag_of_factor(by_lag, 1000) == lag


@pytest.mark.parametrize("gain", [1e3, 1e-3, 1e20, 1e-20])
def test_a_segment_that_leaves_the_range_of_float32_is_parted(gain):
    net = rotation(gain, H=4, dtype=np.float32)
    start = np.zeros((1, 2, 4), np.float32)
    by_lag = gradient_by_lag(net, np.zeros((40, 2, 2), np.float32), start, np.ones_like(start))
    wanted = np.outer(by_lag.lags, [math.log(gain)] * 2)
    assert_allclose(by_lag.log_norms, wanted, rtol=1e-5, atol=1e-4)


def relu_net(w_hh, w_ih):
    w_ih, w_hh = np.array(w_ih, np.float32), np.array(w_hh, np.float32)
    net = fb.RNN(w_ih.shape[1], len(w_hh), nonlinearity="relu", bias=False)
    net.load_state_dict({"weight_ih_l0": w_ih, "weight_hh_l0": w_hh})
    return net


def test_a_state_that_overflows_has_no_verdict():
    # the third unit is dead until inf - 2 inf is NaN: with a slope of 1 its 9 would be the norm
    net = relu_net([[1.5, 0, 0], [0, 1.5, 0], [1, -2, 9]], [[1], [1], [0]])
    x = np.ones((1000, 1), np.float32)
    with pytest.raises(ValueError, match=r"no longer finite from step 21[5-9] on, batch row 0"):
        fb.diagnose(net, x)
    chain = net.trace(x).chain()
    stream = fb.JacobianStream(net, probes=3, rng=0)
    stream.update(x)
    for norm in (fb.log_norm(chain), stream.result()):
        assert np.isnan([norm.lower, norm.estimate, norm.upper]).all()
    assert_allclose(fb.log_norm(chain, 200, 0).estimate, 200 * math.log(1.5), atol=1e-3)


def test_sequences_of_different_fates():
    net = relu_net([[1.2, 0], [0, 1 / 1.2]], [[1], [-1]])
    x = np.ones((200, 3, 1), np.float32)
    x[:, 1:] = -1
    for some in (x[:, :2], x, np.ascontiguousarray(x[:, ::-1])):
        # 1.2^38 > 1000; of the loss's gradient a half has the direction that grows
        for longest, lag in ((20, 38), (512, 41)):
            d = fb.diagnose(net, some, longest_lag=longest)
            assert (d.verdict, d.lag, d.lag_extrapolated) == ("explodes", lag, longest == 20)
            assert f"it has grown beyond 1000 times its size after {lag} steps" in d.sentence
            assert re.search(r"Lyapunov exponent +0\.18232", str(d))


def test_a_loss_without_a_gradient_says_nothing_of_lags():
    x = np.zeros((300, 2))
    d = fb.diagnose(rotation(1.1), x)  # predicts 0 from 0
    assert np.isnan(d.median).all()
    assert (d.lag, d.lag_extrapolated) == (73, True)
    assert "1: nan" in str(d)
    sentence = fb.diagnose(rotation(1.0), x).sentence
    assert sentence.endswith("the loss has no gradient at the places that BPTT went back from.")
    x = np.zeros((300, 2, 2))
    x[-1, 1] = 1e-12  # of the last place of one row alone
    d = fb.diagnose(rotation(0.9), x, longest_lag=100)
    assert np.isnan(d.gradient.log_norms[0]).mean() == 15 / 16
    assert (d.lag, d.lag_extrapolated) == (66, False)


@pytest.mark.parametrize(
    ("decades", "text"),
    [
        (2.5, "3.2e+02"), (5.9999, "1.0e+06"), (-0.001, "1.0e+00"), (-3.2, "6.3e-04"),
        (math.nan, "nan"), (math.inf, "inf"), (-math.inf, "0"),
    ],
)  # fmt: skip
def test_powers_of_ten(decades, text):
    assert _decades(decades) == text


def test_gradient_by_lag_against_explicit_jacobians():
    rng = np.random.default_rng(0)
    net = fb.RNN(3, 9, dtype=np.float64, rng=1)
    windows, start, d_state = (rng.normal(size=shape) for shape in ((70, 4, 3), (4, 9), (4, 9)))
    by_lag = gradient_by_lag(net, windows, start[None], d_state[None])
    _, a = reference.rnn_forward(net.state_dict(), windows, start, "tanh")
    for p in range(4):
        J = reference.rnn_jacobians(net.state_dict(), a, "tanh", p)
        gradient, norms = d_state[p], {0: np.linalg.norm(d_state[p])}
        for lag in range(1, 71):
            gradient = gradient @ J[70 - lag]
            norms[lag] = np.linalg.norm(gradient)
        wanted = [math.log(norms[lag] / norms[0]) for lag in by_lag.lags]
        assert_allclose(by_lag.log_norms[:, p], wanted, rtol=1e-9, atol=1e-12)
    assert by_lag.lags[0] == 0
    assert by_lag.lags[-1] == 70


def test_windows_begin_at_the_state_of_their_place():
    """The last place is the same for every longest lag, and so is its gradient at common lags."""
    x = np.random.default_rng(0).normal(size=(700, 2, 3)) * 3
    net = fb.RNN(3, 9, dtype=np.float64, rng=1)
    short, long = (fb.diagnose(net, x, longest_lag=lag).gradient for lag in (16, 200))
    assert_allclose(long.log_norms[:17, -2:], short.log_norms[:, -2:], rtol=1e-9)


def test_a_gradient_below_the_range_of_float32_is_followed():
    net = rotation(0.01, dtype=np.float32)
    start = np.zeros((1, 1, 12), np.float32)
    by_lag = gradient_by_lag(net, np.zeros((500, 1, 2), np.float32), start, np.ones((1, 1, 12)))
    assert_allclose(by_lag.log_norms[-1], 500 * math.log(0.01), rtol=1e-5)


@pytest.mark.parametrize("L", [1, 2, 15, 16, 17, 100])
def test_lag_grid(L):
    lags = lag_grid(L)
    assert lags[0] == 0
    assert lags[-1] == L
    assert np.diff(lags).min() >= 1
    assert np.diff(lags).max() <= 16


@pytest.mark.parametrize(
    ("curve", "lag"),
    [([0, -1, -2], None), ([0, -4, -8], 2), ([0, 8, 9], 1), ([0, -1, -np.inf], 2)],
)
def test_lag_of_factor(curve, lag):
    by_lag = GradientByLag(np.arange(3), np.array(curve, float)[:, None])
    assert lag_of_factor(by_lag, 1000) == lag


@pytest.mark.parametrize("nonlinearity", ["tanh", "sigmoid", "relu"])
def test_share_of_saturated_units(nonlinearity):
    rng = np.random.default_rng(0)
    net = fb.RNN(3, 8, nonlinearity=nonlinearity, dtype=np.float64, rng=0)
    x = rng.normal(size=(200, 2, 3)) * 8
    _, a = reference.rnn_forward(net.state_dict(), x, np.zeros((2, 8)), nonlinearity)
    slope = reference.SLOPE[nonlinearity](a)
    wanted = (slope < {"tanh": 0.05, "sigmoid": 0.0125, "relu": 0.5}[nonlinearity]).mean()
    assert 0.05 < wanted < 0.95
    assert_allclose(fb.diagnose(net, x).saturated, wanted)


def test_interval_is_the_stream_s_and_holds_the_norm():
    rng = np.random.default_rng(0)
    net, x = fb.RNN(3, 30, dtype=np.float64, rng=0), rng.normal(size=(333, 2, 3))
    d = fb.diagnose(net, x, delta=1e-9)
    for b in range(2):
        _, a = reference.rnn_forward(net.state_dict(), x, np.zeros((2, 30)), "tanh")
        wanted = reference.log_norm_of_product(
            reference.rnn_jacobians(net.state_dict(), a, "tanh", b)
        )
        assert d.stream.lower[b] <= wanted <= d.stream.upper[b]
    assert d.stream.steps == 333
    assert d.stream.curve_steps[-1] == 333


def test_one_hot_is_the_array_it_stands_for():
    codes = np.random.default_rng(0).integers(0, 5, 400)
    dense = np.eye(5, dtype=np.float32)[codes]
    lazy = OneHot(codes, 5)
    assert_array_equal(lazy[13:57], dense[13:57])
    net = fb.RNN(5, 16, rng=0)
    one, other = fb.diagnose(net, lazy), fb.diagnose(net, dense)
    assert_array_equal(one.stream.lower, other.stream.lower)
    # the losses differ: cross-entropy and squared error
    assert (one.gradient.log_norms != other.gradient.log_norms).any()


def test_report_json_and_progress():
    seen = []
    x = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    d = fb.diagnose(
        fb.RNN(3, 16, rng=0), x, progress=lambda done, total: seen.append((done, total))
    )
    report = str(d)
    for word in ("classical bound", "saturated", "gradient by lag", "per step", "a second"):
        assert word in report
    assert report.endswith(d.sentence)
    assert re.search(r"after \d+ steps", d.sentence)
    figures = json.loads(d.to_json())
    assert figures["verdict"] == "vanishes"
    assert figures["stream"]["lower"] == d.stream.lower.tolist()
    assert seen[-1] == (500, 500)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_dead_net_is_reported_and_is_json():
    net = fb.RNN(2, 4, nonlinearity="relu", rng=0)
    net.bias_ih_l0 = np.full(4, -100, np.float32)
    d = fb.diagnose(net, np.ones((50, 2), np.float32))
    assert d.verdict == "vanishes"
    assert d.saturated == 1
    assert "10^" not in d.sentence
    assert "-inf" in d.to_json()
    json.loads(d.to_json(), parse_constant=lambda word: pytest.fail(word))
    str(d)


def test_plot_on_new_and_on_given_axes():
    from matplotlib.figure import Figure

    d = fb.diagnose(fb.RNN(2, 4, rng=0), np.ones((50, 2), np.float32))
    axes = d.plot()
    assert len(axes) == 2
    assert all(ax.get_xlabel() and ax.get_ylabel() for ax in axes)
    ax = Figure().subplots()
    assert d.plot(ax) is ax


def test_a_net_without_recurrence():
    net = fb.RNN(2, 4, rng=0)
    net.weight_hh_l0 = np.zeros((4, 4), np.float32)
    d = fb.diagnose(net, np.ones((50, 2), np.float32))
    assert d.verdict == "vanishes"
    assert d.classical_rate == -math.inf
    assert d.lag == 1
    str(d)
    d.to_json()
    d.plot()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named_with_its_step_and_row(bad):
    x = np.zeros((300, 4, 3), np.float32)
    x[217, 2, 1] = bad
    with pytest.raises(ValueError, match=rf"x: .* got {bad} at step 217, batch row 2"):
        fb.diagnose(fb.RNN(3, 5), x)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        (("net", np.zeros((5, 2), np.float32)), {}, TypeError, "net"),
        (
            (fb.RNN(2, 3, batch_first=True), np.zeros((5, 2), np.float32)),
            {},
            ValueError,
            "batch_first",
        ),
        ((fb.RNN(2, 3), np.zeros((5, 3), np.float32)), {}, ValueError, "x: expected"),
        ((fb.RNN(2, 3), np.zeros((5, 2))), {}, TypeError, "x: expected float32"),
        ((fb.RNN(2, 3), np.zeros((1, 2), np.float32)), {}, ValueError, "at least 2 steps"),
        ((fb.RNN(2, 3), np.zeros((5, 0, 2), np.float32)), {}, ValueError, "1 row"),
        ((fb.RNN(2, 3), OneHot([0, 1], 3)), {}, ValueError, "classes"),
        ((fb.RNN(2, 3), OneHot([0, 1], 2, np.float64)), {}, TypeError, "one-hot"),
        ((fb.RNN(2, 3), np.zeros((5, 2), np.float32)), {"delta": 2}, ValueError, "delta"),
        ((fb.RNN(2, 3), np.zeros((5, 2), np.float32)), {"probes": 0}, ValueError, "probes"),
        ((fb.RNN(2, 3), np.zeros((5, 2), np.float32)), {"places": 0}, ValueError, "places"),
        ((fb.RNN(2, 3), np.zeros((5, 2), np.float32)), {"longest_lag": 0}, ValueError, "lag"),
    ],
)
def test_bad_arguments(arguments, keywords, error, message):
    with pytest.raises(error, match=message):
        fb.diagnose(*arguments, **keywords)


def test_bad_codes():
    for codes, error in (
        ([0, 3], ValueError),
        ([-1], ValueError),
        ([0.5], TypeError),
        ([[0]], TypeError),
    ):
        with pytest.raises(error, match="codes"):
            OneHot(codes, 3)


def test_two_steps_are_enough():
    d = fb.diagnose(fb.RNN(2, 3, rng=0), np.ones((2, 2), np.float32))
    assert d.stream.steps == 2
    str(d)


def test_text_is_one_hot_over_its_own_characters():
    x = text("abca€", np.float64)
    assert x.shape == (5, 4)
    assert_array_equal(x[0:5].argmax(axis=1), [0, 1, 2, 0, 3])
    assert x[0:1].dtype == np.float64
    assert len(language_reference()) > 100_000


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_sound_of_every_width(tmp_path, width):
    import wave

    values = np.array([[-1.0, 0.5], [0.0, -0.25], [0.75, 1 - 2.0 ** (1 - 8 * width)]])
    whole = np.round(values * 2 ** (8 * width - 1)).astype("<i8")
    raw = (whole + 128 if width == 1 else whole).astype("<i8").view(np.uint8).reshape(-1, 8)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(width)
        file.setframerate(8000)
        file.writeframes(raw[:, :width].tobytes())
    y = read(tmp_path / "a.wav", np.float64)
    assert_array_equal(y, values)


@pytest.mark.parametrize("fault", [0.0, np.nan])
def test_norms_of_what_has_none_are_json(fault):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    J = np.stack([np.eye(4)] * 12)
    J[5] = fault
    report = norms_report(fb.MatrixChain(J), "J")
    found = json.loads(report.to_json(), parse_constant=refuse)
    assert found["norm"]["estimate"] == ("-inf" if fault == 0 else "nan")
    least = {row["lag"]: row["min"] for row in found["windows"]}
    largest = {row["lag"]: row["max"] for row in found["windows"]}
    if fault == 0:
        assert least == {1: "-inf", 2: "-inf", 4: "-inf", 8: "-inf"}
        assert abs(largest[2]) < 1e-9
        assert largest[8] == "-inf"
    assert ("not a number" in str(report)) == math.isnan(fault)
