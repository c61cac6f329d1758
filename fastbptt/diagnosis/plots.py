"""The two pictures of a diagnosis."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .report import Diagnosis

_BELOW = {"frameon": False, "loc": "upper center", "bbox_to_anchor": (0.5, -0.14)}


def _growth(d: "Diagnosis", ax: Any) -> None:
    for b in range(d.stream.curve_lower.shape[1]):
        lower, upper = d.stream.curve_lower[:, b], d.stream.curve_upper[:, b]
        width = upper[-1] - lower[-1] if np.isfinite(lower[-1]) else 0
        label = f"interval, {width:.1f} nats wide at the end" if b == 0 else None
        ax.fill_between(
            d.stream.curve_steps, lower, upper, alpha=0.3, color="C0", label=label, lw=1
        )
        label = "estimate" if b == 0 else None
        ax.plot(d.stream.curve_steps, d.stream.curve_estimate[:, b], color="C0", label=label)
    if np.isfinite(d.classical_rate):
        ends = np.array([0, d.stream.steps])
        label = "classical bound max|f'| ||W||"
        ax.plot(ends, ends * d.classical_rate, "--", color="C3", label=label)
    ax.axhline(0, color="0.6", lw=0.8)
    ax.set(xlabel="step t", ylabel="log ||dh_t/dh_0||  (nats)", title="Jacobian product")
    ax.legend(**_BELOW)


def _by_lag(d: "Diagnosis", ax: Any) -> None:
    decades = d.gradient.log_norms / np.log(10)
    ax.plot(d.gradient.lags, decades, color="C0", alpha=0.3, lw=0.8)
    ax.plot(d.gradient.lags, d.median / np.log(10), color="C0", lw=2, label="median of the places")
    for side in (-3, 3):
        ax.axhline(side, color="C3", ls=":", lw=1, label="a factor of 1000" if side < 0 else None)
    if d.lag is not None and not d.lag_extrapolated:
        crossed = 3 * np.sign(d.median[d.gradient.lags >= d.lag][0])
        ax.plot(d.lag, crossed, "o", color="C3")
        ax.annotate(f"  lag {d.lag}", (d.lag, crossed), color="C3", va="bottom")
    ax.set(
        xscale="log",
        xlim=(1, None),
        xlabel="lag  (steps)",
        ylabel="log10 of the gradient's norm, lag 0 = 0",
        title="Gradient by lag, from BPTT",
    )
    ax.legend(**_BELOW)


def plot(d: "Diagnosis", ax: Any) -> Any:
    """Draw on one Axes, on two, or on a new figure."""
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(figsize=(10, 4.8), layout="constrained").subplots(1, 2)
    pair = np.ravel(ax)
    _growth(d, pair[0])
    if pair.size > 1:
        _by_lag(d, pair[1])
    return ax
