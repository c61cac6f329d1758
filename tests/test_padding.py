"""Units that fill no register: numbers that leave their range do so as units that fill some do."""

import numpy as np
import pytest
from nets import DTYPES
from numpy.testing import assert_allclose, assert_array_equal
from strategies import KINDS

import fastbptt as fb

CANDIDATE = {"RNN": 0, "GRU": 2, "LSTM": 2, "MGU": 1}  # the gate that a net can explode by


# of a sigmoid no state is small
GROWING = [one for one in KINDS if one[1].get("nonlinearity") != "sigmoid"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("kind", "options"), GROWING)
def test_a_gradient_that_overflows_is_infinite(kind, options, layers, dtype):
    """Of positive factors alone: no inf - inf and no 0 · inf."""
    H, T, most = 5, 3, float(np.log10(np.finfo(dtype).max))
    net = getattr(fb, kind)(2, H, layers, dtype=dtype, rng=0, **options)
    gates, n = len(net.weights.design.gates), CANDIDATE[kind]
    weights = {name: np.zeros_like(y) for name, y in net.state_dict().items()}
    for name, w in weights.items():
        if "weight" in name:
            w.fill(1e-3)
            by_gate = w.reshape(gates, H, -1)
            if kind == "GRU":
                by_gate[1] *= -1  # as h - n is negative
            if "hh" in name:
                by_gate[n] = 10 ** (most / 4)
    net.load_state_dict(weights)
    begin = np.full((layers, 1, H), 10 ** (-0.96 * most), dtype)
    trace = net.trace(np.zeros((T, 1, 2), dtype), (begin, begin) if kind == "LSTM" else begin)
    assert trace.output.max() < 0.1  # and no slope is 0
    dy = np.zeros_like(trace.output)
    dy[-1] = 10 ** (0.9 * most)
    grads = trace.backward(dy)
    h = grads.state[0] if kind == "LSTM" else grads.state
    assert_array_equal(h, np.inf)
    assert_array_equal(grads.x[0], np.inf)
    chain = trace.chain(0)
    u = np.zeros((layers, chain.size(T) // layers), dtype)
    u[-1, :H] = dy[-1, 0]
    back = chain.rmatvec(T, 0, u.reshape(-1)).reshape(u.shape)
    assert_array_equal(back[:, :H], np.inf)


@pytest.mark.parametrize("step", [0, 12])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_stream_over_an_infinite_x_has_the_norm_of_the_chain(kind, options, layers, step):
    net = getattr(fb, kind)(3, 5, layers, dtype=np.float64, rng=0, **options)
    x = np.random.default_rng(0).normal(size=(30, 3))
    x[step, 1] = np.inf
    stream = fb.JacobianStream(net, probes=99)
    stream.update(x)
    norm = fb.log_norm(net.trace(x).chain())
    if np.isfinite(net.trace(x).output).all():
        assert not np.isnan(norm.estimate)
    assert_allclose(stream.result().lower, norm.estimate, atol=1e-6)
