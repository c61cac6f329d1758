"""Norms of all windows of a lag: short ones side by side, long ones by two passes of frames."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import checks
from ..chains import Chain
from .curves import Curve, axes, curve_of, several, stacked, sums
from .norm import AFFORDABLE, log_norm
from .products import OfChain, checked
from .sweeps import MOST_SWEEPS, SWEEPS, TOL, Sweeps
from .two_passes import TwoPasses

_SAMPLE = 16  # windows checked one by one
_GROSS = 0.1  # nats: a window that is as wrong is no matter of chance,
_SHORT = 1.0  # and as far above what two half-sweeps find, worth a look
_ROUNDED = 1e-4  # nats: windows that rounding may have moved by more are looked at
_FEW = 0.1  # of all windows: more are not mended but all of them solved by sweeps


class _Lags(NamedTuple):
    lags: np.ndarray  # (M,)
    lower: np.ndarray  # (M,T+1)
    estimate: np.ndarray
    upper: np.ndarray
    delta: np.ndarray  # (M,): as of each row's `Curve`
    notes: tuple[str, ...]  # how each row was computed
    worst_error: np.ndarray  # (M,)


class Map(OfChain, _Lags):
    """Norms in nats by lag and time: row i holds the windows (t - lags[i], t), NaN before.

    Of B chains lower, estimate and upper are (B,M,T+1), delta and worst_error (B,M).  `_replace`,
    copies and pickles keep the chains, which may be large; `Map(*found)` is one without.
    """

    of: Sequence[Chain] = ()  # no part of the tuple

    @property
    def textbook(self) -> Any:
        """Products of norms, nats, as `upper`, found when asked for: see `Curve.textbook`.

        None without a chain of T steps for each map.
        """
        *batch, _, states = self.upper.shape
        if [len(one) + 1 for one in self.of] != [states] * math.prod(batch):
            return None
        t = np.arange(self.upper.shape[-1])
        rows = np.full((len(self.of), len(self.lags), len(t)), np.nan)
        for chain, one in zip(self.of, rows, strict=True):
            starts = t - self.lags[:, None]
            inside = starts >= 0
            one[inside] = sums(chain, np.broadcast_to(t, starts.shape)[inside], starts[inside])
        return rows.reshape(self.upper.shape)

    def plot(self, ax: Any = None) -> Any:
        """Draw the estimates per step of lag as colours, on `ax` or on a new figure.

        A thin line, where `textbook` is known, bounds the windows of which it says that they do not
        grow.
        """
        ax = axes(ax)
        rate, textbook = self.estimate / self.lags[:, None], self.textbook
        if textbook is None:
            textbook = np.full(rate.shape, np.nan)
        if rate.ndim > 2:  # the mean of all sequences
            rate, textbook = rate.mean(axis=0), textbook.mean(axis=0)
        finite = rate[np.isfinite(rate)]
        most = float(np.abs(finite).max()) if finite.size else 1.0
        picture = ax.imshow(
            rate, aspect="auto", origin="lower", cmap="RdBu_r", vmin=-most, vmax=most,
            extent=(0, rate.shape[1], -0.5, len(self.lags) - 0.5), interpolation="nearest",
        )  # fmt: skip
        sure = np.ma.masked_array(textbook <= 0, np.isnan(textbook)).astype(float)
        if len(self.lags) > 1 and 0 < sure.mean() < 1:
            middles, places = np.arange(rate.shape[1]) + 0.5, np.arange(len(self.lags))
            ax.contour(middles, places, sure, levels=[0.5], colors="k", linewidths=0.6)
        ax.set_yticks(range(len(self.lags)), [str(lag) for lag in self.lags])
        ax.set(xlabel="step t", ylabel="lag  (steps)")
        ax.figure.colorbar(picture, ax=ax, label="log ||P(t,t-lag)|| / lag  (nats a step)")
        return ax


METHODS = ("auto", "frames", "sweeps")


def growth_window(
    chain: Chain | Sequence[Chain],
    lag: int,
    *,
    method: str = "auto",
    probes: int = 8,
    delta: float = 1e-6,
    rng: Any = 0,
) -> Curve:
    """log ||P(t, t - lag)|| for all t = lag .. T.

    Parameters
    ----------
    chain : Chain, or list of them
        Of square Jacobians; of several, equally long, the curves get a leading axis.
    lag : int
        1 .. T, steps.
    method : str
        "frames": two passes of k probes, forward with frames Q_s and triangular factors R(t,s),
        back with frames L_s, and for each window the norm of R(t,s) (L_s' Q_s)^-1, whose error
        falls as exp(-(lambda_1 - lambda_{k+1}) lag), lambda being the Lyapunov exponents.
        "sweeps": every window by Golub-Kahan-Lanczos of its own, side by side.  "auto": frames
        from the lag on where the rates of the frame promise 0.01 nats for the common window, if
        none of those drawn at random is more than 0.1 nats off and rounding has left most as they
        were, else sweeps.  Of frames every lag-th window is tried by two half-sweeps; around those
        that are wrong by more than 0.1 nats all windows are solved by sweeps.  Whatever is asked
        for, a chain with NaN or whose product loses so much rank that a frame cannot follow is
        solved by sweeps.
    probes : int
        k, of frames.
    delta : float
        Probability with which an `upper` of sweeps may be wrong, for one window.
    rng : int, numpy.random.Generator or None

    Returns
    -------
    Curve
        Of T + 1 - lag windows.  `lower` holds but for rounding, of frames some 1e-6 nats in
        float64, 1e-4 in float32, and more where `note` says so.  `upper` of sweeps is as
        `log_norm`'s; that of frames is no bound but the estimate and the worst error of 16 windows
        drawn at random and solved one by one, `worst_error`, and `delta` is NaN.

    Raises
    ------
    TypeError, ValueError
        Naming the argument.

    Examples
    --------
    >>> import numpy as np, fastbptt as fb
    >>> chain = fb.MatrixChain(np.stack([0.5 * np.eye(4)] * 10))
    >>> np.round(fb.growth_window(chain, 3).estimate / np.log(2), 6)
    array([-3., -3., -3., -3., -3., -3., -3., -3.])
    """
    if isinstance(chain, (list, tuple)):
        options = {"method": method, "probes": probes, "delta": delta, "rng": rng}
        return stacked([growth_window(one, lag, **options) for one in several(chain)])
    chain, generator = _square(chain), checks.generator(rng)
    lag = checks.size(lag, "lag")
    if lag > len(chain):
        raise ValueError(f"lag: expected at most {len(chain)}, the steps of the chain, got {lag}")
    return _windows(chain, [lag], method, probes, delta, generator)[0]


def growth_map(
    chain: Chain | Sequence[Chain],
    lags: Any = "dyadic",
    *,
    method: str = "auto",
    probes: int = 8,
    delta: float = 1e-6,
    rng: Any = 0,
) -> Map:
    """`growth_window` for several lags, from the same two passes: a heat map, lag by time.

    Parameters
    ----------
    lags : sequence of int, or "dyadic"
        Steps; "dyadic" is 1, 2, 4 .. up to T.
    chain, method, probes, delta, rng
        As of `growth_window`.

    Returns
    -------
    Map

    Raises
    ------
    TypeError, ValueError
        Naming the argument.

    Examples
    --------
    >>> import numpy as np, fastbptt as fb
    >>> chain = fb.MatrixChain(np.stack([0.5 * np.eye(4)] * 10))
    >>> fb.growth_map(chain).lags
    array([1, 2, 4, 8])
    """
    if isinstance(chain, (list, tuple)):
        options = {"method": method, "probes": probes, "delta": delta, "rng": rng}
        return stacked([growth_map(one, lags, **options) for one in several(chain)])
    chain, generator = _square(chain), checks.generator(rng)
    T = len(chain)
    if isinstance(lags, str):
        checks.choice(lags, "lags", ["dyadic"])
        wanted = [2**i for i in range(T.bit_length()) if 2**i <= T]
    else:
        if not np.iterable(lags):
            raise TypeError(f'lags: expected a sequence of int or "dyadic", got {lags!r}')
        wanted = [checks.size(lag, f"lags[{i}]") for i, lag in enumerate(lags)]
        if not wanted or max(wanted) > T:
            raise ValueError(f"lags: expected some, of 1 .. {T}, got {wanted}")
    curves = _windows(chain, wanted, method, probes, delta, generator)
    rows = np.full((3, len(wanted), T + 1), np.nan)
    for i, (lag, curve) in enumerate(zip(wanted, curves, strict=True)):
        for one, y in zip(rows, (curve.lower, curve.estimate, curve.upper), strict=True):
            one[i, lag:] = y
    notes = tuple(curve.note for curve in curves)
    deltas, errors = np.array([(curve.delta, curve.worst_error) for curve in curves]).T
    found = Map(np.array(wanted), rows[0], rows[1], rows[2], deltas, notes, errors)
    found.of = [chain]
    return found


def _square(chain: Any) -> Chain:
    chain = checked(chain, square=True)
    if len(chain) == 0:
        raise ValueError("chain: expected at least one step, got none")
    return chain


def _windows(
    chain: Chain,
    lags: list[int],
    method: str,
    probes: int,
    delta: float,
    rng: np.random.Generator,
) -> list[Curve]:
    method = checks.choice(method, "method", METHODS)
    delta = checks.probability(delta, "delta")
    k = min(checks.size(probes, "probes"), chain.size(0))
    frames = None
    if method == "frames" or (method == "auto" and max(lags) > 1):
        frames = TwoPasses(chain, k, rng)
        frames = frames if frames.whole else None
    curves = []
    for lag in lags:
        curve = None
        if frames is not None and (method == "frames" or lag >= frames.gap_steps(TOL)):
            curve, sure = _by_frames(chain, frames, k, lag, delta, rng)
            if method == "auto" and not (sure and curve.worst_error <= _GROSS):
                curve = None
        curves.append(curve or _by_sweeps(chain, lag, delta, rng))
    return curves


def _by_sweeps(chain: Chain, lag: int, delta: float, rng: np.random.Generator) -> Curve:
    firsts = np.arange(len(chain) + 1 - lag)
    lower, estimate, upper = _solved(chain, lag, firsts, delta, rng)
    note = f"Golub-Kahan-Lanczos of every window, up to {SWEEPS} half-sweeps"
    lost = int((np.isneginf(lower) & ~np.isneginf(estimate)).sum())
    if lost:
        note += f"; {lost} windows are lost in rounding and lie between -inf and upper"
    return curve_of(chain, 0.0, firsts + lag, firsts, lower, estimate, upper, delta, note)


def _solved(
    chain: Chain,
    lag: int,
    firsts: np.ndarray,
    delta: float,
    rng: np.random.Generator,
    tol: float = TOL,
    most: int = SWEEPS,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """lower, estimate and upper of the windows (s, s + lag), s in `firsts`, one by one.

    Where sweeps have met their own rounding `log_norm` does what can be done, or nothing is known.
    """
    lower, upper, rounding = Sweeps(chain, lag, tol, delta, rng, most).norms(firsts).T
    estimate, N = lower.copy(), chain.size(0)
    rule = 16 * float(np.finfo(chain.dtype).eps) * math.sqrt(N * (1 + lag))
    lost = np.flatnonzero(rounding > max(TOL, rule))
    affordable = len(lost) * lag * float(N) ** 3 <= AFFORDABLE
    for i in lost.tolist():
        lower[i], upper[i] = -math.inf, math.inf
        if affordable:
            s = int(firsts[i])
            got = log_norm(chain, s + lag, s, method="explicit", rng=rng)
            lower[i], estimate[i], upper[i] = got.lower, got.estimate, got.upper
    return lower, estimate, upper


def _by_frames(
    chain: Chain, frames: TwoPasses, k: int, lag: int, delta: float, rng: np.random.Generator
) -> tuple[Curve, bool]:
    """Windows on two passes, those mended that two half-sweeps of every lag-th show to be wrong.

    What a frame has lost, such as a burst in a subspace of its own, none of its windows shows.
    And whether rounding has left most of them as they were.
    """
    firsts = np.arange(len(chain) + 1 - lag)
    lower, estimate, lost = frames.norms(lag).T
    lower, estimate = lower.copy(), estimate.copy()
    chosen = np.sort(rng.choice(len(firsts), min(_SAMPLE, len(firsts)), replace=False))
    upper_known = np.full(len(firsts), -math.inf)
    every = firsts[::lag]
    short = Sweeps(chain, lag, 0.0, delta, rng, 2).norms(every)[:, 0]
    doubtful = every[~((short <= estimate[every] + _GROSS) & (estimate[every] <= short + _SHORT))]
    rounded = np.flatnonzero(lost > math.log(_ROUNDED / float(np.finfo(chain.dtype).eps)))
    thinned = rounded[np.unique(rounded // max(1, lag // 4), return_index=True)[1]]
    doubtful = np.union1d(doubtful, thinned)
    _, exact, above = _solved(chain, lag, doubtful, delta, rng)
    bad = ~(_apart(estimate[doubtful], exact) <= _GROSS)
    wrong = doubtful[bad]
    none = ~np.isfinite(estimate) | ~np.isfinite(lower)
    again = none.copy()
    again[rounded] = True
    for s in wrong.tolist():
        again[max(0, s - lag + 1) : s + lag] = True
    many = again.sum() > _FEW * len(firsts)
    mended = np.flatnonzero(none if many else again)
    if len(mended):
        lower[mended], estimate[mended], upper_known[mended] = _solved(
            chain, lag, mended, delta, rng
        )
    low, middle, high = _solved(chain, lag, chosen, 1e-6, rng, 1e-4, MOST_SWEEPS)
    # as far as the farther end of what is known
    error = float(np.max([_apart(estimate[chosen], y) for y in (low, middle, high)]))
    if many:
        error = max(error, float(_apart(estimate[wrong], exact[bad]).max(initial=0.0)))
    with np.errstate(invalid="ignore"):
        known = (lower[doubtful] - above)[~bad | many]
        beyond = np.concatenate([lower[chosen] - high, known])
        slip = np.nan_to_num(beyond, nan=0.0, neginf=0.0, posinf=0.0).max()
    lower = lower - max(0.0, float(slip))  # of rounding
    estimate = np.maximum(estimate, lower)
    note = (
        f"two passes of {k} probes; worst error of {len(chosen)} windows drawn at random "
        f"{error:.2g} nats, by which upper lies above the estimate"
    )
    if upper_known.max() > -math.inf:
        note += f"; {len(mended)} windows solved by themselves"
    upper = np.maximum(estimate + error, upper_known)
    sure = len(rounded) <= _FEW * len(firsts)
    if not sure:
        note += f"; rounding may have moved {len(rounded)} by more than {_ROUNDED:g}"
    fields = (firsts + lag, firsts, lower, estimate, upper, math.nan, note, error)
    return curve_of(chain, 0.0, *fields), sure


def _apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """|one - other|, 0 where both are the same infinity or NaN, inf where one is NaN."""
    with np.errstate(invalid="ignore"):
        apart = np.where(one == other, 0.0, np.abs(one - other))
    apart[np.isnan(one) & np.isnan(other)] = 0
    return np.where(np.isnan(apart), math.inf, apart)
