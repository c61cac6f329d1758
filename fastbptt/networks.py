"""The recurrent networks, under torch.nn's names: one class a cell."""

from collections.abc import Callable
from typing import Any

import numpy as np

from . import checks
from .kernels import activations
from .kernels.cells import Design, gru, lstm, mgu, rnn
from .network import Network


def tanh_cell(w_ih: np.ndarray, w_hh: np.ndarray, bias: np.ndarray) -> rnn.RNN:
    """The cell of a plain net; a function, of which there is no copy: kernels are found by it."""
    return rnn.RNN(w_ih, w_hh, bias, activations.TAGS["tanh"])


def relu_cell(w_ih: np.ndarray, w_hh: np.ndarray, bias: np.ndarray) -> rnn.RNN:
    """As `tanh_cell`."""
    return rnn.RNN(w_ih, w_hh, bias, activations.TAGS["relu"])


def sigmoid_cell(w_ih: np.ndarray, w_hh: np.ndarray, bias: np.ndarray) -> rnn.RNN:
    """As `tanh_cell`."""
    return rnn.RNN(w_ih, w_hh, bias, activations.TAGS["sigmoid"])


_PLAIN = {"tanh": tanh_cell, "relu": relu_cell, "sigmoid": sigmoid_cell}


class RNN(Network):
    """A plain recurrent net, h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), as torch.nn.RNN.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, bidirectional, dtype, rng
        As of every `Network`.
    nonlinearity : {"tanh", "relu", "sigmoid"}
        f.

    Raises
    ------
    TypeError, ValueError
        Naming the argument; MemoryError if the parameters would take more than there is.

    Notes
    -----
    The parameters, `net.weight_ih_l0` (H,I), `net.weight_hh_l0` (H,H), `net.bias_ih_l0` and
    `net.bias_hh_l0` (H,), are read-only arrays, because their packed copies must not go stale:
    assign a new array, or call `load_state_dict`.  Source: Elman 1990; the formula is that of
    torch.nn.RNN, as its documentation gives it.

    Examples
    --------
    >>> import numpy as np, fastbptt as fb
    >>> net = fb.RNN(3, 5, rng=0)
    >>> output, state = net(np.ones((7, 2, 3), np.float32))
    >>> output.shape, state.shape
    ((7, 2, 5), (1, 2, 5))
    """

    DESIGN = rnn.DESIGN
    OPTIONS = ("nonlinearity",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        self.nonlinearity = checks.choice(nonlinearity, "nonlinearity", activations.TAGS)
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, bidirectional, dtype, rng
        )

    def _design(self) -> tuple[Design, Callable[..., Any]]:
        return self.DESIGN, _PLAIN[self.nonlinearity]


class GRU(Network):
    """Gated recurrent units, h_t = (1 - z) n + z h_{t-1}, as torch.nn.GRU.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, bidirectional, dtype, rng
        As of every `Network`; G = 3 gates, r z n.
    reset_after : bool
        Whether r multiplies W_hn h + b_hn, as in PyTorch, cuDNN and Keras; if False it multiplies
        h, as in Cho et al. 2014 and ONNX's default.

    Raises
    ------
    TypeError, ValueError
        Naming the argument; MemoryError if the parameters would take more than there is.

    Notes
    -----
    r, z = sigmoid(W_i x_t + b_i + W_h h_{t-1} + b_h), n = tanh(W_in x_t + b_in + r (W_hn h_{t-1} +
    b_hn)).  Parameters are read-only, as those of `RNN`.  Source: Cho et al. 2014, equations 5 to
    8; torch.nn.GRU.

    Examples
    --------
    >>> import numpy as np, fastbptt as fb
    >>> output, state = fb.GRU(3, 5, bidirectional=True, rng=0)(np.ones((7, 2, 3), np.float32))
    >>> output.shape, state.shape
    ((7, 2, 10), (2, 2, 5))
    """

    DESIGN = gru.DESIGN
    OPTIONS = ("reset_after",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        reset_after: bool = True,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        self.reset_after = checks.flag(reset_after, "reset_after")
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, bidirectional, dtype, rng
        )

    def _design(self) -> tuple[Design, Callable[..., Any]]:
        design = self.DESIGN if self.reset_after else gru.DESIGN_BEFORE
        return design, design.cell


class LSTM(Network):
    """Long short-term memory, c_t = f c_{t-1} + i g and h_t = o tanh(c_t), as torch.nn.LSTM.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, bidirectional, dtype, rng
        As of every `Network`; G = 4 gates, i f g o.
    proj_size : int
        Only 0 is implemented: a projection makes h and c differ in size, and the kernels' rows are
        of one padded width for both.

    Raises
    ------
    TypeError, ValueError
        Naming the argument; MemoryError if the parameters would take more than there is.
    NotImplementedError
        For a `proj_size`.

    Notes
    -----
    i, f, o = sigmoid(W_i x_t + b_i + W_h h_{t-1} + b_h), g = tanh(the same with its own weights).
    The state is a tuple (h, c).  Parameters are read-only, as those of `RNN`.  Source: Hochreiter
    and Schmidhuber 1997; Gers et al. 2000 (f); the formula is that of torch.nn.LSTM, as its
    documentation gives it.

    Examples
    --------
    >>> import numpy as np, fastbptt as fb
    >>> output, (h, c) = fb.LSTM(3, 5, rng=0)(np.ones((7, 2, 3), np.float32), lengths=[7, 4])
    >>> output.shape, c.shape, bool((output[4:, 1] == 0).all())
    ((7, 2, 5), (1, 2, 5), True)
    """

    DESIGN = lstm.DESIGN

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        proj_size: int = 0,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        if checks.size(proj_size, "proj_size", least=0) > 0:
            raise NotImplementedError(
                f"proj_size: only 0 is implemented, got {proj_size}: a projection makes h and c "
                "differ in size, and the kernels' rows are of one width for both"
            )
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, bidirectional, dtype, rng
        )


class MGU(Network):
    """Minimal gated units, h_t = (1 - f) h_{t-1} + f n: two thirds of a GRU's parameters.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, bidirectional, dtype, rng
        As of every `Network`; G = 2 gates, f n.

    Raises
    ------
    TypeError, ValueError
        Naming the argument; MemoryError if the parameters would take more than there is.

    Notes
    -----
    f = sigmoid(W_if x_t + b_if + W_hf h_{t-1} + b_hf), n = tanh(W_in x_t + b_in + W_hn (f h_{t-1})
    + b_hn).  Parameters are read-only, as those of `RNN`.  Source: Zhou et al. 2016 (arXiv
    1603.09420), equations 7 to 9.

    Examples
    --------
    >>> import numpy as np, fastbptt as fb
    >>> output, state = fb.MGU(3, 5, rng=0)(np.ones((7, 2, 3), np.float32))
    >>> output.shape, state.shape
    ((7, 2, 5), (1, 2, 5))
    """

    DESIGN = mgu.DESIGN


NETWORKS: dict[str, type[Network]] = {kind.__name__: kind for kind in (RNN, GRU, LSTM, MGU)}
