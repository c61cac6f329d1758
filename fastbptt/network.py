"""What all recurrent networks share: parameters, the call, trace()."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, overload

import numpy as np

from . import checks, files
from .checkpoints import CheckpointedTrace
from .kernels.cells import Design
from .sequences import sequences_of
from .trace import Layout, Trace, as_state, layout_of, outputs, run
from .weights import Weights

FORMAT = "fastbptt.Network/1"


class Network:
    """What all recurrent networks share; a subclass says which cell it is.

    Parameters
    ----------
    input_size, hidden_size : int
        I and H, at least 1.
    num_layers : int
        L: each layer reads the outputs of the one below.
    bias : bool
        Whether there are b_ih and b_hh.
    batch_first : bool
        Whether x and output are (B,T,...) instead of (T,B,...).
    bidirectional : bool
        Whether each layer reads the sequence from its end as well; D = 2 then, 1 otherwise.
    dtype : float32 or float64
        Of the parameters and of everything that goes in and comes out.
    rng : int, numpy.random.Generator or None
        Draws the parameters from U(-1/sqrt(H), 1/sqrt(H)), as torch.nn does.

    Attributes
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, bidirectional, dtype
        As given; assigning to them raises AttributeError.
    """

    weights: Weights
    DESIGN: ClassVar[Design]  # of the cell
    OPTIONS: ClassVar[tuple[str, ...]] = ()  # of this cell alone, beside those of all

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        self.input_size = checks.size(input_size, "input_size")
        self.hidden_size = checks.size(hidden_size, "hidden_size")
        self.num_layers = checks.size(num_layers, "num_layers")
        self.bias = checks.flag(bias, "bias")
        self.batch_first = checks.flag(batch_first, "batch_first")
        self.bidirectional = checks.flag(bidirectional, "bidirectional")
        self.dtype = checks.dtype(dtype)
        generator = checks.generator(rng)
        L, D, H = self.num_layers, 1 + self.bidirectional, self.hidden_size
        columns = self.input_size + (L - 1) * D * H + L * (H + 2 * self.bias)
        needed = D * len(self._design()[0].gates) * H * columns * self.dtype.itemsize
        checks.memory(needed, f"hidden_size {H}")
        bound = 1 / math.sqrt(self.hidden_size)
        self.load_state_dict(
            {
                name: generator.uniform(-bound, bound, shape).astype(self.dtype)
                for name, shape in self._shapes.items()
            }
        )

    def _design(self) -> tuple[Design, Callable[..., Any]]:
        """The cell's design, and what makes its NamedTuple of packed weights.

        Of a class whose options change them: to other ones of as many gates.
        """
        return self.DESIGN, self.DESIGN.cell

    @functools.cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        H, D = self.hidden_size, 1 + self.bidirectional
        rows = len(self._design()[0].gates) * H
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(self.num_layers):
            I = D * H if layer else self.input_size
            for suffix in (f"_l{layer}", f"_l{layer}_reverse")[:D]:
                shapes |= {f"weight_ih{suffix}": (rows, I), f"weight_hh{suffix}": (rows, H)}
                if self.bias:
                    shapes |= {f"bias_ih{suffix}": (rows,), f"bias_hh{suffix}": (rows,)}
        return shapes

    def options(self) -> dict[str, Any]:
        """The constructor's arguments, but for `dtype` and `rng`, by name."""
        names = ("input_size", "hidden_size", "num_layers", *self.OPTIONS)
        names += ("bias", "batch_first", "bidirectional")
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        input_size, hidden_size, *options = self.options().items()
        usual = inspect.signature(type(self)).parameters
        said = [f"{name}={y!r}" for name, y in options if y != usual[name].default]
        given = [str(input_size[1]), str(hidden_size[1]), *said, f"dtype={self.dtype}"]
        return f"{type(self).__name__}({', '.join(given)})"

    def __getattr__(self, name: str) -> np.ndarray:
        weights = self.__dict__.get("weights")
        if weights is not None and name in weights.arrays:
            return weights.arrays[name]
        raise AttributeError(
            f"{type(self).__name__} has no attribute {name!r}", name=name, obj=self
        )

    def __setattr__(self, name: str, value: Any) -> None:
        weights = self.__dict__.get("weights")
        if weights is None:  # the constructor is at work
            super().__setattr__(name, value)
        elif name in weights.arrays:
            self.load_state_dict({**weights.arrays, name: value})
        elif name in ("weights", "dtype") or name in self.options():
            raise checks.settled(name, type(self).__name__)  # the packed weights would not know
        else:
            super().__setattr__(name, value)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of the parameters, under PyTorch's names.

        Returns
        -------
        dict of str to ndarray
            For layer k weight_ih_lk (G·H,I), or (G·H,D·H) above the first, weight_hh_lk (G·H,H),
            with `bias` bias_ih_lk and bias_hh_lk (G·H,), and the same with `_reverse`; G gates in
            PyTorch's order.
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
            Naming every key that is missing, unexpected, misshapen or of another dtype; nothing is
            changed then.
        TypeError
            If only dtypes are wrong, or for what is no mapping.
        """
        arrays = checks.parameters(mapping, self._shapes, self.dtype)
        self.__dict__["weights"] = Weights(arrays, *self._design())

    def save(self, path: Any) -> None:
        """Write kind, options and parameters; `fb.load` makes the net of them again.

        Parameters
        ----------
        path : str or path-like
            In .npz or .safetensors, which needs the package of that name; replaced in one step.

        Raises
        ------
        TypeError, ValueError
            For no path, or another suffix.
        ImportError
            For .safetensors without that package.
        OSError
            If it cannot be written; a file that was there stays as it was.
        """
        about = {"format": FORMAT, "kind": type(self).__name__, **self.options()}
        files.write_arrays(path, self.weights.arrays, about)

    def __call__(
        self, x: Any, state: Any = None, lengths: Any = None, reset: Any = None
    ) -> tuple[np.ndarray, Any]:
        """The outputs of the last layer and the last state of all.

        Parameters
        ----------
        x : ndarray (T,B,I), (B,T,I) if `batch_first`, or (T,I)
            Of the net's dtype; any strides, read-only or memory-mapped; T and B may be 0.
        state : ndarray (L·D,B,H), or (L·D,H) for an unbatched x, optional
            What the first step begins with (in the reverse direction: the last step); zeros if
            None.  An LSTM's is a tuple (h, c).
        lengths : sequence of int (B,), of an unbatched x (1,), optional
            Steps of each sequence, from 0 to T, in any order; T each if None.  What lies beyond is
            not read, and may be NaN.
        reset : ndarray of bool (T,B), (B,T) if `batch_first`, or (T,), optional
            Where the carried state is set to zero before a step: x[t] is the first of a new
            sequence.  Both directions end there.

        Returns
        -------
        output : ndarray (T,B,D·H), (B,T,D·H) or (T,D·H)
            h_1 .. h_T; zeros beyond a length.  What lies below the smallest normal number
            (1.2e-38 in float32) may become 0, as in `Trace.backward`.
        state : as `state`
            After the last step of each sequence (in the reverse direction: after its first); of a
            sequence of no steps the one given.

        Raises
        ------
        TypeError, ValueError
            For another dtype or shape.  NaN and Inf propagate.

        Notes
        -----
        Accuracy: of a net that does not amplify, relative to the largest element, some
        eps sqrt(I + H) sqrt(T), eps that of the dtype; sigmoid and tanh are within 1.9 ulp.  The
        bits do not depend on the number of threads, nor on the batch a sequence came in.
        """
        x, sequences, begin, layout = self._read(x, state, lengths, reset)
        T, B, _ = x.shape
        passes = run(self.weights, x, sequences, begin, keep=False)
        output = outputs(passes[-len(sequences) :], T, B)
        return layout.as_given(output), as_state([one.end() for one in passes], layout)

    @overload
    def trace(
        self, x: Any, state: Any = ..., lengths: Any = ..., reset: Any = ..., checkpoint: None = ...
    ) -> Trace: ...

    @overload
    def trace(
        self, x: Any, state: Any = ..., lengths: Any = ..., reset: Any = ..., *, checkpoint: int
    ) -> CheckpointedTrace: ...

    def trace(
        self,
        x: Any,
        state: Any = None,
        lengths: Any = None,
        reset: Any = None,
        checkpoint: int | None = None,
    ) -> Trace | CheckpointedTrace:
        """A forward pass that keeps what BPTT over it needs.

        Parameters
        ----------
        x, state, lengths, reset
            As of the call.  A contiguous x, with `checkpoint` any, is kept and not copied:
            `backward` and `chain` read it again, so do not change it before.
        checkpoint : int, optional
            Keep the state of every so many steps alone, and run what lies between again in
            `backward`: for sequences whose trace does not fit in memory.  About sqrt(T) keeps
            least; some thousand steps or more cost no time beyond that of a forward pass.  What
            lies behind the last of these states is not run again: where memory allows it, a quarter
            or a third of T, rounded up, is faster.

        Returns
        -------
        Trace
            With `output`, `state`, `backward`, `inside` and `chain`; with `checkpoint` a
            `CheckpointedTrace` of `state` and `backward`.

        Raises
        ------
        TypeError, ValueError
            As the call; for a checkpoint of a bidirectional net.
        """
        if checkpoint is None:
            return Trace(self.weights, *self._read(x, state, lengths, reset))
        steps = checks.size(checkpoint, "checkpoint")
        if self.bidirectional:
            raise ValueError(
                "checkpoint: expected None, as the net is bidirectional: its layers read a "
                "sequence from both ends and so need all of the layer below"
            )
        x, lengths, reset, begin, layout = self._given(x, state, lengths, reset)
        return CheckpointedTrace(self.weights, x, lengths, reset, begin, layout, steps)

    def _read(self, x: Any, state: Any, lengths: Any, reset: Any) -> tuple[Any, ...]:
        """The arguments of a call as a `Trace` takes them."""
        x, lengths, reset, begin, layout = self._given(x, state, lengths, reset)
        T, B, _ = x.shape
        sequences = [sequences_of(T, B, lengths, reset)]
        if self.bidirectional:
            sequences.append(sequences_of(T, B, lengths, reset, reverse=True))
        return x, sequences, begin, layout

    def _given(self, x: Any, state: Any, lengths: Any, reset: Any) -> tuple[Any, ...]:
        """The arguments of a call, checked, time-major, and the layout they came in."""
        x, layout = self.time_major(x)
        T, B, _ = x.shape
        if lengths is not None:
            lengths = checks.lengths(lengths, T, B)
        if reset is not None:
            reset = layout.time_major(checks.mask(reset, "reset", layout.shape(T, B, 1)[:-1]))
        return x, lengths, reset, self.initial_state(state, B, layout), layout

    def time_major(self, x: Any) -> tuple[np.ndarray, Layout]:
        """x, checked, as a view (T,B,I), and how it lay."""
        x = checks.sequence(x, "x", self.dtype, self.input_size, self.batch_first)
        layout = layout_of(self.batch_first, x.ndim == 2)
        return layout.time_major(x), layout

    def initial_state(self, state: Any, B: int, layout: Layout) -> tuple[np.ndarray, ...] | None:
        """The state, checked, as a tuple of (L·D,B,H); None for None, which stands for zeros."""
        if state is None:
            return None
        H, layers = self.hidden_size, len(self.weights.layers)
        shape = layout.state_shape(layers, B, H)
        parts = checks.states(state, "state", self.weights.design.has_c, self.dtype, shape)
        return parts and tuple([part.reshape(layers, B, H) for part in parts])
