"""Weights trained elsewhere: state dicts and files."""

import concurrent.futures
import contextlib
import json
import os

import ml_dtypes
import numpy as np
import pytest
import torch
from nets import same
from numpy.testing import assert_allclose
from strategies import KINDS

import fastbptt as fb
from fastbptt.network import FORMAT
from fastbptt.networks import NETWORKS


def net_of(kind, options, dtype=np.float32, **keywords):
    return getattr(fb, kind)(4, 5, dtype=dtype, rng=0, **options, **keywords)


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


def test_arrays_of_no_numbers_say_no_size():
    """Three of them, of nets of 10^9 units, against one W_hh of 5."""
    arrays = fb.LSTM(3, 5, bias=False, rng=0).state_dict()
    empty = np.empty((4 * 10**9, 0), np.float32)
    with pytest.raises(
        ValueError, match=r"weight_ih_l0 has shape \(4000000000, 0\), expected \(20,"
    ):
        fb.from_state_dict(arrays | {f"weight_ih_l{i}": empty for i in range(3)}, "LSTM")
