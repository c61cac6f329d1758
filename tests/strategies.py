"""The hypothesis generators that all tests share."""

import os
import tempfile
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from reference import GATES

# Around the widths of registers and tiles, where a kernel's tails are, and 1.
SIZES = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40, 63, 64, 65]
LAYOUTS = ["C", "Fortran", "strided", "reversed", "offset", "read-only", "memory-mapped"]


class Case(NamedTuple):
    """A net and what goes through it, in float64."""

    params: dict[str, Any]
    x: Any  # (T,B,I)
    h0: Any  # (B,H)
    d_output: Any  # (T,B,H)
    d_state: Any  # (B,H)
    nonlinearity: str


def sizes(most=65):
    return st.one_of(st.sampled_from([n for n in SIZES if n <= most]), st.integers(1, most))


def counts(most, least):
    """1 .. most; if `least` is 0, that too, once in twenty draws or so: no work is no test."""
    return st.sampled_from([*range(1, most + 1)] * (20 // most) + [0] * (least == 0))


def dtypes():
    return st.sampled_from([np.float32, np.float64])


def nonlinearities():
    return st.sampled_from(["tanh", "relu", "sigmoid"])


def layouts():
    return st.sampled_from(LAYOUTS)


@st.composite
def cases(draw, least=0):
    """Sizes from 1 (T and B from `least`), with and without bias, tiny to saturating inputs.

    W_hh has spectral norm at most 1 and so does not amplify rounding; what saturates is driven by
    the input.
    """
    T, B = draw(counts(13, least)), draw(counts(11, least))
    I, H = draw(sizes()), draw(sizes())
    scale = draw(st.sampled_from([1e-3, 1.0, 1.0, 30.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    w_hh = rng.normal(size=(H, H))
    params = {
        "weight_ih_l0": rng.normal(size=(H, I)) * scale / np.sqrt(I),
        "weight_hh_l0": w_hh / np.linalg.norm(w_hh, 2),
    }
    if draw(st.booleans()):
        params |= {name: rng.normal(size=H) for name in ("bias_ih_l0", "bias_hh_l0")}
    shapes = (T, B, I), (B, H), (T, B, H), (B, H)
    return Case(params, *(rng.normal(size=shape) for shape in shapes), draw(nonlinearities()))


def lay_out(y, layout):
    """An array equal to y that lies in memory as `layout` says."""
    if layout == "Fortran":
        return np.asfortranarray(y)
    if layout == "strided":
        wide = np.full(tuple(2 * n for n in y.shape), np.nan, y.dtype)
        view = wide[tuple(slice(None, None, 2) for _ in y.shape)]
        view[...] = y
        return view
    if layout == "reversed":
        backwards = tuple(slice(None, None, -1) for _ in y.shape)
        return np.ascontiguousarray(y[backwards])[backwards]
    if layout == "offset":
        raw = np.zeros(y.nbytes + 4, np.uint8)  # where a register would lie across two cache lines
        view = raw[4:].view(y.dtype) if y.dtype.itemsize == 4 else raw[:-4].view(y.dtype)
        view = view.reshape(y.shape)
        view[...] = y
        return view
    if layout == "read-only":
        copy = y.copy()
        copy.flags.writeable = False
        return copy
    if layout == "memory-mapped" and y.size:
        handle, path = tempfile.mkstemp()
        with os.fdopen(handle, "wb") as file:
            np.save(file, y)
        mapped = np.load(path, mmap_mode="r")
        os.unlink(path)
        return mapped
    return y.copy()


class NetCase(NamedTuple):
    """A net of any cell, depth and direction, and what goes through it, in float64."""

    kind: str
    options: dict[str, Any]
    num_layers: int
    bidirectional: bool
    params: dict[str, Any]
    x: Any  # (T,B,I)
    state: tuple[Any, ...]  # (L·D,B,H) each
    d_output: Any  # (T,B,D·H)
    d_state: tuple[Any, ...]
    lengths: Any  # (B,) or None
    reset: Any  # (T,B) or None

    def __repr__(self):
        """Short: the arrays follow from hypothesis' own seed."""
        net = f"{self.kind} {self.options}, {self.num_layers} layers, T B I H {self.shape}"
        return f"{net}, bidirectional {self.bidirectional}, lengths {self.lengths}"

    @property
    def shape(self):
        """T, B, I and H."""
        return *self.x.shape, self.state[0].shape[2]


KINDS = [
    ("RNN", {"nonlinearity": "tanh"}),
    ("RNN", {"nonlinearity": "relu"}),
    ("RNN", {"nonlinearity": "sigmoid"}),
    ("GRU", {"reset_after": True}),
    ("GRU", {"reset_after": False}),
    ("LSTM", {}),
    ("MGU", {}),
]


@st.composite
def net_cases(
    draw,
    kinds=None,
    most=40,
    deep=True,
    both_ways=True,
    ragged=True,
    scales=(1e-3, 1.0, 1.0, 10.0),
    least=0,
):
    """Sizes from 1 (T, B and each length from `least`), layers, directions, lengths and resets.

    Each gate's part of W_hh has spectral norm at most 1, as in `cases`, and above the first layer
    `scale` is at most 1: weights of 10 multiply the rounding of the layer below, in float64 beyond
    `tolerance` once in some thousand cases of three layers.
    """
    kind, options = draw(st.sampled_from(kinds or KINDS))
    L = draw(st.sampled_from([1, 1, 2, 3])) if deep else 1
    bidirectional = deep and both_ways and draw(st.booleans())
    T, B = draw(counts(9, least)), draw(counts(6, least))
    I, H = draw(sizes(most)), draw(sizes(most))
    scale = draw(st.sampled_from(scales))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bias, D, G = draw(st.booleans()), 1 + bidirectional, GATES[kind]
    params = {}
    for layer in range(L):
        width, size = (D * H, min(scale, 1.0)) if layer else (I, scale)
        for suffix in (f"_l{layer}", f"_l{layer}_reverse")[:D]:
            gates = rng.normal(size=(G, H, H))
            norms = np.linalg.norm(gates, 2, axis=(1, 2), keepdims=True)
            params[f"weight_ih{suffix}"] = rng.normal(size=(G * H, width)) * size / np.sqrt(width)
            params[f"weight_hh{suffix}"] = (gates / norms).reshape(G * H, H)
            if bias:
                names = (f"bias_ih{suffix}", f"bias_hh{suffix}")
                params |= {name: rng.normal(size=G * H) for name in names}
    parts = 2 if kind == "LSTM" else 1
    state, d_state = (tuple(rng.normal(size=(L * D, B, H)) for _ in range(parts)) for _ in range(2))
    lengths = rng.integers(least, T + 1, B) if ragged and draw(st.booleans()) else None
    reset = rng.random((T, B)) < 0.3 if ragged and draw(st.booleans()) else None
    x, d_output = rng.normal(size=(T, B, I)), rng.normal(size=(T, B, D * H))
    return NetCase(
        kind, options, L, bidirectional, params, x, state, d_output, d_state, lengths, reset
    )
