"""How the suite measures: limits, cases, peers and what they compute, what a run leaves.

The caches are not those of the machine that runs the tests: L1 has room for 28 KB, L2 for 896.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from reports import BENCHES, MICRO, Benchmark, rows

from fastbptt import teams
from fastbptt.network import Network

pytestmark = pytest.mark.usefixtures("benches")


@pytest.fixture
def limits(benches, monkeypatch):
    import limits

    capacity = {"L1": 28 << 10, "L2": 896 << 10, "L3": 14 << 20}
    assert capacity.keys() == limits.CAPACITY.keys()
    monkeypatch.setattr(limits, "CAPACITY", capacity)
    monkeypatch.setattr(teams, "_MEMBER_BYTES", 32 << 10)
    monkeypatch.setattr(teams, "shareable", lambda Hp, dtype: Hp != 80)
    return limits


@pytest.mark.parametrize(
    ("B", "H", "cell", "threads", "sharers", "size", "level", "below"),
    [
        (1, 64, "rnn", 1, 1, 16 << 10, "L1", ""),
        (1, 64, "rnn", 2, 1, 16 << 10, "L1", ""),
        (32, 64, "rnn", 2, 2, 16 << 10, "L1", ""),
        (1, 64, "gru", 2, 1, 48 << 10, "L2", "L1"),
        (1, 64, "lstm", 2, 2, 32 << 10, "L2", "L1"),
        (1, 80, "lstm", 2, 1, 100 << 10, "L2", "L1"),
        (1, 256, "rnn", 2, 2, 128 << 10, "L2", "L1"),
        (1, 256, "rnn", 16, 8, 32 << 10, "L2", "L1"),
        (2, 64, "rnn", 4, 2, 16 << 10, "L1", ""),
        (2, 256, "lstm", 2, 2, 1 << 20, "L3", "L2"),
        (1, 256, "lstm", 1, 1, 1 << 20, "L3", "L2"),
        (64, 2048, "rnn", 2, 2, 16 << 20, "memory", "L3"),
    ],
)
def test_who_reads_what_of_the_weights(limits, B, H, cell, threads, sharers, size, level, below):
    import cases

    one = cases.Case("forward", 100, B, 32, H, cell=cell)
    assert limits.sharers(one, threads) == sharers
    assert limits.source(one, threads) == (size, level, below)


def test_siblings_come_after_one_thread_of_each_core(tmp_path):
    import cases

    assert cases.one_of_each_first([5, 1, 3], str(tmp_path)) == [5, 1, 3]  # it does not say
    for cpu, siblings in {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3", 4: "4"}.items():
        file = tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        file.parent.mkdir(parents=True)
        file.write_text(siblings)
    assert cases.one_of_each_first([0, 1, 2, 3, 4], str(tmp_path)) == [0, 2, 4, 1, 3]
    assert cases.one_of_each_first([1, 2, 3], str(tmp_path)) == [1, 2, 3]


def test_the_seconds_of_reading(limits):
    gbytes = {"L1": 100, "L2": 50}
    assert limits.Source(16 << 10, "L1", "").seconds(gbytes) == pytest.approx(0.16384 * MICRO)
    assert limits.Source(64 << 10, "L2", "L1").seconds(gbytes) == pytest.approx(1.024 * MICRO)


def test_what_limits_a_case_is_measured_of_those_that_share_a_step(limits, monkeypatch):
    import cases

    monkeypatch.setattr(limits, "bandwidth", lambda size, n, _: {8: 100, 512: 50}[size >> 10] * n)
    monkeypatch.setattr(limits, "LEVELS", {"L1": 8 << 10, "L2": 512 << 10})
    monkeypatch.setattr(limits, "fma_peak", lambda dtype, threads, _: (dtype, threads))
    monkeypatch.setattr(limits, "curve_rate", lambda dtype, threads, _: (dtype, threads))
    monkeypatch.setattr(teams, "shareable", lambda Hp, dtype: False)
    for B, sharers in ((1, 1), (2, 2)):
        found = limits.of_case(cases.Case("forward", 100, B, 32, 64, cell="lstm"), 2)
        assert found["gflops"] == ("float32", 2)
        assert found["gcurves"] == ("float32", sharers)
        assert found["reading"] == pytest.approx(1.024 * MICRO)


def test_the_limits_of_this_machine_at_this_moment():
    import cases
    import limits

    found = limits.of_case(cases.Case("forward", 100, 1, 32, 64, cell="lstm"), 2)
    assert found.keys() == {"gflops", "gcurves", "reading"}
    assert all(value > 0 for value in found.values())


def test_a_peer_that_cannot_be_imported_is_left_out_and_named(tmp_path, monkeypatch):
    import cases
    import peers
    import timing

    (tmp_path / "lyapynov.py").write_text("import a_part_that_is_missing")
    monkeypatch.syspath_prepend(tmp_path)
    some = {name: peers.PEERS["stream"][name] for name in ("fastbptt", "lyapynov", "numpy")}
    monkeypatch.setattr(timing, "libraries", lambda case: some)
    case, fleet, benchmark = cases.Case("stream", 8, 1, 3, 8, 2), timing.Fleet(), Benchmark()
    pace = timing.Pace(1, most=1, turn=0)
    try:
        with pytest.warns(UserWarning, match="^lyapynov .* left out: ModuleNot.*a_part"):
            timing.compare(benchmark, fleet, case, 1, [1], pace, {})
    finally:
        fleet.close()
    assert list(benchmark.extra_info["seconds"]) == ["fastbptt", "numpy (1)"]


def test_after_a_process_that_died_another_is_set_up():
    import cases
    import timing

    case, fleet = cases.Case("forward", 4, 2, 3, 8), timing.Fleet()
    try:
        fleet.prepare("numpy", 1, case)
        fleet._workers["numpy", 1][0].kill()
        fleet._workers["numpy", 1][0].join()
        with pytest.raises(RuntimeError, match="numpy with 1 threads: its process died"):
            fleet.time("numpy", 1, 0)
        assert fleet.prepare("numpy", 1, case) < 1e-6
        assert fleet.time("numpy", 1, 0)[0] > 0
    finally:
        fleet.close()


def test_what_was_timed_is_checked(monkeypatch):
    import cases
    import peers
    import timing

    def wrong_later(case, data):
        call, factors = peers.numpy_forward(case, data), iter([1, 1])
        return lambda: [next(factors, 2) * y for y in call()]

    some = {"fastbptt": wrong_later, "numpy": peers.numpy_forward}
    monkeypatch.setitem(peers.PEERS, "forward", some)
    monkeypatch.setattr(timing, "libraries", lambda case: some)
    fleet = timing.Fleet()
    given = Benchmark(), fleet, cases.Case("forward", 4, 2, 3, 8), 1, [1]
    try:
        timing.compare(*given, timing.Pace(0, most=0, turn=0), {})
        with pytest.raises(AssertionError, match="relative error"):
            timing.compare(*given, timing.Pace(2, most=2, turn=0), {})
    finally:
        fleet.close()


def test_each_call_of_the_bridge_has_other_weights(monkeypatch):
    import cases
    import peers

    loaded, load = [], Network.load_state_dict

    def noted(net, mapping):
        loaded.append(net)
        load(net, mapping)

    monkeypatch.setattr(Network, "load_state_dict", noted)
    for task in ("bridge", "step"):
        case = cases.Case(task, 4, 2, 3, 8, cell="lstm")
        call = peers.PEERS[task]["fastbptt"](case, cases.inputs(case))
        call()
        loaded.clear()
        for _ in range(3):
            call()
        assert len(loaded) == 3


def test_weights_of_the_last_call_are_not_loaded_again(monkeypatch):
    import cases
    import peers

    case = cases.Case("train", 4, 2, 3, 8, cell="gru")
    call = peers.fastbptt_train(case, cases.inputs(case), new=False)
    before = call()
    monkeypatch.setattr(Network, "load_state_dict", None)
    for again, y in zip(call(), before, strict=True):
        assert np.array_equal(again, y)


def test_a_step_without_its_layer(monkeypatch):
    """Its dense layer is the identity, so that what reaches the layer's output is dy."""
    import cases
    import peers
    import torch

    updated, step = [], torch.optim.Adam.step

    def noted(optimiser, *arguments):
        updated.append([y.grad is not None for y in optimiser.param_groups[0]["params"]])
        return step(optimiser, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    monkeypatch.setattr(torch.nn.LSTM, "forward", None)
    case = cases.Case("step", 4, 2, 3, 8, cell="lstm")
    data = cases.inputs(case)
    call = peers.step_without_layer(case, data)
    for _ in range(2):
        (d_output,) = call()
        assert np.abs(d_output.numpy() - data.dy).max() < 1e-5
    assert updated == [[True] * 6] * 2  # four of the layer, two of the dense one


def test_the_short_subset():
    """The small shapes and one of the middle, both tasks, the stream, a start."""
    command = [sys.executable, "-m", "pytest", "benches", "--short", "--collect-only", "-q"]
    command += ["-p", "no:cacheprovider"]
    own = {name: y for name, y in os.environ.items() if not name.startswith("PYTEST_")}
    given = {"cwd": BENCHES.parent, "env": own, "capture_output": True, "text": True}
    result = subprocess.run(command, **given, timeout=120, check=True)
    names = [line.split("::")[1] for line in result.stdout.splitlines() if "::" in line]
    shapes = ("T1000-B1-I32-H64", "T1000-B1-I64-H256", "T300-B32-I64-H256")
    for task in ("forward", "train"):
        for kind in ("tanh", "gru", "lstm"):
            for shape in shapes:
                assert any(f"[{task}-{kind}-float32-{shape}-" in name for name in names)
    assert {"test_stream[stream-tanh-float32-T10000-B1-I32-H64-k8]", "test_import"} <= set(names)
    long = ("float64", "relu", "H1024", "test_sizes", "1000000-", "ten_million")
    assert not any(word in name for word in long for name in names)


def test_what_a_bench_notes_makes_a_row(table, results, written, monkeypatch):
    import cases
    import peers
    import timing

    both = {name: peers.PEERS["train"][name] for name in ("fastbptt", "numpy")}
    monkeypatch.setattr(timing, "libraries", lambda case: both)
    case, fleet = cases.Case("train", 4, 2, 3, 64, cell="lstm"), timing.Fleet()
    benchmark = Benchmark()
    own = {"call": peers.one_step(peers.fastbptt_train)}
    try:
        timing.compare(benchmark, fleet, case, 1, [1], timing.Pace(2, most=2, turn=0), own)
    finally:
        fleet.close()
    info = benchmark.extra_info
    for name in ("torch (1)", "jax (1)"):
        info["seconds"][name] = info["seconds"]["numpy (1)"]
    text = table.text(results.read([written(info), written(info)]), None)
    (row,) = rows(text[text.index("Train, ") : text.index("Geometric mean")], "T, B, I, H")
    assert row["best peer (threads): µs/step"].startswith("numpy (1): ")
    assert "the median over the 4 rounds" in text
    assert float(row["GFLOP/s"]) > 0


def test_a_run_names_what_failed_in_it(table, results, tmp_path):
    """By the suite itself: one bench passes, and one has a peer that cannot be imported."""
    (tmp_path / "torch.py").write_text("raise OSError('torn')")
    file = tmp_path / "run.json"
    files = [BENCHES / "bench_start.py", BENCHES / "bench_calls.py"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--quick", *files]
    command += ["-k", "import or (forward and gru and T10)", f"--benchmark-json={file}"]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    own = {name: y for name, y in os.environ.items() if not name.startswith("PYTEST_")}
    environment = own | {"PYTHONPATH": path}
    run = subprocess.run(
        command, cwd=BENCHES.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert "torch is installed and left out: OSError: torn" in run.stdout
    report = results.read([file])
    assert report["failed"] == ["test_call[forward-gru-float32-T10-B1-I32-H64]"]
    assert "`import fastbptt`" in table.text(report, None)


def test_no_relu_is_at_its_corner_but_for_rounding():
    import cases

    case = cases.Case("train", 40, 16, 8, 64, nonlinearity="relu")
    plain = cases.inputs(case._replace(nonlinearity="tanh"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "_CORNER", 1e-4)  # some of so few units come as near
        data = cases.inputs(case)
    w_ih, w_hh, b_ih, b_hh = (y.astype(float) for y in data.weights.values())
    for x, near in ((data.x, False), (plain.x, True)):
        h, least = np.zeros((16, 64)), np.inf
        for t in range(40):
            a = x[t] @ w_ih.T + b_ih + h @ w_hh.T + b_hh
            h, least = np.maximum(a, 0), min(least, abs(a).min())
        assert (least <= 1e-4) == near
    np.testing.assert_array_equal(data.dy, plain.dy)
    assert 0 < (data.x != plain.x).any(axis=2).mean() < 0.1
