"""The pool: same bits with any number of threads, forks, other callers, Ctrl-C."""

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

import fastbptt as fb
from fastbptt import layers, threads
from fastbptt.kernels.cells import Adjoints
from fastbptt.kernels.sweeps import descend, forward
from fastbptt.spectral import sweeps, two_passes


@pytest.fixture(autouse=True)
def restore_threads():
    before = fb.get_num_threads()
    yield
    fb.set_num_threads(before)


def work(B=16, T=40, H=96, I=70):
    rng = np.random.default_rng(0)
    net = fb.RNN(I, H, rng=0)
    trace = net.trace(rng.normal(size=(T, B, I)).astype(np.float32))
    grads = trace.backward(rng.normal(size=(T, B, H)).astype(np.float32))
    stream = fb.JacobianStream(net, probes=3)
    stream.update(rng.normal(size=(T, B, I)).astype(np.float32))
    frames, alone = (fb.growth_window(trace.chain(), 9, method=m) for m in ("frames", "sweeps"))
    norms = [stream.result().lower, frames.lower, frames.estimate, alone.lower, alone.upper]
    return [trace.output, *grads.params.values(), grads.x, grads.state, *norms]


@pytest.fixture
def every_call_is_shared(monkeypatch):
    monkeypatch.setattr(threads, "_WORTH_SHARING", 0)
    monkeypatch.setattr(two_passes, "_TOGETHER", 6)
    monkeypatch.setattr(sweeps, "_NUMBERS", 1 << 14)


@pytest.mark.usefixtures("every_call_is_shared")
@pytest.mark.parametrize("B", [1, 2, 5, 16])
def test_the_bits_do_not_depend_on_the_number_of_threads(B):
    fb.set_num_threads(1)
    alone = work(B)
    for count in (2, 3, 7):
        fb.set_num_threads(count)
        for one, many in zip(alone, work(B), strict=True):
            np.testing.assert_array_equal(one, many)


@pytest.mark.usefixtures("every_call_is_shared")
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("lengths", [None, [900, 0, 1400]])
def test_the_bits_do_not_depend_on_how_many_steps_a_call_or_a_meeting_has(
    kind, lengths, monkeypatch
):
    monkeypatch.setattr(layers, "_CHUNK_BYTES", 1)  # chunks of GRADIENT_ROWS: over twenty of them
    for name in ("_chunk_steps", "_scratch"):  # which remember what they found
        monkeypatch.setattr(layers, name, getattr(layers, name).__wrapped__)
    rng = np.random.default_rng(0)
    net = getattr(fb, kind)(7, 20, rng=0)
    x, dy = (rng.normal(size=(1400, 3, n)).astype(np.float32) for n in (7, 20))
    calls = []

    def noted(*given):
        calls.append((given[5], Adjoints(*given[2]).da.shape[0]))
        descend(*given)

    monkeypatch.setattr(net.weights.layers[0].sizes.descend, "call", noted)

    def gradients():
        calls.clear()
        return net.trace(x, lengths=lengths).backward(dy).params.values()

    fb.set_num_threads(1)
    alone, (((t0, t1, steps), chunk),) = gradients(), calls
    assert (t0, t1) == (0, 1400)
    assert chunk == steps * len(x[0]) < 1400
    for count, call, ahead in [(1, 1, 1), (2, 4e9, 2), (3, 4e9, 1), (2, 1, 2), (2, 3e6, 1)]:
        monkeypatch.setattr(layers, "_CALL", call)
        monkeypatch.setattr(layers, "_CHUNKS_AHEAD", ahead)
        fb.set_num_threads(count)
        for one, many in zip(alone, gradients(), strict=True):
            np.testing.assert_array_equal(one, many)
        assert {rows for _, rows in calls} == {chunk if count == 1 else count * ahead * chunk}
        if call == 1:
            assert len(calls) == count * -(-1400 // steps)
    monkeypatch.setattr(layers, "_MOST_AHEAD", 1)
    for one, many in zip(alone, gradients(), strict=True):
        np.testing.assert_array_equal(one, many)
    assert {rows for _, rows in calls} == {chunk}


@pytest.mark.usefixtures("every_call_is_shared")
def test_shares_cover_the_range_once():
    for count in (1, 2, 3, 8):
        fb.set_num_threads(count)
        for size in (0, 1, 2, 5, 17):
            seen = np.zeros(size, int)

            def visit(first, last, seen=seen):
                seen[first:last] += 1

            threads.share(visit, size, 1e9)
            assert (seen == 1).all()
            assert threads.slices(size, count) == threads.slices(np.ones(size), count)


@pytest.mark.usefixtures("every_call_is_shared")
def test_an_error_in_a_worker_reaches_the_caller():
    fb.set_num_threads(2)

    def fail(first, last):
        if first:
            raise RuntimeError("in the worker")

    with pytest.raises(RuntimeError, match="in the worker"):
        threads.share(fail, np.ones(2), 1e9)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="issue 5: Linux has them")
@pytest.mark.parametrize("fails", [False, True])
def test_each_thread_of_a_call_has_its_own_core_while_it_lasts(fails):
    allowed, seen = os.sched_getaffinity(0), {}

    def record(name):
        seen[name] = os.sched_getaffinity(0)
        if fails and name != "leader":
            raise RuntimeError(name)

    threads._end()  # new threads, which begin with the affinity of whoever starts them
    names = ["leader", *range(len(allowed) - 1)]
    works = [lambda name=name: record(name) for name in names]
    if fails and len(allowed) > 1:
        with pytest.raises(RuntimeError):
            threads.side_by_side(works)
    else:
        threads.side_by_side(works)
    assert len(seen["leader"]) == 1 or len(allowed) == 1
    for name in names[1:]:
        assert seen[name] <= allowed - seen["leader"]
    assert os.sched_getaffinity(0) == allowed
    workers = list(threads._idle)
    assert len(workers) == len(works) - 1
    assert all(os.sched_getaffinity(worker.native_id) == allowed for worker in workers)


def test_a_thread_is_used_again_asleep_or_awake(monkeypatch):
    threads._end()
    seen = []
    for pauses, asleep in [(0, True)] * 3 + [(10**9, False)] * 3:
        monkeypatch.setattr(threads, "_AWAKE", pauses)
        threads.side_by_side([lambda: None, lambda: seen.append(threading.current_thread())])
        (worker,) = threads._idle
        until = time.monotonic() + 60
        while worker.asleep != asleep and time.monotonic() < until:
            time.sleep(0.01)
        assert worker.asleep == asleep
    assert seen == [worker] * 6
    threads._end()


def test_as_many_threads_as_works_and_calls_from_several_threads():
    threads._end()
    barrier = threading.Barrier(12, timeout=60)  # all side by side, or nobody goes on

    def call():
        threads.side_by_side([barrier.wait] * 4)

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not barrier.broken
    assert len(set(threads._idle)) == 9


@pytest.mark.usefixtures("no_collector")
def test_nothing_of_a_call_is_kept_and_the_first_error_is_raised_when_all_have_ended():
    done, kept = [], np.ones(3)
    alive = weakref.ref(kept)

    def fails(y=kept):
        raise RuntimeError("in a worker")

    def late():
        time.sleep(0.1)
        done.append(1)

    with pytest.raises(RuntimeError, match="in a worker"):
        threads.side_by_side([lambda: None, fails, late])
    assert done == [1]
    with pytest.raises(ZeroDivisionError):
        threads.side_by_side([lambda: 1 // 0, late])
    assert done == [1, 1]
    del kept, fails
    assert alive() is None


def test_a_process_ends_with_its_threads_awake():
    code = (
        "import atexit, threading\n"
        "def left(): print(threading.active_count())\n"
        "atexit.register(left)\n"
        "from fastbptt import threads\n"
        "threads.side_by_side([lambda: None] * 3)\n"
        "assert threading.active_count() == 3\n"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, check=True, timeout=60, stdout=subprocess.PIPE).stdout == b"1\n"


def test_a_thread_that_cannot_be_begun_leaves_the_others_free(monkeypatch):
    threads._end()
    threads.side_by_side([lambda: None] * 2)
    (worker,) = threads._idle

    def none_left():
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "_Worker", none_left)
    done = []
    with pytest.raises(RuntimeError, match="new thread"):
        threads.side_by_side([lambda: done.append(1)] * 3)
    assert threads._idle == [worker]
    assert not done


def test_a_sandbox_that_forbids_affinities_costs_speed_alone(monkeypatch):
    def forbidden(*_):
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", forbidden, raising=False)
    done = []
    threads.side_by_side([lambda: done.append(0), lambda: done.append(1)])
    assert sorted(done) == [0, 1]


@pytest.mark.usefixtures("every_call_is_shared")
def test_another_thread_shares_nothing_and_gets_the_same_bits():
    fb.set_num_threads(2)
    wanted, got = work(), {}
    callers = [threading.Thread(target=lambda i=i: got.update({i: work()})) for i in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(got) == 3
    for results in got.values():
        for one, many in zip(wanted, results, strict=True):
            np.testing.assert_array_equal(one, many)


def _in_child(queue):
    threads._WORTH_SHARING = 0
    queue.put(float(work()[0].sum()))


@pytest.mark.usefixtures("every_call_is_shared")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="issue 2: fork exists on POSIX systems only")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_pool_survives_a_fork():
    fb.set_num_threads(2)
    wanted = float(work()[0].sum())  # the pool has its threads now
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,), daemon=True)
    child.start()
    assert queue.get(timeout=60) == wanted
    child.join(60)
    assert child.exitcode == 0


@pytest.mark.parametrize(
    ("count", "error"),
    [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError), ("2", TypeError)],
)
def test_a_bad_number_of_threads(count, error):
    with pytest.raises(error, match="count"):
        fb.set_num_threads(count)


@pytest.mark.parametrize(("given", "wanted"), [("3", 3), ("2,4", 2), ("0", None), ("x", None)])
def test_omp_num_threads_is_the_default(monkeypatch, given, wanted):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr(threads, "quota", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert threads._default_count() == (wanted or 8)


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "250000 100000\n"}, 2.5),
        ({"cpu.max": "50000 100000\n"}, 0.5),
        ({"cpu.max": "400000 100000\n", "a/cpu.max": "max 100000\n"}, 4),
        ({"cpu.max": "max 100000\n", "a/b/cpu.max": "200000 100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu.max": ""}, None),
        ({"cpu.max": "1 2 3"}, None),
        ({"cpu.max": "100000 0"}, None),
        ({"cpu.max": "some 100000"}, None),
    ],
)
def test_the_quota_of_a_container(tmp_path, files, wanted):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "own").write_text("1:name=x:/c\n0::/a/b\n")
    assert threads.quota(str(tmp_path), str(tmp_path / "own")) == wanted
    if "a/b/cpu.max" in files:
        assert threads.quota(str(tmp_path), str(tmp_path / "none")) is None


@pytest.mark.parametrize(
    ("given", "cores", "wanted"), [(None, 8, 8), (3.0, 8, 3), (2.5, 8, 3), (0.5, 8, 1), (3.0, 2, 2)]
)
def test_threads_are_no_more_than_a_quota_pays_for(monkeypatch, given, cores, wanted):
    monkeypatch.setattr(threads, "quota", lambda: given)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads._default_count() == wanted


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_leaves_within_a_second():
    code = (
        "import numpy as np, fastbptt as fb\n"
        "s = fb.JacobianStream(fb.RNN(64, 256, rng=0))\n"
        "x = np.zeros((50000, 8, 64), np.float32)\n"
        "s.update(x[:10]); print('ready', flush=True)\n"
        "while True: s.update(x)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert "KeyboardInterrupt" in errors
    assert time.monotonic() - began < 1  # the promise to the user, not a timing of the kernels


def test_a_call_is_no_longer_with_threads_that_have_no_part_in_it(monkeypatch):
    """One sequence may have one thread, however many there are: Ctrl-C waits for its call."""
    spans = []

    def noted(*given):
        spans.append(given[3][:2])
        forward(*given)

    monkeypatch.setattr(layers, "_CALL", 2e7)
    net = fb.RNN(3, 40, rng=0)
    monkeypatch.setattr(net.weights.layers[0].sizes.forward, "call", noted)
    for B, least in ((1, 1), (3, 2)):
        x, counts = np.ones((9000, B, 3), np.float32), []
        for threads_ in (1, 16):
            fb.set_num_threads(threads_)
            spans.clear()
            net(x)
            counts.append(len(set(spans)))
        assert counts[0] >= counts[1] >= counts[0] / max(1, B) > least


def test_any_integer_is_a_number_of_threads():
    fb.set_num_threads(np.int64(2))
    assert fb.get_num_threads() == 2
