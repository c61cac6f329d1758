"""Whether threads share the units of few sequences, and the calls of those that work together."""

import time
from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np

from .kernels.slots import shareable
from .kernels.team import ALONE, Team, board, close
from .threads import side_by_side
from .weights import Sizes

# Of W_hh for each member of a team.  A meeting of two takes 0.07 us, and to fetch the other's part
# of h another 0.1.  Two members of 24 KB (a GRU of 64 units) take 0.48 us a step and one 0.57, of
# 32 KB (an LSTM) 0.55 and one 0.78, of 18 KB as long as one.  Where there are rows enough for all
# threads a team does not pay: at B = 64, H = 1024 an LSTM ran at 103 GFLOP/s on shared units, at
# 162 on shared rows.
_MEMBER_BYTES = 24 << 10


def members_by_units(
    threads: int, N: int, W_bytes: int, Hp: int, dtype: np.dtype, meetings: int = 1
) -> int:
    """Members of a team that shares the Hp units, and W_bytes of W_hh, of N sequences, or 0.

    A team pays where there are more threads than sequences, and where what a member reads of W_hh
    between two of so many `meetings` a step takes longer than they do.
    """
    members = min(threads, W_bytes // meetings // _MEMBER_BYTES) if shareable(Hp, dtype) else 0
    return members if members > N else 0


class Record:
    """What calls of one kind took a team that shares the units, and what they take without it.

    A member whose core another program has holds all of them up at each step: where one had one of
    two cores, a train step of one sequence of 256 units took a team 16 us and one thread 8.  And
    two cores of a virtual machine may be far apart for some 0.1 s, or two halves of one: a step of
    64 units of an LSTM then takes a team 0.9 to 1.8 us and else 0.6, one thread 0.8.  So where two
    calls on end took the team longer than without it, the next ones go without: two, and twice as
    many each time that the team is found to be slow again, but none after 0.1 s.
    """

    CALLS = 2  # without a team that say what one takes: the shorter, as one may be held up
    LOOK = 200  # calls of the team until that is looked up again,
    BRIEFLY = 0.005  # and seconds after which one call is enough
    DOUBLINGS = 5  # of the calls without a slow team, 64 at most,
    SECONDS = 0.1  # and after which there are no more

    def __init__(self) -> None:
        self._slow, self._awake = 0, False
        self._each = float("inf")  # seconds a step without a team
        # calls without it to come, and when there are enough; of the first two, one may have been
        # compiled or read from the cache
        self._due, self._until = self.CALLS, float("inf")
        self._until_look = self.LOOK

    def pays(self) -> bool:
        """Whether the next call is one for the team."""
        return self._due == 0

    def call(self, by_units: Callable[[], None], without: Callable[[], None], steps: int) -> None:
        """One of the two, of so many steps: with the team or without it."""
        pays, start = self.pays(), time.perf_counter()
        (by_units if pays else without)()
        now = time.perf_counter()
        if pays:
            self._team_took((now - start) / steps)
        else:
            self._each = min(self._each, (now - start) / steps)
            self._due, self._awake = 0 if now >= self._until else self._due - 1, False

    def _team_took(self, each: float) -> None:
        if not self._awake:  # the first after calls without: the other members were asleep
            self._awake = True
            return
        self._until_look -= 1
        self._slow = self._slow + 1 if each > self._each else 0
        if self._slow >= 2:
            self._go_without(self.CALLS << min(self._slow - 2, self.DOUBLINGS), self.SECONDS)
        elif self._until_look <= 0:
            self._go_without(self.CALLS, self.BRIEFLY)

    def _go_without(self, calls: int, seconds: float) -> None:
        self._due, self._until = calls, time.perf_counter() + seconds
        self._each, self._until_look = float("inf"), self.LOOK


@lru_cache(maxsize=256)
def record(sizes: Sizes, N: int, members: int, steps: int, backward: bool) -> Record:
    """The `Record` of a layer's calls of some `steps`, all of as many binary digits."""
    return Record()


def together(work: Callable[[int, Team], None], members: int, by_units: bool = False) -> None:
    """Call work(i, team) for each member of a team, side by side."""
    if members == 1:
        work(0, ALONE)
        return
    common = board(members)
    works = [partial(work, i, Team(common, i == 0, by_units)) for i in range(members)]
    # Ctrl-C may come while the leader's kernel is compiled, and the others wait for it
    side_by_side(works, partial(close, common))
