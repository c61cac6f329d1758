"""One file a cell: its step, its adjoint, its tangent.

The loops over time (`sweeps`, `stream`) call these stubs with a cell's packed weights; Numba picks
the cell's own formulas by the type of the first argument.  Each works on the units j0 <= j < j1
whose pre-activations a panel product has just left in L1, and on `M` rows from those of `at` on.
They read and write through `lines.line`: plain indexing would not vectorise, because Numba wraps
negative indices by a select and because LLVM cannot tell the arrays apart.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..jit import implements


class Slots(NamedTuple):
    """What the columns of `a` (rows,wide) hold, Hp of them a slot; see `weights.Sizes` for wide.

    Slots 0 .. x-1 get W_ih x; slots first .. gate-1 get W_hh h; slots gate .. last-1 get W_hh times
    the gated state, which `gate` leaves in slot `last`, or h itself where first == gate.
    """

    x: int
    first: int
    gate: int
    last: int
    direct: bool  # whether `adjoint` leaves anything in dh: what reaches h by no product
    factors: int  # numbers a unit by which `linearise` says what a step does to tangents

    @property
    def width(self) -> int:
        """Slots of a row, with that of the gated state."""
        return self.last + (self.gate > self.first)


class Design(NamedTuple):
    """What the floors above need to know of a cell."""

    cell: Callable[..., Any]  # (w_ih, w_hh, bias) -> the NamedTuple that kernels dispatch on
    slots: Slots
    gates: str  # the letters of the gates, in the order of the rows of weight_ih and weight_hh
    x_gates: str  # the gates of the slots 0 .. x-1
    h_gates: str  # the gates of the slots first .. last-1
    has_c: bool  # whether the state is (h, c)
    # What the columns of `a` hold after a step, "" if the adjoint does without.  To make the gates
    # again, by one product for a chunk of steps, would take 30 and 300 us a step of an LSTM with 32
    # sequences of 64 and 256 units; to keep them takes 1.9 of 40 and 12 of 333 us (Zen 3).
    kept: str


class Memory(NamedTuple):
    """The arrays of a forward pass; rows as `sweeps` numbers them."""

    x: np.ndarray  # (S,I..): what the layer reads
    h: np.ndarray  # (N+S,Hp)
    c: np.ndarray  # (N+S,Hp), (2N,Hp) if not kept: state t in half t % 2; no rows without a c
    a: np.ndarray  # (S,wide): pre-activations, then what `step` makes of them
    kept: bool  # whether a and c hold all steps
    halves: np.ndarray  # (3,wide): zeros, and what two members of a team keep; else no rows


class Adjoints(NamedTuple):
    """The arrays of a backward pass."""

    dy: np.ndarray  # (S,Hp): dL/d output, without what reaches it through later steps
    dh: np.ndarray  # (N,Hp)
    dc: np.ndarray  # (N,Hp), no rows without a c
    da: np.ndarray  # (rows of some chunks, wide)
    dx: np.ndarray  # (S,Ip), no rows if not wanted
    step_h: np.ndarray  # (S,Hp): dL/dh of every step, no rows if not wanted
    step_c: np.ndarray  # (S,Hp)


class At(NamedTuple):
    """The first rows of step t: of its state and the next in h and c, of its columns of a, da."""

    h: int
    h_next: int
    c: int
    c_next: int
    a: int
    da: int
    d: int  # in dh and dc
    step: int  # in step_h and step_c


def slots(cell: Any) -> Slots:
    """Where a cell keeps what: the same for all cells of a type, and known to the compiler."""
    raise NotImplementedError


def step(cell: Any, m: Memory, at: At, M: int, j0: int, j1: int) -> None:
    """h[at.h_next] (and c) from the pre-activations a[at.a]."""


def gate(cell: Any, m: Memory, at: At, M: int, j0: int, j1: int) -> None:
    """Slot `last` of a[at.a], the gated state, from the slots first .. gate-1."""


def adjoint(cell: Any, m: Memory, d: Adjoints, at: At, M: int, j0: int, j1: int) -> None:
    """da[at.da] from dh and dc = dL/d state t+1; leaves in them what reaches state t by no product.

    Where that is nothing, dh may stay as it is (Slots.direct).  Of a gated cell only the slots
    gate .. last-1 are due: `gate_adjoint` sees to the others.
    """


def gate_adjoint(cell: Any, m: Memory, d: Adjoints, at: At, M: int, j0: int, j1: int) -> None:
    """The slots first .. gate-1 of da from slot `last`, dL/d gated state; adds its part to dh."""


class Tangents(NamedTuple):
    """The arrays of one layer in a chain of Jacobians; a row of state is h and then c."""

    now: np.ndarray  # (.,parts·Hp): state t, or tangents of it; what `cotangent` takes and leaves
    after: np.ndarray  # state t+1
    a: np.ndarray  # (.,slots·Hp): pre-activations, their tangents or cotangents
    factors: np.ndarray  # (.,factors·Hp)


class TangentAt(NamedTuple):
    """The first elements of the rows in question, the rows' lengths and how many there are."""

    now: int
    after: int
    a: int
    factors: int
    stride: int  # of now and after
    wide: int  # of a
    rows: int


def linearise(cell: Any, p: Tangents, at: TangentAt, j0: int, j1: int) -> None:
    """One row: state t+1 and the factors of the step, from state t and pre-activations.

    The factors come from the pre-activations, to full relative accuracy (activations.py).
    """


def gate_linearise(cell: Any, p: Tangents, at: TangentAt, j0: int, j1: int) -> None:
    """One row: slot `last`, the gated state, and its factors; the first of all."""


def tangent(cell: Any, p: Tangents, at: TangentAt, j0: int, j1: int) -> None:
    """y_dot of state t+1, from y_dot of state t and of the pre-activations."""


def gate_tangent(cell: Any, p: Tangents, at: TangentAt, j0: int, j1: int) -> None:
    """Slot `last` of `a`: the tangents of the gated state."""


def cotangent(cell: Any, p: Tangents, at: TangentAt, j0: int, j1: int) -> None:
    """The adjoint of `tangent`: a from dL/d state t+1 in now, where it leaves what is direct."""


def gate_cotangent(cell: Any, p: Tangents, at: TangentAt, j0: int, j1: int) -> None:
    """The adjoint of `gate_tangent`: slots first .. gate-1 from slot `last`; adds its part to h."""


@implements(gate_linearise, None)
def _no_gate_linearise(cell, p, at, j0, j1):
    pass


@implements(gate_tangent, None)
def _no_gate_tangent(cell, p, at, j0, j1):
    pass


@implements(gate_cotangent, None)
def _no_gate_cotangent(cell, p, at, j0, j1):
    pass


@implements(gate, None)
def _no_gate(cell, m, at, M, j0, j1):
    pass


@implements(gate_adjoint, None)
def _no_gate_adjoint(cell, m, d, at, M, j0, j1):
    pass
