"""The packed products against NumPy, for sizes that are not multiples of anything."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastbptt.kernels.gradients import (
    GRADIENT_ROWS,
    GROUP,
    TURNED,
    bias_gradient,
    gradient_scratch,
    weight_gradient,
)
from fastbptt.kernels.jit import kernel
from fastbptt.kernels.memory import aligned
from fastbptt.kernels.packing import pack
from fastbptt.kernels.panels import (
    SPLIT,
    packed,
    padded,
    panel_matmul,
    rows_matmul,
    to_and_fro,
)
from fastbptt.kernels.simd import VECTORS, lanes, rows

DTYPES = (np.float32, np.float64)


@kernel
def packing(W, gates, cuts, H, panels):
    """`pack`, which is a part of other kernels."""
    pack(W, gates, cuts, H, panels)


def panels_of(W):
    """The panels of one matrix (N,K)."""
    N, K = W.shape
    panels = aligned((padded(N, W.dtype) * K,), W.dtype)
    gates, cuts = np.array([0]), np.array([0, 1])
    packing(np.ascontiguousarray(W), gates, cuts, N, panels)
    return panels


@kernel
def product(A, W, S, C, back=0):
    """C = S + A W' with one S for all rows; from the last panels on if `back`."""
    M, K = A.shape
    Np, w = C.shape[1], to_and_fro(packed(W, 0, K), back)
    panel_matmul(rows(A, 0, K), M, w, Np, rows(S, 0, 0), rows(C, 0, Np))


@kernel
def product_added(A, W, C):
    """C += A W'."""
    (M, K), Np = A.shape, C.shape[1]
    c = rows(C, 0, Np)
    panel_matmul(rows(A, 0, K), M, packed(W, 0, K), Np, c, c)


@kernel
def gradient_of(da, i0, i1, b, K, gradient, scratch):
    """Rows i0 .. i1-1 of gradient += da' b, with the first K columns of b."""
    (S, wide_b), wide = b.shape, gradient.shape[1]
    target = rows(gradient, i0 * wide, wide)
    weight_gradient(da, (0, S), (i0, i1), rows(b, 0, wide_b), K, target, scratch)


@kernel
def bias_of(da, some, gradient, partial):
    """`bias_gradient`, which is a part of other kernels."""
    bias_gradient(da, some, gradient, partial)


def close(got, wanted, K):
    eps = np.finfo(got.dtype).eps
    np.testing.assert_allclose(got, wanted, rtol=0, atol=8 * eps * K)


@settings(deadline=None, max_examples=150)
@given(
    M=st.integers(1, 40),
    K=st.one_of(st.integers(1, 70), st.integers(100, 700)),  # a row's tiles depend on K
    N=st.integers(1, 200),
    dtype=st.sampled_from(DTYPES),
    turned=st.booleans(),
    back=st.integers(0, 1),
    seed=st.integers(0, 99),
)
def test_panel_matmul(M, K, N, dtype, turned, back, seed):
    rng = np.random.default_rng(seed)
    A = rng.uniform(-1, 1, (M, K)).astype(dtype)
    W = rng.uniform(-1, 1, (K, N)).astype(dtype).T if turned else rng.uniform(-1, 1, (N, K))
    W = W.astype(dtype, copy=False)
    S = aligned((padded(N, dtype),), dtype)
    S[:] = rng.uniform(-1, 1, S.shape)
    C = aligned((M, padded(N, dtype)), dtype)
    C[:] = np.nan
    product(A, panels_of(W), S, C, back)
    close(C[:, :N], S[:N] + A.astype(float) @ W.T.astype(float), K)
    np.testing.assert_array_equal(C[:, N:], np.broadcast_to(S[N:], C[:, N:].shape))


@kernel
def fetching_product(A, W, S, C, runs):
    """`product`, which fetches runs of A and of what lies far beyond it."""
    M, K = A.shape
    Np, none = C.shape[1], rows(A, 0, 0)
    soon = rows(A, 0, runs[0]), none, rows(A, 1 << 40, runs[1]), rows(A, 3, runs[2]), none
    s, c = rows(S, 0, 0), rows(C, 0, Np)
    rows_matmul(rows(A, 0, K), M, packed(W, 0, K), Np, s, c, soon)


@settings(deadline=None, max_examples=60)
@given(
    M=st.integers(1, 40),
    K=st.one_of(st.integers(1, 70), st.integers(120, 140)),  # the tiles depend on K and M
    N=st.integers(1, 200),
    dtype=st.sampled_from(DTYPES),
    runs=st.lists(st.sampled_from([0, 1, 200, 10**4, 10**6]), min_size=3, max_size=3),
)
def test_what_is_fetched_meanwhile_changes_no_bit_and_may_lie_anywhere(M, K, N, dtype, runs):
    rng = np.random.default_rng(0)
    A, W = rng.normal(size=(M, K)).astype(dtype), rng.normal(size=(N, K)).astype(dtype)
    S = aligned((padded(N, dtype),), dtype)
    S[:] = 1
    plain, other = (aligned((M + 3, padded(N, dtype)), dtype) for _ in range(2))
    plain[M:] = other[M:] = 7
    product(A, panels_of(W), S, plain[:M])
    fetching_product(A, panels_of(W), S, other[:M], np.array(runs))
    np.testing.assert_array_equal(other, plain)
    np.testing.assert_array_equal(other[M:], 7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", [1, 31, 32, 64, 130])
@pytest.mark.parametrize("K", [37, 150, 300])
def test_a_row_has_the_same_bits_alone_and_in_any_panel(dtype, N, K):
    rng = np.random.default_rng(0)
    A, W = rng.normal(size=(23, K)).astype(dtype), rng.normal(size=(N, K)).astype(dtype)
    S = aligned((padded(N, dtype),), dtype)
    S[:] = 1
    C = aligned((23, padded(N, dtype)), dtype)
    product(A, panels_of(W), S, C)
    for M in range(1, 23):
        part = aligned((M, padded(N, dtype)), dtype)
        for back in (0, 1):
            product(np.ascontiguousarray(A[23 - M :]), panels_of(W), S, part, back)
            np.testing.assert_array_equal(part, C[23 - M :])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", [1, 64, 70, 130])  # with a last panel of one register, and without
@pytest.mark.parametrize("M", [19, 40, 64])
def test_rows_that_go_through_W_twice_have_the_bits_of_those_that_go_once(dtype, N, M):
    rng = np.random.default_rng(0)
    K = SPLIT // (M * np.dtype(dtype).itemsize) + 1
    A, W = rng.uniform(-1, 1, (M, K)).astype(dtype), rng.uniform(-1, 1, (N, K)).astype(dtype)
    S = aligned((padded(N, dtype),), dtype)
    S[:] = rng.uniform(-1, 1, S.shape)
    C = aligned((M, padded(N, dtype)), dtype)
    panels = panels_of(W)
    product(A, panels, S, C)
    close(C[:, :N], S[:N] + A.astype(float) @ W.T.astype(float), K)
    for m in range(0, M, 9):
        part = aligned((min(9, M - m), padded(N, dtype)), dtype)
        product(A[m : m + 9], panels, S, part)
        np.testing.assert_array_equal(part, C[m : m + 9])
    onto = aligned(C.shape, dtype)
    onto[:] = S
    product_added(A, panels, onto)
    np.testing.assert_array_equal(onto, C)


@settings(deadline=None, max_examples=80)
@given(
    S=st.integers(1, 2 * GRADIENT_ROWS + 9),
    H=st.integers(1, 70),
    K=st.integers(1, 300),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_weight_gradient_whole_and_in_slices_of_panels(S, H, K, dtype, seed):
    rng = np.random.default_rng(seed)
    da = aligned((S, padded(H, dtype)), dtype)
    da[:] = rng.uniform(-1, 1, da.shape)
    apart = np.full((S, K + 1), np.nan, dtype)
    b = apart[:, :K] = rng.uniform(-1, 1, (S, K)).astype(dtype)
    panel = VECTORS * lanes(dtype)
    count = -(-K // panel)
    whole, parts = np.ones((2, H, count * panel), dtype)
    scratch = aligned(gradient_scratch(dtype), dtype)
    assert scratch[GROUP:].size >= GRADIENT_ROWS * TURNED  # where columns of da go
    scratch[:] = np.nan
    gradient_of(da, 0, H, b, K, whole, scratch)
    for i in range(0, H, TURNED):
        gradient_of(da, i, min(i + TURNED, H), apart, K, parts, scratch)
    close(whole[:, :K], 1 + da[:, :H].T.astype(float) @ b.astype(float), S)
    np.testing.assert_array_equal(parts, whole)
    np.testing.assert_array_equal(whole[:, K:], 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("H", [5, 16, 40])
@pytest.mark.parametrize("registers", [1, VECTORS])
def test_what_lies_as_if_it_were_packed_gives_the_same_bits(registers, H, dtype):
    rng = np.random.default_rng(0)
    K, S, scratch = registers * lanes(dtype), 2 * GRADIENT_ROWS + 9, gradient_scratch(dtype)
    da = aligned((S, padded(H, dtype)), dtype)
    da[:] = rng.uniform(-1, 1, da.shape)
    apart = np.full((S, K + 1), np.nan, dtype)
    b = apart[:, :K] = rng.uniform(-1, 1, (S, K)).astype(dtype)
    packed_, unpacked = np.ones((2, H, VECTORS * lanes(dtype)), dtype)
    gradient_of(da, 0, H, apart, K, packed_, np.full(scratch, np.nan, dtype))
    unused = np.full(scratch, np.nan, dtype)
    gradient_of(da, 0, H, b, K, unpacked, unused)
    assert np.isnan(unused[:GROUP]).all()
    np.testing.assert_array_equal(unpacked, packed_)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_gradient_adds_blocks_so_that_a_long_sum_stays_accurate(dtype):
    H = padded(3, dtype)
    da = np.full((10**6, H), 0.1, dtype)
    gradient = np.zeros(H, dtype)
    bias_of(da, (0, 10**6), gradient, np.empty(H, dtype))
    exact = float(dtype(0.1)) * 10**6
    # the bound of a sum in two levels is 2.5e-4 in float32; the plain sum of these is off by 1e-2
    rtol = (GRADIENT_ROWS + 10**6 / GRADIENT_ROWS) * np.finfo(dtype).eps / 2
    np.testing.assert_allclose(gradient, exact, rtol=rtol)


@pytest.mark.parametrize("shape", [(3, 5), (0, 4), (1,), (2, 3, 7)])
def test_aligned_begins_on_a_cache_line(shape):
    y = aligned(shape, np.float32)
    assert y.shape == shape
    assert y.dtype == np.float32
    assert y.size == 0 or y.ctypes.data % 64 == 0
    assert y.flags.c_contiguous
    assert y.flags.writeable
