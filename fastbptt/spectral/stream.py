"""The norm of a Jacobian product of any length, while the sequence streams by."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .. import checks, files
from ..kernels import stream as kernels
from ..kernels.jit import Entry
from ..kernels.memory import Pieces, pieces
from ..kernels.panels import padded
from ..kernels.sweeps import CHUNK_ROWS
from ..loading import saved_net
from ..network import Network
from ..networks import NETWORKS
from ..sequences import sequences_of
from ..threads import share
from ..trace import Layout
from . import factors
from .growth_curve import GrowthCurve
from .products import orthonormal
from .stream_result import StreamResult

_CALL = 2e9  # multiply-adds of one call of the kernel, some tens of ms: Ctrl-C is heard in between
_STEP = 5000  # multiply-adds that a step of a sequence takes as long as, beside its own
_FORMAT = "fastbptt.JacobianStream/2"


_pieces_of = functools.lru_cache(Pieces)  # of the panel and of what the kernel works in


@functools.lru_cache
def _entry(make: Callable[..., Any], dtype: np.dtype) -> Entry:
    """For the cells that `make` makes."""
    return Entry(kernels.stream)


class JacobianStream:
    """Norm and exponents of dh_T/dh_0 = J_T ... J_1 in one pass, in memory O(B N k) for any T.

    k random probes ride with the state through the same panel of weights.  They are
    orthonormalised when their measured conditioning asks for it, and the whole triangular factor
    is kept, its rows scaled by exact powers of two.

    Parameters
    ----------
    net : RNN, GRU, LSTM or MGU
        Of one direction; the state is that of all layers, an LSTM's h and c: N = L·H or 2·L·H.
    probes : int
        k, at least 1; no more than N are used, and with N of them the norm is exact.
    rng : int, numpy.random.Generator or None
        Draws the Gaussian block, the same for every sequence of the batch: a sequence's bits do
        not depend on the batch it is in.
    state : ndarray (L,B,H), or (L,H) for unbatched chunks, optional
        h_0, for an LSTM a tuple (h, c); zeros if None.

    Raises
    ------
    TypeError, ValueError
        Naming the argument.

    Notes
    -----
    With Omega (N,k) of iid N(0,1) and V its orthonormal factor `lower` is log ||P V|| and `upper`
    log ||P Omega|| - log(2)/2 - (log delta + log Gamma(k/2 + 1))/k: ||P Omega|| is at least
    ||P|| ||Omega' v_1||, whose square is chi^2 of k degrees of freedom (cf. Dixon 1983; Halko,
    Martinsson, Tropp 2011).  What is added at delta = 0.05, k = 8 is -0.37 nats, whatever T.
    Rounding moves all three by about T·eps·sqrt(N) nats at the very worst, as a random walk by
    sqrt(T) of it.  In float32 a slope below 1e-38 is zero.  Exponents: Benettin et al. 1980.

    Examples
    --------
    >>> import numpy as np, fastbptt as fb
    >>> stream = fb.JacobianStream(fb.RNN(3, 16, rng=0), probes=4, rng=0)
    >>> for chunk in np.split(np.ones((1000, 3), np.float32), 10):
    ...     stream.update(chunk)
    >>> result = stream.result()
    >>> bool(result.lower <= result.estimate <= result.upper < 0)
    True
    """

    def __init__(self, net: Network, probes: int = 8, rng: Any = 0, state: Any = None) -> None:
        if not isinstance(net, Network):
            raise TypeError(f"net: expected one of {', '.join(NETWORKS)}, got {type(net).__name__}")
        if net.bidirectional:
            raise ValueError(
                "net: expected one direction; the states of a bidirectional net are no chain"
            )
        self.net, self._weights = net, net.weights
        self._blocks = len(net.weights.layers) * (1 + net.weights.design.has_c)  # of H, in a state
        N = self._blocks * net.hidden_size
        self.probes = min(checks.size(probes, "probes"), N)
        self.steps = 0
        omega = checks.generator(rng).standard_normal((N, self.probes))
        rows, self._R0 = orthonormal(omega, omega.dtype)
        self._V = rows.T  # (N,k)
        self._layout: Layout | None = None
        self._carried: kernels.Stream | None = None
        self._curve = GrowthCurve()
        self._free, self._under_way = [None], False
        if state is not None:
            part, pair = state, net.weights.design.has_c
            if pair and isinstance(state, (tuple, list)) and len(state) == 2:
                part = state[0]
            elif pair:
                raise TypeError(f"state: expected a tuple (h, c), got {type(state).__name__}")
            shape = checks.array(part, "state", net.dtype).shape
            if len(shape) not in (2, 3):
                wanted = f"({net.num_layers}, B, {net.hidden_size})"
                raise ValueError(f"state: expected {wanted}, B left out if unbatched, got {shape}")
            B = shape[1] if len(shape) == 3 else 1
            self._begin(state, B, Layout(net.batch_first, len(shape) == 2))

    @property
    def state_size(self) -> int:
        """N, the numbers in a state: L·H, of an LSTM 2·L·H."""
        return len(self._V)

    def _begin(self, state: Any, B: int, layout: Layout) -> None:
        """Set up what is carried for B sequences."""
        net, k, H, dtype = self.net, self.probes, self.net.hidden_size, self.net.dtype
        slots, layers, Hp = net.weights.design.slots, len(net.weights.layers), padded(H, dtype)
        chunk = max(1, CHUNK_ROWS // max(B, 1))
        of_panel, of_a = (2, B, 1 + k, self._blocks * Hp), (layers * B, 1 + k, slots.width * Hp)
        wanted = _pieces_of(dtype, (of_panel, of_a, of_a, (chunk * B, slots.x * Hp)))
        panel, start, a, ax = pieces(wanted, zeros=True)
        bias = self._weights.stacked_cell.bias.reshape(layers, 1, -1)
        start.reshape(layers, B, *of_a[1:])[:, :, 0, : bias.shape[2]] = bias
        starts = sequences_of(chunk, B, None, None).starts
        self._work: tuple[np.ndarray, ...] = ax, start, a, starts
        blocks = panel.reshape(2, B, 1 + k, self._blocks, Hp)[0, ..., :H]  # (B,1+k,L·parts,H)
        if (parts := net.initial_state(state, B, layout)) is not None:
            blocks[:, 0] = np.stack(parts, axis=1).reshape(self._blocks, B, H).swapaxes(0, 1)
        blocks[:, 1:] = self._V.T.reshape(k, self._blocks, H)
        self._layout, self._carried = layout, kernels.begun(panel)

    def update(self, x: Any) -> None:
        """Carry the stream over a chunk; any cut into chunks gives the same bits.

        Parameters
        ----------
        x : ndarray (T,B,I), (B,T,I) if the net is `batch_first`, or (T,I)
            The next T steps, T >= 0; B and the rank stay those of the first chunk.

        Raises
        ------
        TypeError, ValueError
            For another dtype or shape; RuntimeError if the net's weights were changed since, if
            another `update` was interrupted, so that nobody knows how far it came, or if another
            thread has the stream.
        """
        with self._alone():
            self._carry(x)

    def _carry(self, x: Any) -> None:
        x, layout = self.net.time_major(x)
        x = checks.read_only(np.ascontiguousarray(x))
        T, B, I = x.shape
        if self.net.weights is not self._weights:
            raise RuntimeError("net: its weights changed while the stream was under way")
        if self._carried is None:
            self._begin(None, B, layout)
        carried = self._carried
        assert carried is not None
        first = self._layout
        assert first is not None
        if layout != first or carried.since.size != B:
            wanted = first.shape(T, carried.since.size, I)
            raise ValueError(
                f"x: expected shape {wanted} as in the first chunk, got {layout.shape(T, B, I)}"
            )
        H, rows_each, above = self.net.hidden_size, 1 + self.probes, len(self._weights.layers) - 1
        step = H * (I + H * rows_each) + above * 2 * H * H * rows_each
        cost = B * step * len(self._weights.design.gates)  # multiply-adds
        ax, *work, starts = self._work
        cell, state = self._weights.stacked_cell, tuple(carried)
        entry = _entry(self._weights.layers[0].make, self.net.dtype)
        length = max(1, int(_CALL / max(cost + B * _STEP, 1)))
        self._under_way = True
        for t0 in range(0, T, length):
            part, start = x[t0 : t0 + length], self.steps

            def rows(b0: int, b1: int, part: np.ndarray = part, start: int = start) -> None:
                entry.call(cell, part, ax, tuple(work), starts, (start, b0, b1), state)

            share(rows, B, cost * len(part))
            self.steps += len(part)
        self._curve.note(self.steps, self._norms)
        self._under_way = False

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Whoever has what is in `_free` has the stream; an `update` that did not end keeps it.

        What is carried and `steps` do not belong to each other then.
        """
        try:
            self._free.pop()
        except IndexError:
            raise RuntimeError(
                "stream: an update was interrupted, or another thread has the stream; "
                "begin a new stream, or go on from a saved one"
            ) from None
        try:
            yield
        finally:
            if not self._under_way:
                self._free.append(None)

    def __getstate__(self) -> dict[str, Any]:
        """A copy is nobody's yet, but broken if this one is."""
        return {**vars(self), "_free": [] if self._under_way else [None]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy, whose arrays are read-only if they are those of a pickle out of band."""
        vars(self).update(state)
        if self._carried is not None:
            self._work = kernels.writable(self._work)
            self._carried = kernels.Stream(*kernels.writable(self._carried))

    def _norms(self) -> factors.BlockNorms:
        """The norms now."""
        s = self._carried
        assert s is not None
        frames = np.ascontiguousarray(self._states(s)[:, 1:])
        own = s.since.size, *self._V.T.shape
        return factors.block_norms(frames.reshape(own), s.U, s.e, self._R0)

    def _states(self, s: kernels.Stream) -> np.ndarray:
        """The state and its tangents now, (B,1+k,L·parts,H)."""
        panel, H = s.panel[self.steps % 2], self.net.hidden_size
        return panel.reshape(*panel.shape[:2], self._blocks, padded(H, self.net.dtype))[..., :H]

    def result(self, delta: float = 0.05) -> StreamResult:
        """The interval of log ||dh_T/dh_0||, the growth curve and the exponents so far.

        Parameters
        ----------
        delta : float
            Probability with which `upper` may be wrong, for one sequence at one T; for a whole
            curve of C points take delta / C.

        Returns
        -------
        StreamResult

        Raises
        ------
        TypeError, ValueError
            For a delta not between 0 and 1; RuntimeError before the first `update`, after one that
            was interrupted, and if another thread has the stream.
        """
        delta = checks.probability(delta, "delta")
        with self._alone():
            return self._result(delta)

    def _result_and_blocks(self) -> tuple[StreamResult, np.ndarray, np.ndarray]:
        """`result()`, and of the first sequence the steps (n,) and growth (n,k) of its blocks."""
        with self._alone():
            result, s = self._result(0.05), self._carried
            assert s is not None  # or `_result` had raised
            n = s.block_count[0] if s.since.size else 0
            lengths, grown = s.block_steps[:1, :n].copy(), s.blocks[:1, :n].copy()
            return result, lengths.reshape(-1), grown.reshape(-1, self.probes)

    def _result(self, delta: float) -> StreamResult:
        s = self._carried
        if s is None or self._layout is None or not self._curve.points:
            raise RuntimeError("result: nothing was streamed yet; call update first")
        curves = self._interval(self._curve.norms(s.since.size), delta)
        if self._curve.points[-1][0] == self.steps:
            lower, estimate, upper = (y[-1].copy() for y in curves)
        else:
            lower, estimate, upper = self._interval(self._norms(), delta)
        exponents, error = np.full((2, *s.running.shape), math.nan)
        kernels.finite_time_exponents(tuple(s), exponents, error)
        if self._layout.unbatched:
            lower, estimate, upper, exponents, error = (
                y[0] for y in (lower, estimate, upper, exponents, error)
            )
            curves = tuple(y[:, 0] for y in curves)
        parts = 1 + self._weights.design.has_c
        B, H, layers = s.since.size, self.net.hidden_size, self._blocks // parts
        states = self._states(s)[:, 0].reshape(B, layers, parts, H).transpose(2, 1, 0, 3)
        shape = self._layout.state_shape(layers, B, H)
        state = tuple(np.array(part, order="C").reshape(shape) for part in states)
        return StreamResult(
            steps=self.steps,
            lower=lower,
            estimate=estimate,
            upper=upper,
            delta=delta,
            note=factors.estimate_note(self.state_size, self.probes),
            exponents=exponents,
            standard_error=error,
            curve_steps=self._curve.steps(),
            curve_lower=curves[0],
            curve_estimate=curves[1],
            curve_upper=curves[2],
            state=state if parts > 1 else state[0],
        )

    def _interval(self, norms: factors.BlockNorms, delta: float) -> tuple[np.ndarray, ...]:
        """lower, estimate and upper, arrays of the caller's own."""
        k, N = self.probes, len(self._V)
        lower = norms.lower.copy()
        if k == N:
            return lower, lower.copy(), lower.copy()
        upper = np.maximum(norms.gaussian + factors.upper_margin(k, delta), norms.lower)
        estimate = norms.lower + norms.gap * factors.expected_shortfall(N, k)
        return lower, np.minimum(estimate, upper), upper

    def save(self, path: Any) -> None:
        """Write everything, the net included, to an .npz; the file is replaced in one step.

        Parameters
        ----------
        path : str or path-like

        Raises
        ------
        OSError
            If it cannot be written; a file that was there stays.  RuntimeError after an `update`
            that was interrupted, and if another thread has the stream.
        """
        with self._alone():
            files.write_npz(path, self._arrays())

    def _arrays(self) -> dict[str, Any]:
        """All that a file holds."""
        net, layout = self.net, self._layout
        arrays: dict[str, Any] = {f"net.{name}": y for name, y in self._weights.arrays.items()}
        arrays |= {f"option.{name}": np.array(value) for name, value in net.options().items()}
        arrays |= {
            "format": np.array(_FORMAT),
            "kind": np.array(type(net).__name__),
            "counts": np.array([self.steps, self._curve.updates, self._curve.stride], np.int64),
            "V": self._V,
            "R0": self._R0,
        }
        if self._carried is not None and layout is not None:
            arrays |= {f"carried.{name}": y for name, y in self._carried._asdict().items()}
            arrays["unbatched"] = np.array(layout.unbatched)
            arrays |= self._curve.arrays(self._carried.since.size)
        return arrays

    @classmethod
    def load(cls, path: Any) -> "JacobianStream":
        """The stream that `save` wrote; what follows has the bits of a run that never stopped.

        Parameters
        ----------
        path : str or path-like

        Returns
        -------
        JacobianStream
            With a net of its own, in `net`.

        Raises
        ------
        ValueError
            If the file is not a whole one that `save` wrote.
        FileNotFoundError
            If there is none.
        """
        arrays = files.read_npz(path, "a saved JacobianStream")
        with files.reading(path, "a saved JacobianStream"):
            return cls._restored(arrays)

    @classmethod
    def _restored(cls, arrays: dict[str, np.ndarray]) -> "JacobianStream":
        if str(arrays["format"]) != _FORMAT:
            raise ValueError(f"expected format {_FORMAT}, got {arrays['format']}")
        parameters = {n[4:]: y for n, y in arrays.items() if n.startswith("net.")}
        options = {n[7:]: y.item() for n, y in arrays.items() if n.startswith("option.")}
        net = saved_net(parameters, {"kind": str(arrays["kind"]), **options})
        V, counts = arrays["V"], checks.shaped(arrays["counts"], "counts", np.dtype(np.int64), (3,))
        stream = cls(net, len(V.T))
        k, curve = stream.probes, stream._curve
        stream._V = checks.shaped(V, "V", np.dtype(float), (len(stream._V), k))
        R0 = checks.shaped(arrays["R0"], "R0", np.dtype(float), (k, k))
        stream._R0 = np.ascontiguousarray(R0)  # as kernels were compiled for
        stream.steps, curve.updates, curve.stride = counts.tolist()
        if "carried.since" in arrays:
            panel = arrays["carried.panel"]
            B = panel.shape[1] if panel.ndim > 1 and panel.size else 0
            stream._begin(None, B, Layout(net.batch_first, bool(arrays["unbatched"])))
            assert stream._carried is not None
            for name, y in stream._carried._asdict().items():
                y[...] = checks.shaped(arrays[f"carried.{name}"], name, y.dtype, y.shape)
            curve.restore(arrays, B)
        begun = stream._carried
        if counts.min() < 0 or curve.stride < 1 or not (begun is None or begun.sound()):
            raise ValueError("expected counts that a stream can have")
        return stream
