"""Teams: the units of one sequence shared out between threads, with a barrier in every step."""

import itertools
import threading
import time

import numpy as np
import pytest
from strategies import KINDS

import fastbptt as fb
from fastbptt import layers, threads
from fastbptt.kernels import gradients, sweeps, team
from fastbptt.kernels.jit import kernel
from fastbptt.kernels.panels import BLOCK, TURNED, VECTORS
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


@pytest.fixture
def compiled():
    (alone,) = members_of(1)
    assert team.join(alone) == (0, 1)
    assert team.barrier(alone, 0, 1, 1) == (1, 2)


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
            layers._together(work, 3)
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
        return team.barrier(leader, 0, 2, 1), time.thread_time() - own

    thread, got = in_thread(first)
    time.sleep(0.3)
    assert not got
    assert team.barrier(second, 1, 2, 1) == (2, 2)
    thread.join()
    ((members, own),) = got
    assert members == (2, 2)
    if layers._Others.SEEN:
        assert own < 0.15  # it napped
    thread, got = in_thread(team.barrier, leader, 0, 2, 2)
    assert team.barrier(second, 1, 2, 2) == (0, 3)
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
def teams(monkeypatch):
    """The sizes of the teams that sweeps were given; every net of `shareable` units has one."""
    monkeypatch.setattr(threads, "_WORTH_SHARING", 0)
    monkeypatch.setattr(layers, "_MEMBER_BYTES", 1)
    monkeypatch.setattr(layers, "_others", layers._Others())
    monkeypatch.setattr(layers._Others, "SECONDS", 0.0)  # those that part are followed by others
    sizes = []
    members = layers._unit_members

    def noted(*given):
        sizes.append(members(*given))
        return sizes[-1]

    monkeypatch.setattr(layers, "_unit_members", noted)
    before = fb.get_num_threads()
    yield sizes
    fb.set_num_threads(before)


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("B", "H"), [(1, 32), (1, 64), (2, 64), (1, 150), (1, 257), (2, 131)])
def test_the_bits_do_not_depend_on_the_team(kind, options, dtype, B, H, teams):
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
    assert not any(teams)
    for count in (B + 1, 7):  # 7 are more than the cores of many machines: teams come and part
        fb.set_num_threads(count)
        for one, many in zip(alone, work(), strict=True):
            np.testing.assert_array_equal(one, many)
    assert {B + 1, 7} <= set(teams)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_of_units_within_a_block_whole_panels_are_shared(dtype, teams):
    width = lanes(dtype)
    for registers, members in ((VECTORS + 1, 0), (2 * VECTORS, 2), (BLOCK + 1, 2)):
        layer = fb.GRU(4, registers * width, dtype=dtype).weights.layers[0]
        assert layers._unit_members(2, layer, 1) == members


class Clock:
    """Of a thread that works `busy` of all seconds."""

    busy = 1.0
    now = 0.0

    def perf_counter(self):
        return self.now

    monotonic = perf_counter

    def thread_time(self):
        return self.busy * self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(layers, "time", clock)
    monkeypatch.setattr(layers, "_others", layers._Others())
    monkeypatch.setattr(layers._Others, "SEEN", True)
    return clock


def call_of_a_team(clock, how="together"):
    def work(i, given):
        if given.leads:
            clock.now += 1
            given.board[team._SIZE] = 1 if how == "late" else 2
            given.board[team._LAST] = how == "parts"
            if how == "raises":
                raise KeyboardInterrupt

    layers._together(work, 2)


@pytest.mark.parametrize("how", ["together", "late", "parts"])
def test_after_two_calls_held_up_one_thread_works_alone_for_some_time(clock, how):
    layer = fb.RNN(4, 256).weights.layers[0]
    others = layers._others

    def call(held_up):
        clock.busy = 1 - others.SHARE * (1.2 if held_up and how == "together" else 0.8)
        call_of_a_team(clock, how if held_up else "together")
        return layers._unit_members(2, layer, 1)

    assert [call(held_up) for held_up in (True, False, True, True)] == [2, 2, 2, 0]
    clock.now += others.SECONDS
    assert layers._unit_members(2, layer, 1) == 2
    assert call(True) == 0  # one more is enough
    clock.now += others.SECONDS
    assert [call(held_up) for held_up in (False, True)] == [2, 2]


def test_the_more_calls_are_held_up_the_longer_one_thread_works_alone(clock):
    others = layers._others

    def alone(how):
        call_of_a_team(clock, how)
        begun = clock.now
        while others.expected():
            clock.now += others.SECONDS / 64
        return (clock.now - begun) / others.SECONDS

    shares = [0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 1]
    assert [alone("parts") for _ in shares] == pytest.approx(shares, abs=1 / 32)
    assert alone("together") == 0
    assert [alone("parts") for _ in range(2)] == pytest.approx(shares[:2], abs=1 / 32)


def test_a_call_that_raises_says_nothing_of_others(clock):
    clock.busy = 0.0
    call_of_a_team(clock)
    with pytest.raises(KeyboardInterrupt):
        call_of_a_team(clock, "raises")
    assert not layers._others.expected()


def test_where_a_threads_time_is_not_known_nothing_is_read_off_it(clock, monkeypatch):
    monkeypatch.setattr(layers._Others, "SEEN", False)
    clock.busy = 0.0
    for _ in range(2):
        call_of_a_team(clock)
    assert not layers._others.expected()


class Told:
    """In the place of `_others`: it hears of calls, and expects others from the n-th on."""

    def __init__(self, most):
        self.calls, self.most = 0, most

    def saw(self, board, elapsed, own):
        self.calls += 1

    def expected(self):
        return self.calls >= self.most


@pytest.mark.parametrize(("B", "most", "heard"), [(1, 99, 4), (1, 1, 1), (2, 99, 0)])
def test_a_long_backward_pass_leaves_a_team_that_is_held_up(monkeypatch, teams, B, most, heard):
    rng = np.random.default_rng(0)
    net = fb.RNN(5, 150, rng=0)
    x, dy = (rng.normal(size=(3000, B, n)).astype(np.float32) for n in (5, 150))
    fb.set_num_threads(1)
    trace = net.trace(x)
    alone = trace.backward(dy)
    monkeypatch.setattr(layers, "_CALL", 1)
    told = Told(most)
    monkeypatch.setattr(layers, "_others", told)
    fb.set_num_threads(2)
    again = trace.backward(dy)
    assert told.calls == heard
    np.testing.assert_array_equal(alone.x, again.x)
    for name, value in alone.params.items():
        np.testing.assert_array_equal(value, again.params[name])
