"""Nets from the weights of ONNX's operators and Keras' layers, given as plain arrays."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from . import checks
from .loading import from_state_dict, sizes_said, usual_dtype
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
        Naming the arrays; a TypeError if dtypes are all that is wrong.
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
    if not 0 < len(Ws) == len(Rs) == len(Bs):
        got = f"{len(Ws)}, {len(Rs)}, {len(Bs)}"
        raise ValueError(f"W, R, B: expected as many of each, one or more, got {got}")
    flag = linear_before_reset
    flag = flag if isinstance(flag, bool) else checks.size(flag, "linear_before_reset", least=0)
    if flag > 1:
        raise ValueError(f"linear_before_reset: expected 0 or 1, got {flag}")
    if kind == "GRU":
        options["reset_after"] = bool(flag)
    if activations is not None:
        _of_words(activations)
        options |= _nonlinearity(kind, tuple(word.lower() for word in activations), options)
    stack = []
    for layer, (w, r, b) in enumerate(zip(Ws, Rs, Bs, strict=True)):
        given = (w, r) if b is None else (w, r, b)
        part = _Part(layer, 0, ("W", "R", "B"), len(Ws), given, (3, 3, 2))
        D = len(part.arrays[0])
        if direction not in {1: (None, "forward"), 2: (None, "bidirectional")}.get(D, ()):
            wanted = "1 or 2" if direction is None else f"that of direction {direction!r}"
            raise ValueError(f"{part.labels[0]}: expected D of {wanted}, got {D}")
        stack.append(part)
    shapes = [[y.shape for y in part.arrays] for part in stack]
    said = [n for w, r, *b in shapes for n in (w[1], r[1], *(y[1] // 2 for y in b))]
    H = _hidden_size(said, [r[2] for _, r, *_ in shapes], len(order))
    (D, _, I), rows = shapes[0][0], len(order) * H
    dtype = usual_dtype(y for part in stack for y in part.arrays)
    faults: list[Exception] = []
    for part in stack:
        inputs = D * H if part.layer else max(I, 1)
        faults += part.faults(dtype, [(D, rows, inputs), (D, rows, H), (D, 2 * rows)])
    _raise(faults)
    arrays: dict[str, np.ndarray] = {}
    for part in stack:
        w, r, b = (*part.arrays, np.zeros((D, 2 * rows), dtype))[:3]
        for d in range(D):
            one = w[d], r[d], b[d, :rows], b[d, rows:]
            arrays |= _reordered(one, _named(part.layer, d), order, kind)
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
        Naming the arrays; a TypeError if dtypes are all that is wrong.

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
    parts = []
    for layer, given in enumerate(stack):
        D, count = {2: (1, 2), 3: (1, 3), 4: (2, 2), 6: (2, 3)}.get(len(given), (0, 0))
        if not D:
            raise ValueError(
                f"weights: expected 2 or 3 arrays a direction, got {len(given)} in layer {layer}"
            )
        for d in range(D):
            one, names = given[d * count :][:count], ("kernel", "recurrent_kernel", "bias")
            parts.append(_Part(layer, d, names, len(stack), one, (2, 2, None)))
    shapes = [[y.shape for y in part.arrays] for part in parts]
    said = [n for part in shapes for shape in part for n in shape[-1:]]
    H = _hidden_size(said, [r[0] for _, r, *_ in shapes], len(order))
    I, rows = shapes[0][0][0], len(order) * H
    D = sum(part.layer == 0 for part in parts)
    for layer in range(len(stack)):
        if (got := sum(part.layer == layer for part in parts)) != D:
            raise ValueError(
                f"weights: expected {D} directions in every layer, got {got} in layer {layer}"
            )
    dtype = usual_dtype(y for part in parts for y in part.arrays)
    two = kind == "GRU" and reset_after
    faults: list[Exception] = []
    for part in parts:
        bias = part.arrays[2:]
        hint = "of several layers give a list of lists" if part.direction and not nested else ""
        turned = kind == "GRU" and bias and bias[0].shape == ((rows,) if two else (2, rows))
        of_bias = f"was the layer made with reset_after={not two}?" if turned else hint
        faults += part.faults(
            dtype,
            [(D * H if part.layer else max(I, 1), rows), (H, rows), (2, rows) if two else (rows,)],
            [hint, hint, of_bias],
        )
    _raise(faults)
    arrays: dict[str, np.ndarray] = {}
    for part in parts:
        kernel, recurrent, *bias = part.arrays
        both = np.zeros((2, rows), dtype)
        both[: 1 + two] = bias[0] if bias else 0  # without reset_after of the input alone
        suffix = _named(part.layer, part.direction)
        arrays |= _reordered((kernel.T, recurrent.T, *both), suffix, order, kind)
    return from_state_dict(arrays, kind, **options)


class _Part:
    """Arrays of one layer, of Keras in one direction, under the names that they were given by."""

    def __init__(
        self,
        layer: int,
        direction: int,
        names: tuple[str, ...],
        layers: int,
        given: Sequence[Any],  # without a bias if there is none
        ranks: tuple[int | None, ...],
    ) -> None:
        self.layer, self.direction = layer, direction
        of_layer = f" of layer {layer}" if layers > 1 else ""
        self.labels = ["backward " * direction + name + of_layer for name in names]
        self.arrays = [
            _of_rank(y, label, rank)
            for y, label, rank in zip(given, self.labels, ranks, strict=False)
        ]

    def faults(
        self, dtype: np.dtype, shapes: Sequence[tuple[int, ...]], hints: Sequence[str] = ("",) * 3
    ) -> list[Exception]:
        """What each array's check says."""
        found: list[Exception] = []
        for y, label, shape, hint in zip(self.arrays, self.labels, shapes, hints, strict=False):
            try:
                checks.shaped(y, label, dtype, shape, hint)
            except (TypeError, ValueError) as error:
                found.append(error)
        return found


def _raise(faults: list[Exception]) -> None:
    """All of them in one error, a TypeError if dtypes are all that is wrong."""
    if faults:
        types = all(isinstance(fault, TypeError) for fault in faults)
        raise (TypeError if types else ValueError)("; ".join(map(str, faults)))


def _hidden_size(rows: Iterable[int], columns: Iterable[int], gates: int) -> int:
    """What most arrays say; 1, which others than empty ones refuse, if none says any."""
    said = sizes_said(rows, filter(None, columns), gates).most_common(1)
    return said[0][0] if said else 1


def _of_rank(y: Any, name: str, rank: int | None) -> np.ndarray:
    y = np.asarray(checks.of_torch(y, name))
    if rank is not None and y.ndim != rank:
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
        gates = np.split(y, len(order))
        result[name + suffix] = np.concatenate([gates[order.index(letter)] for letter in wanted])
    return result
