"""Blocks of vectors carried along a chain, however long: the one engine of all norms.

A block is pushed (or pulled) by stretches that are short enough for it to stay in range and well
conditioned, orthonormalised, and its triangular factors are multiplied up with exponents of their
own (spectral.md sections 1 and 6).
"""

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .. import checks
from ..chains import Chain
from ..kernels.frames import EMPTY, factorise, multiply_factor, settle
from ..kernels.jit import Entry

_LONGEST = 256  # steps of a stretch, at most
_MOST_NUMBERS = 1 << 22  # of a stretch's history
# A stretch whose rows have come apart by so many times as many nats as they should is done again,
# in fewer steps: norms of what lies in it are found from squares, which lose the smallest direction
# at eps^-1.  Of 400 Gaussian 3x3 matrices one stretch in eight went further than that, and windows
# in it were up to 3.5 nats off.
TOO_FAR = 1.5
_factorise = Entry(factorise)  # of float64


class Carried(NamedTuple):
    """P V = Q diag(2^e) U, Q orthonormal."""

    frame: np.ndarray  # (k,N): Q'
    U: np.ndarray  # (k,k) upper triangular, float64
    e: np.ndarray  # (k,)


class Stretch(NamedTuple):
    """What `carry` shows of each stretch."""

    start: int  # the state it began with, and
    stop: int  # that where it ended, below `start` where it was pulled
    before: np.ndarray  # (k,N): the frame it began with
    U: np.ndarray  # (k,k) and
    e: np.ndarray  # (k,): the factor up to there
    R: np.ndarray  # (k,k): of this stretch, in float64
    history: Any  # (steps,k,N) the frame after each step, not orthonormalised; None if not asked


class OfChain:
    """A result that knows, beside its tuple, what chain it is of: copies and pickles hold it too.

    To be named before the NamedTuple whose `_replace` forgets what is no part of the tuple.
    """

    of: Any = ()  # nothing, of one that was made by hand

    def _replace(self, **changes: Any) -> Any:
        other = super()._replace(**changes)  # type: ignore[misc]
        vars(other).update(vars(self))
        return other

    __replace__ = _replace  # of copy.replace, from Python 3.13 on


def checked(chain: Any, square: bool = False) -> Chain:
    """A chain, or TypeError; if `square`, of square Jacobians, or ValueError."""
    if not isinstance(chain, Chain):
        hint = "; use trace.chain()" if hasattr(chain, "chain") else "; see fb.MatrixChain"
        raise TypeError(f"chain: expected a Chain, got {type(chain).__name__}{hint}")
    checks.dtype(chain.dtype)
    if square and len(sizes := chain.sizes()) > 1:
        raise ValueError(f"chain: expected square Jacobians, got sizes {sorted(sizes)}")
    return chain


def orthonormal(block: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """block (N,k) = V R0 of float64 -> rows V' (k,N) of the dtype and R0 (k,k)."""
    rows, R0 = block.T.copy(), np.empty((block.shape[1],) * 2)
    _factorise.call(rows, R0, np.empty(len(block)))
    return rows.astype(dtype, copy=False), R0


def carry(
    chain: Chain,
    start: int,
    stop: int,
    rows: np.ndarray,
    watch: Callable[[Stretch], None] | None = None,
    history: bool = False,
    apart: float = 0.25,
) -> Carried:
    """Push orthonormal rows (k,N) from state `start` to `stop`, or pull them if it lies before.

    In a stretch the rows come apart by a factor of some eps^-apart, and so much of the accuracy of
    what grows least may be lost.
    A chain with NaN gives NaN; a product that is zero an empty factor, e = EMPTY.
    """
    k, forward = len(rows), stop >= start
    U, e = np.eye(k), np.zeros(k, np.int64)
    R, scratch = np.empty((k, k)), np.empty(k)
    info = np.finfo(chain.dtype)
    limit = 0.7 * math.log(float(info.max))  # nats a stretch may grow or shrink by
    if history:  # of which float64 is to hold the squares
        limit = min(limit, 0.4 * math.log(sys.float_info.max))
    room = -apart * math.log(float(info.eps))  # nats its rows may grow apart
    frame, at, left, n = np.ascontiguousarray(rows, chain.dtype), start, abs(stop - start), 1
    while left:
        n = min(n, left)
        to = at + n if forward else at - n
        kept: Any = None
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            if history:
                kept = chain.history(at, to, frame)
                raw = kept[-1]
            else:
                raw = chain.push(at, to, frame) if forward else chain.pull(at, to, frame)
        after = np.array(raw, chain.dtype, order="C")
        if after.shape != (k, chain.size(to)):
            raise ValueError(
                f"chain: expected {'push' if forward else 'pull'}({at}, {to}, block) to return "
                f"shape {(k, chain.size(to))}, got {after.shape}"
            )
        finite, extreme, spread, largest = settle(after, R, e, np.empty_like(after[0]), scratch)
        if not finite and n == 1:
            R[:] = np.triu(np.full((k, k), np.nan))
        if n > 1 and (not finite or extreme > limit or spread > TOO_FAR * room):
            n = max(1, n // 4)
            continue
        if watch is not None:
            watch(Stretch(at, to, frame, U.copy(), e.copy(), R.copy(), kept))
        multiply_factor(R, U, e, scratch)
        if not finite:
            return Carried(np.full_like(after, np.nan), np.full((k, k), np.nan), e)
        frame, at, left = after, to, left - n
        most = min(
            2 * n, _LONGEST, room * n / max(spread, 1e-9), 0.5 * limit * n / max(largest, 1e-9)
        )
        if history:
            most = min(most, _MOST_NUMBERS / frame.size)
        n = max(1, int(most))
    return Carried(frame, U, e)


def factor(U: np.ndarray, e: np.ndarray) -> tuple[np.ndarray, float]:
    """diag(2^e) U as a matrix near 1 and the nats it was scaled down by, -inf for nothing."""
    top = int(e.max())
    if top <= EMPTY:
        return np.zeros_like(U), -math.inf
    return np.ldexp(U, np.maximum(e - top, -4000).astype(np.int32)[:, None]), top * math.log(2)


def log_norm_of(U: np.ndarray, e: np.ndarray) -> float:
    """log || diag(2^e) U ||, -inf for nothing, NaN for NaN."""
    scaled, nats = factor(U, e)
    if not np.isfinite(scaled).all():
        return math.nan
    norm = float(np.linalg.norm(scaled, 2))
    return math.log(norm) + nats if norm > 0 else -math.inf


def one_vector(chain: Chain, start: int, stop: int, vector: np.ndarray) -> tuple[np.ndarray, float]:
    """A unit vector carried along: the unit vector it becomes, float64, and the log of its norm."""
    carried = carry(chain, start, stop, vector[None])
    return carried.frame[0].astype(np.float64), log_norm_of(carried.U, carried.e)
