"""fastbptt.bridges.torch against torch.nn: results and gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch_twins import DTYPES, KINDS, close, parts_of, twins

import fastbptt as fb
from fastbptt.bridges import torch as bridge
from fastbptt.network import Network


@settings(deadline=None, max_examples=120)
@given(
    kind=st.sampled_from(KINDS),
    layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    batch_first=st.booleans(),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    form=st.sampled_from(["batch", "unbatched", "packed", "packed sorted", "strided"]),
    wanted=st.one_of(
        *(st.just([given] * 28) for given in (True, False)),
        st.lists(st.booleans(), min_size=28, max_size=28),
    ),
    sizes=st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(1, 9), st.integers(1, 20)),
    seed=st.integers(0, 99),
)
def test_results_and_gradients_of_any_subset(
    kind, layers, bidirectional, batch_first, bias, dtype, form, wanted, sizes, seed
):
    """`wanted`: whether a state is given, and gradients of x, each state and each parameter."""
    T, B, I, H = sizes
    modules = twins(
        kind, I, H, layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional,
        dtype=dtype,
    )  # fmt: skip
    torch.manual_seed(seed)
    shape = (T, I) if form == "unbatched" else (B, T, I) if batch_first else (T, B, I)

    def draw(shape):
        """Leaves, which are dense and in order unless all of them are to be strided."""
        if form != "strided":
            return torch.randn(shape, dtype=dtype)
        return torch.randn(*shape[::-1], dtype=dtype).permute(*range(len(shape))[::-1])

    x = draw(shape)
    D, parts = 1 + bidirectional, 2 if kind == "LSTM" else 1
    end = (layers * D, H) if form == "unbatched" else (layers * D, B, H)
    states = [draw(end) for _ in range(parts)]
    lengths = torch.randint(1, T + 1, (B,))
    if form == "packed sorted":
        lengths = lengths.sort(descending=True).values
    given_state, of_x, *of_rest = wanted
    seen = []
    for module in modules:
        for parameter, of_it in zip(module.parameters(), of_rest[2:], strict=False):
            parameter.requires_grad_(of_it)
        # detached and not copied, which might change the strides
        given_x, *hx = (y.detach() for y in (x, *states))
        for y, of_it in zip((given_x, *hx), (of_x, *of_rest), strict=False):
            y.requires_grad_(of_it)
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
            torch.autograd.backward(results, [draw(y.shape) for y in results])
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


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_in_order_is_not_copied(kind, monkeypatch):
    """Given to the net where it lies, and without gradients the net's own output is returned."""
    given, made, trace, call = [], [], Network.trace, Network.__call__

    def traced(net, x, *rest):
        given.append(x)
        return trace(net, x, *rest)

    def called(net, x, *rest):
        given.append(x)
        made.append(call(net, x, *rest))
        return made[-1]

    monkeypatch.setattr(Network, "trace", traced)
    monkeypatch.setattr(Network, "__call__", called)
    module, x = getattr(bridge, kind)(32, 64), torch.randn(7, 3, 32)
    module(x)
    with torch.no_grad():
        output, _ = module(x)
    assert len(given) == 2
    assert all(np.shares_memory(one, x.numpy()) for one in given)
    assert np.shares_memory(output.numpy(), made[0][0])


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
