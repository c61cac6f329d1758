"""The memory that a first call takes, of every library and cell."""

import pytest
from alone import alone
from cases import CASES, QUICK_STEPS, THREADS
from peers import libraries
from timing import pinned

SHAPES = [(300, 32, 64, 256), (50, 64, 256, 1024)]
CHOSEN = [
    case
    for task in ("forward", "train")
    for case in CASES[task]
    if case.usual and case[1:5] in SHAPES
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.name)
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
    benchmark.extra_info.update(
        task=f"memory of {case.name}",
        of=case.task,
        cell=case.cell,
        shape=list(case[1:5]),
        growth_bytes=found,
    )
