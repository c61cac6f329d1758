"""Long sequences: chunks, checkpoints; a gradient that vanishes, units that saturate."""

import time

import numpy as np
import pytest
from alone import SEGMENTS, WINDOW, alone, truncated
from cases import TOLERANCE
from timing import pinned

import fastbptt as fb

TIMES = [
    10**5,
    pytest.param(10**6, marks=pytest.mark.slow),
    pytest.param(10**7, marks=pytest.mark.long),
]


def by_turns(rounds, calls):
    """Seconds of each, one of each a round, after a call that does not count."""
    seconds = {name: [] for name in calls}
    for counted in (False, *[True] * rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if counted:
                seconds[name].append(time.perf_counter() - start)
    return seconds


@pytest.mark.parametrize("segment", SEGMENTS)
def test_checkpoints(segment, benchmark, rounds, request):
    """Short segments take least memory, few long ones least time: the last is not run again."""
    quick = request.config.getoption("--quick")
    T = 20_000 if quick else 1_000_000
    segment = segment * T // 1_000_000 if segment > T else segment
    rng, net = np.random.default_rng(0), fb.RNN(32, 64, rng=0)
    x, dy = (rng.standard_normal((T, 1, n), np.float32) for n in (32, 64))

    def train(checkpoint):
        return net.trace(x, checkpoint=checkpoint).backward(dy, input_gradient=False)

    with pinned(1):
        growth = alone("checkpoints", T=T, segment=segment)["growth_bytes"]
        calls = {"checkpoints": lambda: train(segment), "whole": lambda: train(None)}
        seconds = by_turns(rounds, calls)
        grads = benchmark.pedantic(train, (segment,), rounds=1)
        wanted = train(None)
    for name, y in grads.params.items():
        assert np.abs(y - wanted.params[name]).max() < 1e-4 * np.abs(y).max()
    benchmark.extra_info.update(
        task=f"checkpoints {segment}",
        T=T,
        segment=segment,
        seconds=seconds,
        growth_bytes=growth,
    )


def test_truncated(benchmark, rounds, request):
    """A gradient that ends at each window's begin: what fits in no memory is made so as a rule."""
    pytest.importorskip("torch", exc_type=ImportError)  # whose gradients are those wanted
    quick = request.config.getoption("--quick")
    T = 20_000 if quick else 1_000_000
    rng, net = np.random.default_rng(0), fb.RNN(32, 64, rng=0)
    x, dy = (rng.standard_normal((T, 1, n), np.float32) for n in (32, 64))

    def whole():
        return net.trace(x).backward(dy, input_gradient=False)

    with pinned(1):
        growth = alone("truncation", T=T)["growth_bytes"]
        seconds = by_turns(rounds, {"truncated": lambda: truncated(net, x, dy), "whole": whole})
        benchmark.pedantic(truncated, (net, x, dy), rounds=1)
    few = net, x[: 3 * WINDOW], dy[: 3 * WINDOW]
    wanted = by_torch(*few)
    for name, y in truncated(*few).items():
        assert np.abs(y - wanted[name]).max() < TOLERANCE["float32"] * np.abs(wanted[name]).max()
    benchmark.extra_info.update(
        task="truncated", T=T, window=WINDOW, seconds=seconds, growth_bytes=growth
    )


def by_torch(net, x, dy):
    """The gradients that `truncated` returns, by detached states."""
    import torch

    layer, state = torch.nn.RNN(32, 64), None
    layer.load_state_dict({name: torch.tensor(y) for name, y in net.state_dict().items()})
    layer = layer.double()
    for t in range(0, len(x), WINDOW):
        part = slice(t, t + WINDOW)
        output, state = layer(torch.tensor(x[part]).double(), state)
        output.backward(torch.tensor(dy[part]).double())
        state = state.detach()
    return {name: y.grad.numpy() for name, y in layer.named_parameters()}


@pytest.mark.parametrize("task", ["forward", "train"])
@pytest.mark.parametrize("H", [64, 256])
@pytest.mark.parametrize("T", TIMES)
def test_sequences(T, H, task, benchmark, request):
    """Chunks that carry the state, and checkpoints: a step costs what it costs if T = 1000."""
    steps = min(T, 10_000) if request.config.getoption("--quick") else T
    with pinned(1):
        options = {"task": task, "T": steps, "H": H}
        found = benchmark.pedantic(alone, ("sequence",), options, rounds=1)
    assert found["error"] < TOLERANCE["float32"]
    benchmark.extra_info.update(found, task=f"{task} sequence {T} {H}", T=steps, size=H)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_gradient_that_vanishes_and_units_that_saturate(cell, benchmark, rounds, request):
    """Subnormal numbers cost some processors a hundred times: nobody may notice."""
    T, H = (1000 if request.config.getoption("--quick") else 10_000), 64
    rng = np.random.default_rng(0)
    x = rng.standard_normal((T, 1, 32), np.float32)

    def call(radius, scale):
        net = getattr(fb, cell.upper())(32, H, rng=0)
        w = rng.standard_normal((H, H))
        w *= radius / np.abs(np.linalg.eigvals(w)).max()
        net.weight_hh_l0 = np.tile(w, (len(net.weight_hh_l0) // H, 1)).astype(np.float32)
        given, last = scale * x, np.ones((1, 1, H), np.float32)
        d_state = (last, last) if cell == "lstm" else last
        dy = np.ones((T, 1, H), np.float32) if radius == 1 else None

        def train():
            return net.trace(given).backward(dy, d_state)

        return train

    calls = {
        "healthy": call(1, 1),
        "vanishing": call(0.5, 1),
        "saturated": call(1, np.float32(100)),
    }
    with pinned(1):
        seconds = by_turns(rounds, calls)
        grads = benchmark.pedantic(calls["vanishing"], rounds=1)
    assert not grads.x[0].any()
    assert grads.x[-1].all()
    benchmark.extra_info.update(task=f"subnormal {cell}", T=T, size=H, seconds=seconds)
