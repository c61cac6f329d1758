"""What makes a product large, and what textbooks say: by finite differences."""

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import reference
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from products import DTYPES, orthogonal, permuted
from strategies import KINDS, dtypes, net_cases
from tolerances import tolerance

import fastbptt as fb


def test_sensitivity_by_finite_differences():
    rng = np.random.default_rng(18)
    T, N = 7, 5
    J = rng.normal(size=(T, N, N)) / 2
    got = fb.sensitivity(fb.MatrixChain(J), 6, 1)
    assert got.steps.tolist() == [2, 3, 4, 5, 6]
    step = 1e-6
    for i, r in enumerate(got.steps):
        gradient = np.zeros((N, N))
        for m in range(N):
            for n in range(N):
                values = []
                for sign in (1, -1):
                    moved = J.copy()
                    moved[r - 1, m, n] += sign * step
                    values.append(reference.log_norm_of_product(moved[1:6]))
                gradient[m, n] = (values[0] - values[1]) / (2 * step)
        assert_allclose(got.by_step[i], np.linalg.norm(gradient, 2), rtol=1e-5)
        assert_allclose(got.by_unit[i], np.linalg.norm(gradient, axis=1), rtol=1e-4, atol=1e-7)
    assert got.weight_hh is None


def test_sensitivity_is_that_of_the_largest_value():
    """One start in twenty has so little of its vector that the usual delta takes another."""
    J = np.random.default_rng(22).normal(size=(130, 24, 24)) / np.sqrt(24)
    exact = reference.log_norm_of_product(J)
    for rng in range(20):
        assert_allclose(fb.sensitivity(fb.MatrixChain(J), rng=rng).log_norm, exact, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sensitivity_where_the_leading_direction_changes(dtype):
    """Each step is worth the entry on the leading path: d log sigma_1 / dJ is its inverse."""
    rng = np.random.default_rng(24)
    J, at, values = permuted(600, 24, rng)[0].astype(dtype), np.arange(24), []
    for step in J:
        after = step[:, at].argmax(axis=0)
        values.append(step[after, at])
        at = after
    values = np.array(values, float)
    lead = np.log(values).sum(axis=0).argmax()
    got = fb.sensitivity(fb.MatrixChain(J)).by_step
    assert_allclose(got, 1 / values[:, lead], rtol=600 * np.finfo(dtype).eps * 16)
    rng = np.random.default_rng(0)
    J, turn = permuted(600, 6, rng)[0], orthogonal(6, rng)
    with pytest.raises(ValueError, match="passes forward and back"):
        fb.sensitivity(fb.MatrixChain((turn @ J @ turn.T).astype(dtype)))


@pytest.mark.parametrize("L", [1, 2])
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_sensitivity_to_the_recurrent_weights(kind, options, L):
    """The slopes held, log sigma_1 is a function of W_hh through every J_t."""
    rng = np.random.default_rng(19)
    net = getattr(fb, kind)(2, 4, L, dtype=np.float64, rng=0, **options)
    trace = net.trace(rng.normal(size=(6, 2)))
    got = fb.sensitivity(trace.chain()).weight_hh
    by_layer = got[None] if L == 1 else got
    assert len(by_layer) == L
    # a chain with the same factors and other weights: W_hh moved behind the trace's back
    step = 1e-6
    for l in range(L):
        name = f"weight_hh_l{l}"
        state = net.state_dict()
        gradient = np.zeros_like(state[name])
        for place in np.ndindex(gradient.shape):
            values = []
            for sign in (1, -1):
                moved = state[name].copy()
                moved[place] += sign * step
                other = getattr(fb, kind)(2, 4, L, dtype=np.float64, rng=0, **options)
                other.load_state_dict({**state, name: moved})
                chain = trace.chain()
                chain._chain = chain._chain._replace(
                    cell=other.weights.stacked_cell, adjoint=other.weights.stacked_adjoint_cell
                )
                values.append(fb.log_norm(chain, method="explicit").estimate)
            gradient[place] = (values[0] - values[1]) / (2 * step)
        assert_allclose(by_layer[l], gradient, rtol=1e-4, atol=1e-7)


@given(net_cases(most=9, both_ways=False, scales=(1.0, 3.0)), dtypes(), st.data())
@settings(max_examples=60, deadline=None)
def test_sensitivity_to_the_recurrent_weights_of_the_reference(case, dtype, data):
    """Along random directions of each layer's W_hh, with lengths and a window of its own."""
    T, B, I, H = case.shape
    assume(T > 0 and B > 0)
    L, params = case.num_layers, {name: y.astype(dtype) for name, y in case.params.items()}
    bias = "bias_ih_l0" in params
    net = getattr(fb, case.kind)(I, H, L, bias=bias, dtype=dtype, **case.options)
    net.load_state_dict(params)
    x, state = case.x.astype(dtype), tuple(part.astype(dtype) for part in case.state)
    record = reference.net_forward(
        {name: y.astype(float) for name, y in params.items()}, x.astype(float),
        tuple(part.astype(float) for part in state), case.kind, case.options, L,
        lengths=case.lengths,
    )  # fmt: skip
    b = data.draw(st.integers(0, B - 1))
    J = reference.jacobians(record, b)
    assume(len(J) > 0)
    s = data.draw(st.integers(0, len(J) - 1))
    t = data.draw(st.integers(s + 1, len(J)))
    P = np.linalg.multi_dot([*J[s:t][::-1], np.eye(J.shape[1])])
    first, second = [*np.linalg.svd(P, compute_uv=False), 0.0][:2]
    assume(first > 1e-6 and second < 0.95 * first)  # else no derivative, or a steep one
    trace = net.trace(x, state if len(state) > 1 else state[0], lengths=case.lengths)
    got = fb.sensitivity(trace.chain(b), t, s).weight_hh
    assert got.shape == (L, *params["weight_hh_l0"].shape)[L == 1 :]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    near = max(tolerance(dtype, t - s, J.shape[1])[0], 1e-7) / (1 - second / first)
    for l, one in enumerate(got.reshape(L, -1, H)):
        direction = rng.normal(size=one.shape)
        directions = {f"weight_hh_l{l}": direction}
        exact = reference.slope_of_log_norm(record, b, t, s, directions)
        size = 1 + np.abs(one * direction).sum()
        assert abs((one * direction).sum() - exact) <= near * size


def test_textbook_bounds_are_bounds_and_loose():
    rng = np.random.default_rng(20)
    N, T = 24, 256
    net = fb.RNN(3, N, dtype=np.float64, rng=0)
    net.weight_hh_l0 = rng.normal(size=(N, N)) / np.sqrt(N)
    chain = net.trace(rng.normal(size=(T, 3))).chain()
    exact = fb.log_norm(chain, method="explicit").estimate
    bounds = fb.textbook_bounds(chain)
    each = sum(math.log(np.linalg.norm(chain.matrix(t + 1, t), 2)) for t in range(T))
    assert_allclose(bounds.steps, each, rtol=1e-12)
    assert fb.textbook_bounds(chain, rng=1).steps == fb.textbook_bounds(chain, lag=1).windows
    assert exact < bounds.windows < bounds.steps < bounds.classical
    assert_allclose(bounds.classical, T * math.log(np.linalg.norm(net.weight_hh_l0, 2)))
    longer = fb.textbook_bounds(chain, lag=128)
    assert exact < longer.windows < bounds.windows


def test_textbook_bounds_of_rectangular_jacobians():
    rng = np.random.default_rng(3)
    sizes = [3, 7, 5, 5, 4, 9, 3, 2]
    J = [rng.normal(size=(m, n)) for n, m in itertools.pairwise(sizes)]
    norm = fb.log_norm(fb.MatrixChain(J))
    bounds = norm.textbook
    each = sum(math.log(np.linalg.norm(one, 2)) for one in J)
    assert_allclose(bounds.steps, each, rtol=1e-12)
    assert norm.estimate - 1e-9 <= bounds.windows <= norm.estimate + 1e-2  # one window: lag > 7
    short = fb.textbook_bounds(fb.MatrixChain(J), 6, 1, lag=2)
    pairs = [math.log(np.linalg.norm(y, 2)) for y in (J[2] @ J[1], J[4] @ J[3], J[5])]
    assert sum(pairs) - 1e-9 <= short.windows <= sum(pairs) + 1e-2


def test_textbook_bounds_of_states_of_any_size():
    """The steps' own norms up to 64 numbers; beyond, upper bounds by Lanczos."""
    rng = np.random.default_rng(41)
    for N, near in ((64, 1e-10), (65, 0.01 * 9)):
        J = rng.normal(size=(9, N, N)) / 8
        each = sum(math.log(np.linalg.norm(one, 2)) for one in J[2:8])
        one, other = (fb.textbook_bounds(fb.MatrixChain(J), 8, 2, rng=seed) for seed in (0, 1))
        assert fb.log_norm(fb.MatrixChain(J), 8, 2).textbook == one
        assert each - 1e-10 <= one.steps <= each + near
        assert (N > 64) != (one.steps == other.steps)


def test_the_classical_bound_of_dense_nets():
    rng = np.random.default_rng(42)
    weights = [rng.normal(size=(m, n)) for n, m in itertools.pairwise([5, 8, 8, 3])]
    for nonlinearity, slope in (("tanh", 1.0), ("relu", 1.0), ("sigmoid", 0.25)):
        chain = fb.FeedForward(weights, None, nonlinearity).trace(rng.normal(size=5)).chain()
        for one in (chain, copy.copy(chain), pickle.loads(pickle.dumps(chain))):
            for t, s in ((3, 0), (2, 1), (1, 1)):
                each = [math.log(slope * np.linalg.norm(w, 2)) for w in weights[s:t]]
                found = fb.textbook_bounds(one, t, s)
                assert_allclose(found.classical, sum(each), rtol=1e-12)
                assert found.classical >= found.steps - 1e-12
    assert math.isnan(fb.textbook_bounds(fb.MatrixChain(weights)).classical)


def test_an_estimate_knows_what_textbooks_say():
    chain = fb.MatrixChain(np.stack([np.diag([2.0, 0.5]), np.diag([0.5, 2.0])] * 8))
    got = fb.log_norm(chain, 12, 2)
    assert got.textbook == fb.textbook_bounds(chain, 12, 2)
    assert got.estimate < got.textbook.steps
