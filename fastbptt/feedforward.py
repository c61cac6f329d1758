"""Dense nets, whose depth is the time: the same Jacobian chains, with another W in each layer."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from . import checks
from .chains import MatrixChain
from .kernels.activations import MAX_SLOPE, TAGS
from .kernels.dense import activate
from .matrix_norms import norms


class FeedForwardGradients(NamedTuple):
    """What `FeedForwardTrace.backward` returns."""

    weights: list[np.ndarray]  # (n_l, n_{l-1}) each
    biases: list[np.ndarray] | None  # (n_l,) each
    x: np.ndarray  # (B,I)
    layers: list[np.ndarray]  # dL/dh_l (B,n_l), l = 0 .. L: what vanishes or explodes with depth


class FeedForward:
    """h_l = f(W_l h_{l-1} + b_l), l = 1 .. L.

    Parameters
    ----------
    weights : sequence of L ndarrays (n_l, n_{l-1}), or ndarray (L,n,n)
        float32 or float64, all of one dtype.
    biases : sequence of L ndarrays (n_l,), or ndarray (L,n), optional
    nonlinearity : {"tanh", "relu", "sigmoid"}
        Of every layer.

    Attributes
    ----------
    weights, biases, nonlinearity, dtype
        As given, in tuples of read-only copies; assigning to them raises AttributeError.

    Raises
    ------
    TypeError, ValueError
        Naming the array that does not fit.

    Examples
    --------
    >>> import numpy as np, fastbptt as fb
    >>> rng = np.random.default_rng(0)
    >>> net = fb.FeedForward([rng.normal(size=(8, 8)) / 8**0.5 for _ in range(50)])
    >>> chain = net.trace(rng.normal(size=(3, 8))).chain(batch=0)
    >>> bool(fb.log_norm(chain).upper < -5)
    True
    """

    def __init__(self, weights: Any, biases: Any = None, nonlinearity: str = "tanh") -> None:
        if not isinstance(weights, (Sequence, np.ndarray)) or not len(weights):
            raise TypeError("weights: expected a sequence of at least one matrix")
        self.dtype = checks.dtype(np.asarray(weights[0]).dtype)
        self.weights = tuple(
            checks.read_only(np.array(checks.array(w, f"weights[{l}]", self.dtype)))
            for l, w in enumerate(weights)
        )
        for l, w in enumerate(self.weights):
            below = self.weights[l - 1].shape[0] if l else None
            if w.ndim != 2 or 0 in w.shape or (l and w.shape[1] != below):
                columns = "n" if below is None else below
                raise ValueError(f"weights[{l}]: expected shape (m, {columns}), got {w.shape}")
        given = len(biases) if isinstance(biases, Sequence) or np.ndim(biases) else -1
        if biases is not None and given != len(self.weights):
            got = type(biases).__name__ if given < 0 else given
            raise ValueError(f"biases: expected {len(self.weights)}, one a layer, got {got}")
        self.biases = (
            biases
            if biases is None
            else tuple(
                checks.read_only(
                    checks.shaped(b, f"biases[{l}]", self.dtype, (len(self.weights[l]),)).copy()
                )
                for l, b in enumerate(biases)
            )
        )
        self.nonlinearity = checks.choice(nonlinearity, "nonlinearity", TAGS)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__:  # a trace reads them again
            raise checks.settled(name, "FeedForward")
        super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """The arguments: NumPy's own copies and pickles of the arrays could be written to."""
        return type(self), (self.weights, self.biases, self.nonlinearity)

    def __call__(self, x: Any) -> np.ndarray:
        """h_L (B,n_L) of x (B,I), or (n_L,) of (I,)."""
        return self.trace(x).output

    def trace(self, x: Any) -> "FeedForwardTrace":
        """A forward pass over x (B,I) or (I,), kept for `backward` and `chain`.

        x is kept and not copied, and `backward` reads it again: do not change it before.

        Raises
        ------
        TypeError, ValueError
            For another dtype or shape.
        """
        y = checks.array(x, "x", self.dtype)
        I = self.weights[0].shape[1]
        if y.ndim not in (1, 2) or y.shape[-1] != I:
            raise ValueError(f"x: expected shape (B, {I}) or ({I},), got {y.shape}")
        return FeedForwardTrace(self, y)


class FeedForwardTrace:
    """What a forward pass leaves: `output`, the layers' outputs `h`, and their slopes."""

    def __init__(self, net: FeedForward, x: np.ndarray) -> None:
        self._net, self._unbatched = net, x.ndim == 1
        self.h = [x.reshape(-1, x.shape[-1])]
        self._slopes: list[np.ndarray] = []
        for l, w in enumerate(net.weights):
            a = self.h[-1] @ w.T
            if net.biases is not None:
                a += net.biases[l]
            h, slopes = np.empty_like(a), np.empty_like(a)
            activate(TAGS[net.nonlinearity], a.reshape(-1), h.reshape(-1), slopes.reshape(-1))
            self.h.append(h)
            self._slopes.append(slopes)
        self.output = self.h[-1][0] if self._unbatched else self.h[-1]

    def backward(self, d_output: Any) -> FeedForwardGradients:
        """Back-propagation from dL/d output.

        Parameters
        ----------
        d_output : ndarray of the shape of `output`

        Returns
        -------
        FeedForwardGradients

        Raises
        ------
        TypeError, ValueError
            For another dtype or shape.
        """
        net = self._net
        dh = checks.shaped(d_output, "d_output", net.dtype, self.output.shape)
        dh = dh.reshape(self.h[-1].shape)
        layers, weights, biases = [dh], [], []
        for l in range(len(net.weights) - 1, -1, -1):
            da = dh * self._slopes[l]  # (B,n_l): through the nonlinearity
            weights.append(da.T @ self.h[l])
            biases.append(da.sum(axis=0))
            dh = da @ net.weights[l]
            layers.append(dh)
        return FeedForwardGradients(
            weights[::-1],
            biases[::-1] if net.biases is not None else None,
            dh[0] if self._unbatched else dh,
            layers[::-1],
        )

    def chain(self, batch: int = 0) -> "DenseChain":
        """The Jacobians dh_l/dh_{l-1} = diag(f'(a_l)) W_l of one row of x.

        Raises
        ------
        TypeError, ValueError
            For a row that is not there.
        """
        b = checks.size(batch, "batch", least=0)
        if b >= len(self.h[0]):
            raise ValueError(f"batch: expected below {len(self.h[0])}, got {b}")
        return DenseChain(self._net, [slopes[b] for slopes in self._slopes])


class DenseChain(MatrixChain):
    """The Jacobians of the layers for one row; made by `FeedForwardTrace.chain`."""

    def __init__(self, net: FeedForward, slopes: list[np.ndarray]) -> None:
        super().__init__([f[:, None] * w for f, w in zip(slopes, net.weights, strict=True)])
        self._net = net

    def classical_bound(self, t: int, s: int) -> float:
        """As `Chain.classical_bound`, of layers s+1 .. t."""
        weights = [norms(w[None])[0] for w in self._net.weights[s:t]]
        return float(sum(weights)) + (t - s) * math.log(MAX_SLOPE[self._net.nonlinearity])
