"""When the bridge takes a module's weights anew: where a bit has changed, and only there."""

import numpy as np
import pytest
import torch

from fastbptt.bridges import torch as bridge
from fastbptt.bridges.torch import GRU, LSTM, RNN
from fastbptt.network import Network


@pytest.fixture
def loads(monkeypatch):
    """The calls of `load_state_dict` that nets of the bridge are given."""
    calls, load = [], Network.load_state_dict

    def noted(net, mapping):
        calls.append(net)
        load(net, mapping)

    monkeypatch.setattr(Network, "load_state_dict", noted)
    return calls


def turned(y):
    """The same numbers in another order in memory."""
    return y.T.contiguous().T


def changed(y, value):
    """y, in place and unseen by its version counter."""
    y.data.view(-1)[-1] = value
    return y


@pytest.mark.parametrize("layer", [RNN, GRU, LSTM])
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
def test_a_bit_of_any_parameter_counts(layer, name, loads):
    module, x = layer(3, 5), torch.ones(4, 2, 3)
    parameter = getattr(module, name)
    changed(parameter, 0.0)
    module(x)
    for value, times in [(0.0, 0), (-0.0, 1), (0.5, 1), (float("nan"), 1), (float("nan"), 0)]:
        loads.clear()
        changed(parameter, value)
        output, _ = module(x)
        assert len(loads) == times
        wanted, _ = getattr(torch.nn, layer.__name__).forward(module, x)
        np.testing.assert_allclose(output.detach(), wanted.detach(), rtol=1e-5, atol=1e-6)


def test_how_a_parameter_lies_does_not_count(loads):
    module, x = RNN(3, 5), torch.ones(4, 2, 3)
    wanted, _ = module(x)
    weights = module.weight_ih_l0.detach().clone()
    negative = torch._neg_view(-weights)
    assert negative.is_neg()
    for other in (turned(weights), negative):
        module.weight_ih_l0 = torch.nn.Parameter(other)
        loads.clear()
        output, _ = module(x)
        assert not loads
        assert torch.equal(output, wanted)


def test_as_many_numbers_of_another_shape_are_told():
    module, x = RNN(3, 5), torch.ones(4, 2, 3)
    module(x)
    module.weight_ih_l0 = torch.nn.Parameter(module.weight_ih_l0.detach().reshape(3, 5))
    with pytest.raises(ValueError, match=r"weight_ih_l0 has shape \(3, 5\), expected \(5, 3\)"):
        module(x)


class Elsewhere(torch.Tensor):
    """A tensor whose numbers lie in another one, as torch.distributed's do."""

    @staticmethod
    def __new__(cls, y):
        return torch.Tensor._make_wrapper_subclass(cls, y.shape, dtype=y.dtype)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(f"{func} of an Elsewhere")


class Own(torch.nn.Parameter):
    """A parameter of a class of the user's."""


def test_tensors_of_other_classes():
    module, x = RNN(3, 5), torch.ones(4, 2, 3)
    wanted, _ = module(x)
    module.weight_ih_l0 = Own(module.weight_ih_l0.detach())
    assert torch.equal(module(x)[0], wanted)
    changed(module.weight_ih_l0, 0.0)
    assert not torch.equal(module(x)[0], wanted)
    del module.weight_ih_l0
    module.weight_ih_l0 = Elsewhere(torch.ones(5, 3))
    with torch.no_grad(), pytest.raises((RuntimeError, NotImplementedError)):
        module(x)


def test_weights_that_were_taken_but_not_noted_are_taken_again(monkeypatch):
    """Ctrl-C may come between the two, and another thread."""
    module, x = RNN(3, 5), torch.ones(4, 2, 3)
    wanted, _ = module(x)
    before = module.weight_hh_l0.detach().clone()
    with torch.no_grad():
        module.weight_hh_l0.zero_()
    with monkeypatch.context() as patch:
        patch.setattr(bridge, "Held", interrupted)
        with pytest.raises(KeyboardInterrupt):
            module(x)
    with torch.no_grad():
        module.weight_hh_l0.copy_(before)
    assert torch.equal(module(x)[0], wanted)


def interrupted(net):
    raise KeyboardInterrupt


def test_another_dtype_makes_another_net(loads):
    module = LSTM(3, 5)
    module(torch.ones(4, 2, 3))
    output, _ = module.double()(torch.ones(4, 2, 3).double())
    assert output.dtype == torch.float64
    loads.clear()
    module(torch.ones(4, 2, 3).double())
    assert not loads


@pytest.mark.parametrize("layer", [RNN, LSTM])
def test_no_state_is_one_of_zeros(layer):
    module, x = layer(3, 5, num_layers=2, bidirectional=True), torch.ones(4, 2, 3)
    zeros = torch.zeros(4, 2, 5)
    zeros = (zeros, zeros) if layer is LSTM else zeros
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            (output, state), (wanted, end) = module(x), module(x, zeros)
        assert torch.equal(output, wanted)
        state, end = (y if layer is LSTM else (y,) for y in (state, end))
        assert all(torch.equal(one, other) for one, other in zip(state, end, strict=True))
    none, end = module(x[:0])
    assert none.shape == (0, 2, 10)
    assert not any(y.any() for y in (end if layer is LSTM else (end,)))
