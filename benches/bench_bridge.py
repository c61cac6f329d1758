"""A training step of torch with the layer computed by fastbptt, against torch.nn's own."""

from importlib.util import find_spec

import pytest
from cases import CASES, PEER_THREADS, THREADS
from peers import fastbptt_train, step_without_layer

pytestmark = pytest.mark.skipif(not find_spec("torch"), reason="issue 3: torch is not installed")


@pytest.mark.parametrize("case", CASES["bridge"], ids=lambda case: case.name)
def test_bridge(compare, case):
    # One sequence keeps one thread busy; torch may have more if that helps it.
    compare(case, 1, peer_threads=PEER_THREADS, layer=fastbptt_train)


@pytest.mark.parametrize("case", CASES["step"], ids=lambda case: case.name)
def test_step(compare, case):
    own = {"layer": fastbptt_train, "torch alone": step_without_layer}
    compare(case, THREADS[-1], peer_threads=PEER_THREADS, **own)
