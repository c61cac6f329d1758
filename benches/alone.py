"""What is measured in a process of its own, for its time or its peak memory is no one else's.

python benches/alone.py NAME OPTIONS       OPTIONS and the answer are JSON
"""

import json
import pathlib
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from cases import QUICK_STEPS, WEIGHTS, Case, Inputs, inputs
from peers import PEERS, numpy_forward, numpy_train
from timing import relative_error

import fastbptt as fb

SEGMENT = 8192  # steps of a chunk, and from one checkpoint to the next
SEGMENTS = SEGMENT, 250_000  # from one checkpoint to the next, where memory is compared with time
WINDOW = 1000  # steps that truncated BPTT goes back over
_SHORT = 1000  # steps of a call that is not long
_STATUS, _CLEAR = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")


def peak() -> int:
    """Bytes of memory this process has had at most, on Linux since `forget_peak`.

    Linux hands its ru_maxrss down to the programs a process starts: it is that of pytest.
    """
    if _STATUS.exists():
        most = re.search(r"VmHWM:\s+(\d+)", _STATUS.read_text())
        if not most:
            raise RuntimeError(f"expected VmHWM in {_STATUS}: this system does not tell the peak")
        return 1024 * int(most[1])
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used  # bytes on macOS, else KiB


def forget_peak() -> None:
    if _CLEAR.exists():  # Linux
        _CLEAR.write_text("5")


def grown(call: Callable[[], Any]) -> tuple[int, float, Any]:
    """Bytes by which a call raises the peak, its seconds, what it returns."""
    forget_peak()
    before, start = peak(), time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    return peak() - before, seconds, result


def _error(net: Any, x: np.ndarray, last: np.ndarray, gradients: Any) -> float:
    """Against float64, of what some thousand steps decide, as the net contracts.

    The last state and the gradient of the first; where T is small those of the weights too.
    """
    weights = {name: np.asarray(y, float) for name, y in net.state_dict().items()}
    case = Case("train", 0, 1, x.shape[2], net.hidden_size, dtype="float64")

    def outputs(x: np.ndarray) -> tuple[np.ndarray, Inputs]:
        data = Inputs(weights, np.asarray(x, float), np.zeros(0), np.zeros(0))
        return numpy_forward(case._replace(T=len(x)), data)()[0], data

    pairs = [(last, outputs(x[-4 * _SHORT :])[0][-1])]
    if gradients:
        few = len(x) <= 20 * _SHORT
        y, data = outputs(x if few else x[: 4 * _SHORT])
        dh = np.zeros_like(y[0])
        for h in y[::-1]:
            dh = ((dh + h) * (1 - h * h)) @ weights["weight_hh_l0"]
        pairs.append((gradients.state[0], dh))
        if few:
            wanted = numpy_train(case._replace(T=len(x)), data._replace(dy=y))()
            pairs += zip((gradients.params[name] for name in WEIGHTS), wanted[:-1], strict=True)
    # NumPy's max and not Python's, which may lose a NaN
    return float(np.max([np.abs(y - z).max() / np.abs(z).max() for y, z in pairs]))


def sequence(task: str, T: int, H: int) -> dict[str, Any]:
    """Forward in chunks that carry the state, or BPTT over checkpoints; beside T = 1000."""
    noise = np.random.default_rng(0).standard_normal(T + 31, np.float32)
    # (T,1,32), a window that slides over one signal: it takes 4 bytes a step
    x = np.lib.stride_tricks.sliding_window_view(noise, 32)[:, None]
    net = fb.RNN(32, H, rng=0)

    def forward() -> Any:
        state = None
        for t in range(0, T, SEGMENT):
            _, state = net(x[t : t + SEGMENT], state)
        return state, None

    def train() -> Any:
        """Of half the sum of squares of the output."""
        trace = net.trace(x, checkpoint=SEGMENT)
        return trace.state, trace.backward(lambda t0, output: output, input_gradient=False)

    def short() -> list[float]:
        seconds = []
        for _ in range(100):
            start = time.perf_counter()
            if task == "forward":
                net(x[:_SHORT])
            else:
                trace = net.trace(x[:_SHORT])
                trace.backward(trace.output, input_gradient=False)
            seconds.append((time.perf_counter() - start) / _SHORT)
        return seconds

    short()  # compiled, or read from the cache
    net.trace(x[:_SHORT], checkpoint=_SHORT // 2).backward(lambda t0, output: output)
    before = short()
    growth, seconds, (last, gradients) = grown(forward if task == "forward" else train)
    return {
        "seconds": {"long": seconds / T, "short": statistics.median(before + short())},
        "growth_bytes": growth,
        "error": _error(net, x, last[0], gradients),
    }


def checkpoints(T: int, segment: int) -> dict[str, Any]:
    """The memory that a train call over checkpoints takes above x and d_output."""
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((T, 1, n), np.float32) for n in (32, 64))
    net = fb.RNN(32, 64, rng=0)
    net.trace(x[:100], checkpoint=50).backward(dy[:100])

    def train() -> None:
        net.trace(x, checkpoint=segment).backward(dy, input_gradient=False)

    return {"growth_bytes": grown(train)[0]}


def truncated(net: Any, x: np.ndarray, dy: np.ndarray) -> dict[str, np.ndarray]:
    """Gradients of the weights, of windows whose first states count as given."""
    total, state = {name: np.zeros_like(y) for name, y in net.state_dict().items()}, None
    for t in range(0, len(x), WINDOW):
        trace = net.trace(x[t : t + WINDOW], state)
        grads = trace.backward(dy[t : t + WINDOW], input_gradient=False)
        for name, y in grads.params.items():
            total[name] += y
        state = trace.state
    return total


def truncation(T: int) -> dict[str, Any]:
    """The memory that truncated BPTT takes above x and d_output."""
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((T, 1, n), np.float32) for n in (32, 64))
    net = fb.RNN(32, 64, rng=0)
    truncated(net, x[:100], dy[:100])
    return {"growth_bytes": grown(lambda: truncated(net, x, dy))[0]}


def stream(chunks: int) -> dict[str, Any]:
    """A stream of so many times 10^5 steps; its memory above that of the first 10^5."""
    chunk = np.random.default_rng(0).standard_normal((100_000, 32), np.float32)
    stream = fb.JacobianStream(fb.RNN(32, 64, rng=0), probes=8, rng=0)
    stream.update(chunk)
    stream.result()

    def rest() -> Any:
        for _ in range(chunks - 1):
            stream.update(chunk)
        return stream.result()

    growth, seconds, result = grown(rest)
    return {
        "steps": result.steps,
        "seconds": seconds,
        "growth_bytes": growth,
        "lower": float(result.lower),
        "upper": float(result.upper),
    }


def memory(library: str, case: list[Any]) -> dict[str, Any]:
    """What a library's set-up and first call take above the inputs and its own code.

    Of a few steps it has made one before, whose numbers are checked.
    """
    whole = Case(*case)
    few = whole.shortened(QUICK_STEPS)
    setup = PEERS[whole.task][library]
    results = [np.array(y) for y in setup(few, inputs(few))()]
    data = inputs(whole)
    growth = grown(lambda: setup(whole, data)())[0]
    relative_error(few, library, results)  # afterwards: what it frees might be used again
    return {"growth_bytes": growth}


MEASURED = {f.__name__: f for f in (sequence, checkpoints, truncation, stream, memory)}


def alone(name: str, **options: Any) -> dict[str, Any]:
    """The answer of one of MEASURED in a fresh process."""
    command = [sys.executable, __file__, name, json.dumps(options)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


if __name__ == "__main__":
    print(json.dumps(MEASURED[sys.argv[1]](**json.loads(sys.argv[2]))))
