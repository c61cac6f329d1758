"""Nets from weights that were trained elsewhere: state dicts and files."""

import collections
import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from . import checks, files
from .network import FORMAT, Network
from .networks import NETWORKS

_NAME = re.compile(r"(weight|bias)_(ih|hh)_l(\d+)(_reverse)?")


def sizes_said(rows: Iterable[int], columns: Iterable[int], gates: int) -> collections.Counter[int]:
    """What arrays of so many rows, and W_hh of so many columns, say that H is, and how often."""
    said = collections.Counter(columns)
    said.update(n // gates for n in rows if n and n % gates == 0)
    return said


def usual_dtype(arrays: Iterable[Any]) -> np.dtype:
    """The one of float32 and float64 that most of the arrays have."""
    dtypes = collections.Counter(y.dtype for y in arrays if getattr(y, "dtype", 0) in checks.DTYPES)
    return dtypes.most_common(1)[0][0] if dtypes else checks.DTYPES[0]


def _kind_and_size(
    shapes: Mapping[str, tuple[int, ...]], kind: str | None
) -> tuple[str, int, bool] | None:
    """Kind and H that most parameters agree on, and whether a W_hh does; None if none says any.

    A W_hh counts as turned to more rows than columns: a transposed one is named for that.
    """
    square = [y for name, y in shapes.items() if name.startswith("weight_hh") and len(y) == 2]
    pairs = [sorted(shape) for shape in square if 0 not in shape]
    rows = [many for _, many in pairs]
    others = [y for name, y in shapes.items() if not name.startswith("weight_hh")]
    rows += [y[0] for y in others if y and 0 not in y]  # of no numbers a shape may say anything
    found = []
    for name in [kind] if kind else NETWORKS if pairs else []:
        gates = len(NETWORKS[name].DESIGN.gates)
        for H, count in sizes_said(rows, [few for few, _ in pairs], gates).most_common(1):
            # where no W_hh fits any kind the nearest is taken
            off = min((abs(few - H) + abs(many - gates * H) for few, many in pairs), default=0)
            found.append((count, -off, name, H))
    if not found:
        return None
    _, off, name, H = max(found, key=lambda one: one[:2])
    return name, H, off == 0


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
        By the number of gates, 1, 3, 4 or 2, if None: the first in `networks.NETWORKS` of so many.
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
        Naming every key that is missing, unexpected, misshapen or of another dtype than the rest;
        sizes and dtype are those of most arrays.  For a kind that there is not.
    TypeError
        If only dtypes are wrong: others than float32 and float64, or mixed ones.  For what is no
        mapping, a prefix that is no str, and options that the kind does not know.
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
    arrays = {}
    for name, y in mapping.items():
        if str(name).startswith(prefix):
            with contextlib.suppress(TypeError):  # refused below, with all other faults
                y = checks.of_torch(y, str(name))
            arrays[str(name)[len(prefix) :]] = y
    if any(name.startswith("weight_hr") for name in arrays):
        raise NotImplementedError("weight_hr_l0: projections (proj_size > 0) are not implemented")
    names = [found for name in arrays if (found := _NAME.fullmatch(name))]
    shapes = {found[0]: np.shape(arrays[found[0]]) for found in names}
    if kind is not None:
        checks.choice(kind, "kind", NETWORKS)
    if not (said := _kind_and_size(shapes, kind)):
        where = f" after the prefix {prefix!r}" if prefix else ""
        known = ", ".join(sorted(map(str, mapping))[:8]) or "no keys"
        raise ValueError(f"mapping: weight_hh_l0 is missing or no matrix{where}, got {known}")
    found_kind, H, sure = said
    rows = H * len(NETWORKS[found_kind].DESIGN.gates)
    first = [shapes.get(f"weight_ih_l0{suffix}", ()) for suffix in ("", "_reverse")]
    # named below if there is none, or if it is transposed
    w_ih = next((shape for shape in first if len(shape) == 2 and 0 not in shape), (rows, 1))
    I = w_ih[0] if w_ih[1] == rows != w_ih[0] else w_ih[1]
    last = max(names, key=lambda found: int(found[3]))
    if int(last[3]) >= len(names):  # before memory is asked for that many layers
        raise ValueError(f"state_dict: {last[0]} is unexpected: layers below it are missing")
    net = NETWORKS[found_kind](
        I,
        H,
        1 + int(last[3]),
        bias=any(found[1] == "bias" for found in names),
        bidirectional=any(found[4] for found in names),
        dtype=usual_dtype(arrays[name] for name in shapes),
        rng=0,
        **options,
    )
    try:
        net.load_state_dict(arrays)
    except ValueError as error:
        hint = "" if kind or sure else f"; as kind is None, {found_kind} is assumed"
        raise ValueError(f"{error}{hint}") from None
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
        For other dtypes than float32 and float64, or what is no path.
    NotImplementedError, ImportError
        For projections, and for .safetensors without that package.
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
        net = saved_net(arrays, about)
    saved = about["kind"]
    for name, y in {"kind": kind or saved, "prefix": prefix, **options}.items():
        said = {"prefix": "", **about}.get(name)
        if y != said:
            raise ValueError(f"{name}: {os.fspath(path)} was saved with {said!r}, got {y!r}")
    return net


def saved_net(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> Network:
    """The net of so many arrays, whose kind and `options` a file says.

    Its sizes are those of what is there: by the file's words alone no memory is asked for.
    """
    kind = checks.choice(about["kind"], "kind", NETWORKS)
    also = {name: about[name] for name in (*NETWORKS[kind].OPTIONS, "batch_first")}
    net = from_state_dict(arrays, kind, **also)
    if {"kind": kind, **net.options()} != about:
        raise ValueError(f"expected the arrays of {about}")
    return net
