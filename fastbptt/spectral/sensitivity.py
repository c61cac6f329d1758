"""What makes a product large, and what textbooks would say of it (spectral.md section 5)."""

import math
from typing import Any, NamedTuple

import numpy as np

from .. import checks
from ..chains import Chain
from ..matrix_norms import MOST_UNITS
from ..trace_chain import TraceChain
from .norm import log_norm
from .products import Stretch, carry, checked
from .sweeps import window_sweeps

_TOL = 0.05  # nats: by_step is as far off
_DELTA = 1e-9  # at 0.05 the vectors were those of another singular value once in twenty


class Sensitivity(NamedTuple):
    """The derivative of log sigma_1 of P(t,s) with respect to what it is made of."""

    steps: np.ndarray  # (n,): r = s+1 .. t, of J_r
    by_step: np.ndarray  # (n,): the norm of d log sigma_1 / d J_r
    by_unit: np.ndarray  # (n,N): that of its rows: of what reaches each unit of state r
    weight_hh: np.ndarray | None  # (G·H,H) or (L,G·H,H): all steps' sum; see `sensitivity`
    log_norm: float  # nats


def sensitivity(chain: Chain, t: int | None = None, s: int = 0, *, rng: Any = 0) -> Sensitivity:
    """Which steps and which units make P(t,s) large.

    Parameters
    ----------
    chain : Chain
        Of square Jacobians.
    t, s : int
        0 <= s < t <= T; t = None is T.
    rng : int, numpy.random.Generator or None
        Of `log_norm`, which finds the singular vectors, those of another value once in 1e9.

    Returns
    -------
    Sensitivity
        `weight_hh` (G·H,H) in PyTorch's order, of a net of L > 1 layers (L,G·H,H), holds the slopes
        and gates of every step as they are: what W_hh does to the states and through them to the
        slopes is left out.  None for chains that are not of a trace.

    Raises
    ------
    TypeError, ValueError
        Naming the argument; for a product that is zero, and for one whose singular vectors are lost
        in rounding, so that passes forward and back disagree by more than 0.05 nats.

    Notes
    -----
    d log sigma_1 / d J_r = u_r v_{r-1}' |P(t,r)' u| |P(r-1,s) v| / sigma_1, with the unit vectors
    u_r pulled back from u and v_r pushed on from v.  d J_r / d W_hh is the product of two tangents:
    what u_r, pulled through step r, leaves at W_hh's output, and what v_{r-1}, pushed through it,
    brings to its input, h or a gated state.  Accuracy: by_step within 5 %, and as much less as
    passes forward and back agree better than to 0.05 nats.  Memory 2·(t-s)·N float64.

    Examples
    --------
    >>> import numpy as np, fastbptt as fb
    >>> J = np.stack([np.diag([2.0, 1.0])] * 5)
    >>> fb.sensitivity(fb.MatrixChain(J)).by_step.round(6)
    array([0.5, 0.5, 0.5, 0.5, 0.5])
    """
    chain = checked(chain, square=True)
    t, s = chain.window(t, s)
    if t == s:
        raise ValueError(f"t, s: expected s < t, got both {t}")
    norm = log_norm(chain, t, s, tol=1e-9, delta=_DELTA, rng=rng)
    if not math.isfinite(norm.estimate):
        raise ValueError(f"chain: log ||P({t},{s})|| is {norm.estimate}; it has no derivative")
    ahead, pushed = _path(chain, s, t, norm.v)  # states s .. t
    back, pulled = _path(chain, t, s, norm.u)
    back, pulled = back[::-1], pulled[::-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        dots = np.log(np.abs(np.einsum("tn,tn->t", ahead, back)))
        apart = float(np.abs(pushed + pulled + dots - norm.estimate).max())
    if not apart <= _TOL:
        raise ValueError(
            f"chain: passes forward and back over P({t},{s}) disagree by {apart:.2g} nats; "
            f"rounding outweighs the product, whose condition is {norm.condition:.2g}: take fewer "
            "steps, or float64"
        )
    by_step = np.exp(pushed[:-1] + pulled[1:] - norm.estimate)
    gradient = None
    if isinstance(chain, TraceChain):
        gradient = chain.weight_gradient(np.arange(s + 1, t + 1), back[1:], ahead[:-1], by_step)
    by_unit = np.abs(back[1:]) * by_step[:, None]
    return Sensitivity(np.arange(s + 1, t + 1), by_step, by_unit, gradient, norm.estimate)


def _path(chain: Chain, start: int, stop: int, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A unit vector at every state on the way: unit vectors (n+1,N), logs of their norms (n+1,)."""
    vectors, nats = [vector[None].astype(np.float64)], [np.zeros(1)]

    def note(one: Stretch) -> None:
        y = np.asarray(one.history, np.float64)[:, 0]
        norm = np.linalg.norm(y, axis=1)
        with np.errstate(invalid="ignore"):
            vectors.append(y / norm[:, None])
        sign = math.log(abs(one.U[0, 0])) + float(one.e[0]) * math.log(2)
        nats.append(np.log(norm) + sign)

    carry(chain, start, stop, vector[None], note, history=True)
    return np.concatenate(vectors), np.concatenate(nats)


class TextbookBounds(NamedTuple):
    """Upper bounds of log ||P(t,s)|| by products of norms, nats: what the interval is beside.

    `steps` of states of N <= 64 numbers and `classical` hold but for rounding; what else there is
    are sums of upper bounds of `log_norm`, up to 0.01 nats too large and false once in 1e9 each.
    """

    steps: float  # sum of log ||J_r||
    windows: float  # sum of log norms of windows of `lag` steps
    lag: int
    classical: float  # sum of log(max|f'| ||W||), of dense nets and plain ones of a layer, else NaN


def textbook_bounds(
    chain: Chain, t: int | None = None, s: int = 0, *, lag: int = 16, rng: Any = 0
) -> TextbookBounds:
    """Products of norms, which say "exploding" where gradients vanish.

    Parameters
    ----------
    chain : Chain
    t, s : int
        0 <= s <= t <= T; t = None is T.
    lag : int
        Steps of a window.
    rng : int, numpy.random.Generator or None
        Of the norms that are found by Lanczos: windows', and steps' where N > 64.

    Returns
    -------
    TextbookBounds

    Raises
    ------
    TypeError, ValueError
        Naming the argument.

    Examples
    --------
    >>> import math, numpy as np, fastbptt as fb
    >>> J = np.stack([np.diag([2.0, 0.5]), np.diag([0.5, 2.0])] * 8)  # whose product is 1
    >>> bounds = fb.textbook_bounds(fb.MatrixChain(J), lag=2)
    >>> round(bounds.steps / math.log(2), 3), round(abs(bounds.windows), 3)
    (16.0, 0.0)
    """
    chain = checked(chain)
    t, s = chain.window(t, s)
    lag = checks.size(lag, "lag")
    generator = checks.generator(rng)
    n, sizes = t - s, chain.sizes()

    def norms(firsts: np.ndarray, lag: int) -> np.ndarray:
        if lag == 1 and max(sizes) <= MOST_UNITS:  # which takes no longer than Lanczos, too
            return chain.step_norms(firsts)
        if len(sizes) == 1:
            return window_sweeps(chain, lag, firsts, generator)
        one_by_one = [log_norm(chain, r + lag, r, delta=1e-9, rng=generator) for r in firsts]
        return np.array([norm.upper for norm in one_by_one])

    def total(lag: int) -> float:
        whole = np.arange(s, s + n // lag * lag, lag)
        nats = float(norms(whole, lag).sum()) if len(whole) else 0.0
        if n % lag:
            nats += float(norms(np.array([s + n // lag * lag]), n % lag)[0])
        return nats

    return TextbookBounds(total(1), total(lag), lag, chain.classical_bound(t, s))
