"""What a process pays before its first gradient: import, and compilation with and without cache."""

import json
import os
import subprocess
import sys

import pytest

IMPORT = """
import json, time
start = time.perf_counter()
import {package}
print(json.dumps(time.perf_counter() - start))
"""
FIRST_CALL = """
import json, time
from numba.core import event
with event.install_recorder("numba:compile") as compiled:
    import numpy as np, fastbptt as fb
    start = time.perf_counter()
    trace = fb.{cell}(32, 64, rng=0).trace(np.zeros((100, 4, 32), np.float32))
    trace.backward(np.ones_like(trace.output))
    seconds = time.perf_counter() - start
print(json.dumps([seconds, len(compiled.buffer)]))
"""


def answer(code, **environment):
    """What a fresh process prints; it finds bytecode, as it does of what pip has installed."""
    command, environment = [sys.executable, "-c", code], {**os.environ, **environment}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return json.loads(result.stdout)


def test_import(benchmark, rounds):
    seconds = {"fastbptt": [], "numba": []}

    def once(package):
        seconds[package].append(answer(IMPORT.format(package=package)))

    once("fastbptt")  # not counted: the operating system may not have read the files yet
    seconds["fastbptt"].clear()
    # a process starts in a fifth of a second, and whatever else runs delays it by as much
    benchmark.pedantic(lambda: once("fastbptt"), setup=lambda: once("numba"), rounds=3 * rounds)
    benchmark.extra_info.update(task="import", seconds=seconds)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_first_call(benchmark, rounds, cell, tmp_path):
    code, warm = FIRST_CALL.format(cell=cell.upper()), []

    def call():
        return answer(code, NUMBA_CACHE_DIR=str(tmp_path))

    cold, compiled = call()
    benchmark.pedantic(lambda: warm.append(call()), rounds=rounds)
    assert compiled > 0
    assert [anew for _, anew in warm] == [0] * len(warm)
    seconds = {"cold": [cold], "warm": [seconds for seconds, _ in warm]}
    benchmark.extra_info.update(task=f"first call {cell}", seconds=seconds)
