"""Long sequences: BPTT over checkpoints, a gradient that vanishes, units that saturate."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from timing import pinned

import fastbptt as fb

SEGMENT = 8192
MEMORY = """
import json, resource, sys
import numpy as np, fastbptt as fb

def peak():
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, else KiB
    return used if sys.platform == "darwin" else 1024 * used

T = {T}
rng = np.random.default_rng(0)
x, dy = (rng.standard_normal((T, 1, n), np.float32) for n in (32, 64))
net = fb.RNN(32, 64, rng=0)
net.trace(x[:100], checkpoint=50).backward(dy[:100])  # compiled, or read from the cache
before = peak()
net.trace(x, checkpoint={segment}).backward(dy, input_gradient=False)
print(json.dumps(peak() - before))
"""


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


def test_checkpoints(benchmark, rounds, request):
    quick = request.config.getoption("--quick")
    T = 20_000 if quick else 1_000_000
    command = [sys.executable, "-c", MEMORY.format(T=T, segment=SEGMENT)]
    rng, net = np.random.default_rng(0), fb.RNN(32, 64, rng=0)
    x, dy = (rng.standard_normal((T, 1, n), np.float32) for n in (32, 64))

    def train(checkpoint):
        return net.trace(x, checkpoint=checkpoint).backward(dy, input_gradient=False)

    with pinned(1):
        answer = subprocess.run(command, check=True, capture_output=True).stdout
        calls = {"checkpoints": lambda: train(SEGMENT), "whole": lambda: train(None)}
        seconds = by_turns(rounds, calls)
        grads = benchmark.pedantic(train, (SEGMENT,), rounds=1)
        wanted = train(None)
    for name, y in grads.params.items():
        assert np.abs(y - wanted.params[name]).max() < 1e-4 * np.abs(y).max()
    growth = json.loads(answer)
    benchmark.extra_info.update(
        task="checkpoints", T=T, segment=SEGMENT, seconds=seconds, growth_bytes=growth
    )


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
