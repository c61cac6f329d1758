"""Weights trained elsewhere: state dicts, files, ONNX by onnxruntime and Keras by Keras."""

import concurrent.futures
import contextlib
import json
import os

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from strategies import KINDS, LAYOUTS, lay_out

import fastbptt as fb
from fastbptt.network import FORMAT
from fastbptt.networks import NETWORKS

os.environ.setdefault("KERAS_BACKEND", "torch")


def net_of(kind, options, dtype=np.float32, **keywords):
    return getattr(fb, kind)(4, 5, dtype=dtype, rng=0, **options, **keywords)


def same(one, other):
    assert repr(one) == repr(other)
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, y in one.state_dict().items():
        assert_array_equal(y, other.state_dict()[name])


SHAPES = [
    {},
    {"num_layers": 3, "bidirectional": True},
    {"bias": False, "batch_first": True},
    {"dtype": np.float64, "num_layers": 2},
]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_saved_nets_come_back(tmp_path, kind, options, shape, suffix):
    net = net_of(kind, options, **shape)
    net.save(tmp_path / f"net{suffix}")
    same(fb.load(tmp_path / f"net{suffix}"), net)
    assert os.listdir(tmp_path) == [f"net{suffix}"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_state_dicts_say_all_but_the_options(kind, options, shape):
    net = net_of(kind, options, **shape)
    also = {**options, "batch_first": net.batch_first}
    same(fb.from_state_dict(net.state_dict(), **also), net)
    inside = {f"encoder.rnn.{name}": y for name, y in net.state_dict().items()}
    inside["decoder.weight"] = np.zeros(3)
    same(fb.from_state_dict(inside, kind, prefix="encoder.rnn.", **also), net)


def test_a_second_cell_of_as_many_gates(tmp_path, monkeypatch):
    """A line in NETWORKS makes a cell known; a state dict without a kind is the first one's."""
    second = type("Second", (fb.MGU,), {})
    monkeypatch.setitem(NETWORKS, "Second", second)
    net = second(4, 5, rng=0)
    same(fb.from_state_dict(net.state_dict(), "Second"), net)
    same(fb.from_state_dict(net.state_dict()), fb.MGU(4, 5, rng=0))
    net.save(tmp_path / "net.npz")
    same(fb.load(tmp_path / "net.npz"), net)
    monkeypatch.delitem(NETWORKS, "MGU")
    same(fb.from_state_dict(net.state_dict()), net)


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_torch_modules(kind):
    module = getattr(torch.nn, kind)(4, 5, 2, bidirectional=True)
    x = torch.randn(7, 3, 4)
    wanted = module(x)[0].detach()
    for mapping in (module.state_dict(), dict(module.named_parameters())):
        assert_allclose(fb.from_state_dict(mapping)(x.numpy())[0], wanted, atol=2e-6)


def test_files_of_plain_arrays(tmp_path):
    from safetensors.torch import save_file

    module = torch.nn.GRU(4, 5)
    save_file(module.state_dict(), tmp_path / "theirs.safetensors")
    arrays = {name: y.numpy() for name, y in module.state_dict().items()}
    np.savez(tmp_path / "theirs.npz", **arrays)
    for name in ("theirs.safetensors", "theirs.npz"):
        same(fb.load(tmp_path / name), fb.from_state_dict(arrays))
        assert not fb.load(tmp_path / name, reset_after=False).reset_after


def test_every_fault_is_named_at_once():
    arrays = fb.LSTM(4, 5, 2).state_dict()
    del arrays["bias_hh_l1"]
    arrays["weight_ih_l0"], arrays["weight_ih_l1"] = (
        arrays[f"weight_ih_l{layer}"].T for layer in (0, 1)
    )
    arrays["weight_xx_l0"] = arrays["weight_hh_l0"]
    with pytest.raises(ValueError, match="state_dict") as raised:
        fb.from_state_dict(arrays)
    for words in (
        "bias_hh_l1 is missing",
        "weight_xx_l0 is unexpected",
        "weight_ih_l0 has shape (4, 20), expected (20, 4); is it transposed?",
        "weight_ih_l1 has shape (5, 20), expected (20, 5); is it transposed?",
    ):
        assert words in str(raised.value)


@pytest.mark.parametrize("kind", ["LSTM", None])
@pytest.mark.parametrize("gone", ["weight_hh_l0", "weight_ih_l0"])
def test_faults_are_named_where_a_matrix_of_the_first_layer_is_missing(gone, kind):
    arrays = fb.LSTM(3, 5, 2, bidirectional=True).state_dict()
    del arrays[gone], arrays["bias_hh_l1"]
    arrays["zzz"] = arrays["bias_ih_l0"]
    message = f"^state_dict: {gone} is missing; bias_hh_l1 is missing; zzz is unexpected$"
    with pytest.raises(ValueError, match=message):
        fb.from_state_dict(arrays, kind)


def test_a_misshapen_matrix_is_the_only_one_named():
    arrays = fb.LSTM(3, 5).state_dict()
    for y in (np.zeros((20, 6), np.float32), np.zeros(5, np.float32)):
        with pytest.raises(ValueError, match=r"^state_dict: weight_hh_l0 has shape [^;]*$"):
            fb.from_state_dict({**arrays, "weight_hh_l0": y}, "LSTM")
    for layer in (0, 1):  # the other layer says H
        two = fb.GRU(3, 5, 2).state_dict()
        two[f"weight_hh_l{layer}"] = np.zeros((15, 4), np.float32)
        with pytest.raises(ValueError, match=rf"^state_dict: weight_hh_l{layer} has [^;]*$"):
            fb.from_state_dict(two)


@pytest.mark.parametrize(
    ("kind", "H", "rows", "columns"), [("GRU", 4, 12, 6), ("LSTM", 6, 24, 8), ("LSTM", 5, 20, 4)]
)
def test_what_most_arrays_say_is_taken_for_right(kind, H, rows, columns):
    """Also where the one that is at fault would make up a net of another size with some others."""
    arrays = getattr(torch.nn, kind)(3, H).state_dict()
    arrays["weight_hh_l0"] = torch.zeros(rows, columns)
    message = rf"weight_hh_l0 has shape \({rows}, {columns}\), expected \({rows}, {H}\)"
    with pytest.raises(ValueError, match=f"^state_dict: {message}$"):
        fb.from_state_dict(arrays, kind)


def test_a_dtype_of_one_array_is_the_one_named():
    arrays = fb.GRU(3, 4).state_dict()
    arrays["weight_ih_l0"] = arrays["weight_ih_l0"].astype(float)
    with pytest.raises(TypeError, match=r"^state_dict: weight_ih_l0: [^:]*got float64; nothing"):
        fb.from_state_dict(arrays)


def test_faults_of_every_kind_are_named_together():
    def named(arrays, kind, *words):
        del arrays["bias_hh_l0"]
        with pytest.raises(ValueError, match=r"^state_dict: ") as raised:
            fb.from_state_dict({**arrays, "foo": np.zeros(3)}, kind)
        for word in ("bias_hh_l0 is missing", "foo is unexpected", *words):
            assert word in str(raised.value)

    gru = fb.GRU(3, 4).state_dict()
    left = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0")
    for dtype in (np.float16, ml_dtypes.bfloat16):
        words = [f"{name}: expected float32, got {np.dtype(dtype)}" for name in left]
        named({name: y.astype(dtype) for name, y in gru.items()}, "GRU", *words)
    words = [f"{name}: expected a dense tensor" for name in left]
    named({name: torch.tensor(y).bfloat16() for name, y in gru.items()}, "GRU", *words)
    wrong = np.zeros((12, 5), np.float32)
    words = ("weight_hh_l0 has shape (12, 5), expected (12, 4)", "as kind is None, GRU is assumed")
    named({**gru, "weight_hh_l0": wrong}, None, *words)
    both = ("weight_hh_l0: expected float32, got int64", "weight_hh_l0 has shape (12, 5)")
    named({**gru, "weight_hh_l0": wrong.astype(int)}, "GRU", *both)
    lstm = fb.LSTM(4, 8, bias=False).state_dict()
    del lstm["weight_ih_l0"]
    lstm |= {"weight_hh_l0": np.zeros((34, 8), np.float32), "foo": np.zeros(3)}
    words = ("_ih_l0 is missing; foo is unexpected", "_hh_l0 has shape (34, 8), expected (32, 8)")
    with pytest.raises(ValueError, match=r"^state_dict: ") as raised:
        fb.from_state_dict(lstm, "LSTM")
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight_hr_l0": np.zeros((2, 5))}, NotImplementedError, "proj_size"),
        ({"weight_hh_l0": np.zeros((5, 20), np.float32)}, ValueError, "is it transposed"),
        ({"weight_hh_l0": np.zeros(5)}, ValueError, "weight_hh_l0 is missing or no matrix"),
        ({"weight_ih_l0": np.zeros((20, 4), np.float16)}, TypeError, "weight_ih_l0: expected"),
        ({"weight_hh_l0": np.zeros((20, 5), np.float16)}, TypeError, "float16"),
        ({"bias_ih_l0": np.zeros(20)}, TypeError, "bias_ih_l0: expected float32, got float64"),
        (
            {"weight_hh_l0": np.zeros((20, 5), int), "bias_xx_l0": np.zeros(20)},
            ValueError,
            "bias_xx_l0 is unexpected; weight_hh_l0: expected float32, got int64",
        ),
    ],
)
def test_what_makes_no_net(change, error, message):
    arrays = fb.LSTM(4, 5).state_dict()
    with pytest.raises(error, match=message):
        fb.from_state_dict({**arrays, **change})


def test_what_is_no_mapping_or_of_another_name():
    arrays = fb.LSTM(4, 5).state_dict()
    with pytest.raises(TypeError, match=r"mapping: expected a mapping, got list$"):
        fb.from_state_dict([1])
    with pytest.raises(TypeError, match=r"got LSTM; give its state_dict\(\)$"):
        fb.from_state_dict(torch.nn.LSTM(4, 5))
    with pytest.raises(ValueError, match=r"after the prefix 'rnn\.', got bias_hh_l0, bias_ih_l0"):
        fb.from_state_dict(arrays, prefix="rnn.")
    for prefix in (3, None):
        with pytest.raises(TypeError, match="prefix: expected a str, got"):
            fb.from_state_dict(arrays, prefix=prefix)
    with pytest.raises(ValueError, match="got no keys"):
        fb.from_state_dict({})
    with pytest.raises(ValueError, match="kind: expected one of RNN, GRU, LSTM, MGU"):
        fb.from_state_dict(arrays, "lstm")
    with pytest.raises(ValueError, match="state_dict: weight_ih_l0 has shape"):
        fb.from_state_dict(arrays, "GRU")


def test_broken_files(tmp_path):
    net = fb.GRU(4, 5)
    for what in (net.save, fb.load):
        for path in (None, 3):
            with pytest.raises(TypeError, match="path: expected a str or path-like, got"):
                what(path)
    with pytest.raises(ValueError, match=r"expected a name in \.npz or \.safetensors, got"):
        net.save(tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"expected a name in \.npz or \.safetensors, got"):
        fb.load(tmp_path / "net.pt")
    for suffix in (".npz", ".safetensors"):
        path = tmp_path / f"net{suffix}"
        with pytest.raises(FileNotFoundError):
            fb.load(path)
        net.save(path)
        whole = path.read_bytes()
        for broken in (b"", b"text", whole[: len(whole) // 2]):
            path.write_bytes(broken)
            with pytest.raises(ValueError, match=f"net{suffix}") as raised:
                fb.load(path)
            assert "pickle" not in str(raised.value)  # no reason to allow it
        with pytest.raises(OSError, match="nowhere"):
            net.save(tmp_path / "nowhere" / f"net{suffix}")
    np.savez(tmp_path / "pickle.npz", weight_hh_l0=np.array([{}], object))
    with pytest.raises(ValueError, match=r"pickle\.npz: not a saved net"):
        fb.load(tmp_path / "pickle.npz")
    np.save(tmp_path / "one", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(ValueError, match=r"one\.npz: not a saved net \(expected an .npz archive"):
        fb.load(tmp_path / "one.npz")
    np.savez(tmp_path / "other.npz", fastbptt=np.array('{"format": "else"}'))
    with pytest.raises(ValueError, match="expected format"):
        fb.load(tmp_path / "other.npz")


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
    with pytest.raises(ValueError, match=r"^W: expected shape \(2, 20, 4\), got \(2, 15, 4\)$"):
        fb.from_onnx(W, R, B, kind="LSTM")
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
    with pytest.raises(ValueError, match=r"^kernel: expected shape \(4, 20\), got \(4, 15\)$"):
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


def test_threads_may_save_to_one_path(tmp_path):
    """Each writes a file of its own, and the last to be whole stays."""
    nets, path = [fb.GRU(40, 50, rng=seed) for seed in range(2)], tmp_path / "net.npz"

    def save_often(net):
        for _ in range(40):
            net.save(path)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(save_often, nets))
    assert any((fb.load(path).weight_hh_l0 == net.weight_hh_l0).all() for net in nets)
    assert os.listdir(tmp_path) == ["net.npz"]


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


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_saved_net_is_not_taken_for_another(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    net = fb.GRU(4, 5, rng=0)
    net.save(path)
    same(fb.load(path, "GRU", batch_first=False), net)
    for change in ({"kind": "LSTM"}, {"batch_first": True}, {"prefix": "a."}, {"clip": 1}):
        with pytest.raises(ValueError, match=f"^{next(iter(change))}: .*net.* was saved with"):
            fb.load(path, **change)


def test_what_a_file_says_must_be_what_it_holds(tmp_path):
    about = {"format": FORMAT, "kind": "GRU", **fb.GRU(4, 5).options()}
    for change in ({"hidden_size": 10**7}, {"num_layers": 10**9}, {"bias": False}, {"more": 1}):
        text = np.array(json.dumps({**about, **change}))
        np.savez(tmp_path / "net.npz", **fb.GRU(4, 5).state_dict(), fastbptt=text)
        with pytest.raises(ValueError, match=r"net\.npz: not a saved net \(expected the arrays of"):
            fb.load(tmp_path / "net.npz")


def test_faults_of_plain_files_keep_their_kind(tmp_path):
    arrays = fb.GRU(4, 5).state_dict()
    halves = {name: y.astype(np.float16) for name, y in arrays.items()}
    np.savez(tmp_path / "halves.npz", **halves)
    with pytest.raises(TypeError, match=r"halves\.npz: .*bias_hh_l0: expected float32, got"):
        fb.load(tmp_path / "halves.npz")
    np.savez(tmp_path / "plain.npz", **arrays)
    with pytest.raises(TypeError, match=r"plain\.npz.*'clip'"):
        fb.load(tmp_path / "plain.npz", clip=1)
    np.savez(tmp_path / "projected.npz", **arrays, weight_hr_l0=np.zeros((2, 5), np.float32))
    with pytest.raises(NotImplementedError, match=r"projected\.npz: .*proj_size"):
        fb.load(tmp_path / "projected.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_raises_value_error_if_anything(tmp_path, save):
    """Of every second byte: zlib's and zipfile's own errors must not come through."""
    path, refused = tmp_path / "net.npz", 0
    save(path, **fb.GRU(1, 2, rng=0).state_dict())
    whole = path.read_bytes()
    for at in range(0, len(whole), 2):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            fb.load(path)
        except ValueError as error:
            refused += "net.npz" in str(error)
    assert refused > len(whole) / 4


def test_damage_to_a_saved_net_makes_no_other_net(tmp_path):
    path, net = tmp_path / "net.npz", fb.GRU(1, 2, reset_after=False, rng=0)
    net.save(path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with contextlib.suppress(ValueError):
            same(fb.load(path), net)


def test_state_dicts_with_odd_keys():
    arrays = fb.GRU(4, 5).state_dict()
    with pytest.raises(ValueError, match="state_dict: 3 is unexpected"):
        fb.from_state_dict({**arrays, 3: np.zeros(3)})
    with pytest.raises(ValueError, match="weight_ih_l999999999 is unexpected: layers below it"):
        fb.from_state_dict({**arrays, "weight_ih_l999999999": np.zeros((15, 5))})
    with pytest.raises(
        TypeError,
        match=r"weight_ih_l0: expected a dense .* float32 or float64, got torch.bfloat16",
    ):
        fb.from_state_dict(
            {f"a.{name}": torch.tensor(y).bfloat16() for name, y in arrays.items()}, prefix="a."
        )
    del arrays["weight_ih_l0"], arrays["bias_hh_l0"]
    with pytest.raises(ValueError, match="weight_ih_l0 is missing; bias_hh_l0 is missing"):
        fb.from_state_dict(arrays)
