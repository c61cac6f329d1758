"""Streams, chains, pieces and layouts of every cell and depth."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nets import DTYPES, as_state, everything, network, parts_of, rounded, small
from numpy.testing import assert_allclose, assert_array_equal
from strategies import KINDS, lay_out, layouts, net_cases
from tolerances import tolerance

import fastbptt as fb

DEPTHS = (1, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "options"), KINDS)
@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_one_product_both_ways_and_the_gradient_of_the_last_state(kind, options, dtype, data):
    """<P v, u> = <v, P' u>, P' u from the chain and from BPTT."""
    case = rounded(data.draw(net_cases([(kind, options)], both_ways=False)), dtype)
    T, B, _, H = case.shape
    assume(B)
    net, b = network(case, dtype), data.draw(st.integers(0, B - 1))
    # without resets: no chain goes across one
    trace = net.trace(case.x.astype(dtype), as_state(case.state, dtype), lengths=case.lengths)
    chain = trace.chain(b)
    size = chain.size(0)
    rng = np.random.default_rng(0)
    u, v = (rng.normal(size=size).astype(dtype) for _ in range(2))
    there, back = chain.matvec(len(chain), 0, v), chain.rmatvec(len(chain), 0, u)
    _, atol = tolerance(dtype, T * case.num_layers, 4 * size)
    scale = 1 + np.abs(there).max() + np.abs(back).max()
    assert_allclose(u @ there, back @ v, rtol=0, atol=size * scale * atol)
    # the joint state has all layers' h, then for each LSTM its c behind it
    parts = len(case.state)
    d_state = [np.zeros((case.num_layers, B, H), dtype) for _ in range(parts)]
    for part, y in enumerate(d_state):
        y[:, b] = u.reshape(case.num_layers, parts, -1)[:, part]
    grads = trace.backward(None, as_state(tuple(d_state)))
    found = np.stack([y[:, b] for y in parts_of(grads.state)], axis=1).ravel()
    assert_allclose(found, back, rtol=0, atol=scale * atol)


def stream_of(net, x, state, **options):
    stream = fb.JacobianStream(net, probes=3, state=as_state(state), rng=0, **options)
    stream.update(x)
    return stream


def same_results(one, other):
    for name in ("lower", "estimate", "upper", "exponents", "standard_error"):
        assert_array_equal(getattr(one, name), getattr(other, name))
    for mine, its in zip(parts_of(one.state), parts_of(other.state), strict=True):
        assert_array_equal(mine, its)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("L", DEPTHS)
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_streams(kind, options, L, dtype, tmp_path):
    """In chunks, from a file, alone or in a batch: the same bits; the state is forward's."""
    net, arrays, state, _ = small(kind, options, dtype, T=80, B=3, H=21, L=L, bidirectional=False)
    x = arrays["x"]
    whole = stream_of(net, x, state).result()
    _, last = net(x, as_state(state))
    for mine, its in zip(parts_of(whole.state), parts_of(last), strict=True):
        assert_array_equal(mine, its)
    cut = stream_of(net, x[:33], state)
    for chunk in np.split(x[33:], [0, 1, 9]):
        cut.update(chunk)
    same_results(cut.result(), whole)
    saved = stream_of(net, x[:50], state)
    saved.save(tmp_path / "stream.npz")
    loaded = fb.JacobianStream.load(tmp_path / "stream.npz")
    loaded.update(x[50:])
    same_results(loaded.result(), whole)
    for b in range(3):
        alone = stream_of(net, x[:, b], tuple(y[:, b] for y in state)).result()
        for name in ("lower", "estimate", "upper", "exponents", "standard_error"):
            assert_array_equal(getattr(alone, name), getattr(whole, name)[b])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("L", DEPTHS)
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_sequence_in_pieces_gives_the_bits_of_one_go(kind, options, L, dtype):
    net, arrays, state, _ = small(kind, options, dtype, T=23, L=L, bidirectional=False)
    whole, last = net(arrays["x"], as_state(state))
    pieces, now = [], as_state(state)
    for piece in np.split(arrays["x"], [0, 1, 7, 20]):
        output, now = net(piece, now)
        pieces.append(output)
    assert_array_equal(np.concatenate(pieces), whole)
    for mine, its in zip(parts_of(now), parts_of(last), strict=True):
        assert_array_equal(mine, its)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "options"), KINDS)
@settings(deadline=None, max_examples=8)
@given(data=st.data())
def test_any_layout_gives_the_same_bits(kind, options, dtype, data):
    case = data.draw(net_cases([(kind, options)]))
    net = network(case, dtype)
    given = {"lengths": case.lengths, "reset": case.reset}
    arrays = {name: getattr(case, name).astype(dtype) for name in ("x", "d_output")}
    states = [tuple(y.astype(dtype) for y in part) for part in (case.state, case.d_state)]
    wanted = everything(net, arrays, *states, **given)
    chosen = data.draw(st.tuples(*[layouts()] * 3))
    laid = {n: lay_out(y, layout) for (n, y), layout in zip(arrays.items(), chosen, strict=False)}
    laid_states = [tuple(lay_out(y, chosen[2]) for y in part) for part in states]
    for one, other in zip(wanted, everything(net, laid, *laid_states, **given), strict=True):
        assert_array_equal(one, other)
    for name, y in laid.items():
        assert_array_equal(y, arrays[name])  # inputs are never written to
    for one, other in zip(laid_states, states, strict=True):
        for mine, its in zip(one, other, strict=True):
            assert_array_equal(mine, its)
