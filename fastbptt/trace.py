"""A forward pass through all layers, and back-propagation through time over it."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from . import checks
from .kernels.memory import aligned
from .layers import LayerGradients, LayerPass, alike
from .sequences import Sequences
from .trace_chain import TraceChain
from .weights import Weights


class Layout(NamedTuple):
    """How the user's arrays lie: (T,B,...), (B,T,...) if `batch_first`, (T,...) if `unbatched`."""

    batch_first: bool
    unbatched: bool

    def time_major(self, y: np.ndarray) -> np.ndarray:
        """y as a view (T,B,...)."""
        if self.unbatched:
            return y[:, None]
        return y.swapaxes(0, 1) if self.batch_first else y

    def as_given(self, y: np.ndarray) -> np.ndarray:
        """y (T,B,...) as a view in the user's layout."""
        if self.unbatched:
            return y[:, 0]
        return y.swapaxes(0, 1) if self.batch_first else y

    def shape(self, T: int, B: int, features: int) -> tuple[int, ...]:
        """The shape of an array of T steps in this layout."""
        if self.unbatched:
            return (T, features)
        return (B, T, features) if self.batch_first else (T, B, features)

    def state_shape(self, layers: int, B: int, H: int) -> tuple[int, ...]:
        """The shape of a state."""
        return (layers, H) if self.unbatched else (layers, B, H)


layout_of = functools.cache(Layout)  # made once: in a call of a step that took a fortieth


def _of(state: tuple[np.ndarray, ...] | None, n: int) -> tuple[np.ndarray | None, ...]:
    """The parts (B,H) of one layer and direction of a state (L·D,B,H) each; None for zeros."""
    return (None, None) if state is None else tuple([part[n] for part in state])


def passes_over(
    x: np.ndarray,
    layers: int,
    sequences: list[Sequences],
    pass_of: Callable[[int, np.ndarray], LayerPass],
) -> list[LayerPass]:
    """All passes over x (T,B,I), by pass_of(n, read-only rows); `sequences` one a direction.

    A layer alone reads the rows of the one below where they lie.
    """
    D = len(sequences)
    passes: list[LayerPass] = []
    for n in range(layers):
        one = sequences[n % D]
        if n and D == 1:
            rows = checks.read_only(passes[-1].h[one.N :])
        else:
            if n and n % D == 0:
                x = outputs(passes[-D:], *x.shape[:2])
            rows = one.gather(x)
        passes.append(pass_of(n, rows))
    return passes


def run(
    weights: Weights,
    x: np.ndarray,
    sequences: list[Sequences],
    state: tuple[np.ndarray, ...] | None,
    keep: bool,
) -> list[LayerPass]:
    """All passes forward over x (T,B,I), from state (L·D,B,H) each, zeros if None."""
    D = len(sequences)

    def pass_of(n: int, rows: np.ndarray) -> LayerPass:
        return LayerPass(weights.layers[n], rows, sequences[n % D], _of(state, n), keep)

    return passes_over(x, len(weights.layers), sequences, pass_of)


def outputs(passes: list[LayerPass], T: int, B: int) -> np.ndarray:
    """Those of the directions of one layer, (T,B,D·H); a view of h where it can be."""
    one = passes[0]
    H, Hp = one.layer.hidden_size, one.h.shape[1]
    if len(passes) == 1 and one.sequences.dense:
        rows = one.h[B:].reshape(T, B, Hp)
        return rows if Hp == H else rows[:, :, :H]
    y = np.zeros((T, B, len(passes) * H), one.h.dtype)
    for direction, one in enumerate(passes):
        part = y[:, :, direction * H : (direction + 1) * H]
        one.sequences.scatter(one.h[one.sequences.N :], part)
    return y


def as_state(parts: list[list[np.ndarray]], layout: Layout) -> Any:
    """A state from its parts (B,H) of each layer and direction: an array or a tuple of two."""
    if len(parts) == 1:
        whole = parts[0] if layout.unbatched else [part[None] for part in parts[0]]
    else:
        B, H = parts[0][0].shape
        shape = layout.state_shape(len(parts), B, H)
        whole = [np.concatenate(part).reshape(shape) for part in zip(*parts, strict=True)]
    return whole[0] if len(whole) == 1 else tuple(whole)


class Gradients(NamedTuple):
    """What `Trace.backward` returns; every array has the shape of what it is the gradient of."""

    params: dict[str, np.ndarray]
    x: np.ndarray | None  # None without `input_gradient`
    state: Any  # as the net's state: an LSTM's is a tuple
    per_step: dict[str, np.ndarray] | None = None  # "h" (and "c"): (L·D,T,B,H); if asked for


class Trace:
    """A forward pass, kept so that BPTT can go back through it; made by `net.trace`.

    L layers of D directions; arrays (L·D,...) have a layer's directions next to each other, as
    torch.nn's do.

    Attributes
    ----------
    output : ndarray (T,B,D·H), (B,T,D·H) if the net is `batch_first`, or (T,D·H)
        h_1 .. h_T of the last layer, read-only; zeros beyond a sequence's length.
    state : ndarray (L·D,B,H) or (L·D,H); an LSTM's is a tuple (h, c) of two
        The state after the last step of each sequence.
    """

    def __init__(
        self,
        weights: Weights,
        x: np.ndarray,
        sequences: list[Sequences],
        state: tuple[np.ndarray, ...] | None,
        layout: Layout,
    ) -> None:
        """Run forward over x (T,B,I) from state (L·D,B,H) each, zeros if None.

        `sequences` are those of each direction.
        """
        self._weights, self._layout, self._sequences = weights, layout, sequences
        self._T, self._B, _ = x.shape
        self._passes = run(weights, x, sequences, state, keep=True)
        output = outputs(self._passes[-len(sequences) :], self._T, self._B)
        self.output = checks.read_only(layout.as_given(output))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy, whose arrays may be written, and whose weights are read-only in one place."""
        vars(self).update(state)
        for one, layer in zip(self._passes, self._weights.layers, strict=True):
            one.layer = layer
        if "output" in state:  # not of one that is `taken_apart`
            self.output = checks.read_only(self.output)

    @functools.cached_property
    def state(self) -> Any:
        """See the class; made when first asked for."""
        return as_state([one.end() for one in self._passes], self._layout)

    def backward(
        self,
        d_output: Any = None,
        d_state: Any = None,
        input_gradient: bool = True,
        per_step: bool = False,
    ) -> Gradients:
        """Back-propagation through time.

        Parameters
        ----------
        d_output : ndarray of the shape of `output`, optional
            dL/d output; zeros if None.  Beyond a sequence's length it is not read.
        d_state : as `state`, optional
            dL/d state by other ways than `output`; zeros if None.
        input_gradient : bool
            Whether dL/dx is wanted; without it a train step costs up to a quarter less.
        per_step : bool
            Whether dL/dh_t (and dL/dc_t) of every layer and step is wanted.

        Returns
        -------
        Gradients
            `params` (dict under PyTorch's names), `x` and `state` (dL/d initial state); with
            `per_step` a dict of "h" (and "c") (L·D,T,B,H): all of dL/dh_t, by every way.  Exactly
            zero beyond a sequence's length.  Sums over steps and rows are made of blocks of 192,
            so that their rounding grows with T·B / 192.  What lies below the smallest normal number
            (1.2e-38 in float32) may become 0: some processors take a hundred times as long for it.

        Raises
        ------
        TypeError, ValueError
            For another dtype or shape.

        Notes
        -----
        Of the plain net: da_t = f'(a_t) (d_output_t + W_hh' da_{t+1}), dW_hh = sum_t da_t h_{t-1}',
        dW_ih = sum_t da_t x_t', dx_t = W_ih' da_t (Werbos 1990, Proc. IEEE 78, 1550-1560); each
        cell's own formulas stand in its file in fastbptt/kernels/cells.  Accuracy: as the forward
        pass, sums over all rows to the root of their number more.

        Examples
        --------
        >>> import numpy as np, fastbptt as fb
        >>> trace = fb.RNN(3, 5, rng=0).trace(np.ones((7, 2, 3), np.float32))
        >>> trace.backward(np.ones_like(trace.output)).params["weight_hh_l0"].shape
        (5, 5)
        """
        weights, layout, T, B = self._weights, self._layout, self._T, self._B
        D, H, dtype = len(self._sequences), weights.hidden_size, weights.dtype
        input_gradient = checks.flag(input_gradient, "input_gradient")
        per_step = checks.flag(per_step, "per_step")
        layers, d_states = len(self._passes), None
        if d_state is not None:
            shape = layout.state_shape(layers, B, H)
            parts = checks.states(d_state, "d_state", weights.design.has_c, dtype, shape)
            d_states = parts and tuple(part.reshape(layers, B, H) for part in parts)
        if d_output is None:
            # not broadcast: a copy of it on fresh pages would take a tenth of a train step
            dy = aligned((T, B, D * H), dtype)
            dy[:] = 0
        else:
            wanted = layout.shape(T, B, D * H)
            dy = layout.time_major(checks.shaped(d_output, "d_output", dtype, wanted))

        gradients: list[LayerGradients] = []  # of the last pass at first
        for n in range(layers - 1, -1, -1):
            one = self._passes[n]
            if D == 1 and gradients:
                rows = checks.read_only(gradients[-1].x)
            else:
                rows = self._rows(one, dy, n % D)
            wanted_below = input_gradient or n >= D
            gradients.append(one.backward(rows, _of(d_states, n), wanted_below, per_step))
            if n % D == 0 and wanted_below and (D > 1 or n == 0):
                dy = self._d_input(self._passes[n : n + D], gradients[: -D - 1 : -1])
        gradients.reverse()
        return Gradients(
            self._named(gradients),
            np.ascontiguousarray(layout.as_given(dy)) if input_gradient else None,
            as_state([one.state for one in gradients], layout),
            self._by_step([dict(zip("hc", one.steps, strict=False)) for one in gradients])
            if per_step
            else None,
        )

    def _rows(self, one: LayerPass, dy: np.ndarray, direction: int) -> np.ndarray:
        """What of dy (T,B,D·H) belongs to one direction, as (S,Hp) with zeros in the padding."""
        H, Hp = self._weights.hidden_size, one.layer.sizes.Hp
        if len(self._sequences) > 1:
            dy = dy[:, :, direction * H : (direction + 1) * H]
        rows = one.sequences.gather(dy)
        if Hp == H:
            return rows
        wide = np.zeros((len(rows), Hp), rows.dtype)
        wide[:, :H] = rows
        return checks.read_only(wide)

    def _d_input(self, passes: list[LayerPass], gradients: list[LayerGradients]) -> np.ndarray:
        """The gradient of what all directions of a layer read, (T,B,I)."""
        layer, one, T, B = passes[0].layer, passes[0].sequences, self._T, self._B
        I = layer.input_size
        if len(passes) == 1 and one.dense:
            return gradients[0].x.reshape(T, B, layer.sizes.Ip)[:, :, :I]
        total = np.zeros((T, B, I), self._weights.dtype)
        for one_pass, gradient in zip(passes, gradients, strict=True):
            part = np.zeros_like(total)
            one_pass.sequences.scatter(gradient.x, part)
            total += part
        return total

    def _named(self, gradients: list[LayerGradients]) -> dict[str, np.ndarray]:
        """The gradients of the parameters that there are, in their order."""
        arrays = self._weights.arrays
        each = len(arrays) // len(gradients)
        values = [value for one in gradients for value in one.parameters[:each]]
        return dict(zip(arrays, values, strict=True))

    def _by_step(self, rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Rows (S,Hp) of every layer and direction -> (L·D,T,B,H), or (L·D,T,H), in x's order."""
        T, B, H = self._T, self._B, self._weights.hidden_size
        D, dtype = len(self._sequences), self._weights.dtype
        steps = {name: np.zeros((len(rows), T, B, H), dtype) for name in rows[0]}
        for n, one in enumerate(rows):
            for name, y in one.items():
                self._sequences[n % D].scatter(y, steps[name][n])
        if self._layout.unbatched:
            return {name: y[:, :, 0] for name, y in steps.items()}
        return steps

    def taken_apart(self) -> tuple["Trace", list[np.ndarray]]:
        """This trace without what it keeps, and that: x left out, the arrays that grow with T.

        Whoever has the arrays (PyTorch's graph, say, which frees or offloads them) can have the
        trace again, by `put_together`.
        """
        shell = alike(self)
        vars(shell).pop("state", None)
        del shell.output
        passes = [one.taken_apart() for one in self._passes]
        shell._passes = [one for one, _ in passes]
        return shell, [y for _, arrays in passes for y in arrays]

    def put_together(
        self, x: np.ndarray, arrays: Iterable[np.ndarray], weights: Weights | None = None
    ) -> "Trace":
        """The trace that was `taken_apart`, but for `output`, from its arrays or copies of them.

        x (T,B,I) is what it read, `weights` those of another pass that made the arrays again.
        """
        whole, in_order = alike(self), iter(arrays)
        whole._weights = own = weights or self._weights
        whole._passes = passes_over(
            x,
            len(own.layers),
            self._sequences,
            lambda n, y: self._passes[n].put_together(own.layers[n], y, in_order),
        )
        return whole

    def chain(self, batch: int = 0) -> TraceChain:
        """The Jacobians of one sequence's state, t = 1 .. T.

        Parameters
        ----------
        batch : int
            Which sequence, from 0; 0 for an unbatched trace.

        Returns
        -------
        TraceChain
            Of N = L·H, for an LSTM 2·L·H; of as many steps as the sequence is long.

        Raises
        ------
        TypeError, ValueError
            For a sequence that is not there, a bidirectional net, whose states are no chain, or a
            sequence that a reset cuts.

        Examples
        --------
        >>> import numpy as np, fastbptt as fb
        >>> chain = fb.RNN(3, 5, rng=0).trace(np.ones((7, 2, 3), np.float32)).chain(1)
        >>> len(chain), chain.matrix(7, 0).shape
        (7, (5, 5))
        """
        b = checks.size(batch, "batch", least=0)
        if b >= self._B:
            raise ValueError(f"batch: expected below {self._B}, got {b}")
        if len(self._sequences) > 1:
            raise ValueError(
                "batch: the net is bidirectional; its states are no chain, each direction's is one"
            )
        return TraceChain(self._weights, self._passes, b)

    def inside(self) -> dict[str, np.ndarray]:
        """Every step's state and gates.

        Returns
        -------
        dict of str to ndarray (L·D,T,B,H), or (L·D,T,H) unbatched
            "h"; of an LSTM also "c" and its gates "i", "f", "g", "o"; of a GRU "r", "z", "n"; of
            an MGU "f", "n".  Time goes as in x, in the reverse direction too, and comes before the
            batch whatever `batch_first`.  Zero beyond a sequence's length.  Copies.

        Examples
        --------
        >>> import numpy as np, fastbptt as fb
        >>> trace = fb.LSTM(3, 5, num_layers=2, rng=0).trace(np.ones((7, 2, 3), np.float32))
        >>> trace.inside()["c"].shape
        (2, 7, 2, 5)
        """
        return self._by_step([one.inside() for one in self._passes])
