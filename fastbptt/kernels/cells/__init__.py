"""One file a cell: its step, its adjoint, its tangent.

The loops over time (`sweeps`, `stream`) call these stubs with a cell's packed weights; Numba picks
the cell's own formulas by the type of the first argument.  Each works on the columns j0 <= j < j1
that a panel product has just left in L1.  j0 and j1 are unsigned: Numba wraps a negative index by
a select, and the loop would not vectorise (twice the time of a whole step, measured).
"""

from typing import Any


def step(cell: Any, h: Any, t: int, b0: int, b1: int, j0: int, j1: int) -> None:
    """h[t+1] from its pre-activation, in place, for rows b0..b1-1."""


def adjoint(cell: Any, h: Any, t: int, da: Any, s: int, b0: int, b1: int, j0: int, j1: int) -> None:
    """da[s] from dL/dh[t+1], in place, for rows b0..b1-1."""


def tangent(
    cell: Any, panel: Any, side: int, slopes: Any, b0: int, b1: int, j0: int, j1: int
) -> None:
    """Row 0 of panel[side,b] from its pre-activation, the tangents below from W_hh times theirs."""
