"""What the bridge leaves in torch's graph, and whose weights it differentiates by."""

import gc

import pytest
import torch
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import fastbptt as fb
from fastbptt.bridges import torch as bridge
from fastbptt.kernels import memory

KINDS = ["RNN", "GRU", "LSTM"]


class Growing(torch.nn.Module):
    """Another weight at each evaluation, as dropout of weights makes it."""

    def __init__(self):
        super().__init__()
        self.evaluations = 0

    def forward(self, weight):
        self.evaluations += 1
        return weight * self.evaluations


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l1"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_parametrized_weight_is_evaluated_once(kind, name):
    torch.manual_seed(0)
    module = getattr(bridge, kind)(2, 4, 2, dtype=torch.float64)
    x = torch.randn(5, 3, 2, dtype=torch.float64)
    wanted = torch.autograd.grad(module(x)[0].sum(), getattr(module, name))
    growing = Growing()
    parametrize.register_parametrization(module, name, growing, unsafe=True)
    growing.evaluations = 0
    output = module(x)[0]
    assert growing.evaluations == 1
    (got,) = torch.autograd.grad(output.sum(), module.parametrizations[name].original)
    torch.testing.assert_close(got, *wanted, rtol=1e-12, atol=1e-12)


def in_use():
    """Arrays of 64 KB and more that fastbptt made: here all that grows with the steps."""
    gc.collect()
    fb.release_memory()  # of what is kept for the next calls
    return len(memory._used)


def passes(kind, around=lambda module, x: module(x)):
    """The results and gradients of a module, on a fresh seed."""
    torch.manual_seed(0)
    module = getattr(bridge, kind)(3, 16, 2, bidirectional=True)  # weights of less than 64 KB
    output, _ = around(module, torch.randn(2000, 2, 3))
    output.backward(torch.ones_like(output), retain_graph=True)
    return output, [p.grad for p in module.parameters()]


@pytest.mark.parametrize("kind", KINDS)
def test_the_pass_back_frees_what_the_graph_keeps(kind):
    before = in_use()
    output, _ = passes(kind)
    assert in_use() > before  # for once more
    output.sum().backward()
    assert in_use() == before
    with pytest.raises(RuntimeError, match="second time"):
        output.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_and_hooks_have_what_the_graph_keeps(kind):
    wanted = passes(kind)[1]
    before, held = in_use(), []

    def checkpointed(module, x):
        results = checkpoint(module, x, use_reentrant=False)
        held.append(in_use())
        return results

    def offloaded(module, x):
        with torch.autograd.graph.saved_tensors_hooks(lambda y: y.numpy().copy(), torch.tensor):
            results = module(x)
        held.append(in_use())
        return results

    for around in (checkpointed, offloaded):
        gradients = passes(kind, around)[1]
        assert all(map(torch.equal, gradients, wanted))
    assert held == [before, before]


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_may_turn_what_they_hold(kind):
    def turned(y):
        return y.mT.contiguous() if y.dim() == 2 else y.clone()

    def around(module, x):
        with torch.autograd.graph.saved_tensors_hooks(
            turned, lambda y: y.mT if y.dim() == 2 else y
        ):
            return module(x)

    assert all(map(torch.equal, passes(kind, around)[1], passes(kind)[1]))


@pytest.mark.parametrize("change", [torch.Tensor.double, lambda y: y[:-1]])
def test_hooks_that_return_others_are_named(change):
    module, x = bridge.LSTM(3, 5), torch.ones(4, 2, 3)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda y: y,
        lambda y: change(y) if y.dim() == 2 and len(y) == 10 else y,  # h and c
    ):
        output = module(x)[0]
    with pytest.raises(RuntimeError, match=r"a hook of saved tensors returned .* as saved$"):
        output.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_whose_weights_change_has_the_gradients_of_its_second_pass(kind):
    torch.manual_seed(0)
    module = getattr(bridge, kind)(2, 4, 2, dtype=torch.float64)
    x = torch.randn(5, 3, 2, dtype=torch.float64)
    output = checkpoint(module, x, use_reentrant=False)[0]
    with torch.no_grad():
        for y in module.parameters():
            y *= 1.5
    got = torch.autograd.grad(output.sum(), list(module.parameters()))
    wanted = torch.autograd.grad(module(x)[0].sum(), list(module.parameters()))
    assert all(map(torch.equal, got, wanted))


def test_batches_of_gradients_are_refused_in_words():
    x = torch.ones(4, 2, 3, requires_grad=True)
    output = bridge.GRU(3, 5)(x)[0]
    many = torch.ones(2, *output.shape)
    with pytest.raises(RuntimeError, match=r"batches of gradients.*restore\(model\)"):
        torch.autograd.grad(output, x, many, is_grads_batched=True)


@pytest.mark.parametrize("options", [
    {"nonlinearity": "relu"}, {"num_layers": 2, "bidirectional": True}, {"bias": False},
    {"batch_first": True, "dtype": torch.float64, "num_layers": 2, "dropout": 0.5},
])  # fmt: skip
@pytest.mark.parametrize("lib", [torch.nn, bridge])
@pytest.mark.parametrize("kind", KINDS)
def test_nets_of_modules(lib, kind, options):
    if kind != "RNN":
        options = {name: y for name, y in options.items() if name != "nonlinearity"}
    module = getattr(lib, kind)(3, 5, **options).eval()
    net = bridge.from_module(module)
    x = torch.randn(4, 2, 3, dtype=options.get("dtype", torch.float32))
    output, state = module(x)
    own, end = net(x.numpy())
    near = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(torch.from_numpy(own), output.detach(), **near)
    for y, wanted in zip(*((s if kind == "LSTM" else (s,)) for s in (end, state)), strict=True):
        torch.testing.assert_close(torch.from_numpy(y), wanted.detach(), **near)
    with torch.no_grad():
        module.weight_hh_l0 += 1
    assert not torch.equal(torch.from_numpy(net(x.numpy())[0]), module(x)[0])  # a copy


def test_what_makes_no_net():
    with pytest.raises(TypeError, match=r"expected a torch.nn.RNN, GRU or LSTM, got Linear"):
        bridge.from_module(torch.nn.Linear(3, 4))
    with pytest.raises(NotImplementedError, match="module: proj_size=2"):
        bridge.from_module(torch.nn.LSTM(3, 4, proj_size=2))
    with pytest.raises(NotImplementedError, match=r"module: weight_ih_l0 is of torch.float16"):
        bridge.from_module(torch.nn.GRU(3, 4).half())


def test_restore_names_what_it_leaves_alone():
    model = bridge.accelerate(torch.nn.Sequential(torch.nn.GRU(3, 4), torch.nn.RNN(4, 5)))
    torch.nn.utils.parametrizations.weight_norm(model[0], "weight_hh_l0")
    with pytest.warns(UserWarning, match=r"leaves as they are 0 \(ParametrizedGRU[^;]*$"):
        bridge.restore(model)
    assert type(model[1]) is torch.nn.RNN
    parametrize.remove_parametrizations(model[0], "weight_hh_l0")
    bridge.restore(model)
    assert type(model[0]) is torch.nn.GRU


class Decoder(torch.nn.Module):
    """Layers with and without a state, in a part of a model."""

    def __init__(self):
        super().__init__()
        self.parts = torch.nn.ModuleList([torch.nn.LSTM(3, 4, 2), torch.nn.GRU(4, 5)])

    def forward(self, x, h, c):
        output, (h, c) = self.parts[0](x, (h, c))
        output, _ = self.parts[1](torch.ones(6, 2, 4), hx=self.parts[1](output)[1])
        return output, h


def test_symbolic_traces_keep_the_layers_as_they_keep_those_of_torch_nn():
    given = torch.randn(6, 2, 3), torch.randn(2, 2, 4), torch.randn(2, 2, 4)
    calls = [str(node) for node in torch.fx.symbolic_trace(Decoder()).graph.nodes]
    model = bridge.accelerate(Decoder())
    traced, wanted = torch.fx.symbolic_trace(model), model(*given)
    assert [str(node) for node in traced.graph.nodes] == calls
    assert type(traced.get_submodule("parts.0")) is bridge.LSTM
    assert all(map(torch.equal, traced(*given), wanted))


def test_symbolic_traces_of_hooks_and_of_a_layer_itself_are_refused_in_words():
    """A node would call hooks that are traced already; the layer is no module of its own graph."""
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        model = bridge.accelerate(torch.nn.Sequential(torch.nn.GRU(3, 4)))
        getattr(model[0], register)(lambda *_: None)
        with pytest.raises(NotImplementedError, match=r"torch\.fx.*restore\(model\)"):
            torch.fx.symbolic_trace(model)
    with pytest.raises(NotImplementedError, match=r"torch\.fx.*restore\(model\)"):
        torch.fx.symbolic_trace(bridge.GRU(3, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_no_net_of_a_layer_with_a_forward_pass_of_its_own(kind):
    layer = getattr(torch.nn, kind)
    own = type("Own", (layer,), {"forward": lambda self, x, hx=None: layer.forward(self, 2 * x)})
    with pytest.raises(TypeError, match=r"expected torch\.nn's own forward pass, Own has"):
        bridge.from_module(own(3, 4))
    parametrized = torch.nn.utils.parametrizations.weight_norm(layer(3, 4), "weight_hh_l0")
    bridge.from_module(parametrized)
    bridge.from_module(bridge.accelerate(layer(3, 4)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_whose_sizes_change_after_a_call(kind):
    layer = bridge.accelerate(getattr(torch.nn, kind)(3, 4))
    layer(torch.ones(2, 1, 3))
    rows = len(layer.weight_ih_l0)
    layer.weight_ih_l0, layer.input_size = torch.nn.Parameter(torch.ones(rows, 5)), 5
    x = torch.randn(6, 2, 5)
    output, _ = layer(x)
    torch.testing.assert_close(output, bridge.restore(layer)(x)[0])
