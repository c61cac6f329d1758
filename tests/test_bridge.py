"""fastbptt.bridges.torch against torch.nn: results, gradients, errors, life cycle."""

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
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastbptt as fb
from fastbptt.bridges import torch as bridge
from fastbptt.bridges import torch_autograd as autograd

KINDS = ("RNN", "GRU", "LSTM")
EXAMPLE = pathlib.Path(__file__).parent.parent / "examples" / "characters.py"
DTYPES = (torch.float32, torch.float64)


def twins(kind, *arguments, **keywords):
    """torch.nn's module and the bridge's, from the same seed."""
    modules = []
    for library in (torch.nn, bridge):
        torch.manual_seed(0)
        modules.append(getattr(library, kind)(*arguments, **keywords))
    return modules


def parts_of(state):
    return state if isinstance(state, tuple) else (state,)


def close(one, other):
    assert one.shape == other.shape
    assert one.dtype == other.dtype
    scale = max(1, other.detach().abs().max().item()) if other.numel() else 1
    atol = scale * (1e-12 if other.dtype == torch.float64 else 1e-5)
    torch.testing.assert_close(one, other, rtol=0, atol=atol)


@settings(deadline=None, max_examples=120)
@given(
    kind=st.sampled_from(KINDS),
    layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    batch_first=st.booleans(),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    form=st.sampled_from(["batch", "unbatched", "packed", "packed sorted", "strided"]),
    wanted=st.lists(st.booleans(), min_size=4, max_size=4),
    sizes=st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(1, 9), st.integers(1, 20)),
    seed=st.integers(0, 99),
)
def test_results_and_gradients_of_any_subset(
    kind, layers, bidirectional, batch_first, bias, dtype, form, wanted, sizes, seed
):
    T, B, I, H = sizes
    modules = twins(
        kind, I, H, layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional,
        dtype=dtype,
    )  # fmt: skip
    torch.manual_seed(seed)
    shape = (T, I) if form == "unbatched" else (B, T, I) if batch_first else (T, B, I)
    x = torch.randn(shape, dtype=dtype)
    if form == "strided":
        x = torch.randn(*shape[::-1], dtype=dtype).permute(2, 1, 0)
    D, parts = 1 + bidirectional, 2 if kind == "LSTM" else 1
    end = (layers * D, H) if form == "unbatched" else (layers * D, B, H)
    states = [torch.randn(end, dtype=dtype) for _ in range(parts)]
    lengths = torch.randint(1, T + 1, (B,))
    if form == "packed sorted":
        lengths = lengths.sort(descending=True).values
    of_x, of_state, of_weights, given_state = wanted
    seen = []
    for module in modules:
        module.requires_grad_(of_weights)
        given_x = x.clone().requires_grad_(of_x) if form != "strided" else x.requires_grad_(of_x)
        given_x.grad = None
        hx = [y.clone().requires_grad_(of_state) for y in states]
        data = given_x
        if form.startswith("packed"):
            data = pack_padded_sequence(
                given_x, lengths, batch_first, enforce_sorted=form == "packed sorted"
            )
        state = (tuple(hx) if parts == 2 else hx[0]) if given_state else None
        output, last = module(data, state)
        results = [output.data if isinstance(output, PackedSequence) else output, *parts_of(last)]
        if any(y.requires_grad for y in results):
            torch.manual_seed(seed)
            torch.autograd.backward(results, [torch.randn_like(y) for y in results])
        gradients = [y.grad for y in (given_x, *hx, *module.parameters())]
        seen.append((output, results, gradients))
    (first, results, gradients), (second, *others) = seen
    assert type(first) is type(second)
    if isinstance(first, PackedSequence):
        for one, other in zip(first[1:], second[1:], strict=True):
            assert one is other is None or torch.equal(one, other)
    for one, other in zip(others[0], results, strict=True):
        close(one, other)
        assert one.is_contiguous() or not other.is_contiguous()
    for one, other in zip(others[1], gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            close(one, other)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind, packed):
    module = getattr(bridge, kind)(3, 4, 2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    parts = 2 if kind == "LSTM" else 1
    states = [torch.randn(4, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(parts)]

    def outputs(x, *rest):
        given = pack_padded_sequence(x, [2, 4], enforce_sorted=False) if packed else x
        output, state = module(given, rest[:2] if parts == 2 else rest[0])
        return output.data if packed else output, *parts_of(state)

    assert torch.autograd.gradcheck(outputs, (x, *states, *module.parameters()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_result_that_is_used(kind):
    """Gradients of what nobody used come as None."""
    modules, x = twins(kind, 3, 5), torch.randn(6, 2, 3)
    for pick in range(3 if kind == "LSTM" else 2):
        for module in modules:
            module.zero_grad()
            output, state = module(x)
            (output, *parts_of(state))[pick].sum().backward()
        for one, other in zip(*(m.parameters() for m in modules), strict=True):
            close(other.grad, one.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_between_layers(kind):
    theirs, ours = twins(kind, 3, 5, 3, dropout=0.5, bidirectional=True)
    x = torch.randn(6, 4, 3)
    close(ours.eval()(x)[0], theirs.eval()(x)[0])
    ours.train()
    torch.manual_seed(1)
    output, state = ours(x)
    again, _ = ours(x)
    assert (output != again).any()
    torch.manual_seed(1)
    assert torch.equal(ours(x)[0], output)
    assert parts_of(state)[0].shape == (6, 4, 5)
    output.sum().backward()
    assert all(p.grad is not None for p in ours.parameters())
    # all that dropout leaves is scaled by 1 / (1 - p): where it drops nothing, nothing changes
    ours.dropout = 1e-9
    close(ours(x)[0], theirs(x)[0])


@pytest.mark.parametrize("lengths", [None, [12, 9, 5, 2], [5, 12, 2, 9]])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "batch_first": True}])
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_draws_the_masks_of_torch_nn(kind, options, lengths):
    """Of a PackedSequence for what is packed, not for the padding: losses and generator agree."""
    seen = []
    for module in twins(kind, 8, 16, 3, dropout=0.3, **options):
        torch.manual_seed(1)
        x = torch.randn((4, 12, 8) if module.batch_first else (12, 4, 8))
        if lengths:
            x = pack_padded_sequence(x, lengths, module.batch_first, enforce_sorted=False)
        optimiser, losses = torch.optim.Adam(module.parameters(), 1e-2), []
        for _ in range(4):
            output = module(x)[0]
            loss = (output.data if lengths else output).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        seen.append((losses, torch.rand(1)))
    (theirs, wanted), (ours, drawn) = seen
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert torch.equal(drawn, wanted)


@pytest.mark.parametrize("p", [0.5, 0.2])
def test_dropout_scales_what_it_leaves(p):
    """A lower layer of ones and an upper one that hands them on: the output is the mask."""
    module = bridge.RNN(3, 64, 2, nonlinearity="relu", dropout=p)
    with torch.no_grad():
        for y in module.parameters():
            y.zero_()
        module.bias_ih_l0.fill_(1)
        module.weight_ih_l1.copy_(torch.eye(64))
    torch.manual_seed(0)
    output, _ = module(torch.randn(50, 20, 3))
    close(output.unique(), torch.tensor([0, 1 / (1 - p)]))
    deviation = ((output > 0).sum() - output.numel() * (1 - p)) / (
        output.numel() * p * (1 - p)
    ) ** 0.5
    assert abs(deviation) < 5
    assert (output[0] != output[1]).any()  # a mask of its own for each step
    assert (output[:, 0] != output[:, 1]).any()  # and sequence
    output.sum().backward()
    close(module.bias_ih_l0.grad, output.sum((0, 1)).detach())


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_only_their_negative_bit_makes_negative(kind, wanted):
    """Input, states, weights and gradients may be imaginary parts of what is conjugated."""
    parts = 1 + (kind == "LSTM")

    def drawn(*shape):
        y = torch.randn(*shape, dtype=torch.complex128).conj().imag
        assert y.is_neg()
        return y.requires_grad_(wanted)

    seen = []
    for module in twins(kind, 3, 5, 2, dtype=torch.float64):
        torch.manual_seed(1)
        module.weight_hh_l0 = torch.nn.Parameter(drawn(len(module.weight_hh_l0), 5).detach())
        given, hx = drawn(6, 2, 3), [drawn(2, 2, 5) for _ in range(parts)]
        output, state = module.requires_grad_(wanted)(given, tuple(hx) if parts == 2 else hx[0])
        results = [output, *parts_of(state)]
        if wanted:
            torch.autograd.backward(results, [drawn(*y.shape).detach() for y in results])
            results += [y.grad for y in (given, *hx, *module.parameters())]
        seen.append(results)
        assert fb.from_state_dict(module.state_dict()).dtype == np.float64
    for one, other in zip(*seen, strict=True):
        close(other, one)


def test_without_gradients_nothing_is_kept():
    module, x = bridge.LSTM(3, 5), torch.randn(6, 2, 3)
    wanted = module(x)[0].detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            output, _ = module(x)
            assert not output.requires_grad
            assert torch.equal(output, wanted)


def test_changes_of_the_weights_are_seen_however_they_come():
    theirs, ours = twins("GRU", 3, 5)
    x = torch.randn(6, 2, 3)
    ours(x)
    for module in (theirs, ours):
        module.weight_hh_l0.data.mul_(2)  # which no version counter sees
    close(ours(x)[0], theirs(x)[0])
    for module in (theirs, ours):
        module.bias_hh_l0 = torch.nn.Parameter(torch.ones(15))
    close(ours(x)[0], theirs(x)[0])
    ours.double()
    assert ours(x.double())[0].dtype == torch.float64


@pytest.mark.parametrize("change", [("mode", "RNN_RELU"), ("nonlinearity", "relu")])
def test_a_nonlinearity_set_later_counts_as_in_torch_nn(change):
    """By `mode`, which torch.nn reads, and not by `nonlinearity`."""
    theirs, ours = twins("RNN", 3, 5)
    x = torch.randn(6, 2, 3)
    for module in (theirs, ours):
        module(x)
        setattr(module, *change)
    close(ours(x)[0], theirs(x)[0])


def test_changes_in_place_between_forward_and_backward_are_noticed():
    for change in ("x", "weight"):
        module, x = bridge.RNN(3, 16), torch.randn(6, 2, 3, requires_grad=True)
        given_x = x * 1
        output, _ = module(given_x)
        loss = (output * output).sum() if change == "weight" else output.sum()
        with torch.no_grad():
            {"x": given_x, "weight": module.weight_hh_l0}[change].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_output_may_be_changed_in_place(kind, batch_first):
    """As that of torch.nn's RNN and GRU; where H = 64 nothing is padded."""
    theirs, ours = twins(kind, 3, 64, batch_first=batch_first)
    x = torch.randn(6, 2, 3)
    wanted = theirs(x)[0].relu()
    wanted.square().sum().backward()
    output, state = ours(x)
    before = [y.clone() for y in parts_of(state)]
    output.relu_().square().sum().backward()
    close(output, wanted)
    for one, other in zip(parts_of(state), before, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        close(one.grad, other.grad)


def test_several_forwards_before_and_several_backwards_after():
    theirs, ours = twins("LSTM", 3, 5)
    x = torch.randn(6, 2, 3)
    for module in (theirs, ours):
        loss = module(x)[0].sum() + (module(2 * x)[0] ** 2).sum()
        loss.backward(retain_graph=True)
        loss.backward()
        with pytest.raises(RuntimeError, match="a second time"):
            loss.backward()
    for one, other in zip(theirs.parameters(), ours.parameters(), strict=True):
        close(other.grad, one.grad)


def test_second_derivatives_are_refused_in_words():
    module, x = bridge.GRU(3, 5), torch.randn(6, 2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
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


def test_copies_pickles_and_state_dicts():
    module, x = bridge.LSTM(3, 5, 2), torch.randn(6, 2, 3)
    wanted = module(x)[0].detach()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    loaded = torch.nn.LSTM(3, 5, 2)
    loaded.load_state_dict(torch.load(file))
    close(loaded(x)[0], wanted)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(other) is bridge.LSTM
        assert torch.equal(other(x)[0], wanted)
        with torch.no_grad():
            other.weight_hh_l0.zero_()
        assert torch.equal(module(x)[0], wanted)
    assert repr(module) == repr(torch.nn.LSTM(3, 5, 2))
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


@pytest.mark.parametrize("shape", [(4,), (4, 3, 3)])
def test_a_packed_sequence_has_two_dimensions(shape):
    packed = PackedSequence(torch.ones(shape), torch.tensor([2, 2]))
    for module in twins("GRU", 3, 4):
        with pytest.raises(RuntimeError, match=f"input must have 2 dimensions, got {len(shape)}"):
            module(packed)
