"""Recurrent networks under torch.nn's names: parameters, the call, trace()."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import checks
from .kernels import activations
from .trace import Layout, Trace
from .weights import RNNWeights


class RNN:
    """A plain recurrent net, h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), as torch.nn.RNN.

    Parameters
    ----------
    input_size, hidden_size : int
        I and H, at least 1.
    num_layers : int
        Only 1 so far.
    nonlinearity : {"tanh", "relu", "sigmoid"}
        f.
    bias : bool
        Whether there are b_ih and b_hh.
    batch_first : bool
        Whether x and output are (B,T,...) instead of (T,B,...).
    bidirectional : bool
        Only False so far.
    dtype : float32 or float64
        Of the parameters and of everything that goes in and comes out.
    rng : int, numpy.random.Generator or None
        Draws the parameters from U(-1/sqrt(H), 1/sqrt(H)), as torch.nn does.

    Raises
    ------
    TypeError, ValueError
        Naming the argument.
    NotImplementedError
        For more than one layer or direction.

    Notes
    -----
    The parameters, `net.weight_ih_l0` (H,I), `net.weight_hh_l0` (H,H), `net.bias_ih_l0` and
    `net.bias_hh_l0` (H,), are read-only arrays, because their packed copies must not go stale:
    assign a new array, or call `load_state_dict`.  Source: Elman 1990; formula of torch.nn.RNN.

    Examples
    --------
    >>> import numpy as np, fastbptt as fb
    >>> net = fb.RNN(3, 5, rng=0)
    >>> output, state = net(np.ones((7, 2, 3), np.float32))
    >>> output.shape, state.shape
    ((7, 2, 5), (1, 2, 5))
    """

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
        self.input_size = checks.size(input_size, "input_size")
        self.hidden_size = checks.size(hidden_size, "hidden_size")
        self.num_layers = checks.size(num_layers, "num_layers")
        self.nonlinearity = checks.choice(nonlinearity, "nonlinearity", activations.TAGS)
        self.bias = checks.flag(bias, "bias")
        self.batch_first = checks.flag(batch_first, "batch_first")
        self.bidirectional = checks.flag(bidirectional, "bidirectional")
        self.dtype = checks.dtype(dtype)
        if self.num_layers > 1:
            raise NotImplementedError(f"num_layers: only 1 is implemented, got {num_layers}")
        if self.bidirectional:
            raise NotImplementedError("bidirectional: only False is implemented")
        generator = checks.generator(rng)
        bound = 1 / math.sqrt(self.hidden_size)
        self.load_state_dict(
            {
                name: generator.uniform(-bound, bound, shape).astype(self.dtype)
                for name, shape in self._shapes().items()
            }
        )

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        H, I = self.hidden_size, self.input_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih_l0": (H, I), "weight_hh_l0": (H, H)}
        if self.bias:
            shapes |= {"bias_ih_l0": (H,), "bias_hh_l0": (H,)}
        return shapes

    def __repr__(self) -> str:
        return (
            f"RNN({self.input_size}, {self.hidden_size}, nonlinearity={self.nonlinearity!r}, "
            f"bias={self.bias}, batch_first={self.batch_first}, dtype={self.dtype})"
        )

    def __getattr__(self, name: str) -> np.ndarray:
        weights = self.__dict__.get("weights")
        if weights is not None and name in weights.arrays:
            return weights.arrays[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        weights = self.__dict__.get("weights")
        if weights is not None and name in weights.arrays:
            self.load_state_dict({**weights.arrays, name: value})
        else:
            super().__setattr__(name, value)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of the parameters, under PyTorch's names.

        Returns
        -------
        dict of str to ndarray
            weight_ih_l0 (H,I), weight_hh_l0 (H,H), and with `bias` bias_ih_l0, bias_hh_l0 (H,).
        """
        return {name: value.copy() for name, value in self.weights.arrays.items()}

    def load_state_dict(self, mapping: Mapping[str, Any]) -> None:
        """Set every parameter; the arrays are copied.

        Parameters
        ----------
        mapping : mapping of str to array
            The names and shapes of `state_dict`, arrays of the net's dtype; a torch module's
            `state_dict()` will do.

        Raises
        ------
        ValueError
            Naming every key that is missing, unexpected or misshapen; nothing is changed then.
        TypeError
            For another dtype.
        """
        arrays = checks.parameters(mapping, self._shapes(), self.dtype)
        self.weights = RNNWeights(arrays, self.nonlinearity)

    def __call__(self, x: Any, state: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """The outputs and the last state.

        Parameters
        ----------
        x : ndarray (T,B,I), (B,T,I) if `batch_first`, or (T,I)
            Of the net's dtype; any strides, read-only or memory-mapped; T and B may be 0.
        state : ndarray (1,B,H), or (1,H) for an unbatched x, optional
            h_0; zeros if None.

        Returns
        -------
        output : ndarray (T,B,H), (B,T,H) or (T,H)
            h_1 .. h_T.
        state : ndarray (1,B,H) or (1,H)
            h_T.

        Raises
        ------
        TypeError, ValueError
            For another dtype or shape.  NaN and Inf propagate.
        """
        trace = self.trace(x, state)
        trace.output.flags.writeable = True  # the trace goes, nobody else reads it
        return trace.output, trace.state

    def trace(self, x: Any, state: Any = None) -> Trace:
        """A forward pass that keeps what BPTT over it needs.

        Parameters
        ----------
        x, state
            As of the call.  A contiguous x is kept and not copied: `backward` reads it again, so
            do not change it before.

        Returns
        -------
        Trace
            With `output`, `state` and `backward`.

        Raises
        ------
        TypeError, ValueError
            As the call.
        """
        steps, layout = self.time_major(x)
        return Trace(self.weights, steps, self.initial_state(state, steps.shape[1], layout), layout)

    def time_major(self, x: Any) -> tuple[np.ndarray, Layout]:
        """x, checked, as a contiguous read-only (T,B,I), and how it lay."""
        x = checks.sequence(x, "x", self.dtype, self.input_size, self.batch_first)
        layout = Layout(self.batch_first, unbatched=x.ndim == 2)
        return checks.read_only(np.ascontiguousarray(layout.time_major(x))), layout

    def initial_state(self, state: Any, B: int, layout: Layout) -> np.ndarray:
        """The state, checked, as (B,H); zeros for None."""
        H = self.hidden_size
        if state is None:
            return np.zeros((B, H), self.dtype)
        shape = layout.state_shape(B, H)
        return checks.shaped(state, "state", self.dtype, shape).reshape(B, H)
