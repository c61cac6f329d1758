"""Compiled recurrent networks: forward, back-propagation through time, Jacobian norms."""

__version__ = "0.1.0"

from .chains import Chain, MatrixChain
from .checkpoints import CheckpointedTrace
from .converters import from_keras, from_onnx
from .diagnosis import Diagnosis, diagnose
from .feedforward import FeedForward
from .kernels.memory import release as release_memory
from .loading import from_state_dict, load
from .networks import GRU, LSTM, MGU, RNN
from .spectral import (
    JacobianStream,
    StreamResult,
    growth_from,
    growth_map,
    growth_to,
    growth_window,
    log_norm,
    log_singular_values,
    lyapunov_spectrum,
    sensitivity,
    textbook_bounds,
)
from .threads import get_num_threads, set_num_threads
from .trace import Gradients, Trace

__all__ = [
    "GRU",
    "LSTM",
    "MGU",
    "RNN",
    "Chain",
    "CheckpointedTrace",
    "Diagnosis",
    "FeedForward",
    "Gradients",
    "JacobianStream",
    "MatrixChain",
    "StreamResult",
    "Trace",
    "diagnose",
    "from_keras",
    "from_onnx",
    "from_state_dict",
    "get_num_threads",
    "growth_from",
    "growth_map",
    "growth_to",
    "growth_window",
    "load",
    "log_norm",
    "log_singular_values",
    "lyapunov_spectrum",
    "release_memory",
    "sensitivity",
    "set_num_threads",
    "textbook_bounds",
]
