"""Forward and BPTT with new weights in each call, against every peer."""

import pytest
from cases import CASES, THREADS


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("case", CASES["train"], ids=lambda case: case.name)
def test_train(compare, case, threads):
    compare(case, threads, peer_threads=[n for n in THREADS if n <= threads])
