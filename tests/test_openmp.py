"""fastbptt.openmp: torch's threads, lent to calls through the bridge."""

import ctypes
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
import torch

import fastbptt as fb
from fastbptt import threads
from fastbptt.bridges import torch as bridge
from fastbptt.bridges import torch_autograd as autograd
from fastbptt.openmp import OpenMP

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="issue 3: threads lent on Linux")


@pytest.fixture(params=[1, 2, 3])
def count(request):
    """torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def lent():
    return OpenMP().side_by_side


def nothing():
    pass


def still_as_many(count):
    """torch's loops run, on as many threads; no region is open."""
    x = torch.ones(300, 300)
    assert torch.get_num_threads() == count
    assert ctypes.CDLL(None).omp_get_level() == 0
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


@pytest.mark.usefixtures("interruptible")
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


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("before", ["_start", "_end"])
def test_ctrl_c_while_a_region_begins_or_ends(monkeypatch, count, before):
    runtime, done, one, free = OpenMP(), [], getattr(OpenMP(), before), threading.Event()

    def interrupted(*arguments):
        one(*arguments)
        signal.raise_signal(signal.SIGINT)

    def member():
        assert free.wait(60)
        done.append(0)

    monkeypatch.setattr(runtime, before, interrupted)
    with pytest.raises(KeyboardInterrupt):
        runtime.side_by_side([nothing, member], free.set)
    assert done == [0] or count == 1
    still_as_many(count)
    monkeypatch.undo()
    runtime.side_by_side([nothing, lambda: done.append(1)], nothing)
    assert done[-1] == 1


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_during_the_wait_for_the_others(count, lent):
    done = []

    def late():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        done.append(1)

    with pytest.raises(KeyboardInterrupt):
        lent([nothing, late], nothing)
    assert done == [1] or count == 1
    still_as_many(count)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_a_call_is_kept(count, lent, fails):
    kept = np.ones(3)
    alive = weakref.ref(kept)

    def work(y=kept):
        if fails:
            raise ValueError("kept?")

    try:
        lent([nothing, work, nothing], nothing)
        assert not fails
    except ValueError:
        assert fails
    del kept, work
    assert alive() is None
    still_as_many(count)


def test_a_process_without_a_runtime():
    code = "from fastbptt.openmp import OpenMP; print(OpenMP.found())"
    told = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)
    assert told.stdout == b"None\n"


def passes(kind):
    """Results and gradients of a step of training."""
    torch.manual_seed(0)
    module = getattr(bridge, kind)(5, 150, num_layers=2)
    x = torch.randn(40, 3, 5, requires_grad=True)
    output = module(x)[0]
    torch.ones(300, 300) @ torch.ones(300, 300)  # torch's threads are awake
    output.backward(torch.randn(output.shape))
    return [y.detach().numpy() for y in (output, x.grad, *(p.grad for p in module.parameters()))]


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_the_bridge_has_torchs_threads_and_the_same_bits(monkeypatch, kind):
    monkeypatch.setattr(threads, "_WORTH_SHARING", 0)
    before, own, used = torch.get_num_threads(), autograd._openmp.side_by_side, []
    monkeypatch.setattr(
        autograd._openmp, "side_by_side", lambda works, ended: (used.append(1), own(works, ended))
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
    threads._end()
    before = fb.get_num_threads()
    try:
        fb.set_num_threads(2)
        bridge.RNN(3, 8)(torch.ones(4, 2, 3))
        assert not threads._idle
        monkeypatch.setattr(autograd._openmp, "side_by_side", None)
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
    queue.put((autograd._openmp.usable(), small()))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_made_by_fork_waits_for_no_thread_of_its_parent(monkeypatch, count):
    monkeypatch.setattr(threads, "_WORTH_SHARING", 0)
    monkeypatch.setattr(autograd, "_WORTH_SHARING", 0)
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
    assert autograd._openmp.usable()


def test_a_child_that_has_the_bridge_after_the_fork():
    code = (
        "import os, torch\n"
        "torch.set_num_threads(2)\n"
        "torch.ones(300, 300) @ torch.ones(300, 300)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    from fastbptt import threads\n"
        "    from fastbptt.bridges import torch as bridge, torch_autograd as autograd\n"
        "    threads._WORTH_SHARING = autograd._WORTH_SHARING = 0\n"
        "    bridge.GRU(5, 40)(torch.ones(30, 3, 5))[0].sum().backward()\n"
        "    os._exit(3 + autograd._openmp.usable())\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    told = subprocess.run([sys.executable, "-c", code], timeout=60, stdout=subprocess.PIPE)
    assert told.stdout == b"3\n"
