"""Nets from weights that were trained elsewhere: state dicts, files, ONNX and Keras arrays."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import checks, files
from .network import FORMAT, Network
from .networks import NETWORKS

_NAME = re.compile(r"(weight|bias)_(ih|hh)_l(\d+)(_reverse)?")
_GATES = {1: "RNN", 2: "MGU", 3: "GRU", 4: "LSTM"}
_ACTIVATIONS = {"GRU": ("sigmoid", "tanh"), "LSTM": ("sigmoid", "tanh", "tanh")}


def _plain(y: Any, name: str) -> Any:
    """A torch tensor's memory as an array; anything else as it is."""
    try:
        for method in ("detach", "cpu", "numpy"):
            y = getattr(y, method)() if hasattr(y, method) else y
    except TypeError as error:  # bfloat16, which NumPy has not
        raise TypeError(f"{name}: expected float32 or float64, got {y.dtype}: {error}") from None
    return y


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
        raise TypeError(f"mapping: expected a mapping, got {type(mapping).__name__}")
    if not isinstance(prefix, str):
        raise TypeError(f"prefix: expected a str, got {type(prefix).__name__}")
    inside = {str(name): y for name, y in mapping.items() if str(name).startswith(prefix)}
    arrays = {name[len(prefix) :]: _plain(y, name) for name, y in inside.items()}
    if any(name.startswith("weight_hr") for name in arrays):
        raise NotImplementedError("weight_hr_l0: projections (proj_size > 0) are not implemented")
    w_hh = np.asarray(arrays.get("weight_hh_l0", 0))
    w_ih = np.asarray(arrays.get("weight_ih_l0", w_hh.T[:1].T if w_hh.ndim else 0))  # named below
    if w_ih.ndim != 2 or w_hh.ndim != 2 or 0 in w_hh.shape:
        where = f" after the prefix {prefix!r}" if prefix else ""
        known = ", ".join(sorted(map(str, mapping))[:8]) or "no keys"
        name = "weight_ih_l0" if w_hh.ndim == 2 and w_hh.size else "weight_hh_l0"
        raise ValueError(f"mapping: {name} is missing or no matrix{where}, got {known}")
    few, many = sorted(w_hh.shape)
    if kind is None:
        kind = _GATES.get(many // few if many % few == 0 else 0, "")
        if not kind:
            raise ValueError(
                "weight_hh_l0: expected 1, 2, 3 or 4 times as many rows as columns, got shape "
                f"{w_hh.shape}"
            )
    rows = few * {name: gates for gates, name in _GATES.items()}.get(kind, 0)
    # A transposed matrix is taken as what it was meant to be, so that its fault is named with all
    # others.
    H = few if many == rows else w_hh.shape[1]
    I = w_ih.shape[0] if w_ih.shape[1] == rows != w_ih.shape[0] else w_ih.shape[1]
    names = [found for name in arrays if (found := _NAME.fullmatch(name))]
    last = max(names, key=lambda found: int(found[3]))
    if int(last[3]) >= len(names):  # before memory is asked for that many layers
        raise ValueError(f"state_dict: {last[0]} is unexpected: layers below it are missing")
    dtypes = [y.dtype for y in (w_hh, *arrays.values()) if getattr(y, "dtype", 0) in checks.DTYPES]
    net = NETWORKS[checks.choice(kind, "kind", NETWORKS)](
        I,
        H,
        1 + int(last[3]),
        bias=any(found[1] == "bias" for found in names),
        bidirectional=any(found[4] for found in names),
        dtype=dtypes[0] if dtypes else w_hh.dtype,  # which is refused
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


def _layers(y: Any) -> list[Any]:
    """One layer or a list of them, as a list."""
    return list(y) if isinstance(y, (list, tuple)) else [y]


def _nonlinearity(kind: str, given: tuple[str, ...], options: dict[str, Any]) -> dict[str, str]:
    """What ONNX's activations say of an RNN; those of the others must be the usual ones."""
    if kind == "RNN":
        if len(set(given)) == 1 and given[0] in ("tanh", "relu", "sigmoid"):
            if options.get("nonlinearity", given[0]) != given[0]:
                raise ValueError(f"nonlinearity: expected {given[0]!r}, as activations say")
            return {"nonlinearity": given[0]}
    elif given in (_ACTIVATIONS[kind], 2 * _ACTIVATIONS[kind]):
        return {}
    raise NotImplementedError(f"activations: {', '.join(given)} of a {kind} are not implemented")


def _of_words(activations: Any) -> None:
    if not isinstance(activations, (list, tuple)) or not all(
        isinstance(word, str) for word in activations
    ):
        got = type(activations).__name__
        raise TypeError(f"activations: expected a sequence of str, got {got}")


def _named(layer: int, direction: int) -> str:
    return f"_l{layer}" + "_reverse" * direction


def from_onnx(
    W: Any,
    R: Any,
    B: Any = None,
    *,
    kind: str,
    linear_before_reset: int = 0,
    direction: str | None = None,
    activations: Sequence[str] | None = None,
    **options: Any,
) -> Network:
    """The net of ONNX's operators RNN, GRU and LSTM.

    Parameters
    ----------
    W, R, B : ndarray (D,G·H,I), (D,G·H,H) and (D,2·G·H); or lists of them, one a layer
        The operator's inputs; gates in ONNX's order: z r h of a GRU, i o f c of an LSTM.  B is
        zero if None.
    kind : {"RNN", "GRU", "LSTM"}
        The operator.
    linear_before_reset : int
        The GRU's attribute; 0, ONNX's default, is `reset_after=False`.
    direction : {"forward", "bidirectional"}, optional
        The attribute; D says the same.
    activations : sequence of str, optional
        The attribute; other than the defaults only of an RNN: Tanh, Relu or Sigmoid.
    **options
        `batch_first`, `nonlinearity` of an RNN; attributes of the operator that have no
        counterpart (`clip`, `input_forget`, `layout`, peepholes `P`) raise, unless 0 or None.

    Returns
    -------
    RNN, GRU or LSTM

    Raises
    ------
    TypeError, ValueError
        Naming the array.
    NotImplementedError
        Naming the attribute.

    Notes
    -----
    Source: the operators' specification, opset 22.  A node of direction "reverse" is a forward one
    over `x[::-1]`, whose outputs are turned round again.

    Examples
    --------
    >>> import numpy as np, fastbptt as fb
    >>> W, R = np.ones((1, 15, 3), np.float32), np.ones((1, 15, 5), np.float32)
    >>> fb.from_onnx(W, R, kind="GRU")
    GRU(3, 5, reset_after=False, dtype=float32)
    """
    usual: dict[str, tuple[Any, ...]] = {"P": (), "clip": (), "input_forget": (0,), "layout": (0,)}
    for name, harmless in usual.items():
        y = options.pop(name, None)
        if y is not None and not (np.ndim(y) == 0 and y in harmless):
            raise NotImplementedError(f"{name}: this attribute of the operator is not implemented")
    if direction == "reverse":
        raise NotImplementedError(
            "direction: 'reverse' alone is not implemented; make the net without it, give it "
            "x[::-1] and turn the outputs round"
        )
    orders = {"RNN": "a", "GRU": "zrn", "LSTM": "iofg"}
    order = orders[checks.choice(kind, "kind", orders)]
    if "reset_after" in options:
        raise TypeError("reset_after: linear_before_reset says this of ONNX's GRU")
    Ws, Rs = _layers(W), _layers(R)
    Bs = [None] * len(Ws) if B is None else _layers(B)
    if not len(Ws) == len(Rs) == len(Bs):
        raise ValueError(f"W, R, B: expected as many of each, got {len(Ws)}, {len(Rs)}, {len(Bs)}")
    flag = linear_before_reset
    flag = flag if isinstance(flag, bool) else checks.size(flag, "linear_before_reset", least=0)
    if flag > 1:
        raise ValueError(f"linear_before_reset: expected 0 or 1, got {flag}")
    if kind == "GRU":
        options["reset_after"] = bool(flag)
    if activations is not None:
        _of_words(activations)
        options |= _nonlinearity(kind, tuple(word.lower() for word in activations), options)
    arrays: dict[str, np.ndarray] = {}
    for layer, (w, r, b) in enumerate(zip(Ws, Rs, Bs, strict=True)):
        w, r = (_of_rank(y, name, 3) for y, name in ((w, "W"), (r, "R")))
        rows = w.shape[1]
        b = np.zeros((len(w), 2 * rows), w.dtype) if b is None else _of_rank(b, "B", 2)
        if not len(w) == len(r) == len(b) or b.shape[1] != 2 * rows:
            raise ValueError(
                f"W, R, B: expected (D, GH, I), (D, GH, H) and (D, 2 GH), got {w.shape}, {r.shape} "
                f"and {b.shape}"
            )
        fits = {1: (None, "forward"), 2: (None, "bidirectional")}.get(len(w), ())
        if direction not in fits:
            wanted = "1 or 2" if direction is None else f"that of direction {direction!r}"
            raise ValueError(f"W: expected D of {wanted}, got {len(w)}")
        for d in range(len(w)):
            given = w[d], r[d], b[d, :rows], b[d, rows:]
            arrays |= _reordered(given, _named(layer, d), order, kind)
    return from_state_dict(arrays, kind, **options)


def from_keras(
    weights: Sequence[Any], *, kind: str, reset_after: bool = True, **options: Any
) -> Network:
    """The net of Keras' layers SimpleRNN, GRU and LSTM.

    Parameters
    ----------
    weights : list of ndarray, or list of such lists, one a layer
        What `layer.get_weights()` returns: kernel (I,G·H), recurrent_kernel (H,G·H) and, with
        `use_bias`, bias (G·H,), of a GRU with `reset_after` (2,G·H); of a Bidirectional layer the
        forward ones and then the backward ones.  Gates in Keras' order: z r h, i f c o.
    kind : {"RNN", "GRU", "LSTM"}
        Keras calls the first SimpleRNN.
    reset_after : bool
        The GRU's argument.
    **options
        `batch_first` (Keras' own layout is True), `nonlinearity` of an RNN.

    Returns
    -------
    RNN, GRU or LSTM

    Raises
    ------
    TypeError, ValueError
        Naming the array.

    Notes
    -----
    Source: keras.layers.GRUCell and LSTMCell, Keras 3.

    Examples
    --------
    >>> import numpy as np, fastbptt as fb
    >>> shapes = (3, 20), (5, 20), (20,)
    >>> weights = [np.ones(shape, np.float32) for shape in shapes]
    >>> fb.from_keras(weights, kind="LSTM", batch_first=True)
    LSTM(3, 5, batch_first=True, dtype=float32)
    """
    orders = {"RNN": "a", "GRU": "zrn", "LSTM": "ifgo"}
    order = orders[checks.choice(kind, "kind", orders)]
    nested = isinstance(weights, (list, tuple)) and isinstance((*weights, 0)[0], (list, tuple))
    stack = list(weights) if nested else [weights]
    for given in stack:
        if not isinstance(given, (list, tuple)):
            raise TypeError(f"weights: expected a list of arrays, got {type(given).__name__}")
    if kind == "GRU":
        options["reset_after"] = checks.flag(reset_after, "reset_after")
    arrays: dict[str, np.ndarray] = {}
    for layer, given in enumerate(stack):
        split = {2: (1, 2), 3: (1, 3), 4: (2, 2), 6: (2, 3)}.get(len(given))
        if split is None:
            raise ValueError(
                f"weights: expected 2 or 3 arrays a direction, got {len(given)} in layer {layer}"
            )
        directions, count = split
        for direction in range(directions):
            kernel, recurrent, *bias = given[direction * count : (direction + 1) * count]
            w, r = _of_rank(kernel, "kernel", 2).T, _of_rank(recurrent, "recurrent_kernel", 2).T
            b = np.asarray(bias[0]) if bias else np.zeros(len(w), w.dtype)
            pair, one = (2, len(w)), (len(w),)
            shape = pair if bias and kind == "GRU" and reset_after else one
            if b.shape != shape:
                turned = kind == "GRU" and b.shape in (pair, one)
                hint = f"; was the layer made with reset_after={not reset_after}?" * turned
                raise ValueError(f"bias: expected shape {shape}, got {b.shape}{hint}")
            both = b if b.ndim == 2 else np.stack([b, np.zeros_like(b)])
            arrays |= _reordered((w, r, *both), _named(layer, direction), order, kind)
    return from_state_dict(arrays, kind, **options)


def _of_rank(y: Any, name: str, rank: int) -> np.ndarray:
    y = np.asarray(_plain(y, name))
    if y.ndim != rank:
        raise ValueError(f"{name}: expected {rank} dimensions, got shape {y.shape}")
    return y


def _reordered(
    given: tuple[np.ndarray, ...], suffix: str, order: str, kind: str
) -> dict[str, np.ndarray]:
    """weight_ih, weight_hh, bias_ih, bias_hh with the gates in PyTorch's order.

    The candidate of a GRU is multiplied by 1 - z in all three libraries: no sign changes.
    """
    wanted = {"RNN": "a", "GRU": "rzn", "LSTM": "ifgo"}[kind]
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    result = {}
    for name, y in zip(names, given, strict=True):
        if len(y) % len(order):
            raise ValueError(
                f"{name}{suffix}: expected a multiple of {len(order)} rows of gates, got {len(y)}"
            )
        gates = np.split(y, len(order))
        result[name + suffix] = np.concatenate([gates[order.index(letter)] for letter in wanted])
    return result
