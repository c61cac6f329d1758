"""Streams that stop and go on: files, copies, interrupted updates."""

import copy
import pickle

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from streamed import driven, streamed

import fastbptt as fb


def test_save_and_load_go_on_to_the_same_bits(tmp_path):
    net, x = driven(17, 2.0, T=120, dtype=np.float32, nonlinearity="sigmoid")
    one = fb.JacobianStream(net, probes=5, rng=3)
    one.update(x[:50])
    one.save(tmp_path / "stream.npz")
    other = fb.JacobianStream.load(tmp_path / "stream.npz")
    one.update(x[50:])
    other.update(x[50:])
    for mine, its in zip(one.result(), other.result(), strict=True):
        assert_array_equal(mine, its)
    assert other.net.nonlinearity == "sigmoid"
    assert [p.name for p in tmp_path.iterdir()] == ["stream.npz"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda y: pickle.loads(pickle.dumps(y))])
def test_a_copy_goes_on_by_itself_to_the_same_bits(copied):
    net, x = driven(17, 1.5, T=90, B=3)
    one = fb.JacobianStream(net, probes=4)
    one.update(x[:40])
    other = copied(one)
    for stream in (one, other):
        stream.update(x[40:])
        assert_array_equal(stream.result().lower, streamed(net, x, probes=4).lower)


def test_save_before_the_first_chunk(tmp_path):
    net, x = driven(5)
    fb.JacobianStream(net, rng=9).save(tmp_path / "new")
    other = fb.JacobianStream.load(tmp_path / "new")
    other.update(x)
    assert_array_equal(other.result().lower, streamed(net, x, rng=9).lower)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("block_count", 128),
        ("block_count", -7),
        ("interval", 0),
        ("since", -1),
        ("block_length", 0),
    ],
)
def test_a_file_with_counts_that_no_stream_has_is_refused(tmp_path, name, value):
    """Kernels find their places in memory by them."""
    stream = fb.JacobianStream(fb.RNN(3, 5, rng=0), probes=3)
    stream.update(np.ones((9, 2, 3), np.float32))
    stream.save(tmp_path / "stream.npz")
    arrays = dict(np.load(tmp_path / "stream.npz"))
    arrays[f"carried.{name}"][1] = value
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(ValueError, match=r"other\.npz: not a saved .* \(expected counts"):
        fb.JacobianStream.load(tmp_path / "other.npz")


def test_an_interrupted_update_is_not_taken_for_a_whole_one(monkeypatch, tmp_path):
    net, x = driven(5, B=2)
    stream = fb.JacobianStream(net)
    stream.update(x)
    stream.save(tmp_path / "stream.npz")

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastbptt.spectral.stream.share", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stream.update(x)
    monkeypatch.undo()
    for call in (stream.result, lambda: stream.update(x), lambda: stream.save(tmp_path / "b.npz")):
        with pytest.raises(RuntimeError, match=r"an update was interrupted.* from a saved one"):
            call()
    assert fb.JacobianStream.load(tmp_path / "stream.npz").steps == len(x)
    # a wrong argument is no interruption
    other = fb.JacobianStream(net)
    with pytest.raises(TypeError):
        other.update("x")
    other.update(x)


@pytest.mark.parametrize("times", [0, 1])
def test_a_copy_whose_memory_may_not_be_written_goes_on_in_its_own(times):
    net, x = driven(5)
    stream, parts = fb.JacobianStream(net), []
    for _ in range(times):
        stream.update(x)
    text = pickle.dumps(stream, 5, buffer_callback=parts.append)
    kept = [bytes(part) for part in parts]
    before = [bytearray(part) for part in kept]  # whose memory is another
    other = pickle.loads(text, buffers=kept)
    for one in (stream, other):
        one.update(x)
    assert kept == before
    assert_array_equal(other.result().lower, stream.result().lower)


def test_the_first_chunk_may_be_too_large(monkeypatch):
    """For its work memory: a smaller one is then the first."""
    net, x = driven(5, B=2)
    stream = fb.JacobianStream(net)

    def full(wanted, zeros):
        raise MemoryError

    monkeypatch.setattr("fastbptt.spectral.stream.pieces", full)
    with pytest.raises(MemoryError):
        stream.update(x)
    monkeypatch.undo()
    stream.update(x[:, :1])
    assert_array_equal(stream.result().lower, streamed(net, x[:, :1]).lower)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("V", np.zeros(5)),
        ("V", np.zeros(())),
        ("counts", np.array([1.0, np.inf, 2.0])),
        ("counts", np.array([-1, 0, 1])),
        ("counts", np.array([1, 1])),
    ],
)
def test_a_file_with_other_shapes_is_refused(tmp_path, name, value):
    stream = fb.JacobianStream(fb.RNN(3, 5, rng=0), probes=3)
    stream.update(np.ones((9, 2, 3), np.float32))
    stream.save(tmp_path / "stream.npz")
    arrays = dict(np.load(tmp_path / "stream.npz"))
    np.savez(tmp_path / "other.npz", **arrays | {name: value})
    with pytest.raises(ValueError, match=r"other\.npz: not a saved"):
        fb.JacobianStream.load(tmp_path / "other.npz")


def test_counts_of_a_stream_that_has_not_begun(tmp_path):
    fb.JacobianStream(fb.RNN(3, 5, rng=0)).save(tmp_path / "stream.npz")
    arrays = dict(np.load(tmp_path / "stream.npz")) | {"counts": np.array([-2, 0, 1])}
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(ValueError, match=r"other\.npz: not a saved .* \(expected counts"):
        fb.JacobianStream.load(tmp_path / "other.npz")


@pytest.mark.parametrize("name", ["option.hidden_size", "option.input_size", "option.num_layers"])
def test_a_file_that_claims_more_than_it_holds_is_refused(tmp_path, name):
    """No memory is asked for by its words alone."""
    stream = fb.JacobianStream(fb.RNN(3, 5, rng=0), probes=3)
    stream.update(np.ones((9, 2, 3), np.float32))
    stream.save(tmp_path / "stream.npz")
    arrays = dict(np.load(tmp_path / "stream.npz")) | {name: np.array(10**9)}
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(ValueError, match=r"other\.npz: not a saved"):
        fb.JacobianStream.load(tmp_path / "other.npz")


@pytest.mark.parametrize("other", ["update", "result", "save"])
def test_one_thread_at_a_time(tmp_path, monkeypatch, other):
    """Also before its kernel runs: while it sets up what is carried, or copies its chunk."""
    net, x = driven(5, B=2)
    stream, refused = fb.JacobianStream(net), []
    calls = {
        "update": lambda: stream.update(x),
        "result": lambda: stream.result(),
        "save": lambda: stream.save(tmp_path / "stream.npz"),
    }
    begin = stream._begin

    def interrupted_by_another(*arguments):
        with pytest.raises(RuntimeError, match="another thread has the stream"):
            calls[other]()
        refused.append(other)
        begin(*arguments)

    monkeypatch.setattr(stream, "_begin", interrupted_by_another)
    stream.update(x)
    assert refused == [other]
    assert_array_equal(stream.result().lower, streamed(net, x).lower)


def test_a_copy_made_while_another_thread_reads_is_nobodys():
    net, x = driven(5, B=2)
    stream = fb.JacobianStream(net)
    stream.update(x)
    with stream._alone():
        copied = copy.deepcopy(stream)
    assert_array_equal(copied.result().lower, stream.result().lower)


def test_a_panel_of_no_numbers_asks_for_no_memory(tmp_path):
    stream = fb.JacobianStream(fb.RNN(3, 5, rng=0), probes=3)
    stream.update(np.ones((9, 2, 3), np.float32))
    stream.save(tmp_path / "stream.npz")
    panel = np.empty((2, 10**12, 0, 0), np.float32)
    arrays = dict(np.load(tmp_path / "stream.npz")) | {"carried.panel": panel}
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(ValueError, match=r"other\.npz: not a saved"):
        fb.JacobianStream.load(tmp_path / "other.npz")
