"""Every cell: what changes no bit (layout, batch, threads, chunks), and subnormal numbers."""

import platform

import numpy as np
import pytest
from nets import DTYPES, as_state, everything, parts_of, small
from numpy.testing import assert_allclose, assert_array_equal
from strategies import KINDS

import fastbptt as fb
from fastbptt import threads, weights
from fastbptt.kernels import memory


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("H", [21, 32])
def test_no_state_is_a_state_of_zeros(kind, options, ragged, H):
    net, arrays, state, d_state = small(kind, options, H=H)
    keywords = {"lengths": [9, 0, 4, 9, 1], "reset": np.arange(45).reshape(9, 5) % 7 == 3}
    given = keywords if ragged else {}
    for without in (state, d_state):
        some = [
            tuple(np.zeros_like(y) for y in part) if part is without else part
            for part in (state, d_state)
        ]
        wanted = everything(net, arrays, *some, **given)
        left_out = [None if part is without else part for part in (state, d_state)]
        for one, other in zip(wanted, everything(net, arrays, *left_out, **given), strict=True):
            assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("H", [16, 140])
def test_rows_set_apart_have_the_bits_of_others(kind, options, H, dtype, monkeypatch, request):
    found = []
    request.addfinalizer(weights.sizes.cache_clear)
    for period in (1 << 40, 1):  # no row is set apart, and each is
        monkeypatch.setattr(memory, "_PERIOD", period)
        weights.sizes.cache_clear()
        net, arrays, state, d_state = small(kind, options, dtype, H=H)
        sizes = net.weights.layers[0].sizes
        wide = net.weights.design.slots.width * sizes.Hp
        assert (sizes.wide > wide) == (period == 1)
        found.append(everything(net, arrays, state, d_state))
    for one, other in zip(*found, strict=True):
        assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("H", [1, 16, 40, 140, 530])  # many rows go by 512 units, 256 in float64
def test_a_row_has_the_same_bits_alone_in_a_batch_and_in_a_ragged_one(kind, options, H, dtype):
    net, arrays, state, d_state = small(kind, options, dtype, B=11, H=H)
    lengths = np.array([3, 9, 1, 9, 5, 5, 0, 7, 2, 9, 4])
    with threads.num_threads(1):  # several would have fewer sequences each
        trace = net.trace(arrays["x"], as_state(state), lengths=lengths)
        grads = trace.backward(arrays["d_output"], as_state(d_state), per_step=True)
        for b in (0, 1, 4, 6, 10):
            n = lengths[b]
            one, done = net.trace(arrays["x"][:n, b], as_state([y[:, b] for y in state])), None
            done = one.backward(
                arrays["d_output"][:n, b], as_state([y[:, b] for y in d_state]), per_step=True
            )
            assert_array_equal(one.output, trace.output[:n, b])
            assert_array_equal(done.x, grads.x[:n, b])
            for got, y in zip(parts_of(done.state), parts_of(grads.state), strict=True):
                assert_array_equal(got, y[:, b])
            for got, y in zip(parts_of(one.state), parts_of(trace.state), strict=True):
                assert_array_equal(got, y[:, b])
            for name, y in done.per_step.items():
                assert_array_equal(y, grads.per_step[name][:, :n, b])
            assert not trace.output[n:, b].any()
            assert not grads.x[n:, b].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_padding_is_neither_read_nor_given_a_gradient(kind, options, dtype):
    net, arrays, state, d_state = small(kind, options, dtype)
    lengths = [4, 9, 0, 1, 6]
    wanted = everything(net, arrays, state, d_state, lengths=lengths)
    for b, n in enumerate(lengths):
        arrays["x"][n:, b] = np.nan
        arrays["d_output"][n:, b] = np.nan if b % 2 else np.inf
    for one, other in zip(
        wanted, everything(net, arrays, state, d_state, lengths=lengths), strict=True
    ):
        assert_array_equal(one, other)
        assert np.isfinite(one).all()
    trace = net.trace(arrays["x"], as_state(state), lengths=lengths)
    grads = trace.backward(arrays["d_output"], as_state(d_state), per_step=True)
    steps = [*grads.per_step.values(), *trace.inside().values()]
    for b, n in enumerate(lengths):
        assert not trace.output[n:, b].any()
        assert not grads.x[n:, b].any()
        assert not any(y[:, n:, b].any() for y in steps)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_reset_cuts_a_sequence_in_two(kind, options):
    """Steps after it are those of a sequence that begins there with zeros."""
    net, arrays, state, d_state = small(kind, options, bidirectional=False)
    reset = np.zeros((9, 5), bool)
    reset[4] = True
    trace = net.trace(arrays["x"], as_state(state), reset=reset)
    grads = trace.backward(arrays["d_output"], as_state(d_state))
    first = net.trace(arrays["x"][:4], as_state(state))
    second = net.trace(arrays["x"][4:])
    assert_array_equal(trace.output, np.concatenate([first.output, second.output]))
    of_first = first.backward(arrays["d_output"][:4])
    of_second = second.backward(arrays["d_output"][4:], as_state(d_state))
    assert_array_equal(grads.x, np.concatenate([of_first.x, of_second.x]))
    for one, other in zip(parts_of(grads.state), parts_of(of_first.state), strict=True):
        assert_array_equal(one, other)
    assert_array_equal(
        net(arrays["x"], as_state(state), reset=np.eye(9, 5, dtype=bool))[0][0, 1:],
        net(arrays["x"], as_state(state))[0][0, 1:],
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_the_bits_depend_neither_on_threads_nor_on_chunks(kind, options, dtype, monkeypatch):
    net, arrays, state, d_state = small(kind, options, dtype, T=40, H=40, B=7)
    lengths = [40, 3, 17, 40, 0, 22, 39]
    before = fb.get_num_threads()
    monkeypatch.setattr(threads, "_WORTH_SHARING", 0)
    try:
        for keywords in ({}, {"lengths": lengths}):
            fb.set_num_threads(1)
            wanted = everything(net, arrays, state, d_state, **keywords)
            for count in (2, 3, 8):
                fb.set_num_threads(count)
                got = everything(net, arrays, state, d_state, **keywords)
                for one, other in zip(wanted, got, strict=True):
                    assert_array_equal(one, other)
            sums = len(net.state_dict())  # whose rounding may depend on the chunk
            for steps in (1, 7):
                monkeypatch.setattr("fastbptt.layers._chunk_steps", lambda *_, n=steps: n)
                got = everything(net, arrays, state, d_state, **keywords)
                for one, other in zip(wanted[:-sums], got[:-sums], strict=True):
                    assert_array_equal(one, other)
                for one, other in zip(wanted, got, strict=True):
                    atol = 40 * np.finfo(dtype).eps * np.abs(one).max()
                    assert_allclose(other, one, rtol=0, atol=atol)
            monkeypatch.undo()
            monkeypatch.setattr(threads, "_WORTH_SHARING", 0)
    finally:
        fb.set_num_threads(before)


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_few_long_sequences_have_the_bits_of_many(kind):
    # what the next step reads of one to four is fetched, of more the products do it
    rng = np.random.default_rng(0)
    net, lengths = getattr(fb, kind)(5, 64, rng=0), [2400, 1700, 2400, 9, 2000, 2399, 0]
    x, dy = (rng.normal(size=(2400, 7, n)).astype(np.float32) for n in (5, 64))
    with threads.num_threads(1):  # several would have fewer sequences each
        many = net.trace(x, lengths=lengths).backward(dy)
        for some in ([0], [1, 4], [5, 0, 3], [2, 0, 5, 4]):
            of_some = [lengths[b] for b in some]
            few = net.trace(x[:, some], lengths=of_some).backward(dy[:, some])
            assert_array_equal(few.x, many.x[:, some])


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_batch_first_and_unbatched(kind, options):
    net, arrays, state, d_state = small(kind, options)
    first = getattr(fb, kind)(6, 21, 2, bidirectional=True, batch_first=True, rng=1, **options)
    lengths, reset = [9, 4, 0, 8, 9], np.random.default_rng(0).random((9, 5)) < 0.2
    wanted = everything(net, arrays, state, d_state, lengths=lengths, reset=reset)
    swapped = {name: y.swapaxes(0, 1) for name, y in arrays.items()}
    got = everything(first, swapped, state, d_state, lengths=lengths, reset=reset.T)
    for i, (one, other) in enumerate(zip(wanted, got, strict=True)):
        assert_array_equal(one, other.swapaxes(0, 1) if i < 2 else other)
    trace = net.trace(arrays["x"][:, 3], as_state([y[:, 3] for y in state]), reset=reset[:, 3])
    same = net.trace(arrays["x"], as_state(state), reset=reset)
    assert_array_equal(trace.output, same.output[:, 3])
    for name, y in trace.inside().items():
        assert_array_equal(y, same.inside()[name][:, :, 3])


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_without_the_input_gradient_the_others_have_the_same_bits(kind, options):
    net, arrays, state, d_state = small(kind, options)
    trace = net.trace(arrays["x"], as_state(state))
    full = trace.backward(arrays["d_output"], as_state(d_state))
    short = trace.backward(arrays["d_output"], as_state(d_state), input_gradient=False)
    assert short.x is None
    for name, y in full.params.items():
        assert_array_equal(short.params[name], y)


def check_that_subnormal_numbers_are_left_to_others(arrays):
    """On x86 the arrays have none, and here they can be made."""
    tiny = np.finfo(np.float32).tiny
    for y in arrays:
        size = np.abs(y)
        assert size.max() > tiny
        if platform.machine() in ("x86_64", "AMD64"):
            assert not ((size > 0) & (size < tiny)).any()
    assert (np.full(64, tiny) / np.float32(8) > 0).all()


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("count", [1, 3])
def test_a_gradient_vanishes_past_the_subnormal_numbers_and_leaves_them_to_others(
    kind, options, count, monkeypatch
):
    monkeypatch.setattr(threads, "_WORTH_SHARING", 0)
    net = getattr(fb, kind)(3, 8, rng=0, **options)
    for name, y in net.state_dict().items():
        setattr(net, name, y * np.float32(0.3))
    x = np.random.default_rng(0).normal(size=(300, 4, 3)).astype(np.float32)
    with threads.num_threads(count):
        trace = net.trace(x)
        grads = trace.backward(None, trace.state, per_step=True)
    for y in grads.per_step.values():
        assert (y == 0).any()
    check_that_subnormal_numbers_are_left_to_others(grads.per_step.values())


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("count", [1, 3])
def test_a_gate_all_but_closed_is_closed_and_leaves_subnormal_numbers_to_others(
    kind, options, count, monkeypatch
):
    monkeypatch.setattr(threads, "_WORTH_SHARING", 0)
    net = getattr(fb, kind)(3, 8, rng=0, **options)
    x = np.random.default_rng(0).normal(size=(300, 4, 3)).astype(np.float32) * np.float32(300)
    with threads.num_threads(count):
        inside = net.trace(x).inside()
    gates = [inside[letter] for letter in set(inside) & set("rzifo")]
    for y in gates:
        assert (y < np.finfo(np.float32).tiny).any()
    check_that_subnormal_numbers_are_left_to_others(gates)
