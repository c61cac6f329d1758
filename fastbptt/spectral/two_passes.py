"""Norms of all windows of a chain from one pass forward and one back (spectral.md section 3)."""

import math
from typing import Any

import numpy as np

from ..chains import Chain
from ..kernels.frames import EMPTY
from ..kernels.windows import Windows, ends_of_windows, products, window_norms
from ..threads import share
from .curves import grams
from .products import Carried, Stretch, carry, orthonormal

_WINDOW_COST = 1e5  # of a window, in multiply-adds of the products
_TOGETHER = 16  # stretches whose frames are pushed side by side


def _whole(carried: Carried) -> bool:
    return bool(np.isfinite(carried.frame).all() and (carried.e > EMPTY).all())


class TwoPasses:
    """Forward and reverse frames of a whole chain, as the k x k matrices that windows need.

    Memory: 4 k² float64 a step, 2 kB at k = 8, and the frames at the ends of stretches.

    Attributes
    ----------
    whole : bool
        Whether both passes came through with all their vectors.  A frame that has met a NaN, or a
        product of lower rank than its own, says nothing of windows that begin later.
    """

    def __init__(self, chain: Chain, k: int, rng: np.random.Generator) -> None:
        T, N = len(chain), chain.size(0)
        self._G = np.empty((T + 1, k, k))
        self._G[0] = np.eye(k)
        stretches: list[Stretch] = []

        def note(one: Stretch) -> None:
            self._G[one.start + 1 : one.stop + 1] = grams(one.history)
            stretches.append(one._replace(history=None))

        def start() -> np.ndarray:
            return orthonormal(rng.standard_normal((N, k)), chain.dtype)[0]

        self.whole = _whole(carry(chain, 0, T, start(), note, history=True))
        if not self.whole:
            return
        self._D = np.array([np.eye(k), *(one.R for one in stretches[:-1])])
        self._stretch = np.zeros((T + 1, 2), np.int64)  # as an end, and as a beginning
        self._R_v, self._ends = np.zeros((T + 1, k, k)), np.zeros((T + 1, k, k))
        self._R_s = np.zeros((T + 1, k, k))
        rows = start()
        for last in range(len(stretches), 0, -_TOGETHER):
            some = stretches[max(0, last - _TOGETHER) : last]
            for i, one, pushed in zip(
                range(last - 1, -1, -1), some[::-1], self._push(chain, some)[::-1], strict=False
            ):
                self._stretch[one.start + 1 : one.stop + 1, 0] = i
                self._stretch[one.start : one.stop, 1] = i
                rows = self._meet(chain, one, pushed, rows)
                if not self.whole:
                    return
                self._R_s[one.start : one.stop] = self._R_v[one.start : one.stop]
                self._R_s[one.start] = np.eye(k)
        with np.errstate(divide="ignore"):
            growth = np.log(np.abs(np.array([np.diagonal(one.R) for one in stretches])))
        self._rates = growth.sum(axis=0) / T
        # exponents apart, so that products neither overflow nor vanish
        self._shifts = np.frexp(np.abs(self._D).max(axis=(1, 2)))[1].astype(np.int64)
        self._D = np.ldexp(self._D, -self._shifts[:, None, None].astype(np.int32))

    @staticmethod
    def _push(chain: Chain, stretches: list[Stretch]) -> list[np.ndarray]:
        """The frames (n,k,N) at the states that each stretch begins windows at, pushed anew."""
        lengths = np.array([one.stop - one.start for one in stretches])
        firsts = np.array([one.start for one in stretches])
        rows = np.stack([one.before for one in stretches])
        count = int(min(lengths.max(), len(chain) - firsts.max())) - 1
        later = np.empty((count, *rows.shape), chain.dtype)

        def some(first: int, last: int) -> None:
            if count:
                own = chain.history_groups(firsts[first:last], count, rows[first:last])
                later[:, first:last] = own

        share(some, np.ones(len(stretches)), float(rows.size) * rows.shape[2] * max(count, 0))
        pushed = []
        for i, one in enumerate(stretches):
            n = min(lengths[i] - 1, count)
            parts = [rows[i][None], later[:n, i]]
            if n < lengths[i] - 1:  # the chain ends before the longest stretch would
                more = chain.history(one.start + n, one.stop - 1, parts[-1][-1] if n else rows[i])
                parts.append(more)
            pushed.append(np.concatenate(parts))
        return pushed

    def _meet(self, chain: Chain, one: Stretch, pushed: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Pull the reverse frame over a stretch, and note C^-1 R_u' of each state it passes."""
        n = one.stop - one.start
        pulled: list[Any] = []
        carried = carry(
            chain,
            one.stop,
            one.start,
            rows,
            lambda part: pulled.append(part.history),
            history=True,
            steps=n,
        )
        if not _whole(carried):
            self.whole = False
            return carried.frame
        U = np.ascontiguousarray(np.concatenate(pulled)[::-1])
        C = np.empty((n, len(rows), len(rows)))
        products(U, pushed, C)
        G_u = grams(U)
        begins, ends = slice(one.start, one.stop), slice(one.start + 1, one.stop + 1)
        ends_of_windows(self._G[ends], C, G_u, self._R_v[ends], self._ends[begins])
        return carried.frame

    def norms(self, lag: int) -> np.ndarray:
        """(T+1-lag,2): log norms of the windows on the forward frame, and of all of P."""
        out = np.empty((len(self._R_v) - lag, 2))
        matrices = Windows(self._R_v, self._R_s, self._ends, self._D, self._shifts, self._stretch)

        def some(first: int, last: int) -> None:
            window_norms(matrices, lag, first, out[first:last])

        share(some, np.ones(len(out)), len(out) * _WINDOW_COST)
        return out

    def gap_steps(self, tol: float) -> float:
        """The lag from which on two passes promise `tol` nats, by the rates the frame shows."""
        gap = float(self._rates[0] - self._rates[-1])
        if not np.isfinite(self._rates[0]):
            return math.inf
        return math.log(1 / tol) / gap if gap > 0 else math.inf
