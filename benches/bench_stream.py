"""JacobianStream against loops of tangents and QR, and against the forward pass alone."""

import json
import subprocess
import sys

import pytest
from cases import CASES, THREADS
from peers import fastbptt_forward
from timing import pinned

LONG = """
import json, resource, sys, time
import numpy as np, fastbptt as fb

def peak():
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, else KiB
    return used if sys.platform == "darwin" else 1024 * used

chunk = np.random.default_rng(0).standard_normal((100_000, 32), np.float32)
stream = fb.JacobianStream(fb.RNN(32, 64, rng=0), probes=8, rng=0)
stream.update(chunk)
stream.result()
before, start = peak(), time.perf_counter()
for _ in range(99):
    stream.update(chunk)
result = stream.result()
seconds = time.perf_counter() - start
growth = peak() - before
print(json.dumps({"steps": result.steps, "seconds": seconds, "growth_bytes": growth,
                  "lower": float(result.lower), "upper": float(result.upper)}))
"""


@pytest.mark.parametrize("case", CASES["stream"], ids=lambda case: case.name)
def test_stream(compare, case):
    # One sequence keeps one thread busy; the peers may have more if that helps them.
    compare(case, 1, peer_threads=THREADS, forward=fastbptt_forward)


@pytest.mark.long
def test_ten_million_steps(benchmark):
    def run():
        command = [sys.executable, "-c", LONG]
        return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)

    with pinned(1):
        result = benchmark.pedantic(run, rounds=1)
    assert result["steps"] == 10_000_000
    assert -float("inf") < result["lower"] <= result["upper"] < float("inf")
    benchmark.extra_info.update(result, task="long")
