"""Norms of all windows of a chain from one pass forward and one back (spectral.md section 3)."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..chains import Chain
from ..kernels.frames import EMPTY
from ..kernels.small import columns
from ..kernels.windows import Windows, meet, window_norms
from ..threads import both, share
from .products import Carried, Stretch, carry, orthonormal

_WINDOW_COST = 1e5  # of a window, in multiply-adds of the products
_TOGETHER = 4  # stretches whose frames are pushed side by side


def _whole(carried: Carried) -> bool:
    return bool(np.isfinite(carried.frame).all() and (carried.e > EMPTY).all())


def _groups(stretches: list[Stretch], T: int) -> Iterator[list[Stretch]]:
    """The last stretches first: some that can be carried on by as many steps as the longest."""
    last = len(stretches)
    while last:
        one, longest, first = stretches[last - 1], 0, last
        room = T - one.start if one.stop > one.start else one.start
        while first > 0 and last - first < _TOGETHER:
            longest = max(longest, _steps(stretches[first - 1]))
            if longest > room:
                break
            first -= 1
        yield stretches[first:last]
        last = first


def _steps(one: Stretch) -> int:
    return abs(one.stop - one.start)


class TwoPasses:
    """Forward and reverse frames of a whole chain, as the k x k matrices that windows need.

    Each frame is carried over its half to the middle, by a thread of its own, and its stretches
    are noted; then on over the other's half, where the other's frames are made anew from what was
    noted, and the two are put together at every state.

    Memory: 3 k² float64 a step, 1.5 kB at k = 8, and the frames at the ends of stretches.

    Attributes
    ----------
    whole : bool
        Whether both passes came through with all their vectors.  A frame that has met a NaN, or a
        product of lower rank than its own, says nothing of windows that begin later.
    """

    def __init__(self, chain: Chain, k: int, rng: np.random.Generator) -> None:
        T, N = len(chain), chain.size(0)
        self._R_v, self._R_v_inverse, self._ends = np.zeros((3, T + 1, k, columns(k)))
        self._R_v[0, :, :k] = np.eye(k)
        frames = [orthonormal(rng.standard_normal((N, k)), chain.dtype)[0] for _ in range(2)]
        forward: list[Stretch] = []
        reverse: list[Stretch] = []
        later: list[Stretch] = []  # forward stretches of the second half
        self.whole = True

        def to_the_middle(way: int) -> None:
            start, notes = ((0, forward), (T, reverse))[way]
            carried = carry(chain, start, T // 2, frames[way], notes.append)
            frames[way] = carried.frame
            self.whole = self.whole and _whole(carried)

        def beyond(way: int) -> None:
            noted = (reverse, forward)[way]
            if not self._meet(chain, noted, frames[way], later.append):
                self.whole = False

        cost = float(T) * k * N * N
        for part in (to_the_middle, beyond):
            both(functools.partial(part, 0), functools.partial(part, 1), cost)
            if not self.whole:
                return
        stretches = forward + later
        self._stretch = np.zeros((T + 1, 2), np.int64)  # as an end, and as a beginning
        for i, one in enumerate(stretches):
            self._stretch[one.start + 1 : one.stop + 1, 0] = i
            self._stretch[one.start : one.stop, 1] = i
        with np.errstate(divide="ignore"):
            growth = np.log(np.abs(np.array([np.diagonal(one.R) for one in stretches])))
        self._rates = growth.sum(axis=0) / T
        D = np.zeros((len(stretches), k, columns(k)))
        D[:, :, :k] = [np.eye(k), *(one.R for one in stretches[:-1])]
        # exponents apart, so that products neither overflow nor vanish
        self._shifts = np.frexp(np.abs(D).max(axis=(1, 2)))[1].astype(np.int64)
        self._D = np.ldexp(D, -self._shifts[:, None, None].astype(np.int32))

    def _meet(
        self,
        chain: Chain,
        stretches: list[Stretch],
        rows: np.ndarray,
        note: Callable[[Stretch], None],
    ) -> bool:
        """Carry a frame back over stretches of the other one, the last first.

        `note` gets the stretches of a forward frame.  Returns whether the frame came through.
        """
        for some in _groups(stretches, len(chain)):
            firsts, before = np.array([one.start for one in some]), [one.before for one in some]
            longest, known_forward = max(map(_steps, some)), some[0].stop > some[0].start
            known = chain.history_groups(firsts, longest, np.stack(before), known_forward)
            for g in range(len(some) - 1, -1, -1):
                one = some[g]

                def join(part: Stretch, one: Stretch = one, g: int = g, known: Any = known) -> None:
                    own = np.ascontiguousarray(np.asarray(part.history, chain.dtype)[:, None])
                    if part.start < part.stop:
                        V, U = (part.before, own, 0, 0), (known, g, one.start - 1 - part.start)
                        note(part._replace(history=None))
                    else:
                        V = (one.before, known, g, part.stop - one.start)
                        U = (own, 0, len(own) - 1)
                    s, t = sorted((part.start, part.stop))
                    R_v, out = self._R_v[s + 1 : t + 1], (self._R_v_inverse[s:t], self._ends[s:t])
                    meet(*V, *U, R_v, *out)

                carried = carry(
                    chain, one.stop, one.start, rows, join, history=True, steps=_steps(one)
                )
                rows = carried.frame
                if not _whole(carried):
                    return False
        return True

    def norms(self, lag: int) -> np.ndarray:
        """(T+1-lag,2): log norms of the windows on the forward frame, and of all of P."""
        out = np.empty((len(self._R_v) - lag, 2))
        matrices = Windows(
            self._R_v, self._R_v_inverse, self._ends, self._D, self._shifts, self._stretch
        )

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
