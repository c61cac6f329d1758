"""What calls share and what they leave alone: arrays given and returned, how sequences lie."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastbptt as fb
from fastbptt import network, trace


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("shape", [(4, 1, 3), (4, 2, 3), (4, 3)])
def test_what_is_given_stays_writable_and_what_comes_is(batch_first, shape):
    net = fb.LSTM(3, 5, batch_first=batch_first, rng=0)
    x, state = np.ones(shape, np.float32), None
    for _ in range(2):
        output, state = net(x, state)
        assert not any(np.shares_memory(output, part) for part in state)
        assert all(y.flags.writeable for y in (x, output, *state))
    net.trace(x).backward(output)
    assert x.flags.writeable
    assert output.flags.writeable


def test_calls_of_one_shape_share_how_their_sequences_lie_and_leave_it():
    rng, net = np.random.default_rng(0), fb.GRU(3, 5, bidirectional=True, rng=0)
    given = [rng.normal(size=(T, B, 3)).astype(np.float32) for T, B in [(4, 2), (2, 4), (4, 2)]]
    # with lengths nothing is shared
    alone = [net(x, lengths=[len(x)] * x.shape[1])[0] for x in given]
    for _ in range(2):
        for x, expected in zip(given, alone, strict=True):
            kept = net.trace(x)
            kept.backward(np.ones_like(kept.output), per_step=True)
            assert_array_equal(kept.output, expected)
            assert_array_equal(net(x)[0], expected)


def test_what_a_layer_gives_is_put_together_once(monkeypatch):
    made, whole = [], trace.outputs

    def noted(passes, T, B):
        made.append(len(passes))
        return whole(passes, T, B)

    monkeypatch.setattr(trace, "outputs", noted)
    monkeypatch.setattr(network, "outputs", noted)
    fb.RNN(3, 5, 3, bidirectional=True, rng=0)(np.ones((4, 2, 3), np.float32))
    assert made == [2, 2, 2]
