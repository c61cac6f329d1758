"""log ||P(t,s)|| as an interval: sweeps forward and back (spectral.md section 2)."""

import math
from typing import Any, NamedTuple

import numpy as np

from .. import checks
from ..chains import Chain
from ..kernels.lanczos import bounds
from .factors import expected_shortfall, room_of, upper_margin
from .products import (
    Carried,
    OfChain,
    carry,
    checked,
    factor,
    log_norm_of,
    one_vector,
    orthonormal,
)
from .sweeps import log_norms_of_steps

METHODS = ("auto", "block", "lanczos", "explicit")
# The product itself, which is exact, where it takes no longer than the sweeps.  On one core of a
# Zen 4, float32, as a share of Lanczos' time: N = 32 .74 at 16 steps, .87 at 32, 1.1 at 64; N = 64
# .51 at 4, .84 at 8, 1.3 at 16; N = 128 .61 at 1, .87 at 2, 1.5 at 4; N = 16 .9 at 32, 2.3 at 1024,
# 16 at 100,000.  With N = 8 it is 1.4 at 1024, 2.6 at 10,000, .6 at 100,000.
_EXPLICIT = 8  # numbers of a state, however many steps
_EXPLICIT_STEPS, _EXPLICIT_COST = 32, 40_000  # steps, and steps times N²
_SPENT = 4e-16  # beside the largest: the Krylov space has been used up
_POINTS = 64  # where the left and the right vector are compared
_CAUTION = 8  # against products of 400 digits `rounding` came out up to 4 times too small
_MOST_ROUNDING = 0.1  # nats: what may be told as a wider interval; beyond it nothing is known
_OF_WIDTH = 1e-3  # rounding that is so little of an interval is no matter
AFFORDABLE = 1e10  # multiply-adds of the product itself, where sweeps have met their own rounding


class _Interval(NamedTuple):
    lower: float  # log ||P|| is at least this, but for rounding
    estimate: float
    upper: float  # log ||P|| is at most this, but with probability delta
    delta: float  # 0 where they are exact
    half_sweeps: int  # passes over the chain that the interval took
    converged: bool  # whether upper - lower <= tol
    u: np.ndarray  # (N_t,): left singular vector, as far as it is known
    v: np.ndarray  # (N_s,): right
    condition: float  # largest 1/|u_r·v_r| on the way: rounding of a step counts so much more
    method: str  # what found it: "explicit" too where rounding made the product itself be tried
    rounding: float  # nats by which passes forward and back disagree, or eps·condition if larger


class NormEstimate(OfChain, _Interval):
    """What `log_norm` returns; natural logs, so norms are in nats.

    `_replace`, copies and pickles keep the chain; `NormEstimate(*norm)` is one without.
    """

    of: tuple[Chain, int, int] | tuple[()] = ()  # the chain, t and s; no part of the tuple

    @property
    def textbook(self) -> Any:
        """`textbook_bounds` of the same product, found when asked for: some 20 passes over it.

        Its `steps` holds but for rounding where N <= 64, and else as `upper` does, with a risk of
        1e-9 a step.  None without a chain.
        """
        if not self.of:
            return None
        from .sensitivity import textbook_bounds

        return textbook_bounds(*self.of)

    def __str__(self) -> str:
        how = f"{self.method}, {self.half_sweeps} half-sweeps"
        sure = f"upper false with probability {self.delta:g}" if self.delta else "exact"
        if math.isnan(self.estimate):
            sure = "not a number"
        elif not (self.converged or self.rounding <= _MOST_ROUNDING):
            sure = f"lost in rounding: condition {self.condition:.2g}"
        return (
            f"log ||P|| = {self.estimate:.6g} nats, in [{self.lower:.6g}, {self.upper:.6g}] "
            f"({how}; {sure})"
        )


def log_norm(
    chain: Chain,
    t: int | None = None,
    s: int = 0,
    *,
    tol: float = 1e-3,
    delta: float = 0.05,
    max_sweeps: int = 64,
    method: str = "auto",
    probes: int = 8,
    rng: Any = 0,
) -> NormEstimate:
    """log of the spectral norm of P(t,s) = J_t ... J_{s+1}, as an interval.

    Parameters
    ----------
    chain : Chain
        Of a trace, of given matrices, or your own.
    t, s : int
        0 <= s <= t <= T; t = None is T.  P(s,s) is the identity.
    tol : float
        Width in nats at which to stop.
    delta : float
        Probability with which `upper` may be wrong.
    max_sweeps : int
        Half-sweeps (applications of P or P') at most; the product itself, where rounding makes it
        be tried (see the notes), is one more.
    method : str
        "explicit": the product itself, as a graded factor; exact to rounding.  "lanczos":
        Golub-Kahan-Lanczos from one Gaussian vector.  "block": `probes` Gaussian vectors and
        subspace iteration, whose first pass is that of `JacobianStream`.  "auto": explicit for
        states of N <= 8 numbers, or over n <= 32 steps with n N² <= 40,000, where it takes no
        longer; block where no more than two half-sweeps are allowed, else lanczos.
    probes : int
        Of "block"; at most N_s are used.
    rng : int, numpy.random.Generator or None
        Draws the start.

    Returns
    -------
    NormEstimate

    Raises
    ------
    TypeError, ValueError
        Naming the argument.

    Notes
    -----
    `lower` is the norm on a subspace.  `upper` of "lanczos" is where the Lanczos polynomial,
    which grows beyond the largest Ritz value, reaches 1/epsilon, epsilon = delta sqrt(pi/2)/||w||
    for a Gaussian start w: beyond it w would have less than epsilon of the first singular vector
    (Kuczynski and Wozniakowski 1992; Hochstenbach 2013).  That of "block" after m half-sweeps is
    (log ||(P'P).. P Omega|| + what `JacobianStream` adds to its upper)/m.  Neither assumes anything
    of the spectrum.  Rounding moves all three by up to about T·eps·sqrt(N) times `condition`, and
    as a rule by the root of T of it.  How much it did, `rounding` says: log |u'P v| is found once
    by pushing v and once by pulling u, and at states between.  Where that is more than `tol` and
    than the rule allows, the product itself is tried if 1e10 multiply-adds are enough for it; if
    it fares no better the interval is wider by 8 times `rounding`, and where that is above 0.1
    nats it is (-inf, sum of log ||J_r||): the digits that would tell more are lost, and
    `estimate` may be anything.

    Examples
    --------
    >>> import numpy as np, fastbptt as fb
    >>> chain = fb.RNN(3, 32, rng=0).trace(np.ones((500, 3), np.float32)).chain()
    >>> norm = fb.log_norm(chain)
    >>> bool(norm.converged and norm.lower <= norm.estimate <= norm.upper < 0)
    True
    """
    chain = checked(chain)
    t, s = chain.window(t, s)
    tol = checks.number(tol, "tol", least=0)
    delta = checks.probability(delta, "delta")
    max_sweeps = checks.size(max_sweeps, "max_sweeps")
    method = checks.choice(method, "method", METHODS)
    probes = checks.size(probes, "probes")
    generator = checks.generator(rng)
    if method == "auto":
        N = min(chain.size(t), chain.size(s))
        short = t - s <= _EXPLICIT_STEPS and (t - s) * N * N <= _EXPLICIT_COST
        few = "block" if max_sweeps <= 2 else "lanczos"
        method = "explicit" if N <= _EXPLICIT or short else few
    if method == "explicit":
        found = _explicit(chain, t, s)
    elif method == "block":
        found = _block(chain, t, s, tol, delta, max_sweeps, probes, generator)
    else:
        found = _lanczos(chain, t, s, tol, delta, max_sweeps, generator)
    found = _honest(chain, t, s, found, tol, generator)
    found.of = (chain, t, s)
    return found


def _honest(
    chain: Chain, t: int, s: int, found: NormEstimate, tol: float, rng: np.random.Generator
) -> NormEstimate:
    """What is found, if rounding has left it standing; else the product itself, or less."""
    n, N = t - s, max(chain.size(t), chain.size(s))
    rule = max(tol, 16 * float(np.finfo(chain.dtype).eps) * math.sqrt(N * (1 + n)))
    if not found.rounding > max(rule, _OF_WIDTH * (found.upper - found.lower)):
        return found
    if found.method != "explicit" and n * float(N) ** 3 <= AFFORDABLE:
        product = _explicit(chain, t, s)
        if product.rounding < found.rounding:
            found = product._replace(half_sweeps=found.half_sweeps + 1)
        if not found.rounding > rule:
            return found
    wider = _CAUTION * found.rounding
    lower, upper = found.lower - wider, found.upper + wider
    if found.rounding > _MOST_ROUNDING:
        steps = log_norms_of_steps(chain, t, s, rng)
        lower, upper = -math.inf, max(found.estimate, float(steps.sum()))
    return found._replace(lower=lower, upper=upper, converged=False)


def _explicit(chain: Chain, t: int, s: int) -> NormEstimate:
    """All of P, from the smaller side: P' if N_t < N_s."""
    forward = chain.size(s) <= chain.size(t)
    start, stop = (s, t) if forward else (t, s)
    n = chain.size(start)
    carried = carry(chain, start, stop, np.eye(n, dtype=chain.dtype))
    norm = log_norm_of(carried.U, carried.e)
    near, far = _leading(carried)
    v, u = (near, far) if forward else (far, near)
    sure = not math.isnan(norm)
    seen = _examine(chain, t, s, u, v, norm)
    return NormEstimate(norm, norm, norm, 0.0, 1, sure, u, v, seen[0], "explicit", seen[1])


def _leading(carried: Carried) -> tuple[np.ndarray, np.ndarray]:
    """The singular vectors of the largest value: in the block's coordinates, and after it."""
    scaled, _ = factor(carried.U, carried.e)
    if not np.isfinite(scaled).all():
        return np.full(len(scaled), np.nan), np.full(carried.frame.shape[1], np.nan)
    left, _, right = np.linalg.svd(scaled)
    return right[0], left[:, 0] @ carried.frame.astype(np.float64)


def _block(
    chain: Chain,
    t: int,
    s: int,
    tol: float,
    delta: float,
    max_sweeps: int,
    probes: int,
    generator: np.random.Generator,
) -> NormEstimate:
    """Subspace iteration: a Gaussian block pushed, what it becomes pulled, and so on."""
    N, k = chain.size(s), min(probes, chain.size(s), chain.size(t))
    rows, total = orthonormal(generator.standard_normal((N, k)), chain.dtype)
    nats = 0.0  # that `total`, the factor of all sweeps and of Omega, was scaled down by
    lower, upper, estimate = -math.inf, math.inf, -math.inf
    known: dict[bool, np.ndarray] = {}
    one, m = math.nan, 0
    while m < max_sweeps and not upper - lower <= tol:
        forward = m % 2 == 0
        carried = carry(chain, *((s, t) if forward else (t, s)), rows)
        m += 1
        near, far = _leading(carried)
        known = {forward: far, not forward: near @ rows.astype(np.float64)}
        rows = carried.frame
        one = log_norm_of(carried.U, carried.e)
        if not math.isfinite(one):  # zero on a random block, or NaN
            lower = upper = estimate = one
            delta = 0.0
            break
        scaled, grown = factor(carried.U, carried.e)
        total, nats = scaled @ total, nats + grown
        norm = float(np.linalg.norm(total, 2))
        total, nats = total / norm, nats + math.log(norm)
        lower = max(lower, one)
        if k == N:
            upper = estimate = lower
            delta = 0.0
            break
        upper = max(min(upper, (nats + upper_margin(k, delta)) / m), lower)
        gap = 1.0
        if k > 1:
            first, second = np.linalg.svd(scaled, compute_uv=False)[:2]
            gap = 1 - (second / first) ** 2
        estimate = min(upper, lower + gap * expected_shortfall(N, k) * (m == 1))
    u, v = known[True], known[False]
    converged = upper == lower or upper - lower <= tol
    seen = _examine(chain, t, s, u, v, one)
    return NormEstimate(
        lower, estimate, upper, delta, m, converged, u, v, seen[0], "block", seen[1]
    )


def _lanczos(
    chain: Chain,
    t: int,
    s: int,
    tol: float,
    delta: float,
    max_sweeps: int,
    generator: np.random.Generator,
) -> NormEstimate:
    omega = generator.standard_normal(chain.size(s))
    length = float(np.linalg.norm(omega))
    left: list[np.ndarray] = []
    right = [omega / length]
    numbers = np.zeros((1, max_sweeps + 1))  # alpha and beta in turn
    found = np.empty((1, 2))
    base, m, lower, upper = 0.0, 0, -math.inf, math.inf  # all is relative to the first product
    discord = 0.0  # of sweeps forward and sweeps back, which are one another's transposes
    while m < max_sweeps:
        forward = m % 2 == 0
        own, other = (left, right) if forward else (right, left)
        y, nats = one_vector(chain, *((s, t) if forward else (t, s)), other[-1])
        base = nats if m == 0 else base
        if m == 0 and not math.isfinite(nats):  # zero on a random vector, or NaN
            sure = not math.isnan(nats)
            seen = (math.inf, 0.0) if sure else (math.nan, math.nan)
            u, v = np.zeros(chain.size(t)), right[0]
            return NormEstimate(nats, nats, nats, 0.0, 1, sure, u, v, seen[0], "lanczos", seen[1])
        y = y * math.exp(nats - base)
        # along the last of `own` it is what the sweep before found, along the others nothing
        apart = np.zeros(len(own))
        if m > 0:
            apart[-1:] = -float(numbers[0, m - 1])
        for again in range(2):
            for i, one in enumerate(own):
                dot = one @ y
                y = y - dot * one
                apart[i] += dot * (again == 0)
        norm = float(np.linalg.norm(y))
        numbers[0, m] = norm
        discord = max(discord, *np.abs(apart).tolist()) if len(own) else discord
        m += 1
        bounds(numbers, m, room_of(delta, length), found)
        lower, upper = (math.log(x) + base for x in found[0].tolist())
        spent = norm <= _SPENT * found[0, 0] or len(own) + 1 > len(y)
        upper, delta = (lower, 0.0) if spent else (upper, delta)
        if norm > 0:
            own.append(y / norm)
        if spent or upper - lower <= tol:
            break
    B = np.zeros((len(left), len(right)))
    n = min(B.shape)
    B[np.arange(n), np.arange(n)] = numbers[0, : 2 * n : 2]
    n = min(len(left), len(right) - 1)
    B[np.arange(n), np.arange(1, n + 1)] = numbers[0, 1 : 2 * n : 2]
    X, _, Y = np.linalg.svd(B)
    u, v = X[:, 0] @ np.array(left), Y[0] @ np.array(right)
    condition, rounding = _examine(chain, t, s, u, v, lower)
    rounding = max(rounding, discord * math.exp(base - lower))
    sure = bool(upper - lower <= tol)
    return NormEstimate(lower, lower, upper, delta, m, sure, u, v, condition, "lanczos", rounding)


def checkpoints(s: int, t: int) -> np.ndarray:
    """Some states between s and t, both ends among them."""
    return np.unique(np.linspace(s, t, min(_POINTS, t - s) + 1).round().astype(int))


def along(
    chain: Chain, states: np.ndarray, vector: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray]:
    """A unit vector carried through `states` in their order: n unit vectors, log norms (n,)."""
    vectors, nats = [vector.astype(np.float64)], [0.0]
    for start, stop in zip(states[:-1].tolist(), states[1:].tolist(), strict=True):
        y, grown = one_vector(chain, start, stop, vectors[-1])
        vectors.append(y)
        nats.append(nats[-1] + grown)
    return vectors, np.array(nats)


def _examine(
    chain: Chain, t: int, s: int, u: np.ndarray, v: np.ndarray, norm: float
) -> tuple[float, float]:
    """The condition, and by how many nats log |u'P v| differs from `norm` on the way.

    u is pulled back from t and v pushed on from s; their products at all states should be the same
    (spectral.md section 5).  Where rounding has grown over what is left of u or v they are not.
    """
    if not (np.isfinite(u).all() and np.isfinite(v).all()):
        return math.nan, math.nan
    states = checkpoints(s, t)
    ahead, pushed = along(chain, states, v)
    back, pulled = along(chain, states[::-1], u)
    dots = np.array([abs(a @ b) for a, b in zip(ahead, back[::-1], strict=True)])
    with np.errstate(divide="ignore", invalid="ignore"):
        condition = float((1 / dots).max())
        apart = float(np.abs(pushed + pulled[::-1] + np.log(dots) - norm).max())
    if norm == -math.inf:  # of zeros, which rounding does not move
        return condition, 0.0
    return condition, max(apart, float(np.finfo(chain.dtype).eps) * condition)
