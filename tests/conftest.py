"""Hypothesis draws the same examples in every CI run: a red run must be red again."""

import gc
import json
import os
import signal
import sys

import pytest
from hypothesis import settings
from reports import BENCHES, report

settings.register_profile("ci", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture
def interruptible():
    """Processes begun in the test hear Ctrl-C; those of a shell's background job would not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def no_collector():
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="module")
def benches():
    """The benches' files can be imported."""
    sys.path.insert(0, str(BENCHES))
    yield
    sys.path.remove(str(BENCHES))


@pytest.fixture(scope="module")
def table(benches):
    import table

    return table


@pytest.fixture(scope="module")
def results(benches):
    import results

    return results


@pytest.fixture
def written(tmp_path):
    """A report -> its file."""
    count = iter(range(99))

    def write(*infos, **more):
        file = tmp_path / f"{next(count)}.json"
        file.write_text(json.dumps(report(*infos, **more)))
        return file

    return write
