"""JacobianStream against loops of tangents and QR, and against the forward pass alone."""

import pytest
from alone import alone
from cases import CASES, PEER_THREADS
from peers import fastbptt_forward
from timing import pinned


@pytest.mark.parametrize("case", CASES["stream"], ids=lambda case: case.name)
def test_stream(compare, case):
    # One sequence keeps one thread busy; the peers may have more if that helps them.
    compare(case, 1, peer_threads=PEER_THREADS, forward=fastbptt_forward)


@pytest.mark.long
def test_ten_million_steps(benchmark, request):
    chunks = 2 if request.config.getoption("--quick") else 100
    with pinned(1):
        result = benchmark.pedantic(alone, ("stream",), {"chunks": chunks}, rounds=1)
    assert result["steps"] == 100_000 * chunks
    assert -float("inf") < result["lower"] <= result["upper"] < float("inf")
    benchmark.extra_info.update(result, task="long")
