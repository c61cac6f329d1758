"""Norms of windows and of whole products against what NumPy needs for them."""

import time
from functools import partial

import numpy as np
import pytest
import threadpoolctl
from cases import PEER_THREADS, THREADS
from timing import pinned

import fastbptt as fb

TOL = 1e-2  # nats, to which both solve every window


def chain_of(T, H):
    """The chain of a plain net of gain 1.2, its W_hh and its slopes (T,H)."""
    rng = np.random.default_rng(0)
    net = fb.RNN(16, H, rng=0)
    net.weight_hh_l0 = (1.2 * rng.normal(size=(H, H)) / np.sqrt(H)).astype(np.float32)
    x = 0.5 * rng.standard_normal((T, 16), np.float32)
    trace = net.trace(x)
    return net, x, trace.chain(), (1 - trace.output) * (1 + trace.output)


def explicit_windows(w, slopes, lag):
    """log ||P(t,t-lag)|| of all windows by a queue of two stacks of explicit products.

    The norm of F B by power iteration on the two factors, from the last window's vector, until the
    estimate moves by less than TOL.
    """
    T, H = slopes.shape
    back, front = [], np.eye(H, dtype=w.dtype)
    v, norms, begun = np.ones(H, w.dtype), [], 0
    for t in range(T):
        front = (slopes[t][:, None] * w) @ front
        if t + 1 - begun > lag:
            if not back:
                product = np.eye(H, dtype=w.dtype)
                for r in range(t, begun - 1, -1):
                    product = product @ (slopes[r][:, None] * w)
                    back.append(product)
                front = np.eye(H, dtype=w.dtype)
            back.pop()
            begun += 1
        if t + 1 - begun == lag:
            last = back[-1] if back else np.eye(H, dtype=w.dtype)
            estimate = -np.inf
            while True:
                u = front @ (last @ v)
                v = last.T @ (front.T @ u)
                before, estimate = estimate, np.log(np.linalg.norm(v)) / 2
                v /= np.linalg.norm(v)
                if abs(estimate - before) < TOL:
                    break
            norms.append(estimate)
    return np.array(norms)


def seconds_of(call):
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def in_turn(rounds, calls):
    """Seconds of each, by turns, after a call of each that does not count; the last results."""
    for call in calls.values():
        call()
    times, results = {name: [] for name in calls}, {}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds, results[name] = seconds_of(call)
            times[name].append(seconds)
    return times, results


def with_threads(n, call):
    """The call, in which NumPy's products have so many threads."""

    def limited():
        with threadpoolctl.threadpool_limits(n, user_api="blas"):
            return call()

    return limited


# The lag in steps, T of ours, and the bar: by two passes, and each window by itself.
WINDOWS = [(100, 100_000, 8), (10, 5_000, None)]


@pytest.mark.parametrize(("lag", "T", "bar"), WINDOWS)
@pytest.mark.parametrize("threads", THREADS)
def test_windows(threads, lag, T, bar, benchmark, rounds, request):
    quick = request.config.getoption("--quick")
    T, H, some = (2_000, 32, 500) if quick else (T, 128, 2_000)
    with pinned(threads):
        net, _, chain, slopes = chain_of(T, H)
        w = net.weight_hh_l0
        calls = {"fastbptt": lambda: fb.growth_window(chain, lag)}
        for n in [n for n in PEER_THREADS if n <= threads]:
            explicit = partial(explicit_windows, w, slopes[:some], lag)
            calls[f"numpy ({n})"] = with_threads(n, explicit)
        times, results = in_turn(rounds, calls)
        curve, exact = results["fastbptt"], results["numpy (1)"]
        benchmark.pedantic(lambda: fb.growth_window(chain, lag), rounds=1)
    # power iteration stops early where the two largest values are close, and so lies below
    error = np.median(np.abs(curve.estimate[: len(exact)] - exact))
    assert error < 3 * TOL
    for t in range(0, len(exact), len(exact) // 3):
        assert abs(curve.estimate[t] - explicit_log_norm(w, slopes[t : t + lag])) < 3 * TOL
    steps = {name: T if name == "fastbptt" else some for name in times}
    seconds = {name: [s / steps[name] for s in each] for name, each in times.items()}
    benchmark.extra_info.update(
        task=f"windows {threads} {lag}",
        T=T,
        size=H,
        lag=lag,
        bar=bar,
        threads=threads,
        seconds=seconds,
        note=curve.note,
        error=float(error),
    )


def explicit_log_norm(w, slopes):
    """log ||P|| by the product itself, in float64 as it would overflow else, and its SVD."""
    product, nats = np.eye(len(w)), 0.0
    for slope in slopes.astype(float):
        product = (slope[:, None] * w) @ product
        largest = np.abs(product).max()
        product /= largest
        nats += np.log(largest)
    return nats + np.log(np.linalg.norm(product, 2))


def test_log_norm(benchmark, rounds, request):
    quick = request.config.getoption("--quick")
    T, H, some = (2_000, 32, 100) if quick else (100_000, 256, 500)
    with pinned(1):
        net, x, chain, slopes = chain_of(T, H)
        w = net.weight_hh_l0.astype(float)
        u = np.ones((1, H), np.float32)

        def passes():
            """One forward pass, and one vector pulled back, 16 steps at a time: it stays finite."""
            net(x)
            for t in range(T, 0, -16):
                chain.pull(t, max(0, t - 16), u)

        calls = {"fastbptt": lambda: fb.log_norm(chain), "passes": passes}
        times, results = in_turn(rounds, calls)
        norm = results["fastbptt"]
        benchmark.pedantic(lambda: fb.log_norm(chain), rounds=1)
        explicit = [seconds_of(lambda: explicit_log_norm(w, slopes[:some])) for _ in range(rounds)]
        error = abs(fb.log_norm(chain, some, 0, tol=1e-3).estimate - explicit[0][1])
    assert norm.converged
    assert error < 2e-3
    seconds = {name: [s / T for s in each] for name, each in times.items()}
    seconds["numpy"] = [s / some for s, _ in explicit]
    benchmark.extra_info.update(
        task="log_norm",
        T=T,
        size=H,
        seconds=seconds,
        half_sweeps=norm.half_sweeps,
        width=float(norm.upper - norm.lower),
        error=float(error),
    )


@pytest.mark.parametrize("method", ["explicit", "lanczos"])
def test_methods_agree(method):
    """The figures above mean nothing if the two passes were wrong."""
    _, _, chain, _ = chain_of(400, 24)
    curve = fb.growth_window(chain, 50, method="frames")
    exact = [
        fb.log_norm(chain, t, t - 50, method=method, tol=1e-6).estimate for t in (50, 200, 400)
    ]
    assert np.abs(curve.estimate[[0, 150, 350]] - exact).max() < 0.05
