"""The memory that one train call takes, of every library and cell."""

import pytest
from alone import alone
from cases import CASES, QUICK_STEPS, THREADS
from peers import libraries
from timing import pinned

SHAPE = (300, 32, 64, 256)
TRAINED = [case for case in CASES["train"] if case.usual and case[1:5] == SHAPE]


@pytest.mark.slow
@pytest.mark.parametrize("case", TRAINED, ids=lambda case: case.name)
def test_memory(case, benchmark, request):
    quick = request.config.getoption("--quick")
    given = case.shortened(2 * QUICK_STEPS) if quick else case
    names = [name for name in libraries(case) if name not in ("numba", "numpy")]
    found = {}

    def run():
        for name in names:
            found[name] = alone("memory", library=name, case=list(given))["growth_bytes"]

    with pinned(THREADS[-1]):
        benchmark.pedantic(run, rounds=1)
    assert all(growth >= 0 for growth in found.values())
    shape = list(SHAPE)
    benchmark.extra_info.update(task=f"memory {case.cell}", growth_bytes=found, shape=shape)
