"""fb.RNN against the slow reference and torch: forward, every gradient, layouts, bad input."""

import copy
import itertools
import pickle
import time

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from numpy.testing import assert_allclose, assert_array_equal
from strategies import cases
from tolerances import tolerance

import fastbptt as fb
from fastbptt.kernels import chain, packing, sweeps
from fastbptt.kernels.activations import TAGS
from fastbptt.networks import NETWORKS

DTYPES = (np.float32, np.float64)


def network(case, dtype, **keywords):
    H, I = case.params["weight_ih_l0"].shape
    bias = "bias_ih_l0" in case.params
    net = fb.RNN(I, H, nonlinearity=case.nonlinearity, bias=bias, dtype=dtype, **keywords)
    net.load_state_dict({name: y.astype(dtype) for name, y in case.params.items()})
    return net


def rounded(case, dtype):
    """The case as the net of `dtype` sees it, in float64."""
    return case._replace(
        params={name: y.astype(dtype).astype(float) for name, y in case.params.items()},
        **{
            name: getattr(case, name).astype(dtype).astype(float)
            for name in ("x", "h0", "d_output", "d_state")
        },
    )


def close(got, wanted, dtype, case):
    T, B, _ = case.x.shape
    H, I = case.params["weight_ih_l0"].shape
    assert got.dtype == dtype
    assert got.shape == wanted.shape
    rtol, atol = tolerance(dtype, T, max(H, I), rows=max(T * B, 1))
    assert_allclose(got, wanted, rtol=rtol, atol=atol * max(1, np.abs(wanted).max(initial=0)))


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=60)
@given(case=cases())
def test_forward_and_every_gradient_against_the_reference(case, dtype):
    case = rounded(case, dtype)
    net = network(case, dtype)
    trace = net.trace(case.x.astype(dtype), case.h0.astype(dtype)[None])
    grads = trace.backward(case.d_output.astype(dtype), case.d_state.astype(dtype)[None])

    h, a = reference.rnn_forward(case.params, case.x, case.h0, case.nonlinearity)
    wanted = reference.rnn_backward(
        case.params, case.x, h, a, case.d_output, case.d_state, case.nonlinearity
    )
    close(trace.output, h[1:], dtype, case)
    close(trace.state[0], h[-1], dtype, case)
    for name in case.params:
        close(grads.params[name], wanted[name], dtype, case)
    close(grads.x, wanted["dx"], dtype, case)
    close(grads.state[0], wanted["dh0"], dtype, case)
    assert grads.params.keys() == case.params.keys()
    output, state = net(case.x.astype(dtype), case.h0.astype(dtype)[None])
    assert_array_equal(output, trace.output)
    assert_array_equal(state, trace.state)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@settings(deadline=None, max_examples=6)
@given(case=cases(least=1))  # torch takes no empty sequence
def test_forward_and_every_gradient_against_torch(case, nonlinearity, dtype):
    case = case._replace(nonlinearity=nonlinearity)
    net = network(case, dtype)
    H, I = case.params["weight_ih_l0"].shape
    bias = "bias_ih_l0" in case.params
    other = torch.nn.RNN(I, H, nonlinearity=case.nonlinearity, bias=bias)
    other = other.to(torch.from_numpy(np.empty(0, dtype)).dtype)
    other.load_state_dict({name: torch.from_numpy(y) for name, y in net.state_dict().items()})
    x, h0, d_output, d_state = (
        y.astype(dtype) for y in (case.x, case.h0[None], case.d_output, case.d_state[None])
    )
    trace = net.trace(x, h0)
    grads = trace.backward(d_output, d_state)
    x, h0 = (torch.from_numpy(y).requires_grad_() for y in (x, h0))
    output, state = other(x, h0)
    torch.autograd.backward([output, state], [torch.from_numpy(y) for y in (d_output, d_state)])
    close(trace.output, output.detach().numpy(), dtype, case)
    close(trace.state, state.detach().numpy(), dtype, case)
    close(grads.x, x.grad.numpy(), dtype, case)
    close(grads.state, h0.grad.numpy(), dtype, case)
    for name, parameter in other.named_parameters():
        close(grads.params[name], parameter.grad.numpy(), dtype, case)


def small(dtype=np.float32, T=9, B=4, I=5, H=21, **keywords):
    rng = np.random.default_rng(0)
    net = fb.RNN(I, H, dtype=dtype, rng=1, **keywords)
    arrays = {
        "x": rng.normal(size=(T, B, I)),
        "state": rng.normal(size=(1, B, H)),
        "d_output": rng.normal(size=(T, B, H)),
        "d_state": rng.normal(size=(1, B, H)),
    }
    return net, {name: y.astype(dtype) for name, y in arrays.items()}


def everything(net, x, state, d_output, d_state):
    trace = net.trace(x, state)
    grads = trace.backward(d_output, d_state)
    return [trace.output, trace.state, *grads.params.values(), grads.x, grads.state]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("H", [1, 16, 21, 64, 130])
def test_a_row_has_the_same_bits_alone_and_in_a_batch(dtype, H):
    net, arrays = small(dtype, B=13, H=H)
    trace = net.trace(arrays["x"], arrays["state"])
    grads = trace.backward(arrays["d_output"], arrays["d_state"])
    for rows in (slice(0, 1), slice(5, 6), slice(12, 13), slice(2, 11)):
        part = net.trace(arrays["x"][:, rows], arrays["state"][:, rows])
        part_grads = part.backward(arrays["d_output"][:, rows], arrays["d_state"][:, rows])
        assert_array_equal(part.output, trace.output[:, rows])
        assert_array_equal(part_grads.x, grads.x[:, rows])
        assert_array_equal(part_grads.state, grads.state[:, rows])


@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_of_time_do_not_change_what_they_compute(dtype, monkeypatch):
    """Weight gradients may round otherwise, states and their gradients may not."""
    net, arrays = small(dtype, T=50)
    whole = everything(net, **arrays)
    for steps in (1, 7, 49):
        monkeypatch.setattr("fastbptt.layers._chunk_steps", lambda *_, n=steps: n)
        parts = everything(net, **arrays)
        for i in (0, 1, -2, -1):
            assert_array_equal(parts[i], whole[i])
        for one, other in zip(parts, whole, strict=True):
            assert_allclose(one, other, rtol=0, atol=np.abs(other).max() * np.finfo(dtype).eps * 50)


def test_batch_first_and_unbatched():
    net, arrays = small()
    H, I = net.hidden_size, net.input_size
    first = fb.RNN(I, H, batch_first=True, rng=1)
    wanted = everything(net, **arrays)
    swapped = {n: y.swapaxes(0, 1) if n in ("x", "d_output") else y for n, y in arrays.items()}
    got = everything(first, **swapped)
    for i, (one, other) in enumerate(zip(wanted, got, strict=True)):
        assert_array_equal(one, other.swapaxes(0, 1) if i in (0, 6) else other)
    alone = {n: y[:, 2] for n, y in arrays.items()}
    for one in (net, first):
        trace = one.trace(alone["x"], alone["state"])
        grads = trace.backward(alone["d_output"], alone["d_state"])
        assert trace.output.shape == (9, H)
        assert trace.state.shape == (1, H)
        assert_array_equal(trace.output, wanted[0][:, 2])
        assert_array_equal(grads.x, wanted[6][:, 2])
        assert_array_equal(grads.state, wanted[7][:, 2])


@pytest.mark.parametrize(("T", "B"), [(0, 3), (4, 0), (0, 0)])
def test_no_steps_and_no_rows(T, B):
    net, arrays = small(T=T, B=B)
    output, state, *grads = everything(net, **arrays)
    assert output.shape == (T, B, 21)
    assert_array_equal(state, arrays["state"])
    for gradient in grads[:-2]:
        assert not gradient.any()
    assert grads[-2].shape == arrays["x"].shape
    assert_array_equal(grads[-1], arrays["d_state"])


def test_what_is_left_out_is_zero():
    net, arrays = small()
    zeros = {name: np.zeros_like(y) for name, y in arrays.items()}
    assert_array_equal(net(arrays["x"])[0], net(arrays["x"], zeros["state"])[0])
    trace = net.trace(arrays["x"])
    for some in ({"d_output": arrays["d_output"]}, {"d_state": arrays["d_state"]}, {}):
        short = trace.backward(**some)
        both = {"d_output": zeros["d_output"], "d_state": zeros["d_state"]}
        full = trace.backward(**{**both, **some})
        for one, other in zip(short.params.values(), full.params.values(), strict=True):
            assert_array_equal(one, other)
        assert_array_equal(short.x, full.x)


def test_a_trace_keeps_its_weights_and_its_outputs():
    net, arrays = small()
    trace = net.trace(arrays["x"])
    wanted = trace.backward(arrays["d_output"]).x
    net.weight_hh_l0 = net.weight_hh_l0 * np.float32(2)
    assert_array_equal(trace.backward(arrays["d_output"]).x, wanted)
    assert (net.trace(arrays["x"]).backward(arrays["d_output"]).x != wanted).any()
    with pytest.raises(ValueError, match="read-only"):
        trace.output[0] = 0
    net(arrays["x"])[0][0] = 0  # what the call returns is the caller's


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM", "MGU"])
def test_what_a_call_returns_is_the_caller_s(kind):
    net = getattr(fb, kind)(3, 5, rng=0)
    x = np.ones((7, 2, 3), np.float32)
    output, state = net(x)
    h = state[0] if isinstance(state, tuple) else state
    before = h.copy()
    output[:] = 0
    np.testing.assert_array_equal(h, before)
    h[:] = 0
    again, _ = net(x)
    np.testing.assert_array_equal(again[-1], before[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_inf_propagate_from_their_step_and_row_on(dtype):
    net, arrays = small(dtype)
    x = arrays["x"]
    x[3, 2, 0] = np.nan
    output, _ = net(x)
    assert np.isnan(output[3:, 2]).all()
    assert np.isfinite(np.delete(output, 2, axis=1)).all()
    assert np.isfinite(output[:3]).all()
    relu = fb.RNN(5, 21, nonlinearity="relu", dtype=dtype, rng=0)
    assert np.isnan(relu(x)[0][3, 2]).all()
    x[3, 2, 0] = np.inf
    assert (np.abs(net(x)[0][3, 2]) == 1).all()


def test_parameters_are_drawn_as_torch_draws_them():
    net = fb.RNN(40, 100, rng=0)
    values = np.concatenate([y.ravel() for y in net.state_dict().values()])
    assert np.abs(values).max() <= 0.1
    assert np.abs(values).max() > 0.0999
    assert_allclose(values.std(), 0.1 / np.sqrt(3), rtol=0.02)
    assert abs(values.mean()) < 0.002
    for same in (fb.RNN(40, 100, rng=0), fb.RNN(40, 100, rng=np.random.default_rng(0))):
        assert_array_equal(same.weight_hh_l0, net.weight_hh_l0)
    assert (fb.RNN(40, 100, rng=1).weight_hh_l0 != net.weight_hh_l0).any()
    names = {name: tuple(p.shape) for name, p in torch.nn.RNN(40, 100).named_parameters()}
    assert {name: y.shape for name, y in net.state_dict().items()} == names
    assert set(fb.RNN(4, 5, bias=False).state_dict()) == {"weight_ih_l0", "weight_hh_l0"}


def test_parameters_are_read_only_and_assignable():
    net, arrays = small()
    with pytest.raises(ValueError, match="read-only"):
        net.weight_hh_l0[0] = 0
    given = np.zeros((21, 21), np.float32)
    net.weight_hh_l0 = given
    given[:] = 1  # was copied
    assert not net.weight_hh_l0.any()
    with pytest.raises(ValueError, match=r"weight_hh_l0 has shape \(3, 3\)"):
        net.weight_hh_l0 = np.zeros((3, 3), np.float32)
    with pytest.raises(AttributeError, match="weight_hh_l1"):
        _ = net.weight_hh_l1
    net.state_dict()["weight_ih_l0"][:] = np.nan
    assert np.isfinite(net(arrays["x"])[0]).all()


@pytest.mark.parametrize("kind", NETWORKS)
def test_what_a_net_was_made_with_is_settled(kind):
    """Kernels read sizes and dtype from the packed weights, checks from the net."""
    net = NETWORKS[kind](8, 5, rng=0)
    wanted = repr(net), net(np.ones((3, 1, 8), np.float32))[0]
    for name, value in {**net.options(), "dtype": net.dtype, "weights": net.weights}.items():
        for new in (value, 1, "relu"):
            with pytest.raises(
                AttributeError, match=f"^{name}: expected no assignment.*make a new"
            ):
                setattr(net, name, new)
    assert repr(net) == wanted[0]
    assert_array_equal(net(np.ones((3, 1, 8), np.float32))[0], wanted[1])
    net.note = "of the user"  # any other name is free
    assert copy.deepcopy(net).note == "of the user"


def test_what_a_feed_forward_net_was_made_with_is_settled():
    given = [np.eye(3), np.ones((2, 3))]
    net = fb.FeedForward(given, [np.zeros(3), np.zeros(2)])
    given[0][:] = 7
    for name in ("weights", "biases", "dtype", "nonlinearity"):
        with pytest.raises(AttributeError, match=f"^{name}: expected no assignment.*make a new"):
            setattr(net, name, getattr(net, name))
    for other in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert_array_equal(other(np.ones(3)), np.tanh([3 * np.tanh(1)] * 2))
        for arrays in (other.weights, other.biases):
            with pytest.raises(ValueError, match="read-only"):
                arrays[0][0] = 0
            with pytest.raises(TypeError, match="assignment"):
                arrays[0] = arrays[0]


def test_copies_and_pickles():
    net, arrays = small()
    net(arrays["x"])  # packs the weights
    assert len(pickle.dumps(net)) < 1.2 * sum(y.nbytes for y in net.state_dict().values()) + 2000
    for other in (copy.copy(net), copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert_array_equal(other(arrays["x"])[0], net(arrays["x"])[0])
        with pytest.raises(ValueError, match="read-only"):
            other.weight_hh_l0[0] = 0  # its packed copy would go stale
        other.weight_ih_l0 = np.zeros((21, 5), np.float32)
        assert net.weight_ih_l0.any()
    assert "hidden" not in repr(net)
    assert repr(net).startswith("RNN(5, 21")


def test_torch_state_dicts_go_in_and_out():
    other = torch.nn.RNN(5, 21)
    net = fb.RNN(5, 21)
    net.load_state_dict(other.state_dict())
    x = np.random.default_rng(0).normal(size=(7, 3, 5)).astype(np.float32)
    wanted = other(torch.from_numpy(x))[0].detach().numpy()
    assert_allclose(net(x)[0], wanted, atol=2e-6)
    other.load_state_dict({name: torch.from_numpy(y) for name, y in net.state_dict().items()})


class TestBadInput:
    net, arrays = small()

    @pytest.mark.parametrize(
        ("arguments", "keywords", "error", "message"),
        [
            ((0, 3), {}, ValueError, "input_size: expected at least 1"),
            ((3, -1), {}, ValueError, "hidden_size: expected at least 1, got -1"),
            ((3.0, 4), {}, TypeError, "input_size: expected an int"),
            (("3", 4), {}, TypeError, "input_size"),
            ((3, 4), {"nonlinearity": "gelu"}, ValueError, "expected one of tanh, relu, sigmoid"),
            ((3, 4), {"nonlinearity": None}, ValueError, "nonlinearity"),
            (
                (3, 4),
                {"nonlinearity": np.array(["tanh"] * 2)},
                ValueError,
                "nonlinearity: expected",
            ),
            ((3, 4), {"dtype": np.float16}, TypeError, "expected float32 or float64, got float16"),
            ((3, 4), {"dtype": int}, TypeError, "dtype"),
            ((3, 4), {"dtype": "complex64"}, TypeError, "dtype"),
            ((3, 4), {"dtype": "word"}, TypeError, "dtype"),
            ((3, 4), {"bias": 1}, TypeError, "bias"),
            ((3, 4), {"batch_first": "yes"}, TypeError, "batch_first"),
            ((3, 4), {"rng": "x"}, TypeError, "rng"),
            ((3, 4), {"rng": -3}, ValueError, "rng"),
            ((3, 4), {"num_layers": 0}, ValueError, "num_layers"),
            ((3, 4), {"num_layers": 1.5}, TypeError, "num_layers"),
            ((3, 4), {"bidirectional": 2}, TypeError, "bidirectional"),
        ],
    )
    def test_constructor(self, arguments, keywords, error, message):
        with pytest.raises(error, match=message):
            fb.RNN(*arguments, **keywords)

    @pytest.mark.parametrize(
        ("bad", "error"),
        [
            (np.zeros(5, np.float32), ValueError),
            (np.zeros((2, 3, 4, 5), np.float32), ValueError),
            (np.zeros((9, 4, 6), np.float32), ValueError),
            (np.zeros((9, 4, 5)), TypeError),
            (np.zeros((9, 4, 5), np.float16), TypeError),
            (np.zeros((9, 4, 5), int), TypeError),
            (np.zeros((9, 4, 5), bool), TypeError),
            (np.zeros((9, 4, 5), complex), TypeError),
            (np.zeros((9, 4, 5), object), TypeError),
            (np.zeros((9, 4, 5), ">f4"), TypeError),
            ([[1.0] * 5] * 3, TypeError),
            ([[1.0], [1.0, 2.0]], TypeError),
            (np.ma.zeros((9, 4, 5), dtype=np.float32), TypeError),
            ("text", TypeError),
            (None, TypeError),
        ],
    )
    def test_x(self, bad, error):
        with pytest.raises(error, match="x: expected"):
            self.net(bad)

    @pytest.mark.parametrize("shape", [(4, 21), (1, 4, 20), (2, 4, 21), (1, 3, 21), (1, 21)])
    def test_state(self, shape):
        with pytest.raises(ValueError, match=r"state: expected shape \(1, 4, 21\), got"):
            self.net(self.arrays["x"], np.zeros(shape, np.float32))
        with pytest.raises(TypeError, match="state: expected float32, got float64"):
            self.net(self.arrays["x"], np.zeros(shape))

    def test_gradients(self):
        trace = self.net.trace(self.arrays["x"])
        for name, shape in (("d_output", (9, 4, 21)), ("d_state", (1, 4, 21))):
            with pytest.raises(ValueError, match=f"{name}: expected shape"):
                trace.backward(**{name: np.zeros(shape[:-1], np.float32)})
            with pytest.raises(ValueError, match=f"{name}: expected shape"):
                trace.backward(**{name: np.zeros((*shape[:-1], 20), np.float32)})
            with pytest.raises(TypeError, match=f"{name}: expected float32, got float64"):
                trace.backward(**{name: np.zeros(shape)})

    def test_state_dict_names_every_fault_at_once_and_changes_nothing(self):
        before = self.net.state_dict()
        bad = self.net.state_dict()
        del bad["bias_hh_l0"]
        bad["weight_hh_l0"] = bad["weight_hh_l0"][:, :3]
        bad["weight_hr_l0"] = bad["weight_ih_l0"]
        with pytest.raises(ValueError, match="state_dict") as raised:
            self.net.load_state_dict(bad)
        for word in ("bias_hh_l0 is missing", "weight_hr_l0 is unexpected", "(21, 3)"):
            assert word in str(raised.value)
        bad["weight_ih_l0"] = bad["weight_ih_l0"].astype(float)
        bad["bias_ih_l0"] = np.ma.zeros(21, np.float32)
        with pytest.raises(ValueError, match="state_dict") as raised:
            self.net.load_state_dict(bad)
        for word in (
            "bias_hh_l0 is missing",
            "weight_hr_l0 is unexpected",
            "weight_ih_l0: expected float32, got float64",
            "bias_ih_l0: expected an array without a mask",
            "weight_hh_l0 has shape (21, 3)",
        ):
            assert word in str(raised.value)
        with pytest.raises(
            TypeError, match="weight_ih_l0: expected float32, got float64"
        ) as raised:
            self.net.load_state_dict({n: y.astype(float) for n, y in before.items()})
        assert str(raised.value).count("got float64") == 4
        assert str(raised.value).count("nothing is converted unasked: use np.asarray(") == 1
        with pytest.raises(TypeError, match="state_dict: expected a mapping"):
            self.net.load_state_dict(3)
        for name, y in self.net.state_dict().items():
            assert_array_equal(y, before[name])

    @pytest.mark.parametrize("empty", [[], np.zeros(0), np.zeros(0, int)])
    def test_no_lengths(self, empty):
        with pytest.raises(ValueError, match=r"lengths: expected shape \(4,\).*got \(0,\)"):
            self.net(self.arrays["x"], lengths=empty)

    @pytest.mark.parametrize("proj_size", [3])
    def test_projections_say_why_not(self, proj_size):
        with pytest.raises(NotImplementedError, match=r"proj_size: only 0 .*, got 3: .*h and c"):
            fb.LSTM(4, 6, proj_size=proj_size)

    def test_a_net_that_no_memory_holds_is_refused_before_it_is_drawn(self):
        began = time.process_time()
        with pytest.raises(MemoryError, match=r"hidden_size 10000000: expected .* bytes"):
            fb.RNN(3, 10**7)
        assert time.process_time() - began < 0.5


def test_every_nonlinearity_of_the_registry_is_in_the_reference():
    a = np.linspace(-3, 3, 7)
    for name, bias in itertools.product(TAGS, (True, False)):
        net = fb.RNN(1, 1, nonlinearity=name, bias=bias, dtype=np.float64)
        params = {n: np.ones_like(y) for n, y in net.state_dict().items()}
        net.load_state_dict(params)
        h, _ = reference.rnn_forward(params, a.reshape(-1, 1, 1), np.zeros((1, 1)), name)
        assert_allclose(net(a[:, None])[0], h[1:, 0], rtol=1e-14)


@pytest.mark.parametrize("H", [5, 17])
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_infinite_numbers_stay_where_they_are(kind, H):
    """What pads the units to whole registers is 0 · inf then, and must not reach them."""
    module = getattr(torch.nn, kind)(3, H, dtype=torch.float64)
    net = fb.from_state_dict(module.state_dict())
    x = np.random.default_rng(0).normal(size=(4, 2, 3))
    x[1, 0, 0], x[2, 1, 2] = np.inf, -np.inf
    given = torch.tensor(x, requires_grad=True)
    module(given)[0].sum().backward()
    trace = net.trace(x)
    grads = trace.backward(np.ones_like(trace.output))
    assert_allclose(grads.x, given.grad, atol=1e-12)
    for name, parameter in module.named_parameters():
        assert_allclose(grads.params[name], parameter.grad, atol=1e-12, err_msg=name)
    chain = trace.chain(1)
    columns = np.eye(chain.size(0))
    assert_allclose(chain.rmatvec(4, 0, columns).T, chain.matvec(4, 0, columns), atol=1e-12)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("checkpoint", [None, 7])
def test_copies_of_a_trace_compile_nothing(packed, checkpoint):
    net, rng = fb.LSTM(3, 5, num_layers=2, rng=0), np.random.default_rng(0)
    x, dy = (rng.normal(size=(20, 2, n)).astype(np.float32) for n in (3, 5))
    wanted = net.trace(x, checkpoint=checkpoint).backward(dy)
    norm = fb.log_norm(net.trace(x).chain())
    kernels = (sweeps.descend, packing.pack_cell, chain.linearise_layer, chain.push)
    compiled = [len(kernel.signatures) for kernel in kernels]
    for copied in (copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))):
        other = net if packed else copy.deepcopy(net)
        trace = copied(other.trace(x, checkpoint=checkpoint))
        gradients = trace.backward(dy)
        np.testing.assert_array_equal(gradients.x, wanted.x)
        if checkpoint is None:
            assert not trace.output.flags.writeable
            assert fb.log_norm(trace.chain()).estimate == norm.estimate
            assert fb.log_norm(copied(trace.chain())).estimate == norm.estimate
        assert [len(kernel.signatures) for kernel in kernels] == compiled
