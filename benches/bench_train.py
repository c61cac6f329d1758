"""Forward and BPTT with new weights in each call, against every peer."""

import pytest
from cases import CASES, PEER_THREADS, THREADS
from peers import fastbptt_train, one_step


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("case", CASES["train"], ids=lambda case: case.name)
def test_train(compare, case, threads):
    fewer = [n for n in PEER_THREADS if n <= threads]
    compare(case, threads, peer_threads=fewer, call=one_step(fastbptt_train))


@pytest.mark.parametrize("case", CASES["small"], ids=lambda case: case.name)
def test_small_nets(compare, case):
    compare(case, 1, peer_threads=PEER_THREADS, call=one_step(fastbptt_train))
