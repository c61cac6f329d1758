"""The forward pass from small nets to large ones, against every peer, for `pictures.py`."""

import pytest
from cases import CASES


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES["sizes"], ids=lambda case: case.name)
def test_sizes(compare, benchmark, case):
    compare(case, 1, peer_threads=[1], rounds=3)
    benchmark.extra_info["task"] = "sizes"
