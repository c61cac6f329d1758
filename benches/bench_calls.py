"""Calls of one step and of ten: what a call costs to whoever goes step by step."""

from functools import partial

import pytest
from cases import CASES, PEER_THREADS
from peers import fastbptt_train


@pytest.mark.parametrize("case", CASES["calls"], ids=lambda case: case.name)
def test_call(compare, case):
    # One sequence keeps one thread busy; the peers may have more if that helps them.
    own = {"packed": partial(fastbptt_train, new=False)} if case.task == "train" else {}
    compare(case, 1, peer_threads=PEER_THREADS, **own)
