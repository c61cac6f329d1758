"""The forward pass, weights kept from call to call, against every peer."""

import pytest
from cases import CASES, THREADS


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("case", CASES["forward"], ids=lambda case: case.name)
def test_forward(compare, case, threads):
    compare(case, threads, peer_threads=[n for n in THREADS if n <= threads])
