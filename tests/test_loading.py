"""Weights trained elsewhere: state dicts, files, ONNX by onnxruntime and Keras by Keras."""

import os

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from strategies import KINDS

import fastbptt as fb

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
    arrays["weight_ih_l1"] = arrays["weight_ih_l1"].T
    arrays["weight_xx_l0"] = arrays["weight_hh_l0"]
    with pytest.raises(ValueError, match="state_dict") as raised:
        fb.from_state_dict(arrays)
    for words in (
        "bias_hh_l1 is missing",
        "weight_xx_l0 is unexpected",
        "weight_ih_l1 has shape (5, 20), expected (20, 5); is it transposed?",
    ):
        assert words in str(raised.value)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight_hr_l0": np.zeros((2, 5))}, NotImplementedError, "proj_size"),
        ({"weight_hh_l0": np.zeros((5, 20), np.float32)}, ValueError, "is it transposed"),
        ({"weight_hh_l0": np.zeros(5)}, ValueError, "weight_hh_l0 is missing or no matrix"),
        ({"weight_ih_l0": np.zeros((20, 4), np.float16)}, TypeError, "weight_ih_l0: expected"),
        ({"weight_hh_l0": np.zeros((20, 5), np.float16)}, TypeError, "float16"),
        ({"bias_ih_l0": np.zeros(20)}, TypeError, "bias_ih_l0: expected float32, got float64"),
    ],
)
def test_what_makes_no_net(change, error, message):
    arrays = fb.LSTM(4, 5).state_dict()
    with pytest.raises(error, match=message):
        fb.from_state_dict({**arrays, **change})


def test_what_is_no_mapping_or_of_another_name():
    arrays = fb.LSTM(4, 5).state_dict()
    with pytest.raises(TypeError, match="mapping: expected a mapping"):
        fb.from_state_dict([1])
    with pytest.raises(ValueError, match=r"after the prefix 'rnn\.', got bias_hh_l0, bias_ih_l0"):
        fb.from_state_dict(arrays, prefix="rnn.")
    with pytest.raises(ValueError, match="got no keys"):
        fb.from_state_dict({})
    with pytest.raises(ValueError, match="kind: expected one of RNN, GRU, LSTM, MGU"):
        fb.from_state_dict(arrays, "lstm")
    with pytest.raises(ValueError, match="state_dict: weight_ih_l0 has shape"):
        fb.from_state_dict(arrays, "GRU")


def test_broken_files(tmp_path):
    net = fb.GRU(4, 5)
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
            with pytest.raises(ValueError, match=f"net{suffix}"):
                fb.load(path)
        with pytest.raises(OSError, match="nowhere"):
            net.save(tmp_path / "nowhere" / f"net{suffix}")
    np.savez(tmp_path / "pickle.npz", weight_hh_l0=np.array([{}], object))
    with pytest.raises(ValueError, match=r"pickle\.npz: not a saved net"):
        fb.load(tmp_path / "pickle.npz")
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
    with pytest.raises(ValueError, match="expected as many of each, got 2, 1, 1"):
        fb.from_onnx([W, W2], [R], [B], kind="GRU")
    with pytest.raises(ValueError, match=r"expected \(D, GH, I\)"):
        fb.from_onnx(W, R, B[:, :15], kind="GRU")
    with pytest.raises(ValueError, match="multiple of 4 rows"):
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
    with pytest.raises(ValueError, match=r"bias: expected shape \(15,\) or \(2, 15\)"):
        fb.from_keras([kernel, recurrent, bias[:3]], kind="GRU")
    with pytest.raises(ValueError, match="multiple of 4 rows"):
        fb.from_keras([kernel, recurrent, bias], kind="LSTM")
    with pytest.raises(ValueError, match="recurrent_kernel: expected 2 dimensions"):
        fb.from_keras([kernel, bias, bias], kind="GRU")
    with pytest.raises(TypeError, match="reset_after"):
        fb.from_keras([kernel, recurrent, bias], kind="GRU", reset_after=1)
