"""The parameters of one layer, unchangeable, and their packed copies."""

import functools
from collections.abc import Mapping

import numpy as np

from .kernels import activations
from .kernels.cells import rnn
from .kernels.panels import pack, padded


class RNNWeights:
    """weight_ih_l0 (H,I), weight_hh_l0 (H,H) and, with bias, bias_ih_l0 and bias_hh_l0 (H,).

    The arrays are copied and read-only, so that what was packed cannot go stale and a trace keeps
    the weights it was made with.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], nonlinearity: str) -> None:
        self.arrays = {name: np.array(value, order="C") for name, value in arrays.items()}
        for value in self.arrays.values():
            value.flags.writeable = False
        self.nonlinearity = nonlinearity
        self.hidden_size, self.input_size = self.arrays["weight_ih_l0"].shape
        self.dtype = self.arrays["weight_ih_l0"].dtype

    @functools.cached_property
    def cell(self) -> rnn.RNN:
        """What a forward step reads; packed at the first use."""
        bias = np.zeros(padded(self.hidden_size, self.dtype), self.dtype)
        if "bias_ih_l0" in self.arrays:
            bias[: self.hidden_size] = self.arrays["bias_ih_l0"] + self.arrays["bias_hh_l0"]
        w_ih, w_hh = pack(self.arrays["weight_ih_l0"]), pack(self.arrays["weight_hh_l0"])
        return rnn.RNN(w_ih, w_hh, bias, activations.TAGS[self.nonlinearity])

    @functools.cached_property
    def adjoint_cell(self) -> rnn.RNNAdjoint:
        """What a backward step reads; packed at the first use."""
        widest = padded(max(self.hidden_size, self.input_size), self.dtype)
        w_ih, w_hh = pack(self.arrays["weight_ih_l0"].T), pack(self.arrays["weight_hh_l0"].T)
        zeros = np.zeros(widest, self.dtype)
        return rnn.RNNAdjoint(w_ih, w_hh, zeros, activations.TAGS[self.nonlinearity])
