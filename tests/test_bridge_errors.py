"""What the PyTorch bridge cannot compute is said in words."""

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import PackedSequence
from torch_twins import KINDS, twins

from fastbptt.bridges import torch as bridge


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of_weights", [False, True])
def test_second_derivatives_are_refused_in_words(kind, of_weights):
    module, x = getattr(bridge, kind)(3, 5), torch.randn(6, 2, 3, requires_grad=True)
    wanted = module.weight_hh_l0 if of_weights else x
    (gradient,) = torch.autograd.grad(module(x)[0].sum(), wanted, create_graph=True)
    with pytest.raises(
        RuntimeError, match=r"second derivatives are not implemented; use torch\.nn"
    ):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("x", "state", "error", "message"),
    [
        (torch.zeros(3, 2, 4).half(), None, NotImplementedError, r"float16.*use \.float\(\)"),
        (torch.zeros(3, 2, 4).bfloat16(), None, NotImplementedError, "bfloat16"),
        (torch.zeros(3, 2, 4, device="meta"), None, NotImplementedError, "is on meta.*CPU"),
        (torch.zeros(3, 2, 4).double(), None, ValueError, "same dtype as weight"),
        (torch.zeros(3, 2, 4, dtype=torch.int64), None, NotImplementedError, "int64"),
        (torch.zeros(3, 2, 5), None, RuntimeError, "Expected 4, got 5"),
        (torch.zeros(3, 2, 4, 1), None, ValueError, "2D or 3D, got 4D"),
        (torch.zeros(4), None, ValueError, "2D or 3D, got 1D"),
        (torch.zeros(3, 2, 4), torch.zeros(1, 3, 6), RuntimeError, "hidden"),
        (torch.zeros(3, 2, 4), torch.zeros(2, 6), RuntimeError, "3-D but got 2-D tensor$"),
        (torch.zeros(3, 4), torch.zeros(1, 2, 6), RuntimeError, "2-D but got 3-D tensor$"),
        (torch.zeros(3, 2, 4), torch.zeros(1, 2, 6).double(), ValueError, "hx"),
    ],
)
def test_what_cannot_be_computed_is_said(x, state, error, message):
    with pytest.raises(error, match=message):
        bridge.GRU(4, 6)(x, state)


def test_modules_that_cannot_be_computed_say_so():
    x = torch.zeros(3, 2, 4)
    with pytest.raises(NotImplementedError, match="proj_size=2 is not implemented"):
        bridge.LSTM(4, 6, proj_size=2)(x)
    with pytest.raises(NotImplementedError, match=r"fastbptt: weight_ih_l0 is of torch\.float16"):
        bridge.LSTM(4, 6).half()(x.half())
    with torch.autocast("cpu"), pytest.raises(NotImplementedError, match="autocast"):
        bridge.LSTM(4, 6)(x)
    with pytest.raises(RuntimeError, match="two hidden states, got 3"):
        bridge.LSTM(4, 6)(x, (torch.zeros(1, 2, 6),) * 3)


@pytest.mark.parametrize(
    ("odd", "others", "message"),
    [
        (("weight_hh_l0",), "float32", r"^weight_hh_l0: expected torch.float32 .* torch.float64; "),
        (("weight_ih_l0",), "float64", r"^weight_ih_l0: expected torch.float64 .* torch.float32; "),
        (("bias_ih_l0", "bias_hh_l1"), "float32", "^bias_ih_l0, bias_hh_l1: expected torch.float3"),
    ],
)
@pytest.mark.parametrize("call", [lambda module: module(torch.ones(3, 2, 4)), bridge.from_module])
def test_the_parameters_of_another_dtype_are_named(call, odd, others, message):
    module = bridge.GRU(4, 6, 2, dtype=getattr(torch, others))
    for name in odd:
        y = getattr(module, name)
        y.data = y.data.float() if others == "float64" else y.data.double()
    with pytest.raises(TypeError, match=rf"{message}.*module\.float\(\) or module\.double\(\)"):
        call(module)


STATE = torch.zeros(1, 2, 6)


@pytest.mark.parametrize(
    ("kind", "x", "hx", "message"),
    [
        (
            "GRU",
            np.zeros((3, 2, 4)),
            None,
            "input: expected a Tensor or PackedSequence, got ndarray",
        ),
        ("GRU", None, None, "input: expected a Tensor or PackedSequence, got NoneType"),
        ("GRU", torch.zeros(3, 2, 4), (STATE,), "hx: expected a Tensor, got tuple"),
        ("RNN", torch.zeros(3, 2, 4), STATE.numpy(), "hx: expected a Tensor, got ndarray"),
        (
            "LSTM",
            torch.zeros(3, 2, 4),
            torch.zeros(2, 1, 2, 6),
            "hx: expected a tuple .* got Tensor",
        ),
        ("LSTM", torch.zeros(3, 2, 4), STATE, "hx: expected a tuple .* got Tensor"),
        (
            "LSTM",
            torch.zeros(3, 2, 4),
            (STATE, STATE.numpy()),
            "hx: expected a Tensor, got ndarray",
        ),
        ("LSTM", torch.zeros(3, 2, 4), (STATE, None), "hx: expected a Tensor, got NoneType"),
    ],
)
def test_what_is_no_tensor_is_said(kind, x, hx, message):
    with pytest.raises(TypeError, match=message):
        getattr(bridge, kind)(4, 6)(x, hx)


def test_a_list_of_states_and_no_steps():
    """torch.nn takes the first as well, and raises for the second."""
    module, x = bridge.LSTM(4, 6), torch.randn(3, 2, 4)
    assert torch.equal(module(x, [STATE, STATE])[0], module(x)[0])
    output, (h, c) = module(x[:0], (STATE + 1, STATE + 2))
    assert output.shape == (0, 2, 6)
    assert torch.equal(h, STATE + 1)
    assert torch.equal(c, STATE + 2)


@pytest.mark.parametrize("shape", [(4,), (4, 3, 3)])
def test_a_packed_sequence_has_two_dimensions(shape):
    packed = PackedSequence(torch.ones(shape), torch.tensor([2, 2]))
    for module in twins("GRU", 3, 4):
        with pytest.raises(RuntimeError, match=f"input must have 2 dimensions, got {len(shape)}"):
            module(packed)
