"""Who is measured: {task: {library: setup}}; setup(case, inputs) -> call -> arrays.

Each call does all of its task and returns when it is done.  Every library is imported by its own
set-up, so that a process holds one of them.  Results, in this order: forward: the output; train:
the gradients of `WEIGHTS` and of x; stream: the log-norm of P V (fastbptt) or of its first column.
"""

import itertools
import timeit
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import gated
import naive
import numpy as np
import onnx_net
from cases import (
    CALLS,
    CHECKED_STEPS,
    LOOP_STEPS,
    NAIVE_CHECKED,
    NAIVE_FLOPS,
    QUICK_STEPS,
    WEIGHTS,
    Case,
    Inputs,
)

Call = Callable[[], list[Any]]
Setup = Callable[[Case, Inputs], Call]


_RATE = 1e-8  # Adam's: by so much it changes a weight in a step
_CHOICE = 0.1  # seconds of calls of each unroll that jax may have

# f' from h, in the arrays of any library.
SLOPES: dict[str, Callable[[Any], Any]] = {"tanh": lambda h: 1 - h * h, "relu": lambda h: h > 0}


# ---- fastbptt


def _fastbptt_net(case: Case, data: Inputs) -> Any:
    import fastbptt as fb

    options = {"nonlinearity": case.nonlinearity} if case.cell == "rnn" else {}
    net = getattr(fb, case.cell.upper())(case.I, case.H, dtype=case.dtype, **options)
    net.load_state_dict(data.weights)
    return net


def fastbptt_forward(case: Case, data: Inputs) -> Call:
    net = _fastbptt_net(case, data)
    return lambda: [net(data.x)[0]]


def fastbptt_train(case: Case, data: Inputs, new: bool = True) -> Call:
    """With new weights in each call, as after an optimiser's step, or with those of the last."""
    net = _fastbptt_net(case, data)

    def call() -> list[Any]:
        if new:
            net.load_state_dict(data.weights)  # nothing is packed yet
        gradients = net.trace(data.x).backward(data.dy)
        return [*(gradients.params[name] for name in WEIGHTS), gradients.x]

    return call


def one_step(setup: Setup) -> Setup:
    """The task on the first step alone: what a call costs that has hardly anything to compute."""

    def first(case: Case, data: Inputs) -> Call:
        return setup(case.shortened(1), data._replace(x=data.x[:1], dy=data.dy[:1]))

    return first


def fastbptt_stream(case: Case, data: Inputs) -> Call:
    import fastbptt as fb

    net = _fastbptt_net(case, data)

    def call() -> list[Any]:
        stream = fb.JacobianStream(net, probes=case.k, rng=0)
        stream.update(data.x)
        return [stream.result().lower]

    return call


# ---- NumPy: a loop over time, the projection ahead of it and the weight gradients behind it

_NUMPY: dict[str, Callable[..., Any]] = {"tanh": np.tanh, "relu": partial(np.maximum, 0)}


def _numpy_states(case: Case, data: Inputs) -> np.ndarray:
    """h (T+1,B,H)."""
    w_ih, w_hh, b_ih, b_hh = data.weights.values()
    f = _NUMPY[case.nonlinearity]
    ax = gated.at_once(data.x, w_ih.T) + (b_ih + b_hh)
    h = np.zeros((case.T + 1, case.B, case.H), data.x.dtype)
    for t in range(case.T):
        np.matmul(h[t], w_hh.T, out=h[t + 1])
        h[t + 1] += ax[t]
        f(h[t + 1], out=h[t + 1])
    return h


def numpy_forward(case: Case, data: Inputs) -> Call:
    if case.cell != "rnn":
        return lambda: [gated.numpy_states(case, data)[0][1:]]
    return lambda: [_numpy_states(case, data)[1:]]


def numpy_train(case: Case, data: Inputs) -> Call:
    if case.cell != "rnn":
        return lambda: gated.numpy_gradients(case, data)
    w_ih, w_hh, _, _ = data.weights.values()

    def call() -> list[Any]:
        h = _numpy_states(case, data)
        slope = SLOPES[case.nonlinearity](h[1:])
        da, dh = np.empty_like(data.dy), data.dy[-1]
        for t in range(case.T - 1, -1, -1):
            np.multiply(dh, slope[t], out=da[t])
            if t:
                dh = da[t] @ w_hh + data.dy[t - 1]
        flat = da.reshape(-1, case.H)  # (T·B,H)
        dw_ih = flat.T @ data.x.reshape(-1, case.I)
        dw_hh = flat.T @ h[:-1].reshape(-1, case.H)
        db = flat.sum(axis=0)
        return [dw_ih, dw_hh, db, db, gated.at_once(da, w_ih)]

    return call


def numpy_stream(case: Case, data: Inputs, every: int) -> Call:
    w_ih, w_hh, b_ih, b_hh = data.weights.values()
    f, slope = _NUMPY[case.nonlinearity], SLOPES[case.nonlinearity]

    def call() -> list[Any]:
        ax = data.x[:, 0] @ w_ih.T + (b_ih + b_hh)
        h, V, total = np.zeros(case.H, ax.dtype), data.V, np.zeros(case.k)
        for t in range(case.T):
            h = f(w_hh @ h + ax[t])
            V = slope(h)[:, None] * (w_hh @ V)
            if (t + 1) % every == 0 or t + 1 == case.T:
                V, R = np.linalg.qr(V)
                total += np.log(np.abs(np.diag(R)))
        return [total[0]]

    return call


# ---- PyTorch


def _torch_net(case: Case, data: Inputs) -> tuple[Any, Any]:
    import torch

    dtype = getattr(torch, case.dtype)
    options = {"nonlinearity": case.nonlinearity} if case.cell == "rnn" else {}
    net = getattr(torch.nn, case.cell.upper())(case.I, case.H, dtype=dtype, **options)
    net.load_state_dict({name: torch.from_numpy(y) for name, y in data.weights.items()})
    return torch, net


def torch_forward(case: Case, data: Inputs) -> Call:
    torch, net = _torch_net(case, data)
    x = torch.from_numpy(data.x)

    def call() -> list[Any]:
        with torch.inference_mode():
            return [net(x)[0]]

    return call


def torch_train(case: Case, data: Inputs) -> Call:
    torch, net = _torch_net(case, data)
    x, dy = torch.from_numpy(data.x).requires_grad_(), torch.from_numpy(data.dy)
    wanted = [*(getattr(net, name) for name in WEIGHTS), x]
    return lambda: list(torch.autograd.grad(net(x)[0], wanted, dy))


def bridge_train(case: Case, data: Inputs) -> Call:
    """torch_train with the module's layer computed by fastbptt."""
    from fastbptt.bridges.torch import accelerate

    torch, net = _torch_net(case, data)
    accelerate(net)
    x, dy = torch.from_numpy(data.x).requires_grad_(), torch.from_numpy(data.dy)
    wanted = [*(getattr(net, name) for name in WEIGHTS), x]
    # other weights in each call, as after an optimiser's step: else none would be packed anew
    given = net.bias_hh_l0.detach().clone()
    biases = itertools.cycle([given, torch.nextafter(given, given + 1)])

    def call() -> list[Any]:
        with torch.no_grad():
            net.bias_hh_l0.copy_(next(biases))
        return [y.numpy() for y in torch.autograd.grad(net(x)[0], wanted, dy)]

    return _bridged(call)


def torch_step(case: Case, data: Inputs, swap: Callable[[Any], Any] = lambda net: net) -> Call:
    """A whole step of training: the layer, swapped if wanted, a dense one, a loss, Adam.

    The dense layer is the identity and the rate tiny, of one sign and the other in turn, so that
    each step has the gradients of `torch_train`, but for rounding, and weights other than the last
    one's: unchanged ones would not be packed again.
    """
    torch, net = _torch_net(case, data)
    swap(net)
    backward, update = _around(torch, net, case, data)
    x = torch.from_numpy(data.x).requires_grad_()
    wanted = [*(getattr(net, name) for name in WEIGHTS), x]

    def call() -> list[Any]:
        net.zero_grad()
        x.grad = None
        backward(net(x)[0])
        update()
        return [y.grad.numpy() for y in wanted]

    return call


def _around(torch: Any, net: Any, case: Case, data: Inputs) -> tuple[Any, Any]:
    """Of a step of training what is not the layer: (backward from its output, update)."""
    head = torch.nn.Linear(case.H, case.H, dtype=net.weight_hh_l0.dtype)
    torch.nn.init.eye_(head.weight)
    optimiser = torch.optim.Adam([*net.parameters(), *head.parameters()], lr=_RATE)
    rates, dy = itertools.cycle([_RATE, -_RATE]), torch.from_numpy(data.dy)

    def backward(output: Any) -> None:
        head.zero_grad()
        (head(output) * dy).sum().backward()

    def update() -> None:
        optimiser.param_groups[0]["lr"] = next(rates)
        optimiser.step()

    return backward, update


def _bridged(step: Call) -> Call:
    """On as many of torch's threads as fastbptt has: in this process torch was not told."""
    import torch

    import fastbptt as fb

    def call() -> list[Any]:
        torch.set_num_threads(fb.get_num_threads())
        return step()

    return call


def bridge_step(case: Case, data: Inputs) -> Call:
    """torch_step with the module's layer computed by fastbptt."""
    from fastbptt.bridges.torch import accelerate

    return _bridged(torch_step(case, data, accelerate))


def step_without_layer(case: Case, data: Inputs) -> Call:
    """torch_step with the output and the gradients of the layer given."""
    torch, net = _torch_net(case, data)
    backward, update = _around(torch, net, case, data)
    output = torch.zeros(case.T, case.B, case.H, dtype=net.weight_hh_l0.dtype).requires_grad_()
    given = [torch.zeros_like(weight) for weight in net.parameters()]

    def call() -> list[Any]:
        output.grad = None
        backward(output)
        for weight, gradient in zip(net.parameters(), given, strict=True):
            weight.grad = gradient.clone()  # the layer's are made anew in each step
        update()
        return [output.grad]

    return _bridged(call)


def torch_stream(case: Case, data: Inputs, every: int) -> Call:
    torch, net = _torch_net(case, data)
    f, slope = getattr(torch, case.nonlinearity), SLOPES[case.nonlinearity]
    x, V0 = torch.from_numpy(data.x), torch.from_numpy(data.V)
    w_ih, w_hh, b_ih, b_hh = (getattr(net, name).detach() for name in WEIGHTS)

    def call() -> list[Any]:
        with torch.inference_mode():
            ax = x[:, 0] @ w_ih.T + (b_ih + b_hh)
            h, V, total = torch.zeros(case.H, dtype=x.dtype), V0, torch.zeros(case.k, dtype=x.dtype)
            for t in range(case.T):
                h = f(w_hh @ h + ax[t])
                V = slope(h)[:, None] * (w_hh @ V)
                if (t + 1) % every == 0 or t + 1 == case.T:
                    V, R = torch.linalg.qr(V)
                    total += R.diagonal().abs().log()
        return [total[0]]

    return call


# ---- JAX, each function with `unroll`, the steps of one turn of the scan, as its first argument


def _jax(case: Case) -> tuple[Any, Any, Any]:
    import jax

    jax.config.update("jax_enable_x64", case.dtype == "float64")
    return jax, jax.numpy, {"tanh": jax.numpy.tanh, "relu": jax.nn.relu}[case.nonlinearity]


def _jax_call(case: Case, data: Inputs, function: Callable[..., Any], *rest: Any) -> Call:
    """function(unroll, weights, x, *rest), compiled; it gets the better unroll of 1 and 8.

    Steps that are not small have 1: of those with B = 32 and 64, 8 was as fast forward, up to
    twice as slow in train, and took three times as long to compile.
    """
    jax, jnp, _ = _jax(case)
    given = [[jnp.asarray(y) for y in data.weights.values()], *map(jnp.asarray, (data.x, *rest))]

    def call(compiled: Any) -> Any:
        return jax.block_until_ready(compiled(*given))

    def seconds(call: Call) -> float:
        call()  # compiles
        # of three calls the best was often that of the slower unroll, where they take a millisecond
        calls = max(3, int(_CHOICE / timeit.timeit(call, number=1)))
        return min(timeit.repeat(call, number=1, repeat=calls))

    calls = [partial(call, jax.jit(partial(function, unroll))) for unroll in (1, 8)]
    choice = case.small_steps and (case.T > QUICK_STEPS or case.T in CALLS)
    return min(calls, key=seconds) if choice else calls[0]


def _jax_states(case: Case) -> Callable[..., Any]:
    """(unroll, weights, x) -> h[1:], the input projection hoisted out of the scan."""
    jax, jnp, f = _jax(case)
    if case.cell != "rnn":
        return partial(gated.jax_states, case, jax)

    def states(unroll: int, weights: list[Any], x: Any) -> Any:
        w_ih, w_hh, b_ih, b_hh = weights
        ax = x @ w_ih.T + (b_ih + b_hh)

        def step(h: Any, a: Any) -> Any:
            h = f(a + h @ w_hh.T)
            return h, h

        return jax.lax.scan(step, jnp.zeros_like(ax[0]), ax, unroll=unroll)[1]

    return states


def jax_forward(case: Case, data: Inputs) -> Call:
    states = _jax_states(case)
    return _jax_call(case, data, lambda *given: [states(*given)])


def jax_train(case: Case, data: Inputs) -> Call:
    """jit of vjp, as a user would write it."""
    jax, states = _jax(case)[0], _jax_states(case)

    def train(unroll: int, weights: list[Any], x: Any, dy: Any) -> list[Any]:
        weights, x = jax.vjp(partial(states, unroll), weights, x)[1](dy)
        return [*weights, x]

    return _jax_call(case, data, train, data.dy)


def jax_train_expert(case: Case, data: Inputs) -> Call:
    """The backward scan makes da only; the weight gradients are one product each, behind it."""
    (jax, jnp, _), states = _jax(case), _jax_states(case)
    if case.cell != "rnn":
        return _jax_call(case, data, partial(gated.jax_expert, case, jax), data.dy)

    def train(unroll: int, weights: list[Any], x: Any, dy: Any) -> list[Any]:
        w_ih, w_hh, _, _ = weights
        h = states(unroll, weights, x)

        def step(dh: Any, now: Any) -> Any:
            da = (dh + now[0]) * now[1]
            return da @ w_hh, da

        now = dy, SLOPES[case.nonlinearity](h)
        _, da = jax.lax.scan(step, jnp.zeros_like(h[0]), now, reverse=True, unroll=unroll)
        before = jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])
        flat = da.reshape(-1, case.H)  # (T·B,H)
        dw_ih, dw_hh = flat.T @ x.reshape(-1, case.I), flat.T @ before.reshape(flat.shape)
        db = flat.sum(axis=0)
        return [dw_ih, dw_hh, db, db, gated.at_once(da, w_ih)]

    return _jax_call(case, data, train, data.dy)


def jax_stream(case: Case, data: Inputs, every: int) -> Call:
    jax, jnp, f = _jax(case)
    every = min(every, case.T)

    def stream(unroll: int, weights: list[Any], x: Any, V: Any) -> list[Any]:
        w_ih, w_hh, b_ih, b_hh = weights
        ax = x[:, 0] @ w_ih.T + (b_ih + b_hh)

        def step(now: Any, a: Any) -> Any:
            h = f(w_hh @ now[0] + a)
            return (h, SLOPES[case.nonlinearity](h)[:, None] * (w_hh @ now[1])), None

        def settle(now: Any, ax: Any) -> Any:
            (h, V), _ = jax.lax.scan(step, now[:2], ax, unroll=min(unroll, every))
            V, R = jnp.linalg.qr(V)
            return (h, V, now[2] + jnp.log(jnp.abs(jnp.diagonal(R)))), None

        start = (jnp.zeros_like(ax[0]), V, jnp.zeros_like(V[0]))
        return [jax.lax.scan(settle, start, ax.reshape(-1, every, case.H))[0][2][0]]

    return _jax_call(case, data, stream, data.V)


# ---- packages for Lyapunov exponents, given the tangents to begin with


def lyapax_stream(case: Case, data: Inputs, every: int) -> Call:
    """The time is a coordinate of the state, as lyapax knows no input; no tangent has any of it."""
    import lyapax

    _, jnp, f = _jax(case)

    def stream(_: int, weights: list[Any], x: Any, V: Any) -> list[Any]:
        w_ih, w_hh, b_ih, b_hh = weights
        ax = x[:, 0] @ w_ih.T + (b_ih + b_hh)

        def step(state: Any) -> Any:
            h, t = state[:-1], state[-1].astype(int)
            return jnp.concatenate([f(w_hh @ h + ax[t]), state[-1:] + 1])

        state, k = jnp.zeros(case.H + 1, x.dtype), case.k
        Y = jnp.concatenate([V, jnp.zeros((1, k), x.dtype)])
        begin = lyapax.LyapunovCheckpoint(state, Y, jnp.zeros(k, x.dtype), 0.0, 1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it would rather have float64
            result = lyapax.lyapunov_spectrum(step, state, 1.0, case.T, k, every, resume=begin)
        return [result.checkpoint.cum_log_growth[0]]

    return _jax_call(case, data, stream, data.V)


def lyapynov_stream(case: Case, data: Inputs) -> Call:
    """In float64 whatever the case: lyapynov's tangents are, and begin as columns of the identity.

    A step that does nothing but turn those into V comes first.
    """
    import lyapynov

    w_ih, w_hh, b_ih, b_hh = (y.astype(float) for y in data.weights.values())
    f, slope = _NUMPY[case.nonlinearity], SLOPES[case.nonlinearity]
    V, _ = np.linalg.qr(np.column_stack([data.V, np.eye(case.H)]).astype(float))

    def call() -> list[Any]:
        ax = data.x[:, 0] @ w_ih.T + (b_ih + b_hh)

        def step(h: np.ndarray, t: int) -> np.ndarray:
            return f(w_hh @ h + ax[t - 1]) if t else h

        def jacobian(h: np.ndarray, t: int) -> np.ndarray:
            return slope(step(h, t))[:, None] * w_hh if t else V

        system = lyapynov.DiscreteDS(np.zeros(case.H), 0, step, jacobian)
        steps = case.T + 1
        return [lyapynov.LCE(system, case.k, 0, steps, False)[0] * steps]

    return call


PEERS: dict[str, dict[str, Setup]] = {
    "forward": {
        "fastbptt": fastbptt_forward,
        "torch": torch_forward,
        "jax": jax_forward,
        "onnxruntime": onnx_net.forward,
        "numba": naive.forward,
        "numpy": numpy_forward,
    },
    "train": {
        "fastbptt": fastbptt_train,
        "torch": torch_train,
        "jax": jax_train,
        "jax expert": jax_train_expert,
        "numba": naive.train,
        "numpy": numpy_train,
    },
    "bridge": {"fastbptt": bridge_train, "torch": torch_train},
    "step": {"fastbptt": bridge_step, "torch": torch_step},
    "stream": {
        "fastbptt": fastbptt_stream,
        "torch": partial(torch_stream, every=8),
        "jax": partial(jax_stream, every=8),
        "jax QR each step": partial(jax_stream, every=1),
        # we do it after 14 to 64 steps, as the growth of the tangents allows
        "jax QR each 40": partial(jax_stream, every=40),
        "numpy": partial(numpy_stream, every=8),
        "lyapax": partial(lyapax_stream, every=8),
        "lyapynov": lyapynov_stream,
    },
}


def libraries(case: Case) -> dict[str, Setup]:
    """Who is measured on a case."""
    left_out = set()
    # its recurrent operators know no other type, and its nets are made by another package
    if case.dtype != "float32" or not find_spec("onnx"):
        left_out.add("onnxruntime")
    return {
        name: setup
        for name, setup in PEERS[case.task].items()
        # some packages have no wheel for some Python: lyapax none for 3.10
        if name not in left_out and find_spec(name.split()[0])
    }


def numbers_of_threads(case: Case, library: str, numbers: list[int]) -> list[int]:
    """Those a library is measured with: a naive loop has one thread, whatever it is given.

    A long call over many sequences has both of two: none was ever faster with one.
    """
    if library == "numba":
        return [1]
    return numbers[-1:] if case.long and case.B > 1 and len(numbers) == 2 else numbers


def checked(case: Case, library: str) -> Case:
    """What a library's numbers are checked on."""
    steps = CHECKED_STEPS.get(case.task, case.T)
    return case.shortened(min(steps, NAIVE_CHECKED) if library == "numba" else steps)


def timed(case: Case, library: str) -> Case:
    """The case, with fewer steps for who would take long and takes the same time at every step."""
    if library == "numba":
        return case.shortened(max(1, NAIVE_FLOPS // case.flops))
    slow = case.task == "stream" and library in ("torch", "numpy", "lyapynov")
    return case.shortened(LOOP_STEPS) if slow else case
