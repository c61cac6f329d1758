"""All singular values of a product, and Lyapunov exponents (spectral.md section 4)."""

import math
from typing import Any, NamedTuple

import numpy as np

from .. import checks
from ..chains import Chain
from ..kernels.frames import graded_singular_values
from .curves import axes
from .products import Stretch, carry, checked, orthonormal
from .stream import JacobianStream

_BURN_IN = 1 / 8  # of the steps
_BLOCKS = 32  # of steps, for the standard error, or half as many; fewer than 8 give none
_HISTORY = 512  # points
# See `carry`: 60 random matrices of 8 or 16 units lose 1e-13 nats, at 0.25 up to 1e-7, and 2000 of
# 64 take 0.7 s and not 0.2.
_APART = 0.05


def log_singular_values(chain: Chain, t: int | None = None, s: int = 0) -> np.ndarray:
    """log of every singular value of P(t,s), however far apart they are.

    Parameters
    ----------
    chain : Chain
    t, s : int
        0 <= s <= t <= T; t = None is T.

    Returns
    -------
    ndarray (min(N_t, N_s),)
        Nats, falling; -inf for zeros.

    Raises
    ------
    TypeError, ValueError
        Naming the argument.

    Notes
    -----
    N random vectors are pushed through and their triangular factors multiplied up, each row with an
    exponent of its own; one-sided Jacobi on the graded factor gives small values to the same
    relative accuracy as large ones (D. E. Stewart 1997; Demmel and Veselic 1992).  Memory N².
    In float64, 60 random matrices are 1e-13 nats off.  Where a small change of one matrix moves a
    value far, rounding does too: 1e-6 nats of 60 Jordan blocks of 16 units.  `log_norm` knows how
    far that is for the largest (`condition`).  What lies in one row of the factor farther apart
    than float64 reaches, e^700, is lost: -inf for the smaller values.

    Examples
    --------
    >>> import numpy as np, fastbptt as fb
    >>> chain = fb.MatrixChain(np.stack([np.diag([4.0, 0.25])] * 1000))
    >>> fb.log_singular_values(chain) / np.log(2)
    array([ 2000., -2000.])
    """
    chain = checked(chain)
    t, s = chain.window(t, s)
    start, stop = (s, t) if chain.size(s) <= chain.size(t) else (t, s)
    N = chain.size(start)
    # Not the units: where a product's minors are zero, those of the largest directions would not
    # come first, and what rounding mixes them with is lost.
    rows, _ = orthonormal(np.random.default_rng(0).standard_normal((N, N)), chain.dtype)
    carried = carry(chain, start, stop, rows, apart=_APART)
    if not np.isfinite(carried.U).all():
        return np.full(N, np.nan)
    out = np.empty(N)
    graded_singular_values(carried.U.copy(), carried.e.copy(), out)
    return np.sort(out)[::-1] * math.log(2)


class LyapunovSpectrum(NamedTuple):
    """What `lyapunov_spectrum` returns; arrays (k,), or (B,k) of a batched stream."""

    exponents: np.ndarray  # nats a step, after the burn-in
    standard_error: np.ndarray  # of 16 to 32 blocks of steps; NaN with fewer than 8
    steps: int
    kaplan_yorke: Any  # dimension; NaN if k exponents do not reach a negative sum
    entropy_rate: Any  # sum of the positive exponents, nats a step
    history_steps: np.ndarray  # (n,): ends of the running means; empty for a batched stream, whose
    # sequences have blocks of their own
    history: np.ndarray  # (n,k): mean growth up to there, without burn-in

    def plot(self, ax: Any = None) -> Any:
        """Draw the convergence of the exponents on `ax`, or on a new figure."""
        ax = axes(ax)
        ax.set(xlabel="step", ylabel="exponents  (nats a step)")
        if not len(self.history_steps):
            ax.text(0.5, 0.5, "no history is kept", ha="center", transform=ax.transAxes)
            return ax
        ax.plot(self.history_steps, self.history)
        ax.set_xscale("log")
        return ax


def lyapunov_spectrum(source: Any, k: int | None = None, *, rng: Any = 0) -> LyapunovSpectrum:
    """The k largest Lyapunov exponents of a chain, or of what a stream has seen.

    Parameters
    ----------
    source : Chain or JacobianStream
        A stream reads sequences of any length in chunks, and is the fastest way there.
    k : int, optional
        How many; all N of a chain, or all probes of a stream, if None.  Of a chain no more than N
        are found, of a stream more than its probes are refused.
    rng : int, numpy.random.Generator or None
        Draws the frame that is pushed along a chain.

    Returns
    -------
    LyapunovSpectrum

    Raises
    ------
    TypeError, ValueError
        Naming the argument; RuntimeError for a stream that has seen nothing yet.

    Notes
    -----
    The growth of |R_ii| per step (Benettin et al. 1980; Geist, Parlitz, Lauterborn 1990), after a
    burn-in of an eighth of the steps.  Kaplan-Yorke dimension: j + (l_1 + .. + l_j)/|l_{j+1}|, j
    the most exponents with a sum of at least zero.

    Examples
    --------
    >>> import numpy as np, fastbptt as fb
    >>> chain = fb.MatrixChain(np.stack([np.array([[2.0, 1], [1, 1]])] * 200))
    >>> fb.lyapunov_spectrum(chain).exponents.round(6)
    array([ 0.962424, -0.962424])
    """
    if isinstance(source, JacobianStream):
        return _of_stream(source, k)
    chain = checked(source)
    T, N = len(chain), chain.size(0)
    if T == 0:
        raise ValueError("source: expected at least one step, got none")
    if chain.size(T) != N:
        raise ValueError(f"source: expected square Jacobians, got sizes {N} and {chain.size(T)}")
    k = N if k is None else min(checks.size(k, "k"), N)
    marks = np.unique(np.linspace(int(T * _BURN_IN), T, _BLOCKS + 1).astype(int))
    longest = 2 * np.diff(marks).min()  # of a stretch that a block may end with
    ends, grown = [0], [np.zeros(k)]

    def keep(stop: int, before: np.ndarray, R: np.ndarray) -> None:
        with np.errstate(divide="ignore"):
            ends.append(stop)
            grown.append(before + np.log(np.abs(np.diagonal(R))))

    def note(one: Stretch) -> None:
        before, y, at = grown[-1], one.before, one.start
        if one.stop - one.start > longest:  # of near-isometries: blocks end within it
            for mark in marks[(one.start < marks) & (marks < one.stop)].tolist():
                y, at = chain.push(at, mark, y), mark
                keep(mark, before, orthonormal(y.T.astype(np.float64), y.dtype)[1])
        keep(one.stop, before, one.R)

    rows, _ = orthonormal(checks.generator(rng).standard_normal((N, k)), chain.dtype)
    carry(chain, 0, T, rows, note)
    steps, total = np.array(ends), np.array(grown)
    end = steps[-1]  # T, or the first step with NaN
    at = np.unique(np.minimum(np.searchsorted(steps, marks), len(steps) - 1))
    lost = total[-1] == -math.inf  # a product of that rank has become zero
    with np.errstate(invalid="ignore"):
        exponents = (total[-1] - total[at[0]]) / (end - steps[at[0]])
        exponents = np.where(lost, -math.inf, exponents)
    error = np.full(k, np.nan)
    if len(at) > 8:
        with np.errstate(invalid="ignore"):
            rates = np.diff(total[at], axis=0) / np.diff(steps[at])[:, None]
            error = rates.std(axis=0, ddof=1) / math.sqrt(len(rates))
    shown = np.unique(np.linspace(1, len(steps) - 1, _HISTORY).astype(int))
    return LyapunovSpectrum(
        exponents,
        error,
        T,
        _kaplan_yorke(exponents, N),
        float(_entropy_rate(exponents)),
        steps[shown],
        total[shown] / steps[shown, None],
    )


def _of_stream(stream: JacobianStream, k: int | None) -> LyapunovSpectrum:
    result, lengths, grown = stream._result_and_blocks()
    k = stream.probes if k is None else checks.size(k, "k")
    if k > stream.probes:
        raise ValueError(f"k: expected at most {stream.probes}, the stream's probes, got {k}")
    exponents, error = result.exponents[..., :k], result.standard_error[..., :k]
    N, batch = stream.state_size, exponents.shape[:-1]
    rows = exponents.reshape(-1, k)
    dimension = np.array([_kaplan_yorke(row, N) for row in rows]).reshape(batch)
    entropy = _entropy_rate(exponents)
    steps, history = np.zeros(0, np.int64), np.zeros((0, k))
    if not batch:
        steps = np.cumsum(lengths)
        history = np.cumsum(grown[:, :k], axis=0) / steps[:, None]
    return LyapunovSpectrum(
        exponents,
        error,
        result.steps,
        dimension if batch else float(dimension),
        entropy if batch else float(entropy),
        steps,
        history,
    )


def _entropy_rate(exponents: np.ndarray) -> Any:
    """The sum of those above 0 (Pesin's identity); NaN with NaN."""
    return np.maximum(exponents, 0.0).sum(axis=-1)


def _kaplan_yorke(exponents: np.ndarray, N: int) -> float:
    """The dimension, of exponents that may be only the first of N."""
    ordered = np.sort(exponents)[::-1]
    sums = np.cumsum(ordered)
    below = np.flatnonzero(sums < 0)
    if not below.size:
        return float(N) if len(ordered) == N and not np.isnan(sums).any() else math.nan
    j = int(below[0])
    return j + (float(sums[j - 1] / abs(ordered[j])) if j else 0.0)
