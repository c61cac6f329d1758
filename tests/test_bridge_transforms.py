"""What follows tensors where the bridge cannot is refused, never answered wrongly."""

import pytest
import torch
from torch.autograd import forward_ad

from fastbptt.bridges import torch as bridge

X = torch.ones(4, 2, 3)


def forward_mode(module):
    with forward_ad.dual_level():
        module(forward_ad.make_dual(X, X))


USES = {
    "torch.func": lambda module: torch.func.grad(lambda x: module(x)[0].sum())(X),
    "vmap": lambda module: torch.func.vmap(lambda x: module(x)[0])(X[None]),
    "forward mode": forward_mode,
    "torch.jit.trace": lambda module: torch.jit.trace(module, X),
    "torch.export": lambda module: torch.export.export(module, (X,)),
}


@pytest.mark.filterwarnings("default")  # torch.jit.trace is deprecated
@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("use", USES)
def test_transforms_are_refused_in_words(use, wanted):
    module = bridge.GRU(3, 5).requires_grad_(wanted)
    with pytest.raises(RuntimeError, match=r"not implemented; use torch\.nn.*restore\(model\)"):
        USES[use](module)


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_a_default_device_is_not_taken_for_the_states(kind):
    module = getattr(bridge, kind)(3, 5)
    wanted = module(X)[0]
    with torch.device("meta"):
        assert torch.equal(module(X)[0], wanted)


def test_a_compiled_model_runs_the_layer_between_its_graphs():
    module = bridge.GRU(3, 5)
    compiled = torch.compile(module, backend="eager")
    assert torch.equal(compiled(X)[0], module(X)[0])
