"""Memory that is used again: only when nothing looks at it any more."""

import gc

import numpy as np
import pytest
import torch

import fastbptt as fb
from fastbptt.kernels import memory

SHAPE = (300, 100)  # more than the allocator itself would keep

VIEWS = {
    "slice": lambda y: y[7:, :5],
    "slice of a slice": lambda y: y[7:][:, :5],
    "reshape": lambda y: y.reshape(-1),
    "transpose": lambda y: y.T,
    "view": lambda y: y.view(np.int32),
    "subclass": lambda y: y.view(np.matrix),
    "view of a subclass": lambda y: np.asarray(y.view(np.matrix)),
    "asarray": np.asarray,
    "broadcast": lambda y: np.broadcast_to(y, (2, *SHAPE)),
    "strided": lambda y: np.lib.stride_tricks.as_strided(y, (3, 3), (8, 4)),
    "buffer": memoryview,
    "array of a buffer": lambda y: np.asarray(memoryview(y)),
    "bytes": lambda y: np.frombuffer(y, np.uint8),
    "torch": torch.from_numpy,
    "dlpack": np.from_dlpack,
}


@pytest.fixture(autouse=True)
def _nothing_idle():
    gc.collect()
    fb.release_memory()


@pytest.mark.parametrize("name", VIEWS)
def test_what_a_view_looks_at_is_not_used_again_before_the_view_goes(name):
    array = memory.aligned(SHAPE, np.float32)
    array[:] = 1
    address, view = array.ctypes.data, VIEWS[name](array)
    del array
    gc.collect()
    other = memory.aligned(SHAPE, np.float32)
    other[:] = 2
    assert other.ctypes.data != address
    seen = np.asarray(view).tobytes()
    assert seen == np.ones(len(seen) // 4, np.float32).tobytes()
    del view, other
    gc.collect()
    again = [memory.aligned(SHAPE, np.float32) for _ in range(2)]
    assert address in [one.ctypes.data for one in again]


def test_memory_begins_on_a_line_and_is_given_back():
    for size in (1, 100, 20_000, 300_000):
        for dtype in (np.float32, np.float64):
            assert memory.aligned((size,), dtype).ctypes.data % 64 == 0
    assert memory._idle
    fb.release_memory()
    assert not memory._idle
    others = set(memory._used)  # of whatever else this process still holds
    kept = memory.aligned(SHAPE, np.float32)
    assert len(set(memory._used) - others) == 1
    del kept
    gc.collect()
    assert set(memory._used) <= others


def test_rows_of_a_long_call_begin_on_a_line():
    for shape, dtype in (((1024, 1), np.float32), ((3, 256), np.float64)):
        rows = memory.rows_of_call(shape, np.dtype(dtype))
        assert rows.ctypes.data % 64 == 0
        assert (rows.shape, rows.dtype) == (shape, dtype)
    few = [memory.rows_of_call((2, 5), np.dtype(np.float64)) for _ in range(20)]
    assert {(rows.shape, rows.dtype) for rows in few} == {((2, 5), np.dtype(np.float64))}


def test_no_more_is_kept_than_is_said(monkeypatch):
    monkeypatch.setattr(memory, "_MOST_IDLE", 1 << 20)
    arrays = [memory.aligned((1 << 16,), np.float32) for _ in range(9)]  # of 256 KB
    del arrays
    assert 0 < sum(owner.memory.nbytes for owner in memory._idle.values()) <= 1 << 20
    memory.aligned((1 << 20,), np.float32)  # of 4 MB
    assert sum(owner.memory.nbytes for owner in memory._idle.values()) <= 1 << 20


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pieces_lie_apart_on_lines_and_each_keeps_all_of_them(dtype):
    shapes = ((3, 5), (0, 7), SHAPE, (1,))
    wanted = memory.Pieces(dtype, shapes)
    arrays = memory.pieces(wanted)
    assert [(one.shape, one.dtype) for one in arrays] == [(shape, dtype) for shape in shapes]
    assert all(one.ctypes.data % 64 == 0 for one in arrays if one.size)
    for i, one in enumerate(arrays):
        one.fill(i)
    assert all((one == i).all() for i, one in enumerate(arrays))
    last = arrays.pop()
    del arrays, one
    gc.collect()
    for other in memory.pieces(wanted):
        other.fill(9)
    assert last[0] == 3
    address = last.ctypes.data
    del last, other
    gc.collect()
    again = [memory.pieces(wanted)[-1] for _ in range(2)]
    assert address in [one.ctypes.data for one in again]


def test_pieces_of_zeros_in_memory_that_is_used_again():
    wanted = memory.Pieces(np.float32, ((3, 5), SHAPE))
    for _ in range(2):
        arrays = memory.pieces(wanted, zeros=True)
        assert not any(one.any() for one in arrays)
        for one in arrays:
            one.fill(9)
        del arrays, one
        gc.collect()


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_a_bias_gradient_keeps_no_other_alive(kind):
    net = getattr(fb, kind)(64, 64, rng=0)  # sizes at which nothing has to be put in order
    trace = net.trace(np.ones((7, 2, 64), np.float32))
    params = trace.backward(np.ones_like(trace.output)).params
    for name in ("bias_ih_l0", "bias_hh_l0"):
        base = params[name]
        while isinstance(base.base, np.ndarray):
            base = base.base
        assert base.nbytes == params[name].nbytes


def test_the_layers_of_a_net_go_back_in_the_same_work_memory():
    sizes = []
    for layers in (1, 6):
        fb.release_memory()
        trace = fb.RNN(3, 5, num_layers=layers, rng=0).trace(np.ones((7, 2, 3), np.float32))
        trace.backward(np.ones_like(trace.output))
        sizes.append([sum(one.nbytes for one in arrays) for arrays in memory._spare.values()])
    assert sizes[0] == sizes[1]
    assert len(sizes[0]) == 2  # of the forward and the backward pass


def test_calls_of_other_numbers_of_steps_find_work_memory_ready():
    net = fb.GRU(3, 5, rng=0)
    for T in range(17, 33):
        trace = net.trace(np.ones((T, 2, 3), np.float32))
        trace.backward(np.ones_like(trace.output))
    assert len(memory._spare) == 1  # a GRU's forward pass keeps its pre-activations


def test_work_memory_is_one_call_s_at_a_time_and_goes_when_it_is_released():
    wanted = memory.Pieces(np.float32, ((3, 5), SHAPE))
    first, second = (memory.taken(wanted) for _ in range(2))
    assert first[1].ctypes.data != second[1].ctypes.data
    memory.bring_back(wanted, first)
    assert memory.taken(wanted) is first
    assert memory.taken(wanted) is not first
    memory.bring_back(wanted, second)
    del first
    assert memory._idle
    fb.release_memory()
    assert not memory._idle
    assert memory.taken(wanted) is not second


def test_no_more_work_memory_is_kept_than_is_said(monkeypatch):
    monkeypatch.setattr(memory, "_MOST_SPARE", 4 * SHAPE[0] * SHAPE[1])
    for rows in range(SHAPE[0] - 30, SHAPE[0] + 9):  # up to 300 of them are few enough
        wanted = memory.Pieces(np.float32, ((rows, SHAPE[1]),))
        memory.bring_back(wanted, memory.taken(wanted))
    kept = [wanted.places[0][0][0] for wanted in memory._spare]
    assert kept == [SHAPE[0] - n for n in reversed(range(memory._SPARE_SETS))]
