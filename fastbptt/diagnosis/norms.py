"""The report of `python -m fastbptt norms`: one chain's norms, windows and exponents."""

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..chains import Chain
from ..spectral import (
    LyapunovSpectrum,
    Map,
    NormEstimate,
    TextbookBounds,
    growth_map,
    log_norm,
    lyapunov_spectrum,
    textbook_bounds,
)
from .report import plain


@dataclass(frozen=True)
class NormsReport:
    """What `norms` found: `str()` is the table, `to_json()` the figures, `plot()` the picture."""

    name: str
    steps: int
    size: int
    norm: NormEstimate
    bounds: TextbookBounds
    windows: Map
    spectrum: LyapunovSpectrum

    def _rows(self) -> list[dict[str, Any]]:
        """Of each lag the least, median and largest estimate and what all windows lie between."""
        rows, windows = [], self.windows
        for i, (lag, textbook) in enumerate(
            zip(windows.lags.tolist(), windows.textbook, strict=True)
        ):
            known = np.sort(windows.estimate[i, lag:])  # no mean of two, which may be infinite
            row = {
                "lag": lag,
                "smallest_lower": windows.lower[i, lag:].min(),
                "min": known[0],
                "median": known[(len(known) - 1) // 2],
                "max": known[-1],
                "largest_upper": windows.upper[i, lag:].max(),
                "largest_textbook": textbook[lag:].max(),
                "delta": windows.delta[i],
                "worst_error": windows.worst_error[i],
                "note": windows.notes[i],
            }
            rows.append(row)
        return rows

    def __str__(self) -> str:
        norm, bounds, spectrum = self.norm, self.bounds, self.spectrum
        lines = [
            f"{self.name}: {self.steps:,} steps, state of {self.size:,}",
            "",
            str(norm),
            f"  condition {norm.condition:.3g}",
            f"  products of norms would say at most {bounds.steps:.4g} (single steps), "
            f"{bounds.windows:.4g} (windows of {bounds.lag})"
            + ("" if math.isnan(bounds.classical) else f", {bounds.classical:.4g} (classical)"),
            "",
            "log ||P(t, t-lag)||, nats: estimates, and the ends of the lowest and highest interval",
            f"{'lag':>8} {'lower':>10} {'min':>10} {'median':>10} {'max':>10} {'upper':>10}",
        ]
        names = ("smallest_lower", "min", "median", "max", "largest_upper")
        lines += [
            f"{row['lag']:>8} {' '.join(f'{row[name]:>10.4g}' for name in names)}   {row['note']}"
            for row in self._rows()
        ]
        lines += ["", "Lyapunov exponents, nats a step"]
        lines += [
            f"{i + 1:>8} {value:>10.5f} +- {error:.5f}"
            for i, (value, error) in enumerate(
                zip(spectrum.exponents, spectrum.standard_error, strict=True)
            )
        ]
        lines.append(
            f"entropy rate {spectrum.entropy_rate:.5g} nats a step, Kaplan-Yorke dimension "
            f"{spectrum.kaplan_yorke:.5g}"
        )
        return "\n".join(lines)

    def to_json(self) -> str:
        """The figures as one JSON object; infinities and NaN, which JSON lacks, as strings."""
        figures = {name: y for name, y in vars(self).items() if name != "windows"}
        return json.dumps({n: plain(y) for n, y in {**figures, "windows": self._rows()}.items()})

    def plot(self, ax: Any = None) -> Any:
        """The heat map, lag by time."""
        ax = self.windows.plot(ax)
        ax.set_title(f"{self.name}: {self.norm.estimate:.4g} nats over {self.steps:,} steps")
        return ax


def norms_report(
    chain: Chain, name: str, probes: int = 8, delta: float = 0.05, rng: Any = 0
) -> NormsReport:
    """Everything `spectral` says of one chain of square Jacobians.

    Parameters
    ----------
    chain : Chain
    name : str
        What to call it in the report.
    probes : int
        Of the frames, and exponents.
    delta : float
        Risk of the upper bound of the whole product.
    rng : int, numpy.random.Generator or None

    Returns
    -------
    NormsReport

    Raises
    ------
    TypeError, ValueError
        Naming the argument.
    """
    return NormsReport(
        name,
        len(chain),
        chain.size(0),
        log_norm(chain, delta=delta, rng=rng),
        textbook_bounds(chain, rng=rng),
        growth_map(chain, probes=probes, rng=rng),
        lyapunov_spectrum(chain, probes, rng=rng),
    )
