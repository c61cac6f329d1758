"""What calls share and what they leave alone: arrays given and returned, how sequences lie."""

import copy
import functools
import pickle

import nets
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numba import typeof, types
from numpy.testing import assert_array_equal
from strategies import KINDS, net_cases

import fastbptt as fb
from fastbptt import network, threads, trace, weights
from fastbptt.bridges import torch as bridge
from fastbptt.kernels import frames, windows
from fastbptt.kernels import stream as stream_kernels
from fastbptt.kernels.jit import Entry
from fastbptt.spectral import factors, products
from fastbptt.spectral import stream as streams


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("shape", [(4, 1, 3), (4, 2, 3), (4, 3)])
def test_what_is_given_stays_writable_and_what_comes_is(batch_first, shape):
    net = fb.LSTM(3, 5, batch_first=batch_first, rng=0)
    x, state = np.ones(shape, np.float32), None
    for _ in range(2):
        output, state = net(x, state)
        assert not any(np.shares_memory(output, part) for part in state)
        assert all(y.flags.writeable for y in (x, output, *state))
    net.trace(x).backward(output)
    assert x.flags.writeable
    assert output.flags.writeable


def test_calls_of_one_shape_share_how_their_sequences_lie_and_leave_it():
    rng, net = np.random.default_rng(0), fb.GRU(3, 5, bidirectional=True, rng=0)
    given = [rng.normal(size=(T, B, 3)).astype(np.float32) for T, B in [(4, 2), (2, 4), (4, 2)]]
    # with lengths nothing is shared
    alone = [net(x, lengths=[len(x)] * x.shape[1])[0] for x in given]
    for _ in range(2):
        for x, expected in zip(given, alone, strict=True):
            kept = net.trace(x)
            kept.backward(np.ones_like(kept.output), per_step=True)
            assert_array_equal(kept.output, expected)
            assert_array_equal(net(x)[0], expected)


def test_what_a_layer_gives_is_put_together_once(monkeypatch):
    made, whole = [], trace.outputs

    def noted(passes, T, B):
        made.append(len(passes))
        return whole(passes, T, B)

    monkeypatch.setattr(trace, "outputs", noted)
    monkeypatch.setattr(network, "outputs", noted)
    fb.RNN(3, 5, 3, bidirectional=True, rng=0)(np.ones((4, 2, 3), np.float32))
    assert made == [2, 2, 2]


def known(given):
    """What compiled code knows of a type: not whether an array may be written."""
    if isinstance(given, types.Array):
        return given.dtype, given.ndim, given.layout
    if isinstance(given, types.BaseTuple):
        return getattr(given, "instance_class", tuple), *map(known, given)
    return given


class Watched(Entry):
    """An entry that looks at the types in each call."""

    __slots__ = ("calls", "types")

    def __init__(self, kernel):
        super().__init__(kernel)
        self.calls, self.types, self.call = 0, None, self._watched

    def _watched(self, *given):
        self.calls, found = self.calls + 1, known(typeof(given))
        self.types = self.types or found
        assert self.types == found
        self._kernel(*given)


@pytest.fixture
def watched(monkeypatch):
    """All entries there are after this."""
    entries, of = [], weights._entries.__wrapped__
    monkeypatch.setattr(weights, "Entry", Watched)

    @functools.cache
    def noted(*key):
        entries.extend(of(*key))
        return tuple(entries[-3:])

    monkeypatch.setattr(weights, "_entries", noted)
    monkeypatch.setattr(weights, "sizes", weights.sizes.__wrapped__)
    before = fb.get_num_threads()
    yield entries
    fb.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", nets.DTYPES)
def test_a_kernel_has_the_same_types_in_all_calls(kind, dtype, watched, monkeypatch):
    monkeypatch.setattr(threads, "_WORTH_SHARING", 100)

    @settings(deadline=None, max_examples=20)
    @given(
        case=net_cases([kind], least=0),
        count=st.integers(1, 3),
        strange=st.sampled_from([None, "read-only", "unaligned", "turned"]),
        options=st.fixed_dictionaries({"input_gradient": st.booleans(), "per_step": st.booleans()}),
        copied=st.sampled_from([None, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))]),
    )
    def every_call(case, count, strange, options, copied):
        fb.set_num_threads(count)
        net = nets.network(case, dtype)
        x, dy = (as_strange(y.astype(dtype), strange) for y in (case.x, case.d_output))
        state = nets.as_state(case.state, dtype)
        net(x, state, case.lengths, case.reset)
        one = net.trace(x, state, case.lengths, case.reset)
        one = copied(one) if copied else one
        one.backward(dy, nets.as_state(case.d_state, dtype), **options)
        if not case.bidirectional:
            checkpoints = net.trace(x, state, case.lengths, case.reset, checkpoint=2)
            checkpoints.backward(dy)

    every_call()
    assert len(watched) == 3
    assert all(one.calls > 5 for one in watched)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", nets.DTYPES)
def test_a_stream_gives_kernels_the_same_types_in_all_calls(kind, dtype, monkeypatch, tmp_path):
    kernels = stream_kernels.stream, windows.block_norms, frames.factorise
    steps, norms, start = entries = [Watched(kernel) for kernel in kernels]
    monkeypatch.setattr(streams, "_entry", lambda make, dtype: steps)
    monkeypatch.setattr(factors, "_block_norms", {np.dtype(dtype): norms})
    monkeypatch.setattr(products, "_factorise", start)

    def loaded(one):
        one.save(tmp_path / "stream.npz")
        arrays = {
            name: np.array(y, order="F") for name, y in np.load(tmp_path / "stream.npz").items()
        }
        np.savez(tmp_path / "stream.npz", **arrays)
        return fb.JacobianStream.load(tmp_path / "stream.npz")

    def out_of_band(one):
        parts = []
        text = pickle.dumps(one, 5, buffer_callback=parts.append)
        return pickle.loads(text, buffers=[bytes(part) for part in parts])

    @settings(deadline=None, max_examples=20)
    @given(
        case=net_cases([kind], least=0),
        probes=st.integers(1, 9),
        strange=st.sampled_from([None, "read-only", "unaligned", "turned"]),
        copied=st.sampled_from([None, copy.deepcopy, loaded, out_of_band]),
    )
    def every_call(case, probes, strange, copied):
        assume(not case.bidirectional)
        net = nets.network(case, dtype)
        stream, x = fb.JacobianStream(net, probes), as_strange(case.x.astype(dtype), strange)
        for _ in range(2):
            stream.update(x)
            stream.result()
            stream = copied(stream) if copied else stream

    every_call()
    assert all(one.calls > 5 for one in entries)


def as_strange(y, how):
    """y as users' arrays may lie."""
    if how == "unaligned":
        memory = np.empty(y.nbytes + 1, np.uint8)[1:]
        other = memory.view(y.dtype).reshape(y.shape)
        other[...] = y
        return other
    if how == "turned":
        return np.ascontiguousarray(y.T).T
    y.setflags(write=how is None)
    return y


@pytest.mark.parametrize("how", ["unaligned", "turned", "read-only"])
def test_arrays_that_lie_otherwise_give_the_same_bits(how):
    rng, net = np.random.default_rng(0), fb.GRU(3, 20, rng=0)
    x, dy = (rng.normal(size=(9, 2, n)).astype(np.float32) for n in (3, 20))
    wanted = net.trace(x).backward(dy)
    got = net.trace(as_strange(x, how)).backward(as_strange(dy, how))
    assert_array_equal(got.x, wanted.x)
    for name, y in wanted.params.items():
        assert_array_equal(got.params[name], y)


def entries_of(net):
    sizes = net.weights.layers[0].sizes
    return sizes.pack, sizes.forward, sizes.descend


def test_numba_looks_at_the_types_of_the_first_call_alone(monkeypatch):
    net, x = fb.MGU(3, 5, rng=0), np.ones((4, 3), np.float32)
    net.trace(x).backward()
    for one in entries_of(net):
        monkeypatch.setattr(one, "_kernel", None)
    net = fb.MGU(3, 7, rng=0)
    net.trace(x).backward()


def test_a_pickle_of_a_trace_has_the_weights_once():
    net = fb.RNN(64, 256, rng=0)
    one = net.trace(np.ones((4, 64), np.float32))
    one.backward()
    assert len(pickle.dumps(one)) < 1.1 * sum(y.nbytes for y in net.state_dict().values())


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_of_a_net_calls_the_same_kernels(kind, options, copied):
    net = getattr(fb, kind)(3, 5, **options)
    assert copied(net).weights.layers[0].sizes is net.weights.layers[0].sizes


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_what_hooks_make_of_the_bridge_s_tensors_has_the_same_types(kind, watched):
    module = getattr(bridge, kind)(3, 20)
    turned = torch.autograd.graph.saved_tensors_hooks(
        lambda y: y, lambda y: y.mT.contiguous().mT if y.dim() > 1 else y
    )
    for T, B in ((1, 1), (7, 2), (9, 1)):
        x = torch.ones(T, B, 3, requires_grad=True)
        with turned:
            output, _ = module(x)
        output.sum().backward()
        module(x)[0].sum().backward()
    assert [one.calls for one in watched] == [1, 6, 6]  # the weights stay
