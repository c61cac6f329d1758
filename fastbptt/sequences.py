"""How the sequences of a batch lie in the rows that kernels read (kernels/sweeps.py).

Rows exist for steps that exist: what pads a ragged batch is neither computed nor read.  A reset
cuts a sequence into pieces that are sequences of their own, and the reverse direction reads each
from its end; so kernels know of neither.
"""

import functools

import numpy as np

_SHORT = 1 << 12  # steps of sequences that are kept for the next call


class Sequences:
    """B sequences of up to T steps, read in one direction.

    Parameters
    ----------
    T, B : int
    lengths : ndarray of int (B,), optional
        T each if None.
    reset : ndarray of bool (T,B), optional
        Where the carried state is zeroed before a step; nowhere if None.
    reverse : bool
        Whether each sequence is read from its last step to its first.

    Attributes
    ----------
    N, S, longest : int
        Pieces, steps of them all, and steps of the longest.
    dense : bool
        Whether all lengths are T and nothing is reset.
    lengths : ndarray of int (N,)
        Steps of each piece, longest first.
    starts : ndarray of int (longest + 2,)
        First row of each state (kernels/sweeps.py).
    """

    def __init__(
        self,
        T: int,
        B: int,
        lengths: np.ndarray | None = None,
        reset: np.ndarray | None = None,
        reverse: bool = False,
    ) -> None:
        self.T, self.B, self.reverse = T, B, reverse
        self.dense = lengths is None and reset is None
        if self.dense:
            self.N, self.longest, self.S = B, T, T * B
            self.starts = np.arange(T + 2) * B
            return
        until = np.full(B, T) if lengths is None else lengths
        row, start, length = _pieces(until, reset)
        order = np.argsort(-length, kind="stable")
        row, start, length = row[order], start[order], length[order]
        self._row = row
        self.N, self.S = row.size, int(length.sum())
        self.longest = int(length.max(initial=0))
        counts = np.searchsorted(-length, -np.arange(self.longest), side="left")
        self.starts = np.concatenate([[0, self.N], self.N + np.cumsum(counts)])
        self.lengths = length
        # The flat (T·B) row of x of each step: pieces in order within each step.
        step = np.repeat(np.arange(self.longest), counts)
        piece = np.arange(self.S) - np.repeat(self.starts[1:-1] - self.N, counts)
        time = start[piece] + (length[piece] - 1 - step if reverse else step)
        self._flat = time * B + row[piece]
        # The piece that begins with the given state, none where a reset comes first; and the last.
        at_first, at_last = start == 0, start + length == until[row]
        begins, ends = (at_last, at_first) if reverse else (at_first, at_last)
        if reset is not None and T:
            begins = begins & ~(reset[0, row] & (length > 0)) if not reverse else begins
        self._begins, self._ends = _piece_of(begins, row, B), _piece_of(ends, row, B)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Of sequences that are all `dense`; a ragged batch sets them."""
        return np.full(self.B, self.T)

    def rows(self, t0: int, t1: int) -> int:
        """How many rows the steps t0 .. t1-1 have."""
        if self.dense:
            return (t1 - t0) * self.N
        return int(self.starts[t1 + 1] - self.starts[t0 + 1])

    def gather(self, y: np.ndarray) -> np.ndarray:
        """y (T,B,F), of any strides, -> contiguous (S,F), read-only; a view where it can be."""
        F = y.shape[2]
        if self.dense:
            rows = np.ascontiguousarray(y[::-1] if self.reverse else y).reshape(-1, F)
        else:
            flat = y.reshape(-1, F) if y.flags.c_contiguous else np.ascontiguousarray(y)
            rows = np.take(flat.reshape(-1, F), self._flat, axis=0)
        rows.setflags(write=False)
        return rows

    def scatter(self, rows: np.ndarray, out: np.ndarray) -> None:
        """out (T,B,F) <- rows (S,F'), F' >= F; where no step is, out stays."""
        T, B, F = out.shape
        if self.dense:
            steps = rows.reshape(T, B, -1)[:, :, :F] if rows.size else rows.reshape(T, B, F)
            out[...] = steps[::-1] if self.reverse else steps
        else:
            t, b = np.divmod(self._flat, max(B, 1))
            out[t, b] = rows[:, :F]

    def begin(self, state: np.ndarray | None, rows: np.ndarray) -> None:
        """The first N of rows (.,width): what each piece begins with, <- state (B,H), 0 if None."""
        first = rows[: self.N]
        if state is None:
            first.fill(0)
        elif self.dense:
            self._put(state, first, slice(None))
        else:
            known = self._begins >= 0
            self._put(state, first, self._begins[known], known)

    def _put(
        self,
        state: np.ndarray,
        rows: np.ndarray,
        pieces: np.ndarray | slice,
        sequences: np.ndarray | slice = slice(None),
    ) -> None:
        """rows (N,width) <- 0, and in some pieces the state (B,H) of some sequences."""
        if not self.dense or rows.shape[1] > state.shape[1]:
            rows.fill(0)
        rows[pieces, : state.shape[1]] = state[sequences]

    def begun(self, first: np.ndarray, H: int) -> np.ndarray:
        """The adjoint of `begin`: (N,width) -> (B,H), a copy."""
        if self.dense:
            return first[:, :H].copy()
        state = first[self._begins, :H]
        state[self._begins < 0] = 0
        return state

    def end(self, states: np.ndarray, H: int, halves: bool = False) -> np.ndarray:
        """states (N+S,.), (2N,.) if `halves`, -> (B,H): a copy of the last of each sequence."""
        if self.dense:
            first = self.T % 2 * self.N if halves else self.S
            return states[first : first + self.N, :H].copy()
        steps = self.lengths[self._ends]
        return states[(steps % 2 * self.N if halves else self.starts[steps]) + self._ends, :H]

    def ended(
        self, state: np.ndarray | None, last: np.ndarray, rows: np.ndarray | None = None
    ) -> None:
        """The adjoint of `end`: last (N,width), of the last state of each piece, <- state (B,H).

        And of `rows` (S,width), if any, that of the last step of each piece is added.
        """
        if self.dense and self.T and rows is not None and state is None:
            last[:] = rows[self.S - self.N :]
            return
        if state is None:
            last.fill(0)
        else:
            self._put(state, last, slice(None) if self.dense else self._ends)
        if rows is not None and self.dense and self.T:
            last += rows[self.S - self.N :]
        elif rows is not None and not self.dense:
            pieces = np.flatnonzero(self.lengths)
            last[pieces] += rows[self.starts[self.lengths[pieces]] + pieces - self.N]

    def piece(self, b: int) -> int:
        """The one piece of sequence b; ValueError if a reset cuts it into several."""
        if self.dense:
            return b
        own = np.flatnonzero(self._row == b)
        if own.size > 1:
            raise ValueError(
                f"batch: sequence {b} is cut by a reset, across which the Jacobian is zero; trace "
                "its pieces one by one"
            )
        return int(own[0])


_kept = functools.lru_cache(maxsize=32)(Sequences)


def sequences_of(
    T: int, B: int, lengths: np.ndarray | None, reset: np.ndarray | None, reverse: bool = False
) -> Sequences:
    """`Sequences`, for no one to write to: where all are of T steps those of an earlier call."""
    if lengths is None and reset is None and T <= _SHORT:
        return _kept(T, B, None, None, reverse)
    return Sequences(T, B, lengths, reset, reverse)


def _pieces(
    until: np.ndarray, reset: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The sequence, the first step and the steps of each piece."""
    B = until.size
    cuts = np.zeros((0, B), bool) if reset is None else reset
    t, b = np.nonzero(cuts[1:] & (np.arange(1, max(len(cuts), 1))[:, None] < until))
    row = np.concatenate([np.arange(B), b])
    start = np.concatenate([np.zeros(B, np.int64), t + 1])
    order = np.lexsort((start, row))
    row, start = row[order], start[order]
    following = np.append(start[1:], 0)
    last = np.append(row[1:] != row[:-1], True) if row.size else np.zeros(0, bool)
    return row, start, np.where(last, until[row], following) - start


def _piece_of(chosen: np.ndarray, row: np.ndarray, B: int) -> np.ndarray:
    """(B,): the piece of each sequence that is chosen, -1 where none is."""
    pieces = np.full(B, -1)
    pieces[row[chosen]] = np.flatnonzero(chosen)
    return pieces
