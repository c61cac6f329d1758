"""BPTT that keeps one state in many, and runs the segments of time again when it goes back."""

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from . import checks
from .sequences import Sequences, sequences_of
from .trace import Gradients, Layout, Trace, run
from .weights import Weights

# dL/d output of one segment, from its first step and its output
SegmentLoss = Callable[[int, np.ndarray], Any]


class CheckpointedTrace:
    """A forward pass of which the state after every so many steps is kept; made by `net.trace`.

    Of the last segment all is kept that a first `backward` needs.  It has no `output`: with a large
    T that is most of what a trace holds.  `backward` gives each segment's to a function of yours,
    and `net(x)` all of it.

    Attributes
    ----------
    state : ndarray (L,B,H) or (L,H); an LSTM's is a tuple (h, c) of two
        The state after the last step of each sequence.
    """

    def __init__(
        self,
        weights: Weights,
        x: np.ndarray,
        lengths: np.ndarray | None,
        reset: np.ndarray | None,
        state: tuple[np.ndarray, ...] | None,
        layout: Layout,
        steps: int,
    ) -> None:
        """Run forward over x (T,B,I) in segments of `steps`; state (L,B,H) each, zeros if None."""
        self._weights, self._x, self._layout = weights, x, layout
        # copies, as a trace makes: of the arguments x alone must not change before `backward`
        self._lengths, self._reset = lengths, None if reset is None else reset.copy()
        state = state and tuple(part.copy() for part in state)
        T, B, _ = x.shape
        whole = len(weights.layers), B, weights.hidden_size
        self._shape = layout.state_shape(*whole)
        self._spans = [(t0, min(t0 + steps, T)) for t0 in range(0, max(T, 1), steps)]
        self._begin = [state]  # the state that each segment begins with
        for span in self._spans[:-1]:
            ends = [one.end() for one in run(weights, *self._segment(span), state, keep=False)]
            state = tuple(np.stack(part) for part in zip(*ends, strict=True))
            self._begin.append(state)
        # a first `backward` need not run it again
        self._last: Trace | None = Trace(weights, *self._segment(self._spans[-1]), state, layout)
        self.state = self._last.state

    def __getattr__(self, name: str) -> NoReturn:
        """What a trace has and this one has not is told; `hasattr` says False."""
        has = f"{name!r} of {type(self).__name__}: expected one of backward, state"
        hint = "; make the trace without `checkpoint`" if hasattr(Trace, name) else ""
        raise AttributeError(has + hint, name=name, obj=self)

    def __getstate__(self) -> dict[str, Any]:
        """Of copies, which have no trace: of two that go back at once each would hold one more."""
        return {**vars(self), "_last": None}

    def _segment(self, span: tuple[int, int]) -> tuple[np.ndarray, list[Sequences]]:
        """Its x, and how its sequences lie."""
        (t0, t1), B = span, self._x.shape[1]
        lengths, reset = self._lengths, self._reset
        if lengths is not None:
            lengths = np.clip(lengths - t0, 0, t1 - t0)
        if reset is not None:
            reset = reset[t0:t1]
        return self._x[t0:t1], [sequences_of(t1 - t0, B, lengths, reset)]

    def backward(
        self,
        d_output: np.ndarray | SegmentLoss | None = None,
        d_state: Any = None,
        input_gradient: bool = True,
    ) -> Gradients:
        """Back-propagation through time, with each segment's forward pass but the last made anew.

        Parameters
        ----------
        d_output : ndarray of the shape of the net's output, or a function, optional
            dL/d output; zeros if None.  A function is called as `d_output(t0, output)` for one
            segment after the other, the last one first, with its first step and its output,
            read-only and valid until it returns, and returns dL/d output of the segment or None.
        d_state : as `state`, optional
            dL/d state by other ways than `output`; zeros if None.
        input_gradient : bool
            Whether dL/dx is wanted; it is as large as x.

        Returns
        -------
        Gradients
            As `Trace.backward`'s, to rounding; the sums over segments are made in float64.

        Raises
        ------
        TypeError, ValueError
            For another dtype or shape.

        Notes
        -----
        Time: a forward pass more than without checkpoints, but for the last segment, whose trace is
        kept until the first `backward`: of four segments three quarters of one.  Memory above x and
        the results: one state a segment, and the trace of one (Griewank 1992, Optim. Methods Softw.
        1, 35-54, with one level of checkpoints).

        Examples
        --------
        >>> import numpy as np, fastbptt as fb
        >>> net, x = fb.RNN(3, 5, rng=0), np.ones((1000, 2, 3), np.float32)
        >>> trace = net.trace(x, checkpoint=100)
        >>> grads = trace.backward(lambda t0, output: 2 * output)  # of the sum of squares
        >>> grads.params["weight_hh_l0"].shape
        (5, 5)
        """
        weights, layout, (T, B, I) = self._weights, self._layout, self._x.shape
        dtype = weights.dtype
        input_gradient = checks.flag(input_gradient, "input_gradient")
        checks.states(d_state, "d_state", weights.design.has_c, dtype, self._shape)
        given = None
        if not callable(d_output) and d_output is not None:
            shape = layout.shape(T, B, weights.hidden_size)
            given = layout.time_major(checks.shaped(d_output, "d_output", dtype, shape))
        dx = np.empty(layout.shape(T, B, I), dtype) if input_gradient else None
        sums = {name: np.zeros(y.shape) for name, y in weights.arrays.items()}
        trace, self._last = self._last, None
        for span, begin in zip(self._spans[::-1], self._begin[::-1], strict=True):
            t0, t1 = span
            if trace is None:
                trace = Trace(weights, *self._segment(span), begin, layout)
            dy = layout.as_given(given[t0:t1]) if given is not None else None
            if callable(d_output):
                dy = d_output(t0, trace.output)
            one = trace.backward(dy, d_state, input_gradient)
            for name, y in one.params.items():
                sums[name] += y
            if dx is not None and one.x is not None:
                layout.time_major(dx)[t0:t1] = layout.time_major(one.x)
            d_state = one.state
            trace = None  # before the next segment has its own
            del dy, one
        return Gradients({name: y.astype(dtype) for name, y in sums.items()}, dx, d_state)
