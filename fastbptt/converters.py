"""Nets from the weights of ONNX's operators and Keras' layers, given as plain arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import checks
from .loading import from_state_dict
from .network import Network

_ACTIVATIONS = {"GRU": ("sigmoid", "tanh"), "LSTM": ("sigmoid", "tanh", "tanh")}


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
        `batch_first`, `nonlinearity` of an RNN; `hidden_size`, which has to be R's; attributes and
        inputs of the operator that have no counterpart (`clip`, `input_forget`, `layout`, peepholes
        `P`) or belong to a call (`sequence_lens`, `initial_h`, `initial_c`) raise, unless 0 or
        None.

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
    usual: dict[str, tuple[Any, ...]] = {"input_forget": (0,), "layout": (0,)}
    usual |= dict.fromkeys(("P", "clip", "sequence_lens", "initial_h", "initial_c"), ())
    hidden_size = options.pop("hidden_size", None)
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
    net = from_state_dict(arrays, kind, **options)
    if hidden_size not in (None, net.hidden_size):
        raise ValueError(f"hidden_size: expected {net.hidden_size}, as R has, got {hidden_size!r}")
    return net


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
    y = np.asarray(checks.of_torch(y, name))
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
