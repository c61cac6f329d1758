"""The roofline that the tables are read against, one process for each number of threads."""

import json
import pathlib
import subprocess
import sys

import pytest
from cases import THREADS
from timing import pinned

PROGRAM = pathlib.Path(__file__).with_name("limits.py")


@pytest.mark.parametrize("threads", THREADS)
def test_roofline(threads, benchmark):
    def run():
        command = [sys.executable, str(PROGRAM), str(threads)]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    with pinned(threads):
        found = benchmark.pedantic(run, rounds=1)
    assert all(
        rate > 0 for what in ("gbytes", "gflops", "gcurves") for rate in found[what].values()
    )
    benchmark.extra_info.update(task=f"limits {threads}", threads=threads, **found)
