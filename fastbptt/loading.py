"""Nets from weights that were trained elsewhere: state dicts and files."""

import collections
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import checks, files
from .network import FORMAT, Network
from .networks import NETWORKS

_NAME = re.compile(r"(weight|bias)_(ih|hh)_l(\d+)(_reverse)?")
_GATES = {1: "RNN", 2: "MGU", 3: "GRU", 4: "LSTM"}


def plain(y: Any, name: str) -> Any:
    """A torch tensor's memory as an array; anything else as it is."""
    try:
        for method in ("detach", "cpu", "resolve_neg", "numpy"):
            y = getattr(y, method)() if hasattr(y, method) else y
    except (TypeError, RuntimeError) as error:  # bfloat16, device meta, conjugate or sparse
        raise TypeError(
            f"{name}: expected a dense tensor of float32 or float64, got {y.dtype}: {error}"
        ) from None
    return y


def _hidden_sizes(
    shapes: list[tuple[int, ...]], square: list[tuple[int, ...]], kind: str | None
) -> tuple[str, int] | None:
    """Kind and H of parameters of such shapes, `square` those of W_hh; None if they do not say.

    A transposed matrix is taken as what it was meant to be, and one that does not fit left out, so
    that its fault is named with all others.
    """
    pairs = [sorted(shape) for shape in square if len(shape) == 2 and 0 not in shape]
    fits = [(_GATES.get(many // few), few) for few, many in pairs if many % few == 0]
    # an LSTM's weights as those of a GRU: H is what they say
    for found, H in sorted(fits, key=lambda fit: fit[0] != kind):
        if found:
            return kind or found, H
    gates = {name: gates for gates, name in _GATES.items()}.get(kind or "", 0)
    rows = collections.Counter(shape[0] for shape in shapes if shape and shape[0])
    most = rows.most_common(1)[0][0] if rows else 0  # of all but W_hh and W_ih if transposed
    if kind is None or not most or most % gates:
        return None
    return kind, most // gates


def from_state_dict(
    mapping: Mapping[str, Any], kind: str | None = None, *, prefix: str = "", **options: Any
) -> Network:
    """The net that a state dict under PyTorch's names describes.

    Parameters
    ----------
    mapping : mapping of str to array or torch tensor
        weight_ih_l0 (G·H,I), weight_hh_l0 (G·H,H), bias_ih_l0 and bias_hh_l0 (G·H,), and so on for
        every layer, with `_reverse` for the other direction.  Sizes, layers, directions, bias and
        dtype are read off.
    kind : {"RNN", "GRU", "LSTM", "MGU"}, optional
        By the number of gates, 1, 3, 4 or 2, if None.
    prefix : str
        Only keys that begin with it count, without it: of a larger model "encoder.rnn.".
    **options
        Of the net's class: `nonlinearity`, `reset_after`, `batch_first`.

    Returns
    -------
    RNN, GRU, LSTM or MGU

    Raises
    ------
    ValueError
        Naming every key that is missing, unexpected, misshapen or of another dtype than the rest.
    TypeError
        If only dtypes are wrong: others than float32 and float64, or mixed ones.
    NotImplementedError
        For projections (`weight_hr_l0`).

    Examples
    --------
    >>> import fastbptt as fb
    >>> fb.from_state_dict(fb.LSTM(3, 5, num_layers=2, rng=0).state_dict())
    LSTM(3, 5, num_layers=2, dtype=float32)
    """
    if not isinstance(mapping, Mapping):
        hint = "; give its state_dict()" if hasattr(mapping, "state_dict") else ""
        raise TypeError(f"mapping: expected a mapping, got {type(mapping).__name__}{hint}")
    if not isinstance(prefix, str):
        raise TypeError(f"prefix: expected a str, got {type(prefix).__name__}")
    inside = {str(name): y for name, y in mapping.items() if str(name).startswith(prefix)}
    arrays = {name[len(prefix) :]: plain(y, name) for name, y in inside.items()}
    if any(name.startswith("weight_hr") for name in arrays):
        raise NotImplementedError("weight_hr_l0: projections (proj_size > 0) are not implemented")
    names = [found for name in arrays if (found := _NAME.fullmatch(name))]
    shapes = {found[0]: np.shape(arrays[found[0]]) for found in names}
    if kind is not None:
        checks.choice(kind, "kind", NETWORKS)
    square = [shape for name, shape in shapes.items() if name.startswith("weight_hh")]
    if not (sizes := _hidden_sizes(list(shapes.values()), square, kind)):
        whole = [shape for shape in square if len(shape) == 2 and 0 not in shape]
        if whole:
            raise ValueError(
                "weight_hh_l0: expected 1, 2, 3 or 4 times as many rows as columns, got shape "
                f"{whole[0]}"
            )
        where = f" after the prefix {prefix!r}" if prefix else ""
        known = ", ".join(sorted(map(str, mapping))[:8]) or "no keys"
        raise ValueError(f"mapping: weight_hh_l0 is missing or no matrix{where}, got {known}")
    kind, H = sizes
    rows = H * {name: gates for gates, name in _GATES.items()}[kind]
    first = [shapes.get(f"weight_ih_l0{suffix}", ()) for suffix in ("", "_reverse")]
    # named below if there is none, or if it is transposed
    w_ih = next((shape for shape in first if len(shape) == 2 and 0 not in shape), (rows, 1))
    I = w_ih[0] if w_ih[1] == rows != w_ih[0] else w_ih[1]
    last = max(names, key=lambda found: int(found[3]))
    if int(last[3]) >= len(names):  # before memory is asked for that many layers
        raise ValueError(f"state_dict: {last[0]} is unexpected: layers below it are missing")
    given = [arrays[name] for name in sorted(shapes, reverse=True)]  # weights first
    dtypes = [y.dtype for y in given if getattr(y, "dtype", 0) in checks.DTYPES]
    net = NETWORKS[kind](
        I,
        H,
        1 + int(last[3]),
        bias=any(found[1] == "bias" for found in names),
        bidirectional=any(found[4] for found in names),
        dtype=dtypes[0] if dtypes else np.asarray(given[0]).dtype,  # which is refused
        rng=0,
        **options,
    )
    net.load_state_dict(arrays)
    return net


def load(path: Any, kind: str | None = None, *, prefix: str = "", **options: Any) -> Network:
    """The net in a file: one that `net.save` wrote, or arrays under PyTorch's names.

    Parameters
    ----------
    path : str or path-like
        An .npz, which is read without pickle, or .safetensors, which needs the package of that
        name.
    kind, prefix, **options
        As of `from_state_dict`, for files that `net.save` did not write; what such a file says
        itself must agree with them.

    Returns
    -------
    RNN, GRU, LSTM or MGU

    Raises
    ------
    ValueError
        Naming the file, if it is no such file, its arrays do not make up a net or it says
        otherwise than the arguments.
    TypeError
        For other dtypes than float32 and float64.
    FileNotFoundError
        If there is none.

    Examples
    --------
    >>> import fastbptt as fb, tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.npz"
    >>> fb.GRU(3, 5, bidirectional=True, rng=0).save(path)
    >>> fb.load(path)
    GRU(3, 5, bidirectional=True, dtype=float32)
    """
    what = "a saved net"
    arrays, about = files.read_arrays(path, what)
    if about is None:
        try:
            return from_state_dict(arrays, kind, prefix=prefix, **options)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise type(error)(f"{os.fspath(path)}: {error}") from None
    with files.reading(path, what):
        if about.pop("format", None) != FORMAT:
            raise ValueError(f"expected format {FORMAT}")
        saved = checks.choice(about.pop("kind"), "kind", NETWORKS)
        also = {name: about[name] for name in (*NETWORKS[saved].OPTIONS, "batch_first")}
        net = from_state_dict(arrays, saved, **also)  # the sizes from what is there, not from words
        if net.options() != about:
            raise ValueError(f"expected the arrays of {about}")
    for name, y in {"kind": kind or saved, "prefix": prefix, **options}.items():
        said = {"kind": saved, "prefix": "", **about}.get(name)
        if y != said:
            raise ValueError(f"{name}: {os.fspath(path)} was saved with {said!r}, got {y!r}")
    return net
