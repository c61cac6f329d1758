"""Curves of norms, their textbook bounds, copies and plots: against explicit products."""

import copy
import math
import pickle

import numpy as np
import pytest
import reference
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_equal
from products import DTYPES, eps_of, orthogonal, permuted
from strategies import dtypes, net_cases

import fastbptt as fb
from fastbptt.spectral import Curve, NormEstimate


@given(st.integers(1, 12), st.integers(1, 25), dtypes(), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_curves_against_the_explicit_products(N, T, dtype, seed):
    rng = np.random.default_rng(seed)
    J = (rng.normal(size=(T, N, N)) / np.sqrt(N)).astype(dtype)
    chain, wide = fb.MatrixChain(J), J.astype(float)
    s = int(rng.integers(0, T + 1))
    for probes in (3, N):
        curve = fb.growth_from(chain, s, probes=probes, delta=1e-9)
        exact = np.array([0.0, *reference.curve_of_log_norms(wide[s:])])
        near = 30 * eps_of(dtype, T, N)
        assert_allclose(curve.t, np.arange(s, T + 1))
        assert (curve.lower <= exact + near).all()
        assert (curve.upper >= exact - near).all()
        assert (curve.lower <= curve.estimate).all()
        assert (curve.estimate <= curve.upper).all()
        assert curve.delta == (0 if probes >= N else 1e-9)
        if probes >= N:
            assert_allclose(curve.lower, exact, atol=near)
        back = fb.growth_to(chain, s, probes=probes, delta=1e-9)
        exact = [reference.log_norm_of_product(wide[r:s]) for r in range(s, -1, -1)]
        assert (back.lower <= np.array(exact) + near).all()
        assert (back.upper >= np.array(exact) - near).all()
    u = rng.normal(size=N).astype(dtype)
    by_lag, now = [math.log(np.linalg.norm(u))], u.astype(float)
    for step in wide[::-1]:
        now = step.T @ now
        by_lag.append(math.log(np.linalg.norm(now)))
    assert_allclose(fb.growth_to(chain, cotangent=u).estimate, by_lag, atol=near)


@pytest.mark.parametrize("way", ["from", "to"])
@pytest.mark.parametrize(("dtype", "near"), [(np.float32, 1e-4), (np.float64, 1e-11)])
@pytest.mark.parametrize("N", [24, 40])
def test_curves_of_matrices_far_from_normal(N, dtype, near, way):
    """All directions grow alike, and still the frame of the whole space loses some."""
    J = np.stack([0.9 * np.eye(N) + 0.5 * np.eye(N, k=1)] * 130).astype(dtype)
    grow = fb.growth_from if way == "from" else fb.growth_to
    curve = grow(fb.MatrixChain(J), probes=N)
    exact = [0.0, *reference.curve_of_log_norms(J.astype(float))]
    assert_allclose(curve.lower, exact, atol=near)


def overflowing():
    """Chains whose third product has no number, by an infinite factor or by their own size."""
    J = np.stack([np.eye(16)] * 5)
    J[2, 0, 0] = np.inf
    large = np.stack([np.eye(16)] * 2 + [np.full((16, 16), 1e38)] * 2 + [np.eye(16)])
    return {"infinite": J, "large": large.astype(np.float32)}


@pytest.mark.parametrize("probes", [3, 16])
@pytest.mark.parametrize("name", ["infinite", "large"])
def test_a_product_that_overflows_is_not_zero(name, probes):
    J = overflowing()[name]
    chain, cotangent = fb.MatrixChain(J), np.eye(16, dtype=J.dtype)[0]
    curves = [  # the first of two large ones does not leave the range yet
        (fb.growth_from(chain, probes=probes), 3 if name == "infinite" else 4),
        (fb.growth_to(chain, probes=probes), 3),
        (fb.growth_to(chain, cotangent=cotangent), 3),
    ]
    for curve, known in curves:
        for y in (curve.lower, curve.estimate, curve.upper):
            assert np.isnan(y).tolist() == [n >= known for n in range(6)]


@pytest.mark.parametrize("peak", [1e-300, 1e-170, 1.0, 1e160, 1e308])
def test_cotangents_whose_squares_are_no_numbers(peak):
    chain = fb.MatrixChain(np.stack([0.5 * np.eye(4)] * 10))
    exact = math.log(peak) + 0.5 * math.log(2) - math.log(2) * np.arange(11)
    got = fb.growth_to(chain, cotangent=np.array([peak, 0, -peak, 0]))
    assert_allclose(got.estimate, exact, rtol=1e-12)


def test_curves_of_a_batch_are_those_of_its_sequences():
    rng = np.random.default_rng(31)
    x = rng.normal(size=(40, 3, 2)).astype(np.float32)
    trace = fb.GRU(2, 6, rng=0).trace(x)
    chains = [trace.chain(b) for b in range(3)]
    cotangents = rng.normal(size=(3, 6)).astype(np.float32)
    for both, one in (
        (fb.growth_from(chains, 4), lambda b: fb.growth_from(chains[b], 4)),
        (fb.growth_to(chains, 30), lambda b: fb.growth_to(chains[b], 30)),
        (
            fb.growth_to(chains, cotangent=cotangents),
            lambda b: fb.growth_to(chains[b], cotangent=cotangents[b]),
        ),
        (fb.growth_window(chains, 5), lambda b: fb.growth_window(chains[b], 5)),
        (fb.growth_map(chains), lambda b: fb.growth_map(chains[b])),
    ):
        for name in ("lower", "estimate", "upper", "worst_error", "delta", "textbook"):
            values = getattr(both, name)
            for b in range(3):
                own = values if np.ndim(values) == 0 else values[b]
                np.testing.assert_array_equal(own, getattr(one(b), name))
        if pytest.importorskip("matplotlib"):
            assert both.plot().get_xlabel()
    with pytest.raises(ValueError, match="equally long, got lengths"):
        fb.growth_from([chains[0], fb.MatrixChain(np.zeros((5, 3, 3)))])
    with pytest.raises(ValueError, match="cotangent: expected 3"):
        fb.growth_to(chains, cotangent=cotangents[:2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_curves_where_the_leading_direction_changes(dtype):
    J, _ = permuted(300, 24, np.random.default_rng(32))
    J, at, total = J.astype(dtype), np.arange(24), np.zeros(24)
    exact = [0.0]
    for step in J:
        after = step[:, at].argmax(axis=0)
        total = total + np.log(step[after, at].astype(float))
        at = after
        exact.append(total.max())
    near = 300 * np.finfo(dtype).eps * 16
    curve = fb.growth_from(fb.MatrixChain(J), delta=1e-9)
    assert (curve.lower <= exact + near * np.ones(301)).all()
    assert (curve.upper >= exact - near * np.ones(301)).all()
    whole = fb.growth_from(fb.MatrixChain(J), probes=24)
    assert_allclose(whole.estimate, exact, atol=near)


def test_the_gradient_by_lag_is_bptts():
    """growth_to with the user's dL/dh_T is the norm of dL/dh_s that BPTT finds."""
    rng = np.random.default_rng(17)
    for kind in ("RNN", "LSTM"):
        net = getattr(fb, kind)(3, 24, dtype=np.float64, rng=0)
        trace = net.trace(rng.normal(size=(40, 3)))
        d_output = np.zeros_like(trace.output)
        d_output[-1] = rng.normal(size=24)
        per_step = trace.backward(d_output, per_step=True).per_step
        parts = [per_step[name][0] for name in per_step]
        cotangent = np.concatenate([d_output[-1], np.zeros(24 * (kind == "LSTM"))])
        chain = trace.chain()
        pulled = chain.rmatvec(40, 0, cotangent)
        d_begin = trace.backward(d_output).state
        whole = np.concatenate([np.ravel(part) for part in np.atleast_2d(np.squeeze(d_begin))])
        assert_allclose(pulled, whole, atol=1e-12)
        got = fb.growth_to(chain, cotangent=cotangent)
        assert_allclose(got.estimate[-1], math.log(np.linalg.norm(whole)), atol=1e-10)
        if kind == "RNN":  # an LSTM's dL/dc_t of per_step holds what came by h_t already
            exact = np.log([np.linalg.norm(part) for part in parts[0][::-1]])
            assert_allclose(got.estimate[:-1], exact, atol=1e-10)


@given(net_cases(most=9, both_ways=False, ragged=False, scales=(1.0, 10.0)), dtypes())
@settings(max_examples=40, deadline=None)
def test_textbook_bounds_of_curves_lie_above(case, dtype):
    """Of every cell and depth, sums of what bounds each step, and above the explicit norms."""
    T, B, I, H = case.shape
    assume(T > 0 and B > 0)
    params = {name: y.astype(dtype) for name, y in case.params.items()}
    bias = "bias_ih_l0" in params
    net = getattr(fb, case.kind)(I, H, case.num_layers, bias=bias, dtype=dtype, **case.options)
    net.load_state_dict(params)
    state = tuple(part.astype(dtype) for part in case.state)
    chain = net.trace(case.x.astype(dtype), state if len(state) > 1 else state[0]).chain()
    wide = tuple(part.astype(float) for part in state)
    record = reference.net_forward(
        {name: y.astype(float) for name, y in params.items()}, case.x.astype(dtype).astype(float),
        wide, case.kind, case.options, case.num_layers,
    )  # fmt: skip
    J = reference.jacobians(record, 0)
    steps, loose = chain.step_bounds(), chain._loose_bounds()
    norms = np.array([reference.log_norm_of_product(step[None]) for step in J])
    # what a gate adds to an element is about 1: however small they are, that much is rounded
    rounding = (1 + T) * eps_of(dtype, T, J.shape[1])
    near = rounding * (1 + np.exp(-norms))
    assert (steps >= norms - near).all()
    assert (loose >= norms - near).all()
    some = norms > -np.inf
    assert (steps[some] <= norms[some] + near[some]).all()
    curve, back = fb.growth_from(chain, 0), fb.growth_to(chain)
    products = reference.curve_of_log_norms(J) - np.cumsum(near)
    assert (curve.textbook >= [0.0, *products]).all()
    assert_allclose(curve.textbook, [0.0, *np.cumsum(steps)], atol=1e-9)
    assert_allclose(back.textbook, [0.0, *np.cumsum(steps[::-1])], atol=1e-9)
    if case.kind == "RNN" and case.num_layers == 1:
        w = params["weight_hh_l0"].astype(float)
        a = reference.rnn_forward(
            {name: y.astype(float) for name, y in params.items()},
            case.x.astype(dtype).astype(float), wide[0][0], case.options["nonlinearity"],
        )[1][:, 0]  # fmt: skip
        with np.errstate(divide="ignore"):
            slope = np.log(reference.SLOPE[case.options["nonlinearity"]](a).max(axis=1))
        assert_allclose(loose, slope + math.log(np.linalg.norm(w, 2)), atol=10 * rounding)
        assert (curve.textbook <= np.arange(T + 1) * chain.classical_rate + rounding).all()


def nets_at_rest():
    """Nets whose states are zero: their J by hand, with norms for weights; zero biases."""
    half, w, x = 0.5, 3.0, 2.0  # of each gate, of W_hh and of W_ih
    return {
        ("RNN", 1): [[w]],
        ("RNN", 2): [[w, 0], [x * w, w]],
        ("GRU", 1): [[half + half * half * w]],
        ("MGU", 1): [[half + half * half * w]],
        ("LSTM", 1): [[half * half * w, half * half], [half * w, half]],
    }


@pytest.mark.parametrize(("kind", "L"), nets_at_rest())
def test_textbook_bounds_of_nets_at_rest(kind, L):
    rng = np.random.default_rng(35)
    net = getattr(fb, kind)(2, 5, L, dtype=np.float64, bias=False, rng=0)
    state = net.state_dict()
    for name, y in state.items():
        size = 3.0 if "hh" in name else 2.0
        gates = rng.normal(size=(len(y) // 5, 5, y.shape[1]))
        norms = np.linalg.norm(gates, 2, axis=(1, 2), keepdims=True)
        state[name] = (size * gates / norms).reshape(y.shape)
    net.load_state_dict(state)
    exact = math.log(np.linalg.norm(nets_at_rest()[kind, L], 2))
    assert_allclose(net.trace(np.zeros((4, 2))).chain()._loose_bounds(), exact, rtol=1e-12)


class _Hidden(fb.Chain):
    """A chain of matrices that shows no more of them than the protocol does."""

    def __init__(self, J):
        self._chain = fb.MatrixChain(J)
        self.dtype = self._chain.dtype

    def __len__(self):
        return len(self._chain)

    def size(self, t):
        return self._chain.size(t)

    def push(self, s, t, rows):
        return self._chain.push(s, t, rows)

    def pull(self, t, s, rows):
        return self._chain.pull(t, s, rows)


def test_textbook_bounds_of_matrices():
    """Their norms, or the lesser of two no less than these; what is no number stays none."""
    rng = np.random.default_rng(36)
    J = rng.normal(size=(9, 4, 4))
    J[2] = np.diag([1e200, 1.0, 2.0, 3.0])
    J[3] = 1e-200 * orthogonal(4, rng)
    J[5] = 0
    loose = [
        min(
            np.linalg.norm(step / (scale := 2.0**400 if step.max() > 1e100 else 2.0**-300)) * scale,
            math.sqrt(np.abs(step).sum(axis=0).max()) * math.sqrt(np.abs(step).sum(axis=1).max()),
        )
        for step in J
    ]  # fmt: skip
    with np.errstate(divide="ignore"):
        exact, loose = np.log([np.linalg.norm(step, 2) for step in J]), np.log(loose)
    u = np.array([3.0, 0, 0, -4.0])
    for chain in (fb.MatrixChain(J), _Hidden(J)):
        assert_allclose(chain.step_bounds(), exact, rtol=1e-12)
        assert_allclose(chain._loose_bounds(), loose, rtol=1e-12)
        curve = fb.growth_to(chain, 5, u)
        assert_allclose(curve.textbook, math.log(5) + np.cumsum([0, *exact[4::-1]]), rtol=1e-12)
        assert (curve.textbook >= curve.upper - 1e-9).all()
        assert (fb.growth_to(chain, 5, 0 * u).textbook == -np.inf).all()
        windows = fb.growth_window(chain, 2, method="sweeps").textbook
        assert np.isneginf(windows).tolist() == [s in (4, 5) for s in range(8)]
        assert_allclose(windows[6:], [exact[6] + exact[7], exact[7] + exact[8]], rtol=1e-12)
    J[1, 0, 0], J[7, 1, 1] = np.inf, np.nan
    windows = fb.growth_window(fb.MatrixChain(J), 2, method="sweeps").textbook
    assert np.isposinf(windows).tolist() == [s in (0, 1) for s in range(8)]
    assert np.isnan(windows).tolist() == [s in (6, 7) for s in range(8)]
    rectangular = [rng.normal(size=(3, 2)), rng.normal(size=(5, 3))]
    whole = fb.growth_from(fb.MatrixChain(rectangular))
    assert whole.textbook[-1] >= math.log(np.linalg.norm(rectangular[1] @ rectangular[0], 2))
    net = fb.RNN(2, 3, rng=0)
    net.weight_hh_l0 = np.full((3, 3), np.nan, np.float32)
    assert np.isnan(net.trace(np.zeros((4, 2), np.float32)).chain().step_bounds()).all()


def test_textbook_bounds_of_isometries_are_those_of_one():
    """Frobenius' norm would say log(N)/2 a step, sums of rows little less."""
    rng = np.random.default_rng(40)
    J = np.stack([orthogonal(24, rng) for _ in range(200)])
    for chain in (fb.MatrixChain(J), fb.MatrixChain(list(J)), _Hidden(J)):
        assert_allclose(fb.growth_from(chain).textbook, 0, atol=1e-12)
        assert_allclose(fb.growth_map(chain, [1, 9]).textbook[0, 1:], 0, atol=1e-12)
    large = fb.MatrixChain(np.stack([np.eye(65)] * 2))
    assert_allclose(large.step_bounds(), 0, atol=1e-12)  # by sums of rows
    # where it would take too long they are looser
    long = fb.MatrixChain(np.broadcast_to(np.tile(J[0], (2, 2)) / 2, (20_000, 48, 48)))
    assert (long.step_bounds() > 0.5).all()
    assert_allclose(long.step_norms(np.array([7, 3])), 0, atol=1e-12)


def test_plots():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    chain = fb.MatrixChain(np.random.default_rng(22).normal(size=(40, 4, 4)))
    for one in (
        fb.growth_from(chain), fb.growth_to(chain), fb.growth_window(chain, 3),
        fb.growth_map(chain), fb.lyapunov_spectrum(chain),
    ):  # fmt: skip
        assert one.plot().get_xlabel()
    curve = fb.growth_window(chain, 3)
    lines = {line.get_label(): line.get_ydata() for line in curve.plot().lines}
    assert_allclose(lines["textbook bound"], curve.textbook)
    bounded = fb.growth_map(fb.MatrixChain(np.concatenate([chain._J, 0.1 * np.array(chain._J)])))
    assert any("Contour" in type(part).__name__ for part in bounded.plot().collections)


def results():
    """Of every kind of chain what knows its chain, and what other results there are."""
    rng = np.random.default_rng(37)
    matrices = fb.MatrixChain(rng.normal(size=(20, 4, 4)))
    hidden = _Hidden(rng.normal(size=(20, 4, 4)))
    rectangular = fb.MatrixChain([rng.normal(size=(3, 2)), rng.normal(size=(5, 3))])
    net = fb.LSTM(2, 5, 2, rng=0)
    trace = net.trace(rng.normal(size=(20, 3, 2)).astype(np.float32))
    chains = [trace.chain(b) for b in range(3)]
    stream = fb.JacobianStream(net, probes=3)
    stream.update(rng.normal(size=(20, 3, 2)).astype(np.float32))
    of_chains = [
        fb.growth_from(matrices, 3), fb.growth_to(hidden, cotangent=np.arange(4.0)),
        fb.growth_from(rectangular), fb.growth_window(chains[0], 4), fb.growth_to(chains),
        fb.growth_map(matrices), fb.growth_map(chains), fb.log_norm(matrices, 9, 2),
        fb.log_norm(chains[1]),
    ]  # fmt: skip
    others = [
        stream.result(), fb.lyapunov_spectrum(stream), fb.lyapunov_spectrum(hidden),
        fb.sensitivity(chains[0]), fb.textbook_bounds(matrices),
    ]  # fmt: skip
    return of_chains, others


@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        lambda one: pickle.loads(pickle.dumps(one)),
        lambda one: one._replace(**{one._fields[2]: one[2]}),
        lambda one: getattr(one, "__replace__", one._replace)(),  # copy.replace
    ],
    ids=["copy", "deepcopy", "pickle", "_replace", "replace"],
)
def test_copies_of_results_are_whole(copied):
    of_chains, others = results()
    for one in (*of_chains, *others):
        other = copied(one)
        assert other is not one
        assert type(other) is type(one)
        assert_equal(tuple(other), tuple(one))
        assert repr(other) == repr(one)
    for one in of_chains:
        assert_equal(copied(one).textbook, one.textbook)
        assert copied(one).textbook is not None
    other = copied(of_chains[-1])
    chain, t, s = other.of
    assert_equal(tuple(fb.log_norm(chain, t, s)), tuple(other))


def test_results_made_by_hand_have_no_textbook_bound():
    of_chains, _ = results()
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    for one in of_chains:
        bare = type(one)(*one)
        for other in (bare, pickle.loads(pickle.dumps(bare)), bare._replace()):
            assert other.textbook is None
        if isinstance(one, NormEstimate):
            assert str(bare) == str(one)
            continue
        drawn, known = bare.plot(), one.plot()
        assert drawn.get_xlabel() == known.get_xlabel()
        if isinstance(one, Curve):
            names = [line.get_label() for line in known.lines]
            assert any(name.startswith("textbook bound") for name in names)
            left = [name for name in names if not name.startswith("textbook bound")]
            assert [line.get_label() for line in drawn.lines][:-1] == left[:-1]  # the last is zero
        else:
            assert len(drawn.collections) == 0
            assert_equal(drawn.images[0].get_array(), known.images[0].get_array())


def test_parts_of_a_curve_keep_the_textbook_bounds_that_are_theirs():
    rng = np.random.default_rng(38)
    chains = [fb.MatrixChain(rng.normal(size=(20, 4, 4))) for _ in range(2)]
    both, curve, found = fb.growth_from(chains), fb.growth_from(chains[0]), fb.growth_map(chains[0])

    def cut(one, names, *part):
        return one._replace(**{name: getattr(one, name)[part] for name in names.split()})

    later = cut(curve, "t s lower estimate upper", slice(5, None))
    assert_equal(later.textbook, curve.textbook[5:])
    long = cut(found, "lags lower estimate upper delta worst_error", slice(3, None))
    assert_equal(long.textbook, found.textbook[3:])
    for lost in (
        cut(both, "lower estimate upper worst_error", 0),  # whose is it?
        curve._replace(t=curve.t + 1),
        curve._replace(t=curve.t - 1),
        curve._replace(s=curve.s - 1),
        cut(found, "lower estimate upper", ..., slice(5, None)),  # of other times
    ):
        assert lost.textbook is None
        if pytest.importorskip("matplotlib"):
            assert lost.plot().get_xlabel()


def test_what_a_curve_holds_is_three_arrays():
    chain = fb.MatrixChain(np.stack([0.5 * np.eye(4)] * 10))
    for curve in (
        fb.growth_from(chain, probes=4),
        fb.growth_to(chain, probes=4),
        fb.growth_to(chain, cotangent=np.ones(4)),
        fb.growth_to(chain, cotangent=np.zeros(4)),
    ):
        curve.lower[:] = 7
        assert (curve.estimate != 7).all()
        assert (curve.upper != 7).all()
        curve.upper[:] = 8
        assert (curve.estimate != 8).all()
