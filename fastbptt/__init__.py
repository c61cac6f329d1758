"""Compiled recurrent networks: forward, back-propagation through time, Jacobian norms."""

__version__ = "0.1.0"

from .diagnosis import Diagnosis, diagnose
from .kernels.memory import release as release_memory
from .loading import from_keras, from_onnx, from_state_dict, load
from .networks import GRU, LSTM, MGU, RNN
from .spectral import JacobianStream, StreamResult
from .threads import get_num_threads, set_num_threads
from .trace import Gradients, Trace

__all__ = [
    "GRU",
    "LSTM",
    "MGU",
    "RNN",
    "Diagnosis",
    "Gradients",
    "JacobianStream",
    "StreamResult",
    "Trace",
    "diagnose",
    "from_keras",
    "from_onnx",
    "from_state_dict",
    "get_num_threads",
    "load",
    "release_memory",
    "set_num_threads",
]
