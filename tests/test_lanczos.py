"""What the numbers of Golub-Kahan-Lanczos bound: against eigenvalues, and in many digits."""

import mpmath as mp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_equal

from fastbptt.kernels.lanczos import bounds, orthogonalise


def bounds_of(numbers, halves, room):
    out = np.empty((len(numbers), 2))
    bounds(numbers, halves, room, out)
    return out


def component(numbers, x):
    """log of the last component beside v_1's along a singular vector of value x."""
    with mp.workdps(80):
        x = mp.mpf(x)
        before, now, last = mp.mpf(0), mp.mpf(1), mp.mpf(0)
        for number in map(mp.mpf, numbers):
            before, now, last = now, (x * now - last * before) / number, number
        return float(mp.log(now))


@given(
    st.integers(1, 40),
    st.floats(0.5, 45.0),
    st.sampled_from(["even", "wild", "falling", "equal", "large", "small"]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=80, deadline=None)
def test_bounds_of_numbers(halves, room, kind, seed):
    rng = np.random.default_rng(seed)
    numbers = np.abs(rng.normal(size=(3, halves + 2))) + 1e-3
    if kind == "wild":
        numbers = np.exp(3 * rng.normal(size=numbers.shape))
    elif kind == "falling":  # as where the Krylov space is nearly all there is
        numbers *= np.exp(-rng.uniform(0, 3) * np.arange(halves + 2))
    elif kind in ("large", "small"):  # powers of them leave the range of float64
        numbers *= 1e20 if kind == "large" else 1e-20
    elif kind == "equal":  # all that a constant chain gives
        numbers[:] = 1
    for (ritz, above), own in zip(bounds_of(numbers, halves, room), numbers, strict=True):
        own = own[:halves]
        symmetric = np.diag(own, 1) + np.diag(own, -1)
        assert_allclose(ritz, np.linalg.eigvalsh(symmetric).max(), rtol=1e-13)
        assert above >= ritz
        assert component(own, above * (1 + 1e-7)) > room
        if above > ritz * (1 + 1e-7):
            assert component(own, above * (1 - 1e-7)) < room


def test_many_values_together():
    """A cluster far below what bounds it: Newton's method alone would take a thousand steps."""
    numbers = np.array([[*[0.5**0.5] * 2, *[1e-5, 1.0] * 31]])
    symmetric = np.diag(numbers[0], 1) + np.diag(numbers[0], -1)
    for room in (0.5, 20.0):
        ritz, above = bounds_of(numbers, 64, room)[0]
        assert_allclose(ritz, np.linalg.eigvalsh(symmetric).max(), rtol=1e-13)
        assert component(numbers[0], above * (1 + 1e-9)) > room


def test_numbers_that_end():
    """Where one is zero the Krylov space is all there is, and its largest value the norm."""
    numbers = np.array([[3.0, 4.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert_allclose(bounds_of(numbers, 4, 20.0), [[5, 5], [2, 2], [0, 0]], rtol=1e-14)
    assert np.isnan(bounds_of(np.array([[1.0, np.nan, 1.0]]), 3, 20.0)).all()


def test_one_number():
    """A random vector of length 1 has a component e^-room along the first singular vector."""
    assert_allclose(bounds_of(np.array([[2.0]]), 1, 7.0), [[2, 2 * np.exp(7.0)]], rtol=1e-8)


def test_each_row_by_itself():
    numbers = np.abs(np.random.default_rng(0).normal(size=(20, 9)))
    alone = [bounds_of(numbers[i : i + 1], 9, 15.0)[0] for i in range(20)]
    assert_equal(bounds_of(numbers, 9, 15.0), alone)


@given(st.integers(1, 6), st.integers(0, 5), st.integers(6, 20), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_orthogonalised_against_bases_of_others(G, count, N, seed):
    rng = np.random.default_rng(seed)
    bases = np.stack([np.linalg.qr(rng.normal(size=(N, 6)))[0].T for _ in range(G + 2)])
    which, y, expected = rng.permutation(G + 2)[:G], rng.normal(size=(G, N)), rng.normal(size=G)
    own = bases[which, :count]
    parts = np.einsum("gin,gn->gi", own, y)
    less = y - np.einsum("gi,gin->gn", parts, own)
    if count:
        parts[:, -1] -= expected
    norms, discord = np.empty((2, G))
    orthogonalise(y, bases, which, count, expected, norms, discord)
    assert_allclose(y, less, atol=1e-13)
    assert_allclose(norms, np.linalg.norm(less, axis=1), rtol=1e-12)
    assert_allclose(discord, np.abs(parts).max(axis=1, initial=0.0), atol=1e-13)
    if count:  # once would leave what rounding left of the large part
        y = bases[which, 0] + 1e-9 * y
        orthogonalise(y, bases, which, count, expected, norms, discord)
        rounding = 2 * N * np.finfo(float).eps * norms[:, None]  # of a dot product, at most
        assert (np.abs(np.einsum("gin,gn->gi", own, y)) <= rounding).all()
    y[:] = np.nan  # which says nothing of how far sweeps disagree
    orthogonalise(y, bases, which, count, expected, norms, discord)
    assert_equal(discord, 0)
