"""Nets of any cell and what goes through them: what the tests of several files share."""

import numpy as np
import reference
from numpy.testing import assert_allclose, assert_array_equal
from reference import GATES
from tolerances import tolerance

import fastbptt as fb

DTYPES = (np.float32, np.float64)


def network(case, dtype, **keywords):
    _, _, I, H = case.shape
    net = getattr(fb, case.kind)(
        I, H, case.num_layers, bias="bias_ih_l0" in case.params, dtype=dtype,
        bidirectional=case.bidirectional, **case.options, **keywords,
    )  # fmt: skip
    net.load_state_dict({name: y.astype(dtype) for name, y in case.params.items()})
    return net


def rounded(case, dtype):
    """The case as the net of `dtype` sees it, in float64."""

    def cast(y):
        return y.astype(dtype).astype(float)

    return case._replace(
        params={name: cast(y) for name, y in case.params.items()},
        x=cast(case.x),
        d_output=cast(case.d_output),
        state=tuple(map(cast, case.state)),
        d_state=tuple(map(cast, case.d_state)),
    )


def as_state(parts, dtype=None):
    if parts is None:
        return None
    parts = tuple(y.astype(dtype or y.dtype) for y in parts)
    return parts if len(parts) == 2 else parts[0]


def parts_of(state):
    return state if isinstance(state, tuple) else (state,)


def run(case, dtype, net=None, **keywords):
    """The trace and the gradients of a case."""
    net = net or network(case, dtype)
    trace = net.trace(
        case.x.astype(dtype), as_state(case.state, dtype), lengths=case.lengths, reset=case.reset
    )
    d_state = as_state(case.d_state, dtype)
    return trace, trace.backward(case.d_output.astype(dtype), d_state, **keywords)


def close(got, wanted, dtype, case):
    T, B, I, H = case.shape
    depth = case.num_layers * (1 + case.bidirectional)
    assert got.dtype == dtype
    assert got.shape == wanted.shape
    rtol, atol = tolerance(dtype, T * depth, max(H * GATES[case.kind], I), rows=max(T * B, 1))
    assert_allclose(got, wanted, rtol=rtol, atol=atol * max(1, np.abs(wanted).max(initial=0)))


def forward(case):
    return reference.net_forward(
        case.params, case.x, case.state, case.kind, case.options, case.num_layers,
        case.bidirectional, case.lengths, case.reset,
    )  # fmt: skip


def expected(case):
    record = forward(case)
    return record, reference.net_backward(record, case.d_output, case.d_state)


def at_a_corner(case, record, dtype):
    """Whether rounding decides on which side of a relu's corner, and so on which slope, some a is.

    Where a is 0 in the reference, all that is added is 0 (no bias, no input), in any dtype.
    """
    if case.options.get("nonlinearity") != "relu":
        return False
    a = np.abs([cache["a"] for cache in record["caches"].values()])
    near = 100 * np.finfo(dtype).eps * max(1, a.max(initial=0))
    return ((a > 0) & (a < near)).any()


def small(kind, options, dtype=np.float32, T=9, B=5, I=6, H=21, L=2, bidirectional=True):
    rng = np.random.default_rng(0)
    net = getattr(fb, kind)(I, H, L, bidirectional=bidirectional, dtype=dtype, rng=1, **options)
    D, parts = 1 + bidirectional, 2 if kind == "LSTM" else 1

    def draw(*shape):
        return rng.normal(size=shape).astype(dtype)

    state = [draw(L * D, B, H) for _ in range(2 * parts)]
    arrays = {"x": draw(T, B, I), "d_output": draw(T, B, D * H)}
    return net, arrays, tuple(state[:parts]), tuple(state[parts:])


def everything(net, arrays, state, d_state, **keywords):
    trace = net.trace(arrays["x"], as_state(state), **keywords)
    grads = trace.backward(arrays["d_output"], as_state(d_state), per_step=True)
    states = [*parts_of(trace.state), *parts_of(grads.state)]
    steps = [*grads.per_step.values(), *trace.inside().values()]
    return [trace.output, grads.x, *states, *steps, *grads.params.values()]


def same(one, other):
    """The same kind of net, options and parameters."""
    assert repr(one) == repr(other)
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, y in one.state_dict().items():
        assert_array_equal(y, other.state_dict()[name])
