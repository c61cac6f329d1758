"""Golub-Kahan-Lanczos of many windows side by side."""

from typing import Any

import numpy as np

from ..chains import Chain
from ..kernels.lanczos import bounds, orthogonalise
from ..matrix_norms import MOST_UNITS
from ..threads import share
from .factors import room_of

TOL = 1e-2  # nats: to which windows are solved
SWEEPS = 24  # half-sweeps of a window, at most
MOST_SWEEPS = 64  # where few windows are solved
_NUMBERS = 1 << 20  # of the vectors of windows that one thread solves side by side


class Sweeps:
    """Golub-Kahan-Lanczos of many windows of one lag, side by side."""

    def __init__(
        self, chain: Chain, lag: int, tol: float, delta: float, rng: Any, most: int = SWEEPS
    ) -> None:
        self._chain, self._lag, self._tol, self._delta, self._rng = chain, lag, tol, delta, rng
        self._most = min(most, 2 * chain.size(0) - 1)  # half-sweeps: then the Krylov space is all

    def norms(self, firsts: np.ndarray) -> np.ndarray:
        """(G,3): lower and upper of the windows (s, s + lag), s in `firsts`, and their rounding.

        That is by how many nats sweeps forward and back, one another's transposes, disagree.
        """
        N, count = self._chain.size(0), len(firsts)
        out = np.empty((count, 3))
        some = max(1, _NUMBERS // (N * self._most))
        seeds = self._rng.integers(2**63, size=-(-count // some))

        def work(first: int, last: int) -> None:
            for i in range(first, last):
                part = slice(i * some, (i + 1) * some)
                out[part] = self._solve(firsts[part], N, np.random.default_rng(seeds[i]))

        share(work, len(seeds), float(count) * self._lag * N * N * self._most)
        return out

    def _solve(self, firsts: np.ndarray, N: int, rng: np.random.Generator) -> np.ndarray:
        G, most = len(firsts), self._most
        omega = rng.standard_normal((G, N))
        length = np.linalg.norm(omega, axis=1)
        sides = np.empty((2, G, most // 2 + 1, N))  # left vectors, and right
        sides[1, :, 0] = omega / length[:, None]
        numbers = np.zeros((G, most))  # alpha and beta in turn
        result, open_ = np.zeros((G, 2)), np.arange(G)
        base, first, discord = np.zeros(G), np.zeros(G), np.zeros(G)
        for m in range(most):
            forward, count = m % 2 == 0, (m + 1) // 2
            own, other = sides if forward else sides[::-1]
            y, nats = self._carry(firsts[open_], other[open_, m // 2], forward)
            if m == 0:
                base, first = nats, nats
                y[~np.isfinite(nats)] = 0
            with np.errstate(invalid="ignore"):
                y = y * np.nan_to_num(np.exp(nats - base))[:, None]
            # along the last of `own` it is what the sweep before found, along the others nothing
            norm, apart = np.empty((2, len(open_)))
            orthogonalise(y, own, open_, count, numbers[open_, max(m - 1, 0)], norm, apart)
            discord[open_] = np.maximum(discord[open_], apart)
            numbers[open_, m] = norm
            found = np.empty((len(open_), 2))
            room = room_of(self._delta, length[open_]).max()
            bounds(numbers[open_], m + 1, room, found)
            with np.errstate(divide="ignore"):
                found = np.log(found) + base[:, None]
            found[~np.isfinite(base)] = base[~np.isfinite(base), None]
            spent = norm <= 4e-16 * np.exp(found[:, 0] - base) if m else ~np.isfinite(base)
            spent |= m + 1 == 2 * N - 1
            found[spent, 1] = found[spent, 0]
            result[open_] = found
            with np.errstate(invalid="ignore"):
                going = (found[:, 1] - found[:, 0] > self._tol) & ~spent
            with np.errstate(divide="ignore", invalid="ignore"):
                own[open_, count] = y / norm[:, None]
            if m == 0:
                going &= np.isfinite(base)
            open_, base = open_[going], base[going]
            if not len(open_):
                break
        with np.errstate(invalid="ignore", over="ignore"):
            rounding = discord * np.exp(first - result[:, 0])
        return np.column_stack([result, np.where(np.isfinite(result[:, 0]), rounding, 0.0)])

    def _carry(
        self, firsts: np.ndarray, vectors: np.ndarray, forward: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors (G,N) over their windows: unit vectors and the logs of the norms (G,)."""
        chain, lag = self._chain, self._lag
        step = chain.push_groups if forward else chain.pull_groups
        at = firsts if forward else firsts + lag
        y, nats, n, left = vectors, np.zeros(len(vectors)), lag, lag
        tiny = float(np.finfo(chain.dtype).tiny) / float(np.finfo(chain.dtype).eps)
        while left:
            n = min(n, left)
            with np.errstate(over="ignore", invalid="ignore", under="ignore"):
                after = step(at, n, y[:, None].astype(chain.dtype))[:, 0].astype(np.float64)
            peak = np.abs(after).max(axis=1)  # squares would overflow long before
            if n > 1 and not (np.isfinite(peak) & (peak > tiny)).all():
                n = n // 2
                continue
            with np.errstate(divide="ignore", invalid="ignore"):
                after = np.where(peak[:, None] > 0, after / peak[:, None], after)
                norm = np.linalg.norm(after, axis=1)
                nats = nats + np.log(peak) + np.log(norm)
                y = np.where(norm[:, None] > 0, after / norm[:, None], after)
            at, left = at + (n if forward else -n), left - n
        return y, nats


def window_sweeps(
    chain: Chain, lag: int, firsts: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Upper bounds (G,) of the windows (s, s + lag), s in `firsts`; each false once in 1e9."""
    return Sweeps(chain, lag, TOL, 1e-9, rng, MOST_SWEEPS).norms(firsts)[:, 1]


def log_norms_of_steps(chain: Chain, t: int, s: int, rng: np.random.Generator) -> np.ndarray:
    """Upper bounds (t-s,) of log ||J_r||, r = s+1 .. t; of rectangular ones by Frobenius' norm.

    Of small states they are the norms themselves.
    """
    sizes = {chain.size(r) for r in range(s, t + 1)}
    if max(sizes) <= MOST_UNITS:
        return chain.step_norms(np.arange(s, t))
    if len(sizes) == 1:
        return window_sweeps(chain, 1, np.arange(s, t), rng)
    with np.errstate(divide="ignore"):
        return np.log([np.linalg.norm(chain.matrix(r + 1, r)) for r in range(s, t)])
