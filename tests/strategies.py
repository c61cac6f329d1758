"""The hypothesis generators that all tests share."""

import os
import tempfile
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

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


def dtypes():
    return st.sampled_from([np.float32, np.float64])


def nonlinearities():
    return st.sampled_from(["tanh", "relu", "sigmoid"])


def layouts():
    return st.sampled_from(LAYOUTS)


@st.composite
def cases(draw):
    """Sizes from 1 (T and B from 0), with and without bias, tiny, moderate and saturating inputs.

    W_hh has spectral norm at most 1 and so does not amplify rounding; what saturates is driven by
    the input.
    """
    T, B = draw(st.integers(0, 13)), draw(st.one_of(st.integers(1, 11), st.just(0)))
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
