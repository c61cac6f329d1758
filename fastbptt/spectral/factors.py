"""What the triangular factor of a random block says of the norm of the product (spectral.md 1)."""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from ..kernels import windows as kernels
from ..kernels.jit import Entry
from ..kernels.small import columns

_block_norms = {np.dtype(one): Entry(kernels.block_norms) for one in (np.float32, np.float64)}


class BlockNorms(NamedTuple):
    """Of one product P (N,N) and a block V (N,k), Gaussian block Omega = V R0; natural logs."""

    lower: np.ndarray  # log ||P V||
    gaussian: np.ndarray  # log ||P Omega||
    gap: np.ndarray  # 1 - (s2/s1)^2 of P V: 0 where the block sees no gap, 1 where it sees one only


def grams(history: Any) -> tuple[np.ndarray, np.ndarray]:
    """V V' of each frame (k,N) as `windows.gram` gives it, (n,k,columns), and its shifts (n,)."""
    if not isinstance(history, list):
        out = np.zeros((len(history), history.shape[1], columns(history.shape[1])))
        shifts = np.zeros(len(history), np.int64)
        kernels.gram(history, out, shifts)
        return out, shifts
    # frames of different sizes
    parts = zip(*(grams(frame[None]) for frame in history), strict=True)
    G, shifts = (np.concatenate(part) for part in parts)
    return G, shifts


def block_norms(frames: np.ndarray, U: np.ndarray, e: np.ndarray, R0: np.ndarray) -> BlockNorms:
    """Of products whose blocks are now frames (B,k,N) times diag(2^e) U; U (B,k,k), e (B,k).

    NaN where one of them is not finite.
    """
    out = np.empty((3, len(frames)))
    _block_norms[frames.dtype].call(frames, U, e, R0, columns(len(R0)), out)
    lower, gaussian, second = out
    return BlockNorms(lower, gaussian, 1 - second * second)


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


def estimate_note(N: int, k: int) -> str:
    """How `JacobianStream` estimates the norm of a product from k probes."""
    if k == N:
        return "exact but for rounding: as many probes as the state has numbers"
    mean = f"lower + {expected_shortfall(N, k):.2f} nats, the mean shortfall of {k} probes of {N}"
    if k == 1:
        return f"{mean}; one probe cannot see whether there is a gap"
    return f"{mean}, times 1 - (s2/s1)^2 of the block, which is 0 where it sees no gap"


def room_of(delta: float, length: Any) -> Any:
    """log 1/epsilon: a Gaussian start of that length has less than epsilon of v_1 but for delta."""
    return np.log(length) - math.log(delta) - 0.5 * math.log(math.pi / 2)
