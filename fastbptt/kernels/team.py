"""Threads that work together in one kernel: who takes part, and where they wait for each other.

One sequence cannot be shared out by rows.  Its units can, if every step waits for all of them: then
each core reads its own part of W from its own L2.  Nobody waits long for a member that does not
run: the team is who has come when its leader closes it, one if need be, and one that meets at every
step parts where a member waits too long (on two cores that two others kept busy, three members took
2.4 s for 8 ms of work).  Where members have sequences of their own they meet some times in a call,
and wait as long as it takes.
"""

import os
import platform
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import kernel

_LINE = 8  # elements of a cache line
_WANTED, _JOINED, _SIZE, _WAITED, _LAST, _ARRIVED = (_LINE * i for i in range(6))
_CLOSED = 1 << 32
# Pauses, 25 to 45 ns each on x86, of a wait that needs no explanation; all that is longer counts.
_SHORT = 500
# Pauses, some 0.2 ms, until a thread that waits begins to nap: a thread that is awake comes sooner.
_PATIENCE = 8_000
_NAP = 2_000 if os.name == "posix" else 1  # pauses that a nap takes as long as
_BUDGET = 20_000  # pauses in longer waits before the team parts, or begins without who is not there


class Team(NamedTuple):
    """What a thread brings to a team; all of one team have the same board."""

    board: np.ndarray  # none: a team of one
    leads: bool
    by_units: bool  # whether members share the units of all sequences, or the sequences


ALONE = Team(np.zeros(0, np.int64), leads=True, by_units=False)


def cache_lines(count: int) -> np.ndarray:
    """(count,.) zeros, each row a cache line: two threads that write to one would wait in turn."""
    memory = np.zeros((count + 1) * _LINE, np.int64)
    offset = -memory.__array_interface__["data"][0] // memory.itemsize % _LINE
    return memory[offset : offset + count * _LINE].reshape(count, _LINE)


def board(wanted: int) -> np.ndarray:
    """The board of one call's team of at most `wanted` members.

    From _ARRIVED on each has a line that it alone writes: one that all add to has to be owned by
    each in turn, which takes as long as everything else at a barrier.
    """
    board = cache_lines(_ARRIVED // _LINE + wanted).reshape(-1)
    board[_WANTED] = wanted
    return board


def close(board: np.ndarray) -> None:
    """Let those go that wait for a leader who did not join; after `join` it does nothing.

    To be called by the leader's thread.
    """
    if board[_SIZE] == 0:
        board[_SIZE] = -1


def _place(context, builder, array_type, array, index):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


@intrinsic
def _fetch_add(typingctx, array, index, value):
    """The element before `value` was added to it, by one step that no other thread can enter."""

    def codegen(context, builder, sig, args):
        pointer = _place(context, builder, sig.args[0], args[0], args[1])
        return builder.atomic_rmw("add", pointer, args[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), codegen


@intrinsic
def _set_if_zero(typingctx, array, index, value):
    """The element becomes `value` if it is 0, by one step that no other thread can enter."""

    def codegen(context, builder, sig, args):
        pointer = _place(context, builder, sig.args[0], args[0], args[1])
        builder.cmpxchg(pointer, ir.IntType(64)(0), args[2], "seq_cst")
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), codegen


@intrinsic
def _load(typingctx, array, index):
    """The element, read anew, before all that is read later."""

    def codegen(context, builder, sig, args):
        pointer = _place(context, builder, sig.args[0], args[0], args[1])
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(array, types.intp), codegen


@intrinsic
def _store(typingctx, array, index, value):
    """Set the element, after all that was written earlier."""

    def codegen(context, builder, sig, args):
        pointer = _place(context, builder, sig.args[0], args[0], args[1])
        builder.store_atomic(args[2], pointer, "release", 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), codegen


@intrinsic
def _pause(typingctx, nap):
    """A moment for the other thread of the core; a `nap` leaves the core to whoever wants it.

    Some 50 us, and then this thread is preferred to one that never sleeps.  Who offers the core by
    sched_yield instead comes after that one, the lowest priority or not, some 4 ms later.
    Where there is no usleep a nap is but a pause.
    """

    def codegen(context, builder, sig, args):
        if platform.machine() in ("x86_64", "AMD64"):
            nothing = ir.FunctionType(ir.VoidType(), [])
            pause = cgutils.get_or_insert_function(builder.module, nothing, "llvm.x86.sse2.pause")
            builder.call(pause, [])
        if os.name == "posix":
            with builder.if_then(args[0]):
                i32 = ir.IntType(32)
                sleep = cgutils.get_or_insert_function(
                    builder.module, ir.FunctionType(i32, [i32]), "usleep"
                )
                builder.call(sleep, [i32(1)])
        return context.get_dummy_value()

    return types.void(types.boolean), codegen


@kernel(part=True)
def _wait(waited):
    """A pause, or a nap of who has `waited` for many; how many it takes as long as."""
    napping = waited >= _PATIENCE
    _pause(napping)
    return _NAP if napping else 1


@kernel
def awaited(board, row, value, most, then):
    """Whether board[row, 0] is `value` or more within `most` pauses; if so, `then` pauses later."""
    place, waited = row * board.shape[1], 0
    while _load(board, place) < value and waited < most:
        waited += _wait(waited)
    come = _load(board, place) >= value
    if come:
        for _ in range(then):
            _pause(False)
    return come


@kernel
def join(team):
    """(own number, members): the leader is number 0; members 0 for who comes too late.

    And for all others where the leader does not come: see `close`.
    """
    board = team.board
    if board.size == 0:
        return 0, 1
    if team.leads:
        waited = 0
        while _load(board, _JOINED) + 1 < board[_WANTED] and waited < _BUDGET:
            waited += _wait(waited)
        members = _fetch_add(board, _JOINED, _CLOSED) + 1
        _fetch_add(board, _SIZE, members)
        return 0, members
    number = _fetch_add(board, _JOINED, 1) + 1
    if number >= _CLOSED:
        return 0, 0
    members = _load(board, _SIZE)
    waited = 0
    while members == 0:
        waited += _wait(waited)
        members = _load(board, _SIZE)
    return number, max(0, members)


@kernel
def come(team, number, meeting):
    """Tell the others that this member has come to a `meeting`, the first being 1."""
    _store(team.board, _ARRIVED + _LINE * number, meeting)


@kernel(part=True)
def _all_come(board, members, meeting):
    """Go on when all have come; the pauses until then."""
    waited = 0
    for other in range(members):
        while _load(board, _ARRIVED + _LINE * other) < meeting:
            waited += _wait(waited)
    return waited


@kernel
def meet(team, number, members, meeting):
    """Come to this meeting, and go on when all have."""
    come(team, number, meeting)
    _all_come(team.board, members, meeting)


@kernel
def barrier(team, number, members, meeting):
    """At every step: go on when all have `come` to this meeting; (members, next meeting).

    Where the team parts, its leader goes on as the only member and for the others members is 0.
    """
    board = team.board
    waited = _all_come(board, members, meeting)
    if waited > _SHORT and _fetch_add(board, _WAITED, waited) + waited > _BUDGET:
        _set_if_zero(board, _LAST, meeting + 1)  # which all will have seen when that one is over
    last = _load(board, _LAST)
    if 0 < last <= meeting:
        members = 1 if number == 0 else 0
    return members, meeting + 1


@kernel
def part(number, members, size, unit):
    """The half-open range of `size` that is the member's, in whole units."""
    units = (size + unit - 1) // unit
    return min(size, units * number // members * unit), min(
        size, units * (number + 1) // members * unit
    )
