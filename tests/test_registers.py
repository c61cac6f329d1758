"""The kernels as they are on processors with narrower registers than this one's."""

import os
import pathlib
import platform
import subprocess
import sys

import pytest

TESTS = pathlib.Path(__file__).parent


@pytest.mark.skipif(platform.machine() != "x86_64", reason="issue 2: names x86 processors")
@pytest.mark.parametrize(
    ("processor", "without"), [("haswell", "avx512f"), ("nehalem", "avx512f avx2 avx")]
)
def test_panels_with_narrower_registers(tmp_path, processor, without):
    environment = {
        **os.environ,
        "NARROW_REGISTERS": without,
        "NUMBA_CPU_NAME": processor,
        "NUMBA_CPU_FEATURES": "",
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "narrow_registers", str(TESTS / "test_panels.py")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
