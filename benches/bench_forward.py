"""The forward pass, weights kept from call to call, against every peer."""

import pytest
from cases import CASES, PEER_THREADS, THREADS
from peers import fastbptt_forward, one_step


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("case", CASES["forward"], ids=lambda case: case.name)
def test_forward(compare, case, threads):
    fewer = [n for n in PEER_THREADS if n <= threads]
    compare(case, threads, peer_threads=fewer, call=one_step(fastbptt_forward))
