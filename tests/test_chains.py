"""Chains of traces, of dense nets, of matrices and of the user's own: what they apply."""

import copy
import itertools
import math
import pickle
import warnings

import numpy as np
import pytest
import reference
from numpy.testing import assert_allclose, assert_equal
from products import DTYPES, METHODS, eps_of
from strategies import KINDS
from tolerances import tolerance

import fastbptt as fb


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_chains_of_traces_are_the_references_jacobians(kind, options, dtype):
    rng = np.random.default_rng(13)
    for L, H, B in ((1, 5, 2), (2, 16, 1), (1, 33, 3)):
        net = getattr(fb, kind)(3, H, L, dtype=dtype, rng=1, **options)
        lengths = [9, 5, 7][:B]
        x = rng.normal(size=(9, B, 3)).astype(dtype)
        state = tuple(rng.normal(size=(L, B, H)).astype(dtype) for _ in range(1 + (kind == "LSTM")))
        trace = net.trace(x, state if len(state) > 1 else state[0], lengths=lengths)
        params = {name: y.astype(float) for name, y in net.state_dict().items()}
        record = reference.net_forward(
            params, x.astype(float), tuple(part.astype(float) for part in state), kind, options, L,
            lengths=lengths,
        )  # fmt: skip
        for b in range(B):
            J, chain = reference.jacobians(record, b), trace.chain(b)
            assert len(chain) == lengths[b]
            N = J.shape[1]
            eye = np.eye(N, dtype=dtype)
            rtol, _ = tolerance(dtype, 9, N)
            for t, s in ((len(J), 0), (4, 2), (3, 3)):
                P = eye.astype(float)
                for step in J[s:t]:
                    P = step @ P
                atol = rtol * np.abs(P).max()
                assert_allclose(chain.matrix(t, s), P, rtol=0, atol=atol)
                assert_allclose(chain.rmatvec(t, s, eye), P.T, rtol=0, atol=atol)
            groups = np.array([0, 2, 1])
            rows = rng.normal(size=(3, 2, N)).astype(dtype)
            for g, own in zip(groups, chain.push_groups(groups, 3, rows), strict=True):
                i = int(np.flatnonzero(groups == g)[0])
                assert_allclose(own, chain.push(g, g + 3, rows[i]), rtol=1e-4)
            for g, own in zip(groups, chain.pull_groups(groups + 3, 3, rows), strict=True):
                i = int(np.flatnonzero(groups == g)[0])
                assert_allclose(own, chain.pull(g + 3, g, rows[i]), rtol=1e-4)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_chain_of_no_steps(kind, options):
    net = getattr(fb, kind)(3, 5, 2, rng=0, **options)
    x = np.zeros((4, 2, 3), np.float32)
    for chain in (net.trace(x[:0]).chain(1), net.trace(x, lengths=[4, 0]).chain(1)):
        assert len(chain) == 0
        assert_equal(chain.matrix(0, 0), np.eye(chain.size(0)))
        assert_equal(fb.log_norm(chain).estimate, 0)


def test_a_saturated_net_has_the_slopes_of_its_pre_activations():
    """In float32 1 - h*h is 0 from about 9 on, and the product would be zero where it is not."""
    net = fb.RNN(1, 4, bias=False, rng=0)
    net.load_state_dict(
        {"weight_ih_l0": np.full((4, 1), 12, np.float32), "weight_hh_l0": np.eye(4, dtype="f4")}
    )
    chain = net.trace(np.ones((6, 1), np.float32)).chain()
    a = np.array([12.0, *([13.0] * 5)])
    exact = np.log(4 / (np.exp(a) + np.exp(-a)) ** 2).sum()
    for method in METHODS:
        assert_allclose(fb.log_norm(chain, method=method).estimate, exact, rtol=1e-5)


def test_what_is_no_chain():
    x = np.zeros((5, 2, 3), np.float32)
    with pytest.raises(ValueError, match="bidirectional"):
        fb.RNN(3, 4, bidirectional=True).trace(x).chain()
    reset = np.zeros((5, 2), bool)
    reset[2, 0] = True
    trace = fb.RNN(3, 4).trace(x, reset=reset)
    with pytest.raises(ValueError, match="reset"):
        trace.chain(0)
    assert len(trace.chain(1)) == 5
    with pytest.raises(ValueError, match="batch"):
        trace.chain(2)
    for bad, error, message in (
        (np.zeros((3, 2, 4)), ValueError, "list may hold rectangular"),
        ([], ValueError, "at least one"),
        ([np.zeros((2, 3)), np.zeros((2, 3))], ValueError, r"J\[1\]: expected 2 columns"),
        ([np.zeros((2, 2)), np.zeros((2, 2), np.float32)], TypeError, r"J\[1\]"),
        (3, TypeError, "J: expected"),
        (np.zeros((2, 3, 3), int), TypeError, "float32 or float64"),
    ):
        with pytest.raises(error, match=message):
            fb.MatrixChain(bad)
    chain = fb.MatrixChain(np.zeros((5, 3, 3)))
    assert chain.matvec(2, 0, np.zeros((3, 0))).shape == (3, 0)
    for call, error, message in (
        (lambda: fb.log_norm(trace), TypeError, "use trace.chain"),
        (lambda: fb.log_norm(chain, 6), ValueError, "0 <= s <= t <= 5"),
        (lambda: fb.log_norm(chain, 2, 3), ValueError, "t = 2, s = 3"),
        (lambda: fb.log_norm(chain, method="svd"), ValueError, "method"),
        (lambda: fb.log_norm(chain, delta=0), ValueError, "delta"),
        (lambda: fb.log_norm(chain, tol=-1), ValueError, "tol"),
        (lambda: chain.matvec(2, 0, np.zeros(4)), ValueError, "v: expected shape"),
        (lambda: chain.matvec(2, 0, np.zeros(3, np.float32)), TypeError, "v: expected float64"),
        (lambda: fb.growth_window(chain, 6), ValueError, "lag"),
        (lambda: fb.growth_map(chain, [9]), ValueError, "lags"),
        (lambda: fb.growth_map(chain, 5), TypeError, "lags: expected a sequence"),
        (lambda: fb.growth_map(chain, None), TypeError, "lags: expected a sequence"),
        (lambda: fb.sensitivity(fb.MatrixChain([np.zeros((2, 3))])), ValueError, "square"),
        (lambda: fb.MatrixChain(np.ma.zeros((5, 3, 3))), TypeError, "J: expected plain numbers"),
        (lambda: fb.growth_to(chain, cotangent=np.zeros(2)), ValueError, "cotangent"),
        (lambda: fb.sensitivity(chain), ValueError, "derivative"),
        (lambda: fb.lyapunov_spectrum(fb.MatrixChain([np.zeros((2, 3))])), ValueError, "square"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_copies_of_a_chain_of_matrices_are_read_only():
    """Or the kernels would be compiled for them anew; a pickle holds the matrices once."""
    J = np.random.default_rng(39).normal(size=(50, 8, 8))
    whole, rectangular = fb.MatrixChain(J), fb.MatrixChain([J[0, :2], J[1, :, :2], J[2, :3]])
    none = fb.MatrixChain(J[:0])
    assert len(pickle.dumps(whole)) < 1.1 * J.nbytes + 2000
    for copied in (copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))):
        for chain in (whole, rectangular, none):
            other = copied(chain)
            assert len(other) == len(chain)
            assert other.sizes() == chain.sizes()
            assert_equal(other.matrix(len(chain), 0), chain.matrix(len(chain), 0))
            assert_equal(other.step_bounds(), chain.step_bounds())
        kept = copied(whole)
        assert not kept._chain.J.flags.writeable
        assert np.shares_memory(kept._chain.J, kept._J[-1])
        assert np.shares_memory(kept._chain.J, J) == (copied is copy.copy)


def test_scipy_takes_the_operator():
    import scipy.sparse.linalg as sla

    rng = np.random.default_rng(14)
    chain = fb.MatrixChain(rng.normal(size=(5, 30, 30)) / 5)
    exact = np.linalg.svd(chain.matrix(5, 0), compute_uv=False)
    operator = chain.operator(5, 0)
    assert_allclose(sla.svds(operator, k=3, return_singular_vectors=False)[::-1], exact[:3])
    assert_allclose(sla.aslinearoperator(operator).matmat(np.eye(30)), chain.matrix(5, 0))
    rows = rng.normal(size=(4, 30, 30)) / 5
    symmetric = fb.MatrixChain(np.concatenate([rows, rows[::-1].swapaxes(1, 2)]))
    largest = sla.lobpcg(symmetric.operator(8, 0), rng.normal(size=(30, 3)), maxiter=200)[0]
    assert_allclose(largest.max(), np.linalg.eigvalsh(symmetric.matrix(8, 0)).max(), rtol=1e-6)


def test_scipy_starts_with_float64():
    """Of a float32 chain too: `svds` by lobpcg, `lobpcg`, and products with its own vectors."""
    import scipy.sparse.linalg as sla

    rng = np.random.default_rng(28)
    J = (np.diag(np.linspace(1, 2, 30)) + 0.01 * rng.normal(size=(3, 30, 30))).astype(np.float32)
    chain = fb.MatrixChain(np.concatenate([J, J[::-1].swapaxes(1, 2)]))
    operator, P = chain.operator(6, 0), chain.matrix(6, 0)
    atol = eps_of(np.float32, 6, 30) * np.linalg.norm(P, 2)
    assert_allclose(sla.aslinearoperator(operator) @ np.ones(30), P @ np.ones(30), atol=atol)
    assert_allclose(operator @ np.ones(30, int), P @ np.ones(30), atol=atol)
    values = np.linalg.eigvalsh(P.astype(float))
    found = sla.lobpcg(operator, rng.normal(size=(30, 2)), maxiter=100, tol=1e-3)[0]
    assert_allclose(found.max(), values[-1], rtol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that lobpcg stops before its tolerance
        found = sla.svds(operator, k=2, solver="lobpcg", return_singular_vectors=False)
    assert_allclose(found.max(), values[-1], rtol=1e-2)
    with pytest.raises(TypeError, match="v: expected float32"):
        operator.matvec(np.ones(30, complex))


class _Users(fb.Chain):
    """The documented protocol, with rectangular factors."""

    dtype = np.dtype(float)

    def __init__(self, J):
        self._J = J

    def __len__(self):
        return len(self._J)

    def size(self, t):
        return self._J[t].shape[1] if t < len(self._J) else len(self._J[-1])

    def push(self, s, t, rows):
        for step in self._J[s:t]:
            rows = rows @ step.T
        return rows

    def pull(self, t, s, rows):
        for step in self._J[s:t][::-1]:
            rows = rows @ step
        return rows


def compiled_chains():
    net = fb.RNN(2, 5, rng=0, dtype=np.float64)
    rectangular = fb.MatrixChain([np.ones((3, 5)), np.ones((5, 3)), np.eye(5), np.eye(5)])
    square = fb.MatrixChain(np.ones((4, 5, 5)))
    return [net.trace(np.ones((4, 2))).chain(), square, rectangular]


@pytest.mark.parametrize("chain", compiled_chains())
def test_what_kernels_cannot_refuse_is_refused_before(chain):
    """Each of these would read or write beyond an array."""
    rows, one = np.ones((2, 5)), np.array([0])
    for call in (
        lambda: chain.push(0, 5, rows),
        lambda: chain.push(-1, 3, rows),
        lambda: chain.push(4, 3, rows),
        lambda: chain.pull(6, 0, rows),
        lambda: chain.pull(4, -1, rows),
        lambda: chain.history(0, 10**6, rows),
        lambda: chain.history(5, 0, rows),
        lambda: chain.push_groups(np.array([0, 4]), 1, rows[:, None]),
        lambda: chain.pull_groups(np.array([0, 4]), 1, rows[:, None]),
    ):
        with pytest.raises(ValueError, match=r"chain: expected steps within 0 \.\. 4, got"):
            call()
    for call in (
        lambda: chain.push(0, 1, rows[:, :4]),
        lambda: chain.push(0, 1, np.ones((5, 2))),
        lambda: chain.pull(4, 3, rows[:1, :1]),
        lambda: chain.history(0, 2, np.ones((2, 6))),
        lambda: chain.push_groups(one, 1, rows),
        lambda: chain.push_groups(one, 1, np.ones((2, 2, 5))),
        lambda: chain.push(0, 1, rows[0]),
    ):
        with pytest.raises(ValueError, match=r"rows: expected 1 groups \(k, 5\), got shape"):
            call()
    none = np.zeros(0, int)
    for call in (
        lambda: chain.push_groups(none, 1, rows[:, None]),
        lambda: chain.pull_groups(none, 1, rows[:, None]),
    ):
        with pytest.raises(ValueError, match=r"rows: expected 0 groups \(k, [35]\), got shape"):
            call()
    assert chain.push(4, 4, rows).shape == (2, 5)
    assert chain.push_groups(none, 1, np.ones((0, 2, 5))).shape == (0, 2, 5)


def test_gradients_by_the_weights_of_steps_that_are_not_there():
    chain, rows = compiled_chains()[0], np.ones((1, 5))
    for step in (0, 5):
        with pytest.raises(ValueError, match="chain: expected steps"):
            chain.weight_gradient(np.array([step]), rows, rows, np.ones(1))
    with pytest.raises(ValueError, match="rows: expected"):
        chain.weight_gradient(np.array([1]), rows, rows[:, :4], np.ones(1))


@pytest.mark.parametrize(("name", "call"), [("push", r"push\(0, 1"), ("pull", r"pull\(5, 4")])
def test_a_users_own_chain_of_a_wrong_width(monkeypatch, name, call):
    own = getattr(_Users, name)
    monkeypatch.setattr(_Users, name, lambda *args: own(*args)[:, :-1])
    chain = _Users([np.eye(20)] * 5)
    with pytest.raises(ValueError, match=rf"chain: expected {call}, block\) to return .*, 19\)$"):
        fb.log_norm(chain, method="lanczos")


def test_a_users_own_chain_and_rectangular_matrices():
    rng = np.random.default_rng(15)
    sizes = [20, 31, 18, 40, 25]
    J = [rng.normal(size=(m, n)) / 5 for n, m in itertools.pairwise(sizes)]
    P = np.linalg.multi_dot(J[::-1])
    exact = np.log(np.linalg.svd(P, compute_uv=False))
    for chain in (_Users(J), fb.MatrixChain(J)):
        assert_allclose(chain.matrix(4, 0), P, atol=1e-12)
        for method in METHODS:
            got = fb.log_norm(chain, method=method, delta=1e-9)
            assert got.lower <= exact[0] + 1e-9
            assert got.upper >= exact[0] - 1e-9
        assert_allclose(fb.log_singular_values(chain), np.r_[exact[:18], [-np.inf] * 2], atol=1e-8)
        assert fb.growth_from(chain).lower[-1] <= exact[0] + 1e-9
        with pytest.raises(ValueError, match="square"):
            fb.growth_window(chain, 2)
    square = [J[0].T @ J[0]] * 12
    same = [
        fb.growth_window(chain, 4).estimate for chain in (_Users(square), fb.MatrixChain(square))
    ]
    assert_allclose(same[0], same[1], atol=0.02)


@pytest.mark.parametrize("nonlinearity", ["sigmoid", "tanh", "relu"])
def test_feed_forward_depth_100(nonlinearity):
    rng = np.random.default_rng(16)
    depth, n = 100, 30
    weights = [rng.normal(size=(n, n)) * np.sqrt(2 / n) for _ in range(depth)]
    biases = [0.1 * rng.normal(size=n) for _ in range(depth)]
    net = fb.FeedForward(weights, biases, nonlinearity)
    x = rng.normal(size=(4, n))
    trace = net.trace(x)
    stacked = fb.FeedForward(np.stack(weights), biases, nonlinearity)
    np.testing.assert_array_equal(stacked(x), trace.output)
    h, J, slopes = x, [], []
    for w, bias in zip(weights, biases, strict=True):
        a = h @ w.T + bias
        h = reference.VALUE[nonlinearity](a)
        slopes.append(reference.SLOPE[nonlinearity](a))
        J.append(slopes[-1][2][:, None] * w)
    assert_allclose(trace.output, h, rtol=1e-10, atol=1e-12)
    exact = reference.log_norm_of_product(np.array(J))
    got = fb.log_norm(trace.chain(2), delta=1e-9)
    assert abs(got.estimate - exact) < 2e-3
    P = np.eye(n)
    for step in J:
        P = step @ P
        P /= np.abs(P).max()  # float64 holds what is within 30 nats of the first
    relative = np.log(np.linalg.svd(P, compute_uv=False)[:5])
    values = fb.log_singular_values(trace.chain(2))[:5]
    near = relative > relative[0] - 25
    assert_allclose((values - values[0])[near], (relative - relative[0])[near], atol=1e-3)
    d_output = rng.normal(size=h.shape)
    grads = trace.backward(d_output)
    dh = d_output
    for l in range(depth - 1, -1, -1):
        da = dh * slopes[l]
        assert_allclose(grads.weights[l], da.T @ trace.h[l], rtol=1e-8, atol=1e-12)
        assert_allclose(grads.biases[l], da.sum(axis=0), rtol=1e-8, atol=1e-12)
        dh = da @ weights[l]
    assert_allclose(grads.x, dh, rtol=1e-8, atol=1e-14)
    by_depth = fb.growth_to(trace.chain(1), cotangent=d_output[1]).estimate
    norms = [np.linalg.norm(layer[1]) for layer in grads.layers]
    assert_allclose(by_depth, np.log(norms[::-1]), atol=1e-8)
    assert net(x[0]).shape == (n,)


def test_what_is_no_feed_forward_net():
    w = np.zeros((3, 4))
    for given_, error, message in (
        (([w, w],), ValueError, r"weights\[1\]: expected shape \(m, 3\)"),
        (([],), TypeError, "weights"),
        (([w], [np.zeros(4)]), ValueError, r"biases\[0\]"),
        (([w], []), ValueError, "biases: expected 1, one a layer, got 0"),
        (([w], np.zeros((2, 3))), ValueError, "biases: expected 1, one a layer, got 2"),
        (([w], 3.0), ValueError, "biases: expected 1, one a layer, got float"),
        (([w], None, "selu"), ValueError, "nonlinearity"),
    ):
        with pytest.raises(error, match=message):
            fb.FeedForward(*given_)
    with pytest.raises(ValueError, match="x: expected shape"):
        fb.FeedForward([w]).trace(np.zeros((2, 3)))


def test_biases_in_one_array():
    weights, biases = np.random.default_rng(43).normal(size=(5, 4, 5))[:, :, :4], np.eye(5)[:, :4]
    x = np.ones((2, 4))
    assert_equal(fb.FeedForward(weights, biases)(x), fb.FeedForward(weights, list(biases))(x))


def test_a_gru_at_rest():
    """Zero state and zero weights into the gates: J = I/2 + W_hn/4."""
    rng = np.random.default_rng(24)
    H = 6
    w_hn = rng.normal(size=(H, H))
    for reset_after in (True, False):
        net = fb.GRU(2, H, bias=False, dtype=np.float64, rng=0, reset_after=reset_after)
        net.weight_hh_l0 = np.concatenate([np.zeros((2 * H, H)), w_hn])
        chain = net.trace(np.zeros((3, 2))).chain()
        J = np.eye(H) / 2 + w_hn / 4
        assert_allclose(chain.matrix(3, 0), J @ J @ J, atol=1e-14)
        exact = math.log(np.linalg.norm(J @ J @ J, 2))
        assert_allclose(fb.log_norm(chain).estimate, exact, atol=1e-12)


@pytest.mark.parametrize("given", [list, lambda J: np.stack(J)[:, ::-1, ::-1]])
def test_a_chain_of_a_copy_reads_that_alone(given):
    """Else an upper bound could fall below the norm."""
    J = [np.diag([1.0, 2.0]), np.diag([3.0, 0.5])]
    matrices = given(J)
    chain = fb.MatrixChain(matrices)
    for step in matrices:
        step[:] = 0
    norm = fb.log_norm(chain)
    assert norm.textbook.steps >= norm.estimate > 0


def test_the_classical_rate_of_weights_that_are_not_finite():
    net = fb.RNN(2, 3, rng=0)
    x = np.zeros((4, 2), np.float32)
    for number in (np.nan, np.inf):
        net.weight_hh_l0 = np.full((3, 3), number, np.float32)
        chain = net.trace(x).chain()
        assert not np.isfinite(chain.classical_rate)
        assert not np.isfinite(fb.textbook_bounds(chain).classical)
