"""The command line: what it prints, its exit codes, and one line for every mistake."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import fastbptt as fb
from fastbptt.cli import main

PROGRAM = [sys.executable, "-m", "fastbptt"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *argv):
    """(exit code, stdout, stderr)."""
    try:
        code = main(list(argv))
    except SystemExit as stop:  # argparse's own
        code = stop.code
    return code, *capsys.readouterr()


def figures(capsys, *argv):
    code, out, err = run(capsys, "diagnose", "--json", *argv)
    assert code == 0, err
    return json.loads(out)


def test_defaults_in_a_process_of_its_own():
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(fb.__file__).parent.parent)}
    result = subprocess.run(
        [*PROGRAM, "diagnose"], capture_output=True, text=True, env=environment, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert "100,000" in result.stdout
    assert "vanishes" in result.stdout.splitlines()[-1]
    assert "language reference" in result.stderr
    assert "\r" not in result.stderr  # no bar where there is no terminal


def test_options_reach_the_net(capsys):
    d = figures(
        capsys, "--hidden", "24", "--nonlinearity", "sigmoid", "--gain", "2", "--steps", "900",
        "--probes", "3", "--delta", "0.01", "--dtype", "float64", "--seed", "5",
    )  # fmt: skip
    assert d["net"].startswith("RNN(")
    assert "24, nonlinearity='sigmoid'" in d["net"]
    assert "float64" in d["net"]
    assert d["stream"]["steps"] == 900
    assert d["stream"]["delta"] == 0.01
    assert len(d["stream"]["exponents"][0]) == 3
    assert np.exp(d["classical_rate"]) == pytest.approx(0.25 * 2)
    again = figures(
        capsys, "--hidden", "24", "--nonlinearity", "sigmoid", "--gain", "2", "--steps", "900",
        "--probes", "3", "--delta", "0.01", "--dtype", "float64", "--seed", "5",
    )  # fmt: skip
    assert again["stream"] == d["stream"]


def test_a_net_of_large_gain_explodes(capsys):
    code, out, _ = run(capsys, "diagnose", "--gain", "4", "--steps", "3000", "--hidden", "64")
    assert code == 0
    assert "explodes" in out


def test_inputs_of_every_kind(capsys, folder):
    rng = np.random.default_rng(0)
    np.save(folder / "x.npy", rng.normal(size=(300, 4)))
    (folder / "x.txt").write_text("to be or not to be, that is the question. " * 5)
    import wave

    with wave.open("x.wav", "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(rng.integers(-9999, 9999, 500).astype("<i2").tobytes())
    for name, steps, features in (("x.npy", 300, 4), ("x.txt", 210, 15), ("x.wav", 500, 1)):
        d = figures(capsys, "--input", name, "--hidden", "8")
        assert d["stream"]["steps"] == steps
        assert f"RNN({features}, 8" in d["net"]
    assert figures(capsys, "--input", "x.npy", "--steps", "100")["stream"]["steps"] == 100
    assert figures(capsys, "--input", "x.txt", "--steps", "1000")["stream"]["steps"] == 1000


def test_weights_of_a_trained_net(capsys, folder):
    net = fb.RNN(4, 6, dtype=np.float64, rng=0)
    np.savez(folder / "w.npz", **net.state_dict())
    x = np.random.default_rng(0).normal(size=(200, 4))
    np.save(folder / "x.npy", x)
    d = figures(capsys, "--weights", "w.npz", "--input", "x.npy")
    wanted = fb.diagnose(net, x)
    assert d["stream"]["lower"] == wanted.stream.lower.tolist()
    single = figures(capsys, "--weights", "w.npz", "--input", "x.npy", "--dtype", "float32")
    assert "float32" in single["net"]


@pytest.mark.parametrize("command", ["diagnose", "norms"])
def test_a_saved_net_that_is_batch_first(capsys, folder, command):
    rng = np.random.default_rng(0)
    np.save("x.npy", rng.normal(size=(60, 4)))
    found = []
    for batch_first in (False, True):
        net = fb.GRU(4, 6, 2, reset_after=False, batch_first=batch_first, rng=0)
        net.save("w.npz")
        code, out, err = run(capsys, command, "--json", "--weights", "w.npz", "--input", "x.npy")
        assert code == 0, err
        found.append({n: y for n, y in json.loads(out).items() if n != "steps_per_second"})
    assert "reset_after=False" in json.dumps(found[0])
    assert found[0] == found[1]


def test_weights_of_a_part_of_a_model(capsys, folder):
    state = {f"rnn.{name}": y for name, y in fb.GRU(4, 6, rng=0).state_dict().items()}
    np.savez("model.npz", **state, **{"head.weight": np.zeros((2, 6))})
    np.save("x.npy", np.random.default_rng(0).normal(size=(50, 4)))
    given = "--weights", "model.npz", "--input", "x.npy", "--cell", "GRU"
    found = figures(capsys, *given, "--prefix", "rnn.")
    assert found["net"].startswith("GRU(4, 6")
    code, _, err = run(capsys, "diagnose", *given)
    assert (code, "weight_hh_l0 is missing" in err) == (2, True)


def test_norms_of_a_net_and_of_given_jacobians(capsys, folder):
    J = np.random.default_rng(0).normal(size=(40, 5, 5))
    np.save("J.npy", J)
    code, out, _ = run(capsys, "norms", "--jacobians", "J.npy", "--plot", "J.png")
    assert code == 0
    assert (folder / "J.png").read_bytes().startswith(b"\x89PNG")
    exact = np.log(np.linalg.norm(np.linalg.multi_dot(J[::-1]), 2))
    assert f"log ||P|| = {exact:.6g} nats" in out
    assert "Lyapunov exponents" in out
    table = out
    code, out, _ = run(capsys, "norms", "--jacobians", "J.npy", "--json")
    found = json.loads(out)
    assert abs(found["norm"]["estimate"] - exact) < 1e-9
    assert [row["lag"] for row in found["windows"]] == [1, 2, 4, 8, 16, 32]
    assert all(row["largest_textbook"] > row["max"] - 1e-9 for row in found["windows"])
    for row in found["windows"]:
        own = fb.growth_map(fb.MatrixChain(J), [row["lag"]])
        assert row["smallest_lower"] <= own.estimate[0, row["lag"] :].min() + 1e-9
        assert row["largest_upper"] >= own.estimate[0, row["lag"] :].max() - 1e-9
        assert f"{row['smallest_lower']:.4g} " in table
        assert f"{row['largest_upper']:.4g} " in table
        # of windows solved one by one, or of two passes, whose upper is no bound
        assert (row["delta"], row["worst_error"] == "nan") in ((1e-6, True), ("nan", False))
    code, out, _ = run(
        capsys, "norms", "--cell", "lstm", "--hidden", "6", "--steps", "200", "--json"
    )
    assert code == 0
    found = json.loads(out)
    assert (found["steps"], found["size"]) == (200, 12)
    last = found["windows"][-1]
    assert (last["delta"], last["worst_error"] >= 0) == ("nan", True)
    assert found["norm"]["lower"] <= found["norm"]["upper"] < 0
    assert found["bounds"]["steps"] > found["norm"]["upper"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--jacobians missing.npy", "--jacobians missing.npy: No such file"),
        ("--jacobians flat.npy", "expected shape (T, N, N), square matrices, got (3, 4)"),
        ("--jacobians words.npy", "real numbers"),
        ("--jacobians flat.npy --plot a.word", "--plot a.word"),
        ("--jacobians junk.npy", "--jacobians junk.npy: the magic string is not correct"),
        ("--jacobians J.npy --weights w.npz", "--jacobians: expected without --weights, which"),
        ("--jacobians J.npy --dtype float16", "--jacobians: expected without --dtype"),
        ("--jacobians J.npy --steps 9 --gain 2", "--jacobians: expected without --gain, --steps"),
        ("--jacobians J.npy --hidden 8 --cell gru", "expected without --cell, --hidden"),
        ("--jacobians J.npy --nonlinearity tanh", "expected without --nonlinearity"),
        ("--jacobians J.npy --layers 1 --input x.txt", "expected without --input, --layers"),
        ("--weights both.npz", "--weights both.npz: expected a net of one direction, got GRU("),
        ("--steps 0", "--steps: expected at least 2"),
        ("--probes 0 --steps 9", "--probes"),
        ("--delta 2 --steps 9", "--delta"),
        ("--seed -1 --steps 9", "--seed: expected at least 0"),
        ("--input nan.npy", "--input nan.npy: expected finite numbers, got nan at step 2"),
        ("--jacobians nan.npy", "--jacobians nan.npy: expected shape (T, N, N)"),
        ("--jacobians inf.npy", "--jacobians inf.npy: expected finite numbers, got -inf at step 1"),
        ("--jacobians archive.npy", "--jacobians archive.npy: "),
        ("--nonlinearity relu --gain 1e9 --steps 9", "state is no longer finite from step 5 on"),
    ],
)
def test_a_mistake_with_norms_is_one_line(capsys, folder, argv, message):
    np.save("flat.npy", np.zeros((3, 4)))
    np.save("words.npy", np.array(["a"]))
    np.save("J.npy", np.zeros((3, 2, 2)))
    (folder / "junk.npy").write_bytes(b"junk" * 9)
    (folder / "archive.npy").write_bytes(b"PK\3\4 and no more")
    np.save("nan.npy", np.where(np.arange(9) == 2, np.nan, np.zeros((4, 9))).T)
    np.save("inf.npy", np.where(np.arange(3) == 1, -np.inf, np.zeros((2, 2, 3))).T)
    fb.GRU(4, 6, bidirectional=True).save("both.npz")
    code, out, err = run(capsys, "norms", *argv.split())
    assert (code, out) == (2, "")
    errors = [line for line in err.splitlines() if not line.startswith("reading")]
    assert len(errors) == 1
    assert message in errors[0]


def test_a_picture_is_written_whole(capsys, folder):
    code, _, err = run(capsys, "diagnose", "--steps", "500", "--hidden", "8", "--plot", "a.png")
    assert code == 0
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "wrote a.png" in err
    assert [p.name for p in folder.iterdir()] == ["a.png"]


def test_a_picture_that_cannot_be_put_in_place_leaves_nothing(capsys, folder, monkeypatch):
    def fail(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastbptt.cli.os.replace", fail)
    code, out, err = run(capsys, "diagnose", "--steps", "50", "--hidden", "8", "--plot", "a.png")
    assert code == 2
    assert out == ""
    assert "No space left on device" in err
    assert list(folder.iterdir()) == []


def test_info(capsys):
    code, out, _ = run(capsys, "info")
    assert code == 0
    for word in ("fastbptt", "numba", "numpy", "processor", "lanes", "threads", "cache"):
        assert word in out
    assert fb.__version__ in out


def test_warmup(capsys):
    assert run(capsys, "warmup")[0] == 0


def bad_files(folder):
    np.savez(folder / "pickled.npz", weight_hh_l0=np.array([{}], dtype=object))
    np.savez(folder / "foreign.npz", x=np.zeros(3))
    good = fb.RNN(4, 6).state_dict()
    np.savez(folder / "transposed.npz", **{**good, "weight_ih_l0": good["weight_ih_l0"].T})
    np.savez(folder / "half.npz", **{n: y.astype(np.float16) for n, y in good.items()})
    np.savez(folder / "good.npz", **good)
    for name, value in (("nan", np.nan), ("inf", -np.inf)):
        np.savez(folder / f"{name}.npz", **{**good, "bias_hh_l0": np.full(6, value, "f4")})
    fb.RNN(4, 6, bidirectional=True).save(folder / "both.npz")
    fb.GRU(4, 6).save(folder / "gru.npz")
    (folder / "junk.npy").write_bytes(b"junk" * 9)
    (folder / "cut.npz").write_bytes((folder / "good.npz").read_bytes()[:150])
    (folder / "words.npz").write_text("words")
    np.save(folder / "one.npy", np.zeros(3))
    np.save(folder / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(folder / "complex.npy", np.zeros((5, 2), complex))
    np.save(folder / "nan.npy", np.full((9, 2), np.nan))
    np.save(folder / "fine.npy", np.zeros((9, 4)))
    np.save(folder / "huge.npy", np.full((9, 4), 1e300))
    fine = (folder / "fine.npy").read_bytes()
    (folder / "cut.npy").write_bytes(fine[:100])
    (folder / "header.npy").write_bytes(fine.replace(b"(9, 4)", b"(9, 4 ", 1))
    (folder / "archive.npy").write_bytes(b"PK\3\4 and no more")
    (folder / "empty.wav").write_bytes(b"")
    projected = {"weight_ih_l0": np.zeros((24, 4)), "weight_hh_l0": np.zeros((24, 3))}
    np.savez(folder / "projected.npz", **projected, weight_hr_l0=np.zeros((3, 6)))
    np.savez(folder / "strings.npz", **{n: y.astype(str) for n, y in good.items()})
    np.savez(folder / "complex.npz", **{n: y.astype(complex) for n, y in good.items()})
    (folder / "words.wav").write_text("words")
    (folder / "empty.txt").write_text("")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "folder").mkdir()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--input missing.txt", "missing.txt: No such file"),
        ("--input folder", "folder: Is a directory"),
        ("--input empty.txt", "empty.txt: the text is empty"),
        ("--input latin.txt", "latin.txt: 'utf-8'"),
        ("--input one.npy", "one.npy: expected shape"),
        ("--input objects.npy", "objects.npy: no array of numbers; nothing is unpickled"),
        ("--input junk.npy", "junk.npy: no array of numbers; nothing is unpickled"),
        ("--input complex.npy", "complex.npy: expected real"),
        ("--input cut.npy", "cut.npy"),
        ("--input words.wav", "words.wav"),
        ("--input empty.wav", "empty.wav: cut short"),
        ("--input header.npy", "--input header.npy: "),
        ("--input archive.npy", "--input archive.npy: "),
        ("--input huge.npy", "huge.npy: holds 1e+300, which is beyond float32; read it as float64"),
        ("--input nan.npy", "got nan at step 0, batch row 0"),
        ("--input fine.npy --steps 10", "--steps 10"),
        ("--nonlinearity gelu", "nonlinearity: expected one of tanh, relu, sigmoid"),
        ("--hidden -3", "--hidden: expected at least 1, got -3"),
        ("--hidden many", "--hidden"),
        ("--hidden 10000000", "--hidden 10000000: expected parameters of at most"),
        ("--nonlinearity relu --cell gru", "--nonlinearity relu: only an rnn has one, got gru"),
        ("--steps 1", "--steps: expected at least 2"),
        ("--steps -5", "--steps"),
        ("--probes 0", "--probes: expected at least 1, got 0"),
        ("--delta 1.5", "--delta: "),
        ("--dtype float16", "dtype"),
        ("--seed -1", "--seed: expected at least 0, got -1"),
        ("--gain -1", "--gain"),
        ("--gain nan", "--gain"),
        ("--weights missing.npz", "missing.npz: No such file"),
        ("--weights pickled.npz", "pickled.npz"),
        ("--weights nan.npz --input fine.npy", "--weights nan.npz: bias_hh_l0 holds nan"),
        ("--weights nan.npz --input fine.npy --gain 1", "--weights nan.npz: bias_hh_l0 holds nan"),
        ("--weights inf.npz --input fine.npy", "--weights inf.npz: bias_hh_l0 holds -inf"),
        ("--weights both.npz --input fine.npy", "--weights both.npz: expected a net of one direct"),
        ("--weights gru.npz --input fine.npy --nonlinearity relu", "--weights has none"),
        ("--weights foreign.npz", "weight_hh_l0 is missing"),
        ("--weights projected.npz", "--weights projected.npz: "),
        ("--weights strings.npz --dtype float32", "--weights strings.npz: "),
        ("--weights complex.npz --dtype float32", "--weights complex.npz: "),
        ("--weights gru.npz --prefix rnn.", "--prefix rnn.: a file from net.save has none"),
        ("--prefix rnn.", "--prefix rnn.: expected with --weights"),
        ("--nonlinearity relu --gain 1e9 --hidden 8", "state is no longer finite from step 5 on"),
        ("--weights cut.npz", "cut.npz"),
        ("--weights words.npz", "words.npz"),
        ("--weights one.npy", "one.npy"),
        ("--weights half.npz --input fine.npy", "float16"),
        ("--weights transposed.npz --input fine.npy", "weight_ih_l0 has shape (4, 6)"),
        ("--weights good.npz", "weight_ih_l0 has shape (6, 4)"),
        ("--weights good.npz --hidden 7 --input fine.npy", "--hidden 7"),
        ("--plot nowhere/a.png", "--plot nowhere/a.png"),
        ("--plot folder", "--plot folder"),
        ("--plot a.word", "--plot a.word"),
        ("--colour red", "--colour"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, folder, argv, message):
    bad_files(folder)
    before = sorted(p.name for p in folder.rglob("*"))
    code, out, err = run(capsys, "diagnose", "--steps", "9", *argv.split())
    assert code == 2
    assert out == ""
    assert message in err
    errors = [line for line in err.splitlines() if not line.startswith("reading")]
    assert len(errors) == 1
    assert errors[0].startswith("fastbptt: error: ")
    assert sorted(p.name for p in folder.rglob("*")) == before


def test_no_command_and_help(capsys):
    assert run(capsys)[0] == 2
    code, out, _ = run(capsys, "diagnose", "--help")
    assert code == 0
    for option in ("--input", "--nonlinearity", "--hidden", "--gain", "--weights", "--steps"):
        assert option in out


def start(*argv, **keywords):
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(fb.__file__).parent.parent)}
    return subprocess.Popen([*PROGRAM, *argv], env=environment, text=True, **keywords)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_leaves_quietly_within_a_second():
    argv = ["diagnose", "--steps", "20000000", "--hidden", "512"]
    process = start(*argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert "language reference" in process.stderr.readline()
    time.sleep(4)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert time.monotonic() - began < 1  # the promise to the user
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err


def test_a_reader_that_leaves_early_is_no_error():
    with start("info", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
