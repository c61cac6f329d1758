"""Teams: the units of one sequence shared out between threads, with a barrier in every step."""

import itertools
import os
import threading
import time
from functools import partial

import numpy as np
import pytest
from strategies import KINDS

import fastbptt as fb
from fastbptt import layers, teams, threads
from fastbptt.kernels import gradients, sweeps, team
from fastbptt.kernels.gradients import TURNED
from fastbptt.kernels.jit import kernel
from fastbptt.kernels.panels import BLOCK, VECTORS
from fastbptt.kernels.simd import lanes
from fastbptt.sequences import Sequences


def in_thread(call, *given):
    """(the thread, a list that gets call(*given))."""
    got = []
    thread = threading.Thread(target=lambda: got.append(call(*given)))
    thread.start()
    return thread, got


def members_of(wanted):
    board = team.board(wanted)
    return [team.Team(board, number == 0, True) for number in range(wanted)]


def meet_at_barrier(of, number, members, meeting):
    team.come(of, number, meeting)
    return team.barrier(of, number, members, meeting)


@pytest.fixture
def compiled():
    (alone,) = members_of(1)
    assert team.join(alone) == (0, 1)
    assert meet_at_barrier(alone, 0, 1, 1) == (1, 2)


@pytest.mark.usefixtures("compiled")
def test_who_comes_in_time_is_a_member_and_who_is_late_is_not():
    leader, second, late = members_of(3)
    thread, got = in_thread(team.join, second)
    time.sleep(0.1)
    assert team.join(leader) == (0, 2)
    thread.join()
    assert got == [(1, 2)]
    assert team.join(late) == (0, 0)
    assert team.join(team.ALONE) == (0, 1)


@pytest.mark.usefixtures("compiled")
def test_who_waits_for_a_leader_that_is_interrupted_does_not_wait_for_ever():
    got = []

    def work(i, given):
        if given.leads:
            time.sleep(0.05)
            raise KeyboardInterrupt
        got.append(team.join(given)[1])

    def call():
        with pytest.raises(KeyboardInterrupt):
            teams.together(work, 3)
        got.append("raised")

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(20)
    assert got == [0, 0, "raised"]


@pytest.mark.usefixtures("compiled")
def test_a_barrier_waits_for_all_and_a_team_that_waited_long_parts_at_the_next():
    leader, second = members_of(2)

    def first():
        own = time.thread_time()
        return meet_at_barrier(leader, 0, 2, 1), time.thread_time() - own

    thread, got = in_thread(first)
    time.sleep(0.3)
    assert not got
    assert meet_at_barrier(second, 1, 2, 1) == (2, 2)
    thread.join()
    ((members, own),) = got
    assert members == (2, 2)
    if os.name == "posix":  # elsewhere nobody naps
        assert own < 0.15  # it napped
    thread, got = in_thread(meet_at_barrier, leader, 0, 2, 2)
    assert meet_at_barrier(second, 1, 2, 2) == (0, 3)
    thread.join()
    assert got == [(1, 3)]


@pytest.mark.parametrize("size", [1, 16, 33, 200, 1024])
@pytest.mark.parametrize("unit", [1, 32])
def test_the_parts_cover_all_units_once(size, unit):
    for members in (1, 2, 3, 7):
        parts = [team.part(number, members, size, unit) for number in range(members)]
        assert parts[0][0] == 0
        assert parts[-1][1] == size
        assert all(a[1] == b[0] and b[0] % unit == 0 for a, b in itertools.pairwise(parts))


@kernel
def sequences_of(starts, t0, t1, number, members):
    return sweeps._sequences_of(starts, t0, t1, number, members)


@kernel
def own_rows(height, K, before, total, number, members):
    return gradients._own_rows(height, K, before, total, number, members)


@pytest.mark.parametrize("lengths", [None, [9, 0, 4, 9, 1, 1], [0] * 6, [30, 1, 1, 1, 1, 1]])
def test_each_sequence_has_one_member_and_all_have_like_many_steps(lengths):
    sequences = Sequences(30, 6, None if lengths is None else np.array(lengths))
    starts, T = sequences.starts, sequences.longest
    for members, (t0, t1) in itertools.product((1, 2, 3, 7), [(0, T), (T // 2, T), (0, 1)]):
        steps = np.minimum(np.sort(sequences.lengths)[::-1], t1) - t0
        steps = np.maximum(steps, 0)
        parts = [sequences_of(starts, t0, min(t1, T), number, members) for number in range(members)]
        assert parts[0][0] == 0
        assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
        assert steps[parts[-1][1] :].sum() == 0
        most = max(steps[b0:b1].sum() for b0, b1 in parts)
        assert most <= steps.sum() / members + steps.max()


@pytest.mark.parametrize("heights", [(20, 64, 0), (64, 16, 32), (7, 300, 5), (1, 1, 0)])
def test_each_row_of_a_gradient_has_one_member(heights):
    columns = (32, 96, 32)
    whole = [-(-height // TURNED) * K for height, K in zip(heights, columns, strict=True)]
    before, total = np.cumsum([0, *whole[:2]]), sum(whole)
    for members in (1, 2, 3, 7):
        elements = np.zeros(members)
        for height, K, origin in zip(heights, columns, before, strict=True):
            parts = [own_rows(height, K, origin, total, i, members) for i in range(members)]
            seen = np.zeros(height, int)
            for number, (i0, i1) in enumerate(parts):
                seen[i0:i1] += 1
                elements[number] += (i1 - i0) * K
            assert (seen == 1).all()
        assert elements.max() <= TURNED * (total / members + max(columns))


@pytest.fixture
def shared(monkeypatch):
    """The sizes of the teams that sweeps were given; every net of `shareable` units has one."""
    monkeypatch.setattr(threads, "_WORTH_SHARING", 0)
    monkeypatch.setattr(teams, "_MEMBER_BYTES", 1)
    monkeypatch.setattr(teams.Record, "pays", lambda self: True)
    sizes = []
    members = layers.members_by_units

    def noted(*given):
        sizes.append(members(*given))
        return sizes[-1]

    monkeypatch.setattr(layers, "members_by_units", noted)
    before = fb.get_num_threads()
    yield sizes
    fb.set_num_threads(before)


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("B", "H", "halves"),
    [(1, 32, 1), (1, 64, 1), (1, 64, 0), (2, 64, 1), (1, 150, 1), (1, 257, 1), (2, 131, 1)],
)
def test_the_bits_do_not_depend_on_the_team(
    kind, options, dtype, B, H, halves, shared, monkeypatch
):
    monkeypatch.setattr(layers, "_HALVES", (range(1 << 30),) if halves else ())
    rng = np.random.default_rng(0)
    net = getattr(fb, kind)(5, H, dtype=dtype, rng=0, **options)
    T = 150
    x, dy = rng.normal(size=(T, B, 5)).astype(dtype), rng.normal(size=(T, B, H)).astype(dtype)
    lengths = [T, T // 3][:B]

    def work():
        trace = net.trace(x, lengths=lengths)
        grads = trace.backward(dy, per_step=True)
        again = net(x, lengths=lengths)[0]
        return [trace.output, again, grads.x, *grads.params.values(), *grads.per_step.values()]

    fb.set_num_threads(1)
    alone = work()
    assert not any(shared)
    for count in (B + 1, 7):  # 7 are more than the cores of many machines: teams come and part
        fb.set_num_threads(count)
        for one, many in zip(alone, work(), strict=True):
            np.testing.assert_array_equal(one, many)
    assert {B + 1, 7} <= set(shared)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_of_units_within_a_block_whole_panels_are_shared(dtype, shared):
    width = lanes(dtype)
    for registers, members in ((VECTORS + 1, 0), (2 * VECTORS, 2), (BLOCK + 1, 2)):
        layer = fb.GRU(4, registers * width, dtype=dtype).weights.layers[0]
        assert layers.LayerPass._unit_members(layer, 2, 1) == members


def test_what_is_gated_needs_twice_as_much_of_W_for_each_member(monkeypatch):
    H = 2 * VECTORS * lanes(np.float32)
    one, two = (fb.GRU(4, H, reset_after=after).weights.layers[0] for after in (True, False))
    monkeypatch.setattr(teams, "_MEMBER_BYTES", one.cell.w_hh.nbytes // 2)
    assert [layers.LayerPass._unit_members(layer, 2, 1) for layer in (one, two)] == [2, 0]


def test_halves_are_of_whole_panels_and_of_cells_without_a_gated_state(monkeypatch):
    panels = 2 * VECTORS * lanes(np.float32)

    def rows(net):
        return len(layers.LayerPass._halves(net.weights.layers[0]))

    nets = [fb.LSTM(4, H) for H in (panels, panels + 1, panels + VECTORS * lanes(np.float32))]
    for worth, expected in ((range(1 << 30), [3, 0, 0]), (range(0), [0, 0, 0])):
        monkeypatch.setattr(layers, "_HALVES", (range(0), worth))
        assert [rows(net) for net in nets] == expected
    monkeypatch.setattr(layers, "_HALVES", (range(1 << 30),))
    assert rows(fb.GRU(4, panels)) == 3
    assert rows(fb.GRU(4, panels, reset_after=False)) == 0


class Calls:
    """A `Record`, and calls that take so many milliseconds a step with the team and without."""

    def __init__(self, monkeypatch):
        self.now, self.record = 0.0, teams.Record()
        monkeypatch.setattr(teams, "time", self)

    def perf_counter(self):
        return self.now

    def take(self, milliseconds):
        self.now += milliseconds / 1000

    def call(self, team, without, steps=1):
        """The next call; whether it was the team's."""
        pays = self.record.pays()
        took = [partial(self.take, each * steps) for each in (team, without)]
        self.record.call(*took, steps)
        return pays

    def run(self, n, team, without=1.0, steps=1):
        """How many calls on end were without the team and with it, in turn, from without on."""
        ways = [self.call(team, without, steps) for _ in range(n)]
        return [len(list(some)) for _, some in itertools.groupby([False, *ways])][:-1]


@pytest.fixture
def calls(monkeypatch):
    calls = Calls(monkeypatch)
    assert not calls.call(team=0.1, without=900.0)  # it was compiled
    assert not calls.call(team=0.1, without=1.0)
    assert calls.call(team=0.1, without=1.0)
    return calls


def test_a_team_that_pays_is_left_now_and_then_to_look_what_calls_take_without(calls):
    Record = teams.Record
    got = calls.run(4 * Record.LOOK, team=0.9)
    assert got[:4] == [1, Record.LOOK, Record.CALLS, 1 + Record.LOOK]


def test_one_long_call_is_enough_to_look(calls):
    Record = teams.Record
    got = calls.run(4 * Record.LOOK, team=0.9, steps=int(1001 * Record.BRIEFLY))
    assert got[:4] == [1, Record.LOOK, 1, 1 + Record.LOOK]


def test_the_more_often_a_team_is_slow_the_longer_it_is_done_without(calls):
    CALLS, most = teams.Record.CALLS, teams.Record.CALLS << teams.Record.DOUBLINGS
    # of a team's calls the first, for which the others wake up, does not count, nor does one alone
    got = calls.run(1000, team=1.1)
    assert got[:10] == [1, 2, CALLS, 2, 2 * CALLS, 2, 4 * CALLS, 2, 8 * CALLS, 2]
    assert set(got[-8:]) == {most, 2}
    ways = [calls.call(team=0.9, without=1.0) for _ in range(2 * most)]
    assert all(ways[most + 2 :])  # when it is fast again
    assert [calls.call(team=1.1, without=1.0) for _ in range(5)] == [True, True, False, False, True]


def test_no_call_goes_without_a_team_later_than_some_time_after_a_slow_one(calls):
    steps = int(240 * teams.Record.SECONDS)  # of a millisecond: some more than a quarter of it
    assert set(calls.run(1000, team=2.0, steps=steps)[-8:]) == {5, 2}
    while calls.call(team=2.0, without=1.0):
        pass
    calls.now += teams.Record.SECONDS  # without a call
    assert [calls.call(team=2.0, without=1.0) for _ in range(2)] == [False, True]


def test_one_slow_call_does_not_end_a_team(calls):
    calls.run(25, team=0.9)
    for _ in range(3):
        assert calls.call(team=5.0, without=1.0)
        assert calls.call(team=0.9, without=1.0)


@pytest.mark.parametrize(("one", "other"), [(1.0, 4.0), (4.0, 1.0)])
def test_a_look_takes_the_shorter_call(calls, one, other):
    while calls.call(team=0.9, without=one):
        pass
    assert not calls.call(team=1.1, without=other)
    assert [calls.call(team=1.1, without=1.0) for _ in range(4)] == [True, True, True, False]


def test_a_look_forgets_what_calls_took_before(calls):
    while calls.call(team=0.9, without=2.0):
        pass
    assert not calls.call(team=1.1, without=2.0)
    assert all(calls.call(team=1.9, without=2.0) for _ in range(9))


def test_calls_are_compared_by_the_step(calls):
    while calls.call(team=0.9, without=1.0, steps=3):
        pass
    assert not calls.call(team=0.9, without=1.0, steps=2)
    assert all(calls.call(team=0.9, without=1.0, steps=steps) for steps in (1, 2, 3, 2, 1))


def test_a_call_that_raises_says_nothing_of_the_team(calls):
    def interrupted():
        calls.take(5000)
        raise KeyboardInterrupt

    calls.run(10, team=0.9)
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            calls.record.call(interrupted, interrupted, 1)
    assert calls.record.pays()


def test_layers_of_other_sizes_and_the_way_back_have_records_of_their_own():
    sizes = [fb.RNN(4, H).weights.layers[0].sizes for H in (32, 64)]
    given = [(size, N, 2, 3, back) for size in sizes for N in (1, 2) for back in (False, True)]
    assert len({id(teams.record(*one)) for one in given}) == len(given)
    assert teams.record(*given[0]) is teams.record(*given[0])


@pytest.mark.parametrize(("B", "pays", "teams_of"), [(1, 99, 4), (1, 1, 1), (2, 99, 0)])
def test_a_long_backward_pass_leaves_a_team_that_is_slow(monkeypatch, shared, B, pays, teams_of):
    rng = np.random.default_rng(0)
    net = fb.RNN(5, 150, rng=0)
    x, dy = (rng.normal(size=(3000, B, n)).astype(np.float32) for n in (5, 150))
    fb.set_num_threads(1)
    trace = net.trace(x)
    alone = trace.backward(dy)
    monkeypatch.setattr(layers, "_CALL", 1)
    took = []
    monkeypatch.setattr(teams.Record, "pays", lambda self: len(took) < pays)
    monkeypatch.setattr(teams.Record, "_team_took", lambda self, each: took.append(each))
    fb.set_num_threads(2)
    again = trace.backward(dy)
    assert len(took) == teams_of
    np.testing.assert_array_equal(alone.x, again.x)
    for name, value in alone.params.items():
        np.testing.assert_array_equal(value, again.params[name])
