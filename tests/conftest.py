"""Hypothesis draws the same examples in every CI run: a red run must be red again."""

import gc
import os
import signal

import pytest
from hypothesis import settings

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
