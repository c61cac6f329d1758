"""Chains of Jacobians: of given matrices and of the user's own; of a trace in trace_chain.py.

P(t,s) = J_t ... J_{s+1} takes the state after s steps to the state after t steps, 0 <= s <= t <= T.
"""

import abc
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from . import checks, matrix_norms
from .kernels import chain as kernels
from .kernels.memory import Pieces, aligned, pieces

_places = functools.lru_cache(Pieces)  # of blocks of rows: short calls are many
_AT_ONCE = 1 << 20  # numbers of Jacobians whose norms are found in one go
_COST = 2e9  # T N³ of a chain whose steps' norms are found exactly: some 2 s


class Operator:
    """P(t,s) as SciPy's `aslinearoperator`, `svds` and `lobpcg` accept it.

    Vectors of another real dtype are cast to the chain's, as SciPy starts with float64.
    """

    def __init__(self, chain: "Chain", t: int, s: int) -> None:
        self._chain, self._t, self._s = chain, t, s
        self.shape, self.dtype = (chain.size(t), chain.size(s)), chain.dtype

    def matvec(self, v: Any) -> np.ndarray:
        """P v, v (n,) or (n,1)."""
        return self.matmat(np.ravel(v))

    def rmatvec(self, u: Any) -> np.ndarray:
        """P' u, u (m,) or (m,1)."""
        return self.rmatmat(np.ravel(u))

    def matmat(self, V: Any) -> np.ndarray:
        """P V, V (n,k)."""
        return self._chain.matvec(self._t, self._s, self._cast(V))

    def rmatmat(self, U: Any) -> np.ndarray:
        """P' U, U (m,k)."""
        return self._chain.rmatvec(self._t, self._s, self._cast(U))

    def __matmul__(self, V: Any) -> np.ndarray:
        return self.matmat(V)

    def _cast(self, V: Any) -> np.ndarray:
        y = np.asarray(V)
        return y.astype(self.dtype, copy=False) if y.dtype.kind in "fiub" else y


class Chain(abc.ABC):
    """A product of Jacobians that is applied and never formed.

    For a chain of your own write the four abstract methods; every function of `fastbptt` that takes
    a chain takes it then.  `push` and `pull` need not scale: they are asked to go no farther than
    their results stay in range, which is found out by trying.  Two threads may call them at once.

    Attributes
    ----------
    dtype : numpy.dtype
        float32 or float64: of the vectors that `push` and `pull` get and return.

    Examples
    --------
    >>> import numpy as np, fastbptt as fb
    >>> class Turning(fb.Chain):
    ...     dtype = np.dtype(float)
    ...     turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    ...
    ...     def __len__(self):
    ...         return 100
    ...
    ...     def size(self, t):
    ...         return 2
    ...
    ...     def push(self, s, t, rows):
    ...         return rows @ np.linalg.matrix_power(self.turn, t - s).T
    ...
    ...     def pull(self, t, s, rows):
    ...         return rows @ np.linalg.matrix_power(self.turn, t - s)
    >>> round(abs(fb.log_norm(Turning()).estimate), 9)
    0.0
    """

    dtype: np.dtype

    @abc.abstractmethod
    def __len__(self) -> int:
        """T, the number of factors."""

    @abc.abstractmethod
    def size(self, t: int) -> int:
        """N_t, the size of the state after t steps; J_t is (N_t, N_{t-1})."""

    @abc.abstractmethod
    def push(self, s: int, t: int, rows: np.ndarray) -> np.ndarray:
        """rows P(t,s)': rows (k,N_s) -> (k,N_t), s <= t."""

    @abc.abstractmethod
    def pull(self, t: int, s: int, rows: np.ndarray) -> np.ndarray:
        """rows P(t,s): rows (k,N_t) -> (k,N_s), s <= t."""

    def push_groups(self, firsts: np.ndarray, count: int, rows: np.ndarray) -> np.ndarray:
        """`push` of rows (G,k,N), group g from step firsts[g] by `count` steps."""
        return np.stack(
            [self.push(int(s), int(s) + count, own) for s, own in zip(firsts, rows, strict=True)]
        )

    def pull_groups(self, firsts: np.ndarray, count: int, rows: np.ndarray) -> np.ndarray:
        """`pull` of rows (G,k,N), group g from state firsts[g] by `count` steps."""
        return np.stack(
            [self.pull(int(t), int(t) - count, own) for t, own in zip(firsts, rows, strict=True)]
        )

    def history(self, start: int, stop: int, rows: np.ndarray) -> Any:
        """The rows (k,N) after each step, pushed from `start` to `stop` or pulled there."""
        kept, way = [], 1 if stop > start else -1
        for at in range(start, stop, way):
            rows = self.push(at, at + 1, rows) if way > 0 else self.pull(at, at - 1, rows)
            kept.append(rows)
        return kept

    def sizes(self) -> set[int]:
        """The sizes of all states."""
        return {self.size(t) for t in range(len(self) + 1)}

    def step_bounds(self) -> np.ndarray:
        """Upper bounds (T,) of log ||J_t||, t = 1 .. T, nats, that hold but for rounding.

        The norms themselves of states of N <= 64 numbers where T N^3 <= 2e9; else the lesser of
        Frobenius' norm and the root of ||J||_1 ||J||_inf, up to log(N)/2 too large, and of a trace
        what the norms of its weights and the largest slopes bound.  A chain of your own pushes as
        many vectors as its state has numbers for it.
        """
        T, N = len(self), max(self.sizes())
        if N <= matrix_norms.MOST_UNITS and T * float(N) ** 3 <= _COST:
            return self.step_norms(np.arange(T))
        return self._loose_bounds()

    def step_norms(self, firsts: np.ndarray) -> np.ndarray:
        """log ||J_{s+1}|| to rounding, nats, of the states s in `firsts`; for small N."""
        found = [matrix_norms.norms(J) for J in self._jacobians(firsts)]
        return np.concatenate([np.zeros(0), *found])

    def _loose_bounds(self) -> np.ndarray:
        """As `step_bounds`, of states of any size."""
        found = [matrix_norms.bounds(J) for J in self._jacobians(np.arange(len(self)))]
        return np.concatenate([np.zeros(0), *found])

    def _jacobians(self, firsts: np.ndarray) -> Iterator[np.ndarray]:
        """`_stacked` of as many of `firsts` at once as memory bears."""
        N = self.size(0)
        some = max(1, _AT_ONCE // (N * N)) if self.sizes() == {N} else 1
        return (self._stacked(firsts[i : i + some]) for i in range(0, len(firsts), some))

    def _stacked(self, firsts: np.ndarray) -> np.ndarray:
        """J_{s+1} or its transpose for each s in `firsts`, (n,N,M)."""
        N = self.size(int(firsts[0]))
        units = np.broadcast_to(np.eye(N, dtype=self.dtype), (len(firsts), N, N))
        return self.push_groups(firsts, 1, units)

    def classical_bound(self, t: int, s: int) -> float:
        """Sum of log(max|f'| ||W||) over steps s+1 .. t of a plain net, nats; NaN of others."""
        return math.nan

    def window(self, t: Any, s: Any) -> tuple[int, int]:
        """t and s, checked; T for t = None."""
        T = len(self)
        t = T if t is None else checks.size(t, "t", least=0)
        s = checks.size(s, "s", least=0)
        if not s <= t <= T:
            raise ValueError(f"t, s: expected 0 <= s <= t <= {T}, got t = {t}, s = {s}")
        return t, s

    def _apply(self, vectors: Any, name: str, t: int, s: int, forward: bool) -> np.ndarray:
        n = self.size(s if forward else t)
        y = checks.array(vectors, name, self.dtype)
        if y.ndim not in (1, 2) or y.shape[0] != n:
            raise ValueError(f"{name}: expected shape ({n},) or ({n}, k), got {y.shape}")
        if not y.size:
            return np.zeros((self.size(t if forward else s), 0), self.dtype)
        block = np.ascontiguousarray(y.reshape(n, -1).T)
        if s < t:
            block = self.push(s, t, block) if forward else self.pull(t, s, block)
        return block.T.reshape(-1, *y.shape[1:])

    def matvec(self, t: int, s: int, v: Any) -> np.ndarray:
        """P(t,s) v.

        Parameters
        ----------
        t, s : int
            0 <= s <= t <= T.
        v : ndarray (N_s,) or (N_s,k)
            Of the chain's dtype.

        Returns
        -------
        ndarray (N_t,) or (N_t,k)
            In plain numbers: a long product may overflow, `log_norm` does not.

        Raises
        ------
        TypeError, ValueError
            For another dtype or shape, or steps out of range.
        """
        t, s = self.window(t, s)
        return self._apply(v, "v", t, s, forward=True)

    def rmatvec(self, t: int, s: int, u: Any) -> np.ndarray:
        """P(t,s)' u, u (N_t,) or (N_t,k); otherwise as `matvec`."""
        t, s = self.window(t, s)
        return self._apply(u, "u", t, s, forward=False)

    def matrix(self, t: int, s: int) -> np.ndarray:
        """P(t,s) itself, (N_t,N_s), for small cases."""
        t, s = self.window(t, s)
        return self.matvec(t, s, np.eye(self.size(s), dtype=self.dtype))

    def operator(self, t: int, s: int) -> Operator:
        """P(t,s) for SciPy: `shape`, `dtype`, `matvec`, `rmatvec`, `matmat`, `rmatmat`."""
        return Operator(self, *self.window(t, s))


class CompiledChain(Chain):
    """A chain of square Jacobians whose steps are kernels."""

    _chain: Any
    _N: int
    _steps: int
    _wide = 0  # columns of the work space

    def __len__(self) -> int:
        return self._steps

    def size(self, t: int) -> int:
        """N, of every state."""
        return self._N

    def sizes(self) -> set[int]:
        """N alone."""
        return {self._N}

    def _rows(self, rows: np.ndarray) -> np.ndarray:
        """rows (M,N) as the kernels want them, a copy."""
        return np.array(rows, self.dtype, order="C")

    def _plain(self, rows: np.ndarray) -> np.ndarray:
        """The inverse of `_rows`, for rows (...,M,.)."""
        return rows

    def _work(self, now: np.ndarray, wide: int) -> tuple[np.ndarray, np.ndarray]:
        """`after` and `a` of a block of rows `now`, in one allocation: short calls are many."""
        after, a = pieces(_places(self.dtype, (now.shape, (len(now), wide))))
        return after, a

    def _check(self, firsts: np.ndarray, count: int, rows: np.ndarray, forward: bool) -> None:
        """What kernels do not: steps that there are, and rows (G,k,N) of the states' size."""
        T, G = len(self), len(firsts)
        least, most = (0, T - count) if forward else (count, T)
        low, high = (firsts.min(), firsts.max()) if G > 1 else [firsts[0] if G else least] * 2
        if count < 0 or not least <= low <= high <= most:
            raise ValueError(
                f"chain: expected steps within 0 .. {T}, got {count} {'on' if forward else 'back'} "
                f"from {low} .. {high}"
            )
        wanted = self.size(int(low))
        if rows.ndim != 3 or len(rows) != G or rows.shape[2] != wanted:
            raise ValueError(f"rows: expected {G} groups (k, {wanted}), got shape {rows.shape}")

    def _run(
        self, firsts: np.ndarray, count: int, rows: np.ndarray, forward: bool, record: bool
    ) -> Any:
        self._check(firsts, count, rows, forward)
        groups, k, N = rows.shape
        now = self._rows(rows.reshape(groups * k, N))
        kept = aligned((count if record else 0, *now.shape), self.dtype)
        block = kernels.Block(now, *self._work(now, self._wide), k)
        firsts = np.asarray(firsts, np.int64)
        (kernels.push if forward else kernels.pull)(self._chain, firsts, count, block, kept)
        return self._plain(kept if record else now.reshape(groups, k, now.shape[1]))

    def push(self, s: int, t: int, rows: np.ndarray) -> np.ndarray:
        """As `Chain.push`."""
        return self._run(np.array([s]), t - s, rows[None], forward=True, record=False)[0]

    def pull(self, t: int, s: int, rows: np.ndarray) -> np.ndarray:
        """As `Chain.pull`."""
        return self._run(np.array([t]), t - s, rows[None], forward=False, record=False)[0]

    def push_groups(self, firsts: np.ndarray, count: int, rows: np.ndarray) -> np.ndarray:
        """As `Chain.push_groups`, in one call."""
        return self._run(firsts, count, rows, forward=True, record=False)

    def pull_groups(self, firsts: np.ndarray, count: int, rows: np.ndarray) -> np.ndarray:
        """As `Chain.pull_groups`, in one call."""
        return self._run(firsts, count, rows, forward=False, record=False)

    def history(self, start: int, stop: int, rows: np.ndarray) -> Any:
        """The rows (k,N) after each step, pushed from `start` to `stop` or pulled there."""
        count, forward = abs(stop - start), stop > start
        return self._run(np.array([start]), count, rows[None], forward, record=True)


class MatrixChain(CompiledChain):
    """A chain of given Jacobians.

    Parameters
    ----------
    J : ndarray (T,N,N), or sequence of T ndarrays (N_t,N_{t-1})
        float32 or float64, J[0] the first to be applied; kept, not copied, where contiguous.

    Raises
    ------
    TypeError, ValueError
        For another dtype, or shapes that do not fit one another.

    Examples
    --------
    >>> import math, numpy as np, fastbptt as fb
    >>> chain = fb.MatrixChain(np.stack([2 * np.eye(3)] * 1000))
    >>> round(fb.log_norm(chain).estimate / math.log(2), 6)
    1000.0
    """

    def __init__(self, J: Any) -> None:
        if isinstance(J, np.ma.MaskedArray):
            raise TypeError("J: expected plain numbers, got a masked array; use J.filled(0)")
        stacked = np.asarray(J) if hasattr(J, "ndim") else None
        if stacked is None and not isinstance(J, Sequence):
            raise TypeError(f"J: expected an array or a sequence of them, got {type(J).__name__}")
        if stacked is not None and (stacked.ndim != 3 or stacked.shape[1] != stacked.shape[2]):
            raise ValueError(
                f"J: expected shape (T, N, N), got {stacked.shape}; a list may hold rectangular "
                "matrices"
            )
        if stacked is None and not len(J):
            raise ValueError("J: expected at least one matrix in a list, got none")
        first = stacked if stacked is not None else np.asarray(J[0])
        self.dtype = checks.dtype(first.dtype)
        matrices = stacked if stacked is not None else J
        self._J = [checks.array(step, f"J[{t}]", self.dtype) for t, step in enumerate(matrices)]
        for t, step in enumerate(self._J):
            if step.ndim != 2 or 0 in step.shape:
                raise ValueError(f"J[{t}]: expected a matrix, got shape {step.shape}")
            if t and step.shape[1] != len(self._J[t - 1]):
                raise ValueError(
                    f"J[{t}]: expected {len(self._J[t - 1])} columns, as J[{t - 1}] has rows, got "
                    f"shape {step.shape}"
                )
        self._sizes = [first.shape[-1], *(len(step) for step in self._J)]
        self._steps, self._chain = len(self._J), None
        if len(set(self._sizes)) == 1:
            whole = stacked if stacked is not None else np.stack(self._J)
            self._chain = kernels.Matrices(checks.read_only(np.ascontiguousarray(whole)))
            self._J = list(self._chain.J)  # what the kernels read, be it a copy

    def __getstate__(self) -> dict[str, Any]:
        """The matrices once, and not what the kernels read."""
        whole = self._J if self._chain is None else self._chain.J
        return {**self.__dict__, "_J": whole, "_chain": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """NumPy's own copies could be written to: the kernels would be compiled for these anew."""
        self.__dict__.update(state)
        if isinstance(self._J, np.ndarray):
            self._chain = kernels.Matrices(checks.read_only(self._J))
            self._J = list(self._chain.J)

    def size(self, t: int) -> int:
        """N_t."""
        return self._sizes[t]

    def sizes(self) -> set[int]:
        """As `Chain.sizes`."""
        return set(self._sizes)

    def _stacked(self, firsts: np.ndarray) -> np.ndarray:
        return np.stack([self._J[s] for s in firsts.tolist()])

    def _run(
        self, firsts: np.ndarray, count: int, rows: np.ndarray, forward: bool, record: bool
    ) -> Any:
        if self._chain is not None:
            return super()._run(firsts, count, rows, forward, record)
        self._check(firsts, count, rows, forward)
        groups, kept = [], []
        for first, y in zip(firsts.tolist(), rows, strict=True):
            for i in range(count):
                y = y @ self._J[first + i].T if forward else y @ self._J[first - 1 - i]
                kept.append(y)
            groups.append(y)
        return kept if record else np.stack(groups) if groups else rows.copy()
