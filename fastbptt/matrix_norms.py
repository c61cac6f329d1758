"""Norms of many small matrices, and cheap bounds of them, in nats."""

import numpy as np

MOST_UNITS = 64  # of a state, whose steps' norms are found exactly where they are asked for


def norms(J: np.ndarray) -> np.ndarray:
    """log ||J||_2, (n,), of J (n,N,M), to rounding."""
    y = J.astype(np.float64)
    known = np.asarray(np.isfinite(y).all(axis=(1, 2)))  # LAPACK refuses NaN
    found = np.linalg.norm(np.where(known[:, None, None], y, 0.0), 2, axis=(1, 2))
    with np.errstate(divide="ignore"):
        return np.where(known, np.log(found), np.log(np.abs(y).max(axis=(1, 2))))


def bounds(J: np.ndarray) -> np.ndarray:
    """log of the lesser of ||J||_F and sqrt(||J||_1 ||J||_inf), (n,), of J (n,N,M)."""
    y = np.abs(J.astype(np.float64))
    peak = y.max(axis=(1, 2))  # whose square need not be a float64
    with np.errstate(divide="ignore", invalid="ignore"):
        y /= peak[:, None, None]
        by_sums = np.sqrt(y.sum(axis=1).max(axis=1) * y.sum(axis=2).max(axis=1))
        known = np.log(peak) + np.log(np.minimum(np.sqrt((y * y).sum(axis=(1, 2))), by_sums))
    return np.select([peak == 0, peak == np.inf], [-np.inf, np.inf], known)
