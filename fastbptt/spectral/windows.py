"""Norms of all windows of a lag: short ones side by side, long ones by two passes of frames."""

from typing import Any, NamedTuple

import numpy as np

from .. import checks
from ..chains import Chain
from .curves import Curve, axes
from .products import checked
from .sweeps import SWEEPS, TOL, Sweeps
from .two_passes import TwoPasses

_SAMPLE = 16  # windows checked one by one


class Map(NamedTuple):
    """Norms in nats by lag and time: row i holds the windows (t - lags[i], t), NaN before."""

    lags: np.ndarray  # (M,)
    lower: np.ndarray  # (M,T+1)
    estimate: np.ndarray
    upper: np.ndarray
    delta: float
    notes: tuple[str, ...]  # how each row was computed

    def plot(self, ax: Any = None) -> Any:
        """Draw the estimates per step of lag as colours, on `ax` or on a new figure."""
        ax = axes(ax)
        rate = self.estimate / self.lags[:, None]
        finite = rate[np.isfinite(rate)]
        most = float(np.abs(finite).max()) if finite.size else 1.0
        picture = ax.imshow(
            rate, aspect="auto", origin="lower", cmap="RdBu_r", vmin=-most, vmax=most,
            extent=(0, rate.shape[1], -0.5, len(self.lags) - 0.5), interpolation="nearest",
        )  # fmt: skip
        ax.set_yticks(range(len(self.lags)), [str(lag) for lag in self.lags])
        ax.set(xlabel="step t", ylabel="lag  (steps)")
        ax.figure.colorbar(picture, ax=ax, label="log ||P(t,t-lag)|| / lag  (nats a step)")
        return ax


METHODS = ("auto", "frames", "sweeps")


def growth_window(
    chain: Chain,
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
    chain : Chain
        Of square Jacobians.
    lag : int
        1 .. T, steps.
    method : str
        "frames": two passes of k probes, and for each window the norm of
        R(t,s) (L_s' Q_s)^-1 L-factor (spectral.md section 3), whose error falls as
        exp(-(lambda_1 - lambda_{k+1}) lag).  "sweeps": every window by Golub-Kahan-Lanczos of its
        own, side by side.  "auto": frames from the lag on where the rates of the frame promise
        0.01 nats, else sweeps.  Whatever is asked for, a chain with NaN or whose product loses so
        much rank that a frame cannot follow is solved by sweeps.
    probes : int
        k, of frames.
    delta : float
        Probability with which an `upper` of sweeps may be wrong, for one window.
    rng : int, numpy.random.Generator or None

    Returns
    -------
    Curve
        Of T + 1 - lag windows.  `lower` holds but for rounding.  `upper` of sweeps is as
        `log_norm`'s; that of frames is the estimate and the worst error of 16 windows drawn at
        random and solved one by one, which `note` tells.

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
    chain, generator = _square(chain), checks.generator(rng)
    lag = checks.size(lag, "lag")
    if lag > len(chain):
        raise ValueError(f"lag: expected at most {len(chain)}, the steps of the chain, got {lag}")
    return _windows(chain, [lag], method, probes, delta, generator)[0]


def growth_map(
    chain: Chain,
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
    chain, generator = _square(chain), checks.generator(rng)
    T = len(chain)
    if isinstance(lags, str):
        checks.choice(lags, "lags", ["dyadic"])
        wanted = [2**i for i in range(T.bit_length()) if 2**i <= T]
    else:
        wanted = [checks.size(lag, f"lags[{i}]") for i, lag in enumerate(lags)]
        if not wanted or max(wanted) > T:
            raise ValueError(f"lags: expected some, of 1 .. {T}, got {wanted}")
    curves = _windows(chain, wanted, method, probes, delta, generator)
    rows = np.full((3, len(wanted), T + 1), np.nan)
    for i, (lag, curve) in enumerate(zip(wanted, curves, strict=True)):
        for one, y in zip(rows, (curve.lower, curve.estimate, curve.upper), strict=True):
            one[i, lag:] = y
    notes = tuple(curve.note for curve in curves)
    return Map(np.array(wanted), rows[0], rows[1], rows[2], curves[0].delta, notes)


def _square(chain: Any) -> Chain:
    chain = checked(chain)
    sizes = {chain.size(t) for t in range(len(chain) + 1)}
    if len(chain) == 0:
        raise ValueError("chain: expected at least one step, got none")
    if len(sizes) > 1:
        raise ValueError(f"chain: expected square Jacobians, got sizes {sorted(sizes)}")
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
    T, k = len(chain), min(checks.size(probes, "probes"), chain.size(0))
    frames = None
    if method == "frames" or (method == "auto" and max(lags) > 1):
        frames = TwoPasses(chain, k, rng)
        frames = frames if frames.whole else None
    curves = []
    for lag in lags:
        firsts = np.arange(T + 1 - lag)
        if frames is not None and (method == "frames" or lag >= frames.gap_steps(TOL)):
            lower, estimate = frames.norms(lag).T
            chosen = np.sort(rng.choice(len(firsts), min(_SAMPLE, len(firsts)), replace=False))
            exact = Sweeps(chain, lag, 1e-4, 1e-6, rng).norms(chosen)[:, 0]
            with np.errstate(invalid="ignore"):
                error = np.nanmax(np.nan_to_num(np.abs(estimate[chosen] - exact)))
            estimate = np.maximum(estimate, lower)
            note = (
                f"two passes of {k} probes; worst error of {len(chosen)} windows drawn at random "
                f"{error:.2g} nats, by which upper lies above the estimate"
            )
            curves.append(Curve(firsts + lag, firsts, lower, estimate, estimate + error, 0.0, note))
        else:
            lower, upper = Sweeps(chain, lag, TOL, delta, rng).norms(firsts).T
            note = f"Golub-Kahan-Lanczos of every window, up to {SWEEPS} half-sweeps"
            curves.append(Curve(firsts + lag, firsts, lower, lower, upper, delta, note))
    return curves
