"""Orthonormal frames and their factors, against NumPy and exact numbers."""

import math
from fractions import Fraction

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from tolerances import tolerance

from fastbptt.kernels import frames
from fastbptt.kernels.lines import line

# what a frame's rows may be multiplied by: float32's and float64's own range, subnormals left out
SCALES = {np.float32: 110, np.float64: 1000}


@numba.njit
def after_a_write_to_the_whole(state, i, j):
    """What a part of the state is, read before and after the whole of it was written.

    At two places, which only who calls knows to be one.
    """
    part, whole = line(state, i, "c"), line(state, j, "state")
    before = part[0]
    whole[0] = before + 1
    return before, part[0]


def test_a_state_is_one_memory_with_its_parts():
    """Else LLVM keeps what it has read of an LSTM's c while its frame is settled."""
    assert after_a_write_to_the_whole(np.zeros(3), 1, 1) == (0, 1)


def settled(frame):
    """The orthonormal rows, R, and what `settle` says."""
    k = len(frame)
    Q, R = frame.copy(), np.full((k, k), np.nan)
    said = frames.settle(Q, R, np.zeros(k, np.int64), np.empty_like(frame[0]), np.empty(k))
    return Q, R, said


@settings(deadline=None, max_examples=150)
@given(
    dtype=st.sampled_from([np.float32, np.float64]),
    k=st.integers(1, 11),
    more=st.sampled_from([0, 1, 3, 8, 29, 64, 100]),
    scale=st.floats(-1, 1),
    seed=st.integers(0, 10**6),
)
def test_rows_become_orthonormal_and_R_keeps_what_they_were(dtype, k, more, scale, seed):
    """Of rows of any size, and of 1 to 1000 times the size of one another."""
    rng, N = np.random.default_rng(seed), k + more
    sizes = np.exp2(np.round(scale * SCALES[dtype]) - rng.integers(0, 10, k))[:, None]
    frame = (rng.normal(size=(k, N)) * sizes).astype(dtype)
    Q, R, (finite, *_) = settled(frame)
    assert finite
    assert (np.tril(R, -1) == 0).all()
    close = tolerance(dtype, 0, N)[0]
    Q = Q.astype(float)
    assert_allclose(Q @ Q.T, np.eye(k), rtol=0, atol=close)
    assert_allclose((Q.T @ R).T / sizes, frame / sizes, rtol=0, atol=close * math.sqrt(N))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("N", [3, 16, 40])
def test_a_row_in_the_span_of_others_becomes_zero(dtype, N):
    frame = np.random.default_rng(N).normal(size=(3, N)).astype(dtype)
    frame[1] = 3 * frame[0]
    Q, R, (_, most, spread, _) = settled(frame)
    assert not Q[1].any()
    assert R[1, 1] == 0
    assert most == math.inf
    assert math.isfinite(spread)
    assert_allclose(
        np.linalg.norm(Q[[0, 2]].astype(float), axis=1), 1, rtol=tolerance(dtype, 0, N)[0]
    )


@given(k=st.integers(1, 12), seed=st.integers(0, 10**6), rate=st.floats(0, 3))
@settings(deadline=None, max_examples=100)
def test_how_far_rows_are_from_orthogonal(k, seed, rate):
    """Within a factor of what it estimates, also where all R_ii are alike."""
    rng = np.random.default_rng(seed)
    for R in (
        np.triu(rng.normal(size=(k, k))) + np.diag(np.exp(-rate * np.arange(k))),
        np.linalg.matrix_power(0.9 * np.eye(k) + 0.5 * np.eye(k, k=1), 30),
    ):
        signs = np.sign(np.diagonal(R))
        R = signs[:, None] * R  # a triangle has R_ii > 0
        frame = np.zeros((k, k + 2))
        frame[:, :k] = R.T
        spread = settled(frame)[2][2]
        condition = math.log(np.linalg.cond(R))
        assert condition - 2 * math.log(k) - math.log(2) <= spread <= condition + math.log(k) + 1e-9


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_frame_that_is_not_finite_is_left_alone(bad):
    frame = np.ones((2, 5), np.float32)
    frame[1, 3] = bad
    Q, _, (finite, *_) = settled(frame)
    assert not finite
    np.testing.assert_array_equal(Q, frame)


@settings(deadline=None, max_examples=100)
@given(k=st.integers(1, 5), apart=st.integers(0, 3000), seed=st.integers(0, 10**6))
def test_factors_are_multiplied_exactly_however_far_apart_their_rows(k, apart, seed):
    rng = np.random.default_rng(seed)
    R, U = (np.triu(rng.normal(size=(k, k))) for _ in range(2))
    e = rng.integers(-apart, apart + 1, k)

    def exact(y):
        return [[Fraction(z) for z in row] for row in np.asarray(y, float).tolist()]

    two = [Fraction(2) ** int(n) for n in e]
    scaled = [[two[i] * z for z in row] for i, row in enumerate(exact(U))]
    wanted = [
        [sum(a * scaled[m][j] for m, a in enumerate(row)) for j in range(k)] for row in exact(R)
    ]
    frames.multiply_factor(R, U, e, np.empty(k))
    for i in range(k):
        size = max(abs(z) for z in wanted[i])
        for j in range(k):
            got = Fraction(2) ** int(e[i]) * Fraction(float(U[i, j]))
            assert abs(got - wanted[i][j]) <= size * Fraction(float(tolerance(np.float64, 0, k)[0]))
