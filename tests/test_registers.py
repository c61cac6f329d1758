"""The kernels as they are on processors with narrower registers than this one's, or slower ones."""

import os
import pathlib
import platform
import subprocess
import sys

import pytest
from llvmlite import binding

TESTS = pathlib.Path(__file__).parent
PROCESSORS = [("haswell", "avx512f"), ("nehalem", "avx512f avx2 avx fma")]
if binding.get_host_cpu_features().get("avx512f"):  # one begins one FMA in a cycle, the other two
    zen4 = binding.get_host_cpu_name() == "znver4"
    PROCESSORS.append(("skylake-avx512" if zen4 else "znver4", ""))


def run(tmp_path, processor, without, *arguments):
    """Some tests as on another processor."""
    environment = {
        **os.environ,
        "NARROW_REGISTERS": without,
        "NUMBA_CPU_NAME": processor,
        "NUMBA_CPU_FEATURES": "",
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "narrow_registers", *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.skipif(platform.machine() != "x86_64", reason="issue 2: names x86 processors")
@pytest.mark.parametrize(("processor", "without"), PROCESSORS)
def test_panels_on_another_processor(tmp_path, processor, without):
    run(tmp_path, processor, without, str(TESTS / "test_panels.py"))


# "generic": Numba compiles for less than the processor has
@pytest.mark.skipif(platform.machine() != "x86_64", reason="issue 2: names x86 processors")
@pytest.mark.parametrize(("processor", "without"), [*PROCESSORS, ("generic", "")])
def test_curves_on_another_processor(tmp_path, processor, without):
    chosen = "4093rd or doubles or special or bits_of_the_value"
    run(tmp_path, processor, without, str(TESTS / "test_elementary.py"), "-k", chosen)


_LOOP = """
import numpy as np
from fastbptt.kernels.elementary import sigmoid
from fastbptt.kernels.jit import kernel
from fastbptt.kernels.lines import line

@kernel
def loop(array, n):
    one = line(array, 0, "h")
    for j in range(n):
        one[j] = sigmoid(one[j])

loop(np.zeros(256, np.float32), 256)
(assembly,) = loop.inspect_asm().values()
print(*{line.split("%")[1][0] for line in assembly.splitlines() if "vdivps" in line})
"""


@pytest.mark.skipif(
    not binding.get_host_cpu_features().get("avx512f"), reason="issue 5: registers of 64 bytes"
)
def test_loops_take_whole_registers_where_llvm_would_take_halves(tmp_path):
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": "skylake-avx512",
        "NUMBA_CPU_FEATURES": "",
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(TESTS.parent),
    }
    command = [sys.executable, "-c", _LOOP]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    registers = result.stdout.split()  # and what a tail takes
    assert "z" in registers, result.stderr
    assert "y" not in registers
