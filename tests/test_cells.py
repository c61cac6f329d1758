"""Every cell, depth and direction, ragged batches and resets: against the reference and torch."""

import itertools
import platform

import numpy as np
import pytest
import reference
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from strategies import GATES, KINDS, dtypes, lay_out, layouts, net_cases
from tolerances import tolerance
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastbptt as fb
from fastbptt import threads, weights
from fastbptt.kernels import memory
from fastbptt.networks import NETWORKS

DTYPES = (np.float32, np.float64)
GRUS = [("GRU", {"reset_after": True}), ("GRU", {"reset_after": False}), ("MGU", {})]
# and what torch.nn calls the same
TORCH = [
    ("RNN", {"nonlinearity": "tanh"}, {"nonlinearity": "tanh"}),
    ("RNN", {"nonlinearity": "relu"}, {"nonlinearity": "relu"}),
    ("GRU", {"reset_after": True}, {}),
    ("LSTM", {}, {}),
]


def network(case, dtype, **keywords):
    _, _, I, H = case.shape
    net = getattr(fb, case.kind)(
        I, H, case.num_layers, bias="bias_ih_l0" in case.params, dtype=dtype,
        bidirectional=case.bidirectional, **case.options, **keywords,
    )  # fmt: skip
    net.load_state_dict({name: y.astype(dtype) for name, y in case.params.items()})
    return net


def rounded(case, dtype):
    """The case as the net of `dtype` sees it, in float64."""

    def cast(y):
        return y.astype(dtype).astype(float)

    return case._replace(
        params={name: cast(y) for name, y in case.params.items()},
        x=cast(case.x),
        d_output=cast(case.d_output),
        state=tuple(map(cast, case.state)),
        d_state=tuple(map(cast, case.d_state)),
    )


def as_state(parts, dtype=None):
    if parts is None:
        return None
    parts = tuple(y.astype(dtype or y.dtype) for y in parts)
    return parts if len(parts) == 2 else parts[0]


def parts_of(state):
    return state if isinstance(state, tuple) else (state,)


def run(case, dtype, net=None, **keywords):
    """The trace and the gradients of a case."""
    net = net or network(case, dtype)
    trace = net.trace(
        case.x.astype(dtype), as_state(case.state, dtype), lengths=case.lengths, reset=case.reset
    )
    d_state = as_state(case.d_state, dtype)
    return trace, trace.backward(case.d_output.astype(dtype), d_state, **keywords)


def close(got, wanted, dtype, case):
    T, B, I, H = case.shape
    depth = case.num_layers * (1 + case.bidirectional)
    assert got.dtype == dtype
    assert got.shape == wanted.shape
    rtol, atol = tolerance(dtype, T * depth, max(H * GATES[case.kind], I), rows=max(T * B, 1))
    assert_allclose(got, wanted, rtol=rtol, atol=atol * max(1, np.abs(wanted).max(initial=0)))


def forward(case):
    return reference.net_forward(
        case.params, case.x, case.state, case.kind, case.options, case.num_layers,
        case.bidirectional, case.lengths, case.reset,
    )  # fmt: skip


def expected(case):
    record = forward(case)
    return record, reference.net_backward(record, case.d_output, case.d_state)


def at_a_corner(case, record, dtype):
    """Whether rounding decides on which side of a relu's corner, and so on which slope, some a is.

    Where a is 0 in the reference, all that is added is 0 (no bias, no input), in any dtype.
    """
    if case.options.get("nonlinearity") != "relu":
        return False
    a = np.abs([cache["a"] for cache in record["caches"].values()])
    near = 100 * np.finfo(dtype).eps * max(1, a.max(initial=0))
    return ((a > 0) & (a < near)).any()


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


def small(kind, options, dtype=np.float32, T=9, B=5, I=6, H=21, L=2, bidirectional=True):
    rng = np.random.default_rng(0)
    net = getattr(fb, kind)(I, H, L, bidirectional=bidirectional, dtype=dtype, rng=1, **options)
    D, parts = 1 + bidirectional, 2 if kind == "LSTM" else 1

    def draw(*shape):
        return rng.normal(size=shape).astype(dtype)

    state = [draw(L * D, B, H) for _ in range(2 * parts)]
    arrays = {"x": draw(T, B, I), "d_output": draw(T, B, D * H)}
    return net, arrays, tuple(state[:parts]), tuple(state[parts:])


def everything(net, arrays, state, d_state, **keywords):
    trace = net.trace(arrays["x"], as_state(state), **keywords)
    grads = trace.backward(arrays["d_output"], as_state(d_state), per_step=True)
    states = [*parts_of(trace.state), *parts_of(grads.state)]
    steps = [*grads.per_step.values(), *trace.inside().values()]
    return [trace.output, grads.x, *states, *steps, *grads.params.values()]


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("H", [21, 32])
def test_no_state_is_a_state_of_zeros(kind, options, ragged, H):
    net, arrays, state, d_state = small(kind, options, H=H)
    keywords = {"lengths": [9, 0, 4, 9, 1], "reset": np.arange(45).reshape(9, 5) % 7 == 3}
    given = keywords if ragged else {}
    for without in (state, d_state):
        some = [
            tuple(np.zeros_like(y) for y in part) if part is without else part
            for part in (state, d_state)
        ]
        wanted = everything(net, arrays, *some, **given)
        left_out = [None if part is without else part for part in (state, d_state)]
        for one, other in zip(wanted, everything(net, arrays, *left_out, **given), strict=True):
            assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("H", [16, 140])
def test_rows_set_apart_have_the_bits_of_others(kind, options, H, dtype, monkeypatch, request):
    found = []
    request.addfinalizer(weights.sizes.cache_clear)
    for period in (1 << 40, 1):  # no row is set apart, and each is
        monkeypatch.setattr(memory, "_PERIOD", period)
        weights.sizes.cache_clear()
        net, arrays, state, d_state = small(kind, options, dtype, H=H)
        sizes = net.weights.layers[0].sizes
        wide = net.weights.design.slots.width * sizes.Hp
        assert (sizes.wide > wide) == (period == 1)
        found.append(everything(net, arrays, state, d_state))
    for one, other in zip(*found, strict=True):
        assert_array_equal(one, other)


@pytest.mark.parametrize(("kind", "options"), KINDS)
@settings(deadline=None, max_examples=15)
@given(chosen=st.tuples(*[layouts()] * 3), dtype=dtypes())
def test_any_layout_of_the_inputs_gives_the_same_bits(kind, options, chosen, dtype):
    net, arrays, state, d_state = small(kind, options, dtype)
    wanted = everything(net, arrays, state, d_state)
    laid = {n: lay_out(y, layout) for (n, y), layout in zip(arrays.items(), chosen, strict=False)}
    states = [tuple(lay_out(y, chosen[2]) for y in part) for part in (state, d_state)]
    for one, other in zip(wanted, everything(net, laid, *states), strict=True):
        assert_array_equal(one, other)
    for name, y in laid.items():
        assert_array_equal(y, arrays[name])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("H", [1, 16, 40, 140])
def test_a_row_has_the_same_bits_alone_in_a_batch_and_in_a_ragged_one(kind, options, H, dtype):
    net, arrays, state, d_state = small(kind, options, dtype, B=11, H=H)
    lengths = np.array([3, 9, 1, 9, 5, 5, 0, 7, 2, 9, 4])
    trace = net.trace(arrays["x"], as_state(state), lengths=lengths)
    grads = trace.backward(arrays["d_output"], as_state(d_state), per_step=True)
    for b in (0, 1, 4, 6, 10):
        n = lengths[b]
        one, done = net.trace(arrays["x"][:n, b], as_state([y[:, b] for y in state])), None
        done = one.backward(
            arrays["d_output"][:n, b], as_state([y[:, b] for y in d_state]), per_step=True
        )
        assert_array_equal(one.output, trace.output[:n, b])
        assert_array_equal(done.x, grads.x[:n, b])
        for got, y in zip(parts_of(done.state), parts_of(grads.state), strict=True):
            assert_array_equal(got, y[:, b])
        for got, y in zip(parts_of(one.state), parts_of(trace.state), strict=True):
            assert_array_equal(got, y[:, b])
        for name, y in done.per_step.items():
            assert_array_equal(y, grads.per_step[name][:, :n, b])
        assert not trace.output[n:, b].any()
        assert not grads.x[n:, b].any()


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_padding_is_neither_read_nor_given_a_gradient(kind, options):
    net, arrays, state, d_state = small(kind, options, np.float64)
    lengths = [4, 9, 0, 1, 6]
    wanted = everything(net, arrays, state, d_state, lengths=lengths)
    for b, n in enumerate(lengths):
        arrays["x"][n:, b] = np.nan
        arrays["d_output"][n:, b] = np.inf
    for one, other in zip(
        wanted, everything(net, arrays, state, d_state, lengths=lengths), strict=True
    ):
        assert_array_equal(one, other)
        assert np.isfinite(one).all()


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_reset_cuts_a_sequence_in_two(kind, options):
    """Steps after it are those of a sequence that begins there with zeros."""
    net, arrays, state, d_state = small(kind, options, bidirectional=False)
    reset = np.zeros((9, 5), bool)
    reset[4] = True
    trace = net.trace(arrays["x"], as_state(state), reset=reset)
    grads = trace.backward(arrays["d_output"], as_state(d_state))
    first = net.trace(arrays["x"][:4], as_state(state))
    second = net.trace(arrays["x"][4:])
    assert_array_equal(trace.output, np.concatenate([first.output, second.output]))
    of_first = first.backward(arrays["d_output"][:4])
    of_second = second.backward(arrays["d_output"][4:], as_state(d_state))
    assert_array_equal(grads.x, np.concatenate([of_first.x, of_second.x]))
    for one, other in zip(parts_of(grads.state), parts_of(of_first.state), strict=True):
        assert_array_equal(one, other)
    assert_array_equal(
        net(arrays["x"], as_state(state), reset=np.eye(9, 5, dtype=bool))[0][0, 1:],
        net(arrays["x"], as_state(state))[0][0, 1:],
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_the_bits_depend_neither_on_threads_nor_on_chunks(kind, options, dtype, monkeypatch):
    net, arrays, state, d_state = small(kind, options, dtype, T=40, H=40, B=7)
    lengths = [40, 3, 17, 40, 0, 22, 39]
    before = fb.get_num_threads()
    monkeypatch.setattr(threads, "_WORTH_SHARING", 0)
    try:
        for keywords in ({}, {"lengths": lengths}):
            fb.set_num_threads(1)
            wanted = everything(net, arrays, state, d_state, **keywords)
            for count in (2, 3, 8):
                fb.set_num_threads(count)
                got = everything(net, arrays, state, d_state, **keywords)
                for one, other in zip(wanted, got, strict=True):
                    assert_array_equal(one, other)
            sums = len(net.state_dict())  # whose rounding may depend on the chunk
            for steps in (1, 7):
                monkeypatch.setattr("fastbptt.layers._chunk_steps", lambda *_, n=steps: n)
                got = everything(net, arrays, state, d_state, **keywords)
                for one, other in zip(wanted[:-sums], got[:-sums], strict=True):
                    assert_array_equal(one, other)
                for one, other in zip(wanted, got, strict=True):
                    atol = 40 * np.finfo(dtype).eps * np.abs(one).max()
                    assert_allclose(other, one, rtol=0, atol=atol)
            monkeypatch.undo()
            monkeypatch.setattr(threads, "_WORTH_SHARING", 0)
    finally:
        fb.set_num_threads(before)


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_few_long_sequences_have_the_bits_of_many(kind):
    # what the next step reads of one to four is fetched, of more the products do it
    rng = np.random.default_rng(0)
    net, lengths = getattr(fb, kind)(5, 64, rng=0), [2400, 1700, 2400, 9, 2000, 2399, 0]
    x, dy = (rng.normal(size=(2400, 7, n)).astype(np.float32) for n in (5, 64))
    with threads.num_threads(1):  # several would have fewer sequences each
        many = net.trace(x, lengths=lengths).backward(dy)
        for some in ([0], [1, 4], [5, 0, 3], [2, 0, 5, 4]):
            of_some = [lengths[b] for b in some]
            few = net.trace(x[:, some], lengths=of_some).backward(dy[:, some])
            assert_array_equal(few.x, many.x[:, some])


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_batch_first_and_unbatched(kind, options):
    net, arrays, state, d_state = small(kind, options)
    first = getattr(fb, kind)(6, 21, 2, bidirectional=True, batch_first=True, rng=1, **options)
    lengths, reset = [9, 4, 0, 8, 9], np.random.default_rng(0).random((9, 5)) < 0.2
    wanted = everything(net, arrays, state, d_state, lengths=lengths, reset=reset)
    swapped = {name: y.swapaxes(0, 1) for name, y in arrays.items()}
    got = everything(first, swapped, state, d_state, lengths=lengths, reset=reset.T)
    for i, (one, other) in enumerate(zip(wanted, got, strict=True)):
        assert_array_equal(one, other.swapaxes(0, 1) if i < 2 else other)
    trace = net.trace(arrays["x"][:, 3], as_state([y[:, 3] for y in state]), reset=reset[:, 3])
    same = net.trace(arrays["x"], as_state(state), reset=reset)
    assert_array_equal(trace.output, same.output[:, 3])
    for name, y in trace.inside().items():
        assert_array_equal(y, same.inside()[name][:, :, 3])


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


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_without_the_input_gradient_the_others_have_the_same_bits(kind, options):
    net, arrays, state, d_state = small(kind, options)
    trace = net.trace(arrays["x"], as_state(state))
    full = trace.backward(arrays["d_output"], as_state(d_state))
    short = trace.backward(arrays["d_output"], as_state(d_state), input_gradient=False)
    assert short.x is None
    for name, y in full.params.items():
        assert_array_equal(short.params[name], y)


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


def test_without_recurrent_weights_an_lstm_sums_what_its_gates_let_through():
    """W_hh = 0: c_t = sum_s i_s g_s prod_{r>s} f_r, by the gates of x alone."""
    net = fb.LSTM(4, 7, bias=False, dtype=np.float64, rng=0)
    net.weight_hh_l0 = np.zeros((28, 7))
    x = np.random.default_rng(0).normal(size=(6, 3, 4))
    i, f, g, o = np.split(x @ net.weight_ih_l0.T, 4, axis=-1)
    i, f, o, g = *(1 / (1 + np.exp(-a)) for a in (i, f, o)), np.tanh(g)
    c = sum(i[s] * g[s] * np.prod(f[s + 1 :], axis=0) for s in range(6))
    output, (_, last) = net(x)
    assert_allclose(last[0], c, rtol=1e-13, atol=1e-15)
    assert_allclose(output[-1], o[-1] * np.tanh(c), rtol=1e-13, atol=1e-15)


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
    assert {kind for kind, _ in KINDS} == set(NETWORKS)


def check_that_subnormal_numbers_are_left_to_others(arrays):
    """On x86 the arrays have none, and here they can be made."""
    tiny = np.finfo(np.float32).tiny
    for y in arrays:
        size = np.abs(y)
        assert size.max() > tiny
        if platform.machine() in ("x86_64", "AMD64"):
            assert not ((size > 0) & (size < tiny)).any()
    assert (np.full(64, tiny) / np.float32(8) > 0).all()


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("count", [1, 3])
def test_a_gradient_vanishes_past_the_subnormal_numbers_and_leaves_them_to_others(
    kind, options, count, monkeypatch
):
    monkeypatch.setattr(threads, "_WORTH_SHARING", 0)
    net = getattr(fb, kind)(3, 8, rng=0, **options)
    for name, y in net.state_dict().items():
        setattr(net, name, y * np.float32(0.3))
    x = np.random.default_rng(0).normal(size=(300, 4, 3)).astype(np.float32)
    with threads.num_threads(count):
        trace = net.trace(x)
        grads = trace.backward(None, trace.state, per_step=True)
    for y in grads.per_step.values():
        assert (y == 0).any()
    check_that_subnormal_numbers_are_left_to_others(grads.per_step.values())


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("count", [1, 3])
def test_a_gate_all_but_closed_is_closed_and_leaves_subnormal_numbers_to_others(
    kind, options, count, monkeypatch
):
    monkeypatch.setattr(threads, "_WORTH_SHARING", 0)
    net = getattr(fb, kind)(3, 8, rng=0, **options)
    x = np.random.default_rng(0).normal(size=(300, 4, 3)).astype(np.float32) * np.float32(300)
    with threads.num_threads(count):
        inside = net.trace(x).inside()
    gates = [inside[letter] for letter in set(inside) & set("rzifo")]
    for y in gates:
        assert (y < np.finfo(np.float32).tiny).any()
    check_that_subnormal_numbers_are_left_to_others(gates)
