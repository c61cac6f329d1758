"""diagnose(): one pass over a sequence, and what it says in words."""

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import checks
from ..kernels.activations import MAX_SLOPE
from ..network import Network
from ..networks import NETWORKS, RNN
from ..spectral import JacobianStream, StreamResult
from .gradients import (
    GradientByLag,
    gradient_by_lag,
    joined,
    lag_of_factor,
    loss_gradient,
    parted,
)
from .sources import OneHot

FACTOR = 1000.0  # what counts as gone, or as blown up
_SATURATED = 0.05  # of the largest slope
_PIECES = 64  # chunks of the pass, and points of the growth curve
_LAGS_SHOWN = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found: `str()` is the report, `to_json()` the figures, `plot()` the pictures.

    Attributes
    ----------
    net : str
    steps_per_second : float
        Of the stream.
    stream : StreamResult
        Interval, exponents and growth curve; arrays over the batch (B,).
    classical_rate : float
        log(max|f'| ||W_hh||), nats per step: the textbook's bound of the growth, which is one for
        plain nets of one layer; NaN for others.
    saturated : float
        Share of (step, unit) of the last layer whose slope is below 1/20 of the largest; for relu,
        of those at 0; of a gated net the share of all its gates, at the places BPTT goes back from.
    gradient : GradientByLag
    lag : int or None
        Steps after which the gradient is beyond a factor of 1000; None if it is not.  Of the
        batch rows that the verdict is about: those that explode, or all.
    lag_extrapolated : bool
        Whether `lag` comes from the rate, being more than the steps BPTT went back.
    """

    net: str
    steps_per_second: float
    stream: StreamResult
    classical_rate: float
    saturated: float
    gradient: GradientByLag
    lag: int | None
    lag_extrapolated: bool

    @property
    def verdict(self) -> str:
        """vanishes, explodes or neither: the interval decides, of every sequence or of any."""
        return _verdict(self.stream)

    @property
    def median(self) -> np.ndarray:
        """The gradient's log-norm by lag, (L,), the median over places and `lag`'s batch rows."""
        return self.gradient.median(_decisive(self.stream))

    @property
    def sentence(self) -> str:
        """The verdict and the lag in words."""
        product = f"the product over {self.stream.steps:,} steps has"
        shrunk, grown = _power(self.stream.upper.max()), _power(self.stream.lower.max())
        says = {
            "vanishes": f"The gradient vanishes: {product} shrunk to {shrunk} or less",
            "explodes": f"The gradient explodes: {product} grown to {grown} or more",
            "neither": f"The gradient neither vanishes nor explodes: {product} no clear trend",
        }[self.verdict]
        if self.lag is None and np.isnan(self.median[0]):
            return f"{says}; the loss has no gradient at the places that BPTT went back from."
        if self.lag is None:
            longest = self.gradient.lags[-1]
            steps = _steps(longest)
            return f"{says}; by BPTT it stays within a factor of {FACTOR:g} for {steps}."
        if self.lag_extrapolated:
            grows, how = self.verdict == "explodes", "extrapolated by the rate"
        else:
            at = self.median[self.gradient.lags >= self.lag][0]
            grows, how = at > 0, "the median of BPTT from several places"
        change = f"grown beyond {FACTOR:g} times" if grows else f"fallen below 1/{FACTOR:g} of"
        return f"{says}; it has {change} its size after {_steps(self.lag)} ({how})."

    def __str__(self) -> str:
        s, T = self.stream, max(self.stream.steps, 1)
        k = s.exponents.shape[1]
        row = int(s.exponents[:, 0].argmax())
        rate, error = s.exponents[row, 0], s.standard_error[row, 0]
        bound, claim = "none for a gated or stacked net", ""
        if not math.isnan(self.classical_rate):
            bound = f"max|f'| ||W_hh|| = {math.exp(self.classical_rate):.4g} a step"
            claim = f"at most {self.classical_rate * T:,.6g} nats, so it "
            claim += "vanishes" if self.classical_rate < 0 else "could explode: says nothing"
        lags = zip(self.gradient.lags, self.median / math.log(10), strict=True)
        by_lag = [f"{lag}: {_decades(y)}" for lag, y in lags if lag in _LAGS_SHOWN]
        rows = [
            ("net", self.net),
            ("steps", f"{s.steps:,}, {self.steps_per_second:,.0f} a second with {k} probes"),
            ("log ||dh_T/dh_0||", f"{_span(s.lower)} to {_span(s.upper)} nats"),
            ("", f"estimate {_span(s.estimate)}; upper end false with probability {s.delta:g}"),
            ("per step", f"{_span(s.lower / T)} to {_span(s.upper / T)} nats"),
            ("Lyapunov exponent", f"{rate:.5f} ± {error:.5f} nats per step, the largest"),
            ("classical bound", bound),
            *([("", claim)] if claim else []),
            ("saturated", f"{self.saturated:.1%} of units and steps, slope below 1/20 of max"),
            ("gradient by lag", ",  ".join(by_lag)),
        ]
        return "\n".join(f"{name:<18} {value}" for name, value in rows) + f"\n\n{self.sentence}"

    def to_json(self) -> str:
        """All figures as one JSON object; infinities and NaN, which JSON lacks, as strings."""
        figures = {name: plain(y) for name, y in vars(self).items()}
        return json.dumps({**figures, "verdict": self.verdict, "sentence": self.sentence})

    def plot(self, ax: Any = None) -> Any:
        """Growth of the product with its interval, and the gradient's norm by lag.

        Parameters
        ----------
        ax : matplotlib Axes, or two of them, optional
            One gets the growth alone; a new figure with two if None.

        Returns
        -------
        Axes or ndarray of two Axes
        """
        from .plots import plot

        return plot(self, ax)


def _verdict(s: StreamResult) -> str:
    if (s.upper < -math.log(FACTOR)).all():
        return "vanishes"
    return "explodes" if (s.lower > math.log(FACTOR)).any() else "neither"


def _decisive(s: StreamResult) -> np.ndarray:
    """The batch rows that the verdict is about, (B,) of bool."""
    if _verdict(s) == "explodes":
        return s.lower > math.log(FACTOR)
    return np.ones(s.lower.shape, bool)


def _steps(n: int) -> str:
    return f"{n:,} step" if n == 1 else f"{n:,} steps"


def _power(nats: float) -> str:
    """e^nats as a power of ten."""
    return f"10^{nats / math.log(10):,.0f}" if math.isfinite(nats) else "0" if nats < 0 else "inf"


def _decades(y: float) -> str:
    """10^y, also where it is no double."""
    if not math.isfinite(y):
        return "0" if y < 0 else str(y)
    mantissa, exponent = f"{10 ** (y % 1):.1f}", math.floor(y)
    return f"1.0e{exponent + 1:+03d}" if mantissa == "10.0" else f"{mantissa}e{exponent:+03d}"


def _span(y: np.ndarray) -> str:
    """The value, or the least and the largest of several."""
    low, high = (f"{z:,.2f}" if 100 < abs(z) < 1e15 else f"{z:.6g}" for z in (y.min(), y.max()))
    return low if low == high else f"({low} .. {high})"


def plain(y: Any) -> Any:
    """y in JSON's types."""
    if hasattr(y, "_asdict"):
        return {name: plain(z) for name, z in y._asdict().items()}
    if isinstance(y, (np.ndarray, np.generic)):
        y = y.tolist()
    if isinstance(y, dict):
        return {name: plain(z) for name, z in y.items()}
    if isinstance(y, (list, tuple)):
        return [plain(z) for z in y]
    return str(y) if isinstance(y, float) and not math.isfinite(y) else y


def _saturated(output: np.ndarray, nonlinearity: str) -> int:
    """How many outputs have a slope below 1/20 of the largest."""
    if nonlinearity == "relu":
        return int((output <= 0).sum())
    slope = output * (1 - output) if nonlinearity == "sigmoid" else (1 - output) * (1 + output)
    return int((slope < _SATURATED * MAX_SLOPE[nonlinearity]).sum())


def _classical_rate(net: Network) -> float:
    """log(max|f'| ||W_hh||), NaN where the net is gated or stacked."""
    if not isinstance(net, RNN) or net.num_layers > 1:
        return math.nan
    bound = MAX_SLOPE[net.nonlinearity] * np.linalg.norm(net.weight_hh_l0.astype(np.float64), 2)
    return math.log(bound) if bound > 0 else -math.inf


def _saturated_gates(inside: dict[str, np.ndarray]) -> float:
    """The share of gate values whose slope is below 1/20 of the largest."""
    flat = []
    for letter, gate in inside.items():
        if letter in "gn":  # by tanh, all others by the logistic function
            flat.append((1 - gate) * (1 + gate) < _SATURATED)
        elif letter not in "hc":
            flat.append(gate * (1 - gate) < _SATURATED * 0.25)
    return float(np.mean(flat))


def _pieces(x: Any, B: int) -> Iterator[tuple[int, np.ndarray]]:
    """(t0, chunk (T,B,I)) of all of x, each found finite."""
    T, I = x.shape[0], x.shape[-1]
    length = -(-T // _PIECES)
    for t0 in range(0, T, length):
        chunk = x[t0 : t0 + length].reshape(-1, B, I)
        bad = np.argwhere(~np.isfinite(chunk))
        if bad.size:
            t, b, i = bad[0]
            raise ValueError(
                f"x: expected finite numbers, got {chunk[t, b, i]} at step {t0 + t}, batch row {b}"
            )
        yield t0, chunk


def check_state(output: np.ndarray, t0: int) -> None:
    """Refuse a state that has overflowed: no gradient of it means anything."""
    if not np.isfinite(output).all():
        t, b, _ = np.argwhere(~np.isfinite(output))[0]
        raise ValueError(
            f"x: the net's state is no longer finite from step {t0 + t} on, batch row {b}: expected"
            " fewer steps, or float64"
        )


def diagnose(
    net: Network,
    x: Any,
    *,
    probes: int = 8,
    delta: float = 0.05,
    places: int = 8,
    longest_lag: int = 512,
    rng: Any = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Does the gradient vanish or explode on this sequence, and at what lag?

    Parameters
    ----------
    net : RNN, GRU, LSTM or MGU
        Of one direction, not `batch_first`.
    x : ndarray (T,I) or (T,B,I), or OneHot
        At least 2 steps, finite, of the net's dtype.
    probes, delta
        Of `JacobianStream`, and of its `result`.
    places : int
        Places, evenly spread over the sequence, from which BPTT goes back.
    longest_lag : int
        How many steps it goes back, at most.
    rng : int, numpy.random.Generator or None
        Draws the probes, and the readout, from U(-1/sqrt(H), 1/sqrt(H)), of the next-step loss:
        cross-entropy for OneHot, else half the squared error.
    progress : callable, optional
        Called with the steps done and the steps in all.

    Returns
    -------
    Diagnosis
        The gradient vanishes if the upper end of the interval of ||dh_T/dh_0|| is below 1/1000,
        explodes if the lower end is above 1000.

    Raises
    ------
    TypeError, ValueError
        Naming the argument; for NaN and Inf in x, or in the net's state, the step and the batch
        row.

    Examples
    --------
    >>> import numpy as np, fastbptt as fb
    >>> x = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
    >>> fb.diagnose(fb.RNN(3, 16, rng=0), x).verdict
    'vanishes'
    """
    if not isinstance(net, Network):
        raise TypeError(f"net: expected one of {', '.join(NETWORKS)}, got {type(net).__name__}")
    if net.batch_first:
        raise ValueError("net: expected batch_first=False, as x is read by chunks of time")
    if isinstance(x, OneHot):
        checks.one_hot(x.shape, x.dtype, net.input_size, net.dtype)
    else:
        x = checks.sequence(x, "x", net.dtype, net.input_size, batch_first=False)
    T, H, I = x.shape[0], net.hidden_size, net.input_size
    B = x.shape[1] if len(x.shape) == 3 else 1
    if T < 2 or B < 1:
        raise ValueError(f"x: expected at least 2 steps and 1 row, got shape {x.shape}")
    generator, delta = checks.generator(rng), checks.probability(delta, "delta")
    stream = JacobianStream(net, probes, generator)
    readout = generator.uniform(-1, 1, (I, H)) / math.sqrt(H)
    L = min(checks.size(longest_lag, "longest_lag"), T - 1)
    ends = np.unique(np.linspace(L, T - 1, checks.size(places, "places")).astype(int)).tolist()

    JacobianStream(net, probes).update(x[:1].reshape(1, B, I))  # what compiles here is not timed
    state = None
    starts: dict[int, np.ndarray] = {}  # the joined state at t - L for each end t
    saturated, seconds = 0, 0.0
    for t0, chunk in _pieces(x, B):
        began = time.perf_counter()
        stream.update(chunk)
        seconds += time.perf_counter() - began
        cuts = [t - L for t in ends if t0 <= t - L < t0 + len(chunk)]
        for s0, s1 in itertools.pairwise([t0, *cuts, t0 + len(chunk)]):
            output, state = net(chunk[s0 - t0 : s1 - t0], state)
            check_state(output, s0)
            if s1 in cuts:
                starts[s1 + L] = joined(state)
            if isinstance(net, RNN):
                saturated += _saturated(output, net.nonlinearity)
        if progress is not None:
            progress(t0 + len(chunk), T)

    windows = np.concatenate([x[t - L : t].reshape(L, B, I) for t in ends], axis=1)
    start = np.concatenate([starts[t] for t in ends], axis=1)  # (states,places·B,H)
    output, _ = net(windows, parted(net, start))
    loss = zip(ends, output[-1].reshape(len(ends), B, H), strict=True)
    d_state = np.zeros_like(start)
    top = net.num_layers - 1  # of the h, which come before the c
    d_state[top] = np.concatenate([loss_gradient(x, t, h, readout) for t, h in loss])
    gradient = gradient_by_lag(net, windows, start, d_state)

    result = stream.result(delta)
    lag = lag_of_factor(gradient, FACTOR, _decisive(result))
    extrapolated = lag is None and _verdict(result) != "neither"
    if extrapolated:
        # of the row that grows most, or vanishes last
        rate = abs(float(np.max(result.estimate))) / T
        least = 1 if np.isnan(gradient.median(_decisive(result))[0]) else L + 1
        lag = max(least, math.ceil(math.log(FACTOR) / rate))
    if isinstance(net, RNN):
        share = saturated / (T * B * H)
    else:
        share = _saturated_gates(net.trace(windows, parted(net, start)).inside())
    return Diagnosis(
        net=repr(net),
        steps_per_second=T / seconds,
        stream=result,
        classical_rate=_classical_rate(net),
        saturated=share,
        gradient=gradient,
        lag=lag,
        lag_extrapolated=extrapolated,
    )
