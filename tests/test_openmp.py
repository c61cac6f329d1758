"""fastbptt.openmp: torch's threads, lent to calls through the bridge."""

import functools
import multiprocessing
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
import torch

import fastbptt as fb
from fastbptt import threads
from fastbptt.bridges import torch as bridge
from fastbptt.openmp import OpenMP

LIBRARY = f"{torch.__path__[0]}/lib/libtorch_cpu.so"

pytestmark = pytest.mark.skipif(
    OpenMP.of(LIBRARY) is None, reason="issue 3: torch's Linux wheels are linked with libgomp"
)


@pytest.fixture(params=[1, 2, 3])
def count(request):
    """torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def lent():
    return OpenMP(LIBRARY).side_by_side


def nothing():
    pass


def still_as_many(count):
    """torch's loops run, on as many threads."""
    x = torch.ones(300, 300)
    assert torch.get_num_threads() == count
    torch.testing.assert_close(x @ x, torch.full((300, 300), 300.0))


@pytest.mark.parametrize("works", [1, 2, 3, 7])
def test_each_work_once_by_as_many_threads(count, lent, works):
    begun = threading.Barrier(min(count, works), timeout=60)  # side by side, or nobody goes on
    done, ended = {}, []

    def work(i):
        if i < min(count, works):
            begun.wait()
        done.setdefault(i, []).append(threading.get_ident())

    def first_ended():
        ended.append(threading.get_ident())
        assert 0 in done

    for _ in range(3):
        done.clear()
        lent([functools.partial(work, i) for i in range(works)], first_ended)
        assert sorted(done) == list(range(works))
        assert all(len(callers) == 1 for callers in done.values())
        assert len({*map(tuple, done.values())}) == min(count, works)
        for i in range(0, works, count):
            assert done[i] == [threading.get_ident()]
    assert ended == [threading.get_ident()] * 3
    still_as_many(count)


@pytest.mark.parametrize("failing", [[0], [1], [3, 0], [2, 1]])
def test_the_first_error_is_raised_when_all_have_ended(count, lent, failing):
    done = []

    def work(i):
        time.sleep(0.02 * i)
        done.append(i)
        if i in failing:
            raise ValueError(f"of work {i}")

    with pytest.raises(ValueError, match=f"of work {min(failing)}"):
        lent([functools.partial(work, i) for i in range(4)], nothing)
    assert sorted(done) == [0, 1, 2, 3]
    still_as_many(count)


def test_members_wait_for_no_leader_that_failed(count, lent):
    free = threading.Event()

    def leader():
        raise ValueError("no leader")

    def member():
        assert free.wait(60)

    with pytest.raises(ValueError, match="no leader"):
        lent([leader, *[member] * 4], free.set)
    still_as_many(count)


def test_ctrl_c_is_heard_and_leaves_the_threads_in_order(count, lent):
    done = []
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            lent([lambda: signal.raise_signal(signal.SIGINT), lambda: done.append(1)], nothing)
    assert done == [1] * 3
    still_as_many(count)


def test_within_one_of_its_works(count, lent):
    done = []
    lent([lambda: lent([lambda: done.append(0)] * 3, nothing), lambda: done.append(1)], nothing)
    assert sorted(done) == [0, 0, 0, 1]
    still_as_many(count)


def test_nothing_of_a_call_is_kept(count):
    runtime = OpenMP(LIBRARY)
    with pytest.raises(ZeroDivisionError):
        runtime.side_by_side([nothing, lambda: 1 // 0], nothing)
    runtime.side_by_side([nothing, nothing], nothing)
    assert not runtime._calls
    still_as_many(count)


def test_a_library_without_such_a_runtime():
    assert OpenMP.of("/no/such/library.so") is None
    assert OpenMP.of(sys.modules["_ctypes"].__file__) is None


def passes(kind):
    """Results and gradients of a step of training."""
    torch.manual_seed(0)
    module = getattr(bridge, kind)(5, 150, num_layers=2)
    x = torch.randn(40, 3, 5, requires_grad=True)
    output = module(torch.tanh(x))[0]
    (output @ torch.randn(150, 150)).sum().backward()
    return [y.detach().numpy() for y in (output, x.grad, *(p.grad for p in module.parameters()))]


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_the_bridge_has_torchs_threads_and_the_same_bits(monkeypatch, kind):
    monkeypatch.setattr(threads, "_WORTH_SHARING", 0)
    before, own, used = torch.get_num_threads(), bridge._openmp.side_by_side, []
    monkeypatch.setattr(
        bridge._openmp, "side_by_side", lambda works, ended: (used.append(1), own(works, ended))
    )
    monkeypatch.setattr(threads, "_on_workers", None)
    try:
        torch.set_num_threads(1)
        wanted = passes(kind)
        assert not used
        for count in (2, 3, 5):
            used.clear()
            torch.set_num_threads(count)
            for one, many in zip(wanted, passes(kind), strict=True):
                np.testing.assert_array_equal(one, many)
            assert len(used) >= 4  # two layers, forward and back
    finally:
        torch.set_num_threads(before)


def test_our_own_calls_have_our_own_threads(monkeypatch):
    monkeypatch.setattr(threads, "_WORTH_SHARING", 0)
    monkeypatch.setattr(bridge._openmp, "side_by_side", None)
    before = fb.get_num_threads()
    try:
        fb.set_num_threads(2)
        fb.RNN(3, 8)(np.ones((4, 2, 3), np.float32))
    finally:
        fb.set_num_threads(before)
    assert threads._idle


def small():
    """A step in which nothing is large enough for torch's own threads, which a child has not."""
    torch.manual_seed(0)
    module = bridge.GRU(5, 40)
    module(torch.ones(30, 3, 5))[0].sum().backward()
    return [p.grad.sum().item() for p in module.parameters()]


def _in_child(queue):
    queue.put((bridge._openmp.usable(), small()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="issue 3: fork exists on POSIX systems only")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_made_by_fork_waits_for_no_thread_of_its_parent(monkeypatch, count):
    monkeypatch.setattr(threads, "_WORTH_SHARING", 0)
    monkeypatch.setattr(bridge, "_WORTH_SHARING", 0)
    wanted = small()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,), daemon=True)
    child.start()
    usable, got = queue.get(timeout=60)
    assert not usable
    assert got == wanted
    child.join(60)
    assert child.exitcode == 0
    assert bridge._openmp.usable()
