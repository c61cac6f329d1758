"""The disk cache: hit by a second process, stale after any edit, harmless where it cannot be."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "fastbptt"

# One forward pass; then how many kernels were compiled and how many came from the cache.
PROGRAM = """
import numpy as np
import fastbptt as fb
from fastbptt.kernels import sweeps
fb.RNN(2, 3, rng=0)(np.ones((4, 2), np.float32))
stats = sweeps.forward.stats
print(sum(stats.cache_misses.values()), sum(stats.cache_hits.values()))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the package with a cache of its own."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(PACKAGE, folder / "fastbptt", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run(copy, program=PROGRAM, **environment):
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_second_process_compiles_nothing_and_an_edit_anywhere_makes_it_compile(copy):
    cache = {"NUMBA_CACHE_DIR": str(copy / "cache")}
    assert run(copy, **cache).stdout.split() == ["1", "0"]
    assert run(copy, **cache).stdout.split() == ["0", "1"]
    # Numba itself would look at sweeps.py alone
    with open(copy / "fastbptt" / "kernels" / "activations.py", "a") as file:
        file.write("# edited\n")
    assert run(copy, **cache).stdout.split() == ["1", "0"]
    assert run(copy, **cache).stdout.split() == ["0", "1"]


def test_an_edit_after_the_import_does_not_vouch_for_what_was_imported(copy):
    cache = {"NUMBA_CACHE_DIR": str(copy / "late")}
    edit = "with open(fb.__file__, 'a') as file: file.write('# edited')\n"
    program = PROGRAM.replace("fb.RNN", edit + "fb.RNN")
    assert run(copy, program, **cache).stdout.split() == ["1", "0"]
    assert run(copy, **cache).stdout.split() == ["1", "0"]


def test_numba_hears_of_a_part_only_where_code_is_compiled(copy):
    cache = {"NUMBA_CACHE_DIR": str(copy / "parts")}
    heard = 'print("_dispatcher" in vars(panels.rows_matmul))\n'
    program = PROGRAM.replace("fb.RNN", "from fastbptt.kernels import panels\n" + heard + "fb.RNN")
    program += heard
    assert run(copy, program, **cache).stdout.split() == ["False", "1", "0", "True"]
    assert run(copy, program, **cache).stdout.split() == ["False", "0", "1", "False"]


def test_no_writable_cache_folder_is_one_warning_and_then_works(copy):
    result = run(
        copy,
        NUMBA_CACHE_DIR=os.devnull + "/nowhere",
        NUMBA_CACHE_LOCATOR_CLASSES="UserProvidedCacheLocator",
    )
    assert result.stdout.split() == ["1", "0"], result.stderr
    assert result.stderr.count("RuntimeWarning") == 1
    assert "NUMBA_CACHE_DIR" in result.stderr


def test_a_cache_folder_that_goes_away_is_one_warning_and_then_works(copy):
    gone = (
        "import os, shutil; folder = os.environ['NUMBA_CACHE_DIR']\n"
        "sweeps.forward.stats  # its cache is open\n"
        "shutil.rmtree(folder); open(folder, 'w').close()\n"
    )
    program = PROGRAM.replace("fb.RNN", gone + "fb.RNN")
    result = run(copy, program, NUMBA_CACHE_DIR=str(copy / "gone"))
    assert result.stdout.split() == ["1", "0"], result.stderr
    assert result.stderr.count("RuntimeWarning") == 1


def test_importing_compiles_nothing(copy):
    program = "import fastbptt.kernels.sweeps as s; print(len(s.forward.signatures))"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=copy, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "0"


def test_a_cache_file_cut_short_is_compiled_again(copy):
    cache = {"NUMBA_CACHE_DIR": str(copy / "cut")}
    run(copy, **cache)
    for pattern in ("*.nbi", "*.nbc"):
        for path in (copy / "cut").rglob(pattern):
            path.write_bytes(path.read_bytes()[:20])
        assert run(copy, **cache).stdout.split() == ["1", "0"]
        assert run(copy, **cache).stdout.split() == ["0", "1"]
