"""What the triangular factor of a random block says of the norm of the product (spectral.md 1)."""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from ..kernels.frames import EMPTY


class BlockNorms(NamedTuple):
    """Of one product P (N,N) and a block V (N,k), Gaussian block Omega = V R0; natural logs."""

    lower: np.ndarray  # log ||P V||
    gaussian: np.ndarray  # log ||P Omega||
    gap: np.ndarray  # 1 - (s2/s1)^2 of P V: 0 where the block sees no gap, 1 where it sees one only


def block_norms(R: np.ndarray, U: np.ndarray, e: np.ndarray, R0: np.ndarray) -> BlockNorms:
    """The norms of R diag(2^e) U and of the same times R0; R, U (B,k,k), e (B,k), R0 (k,k)."""
    top = e.max(axis=-1, keepdims=True)
    empty = top[..., 0] <= EMPTY
    scaled = np.ldexp(U, np.maximum(e - top, -4000).astype(np.int32)[..., None])
    factor = R @ np.where(empty[..., None, None], 0.0, scaled)
    known = np.isfinite(factor).all(axis=(-2, -1))  # LAPACK refuses NaN; the norm is NaN then
    safe = np.where(known[..., None, None], factor, 0.0)
    s, gaussian = np.linalg.svd(np.stack([safe, safe @ R0]), compute_uv=False)
    nats = np.where(empty, 0, top[..., 0]) * math.log(2)
    with np.errstate(divide="ignore", invalid="ignore"):
        second = s[..., 1] / s[..., 0] if s.shape[-1] > 1 else np.zeros_like(s[..., 0])
        unknown = np.where(known, 0.0, np.nan)
        return BlockNorms(
            np.log(s[..., 0]) + nats + unknown,
            np.log(gaussian[..., 0]) + nats + unknown,
            np.nan_to_num(1 - second**2),
        )


def upper_margin(k: int, delta: float) -> float:
    """What makes log ||P Omega|| an upper bound of log sigma_1 but with probability `delta`.

    ||P Omega|| >= sigma_1 ||Omega' v_1||, whose square is chi^2 of k degrees of freedom, and that
    is below x with probability at most (x/2)^(k/2) / Gamma(k/2 + 1).
    """
    return -math.log(2) / 2 - (math.log(delta) + math.lgamma(k / 2 + 1)) / k


def _digamma_half(n: int) -> float:
    """psi(n/2), by psi(x + 1) = psi(x) + 1/x from psi(1/2) or psi(1)."""
    euler = 0.5772156649015329
    if n % 2:
        return -euler - 2 * math.log(2) + sum(2 / (2 * m + 1) for m in range(n // 2))
    return -euler + sum(1 / m for m in range(1, n // 2))


@functools.lru_cache
def expected_shortfall(N: int, k: int) -> float:
    """E[log sigma_1 - log ||P V||] for a uniform block of k of N and a product with a gap, nats."""
    return (_digamma_half(N) - _digamma_half(k)) / 2


def room_of(delta: float, length: Any) -> Any:
    """log 1/epsilon: a Gaussian start of that length has less than epsilon of v_1 but for delta."""
    return np.log(length) - math.log(delta) - 0.5 * math.log(math.pi / 2)
