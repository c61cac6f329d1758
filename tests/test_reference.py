"""The reference itself: central differences, closed forms, torch, and the mistakes it must see."""

import math

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.special import digamma
from strategies import KINDS, LAYOUTS, cases, lay_out, net_cases


@pytest.mark.parametrize("strategy", [cases(), net_cases(most=1)])
def test_few_cases_are_empty(strategy):
    drawn = []
    settings(max_examples=200, database=None)(given(strategy)(lambda case: drawn.append(case)))()
    assert sum(0 in case.x.shape for case in drawn) < len(drawn) / 3


def loss(case, params, x, h0):
    h, _ = reference.rnn_forward(params, x, h0, case.nonlinearity)
    return (h[1:] * case.d_output).sum() + (h[-1] * case.d_state).sum()


@settings(deadline=None, max_examples=25)
@given(case=cases(), seed=st.integers(0, 99))
def test_every_gradient_by_central_differences(case, seed):
    h, a = reference.rnn_forward(case.params, case.x, case.h0, case.nonlinearity)
    if case.nonlinearity == "relu" and a.size and np.abs(a).min() < 1e-3:
        return  # a difference across the kink is not the derivative
    grads = reference.rnn_backward(
        case.params, case.x, h, a, case.d_output, case.d_state, case.nonlinearity
    )
    rng = np.random.default_rng(seed)
    arrays = {**case.params, "dx": case.x, "dh0": case.h0}
    for name, value in arrays.items():
        way, step = rng.normal(size=value.shape), 1e-6
        sides = []
        for sign in (1, -1):
            moved = {**arrays, name: value + sign * step * way}
            x, h0 = moved.pop("dx"), moved.pop("dh0")
            sides.append(loss(case, moved, x, h0))
        slope = (sides[0] - sides[1]) / (2 * step)
        scale = 1 + np.abs(grads[name]).max(initial=0) * math.sqrt(value.size)
        assert abs(slope - (grads[name] * way).sum()) < 2e-4 * scale


def test_forward_by_hand():
    rng = np.random.default_rng(0)
    p = {
        "weight_ih_l0": rng.normal(size=(3, 2)),
        "weight_hh_l0": rng.normal(size=(3, 3)),
        "bias_ih_l0": rng.normal(size=3),
        "bias_hh_l0": rng.normal(size=3),
    }
    x, h0 = rng.normal(size=(4, 2, 2)), rng.normal(size=(2, 3))
    h, _ = reference.rnn_forward(p, x, h0, "sigmoid")
    state = h0.tolist()
    for t in range(4):
        for b in range(2):
            before = list(state[b])
            for i in range(3):
                a = p["bias_ih_l0"][i] + p["bias_hh_l0"][i]
                a += sum(p["weight_ih_l0"][i, j] * x[t, b, j] for j in range(2))
                a += sum(p["weight_hh_l0"][i, j] * before[j] for j in range(3))
                state[b][i] = 1 / (1 + math.exp(-a))
        assert_allclose(h[t + 1], state, rtol=1e-14)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_gradients_of_torch(nonlinearity):
    net = torch.nn.RNN(4, 6, nonlinearity=nonlinearity, dtype=torch.float64)
    rng = np.random.default_rng(0)
    x, h0, d_output, d_state = (
        rng.normal(size=shape) for shape in ((7, 3, 4), (1, 3, 6), (7, 3, 6), (1, 3, 6))
    )
    xt, ht = (torch.from_numpy(y).requires_grad_() for y in (x, h0))
    output, state = net(xt, ht)
    torch.autograd.backward(
        [output, state], [torch.from_numpy(d_output), torch.from_numpy(d_state)]
    )
    params = {name: p.detach().numpy() for name, p in net.named_parameters()}
    h, a = reference.rnn_forward(params, x, h0[0], nonlinearity)
    grads = reference.rnn_backward(params, x, h, a, d_output, d_state[0], nonlinearity)
    assert_allclose(h[1:], output.detach().numpy(), rtol=1e-12, atol=1e-14)
    wanted = {name: p.grad.numpy() for name, p in net.named_parameters()}
    wanted |= {"dx": xt.grad.numpy(), "dh0": ht.grad.numpy()[0]}
    for name, value in wanted.items():
        assert_allclose(grads[name], value, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "sigmoid"])
def test_jacobians_by_central_differences(nonlinearity):
    rng = np.random.default_rng(1)
    params = {"weight_ih_l0": rng.normal(size=(5, 2)), "weight_hh_l0": rng.normal(size=(5, 5))}
    x, h0 = rng.normal(size=(1, 1, 2)), rng.normal(size=(1, 5))
    _, a = reference.rnn_forward(params, x, h0, nonlinearity)
    J = reference.rnn_jacobians(params, a, nonlinearity, 0)[0]
    for j in range(5):
        step = np.zeros((1, 5))
        step[0, j] = 1e-6
        up, down = (
            reference.rnn_forward(params, x, h0 + sign * step, nonlinearity)[0][1, 0]
            for sign in (1, -1)
        )
        assert_allclose(J[:, j], (up - down) / 2e-6, atol=1e-8)


def test_slopes_in_the_tails():
    a = np.array([-700.0, -40.0, 0.0, 40.0, 700.0])
    assert_allclose(reference.SLOPE["sigmoid"](a), np.exp(-np.abs(a)) / [1, 1, 4, 1, 1], rtol=1e-15)
    a = np.array([-350.0, -20.0, 20.0, 350.0])
    assert_allclose(reference.SLOPE["tanh"](a), 4 * np.exp(-2 * np.abs(a)), rtol=1e-15)


def orthogonal(N, rng):
    return np.linalg.qr(rng.normal(size=(N, N)))[0]


def test_norm_of_scaled_orthogonal():
    rng = np.random.default_rng(0)
    J = np.array([1000 * orthogonal(6, rng) for _ in range(1000)])
    curve = reference.curve_of_log_norms(J)
    assert_allclose(curve, np.arange(1, 1001) * math.log(1000), rtol=1e-12)


def test_norm_of_rank_one_factors():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 50, 4))
    wanted = math.log(np.linalg.norm(x[-1])) + math.log(np.linalg.norm(y[0]))
    wanted += np.log(np.abs((y[1:] * x[:-1]).sum(axis=1))).sum()
    assert_allclose(reference.log_norm_of_product(x[:, :, None] * y[:, None]), wanted)
    y[20] = 0
    assert reference.log_norm_of_product(x[:, :, None] * y[:, None]) == -math.inf


def test_norm_of_diagonal_times_permutation():
    rng = np.random.default_rng(0)
    N, T = 5, 30
    J, paths, at = [], np.zeros(N), np.arange(N)
    for _ in range(T):
        order, d = rng.permutation(N), np.exp(rng.normal(size=N) * 5)
        J.append(d[:, None] * np.eye(N)[order])  # row i takes column order[i]
        at = np.argsort(order)[at]
        paths += np.log(d[at])
    assert_allclose(reference.log_norm_of_product(np.array(J)), paths.max())


def test_exponents_of_gaussian_factors():
    """Newman 1986: (log 2 + psi((N - i + 1)/2)) / 2 for the i-th of N."""
    rng = np.random.default_rng(0)
    N, T = 6, 20_000
    exponents = reference.lyapunov_exponents(rng.normal(size=(T, N, N)), N, rng)
    i = np.arange(1, N + 1)
    wanted = (math.log(2) + digamma((N - i + 1) / 2)) / 2
    assert_allclose(exponents, wanted, atol=0.03)


def test_mean_field():
    assert reference.mean_field_exponent(1.5)[0] == pytest.approx(0.0652, abs=5e-5)
    assert reference.mean_field_exponent(3.0)[0] == pytest.approx(0.3102, abs=5e-5)
    assert reference.mean_field_exponent(0.8)[0] == pytest.approx(math.log(0.8), abs=1e-6)


def test_the_published_mistakes_are_seen():
    rng = np.random.default_rng(0)
    J = rng.normal(size=(9, 8, 8)) @ np.diag(np.exp(rng.normal(size=8) * 2))
    right = reference.log_norm_of_product(J)
    assert abs(reference.wrong_order(J) - right) > 0.1
    assert abs(reference.only_r11(J, 4, rng) - right) > 0.1
    assert abs(reference.sum_of_log_diagonal(J, 4, rng) - right) > 0.1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 4, 5), (0, 2, 3), (1,)])
def test_laid_out_arrays_are_equal(layout, shape):
    y = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    other = lay_out(y, layout)
    np.testing.assert_array_equal(other, y)
    assert other.dtype == y.dtype
    if layout == "read-only":
        assert not other.flags.writeable
    if layout in ("strided", "reversed") and y.size > 1:
        assert not other.flags.c_contiguous


def net_loss(case, arrays):
    """The sum of all results, each weighted; `arrays` the params, x, and the states."""
    arrays = dict(arrays)
    x, state = arrays.pop("x"), tuple(arrays.pop(f"state{i}") for i in range(len(case.state)))
    record = reference.net_forward(
        arrays, x, state, case.kind, case.options, case.num_layers, case.bidirectional,
        case.lengths, case.reset,
    )  # fmt: skip
    ends = zip(record["state"], case.d_state, strict=True)
    padded = 0 if case.lengths is None else np.arange(len(x))[:, None] >= case.lengths
    steps = (record["output"] * case.d_output)[~np.broadcast_to(padded, x.shape[:2]).astype(bool)]
    return record, steps.sum() + sum((one * other).sum() for one, other in ends)


# of a relu the kinks are seen to in the test of the plain net
SMOOTH = [(kind, options) for kind, options in KINDS if "relu" not in options.values()]


@pytest.mark.parametrize(("kind", "options"), SMOOTH)
@settings(deadline=None, max_examples=8)
@given(data=st.data(), seed=st.integers(0, 99))
def test_every_gradient_of_every_cell_by_central_differences(kind, options, data, seed):
    case = data.draw(net_cases([(kind, options)], most=6))
    states = {f"state{i}": y for i, y in enumerate(case.state)}
    arrays = {**case.params, "x": case.x, **states}
    record, _ = net_loss(case, arrays)
    grads = reference.net_backward(record, case.d_output, case.d_state)
    for i, y in enumerate(grads["dstate"]):
        grads[f"state{i}"] = y
    grads["x"] = grads["dx"]
    rng = np.random.default_rng(seed)
    for name, value in arrays.items():
        way, step = rng.normal(size=value.shape), 1e-6
        sides = [net_loss(case, {**arrays, name: value + sign * step * way})[1] for sign in (1, -1)]
        slope = (sides[0] - sides[1]) / (2 * step)
        scale = 1 + np.abs(grads[name]).max(initial=0) * math.sqrt(value.size)
        assert abs(slope - (grads[name] * way).sum()) < 2e-4 * scale


@pytest.mark.parametrize(("kind", "options"), SMOOTH)
@settings(deadline=None, max_examples=5)
@given(data=st.data())
def test_jacobians_by_central_differences_and_per_step_gradients_by_jacobians(kind, options, data):
    case = data.draw(net_cases([(kind, options)], most=5, both_ways=False, ragged=False, least=1))
    (T, _, _, H), L, step = case.shape, case.num_layers, 1e-6
    parts = len(case.state)

    def joint(state, b):
        return np.concatenate([state[p][n, b] for n in range(L) for p in range(parts)])

    given_net = (case.kind, case.options, L)
    record = reference.net_forward(case.params, case.x, case.state, *given_net)
    J, t = reference.jacobians(record, 0), T - 1
    before = case.state
    if t:
        before = reference.net_forward(case.params, case.x[:t], case.state, *given_net)["state"]
    for m in range(L * parts * H):
        block, j = divmod(m, H)
        sides = []
        for sign in (1, -1):
            moved = tuple(y.copy() for y in before)
            moved[block % parts][block // parts, 0, j] += sign * step
            after = reference.net_forward(case.params, case.x[t:], moved, *given_net)["state"]
            sides.append(joint(after, 0))
        assert_allclose(J[t][:, m], (sides[0] - sides[1]) / (2 * step), atol=1e-6)
    zeros = np.zeros_like(case.d_output)
    grads = reference.net_backward(record, zeros, case.d_state)
    u = joint(case.d_state, 0)
    for step_J in J[::-1]:
        u = u @ step_J
    assert_allclose(joint(grads["dstate"], 0), u, atol=1e-10 * max(1, np.abs(u).max()))


def test_a_layer_cut_by_resets_and_read_from_its_end():
    assert reference.pieces(5, 4, None, False) == [[0, 1, 2, 3]]
    assert reference.pieces(5, 0, None, True) == [[]]
    marks = [True, False, True, False, True]
    assert reference.pieces(5, 4, marks, False) == [[0, 1], [2, 3]]
    assert reference.pieces(5, 5, marks, True) == [[4], [3, 2], [1, 0]]


def test_the_plain_cell_of_the_general_twin_is_the_plain_twin():
    rng = np.random.default_rng(0)
    params = {"weight_ih_l0": rng.normal(size=(4, 3)), "weight_hh_l0": rng.normal(size=(4, 4))}
    x, h0, dy = (rng.normal(size=shape) for shape in ((5, 2, 3), (2, 4), (5, 2, 4)))
    h, a = reference.rnn_forward(params, x, h0, "tanh")
    wanted = reference.rnn_backward(params, x, h, a, dy, 0 * h0, "tanh")
    record = reference.net_forward(params, x, (h0[None],), "RNN", {"nonlinearity": "tanh"})
    got = reference.net_backward(record, dy, (0 * h0[None],))
    assert_allclose(record["output"], h[1:], rtol=1e-14)
    assert_allclose(got["dx"], wanted["dx"], rtol=1e-12)
    assert_allclose(got["weight_hh_l0"], wanted["weight_hh_l0"], rtol=1e-12)
