"""Every cell, depth and direction, ragged batches and resets: against the reference and torch."""

import itertools

import numpy as np
import pytest
import reference
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nets import (
    DTYPES,
    as_state,
    at_a_corner,
    close,
    expected,
    forward,
    network,
    parts_of,
    rounded,
    run,
    small,
)
from numpy.testing import assert_allclose, assert_array_equal
from strategies import KINDS, net_cases
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastbptt as fb
from fastbptt.networks import NETWORKS

GRUS = [("GRU", {"reset_after": True}), ("GRU", {"reset_after": False}), ("MGU", {})]
# and what torch.nn calls the same
TORCH = [
    ("RNN", {"nonlinearity": "tanh"}, {"nonlinearity": "tanh"}),
    ("RNN", {"nonlinearity": "relu"}, {"nonlinearity": "relu"}),
    ("GRU", {"reset_after": True}, {}),
    ("LSTM", {}, {}),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "options"), KINDS)
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_every_result_against_the_reference(kind, options, dtype, data):
    case = rounded(data.draw(net_cases([(kind, options)])), dtype)
    record, wanted = expected(case)
    assume(not at_a_corner(case, record, dtype))
    trace, grads = run(case, dtype, per_step=True)

    close(trace.output, record["output"], dtype, case)
    for got, state in zip(parts_of(trace.state), record["state"], strict=True):
        close(got, state, dtype, case)
    assert grads.params.keys() == case.params.keys()
    for name in case.params:
        close(grads.params[name], wanted[name], dtype, case)
    close(grads.x, wanted["dx"], dtype, case)
    for got, state in zip(parts_of(grads.state), wanted["dstate"], strict=True):
        close(got, state, dtype, case)
    assert grads.per_step.keys() == wanted["per_step"].keys()
    for name, value in wanted["per_step"].items():
        close(grads.per_step[name], value, dtype, case)
    inside = trace.inside()
    assert inside.keys() == record["inside"].keys()
    for name, value in record["inside"].items():
        close(inside[name], value, dtype, case)

    net = network(case, dtype)
    output, state = net(
        case.x.astype(dtype), as_state(case.state, dtype), lengths=case.lengths, reset=case.reset
    )
    assert_array_equal(output, trace.output)
    for one, other in zip(parts_of(state), parts_of(trace.state), strict=True):
        assert_array_equal(one, other)
    _, without = run(case, dtype)
    for name in case.params:
        assert_array_equal(without.params[name], grads.params[name])
    assert without.per_step is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "options", "theirs"), TORCH)
@settings(deadline=None, max_examples=8)
@given(data=st.data())
def test_equality_with_torch(kind, options, theirs, dtype, data):
    """To 1e-12 in float64 and 1e-5 in float32, relative to the largest element.

    Of nets whose layers do not amplify: weights of 10 multiply either library's rounding by layer.
    """
    # torch takes no empty sequence and knows no resets
    case = data.draw(net_cases([(kind, options)], scales=(1e-3, 1.0), least=1))
    case = rounded(case, dtype)._replace(reset=None)
    assume(not at_a_corner(case, forward(case), dtype))
    T, _, I, H = case.shape
    bias, double = "bias_ih_l0" in case.params, dtype == np.float64
    other = getattr(torch.nn, kind)(
        I, H, case.num_layers, bias=bias, bidirectional=case.bidirectional,
        dtype=torch.float64 if double else torch.float32, **theirs,
    )  # fmt: skip
    trace, grads = run(case, dtype)
    other.load_state_dict(
        {name: torch.from_numpy(y.astype(dtype)) for name, y in case.params.items()}
    )
    x = torch.from_numpy(case.x.astype(dtype)).requires_grad_()
    state = tuple(torch.from_numpy(y.astype(dtype)).requires_grad_() for y in case.state)
    given_state = state if len(state) == 2 else state[0]
    if case.lengths is None:
        output, last = other(x, given_state)
    else:
        packed = pack_padded_sequence(x, torch.from_numpy(case.lengths), enforce_sorted=False)
        output, last = other(packed, given_state)
        output, _ = pad_packed_sequence(output, total_length=T)
    wanted = [output, *parts_of(last)]
    given_gradients = [case.d_output, *case.d_state]
    torch.autograd.backward(wanted, [torch.from_numpy(y.astype(dtype)) for y in given_gradients])
    got = [trace.output, *parts_of(trace.state), grads.x, *parts_of(grads.state)]
    wanted += [x.grad, *(y.grad for y in state)]
    for name, parameter in other.named_parameters():
        got.append(grads.params[name])
        wanted.append(parameter.grad)
    for one, tensor in zip(got, wanted, strict=True):
        values = tensor.detach().numpy()
        atol = (1e-12 if double else 1e-5) * max(1, np.abs(values).max())
        assert_allclose(one, values, rtol=0, atol=atol)


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("T", "B"), [(0, 3), (4, 0), (0, 0)])
def test_no_steps_and_no_rows(kind, options, bidirectional, T, B):
    net, arrays, state, d_state = small(kind, options, T=T, B=B, bidirectional=bidirectional)
    for keywords in ({}, {"lengths": np.zeros(B, int)}, {"reset": np.ones((T, B), bool)}):
        trace = net.trace(arrays["x"], as_state(state), **keywords)
        grads = trace.backward(arrays["d_output"], as_state(d_state), per_step=True)
        assert trace.output.shape == arrays["d_output"].shape
        assert grads.x.shape == arrays["x"].shape
        for one, other in zip(parts_of(trace.state), state, strict=True):
            assert_array_equal(one, other)
        for one, other in zip(parts_of(grads.state), d_state, strict=True):
            assert_array_equal(one, other)
        assert not any(y.any() for y in grads.params.values())


def test_a_gru_at_rest_stays_there():
    """No input, no bias, no state: r = z = 1/2, n = 0, and every gradient of h halves."""
    for kind, options in GRUS:
        net = getattr(fb, kind)(3, 8, bias=False, dtype=np.float64, rng=0, **options)
        trace = net.trace(np.zeros((5, 2, 3)))
        assert not trace.output.any()
        inside = trace.inside()
        for gate in set(inside) & set("rzf"):
            assert (inside[gate] == 0.5).all()
        w = net.weight_hh_l0[-8:]  # of n, which sees half of h
        J = 0.5 * np.eye(8) + 0.5 * 0.5 * w
        u = np.random.default_rng(0).normal(size=(1, 2, 8))
        got = trace.backward(d_state=u).state
        assert_allclose(got, u @ np.linalg.matrix_power(J, 5), rtol=1e-13)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_without_recurrent_weights_a_net_sums_what_its_gates_let_through(kind, options):
    """W_hh = 0: the state is sum_s new_s prod_{r>s} kept_r, by the gates of x and the biases alone.

    kept is 0 of a plain net, an LSTM's f (of c), a GRU's z and 1 - f of an MGU.
    """
    net = getattr(fb, kind)(4, 7, dtype=np.float64, rng=0, **options)
    net.weight_hh_l0 = np.zeros_like(net.weight_hh_l0)
    rng = np.random.default_rng(0)
    x, state, d_state = (rng.normal(size=shape) for shape in ((6, 3, 4), (1, 3, 7), (1, 3, 7)))
    b_ih, b_hh = (np.split(b, reference.GATES[kind]) for b in (net.bias_ih_l0, net.bias_hh_l0))
    a = np.split(x @ net.weight_ih_l0.T, reference.GATES[kind], axis=-1)
    gates = [1 / (1 + np.exp(-(y + b + c))) for y, b, c in zip(a, b_ih, b_hh, strict=True)]
    if kind == "RNN":
        value = reference.VALUE[options["nonlinearity"]](a[0] + b_ih[0] + b_hh[0])
        kept, new, shown = np.zeros_like(value), value, None
    elif kind == "LSTM":
        i, kept, _, shown = gates
        new = i * np.tanh(a[2] + b_ih[2] + b_hh[2])
    elif kind == "GRU":  # r multiplies the bias alone, and nothing if it comes before W_hh
        r = gates[0] if options["reset_after"] else 1.0
        kept, shown = gates[1], None
        new = (1 - kept) * np.tanh(a[2] + b_ih[2] + r * b_hh[2])
    else:
        f, kept, shown = gates[0], 1 - gates[0], None
        new = f * np.tanh(a[1] + b_ih[1] + b_hh[1])
    begin = state[0] * np.prod(kept, axis=0)
    last = begin + sum(new[s] * np.prod(kept[s + 1 :], axis=0) for s in range(6))
    given = (np.zeros_like(state), state) if kind == "LSTM" else state
    trace = net.trace(x, given)
    assert_allclose(parts_of(trace.state)[-1][0], last, rtol=1e-13, atol=1e-15)
    output = last if shown is None else shown[-1] * np.tanh(last)
    assert_allclose(trace.output[-1], output, rtol=1e-13, atol=1e-15)
    d_given = (np.zeros_like(d_state), d_state) if kind == "LSTM" else d_state
    before = parts_of(trace.backward(d_state=d_given).state)[-1]
    assert_allclose(before, d_state * np.prod(kept, axis=0), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "options"), KINDS)
@settings(deadline=None, max_examples=5)
@given(data=st.data(), k=st.integers(1, 4))
def test_the_stream_against_explicit_jacobians(kind, options, data, dtype, k):
    """With as many probes as the state has numbers it is exact; with k it is a bound from below."""
    choice = net_cases(
        [(kind, options)], most=20, both_ways=False, ragged=False, scales=(1.0,), least=1
    )
    case = rounded(data.draw(choice), dtype)
    net, (_, B, _, H) = network(case, dtype), case.shape
    record, _ = expected(case)
    parts = len(case.state)
    for probes in (k, case.num_layers * parts * H):
        stream = fb.JacobianStream(net, probes=probes, state=as_state(case.state, dtype))
        stream.update(case.x.astype(dtype))
        result = stream.result()
        for one, other in zip(parts_of(result.state), record["state"], strict=True):
            close(one, other, dtype, case)
        for b in range(B):
            wanted = reference.log_norm_of_product(reference.jacobians(record, b))
            if wanted < np.log(np.finfo(dtype).tiny) / 2:
                continue  # slopes below the range of the dtype
            atol = 1e-3 if dtype == np.float32 else 1e-9
            assert result.lower[b] <= wanted + atol
            if probes > k:
                assert_allclose(result.lower[b], wanted, atol=atol)


def remembering_lstm(dtype=np.float64):
    """Forget gates near 1, others small: c keeps what dh_t/dh_{t-1} alone does not show."""
    net = fb.LSTM(2, 6, dtype=dtype, rng=3)
    bias = np.repeat(np.array([-1.0, 8.0, 0.0, -1.0], dtype), 6)  # i f g o
    net.bias_ih_l0, net.weight_hh_l0 = bias, (0.3 * net.weight_hh_l0).astype(dtype)
    return net


def test_the_jacobian_of_an_lstm_cut_to_h_gives_the_wrong_verdict():
    net, T = remembering_lstm(), 300
    x = np.random.default_rng(0).normal(size=(T, 1, 2))
    zeros = np.zeros((1, 1, 6))
    record = reference.net_forward(net.state_dict(), x, (zeros, zeros), "LSTM", {})
    J = reference.jacobians(record, 0)
    true, cut = map(reference.log_norm_of_product, (J, reference.cut_to_h(J, 6)))
    stream = fb.JacobianStream(net, probes=12)
    stream.update(x[:, 0])
    assert_allclose(stream.result().lower, true, atol=1e-9)
    assert fb.diagnose(net, x[:, 0], probes=12, longest_lag=64).verdict == "neither"
    assert true > -np.log(1000)
    assert cut < -np.log(1000) * 20  # "vanishes", by far


def test_the_jacobian_of_an_lstm_cut_to_h_has_the_wrong_sign():
    """At rest h and c feed each other: c' = f c + i W h, h' = o c', of which the cut has o i W."""
    net, T, f, W = fb.LSTM(1, 1, dtype=np.float64), 300, 1 / (1 + np.exp(-20.0)), 1.2
    net.load_state_dict(
        {
            "weight_ih_l0": np.zeros((4, 1)),
            "weight_hh_l0": np.array([[0], [0], [W], [0]]),
            "bias_ih_l0": np.array([0, 20.0, 0, 0]),
            "bias_hh_l0": np.zeros(4),
        }
    )
    x, zeros = np.zeros((T, 1, 1)), np.zeros((1, 1, 1))
    record = reference.net_forward(net.state_dict(), x, (zeros, zeros), "LSTM", {})
    cut = reference.cut_to_h(reference.jacobians(record, 0), 1)
    assert_allclose(reference.log_norm_of_product(cut), T * np.log(W / 4))  # "vanishes"
    norm = fb.log_norm(net.trace(x[:, 0]).chain())
    grown, first = T * np.log(f + W / 4), np.log(np.hypot(0.5, 1) * np.hypot(f, W / 2))
    assert_allclose(norm.estimate, grown - np.log(f + W / 4) + first, rtol=1e-12)
    assert fb.diagnose(net, x[:, 0], longest_lag=64).verdict == "explodes"


class TestBadInput:
    net, arrays, state, _ = small("LSTM", {}, bidirectional=False)

    @pytest.mark.parametrize(
        ("lengths", "error", "message"),
        [
            ([1, 2, 3], ValueError, r"lengths: expected shape \(5,\)"),
            ([1, 2, 3, 4, 10], ValueError, r"expected all in 0 .. 9, the steps of x, got 1 .. 10"),
            ([1, 2, 3, 4, -1], ValueError, "got -1 .. 4"),
            ([1.0, 2, 3, 4, 5], TypeError, "lengths: expected integers, got float64"),
            ([[1, 2, 3, 4, 5]], ValueError, "lengths: expected shape"),
            (4, ValueError, "lengths: expected shape"),
            ("abcde", TypeError, "lengths: expected integers"),
        ],
    )
    def test_lengths(self, lengths, error, message):
        with pytest.raises(error, match=message):
            self.net(self.arrays["x"], lengths=lengths)

    @pytest.mark.parametrize(
        ("reset", "error", "message"),
        [
            (np.zeros((9, 4), bool), ValueError, r"reset: expected shape \(9, 5\)"),
            (np.zeros((9, 5)), TypeError, "reset: expected bools, got float64"),
            (True, ValueError, "reset: expected shape"),
        ],
    )
    def test_reset(self, reset, error, message):
        with pytest.raises(error, match=message):
            self.net(self.arrays["x"], reset=reset)

    def test_states(self):
        h, c = self.state
        for bad in (h, (h,), (h, c, c), 3):
            with pytest.raises(TypeError, match=r"state: expected a tuple \(h, c\)"):
                self.net(self.arrays["x"], bad)
        with pytest.raises(ValueError, match=r"state\[1\]: expected shape \(2, 5, 21\)"):
            self.net(self.arrays["x"], (h, c[:1]))
        with pytest.raises(TypeError, match=r"d_state\[0\]: expected float32"):
            self.net.trace(self.arrays["x"]).backward(d_state=(h.astype(float), c))
        with pytest.raises(TypeError, match="per_step"):
            self.net.trace(self.arrays["x"]).backward(per_step=1)
        with pytest.raises(TypeError, match="input_gradient"):
            self.net.trace(self.arrays["x"]).backward(input_gradient="no")

    def test_constructors(self):
        with pytest.raises(NotImplementedError, match="proj_size: only 0 is implemented, got 2"):
            fb.LSTM(3, 4, proj_size=2)
        with pytest.raises(TypeError, match="reset_after"):
            fb.GRU(3, 4, reset_after=1)
        with pytest.raises(ValueError, match="one direction"):
            fb.JacobianStream(fb.GRU(3, 4, bidirectional=True))
        with pytest.raises(TypeError, match="expected one of RNN, GRU, LSTM, MGU"):
            fb.JacobianStream(torch.nn.GRU(3, 4))


def test_names_and_shapes_are_those_of_torch():
    cases = itertools.product(("RNN", "GRU", "LSTM"), (1, 3), (False, True), (False, True))
    for kind, layers, bidirectional, bias in cases:
        other = getattr(torch.nn, kind)(4, 5, layers, bias=bias, bidirectional=bidirectional)
        net = getattr(fb, kind)(4, 5, layers, bias=bias, bidirectional=bidirectional)
        wanted = [(name, tuple(p.shape)) for name, p in other.named_parameters()]
        assert [(name, y.shape) for name, y in net.state_dict().items()] == wanted
    assert {kind for kind, _ in KINDS} == set(NETWORKS) <= set(fb.__all__)
