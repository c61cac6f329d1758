"""Norms of long products of Jacobians."""

from .curves import Curve, growth_from, growth_to
from .norm import NormEstimate, log_norm
from .stream import JacobianStream, StreamResult
from .windows import Map, growth_map, growth_window

__all__ = [
    "Curve",
    "JacobianStream",
    "Map",
    "NormEstimate",
    "StreamResult",
    "growth_from",
    "growth_map",
    "growth_to",
    "growth_window",
    "log_norm",
]
