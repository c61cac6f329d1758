"""Norms of long products of Jacobians."""

from .curves import Curve, growth_from, growth_to
from .norm import NormEstimate, log_norm
from .sensitivity import Sensitivity, TextbookBounds, sensitivity, textbook_bounds
from .spectra import LyapunovSpectrum, log_singular_values, lyapunov_spectrum
from .stream import JacobianStream, StreamResult
from .windows import Map, growth_map, growth_window

__all__ = [
    "Curve",
    "JacobianStream",
    "LyapunovSpectrum",
    "Map",
    "NormEstimate",
    "Sensitivity",
    "StreamResult",
    "TextbookBounds",
    "growth_from",
    "growth_map",
    "growth_to",
    "growth_window",
    "log_norm",
    "log_singular_values",
    "lyapunov_spectrum",
    "sensitivity",
    "textbook_bounds",
]
