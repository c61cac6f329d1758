"""A forward pass, and back-propagation through time over it."""

from typing import Any, NamedTuple

import numpy as np

from . import checks
from .kernels.panels import aligned, bias_gradient, gradient_scratch, padded, weight_gradient
from .kernels.simd import VECTORS, lanes
from .kernels.sweeps import backward, forward
from .threads import share
from .weights import RNNWeights

# Of da in one chunk: long enough that handing out the work costs little, short enough for L3.
_CHUNK_BYTES = 1 << 21


def _chunk_steps(B: int, H: int, dtype: np.dtype) -> int:
    """Steps of a chunk of time: a function of the shape alone, so that sums keep their order."""
    return max(1, _CHUNK_BYTES // (max(B, 1) * padded(H, dtype) * dtype.itemsize))


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

    def state_shape(self, B: int, H: int) -> tuple[int, ...]:
        """The shape of a state of one layer."""
        return (1, H) if self.unbatched else (1, B, H)


class Gradients(NamedTuple):
    """What `Trace.backward` returns; every array has the shape of what it is the gradient of."""

    params: dict[str, np.ndarray]
    x: np.ndarray
    state: np.ndarray


class Trace:
    """A forward pass, kept so that BPTT can go back through it; made by `net.trace`.

    Attributes
    ----------
    output : ndarray (T,B,H), (B,T,H) if the net is `batch_first`, or (T,H)
        h_1 .. h_T, read-only.
    state : ndarray (1,B,H) or (1,H)
        h_T.
    """

    def __init__(
        self, weights: RNNWeights, x: np.ndarray, state: np.ndarray, layout: Layout
    ) -> None:
        """Run forward over x (T,B,I), contiguous and read-only, from state (B,H)."""
        T, B, I = x.shape
        H, dtype = weights.hidden_size, weights.dtype
        h = aligned((T + 1, B, padded(H, dtype)), dtype)
        h[0] = 0
        h[0, :, :H] = state
        cell, width = weights.cell, lanes(dtype)
        steps = 16 * _chunk_steps(B, H, dtype)  # some tens of ms: Ctrl-C is heard between them
        for t0 in range(0, T, steps):
            t1 = min(t0 + steps, T)

            def rows(b0: int, b1: int, t0: int = t0, t1: int = t1) -> None:
                forward(cell, x, h, width, t0, t1, b0, b1)

            share(rows, B, (t1 - t0) * B * H * (I + H))
        self._weights, self._x, self._h, self._layout = weights, x, h, layout
        self.output = layout.as_given(h[1:, :, :H])
        self.output.flags.writeable = False
        self.state = h[T, :, :H].reshape(layout.state_shape(B, H)).copy()

    def backward(self, d_output: Any = None, d_state: Any = None) -> Gradients:
        """Back-propagation through time.

        Parameters
        ----------
        d_output : ndarray of the shape of `output`, optional
            dL/d output; zeros if None.
        d_state : ndarray of the shape of `state`, optional
            dL/d h_T by other ways than `output`; zeros if None.

        Returns
        -------
        Gradients
            `params` (dict under PyTorch's names), `x` and `state` (dL/dh_0).  Sums over steps and
            rows are made of blocks of 256, so that their rounding grows with T·B / 256.

        Raises
        ------
        TypeError, ValueError
            For another dtype or shape.

        Notes
        -----
        da_t = f'(a_t) (d_output_t + W_hh' da_{t+1}), dW_hh = sum_t da_t h_{t-1}',
        dW_ih = sum_t da_t x_t', dx_t = W_ih' da_t (Werbos 1990, Proc. IEEE 78, 1550-1560).

        Examples
        --------
        >>> import numpy as np, fastbptt as fb
        >>> trace = fb.RNN(3, 5, rng=0).trace(np.ones((7, 2, 3), np.float32))
        >>> trace.backward(np.ones_like(trace.output)).params["weight_hh_l0"].shape
        (5, 5)
        """
        weights, x, h, layout = self._weights, self._x, self._h, self._layout
        T, B, I = x.shape
        H, dtype, Hp = weights.hidden_size, weights.dtype, h.shape[2]
        dy = self._d_output(d_output)
        dh = aligned((B, Hp), dtype)  # all of dL/dh[t] but what comes through h[t+1]
        dh[:] = dy[T - 1] if T else 0
        if d_state is not None:
            shape = layout.state_shape(B, H)
            dh[:, :H] += checks.shaped(d_state, "d_state", dtype, shape).reshape(B, H)

        cell, width = weights.adjoint_cell, lanes(dtype)
        panel = VECTORS * width
        dx = aligned((T, B, padded(I, dtype)), dtype)
        panels_hh, panels_ih = -(-H // panel), -(-I // panel)
        dw_hh = np.zeros((H, panels_hh * panel), dtype)
        dw_ih = np.zeros((H, panels_ih * panel), dtype)
        db = np.zeros(Hp, dtype)
        steps = _chunk_steps(B, H, dtype)
        chunk = aligned((min(steps, T), B, Hp), dtype)
        for t1 in range(T, 0, -steps):
            t0 = max(0, t1 - steps)
            da = chunk[: t1 - t0]

            def rows(b0: int, b1: int, t0: int = t0, t1: int = t1, da: np.ndarray = da) -> None:
                backward(cell, dy, h, da, dx, dh, width, t0, t1, b0, b1)

            def sums(
                first: int, last: int, t0: int = t0, t1: int = t1, da: np.ndarray = da
            ) -> None:
                scratch = gradient_scratch(last - first, dtype)
                s = da.reshape(-1, Hp)
                b = checks.read_only(h[t0:t1].reshape(-1, Hp))
                weight_gradient(s, b, dw_hh, first, max(first, min(last, panels_hh)), scratch)
                b = x[t0:t1].reshape(-1, I)
                p0 = max(first - panels_hh, 0)
                weight_gradient(s, b, dw_ih, p0, max(p0, last - panels_hh), scratch)
                if first == 0:
                    bias_gradient(s, db, np.empty(Hp, dtype))

            cost = (t1 - t0) * B * H * (I + H)
            share(rows, B, cost)
            share(sums, panels_hh + panels_ih, cost)
        params = {"weight_ih_l0": dw_ih[:, :I], "weight_hh_l0": dw_hh[:, :H]}
        params |= {name: db[:H] for name in weights.arrays if name.startswith("bias")}
        return Gradients(
            {name: np.array(value, order="C") for name, value in params.items()},
            np.ascontiguousarray(layout.as_given(dx[:, :, :I])),
            dh[:, :H].reshape(layout.state_shape(B, H)).copy(),
        )

    def _d_output(self, d_output: Any) -> np.ndarray:
        """d_output, checked, as (T,B,Hp) with whatever in the padding."""
        weights, layout = self._weights, self._layout
        T, B, _ = self._x.shape
        H, dtype, Hp = weights.hidden_size, weights.dtype, self._h.shape[2]
        if d_output is not None:
            given = layout.time_major(
                checks.shaped(d_output, "d_output", dtype, layout.shape(T, B, H))
            )
            if Hp == H:
                return checks.read_only(np.ascontiguousarray(given))
        dy = np.zeros((T, B, Hp), dtype)
        if d_output is not None:
            dy[:, :, :H] = given
        return checks.read_only(dy)
