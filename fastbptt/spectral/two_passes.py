"""Norms of all windows of a chain from one pass forward and one back (spectral.md section 3)."""

import functools
import math
from typing import Any

import numpy as np

from ..chains import Chain
from ..kernels.frames import EMPTY
from ..kernels.memory import aligned
from ..kernels.small import columns
from ..kernels.windows import Windows, forward_factors, meet, reverse_factors, window_norms
from ..threads import both, share
from .products import TOO_FAR, Carried, Stretch, carry, orthonormal

# By how much frames may come apart (`carry`): their factors are found from squares, of which
# float64's rounding leaves 1e-6 of the smallest direction then, float32's 2e-5.  Where a state on
# the way goes further windows have no norms here.
_APART = {4: 0.25, 8: 0.2}
_WINDOW_COST = 1e5  # of a window, in multiply-adds of the products
_TOGETHER = 4096  # windows of one queue of products, whatever thread has them: the same bits


def _steps(one: Stretch) -> int:
    return abs(one.stop - one.start)


def _whole(carried: Carried) -> bool:
    return bool(np.isfinite(carried.frame).all() and (carried.e > EMPTY).all())


def _met(
    own: list[Stretch], history: Any, waiting: list[Stretch]
) -> list[tuple[int, int, np.ndarray]]:
    """(s, t, own frame · known frame') for the states s .. t - 1 that two stretches share.

    Of known stretches `waiting`, the next one last, those are taken off whose first state the last
    of `own` has come to: the product is made there, where the known frame is at hand.  Back from
    there each stretch of `own` multiplies it by its R'.
    """
    last = own[-1]
    met: list[tuple[int, int, np.ndarray]] = []
    while waiting and (apart := abs(waiting[-1].start - last.start)) <= _steps(last):
        known = waiting.pop()
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            C = np.asarray(history[apart - 1], float) @ known.before.T.astype(float)
            for one in reversed(own):
                if one is not last:
                    C = one.R.T @ C
                s = max(min(one.start, one.stop), min(known.start, known.stop))
                t = min(max(one.start, one.stop), max(known.start, known.stop))
                if s >= t:
                    break
                met.append((s, t, C))
    return met


class TwoPasses:
    """Forward and reverse frames of a whole chain, as the k x k matrices that windows need.

    Each frame is carried over its half to the middle, by a thread of its own, and then on over the
    other's half.  Of the frames at a state s, V_s forward and U_s reverse, k rows each, windows
    need the triangular factors, and U_s V_s' (spectral.md's L_s' Q_s, not made orthonormal).  Of
    the latter there is but one where neither frame is orthonormalised in between: U_s V_s' =
    U_t P(t,s) V_s' = U_t V_t'.

    Memory: 3 k² float64 a step, 1.5 kB at k = 8, and the frames at the ends of stretches.

    Attributes
    ----------
    whole : bool
        Whether both passes came through with all their vectors.  A frame that has met a NaN, or a
        product of lower rank than its own, says nothing of windows that begin later.
    """

    def __init__(self, chain: Chain, k: int, rng: np.random.Generator) -> None:
        T, N = len(chain), chain.size(0)
        # In memory that is used again: to fill new pages with zeros took half as long as all that
        # is found for them.
        matrices = aligned((3, T + 1, k, columns(k)), np.dtype(float))
        matrices[..., k:] = 0
        self._R_v, self._R_v_inverse, self._ends = matrices
        self._R_v[0, :, :k] = np.eye(k)
        frames = [orthonormal(rng.standard_normal((N, k)), chain.dtype)[0] for _ in range(2)]
        halves: tuple[list[Stretch], list[Stretch]] = ([], [])  # forward and reverse, the first
        later: tuple[list[Stretch], list[Stretch]] = ([], [])  # and the second they go through
        self.whole = True

        def some(way: int, start: int, stop: int, watch: Any) -> None:
            apart = _APART[chain.dtype.itemsize]
            carried = carry(chain, start, stop, frames[way], watch, True, apart)
            frames[way] = carried.frame
            if not _whole(carried):
                self.whole = False  # whatever the other thread finds

        def to_the_middle(way: int) -> None:
            note = functools.partial(self._note, stretches=halves[way])
            some(way, (0, T)[way], T // 2, note)

        def beyond(way: int) -> None:
            waiting = list(halves[1 - way])
            products: list[tuple[int, int, np.ndarray]] = []

            def note(part: Stretch) -> None:
                self._note(part, later[way])
                products.extend(_met(later[way], part.history, waiting))

            some(way, T // 2, (T, 0)[way], note)
            if self.whole and products:
                firsts, lasts, C = zip(*products, strict=True)
                wide = np.zeros((len(C), k, columns(k)))
                wide[:, :, :k] = C if way else np.swapaxes(C, 1, 2)
                meet(wide, np.array([firsts, lasts]), self._ends)

        cost = float(T) * k * N * N
        for part in (to_the_middle, beyond):
            both(functools.partial(part, 0), functools.partial(part, 1), cost)
            if not self.whole:
                return
        stretches = halves[0] + later[0]
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

    def _note(self, part: Stretch, stretches: list[Stretch]) -> None:
        """Keep the factors of every state of a stretch, and of the stretch all but its history."""
        history = np.ascontiguousarray(part.history, part.before.dtype)
        s, t = sorted((part.start, part.stop))
        info = np.finfo(part.before.dtype)
        far = TOO_FAR * _APART[part.before.itemsize] * -math.log(float(info.eps))
        if part.start < part.stop:
            R, R_inverse = self._R_v[s + 1 : t + 1], self._R_v_inverse[s:t]
            forward_factors(history, far, part.R, R, R_inverse)
        else:
            reverse_factors(history, far, part.R, self._ends[s:t])
        stretches.append(part._replace(history=None))

    def norms(self, lag: int) -> np.ndarray:
        """(T+1-lag,3): log norms of the windows on the forward frame and of all of P, and `lost`.

        Where exp of that, times eps, is not far below 1 (`window_norms`), the norms are rounding.
        """
        out = np.empty((len(self._R_v) - lag, 3))
        matrices = Windows(
            self._R_v, self._R_v_inverse, self._ends, self._D, self._shifts, self._stretch
        )

        def some(first: int, last: int) -> None:
            for s0 in range(first * _TOGETHER, last * _TOGETHER, _TOGETHER):
                window_norms(matrices, lag, s0, out[s0 : s0 + _TOGETHER])

        share(some, -(-len(out) // _TOGETHER), len(out) * _WINDOW_COST)
        return out

    def gap_steps(self, tol: float) -> float:
        """The lag from which on two passes promise `tol` nats, by the rates the frame shows."""
        gap = float(self._rates[0] - self._rates[-1])
        if not np.isfinite(self._rates[0]):
            return math.inf
        return math.log(1 / tol) / gap if gap > 0 else math.inf
