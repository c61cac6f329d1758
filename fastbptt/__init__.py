"""Compiled recurrent networks: forward, back-propagation through time, Jacobian norms."""

__version__ = "0.1.0"

from .networks import RNN
from .spectral import JacobianStream, StreamResult
from .threads import get_num_threads, set_num_threads
from .trace import Gradients, Trace

__all__ = [
    "RNN",
    "Gradients",
    "JacobianStream",
    "StreamResult",
    "Trace",
    "get_num_threads",
    "set_num_threads",
]
