"""Calls of one step and of ten: what a call costs to whoever goes step by step."""

import pytest
from cases import CASES, PEER_THREADS


@pytest.mark.parametrize("case", CASES["calls"], ids=lambda case: case.name)
def test_call(compare, case):
    # One sequence keeps one thread busy; the peers may have more if that helps them.
    compare(case, 1, peer_threads=PEER_THREADS)
