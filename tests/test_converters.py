"""Weights of ONNX and Keras: by their own libraries, by their equations, and faults by name."""

import os
import re

import numpy as np
import pytest
import torch
from nets import same
from numpy.testing import assert_allclose
from strategies import LAYOUTS, lay_out

import fastbptt as fb

os.environ.setdefault("KERAS_BACKEND", "torch")

ONNX = [
    ("RNN", 1, {}, {}),
    ("GRU", 3, {}, {}),
    ("GRU", 3, {"linear_before_reset": 1}, {"linear_before_reset": 1}),
    ("LSTM", 4, {}, {}),
]


def onnx_output(operator, attributes, W, R, B, x):
    """Y (T,B,D·H) of the operator, by onnxruntime."""
    import onnx
    import onnxruntime

    D, H = len(W), R.shape[2]
    direction = "bidirectional" if D == 2 else "forward"
    node = onnx.helper.make_node(
        operator, ["x", "W", "R", "B"], ["y"], hidden_size=H, direction=direction, **attributes
    )
    info = onnx.helper.make_tensor_value_info
    single = onnx.TensorProto.FLOAT
    given = [info(n, single, y.shape) for n, y in zip("xWRB", (x, W, R, B), strict=True)]
    graph = onnx.helper.make_graph([node], "g", given, [info("y", single, None)])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)])
    model.ir_version = 8
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(None, {"x": x, "W": W, "R": R, "B": B})  # (T,D,B,H)
    return y.swapaxes(1, 2).reshape(*x.shape[:2], D * H)


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize(("operator", "G", "attributes", "keywords"), ONNX)
def test_onnx(operator, G, attributes, keywords, D):
    rng = np.random.default_rng(0)
    shapes = (D, G * 5, 4), (D, G * 5, 5), (D, 2 * G * 5), (7, 3, 4)
    W, R, B, x = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    net = fb.from_onnx(W, R, B, kind=operator, **keywords)
    assert_allclose(net(x)[0], onnx_output(operator, attributes, W, R, B, x), atol=2e-6)
    without = fb.from_onnx(W, R, kind=operator, **keywords)(x)[0]
    assert_allclose(without, onnx_output(operator, attributes, W, R, 0 * B, x), atol=2e-6)


def test_onnx_in_layers_and_what_it_lacks():
    rng = np.random.default_rng(0)
    W, R, B = (rng.normal(size=shape) for shape in ((2, 15, 4), (2, 15, 5), (2, 30)))
    W2 = rng.normal(size=(2, 15, 10))
    net = fb.from_onnx([W, W2], [R, R], [B, B], kind="GRU")
    x = rng.normal(size=(7, 3, 4))
    above = fb.from_onnx(W2, R, B, kind="GRU")
    assert_allclose(net(x)[0], above(fb.from_onnx(W, R, B, kind="GRU")(x)[0])[0], atol=1e-12)
    for name in ("P", "clip", "input_forget"):
        with pytest.raises(NotImplementedError, match=name):
            fb.from_onnx(W, R, B, kind="GRU", **{name: 1})
    with pytest.raises(ValueError, match="W: expected 3 dimensions, got shape"):
        fb.from_onnx(W[0], R, B, kind="GRU")
    with pytest.raises(ValueError, match="expected as many of each, one or more, got 2, 1, 1"):
        fb.from_onnx([W, W2], [R], [B], kind="GRU")
    wanted = "W: expected shape (2, 20, 4), got (2, 15, 4); "
    wanted += "R: expected shape (2, 20, 5), got (2, 15, 5); "
    wanted += "B: expected shape (2, 40), got (2, 30)"
    with pytest.raises(ValueError, match=f"^{re.escape(wanted)}$"):
        fb.from_onnx(W, R, B, kind="LSTM")
    odd = R.astype(np.float32)
    with pytest.raises(TypeError, match=r"^R of layer 0: .*; R of layer 1: [^;]*float32[^;]*"):
        fb.from_onnx([W, W2], [odd, odd], [B, B], kind="GRU")
    with pytest.raises(ValueError, match=r"^R of layer 0: .*; B of layer 1: expected shape"):
        fb.from_onnx([W, W2], [odd, R], [B, B[:, :29]], kind="GRU")
    with pytest.raises(ValueError, match="kind: expected one of RNN, GRU, LSTM"):
        fb.from_onnx(W, R, B, kind="MGU")


KERAS = [
    ("SimpleRNN", "RNN", {}),
    ("GRU", "GRU", {"reset_after": True}),
    ("GRU", "GRU", {"reset_after": False}),
    ("LSTM", "LSTM", {}),
]


@pytest.mark.filterwarnings("ignore")  # of Keras' own making
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("layer", "kind", "options"), KERAS)
def test_keras(layer, kind, options, bias, bidirectional):
    import keras

    def make():
        one = getattr(keras.layers, layer)(5, return_sequences=True, use_bias=bias, **options)
        return keras.layers.Bidirectional(one) if bidirectional else one

    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 7, 4)).astype(np.float32)
    stack, weights, y = [make(), make()], [], x
    for one in stack:
        one.build(y.shape)
        one.set_weights([rng.normal(size=w.shape).astype(np.float32) for w in one.get_weights()])
        weights.append(one.get_weights())
        y = keras.ops.convert_to_numpy(one(y))
    net = fb.from_keras(weights, kind=kind, batch_first=True, **options)
    assert_allclose(net(x)[0], y, atol=1e-5)
    single = fb.from_keras(weights[0], kind=kind, batch_first=True, **options)
    wanted = keras.ops.convert_to_numpy(stack[0](x))
    assert_allclose(single(x)[0], wanted, atol=1e-5)


def test_keras_arrays_that_do_not_fit():
    kernel, recurrent, bias = (np.zeros(shape) for shape in ((4, 15), (5, 15), (15,)))
    with pytest.raises(ValueError, match="expected 2 or 3 arrays a direction, got 1"):
        fb.from_keras([kernel], kind="GRU")
    with pytest.raises(ValueError, match=r"bias: expected shape \(2, 15\), got \(3,\)$"):
        fb.from_keras([kernel, recurrent, bias[:3]], kind="GRU")
    with pytest.raises(ValueError, match="was the layer made with reset_after=False"):
        fb.from_keras([kernel, recurrent, bias], kind="GRU")
    with pytest.raises(ValueError, match="was the layer made with reset_after=True"):
        fb.from_keras([kernel, recurrent, np.stack([bias, bias])], kind="GRU", reset_after=False)
    with pytest.raises(ValueError, match=r"bias: expected shape \(15,\), got \(2, 15\)$"):
        fb.from_keras([kernel, np.zeros((15, 15)), np.stack([bias, bias])], kind="RNN")
    wanted = "kernel: expected shape (4, 20), got (4, 15); "
    wanted += "recurrent_kernel: expected shape (5, 20), got (5, 15); "
    wanted += "bias: expected shape (20,), got (15,)"
    with pytest.raises(ValueError, match=f"^{re.escape(wanted)}$"):
        fb.from_keras([kernel, recurrent, bias], kind="LSTM")
    with pytest.raises(ValueError, match="recurrent_kernel: expected 2 dimensions"):
        fb.from_keras([kernel, bias, bias], kind="GRU")
    with pytest.raises(TypeError, match="reset_after"):
        fb.from_keras([kernel, recurrent, bias], kind="GRU", reset_after=1)
    for weights in (None, kernel, 3):
        with pytest.raises(TypeError, match="weights: expected a list of arrays, got"):
            fb.from_keras(weights, kind="GRU")
    with pytest.raises(TypeError, match="weights: expected a list of arrays, got"):
        fb.from_keras([[kernel, recurrent], None], kind="GRU")


def zeros(*shapes, dtype=np.float32):
    return [np.zeros(shape, dtype) for shape in shapes]


LAYER = (3, 15), (5, 15), (2, 15)
ABOVE = (5, 15), (5, 15), (2, 15)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (
            zeros((3, 12), (5, 12), (2, 12)),
            ValueError,
            r"recurrent_kernel: expected shape \(4, 12\), got \(5, 12\)$",
        ),
        (
            zeros((3, 15), (4, 12), (2, 12)),
            ValueError,
            r"kernel: expected shape \(3, 12\), got \(3, 15\)$",
        ),
        (
            zeros(*LAYER, *ABOVE),
            ValueError,
            r"backward kernel: expected shape \(3, 15\), got \(5, 15\); of several layers give a",
        ),
        (
            [zeros(*LAYER), zeros(*LAYER)],
            ValueError,
            r"kernel of layer 1: expected shape \(5, 15\), got \(3, 15\)$",
        ),
        (
            [zeros(*LAYER, *LAYER), zeros((10, 15), *LAYER[1:])],
            ValueError,
            "weights: expected 2 directions in every layer, got 1 in layer 1",
        ),
        (zeros(*LAYER, dtype=np.float16), TypeError, "kernel: expected float32, got float16"),
        (
            [*zeros(LAYER[0]), *zeros(*LAYER[1:], dtype=float)],
            TypeError,
            "kernel: expected float64, got float32",
        ),
        (zeros((3, 0), (0, 0)), ValueError, r"kernel: expected shape \(3, 3\), got \(3, 0\)"),
    ],
)
def test_a_fault_in_keras_arrays_is_named_as_they_were_given(weights, error, message):
    with pytest.raises(error, match=f"^{message}"):
        fb.from_keras(weights, kind="GRU")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"W": zeros((1, 15, 3), dtype=np.float16)}, TypeError, "W: expected float32, got float16"),
        (
            {"R": zeros((1, 15, 4))},
            ValueError,
            r"R: expected shape \(1, 15, 5\), got \(1, 15, 4\)$",
        ),
        ({"W": None}, ValueError, r"W: expected 3 dimensions, got shape \(\)$"),
        (
            {"W": zeros((1, 15, 0))},
            ValueError,
            r"W: expected shape \(1, 15, 1\), got \(1, 15, 0\)$",
        ),
        ({"W": [], "R": [], "B": []}, ValueError, "W, R, B: expected as many of each, one or more"),
        ({"B": zeros((1, 15))}, ValueError, r"B: expected shape \(1, 30\), got \(1, 15\)$"),
        (
            {"W": 2 * zeros((1, 15, 3)), "R": 2 * zeros((1, 15, 5)), "B": 2 * zeros((1, 30))},
            ValueError,
            r"W of layer 1: expected shape \(1, 15, 5\), got \(1, 15, 3\)$",
        ),
    ],
)
def test_a_fault_in_onnx_arrays_is_named_as_they_were_given(change, error, message):
    given = {"W": zeros((1, 15, 3)), "R": zeros((1, 15, 5)), "B": zeros((1, 30))}
    with pytest.raises(error, match=f"^{message}"):
        fb.from_onnx(**{**given, **change}, kind="GRU")


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def onnx_by_hand(operator, W, R, B, x, linear_before_reset=0):
    """Y (T,B,H) of one direction by the equations of onnx.ai/onnx/operators, opset 22."""
    H = R.shape[1]
    Wb, Rb = np.split(B, 2)
    h = c = np.zeros((x.shape[1], H))
    output = []
    for X in x:
        if operator == "RNN":  # Ht = f(Xt*(Wi^T) + Ht-1*(Ri^T) + Wbi + Rbi)
            h = np.tanh(X @ W.T + h @ R.T + Wb + Rb)
        elif operator == "GRU":
            (Wz, Wr, Wh), (Rz, Rr, Rh) = W.reshape(3, H, -1), R.reshape(3, H, H)
            (Wbz, Wbr, Wbh), (Rbz, Rbr, Rbh) = Wb.reshape(3, H), Rb.reshape(3, H)
            z = sigmoid(X @ Wz.T + h @ Rz.T + Wbz + Rbz)
            r = sigmoid(X @ Wr.T + h @ Rr.T + Wbr + Rbr)
            if linear_before_reset:
                candidate = np.tanh(X @ Wh.T + r * (h @ Rh.T + Rbh) + Wbh)
            else:
                candidate = np.tanh(X @ Wh.T + (r * h) @ Rh.T + Rbh + Wbh)
            h = (1 - z) * candidate + z * h
        else:
            (Wi, Wo, Wf, Wc), (Ri, Ro, Rf, Rc) = W.reshape(4, H, -1), R.reshape(4, H, H)
            bi, bo, bf, bc = (Wb + Rb).reshape(4, H)
            i = sigmoid(X @ Wi.T + h @ Ri.T + bi)
            f = sigmoid(X @ Wf.T + h @ Rf.T + bf)
            c = f * c + i * np.tanh(X @ Wc.T + h @ Rc.T + bc)
            h = sigmoid(X @ Wo.T + h @ Ro.T + bo) * np.tanh(c)
        output.append(h)
    return np.array(output)


def keras_by_hand(layer, kernel, recurrent, bias, x, reset_after=True):
    """The sequence (T,B,H) of one direction as keras/src/layers/rnn computes it."""
    H = len(recurrent)
    h = c = np.zeros((x.shape[1], H))
    output = []
    for X in x:
        if layer == "RNN":
            h = np.tanh(X @ kernel + bias + h @ recurrent)
        elif layer == "GRU":
            b, recurrent_b = bias if reset_after else (bias, np.zeros(3 * H))
            x_z, x_r, x_h = np.split(X @ kernel + b, 3, axis=1)
            inner = h @ recurrent + recurrent_b
            z, r = sigmoid(x_z + inner[:, :H]), sigmoid(x_r + inner[:, H : 2 * H])
            last = r * inner[:, 2 * H :] if reset_after else (r * h) @ recurrent[:, 2 * H :]
            h = z * h + (1 - z) * np.tanh(x_h + last)
        else:
            i, f, candidate, o = np.split(X @ kernel + h @ recurrent + bias, 4, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(candidate)
            h = sigmoid(o) * np.tanh(c)
        output.append(h)
    return np.array(output)


def both_ways(one, parts, x):
    """Forward, and backward over x turned round, side by side."""
    turned = [one(*part, x[::way])[::way] for part, way in zip(parts, (1, -1), strict=False)]
    return np.concatenate(turned, axis=2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize(("operator", "G", "attributes", "keywords"), ONNX)
def test_onnx_by_its_equations(operator, G, attributes, keywords, D, dtype, layout):
    rng = np.random.default_rng(1)
    shapes = (D, G * 5, 4), (D, G * 5, 5), (D, 2 * G * 5), (7, 3, 4)
    given = [rng.normal(size=shape).astype(dtype) for shape in shapes]
    W, R, B, x = (lay_out(y, layout) for y in given)
    W64, R64, B64, x64 = (y.astype(float) for y in given)

    def one(W, R, B, x):
        return onnx_by_hand(operator, W, R, B, x, **attributes)

    wanted = both_ways(one, zip(W64, R64, B64, strict=True), x64)
    net = fb.from_onnx(W, R, B, kind=operator, **keywords)
    assert net.dtype == dtype
    assert_allclose(net(x)[0], wanted, atol=100 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize(("layer", "kind", "options"), KERAS)
def test_keras_by_its_equations(layer, kind, options, D, dtype):
    rng = np.random.default_rng(1)
    G = {"RNN": 1, "GRU": 3, "LSTM": 4}[kind]
    bias = (2, G * 5) if options.get("reset_after") else (G * 5,)
    shapes = D * [(4, G * 5), (5, G * 5), bias]
    weights = [rng.normal(size=shape).astype(dtype) for shape in shapes]
    x = rng.normal(size=(7, 3, 4)).astype(dtype)
    exact = [w.astype(float) for w in weights]

    def one(kernel, recurrent, bias, x):
        return keras_by_hand(kind, kernel, recurrent, bias, x, **options)

    wanted = both_ways(one, [exact[3 * d : 3 * d + 3] for d in range(D)], x.astype(float))
    net = fb.from_keras(weights, kind=kind, **options)
    assert_allclose(net(x)[0], wanted, atol=100 * np.finfo(dtype).eps)


def test_onnx_attributes():
    rng = np.random.default_rng(0)
    W, R, B = (rng.normal(size=shape) for shape in ((2, 15, 4), (2, 15, 5), (2, 30)))
    plain = fb.from_onnx(W, R, B, kind="GRU")
    usual = {"direction": "bidirectional", "activations": 2 * ["Sigmoid", "Tanh"]}
    usual |= {
        "layout": 0,
        "input_forget": 0,
        "clip": None,
        "P": None,
        "hidden_size": 5,
        "initial_h": None,
    }
    same(fb.from_onnx(W, R, B, kind="GRU", **usual), plain)
    same(fb.from_onnx(*(torch.tensor(y, requires_grad=True) for y in (W, R, B)), kind="GRU"), plain)
    square = rng.normal(size=(2, 15, 15))
    net = fb.from_onnx(W, square, B, kind="RNN", activations=["Relu", "Relu"])
    assert net.nonlinearity == "relu"
    for change, error, message in [
        ({"direction": "reverse"}, NotImplementedError, r"direction.*x\[::-1\]"),
        ({"direction": "forward"}, ValueError, "W: expected D of that of direction 'forward', got"),
        ({"activations": ["HardSigmoid", "Tanh"]}, NotImplementedError, "activations: hardsigmoid"),
        ({"layout": 1}, NotImplementedError, "layout"),
        ({"P": np.zeros((2, 15))}, NotImplementedError, "P"),
        ({"clip": 0.0}, NotImplementedError, "clip"),
        ({"reset_after": True}, TypeError, "reset_after"),
        ({"linear_before_reset": "0"}, TypeError, "linear_before_reset: expected an int, got str"),
        ({"hidden_size": 6}, ValueError, "hidden_size: expected 5, as R has, got 6"),
        ({"initial_h": 1}, NotImplementedError, "initial_h: this"),
        ({"linear_before_reset": 2}, ValueError, "linear_before_reset: expected 0 or 1, got 2"),
        ({"linear_before_reset": -1}, ValueError, "linear_before_reset: expected at least 0"),
        ({"activations": 3}, TypeError, "activations: expected a sequence of str, got int"),
    ]:
        with pytest.raises(error, match=message):
            fb.from_onnx(W, R, B, kind="GRU", **change)
    with pytest.raises(NotImplementedError, match="activations: tanh, relu"):
        fb.from_onnx(W, square, B, kind="RNN", activations=["Tanh", "Relu"])
    with pytest.raises(ValueError, match="nonlinearity: expected 'relu'"):
        fb.from_onnx(W, square, B, kind="RNN", activations=["Relu"], nonlinearity="tanh")
    with pytest.raises(ValueError, match="W: expected D of 1 or 2, got 3"):
        fb.from_onnx(*(np.zeros((3, *y.shape[1:])) for y in (W, R, B)), kind="GRU")
