"""Norms of many windows at once: all t for one s, all s for one t."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import checks
from ..chains import Chain
from ..kernels.windows import history_norms
from .factors import estimate_note, expected_shortfall, grams, upper_margin
from .products import OfChain, Stretch, carry, checked, orthonormal


class _Windows(NamedTuple):
    t: np.ndarray
    s: np.ndarray
    lower: np.ndarray
    estimate: np.ndarray
    upper: np.ndarray
    delta: float  # risk of each `upper`; 0 where it is exact, NaN where it is no bound
    note: str  # how it was computed
    worst_error: Any = math.nan  # nats, of the windows of two passes that were solved one by one


class Curve(OfChain, _Windows):
    """Norms in nats over windows, as an interval each.

    `t[i]` and `s[i]` say which P(t,s) row i is; `lower` holds but for rounding, `upper` as `note`
    says.  Of B chains lower, estimate and upper are (B,n) and worst_error (B,).  `_replace`, copies
    and pickles keep the chains, which may be large; `Curve(*curve)` is one without.
    """

    of: Sequence[tuple[Chain, float]] = ()  # each chain, and what is added to its norms

    @property
    def textbook(self) -> Any:
        """Products of norms, nats, as `upper`: sums of `Chain.step_bounds`, found when asked for.

        They hold but for rounding, whatever the spectrum, and say "exploding" where gradients
        vanish.  Of states of more than 64 numbers `textbook_bounds` is tighter.  None without a
        chain for each row of `upper` that has all windows (t,s), so that a curve made by hand has
        none.
        """
        inside = [(self.s >= 0) & (self.s <= self.t) & (self.t <= len(one)) for one, _ in self.of]
        if [one.all() for one in inside] != [True] * math.prod(self.upper.shape[:-1]):
            return None
        return np.reshape([sums(one, self.t, self.s) + y for one, y in self.of], self.upper.shape)

    def plot(self, ax: Any = None) -> Any:
        """Draw interval, estimate and textbook bound, if known, on `ax`, or on a new figure.

        It needs matplotlib.
        """
        ax = axes(ax)
        one_start, one_end = np.ptp(self.s) == 0, np.ptp(self.t) == 0
        x = self.t - self.s if one_end and not one_start else self.t
        textbook = self.textbook
        rows = [np.atleast_2d(y) for y in (self.lower, self.estimate, self.upper)]
        for b, (lower, estimate, upper) in enumerate(zip(*rows, strict=True)):
            name = "" if len(rows[0]) == 1 else f" {b}"
            ax.fill_between(x, lower, upper, alpha=0.3, label=f"interval{name}")
            ax.plot(x, estimate, label=f"estimate{name}")
            if textbook is not None:
                bound = np.atleast_2d(textbook)[b]
                ax.plot(x, bound, color="C3", lw=0.6, label=f"textbook bound{name}")
        ax.axhline(0, color="0.6", lw=0.8)
        name = "lag t - s  (steps)" if one_end and not one_start else "step t"
        ax.set(xlabel=name, ylabel="log ||P(t,s)||  (nats)")
        ax.legend(frameon=False)
        return ax


def sums(chain: Chain, t: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Sums of the bounds of steps s+1 .. t: an infinite one, or a NaN, in those that hold it."""
    steps = chain.step_bounds()

    def total(y: np.ndarray) -> np.ndarray:
        so_far = np.concatenate([[0.0], np.cumsum(y)])
        return so_far[t] - so_far[s]

    known = total(np.where(np.isfinite(steps), steps, 0.0))
    with np.errstate(invalid="ignore"):
        for odd, here in ((-math.inf, np.isneginf(steps)), (math.inf, np.isposinf(steps))):
            known = known + np.where(total(here) > 0, odd, 0.0)
        return known + np.where(total(np.isnan(steps)) > 0, math.nan, 0.0)


def axes(ax: Any) -> Any:
    """ax, or the one of a new figure."""
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(layout="constrained").subplots()
    return ax


def several(chains: Any) -> list[Chain]:
    """Chains of equally many steps, as a list, or an error in words."""
    known = [checked(one) for one in chains]
    lengths = sorted({len(one) for one in known})
    if len(lengths) != 1:
        raise ValueError(f"chain: expected one or several, equally long, got lengths {lengths}")
    return known


def stacked(parts: list[Any]) -> Any:
    """Curves or maps of several chains as one whose arrays have an axis of chains before."""
    fields = ("lower", "estimate", "upper", "worst_error")
    both: dict[str, Any] = {
        name: np.stack([getattr(one, name) for one in parts]) for name in fields
    }
    notes: Any = [one[-2] for one in parts]
    if isinstance(parts[0], Curve):
        deltas = [one.delta for one in parts]
        both["delta"], both["note"] = max(deltas), "; ".join(dict.fromkeys(notes))
        if np.isnan(deltas).any():
            both["delta"] = math.nan
    else:
        both["delta"] = np.stack([one.delta for one in parts])
        rows = zip(*notes, strict=True)
        both["notes"] = tuple("; ".join(dict.fromkeys(row)) for row in rows)
    whole = parts[0]._replace(**both)
    whole.of = [pair for one in parts for pair in one.of]
    return whole


def curve_of(chain: Chain, added: float, *fields: Any) -> Curve:
    """A curve that knows its chain, and how many nats the norm of what was carried adds."""
    curve = Curve(*fields)
    curve.of = [(chain, added)]
    return curve


class _History:
    """The watcher that turns each stretch into norms for every one of its states."""

    def __init__(self, R0: np.ndarray) -> None:
        self._R0, self._parts = R0, [np.zeros((0, 3))]

    def __call__(self, stretch: Stretch) -> None:
        if np.isnan(stretch.R).any():  # a step whose results are not finite, and the last
            self._parts.append(np.full((1, 3), np.nan))
            return
        G, shifts = grams(stretch.history)
        out = np.empty((len(G), 3))
        history_norms(G, shifts, stretch.U, stretch.e, self._R0, out)
        self._parts.append(out)

    def norms(self, states: int) -> np.ndarray:
        """(states,3): log ||P V||, log ||P Omega||, s2/s1; NaN from the chain's first on."""
        known = np.concatenate(self._parts)
        return np.concatenate([known, np.full((states - len(known), 3), np.nan)])


def _from_block(
    chain: Chain, start: int, stop: int, probes: int, delta: float, rng: Any
) -> tuple[Any, ...]:
    """lower, estimate and upper of every product from `start` on towards `stop`, risk and note."""
    N = chain.size(start)
    k = min(checks.size(probes, "probes"), N)
    omega = checks.generator(rng).standard_normal((N, k))
    rows, R0 = orthonormal(omega, chain.dtype)
    if k == N:
        rows, R0 = np.eye(N, dtype=chain.dtype), np.eye(N)
    watcher = _History(R0)
    carry(chain, start, stop, rows, watcher, history=True)
    first = np.array([[0.0, 0.0, 1.0]])  # P(s,s), the identity
    norms = np.concatenate([first, watcher.norms(abs(stop - start))])
    lower, gaussian, ratio = norms.T
    if k == N:
        return (
            lower,
            lower.copy(),
            lower.copy(),
            0.0,
            estimate_note(N, k),
        )
    upper = np.maximum(gaussian + upper_margin(k, delta), lower)
    estimate = np.minimum(lower + (1 - ratio**2) * expected_shortfall(N, k), upper)
    estimate[0] = upper[0] = 0.0
    note = (
        f"one pass of {k} Gaussian probes; estimate = lower + {expected_shortfall(N, k):.2f} nats, "
        "the mean shortfall, times 1 - (s2/s1)^2 of the block"
    )
    return lower, estimate, upper, delta, note


def growth_from(
    chain: Chain | Sequence[Chain],
    s: int = 0,
    *,
    probes: int = 8,
    delta: float = 0.05,
    rng: Any = 0,
) -> Curve:
    """log ||P(t,s)|| for all t = s .. T, in one pass.

    Parameters
    ----------
    chain : Chain, or list of them
        Of several, equally long, as of the sequences of a batch, the curves get a leading axis.
    s : int
    probes : int
        Gaussian vectors that are pushed on; with as many as the state has numbers it is exact.
    delta : float
        Probability with which `upper` may be wrong, for one t; for all of them take delta / T.
    rng : int, numpy.random.Generator or None

    Returns
    -------
    Curve
        Of T - s + 1 windows.

    Raises
    ------
    TypeError, ValueError
        Naming the argument.

    Notes
    -----
    Bounds as `JacobianStream`'s, for every state on the way.  What a product such as A^-n A^n loses
    in rounding they do not see; `log_norm` does (`condition`).

    Examples
    --------
    >>> import numpy as np, fastbptt as fb
    >>> chain = fb.MatrixChain(np.stack([0.5 * np.eye(4)] * 10))
    >>> fb.growth_from(chain).estimate[[0, 1, 10]] / np.log(2)
    array([  0.,  -1., -10.])
    """
    if isinstance(chain, (list, tuple)):
        many = several(chain)
        return stacked([growth_from(c, s, probes=probes, delta=delta, rng=rng) for c in many])
    chain = checked(chain)
    t, s = chain.window(None, s)
    delta = checks.probability(delta, "delta")
    found = _from_block(chain, s, t, probes, delta, rng)
    states = np.arange(s, t + 1)
    return curve_of(chain, 0.0, states, np.full(len(states), s), *found)


def growth_to(
    chain: Chain | Sequence[Chain],
    t: int | None = None,
    cotangent: Any = None,
    *,
    probes: int = 8,
    delta: float = 0.05,
    rng: Any = 0,
) -> Curve:
    """log ||P(t,s)|| for all s = t, t-1 .. 0, or log ||P(t,s)' cotangent||, in one pass back.

    Parameters
    ----------
    chain : Chain, or list of them
        Of several, equally long, the curves get a leading axis.
    t : int
        None is T.
    cotangent : ndarray (N_t,) of the chain's dtype, optional; of B chains (B,N_t)
        dL/d state t.  With it the curve is the norm of the gradient by lag, dL/d state s, exact to
        rounding: lower, estimate and upper are equal.
    probes, delta, rng
        As of `growth_from`; not used with a cotangent.

    Returns
    -------
    Curve
        Of t + 1 windows, in the order of the lag.

    Raises
    ------
    TypeError, ValueError
        Naming the argument.

    Examples
    --------
    >>> import numpy as np, fastbptt as fb
    >>> chain = fb.MatrixChain(np.stack([0.5 * np.eye(4)] * 10))
    >>> curve = fb.growth_to(chain, cotangent=np.array([3.0, 0, 0, 4]))
    >>> np.exp(curve.estimate[:3])
    array([5.  , 2.5 , 1.25])
    """
    if isinstance(chain, (list, tuple)):
        many = several(chain)
        given = [None] * len(many) if cotangent is None else list(cotangent)
        if len(given) != len(many):
            raise ValueError(f"cotangent: expected {len(many)} of them, got {len(given)}")
        options = {"probes": probes, "delta": delta, "rng": rng}
        pairs = zip(many, given, strict=True)
        return stacked([growth_to(c, t, u, **options) for c, u in pairs])
    chain = checked(chain)
    t, _ = chain.window(t, 0)
    delta = checks.probability(delta, "delta")
    states = np.arange(t, -1, -1)
    ends = np.full(len(states), t)
    if cotangent is None:
        found = _from_block(chain, t, 0, probes, delta, rng)
        return curve_of(chain, 0.0, ends, states, *found)
    u = checks.shaped(cotangent, "cotangent", chain.dtype, (chain.size(t),)).astype(np.float64)
    peak = float(np.abs(u).max())  # whose square need not be a float64
    note = "exact to rounding: the cotangent pulled back"
    if peak == 0:
        curve = np.full(len(states), -math.inf)
        return _exact(chain, -math.inf, ends, states, curve, note)
    with np.errstate(invalid="ignore"):
        u = u / peak
    length = float(np.linalg.norm(u))
    watcher = _History(np.eye(1))
    carry(chain, t, 0, (u / length)[None].astype(chain.dtype), watcher, history=True)
    curve = np.concatenate([[0.0], watcher.norms(t)[:, 0]])
    nats = math.log(length) + math.log(peak)
    curve += nats
    return _exact(chain, nats, ends, states, curve, note)


def _exact(
    chain: Chain, added: float, t: np.ndarray, s: np.ndarray, norms: np.ndarray, note: str
) -> Curve:
    """The curve of norms that are known."""
    return curve_of(chain, added, t, s, norms, norms.copy(), norms.copy(), 0.0, note)
