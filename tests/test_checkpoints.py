"""BPTT over checkpoints: against the reference, and against the trace that keeps everything."""

import copy
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import as_state, close, expected, network, parts_of, rounded
from numpy.testing import assert_array_equal
from strategies import dtypes, net_cases

import fastbptt as fb
from fastbptt import checkpoints
from fastbptt.trace import Trace, run


@settings(deadline=None, max_examples=150)
@given(
    case=net_cases(both_ways=False), dtype=dtypes(), steps=st.integers(1, 11), called=st.booleans()
)
def test_every_gradient_against_the_reference(case, dtype, steps, called):
    case = rounded(case, dtype)
    record, wanted = expected(case)
    net, x, state = network(case, dtype), case.x.astype(dtype), as_state(case.state, dtype)
    trace = net.trace(x, state, lengths=case.lengths, reset=case.reset, checkpoint=steps)
    dy, asked = case.d_output.astype(dtype), []

    def d_output(t0, output):
        asked.append(t0)
        close(output, record["output"][t0 : t0 + steps], dtype, case)
        return dy[t0 : t0 + steps]

    grads = trace.backward(d_output if called else dy, as_state(case.d_state, dtype))
    if called:
        assert asked == list(range(0, max(len(x), 1), steps))[::-1]
    for got, one in zip(parts_of(trace.state), record["state"], strict=True):
        close(got, one, dtype, case)
    assert grads.params.keys() == case.params.keys()
    for name in case.params:
        close(grads.params[name], wanted[name], dtype, case)
    close(grads.x, wanted["dx"], dtype, case)
    for got, one in zip(parts_of(grads.state), wanted["dstate"], strict=True):
        close(got, one, dtype, case)


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("batch", ["first", "second", "none"])
def test_layouts_and_what_is_left_out(kind, batch):
    net = getattr(fb, kind)(3, 5, num_layers=2, batch_first=batch == "first", rng=0)
    x = np.random.default_rng(0).normal(size=(20, 3) if batch == "none" else (20, 20, 3))
    x = x.astype(np.float32)
    whole, parts = net.trace(x), net.trace(x, checkpoint=7)
    for one, other in zip(parts_of(whole.state), parts_of(parts.state), strict=True):
        assert_array_equal(one, other)
    wanted = whole.backward(np.ones_like(whole.output))
    got = parts.backward(np.ones_like(whole.output))
    assert got.x.shape == x.shape
    np.testing.assert_allclose(got.x, wanted.x, rtol=1e-5, atol=1e-6)
    for one, other in zip(parts_of(got.state), parts_of(wanted.state), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    without = parts.backward(np.ones_like(whole.output), input_gradient=False)
    assert without.x is None
    for name, y in got.params.items():
        assert_array_equal(without.params[name], y)
    nothing = parts.backward()
    assert not any(y.any() for y in nothing.params.values())
    assert not parts.backward(lambda t0, output: None).x.any()


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_of_the_arguments_x_alone_is_read_again(kind):
    rng, parts = np.random.default_rng(0), 1 + (kind == "LSTM")
    net = getattr(fb, kind)(3, 5, rng=0)
    x, dy = (rng.normal(size=(20, 4, n)).astype(np.float32) for n in (3, 5))
    states = [rng.normal(size=(1, 4, 5)).astype(np.float32) for _ in range(parts)]
    lengths, reset = np.array([20, 3, 0, 11]), rng.random((20, 4)) < 0.1
    state = states[0] if parts == 1 else tuple(states)
    trace = net.trace(x, state, lengths, reset, checkpoint=7)
    wanted = trace.backward(dy)
    for y in (*states, lengths, reset):
        y[...] = 1
    got = trace.backward(dy)
    for name, y in got.params.items():
        assert_array_equal(y, wanted.params[name])
    assert_array_equal(got.x, wanted.x)


def test_a_long_sum_is_no_less_exact_than_without():
    """Sums of many segments in float32 would lose what the sums of float64 keep."""
    net, x = fb.RNN(1, 1, rng=0, dtype=np.float32), np.ones((200_000, 1, 1), np.float32)
    net.weight_hh_l0 = np.zeros((1, 1), np.float32)
    trace = net.trace(x, checkpoint=100)
    got = trace.backward(np.full((200_000, 1, 1), 0.1, np.float32)).params["bias_ih_l0"][0]
    a = float(net.weight_ih_l0[0, 0]) + float(net.bias_ih_l0[0]) + float(net.bias_hh_l0[0])
    wanted = 200_000 * float(np.float32(0.1)) * (1 - np.tanh(a) ** 2)
    assert abs(got / wanted - 1) < 1e-5


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"checkpoint": 0}, ValueError, "checkpoint: expected at least 1, got 0"),
        ({"checkpoint": 1.5}, TypeError, "checkpoint: expected an int, got float"),
        ({"checkpoint": True}, TypeError, "checkpoint: expected an int, got bool"),
    ],
)
def test_bad_checkpoints(arguments, error, message):
    with pytest.raises(error, match=message):
        fb.RNN(2, 3).trace(np.zeros((4, 1, 2), np.float32), **arguments)


def test_bad_gradients_and_nets():
    x = np.zeros((10, 1, 2), np.float32)
    with pytest.raises(ValueError, match="checkpoint: expected None, as the net is bidirectional"):
        fb.RNN(2, 3, bidirectional=True).trace(x, checkpoint=4)
    trace = fb.RNN(2, 3).trace(x, checkpoint=4)
    with pytest.raises(ValueError, match=r"d_output: expected shape \(10, 1, 3\), got \(4, 1, 3\)"):
        trace.backward(np.zeros((4, 1, 3), np.float32))
    with pytest.raises(ValueError, match=r"d_output: expected shape \(2, 1, 3\), got \(4, 1, 3\)"):
        trace.backward(lambda t0, output: np.zeros((4, 1, 3), np.float32))
    with pytest.raises(TypeError, match="d_output: expected float32, got float64"):
        trace.backward(lambda t0, output: np.zeros(output.shape))
    with pytest.raises(ValueError, match=r"d_state: expected shape \(1, 1, 3\)"):
        trace.backward(d_state=np.zeros((1, 3), np.float32))
    with pytest.raises(TypeError, match="input_gradient"):
        trace.backward(input_gradient=None)


def test_what_a_trace_with_checkpoints_has_not_is_told():
    trace = fb.RNN(2, 3).trace(np.zeros((9, 2), np.float32), checkpoint=4)
    for name in ("chain", "inside"):
        with pytest.raises(AttributeError, match=f"'{name}' of Ch.*without `checkpoint`"):
            getattr(trace, name)
    with pytest.raises(AttributeError, match=r"'words' of CheckpointedTrace: .* state$"):
        trace.words  # noqa: B018
    assert not hasattr(trace, "output")
    assert_array_equal(copy.copy(trace).state, trace.state)


def test_one_segment_has_its_trace_at_a_time(monkeypatch):
    net, x = fb.LSTM(3, 5, rng=0), np.ones((40, 2, 3), np.float32)
    trace = net.trace(x, checkpoint=10)
    made = [weakref.ref(trace._last)]

    def noted(*given):
        assert not any(one() is not None for one in made)
        one = Trace(*given)
        made.append(weakref.ref(one))
        return one

    monkeypatch.setattr(checkpoints, "Trace", noted)
    wanted = trace.backward(lambda t0, output: output)
    assert len(made) == 4  # the last segment's there was
    made.clear()
    again = trace.backward(lambda t0, output: output)
    assert len(made) == 4
    assert_array_equal(again.x, wanted.x)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_has_no_trace(copied):
    net, x = fb.LSTM(3, 5, rng=0), np.ones((40, 2, 3), np.float32)
    trace = net.trace(x, checkpoint=10)
    other = copied(trace)
    assert other._last is None
    wanted, got = (one.backward(lambda t0, output: output) for one in (trace, other))
    assert_array_equal(got.x, wanted.x)


def test_one_segment_is_run_forward_at_a_time(monkeypatch):
    """And the last one with its trace."""
    made = []

    def noted(*given, **named):
        assert not any(one() is not None for one in made)
        passes = run(*given, **named)
        made.extend(weakref.ref(one) for one in passes)
        return passes

    def last(*given):
        assert not any(one() is not None for one in made)
        return Trace(*given)

    monkeypatch.setattr(checkpoints, "run", noted)
    monkeypatch.setattr(checkpoints, "Trace", last)
    fb.LSTM(3, 5, 2, rng=0).trace(np.ones((40, 2, 3), np.float32), checkpoint=10)
    assert len(made) == 6


def test_a_trace_whose_loss_failed_goes_back_again():
    net, x = fb.GRU(3, 5, rng=0), np.ones((40, 2, 3), np.float32)
    trace = net.trace(x, checkpoint=10)
    wanted = net.trace(x, checkpoint=10).backward(lambda t0, output: output)

    def fails(t0, output):
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        trace.backward(fails)
    assert_array_equal(trace.backward(lambda t0, output: output).x, wanted.x)
