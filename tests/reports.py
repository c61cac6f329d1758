"""A small report of the benches, whose figures are worked out by hand, and parts of it.

One thread's limits: 100 GFLOP/s, 100 GB/s from L1, 2 sigmoids or tanhs a nanosecond.
"""

import pathlib

BENCHES = pathlib.Path(__file__).parent.parent / "benches"
MICRO = 1e-6


def given(reading, gflops=100, gcurves=2):
    """What the machine gave beside a case, in three rounds."""
    limits = {"gflops": gflops, "gcurves": gcurves, "reading": reading}
    return {name: [0.5 * value, value, 1.2 * value] for name, value in limits.items()}


def case(task, shape, cell, seconds, **more):
    """What `timing.compare` notes of a case: `seconds` in microseconds a step, three rounds."""
    _, B, I, H = shape
    if task == "forward":  # the bar asks for it
        slow = [100 * s for s in seconds["fastbptt"]]
        seconds = {"onnxruntime (1)": slow} | seconds
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[cell]
    return {
        "task": task,
        **dict(zip("TBIH", shape, strict=True)),
        "k": 0,
        "nonlinearity": "tanh",
        "dtype": "float32",
        "cell": cell,
        "kind": "tanh" if cell == "rnn" else cell,
        "threads": 1,
        "errors": {"fastbptt": 4e-7},
        "seconds": {name: [s * MICRO for s in values] for name, values in seconds.items()},
        "flops": {"forward": 2, "sizes": 2, "train": 6}[task] * B * gates * H * (I + H),
        "limits": given(4 * gates * H**2 / 1e11),
        "source": "L1",
        "sharers": 1,
        **more,
    }


LIMITS = {
    "task": "limits 1",
    "threads": 1,
    "gbytes": {"L1": 100, "L2": 50, "L3": 25, "memory": 10},
    "gflops": {"float32": 100, "float64": 50},
    "gcurves": {"float32": 2, "float64": 1},
    "sgemm": 90,
}
BATCH, ONE = (1000, 32, 64, 64), (1000, 1, 32, 64)
WON = case(
    "forward",
    BATCH,
    "rnn",
    {
        "fastbptt": [7, 8, 10],
        "torch (1)": [40, 40, 40],
        "torch (2)": [21, 16, 20],
        "jax (1)": [24, 24, 24],
        "call": [0.1, 0.1, 0.1],
    },
)
SLOW = case(
    "forward",
    ONE,
    "rnn",
    {
        "fastbptt": [0.4, 0.4, 0.4],
        "torch (1)": [4, 4, 4],
        "jax (1)": [0.5, 0.48, 0.6],
        "call": [0.04, 0.04, 0.04],
    },
)
LOST = case(
    "train",
    ONE,
    "lstm",
    {"fastbptt": [5, 5, 5], "torch (1)": [4, 4, 4], "jax (1)": [9, 9, 9], "call": [1, 1, 1]},
    # 28 of 64 KB of W_hh from L1, the rest with 50 GB/s
    limits=given(1.024 * MICRO),
    source="L2",
)
START = {"task": "import", "seconds": {"fastbptt": [0.3, 0.24, 0.26], "numba": [0.2, 0.2, 0.2]}}


def report(*infos, quick=False, commit="0123456789", dirty=False, cores=2, brand="Abacus", left=()):
    """As pytest-benchmark writes it."""
    machine = {"cpu": {"brand_raw": brand}, "cores": cores, "system": "Linux", "quick": quick}
    machine |= {"processor": "", "python_version": "3", "versions": {"numba": "1.2"}}
    machine |= {"arguments": ["benches", "-k", "not slow"]}
    entries = [{"name": f"test_{n}", "extra_info": info} for n, info in enumerate(infos)]
    origin = {"id": commit, "dirty": dirty}
    whole = {"machine_info": machine, "commit_info": origin, "benchmarks": entries}
    return whole | {"left": list(left)}


def rows(text, first):
    """The rows of the table whose first column is called so, as dicts."""
    lines = text[text.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    head, _, *body = (line[2:-2].split(" | ") for line in lines)
    return [dict(zip(head, line, strict=True)) for line in body]


def without(info, *libraries):
    """A row for which a library was not installed."""
    kept = {name: s for name, s in info["seconds"].items() if name.split(" (")[0] not in libraries}
    return info | {"seconds": kept}


class Benchmark:
    """What a comparison needs of pytest-benchmark."""

    enabled = False

    def __init__(self):
        self.extra_info = {}

    @staticmethod
    def pedantic(call, rounds):
        return call()
