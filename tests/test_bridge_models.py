"""Whole models through the PyTorch bridge: accelerate, copies, data loaders, threads, training."""

import copy
import importlib.util
import io
import itertools
import multiprocessing
import pathlib
import pickle

import numpy as np
import pytest
import torch
from torch_twins import KINDS, close

import fastbptt as fb
from fastbptt.bridges import torch as bridge
from fastbptt.bridges import torch_autograd as autograd

EXAMPLE = pathlib.Path(__file__).parent.parent / "examples" / "characters.py"


class Model(torch.nn.Module):
    """Layers of every kind, in the model and in its parts."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(4, 4)
        self.gru = torch.nn.GRU(4, 6, 2, bidirectional=True)
        self.rest = torch.nn.ModuleList([torch.nn.LSTM(12, 5), torch.nn.RNN(5, 3)])

    def forward(self, x):
        x, _ = self.gru(self.first(x))
        for layer in self.rest:
            x, _ = layer(x)
        return x


def test_accelerate_and_restore_leave_everything_else_in_place():
    torch.manual_seed(0)
    model, x = Model().eval(), torch.randn(5, 3, 4)
    wanted, names = model(x), [name for name, _ in model.named_parameters()]
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    called = []
    model.gru.register_forward_hook(lambda *_: called.append(1))
    before = list(model.parameters())
    assert bridge.accelerate(model) is model
    assert [type(m) for m in (model.gru, *model.rest)] == [bridge.GRU, bridge.LSTM, bridge.RNN]
    assert type(model.first) is torch.nn.Linear
    close(model(x), wanted)
    assert called
    assert not model.gru.training
    assert all(one is other for one, other in zip(model.parameters(), before, strict=True))
    assert [name for name, _ in model.named_parameters()] == names
    model(x).sum().backward()
    optimiser.step()
    stepped = model(x)
    assert (stepped != wanted).any()
    bridge.restore(model)
    assert [type(m) for m in (model.gru, *model.rest)] == [
        torch.nn.GRU, torch.nn.LSTM, torch.nn.RNN,
    ]  # fmt: skip
    close(stepped, model(x))
    assert type(bridge.accelerate(torch.nn.GRU(3, 4))) is bridge.GRU
    own = type("Own", (torch.nn.GRU,), {})(3, 4)
    with pytest.warns(UserWarning, match=r"leaves alone the model \(Own is a subclass"):
        assert type(bridge.accelerate(own)) is type(own)


def test_accelerate_names_what_it_leaves_alone():
    model = torch.nn.Sequential(torch.nn.LSTM(3, 4, proj_size=2), torch.nn.GRU(2, 3).half())
    with pytest.warns(UserWarning, match=r"0 \(proj_size=2.*1 \(weight_ih_l0 is of torch.float16"):
        bridge.accelerate(model)
    assert type(model[0]) is torch.nn.LSTM


@pytest.mark.parametrize("kind", KINDS)
def test_accelerate_names_cells(kind):
    cell = getattr(torch.nn, kind + "Cell")
    with pytest.warns(UserWarning, match=rf"alone 0 \({kind}Cell computes one step\)$"):
        bridge.accelerate(torch.nn.Sequential(cell(3, 4), torch.nn.GRU(4, 5)))


def test_accelerate_names_subclasses_but_for_its_own():
    model = torch.nn.Sequential(torch.nn.GRU(3, 4), torch.nn.LSTM(4, 5))
    torch.nn.utils.parametrizations.weight_norm(model[0], "weight_hh_l0")
    before = type(model[0])
    with pytest.warns(UserWarning, match=r"leaves alone 0 \(ParametrizedGRU is a subclass[^;]*$"):
        bridge.accelerate(model)
    assert type(model[0]) is before
    assert type(model[1]) is bridge.LSTM
    bridge.accelerate(model[1])  # once more, and of whoever subclasses the bridge's: no warning
    bridge.accelerate(type("Own", (bridge.GRU,), {})(3, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_copies_pickles_and_state_dicts(kind):
    own = getattr(bridge, kind)
    module, x = own(3, 5, 2), torch.randn(6, 2, 3)
    wanted = module(x)[0].detach()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    loaded = getattr(torch.nn, kind)(3, 5, 2)
    loaded.load_state_dict(torch.load(file))
    close(loaded(x)[0], wanted)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(other) is own
        assert torch.equal(other(x)[0], wanted)
        with torch.no_grad():
            other.weight_hh_l0.zero_()
        assert torch.equal(module(x)[0], wanted)
    assert repr(module) == repr(loaded)
    assert fb.from_state_dict(module.state_dict())(x.numpy())[0].shape == (6, 2, 5)


class Encoded(torch.utils.data.Dataset):
    """Items that a recurrent layer makes, in a worker process."""

    def __init__(self):
        self.module = bridge.GRU(3, 5).requires_grad_(False)

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return self.module(torch.full((2, 3), float(i)))[0]


@pytest.mark.parametrize(
    "method", sorted({"fork", "spawn"} & {*multiprocessing.get_all_start_methods()})
)
def test_in_the_workers_of_a_data_loader(method):
    data = Encoded()
    wanted = torch.stack([data[i] for i in range(4)])
    loader = torch.utils.data.DataLoader(
        data, batch_size=2, num_workers=2, multiprocessing_context=method
    )
    torch.testing.assert_close(torch.cat(list(loader)), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("lent", [True, False])
def test_torch_says_how_many_threads(monkeypatch, lent):
    seen = []
    available = fb.threads.available
    if not lent:
        monkeypatch.setattr(autograd, "_openmp", None)
    monkeypatch.setattr(
        "fastbptt.layers.available",
        lambda cost: (seen.append(fb.get_num_threads()), available(cost))[1],
    )
    monkeypatch.setattr(autograd, "_WORTH_SHARING", 0)
    before, own = torch.get_num_threads(), fb.get_num_threads()
    module, x = bridge.RNN(3, 5), torch.randn(6, 2, 3, requires_grad=True)
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            module(x)[0].sum().backward()
    finally:
        torch.set_num_threads(before)
    assert seen == [1] * (len(seen) // 2) + [2] * (len(seen) // 2)
    assert seen
    assert fb.get_num_threads() == own


def test_the_example(capsys):
    spec = importlib.util.spec_from_file_location("characters", EXAMPLE)
    characters = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(characters)
    for cell in KINDS:
        theirs, ours = characters.main(["--cell", cell, "--steps", "6", "--length", "32"])
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert "x, with" in capsys.readouterr().out


def test_a_training_goes_as_torch_nn_does():
    """Ten steps of Adam from the same seed: the losses agree to rounding."""
    losses = []
    for library, kind in itertools.product((torch.nn, bridge), KINDS):
        torch.manual_seed(0)
        layer, head = getattr(library, kind)(8, 24), torch.nn.Linear(24, 8)
        optimiser = torch.optim.Adam([*layer.parameters(), *head.parameters()], 1e-2)
        codes = torch.from_numpy(np.random.default_rng(0).integers(0, 8, (31, 6)))
        x = torch.nn.functional.one_hot(codes, 8).float()
        for _ in range(10):
            optimiser.zero_grad()
            guess = head(layer(x[:-1])[0])
            loss = torch.nn.functional.cross_entropy(guess.flatten(0, 1), codes[1:].flatten())
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    theirs, ours = np.split(np.array(losses), 2)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert (np.diff(ours.reshape(3, 10), axis=1) < 0).all()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_accelerate_names_scripted_and_quantized_layers():
    scripted = torch.jit.script(torch.nn.GRU(3, 4))
    with pytest.warns(UserWarning, match=r"leaves alone 0 \(GRU is scripted or traced\)$"):
        bridge.accelerate(torch.nn.Sequential(scripted, torch.jit.script(torch.nn.Linear(4, 4))))
    quantized = torch.ao.nn.quantized.dynamic.LSTM(3, 4)
    with pytest.warns(UserWarning, match=r"leaves alone the model \(LSTM is quantized\)$"):
        bridge.accelerate(quantized)
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got list"):
        bridge.accelerate([torch.nn.GRU(3, 4)])
