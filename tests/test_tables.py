"""The benches' tables and pictures, from a small report whose figures are worked out by hand."""

import copy
import json
import subprocess
import sys

import pytest
from reports import (
    BATCH,
    LIMITS,
    LOST,
    MICRO,
    ONE,
    SLOW,
    START,
    WON,
    case,
    given,
    rows,
    without,
)


@pytest.fixture(scope="module")
def pictures(benches):
    import pictures

    return pictures


@pytest.fixture
def text(table, results, written):
    """The tables of a run in two parts."""
    files = [written(LIMITS, WON, SLOW), written(LOST, START)]
    return table.text(results.read(files), None)


def test_a_row_that_is_won(text):
    won, _ = rows(text, "T, B, I, H")
    assert won["T, B, I, H"] == "1000, 32, 64, 64"
    assert won["cell"] == "tanh"
    assert won["µs/step"] == "8"
    assert won["GFLOP/s"] == "65.5"  # 2·32·64·128 operations in 8 µs
    assert won["best peer (threads): µs/step"] == "torch (2): 20"
    assert won["ratio (min–max)"] == "2.00 (2.00–3.00)"
    assert won["torch"] == "2"
    assert won["jax"] == "3"
    assert won["of limit"] == "78%"  # (5.24 + 1.02) / 8
    assert won["limited by"] == "arithmetic 66%"
    assert won["bar"] == "met"


def test_a_row_below_its_bar_says_where_the_time_goes(text):
    _, slow = rows(text, "T, B, I, H")
    assert slow["best peer (threads): µs/step"] == "jax (1): 0.5"
    # 16 KB of W_hh from L1: 0.164 µs; W_ih x: 0.041; 64 tanhs: 0.032; the rest of 0.4 - 0.04
    assert slow["limited by"] == (
        "W from L1 41%, rest 31%, arithmetic 10%, call 10%, curves 8%; at the limit 2.11 x"
    )
    assert slow["bar"] == "**missed**"
    assert "Forward, 1 of 2 rows at their bar:" in text


def test_curves_are_no_excuse(results):
    # 0.205 us for products, which the bar counts, 0.032 for tanhs, which it does not, 1.2 x jax
    for ours, met in ((0.235, True), (0.25, False)):
        seconds = {"fastbptt": [ours] * 3, "jax (1)": [1.2 * ours] * 3, "torch (1)": [4] * 3}
        row = case("forward", ONE, "rnn", seconds)
        assert results.share_of_limit(row) > 0.9
        assert results.sweep_bar(row) == met


@pytest.mark.parametrize(
    ("peer", "gcurves", "said"),
    [(1.3, 2, True), (1.45, 2, False), (1.3, 4, False), (0.83, 4, True)],
)
def test_a_row_that_would_miss_its_bar_at_its_limit_says_so(
    table, results, written, peer, gcurves, said
):
    # 5.24 us of products and 1.02 of tanhs, or 0.51: at the limit 84 % of the peak, or 91 %, and
    # 1.37, 1.53 or 0.95 x the peer
    seconds = {"fastbptt": [6.6] * 3, "jax (1)": [6.6 * peer] * 3, "torch (1)": [40] * 3}
    row = case("forward", BATCH, "rnn", seconds, limits=given(4 * 64**2 / 1e11, 100, gcurves))
    text = table.text(results.read([written(LIMITS, row)]), None)
    (own,) = rows(text, "T, B, I, H")
    assert own["bar"] == "**missed**" + (", at its limit too" if said else "")
    assert (
        "0 of 1 rows at their bar; 1 of the others would miss it at the limit too:" in text
    ) == said


@pytest.mark.parametrize(
    ("jax", "torch", "said"), [(1.0, 40, True), (2.2, 10, True), (2.2, 40, False)]
)
def test_a_small_net_may_miss_either_bar_of_its_own_at_its_limit(results, jax, torch, said):
    # its limit is 0.56 us: 3 x that is 1.7, 30 x 17
    seconds = {"fastbptt": [0.8] * 3, "torch (1)": [torch] * 3, "jax (1)": [jax] * 3}
    row = case("train", ONE, "rnn", seconds)
    assert results.sweep_bar(row) is False
    assert results.missed_at_limit(row) == said


def test_the_bar_of_small_nets_is_read_against_jax(results):
    import columns

    seconds = {"fastbptt": [0.8] * 3, "torch (1)": [40] * 3}
    seconds |= {"jax (1)": [2.2] * 3, "jax expert (1)": [1.4] * 3, "call": [0.1] * 3}
    row = case("train", ONE, "rnn", seconds)
    assert not results.sweep_bar(row)
    limit = 0.8 * results.share_of_limit(row)
    assert f"limit {1.4 / limit:.2f} x, {2.2 / limit:.2f} x jax" in columns.binding(row, False)


def test_a_row_that_is_lost(text):
    import sweep_tables

    (lost,) = rows(text[text.index("Train, 0 of 1 rows") :], "T, B, I, H")
    assert lost["ratio (min–max)"] == "0.80 (0.80–0.80)"
    assert lost["bar"] == "**missed**"
    assert "at the limit" in lost["limited by"]
    winners = sweep_tables.winners([WON, LOST]).values()
    found = [(library, round(value, 2)) for library, value in winners]
    assert found == [("fastbptt", 2.0), ("torch", 0.8)]


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["avx", "avx512f"], "registers of 512 bits, 2 cores"),
        (["avx"], "registers of 256 bits, 2 cores"),
        (["neon"], "(family 25, model 1), 2 cores"),
    ],
)
def test_the_processor_and_its_registers(table, results, written, flags, wanted):
    file = written(WON)
    known = json.loads(file.read_text())
    known["machine_info"]["cpu"] |= {"family": 25, "model": 1, "flags": flags}
    file.write_text(json.dumps(known))
    text = table.text(results.read([file]), None)
    assert text.startswith("Measured at commit 0123456 on Abacus (family 25, model 1), ")
    assert wanted in text.split("Linux")[0]


def test_of_limits_measured_twice_the_largest_are_the_limits(table, results, written):
    better = {"gbytes": {**LIMITS["gbytes"], "L1": 90, "L2": 60}, "sgemm": 80}
    text = table.text(results.read([written(LIMITS), written(LIMITS | better), written(WON)]), None)
    (limits,) = [row for row in rows(text, "threads") if "L1, GB/s" in row]
    assert [limits[name] for name in ("L1, GB/s", "L2", "NumPy's sgemm")] == ["100", "60", "90"]


def test_a_row_is_read_against_what_the_machine_gave_beside_it(table, results, written):
    lent = WON | {"limits": WON["limits"] | {"gflops": [120, 125, 180]}}
    text = table.text(results.read([written(LIMITS, lent)]), None)
    # 65.5 of 125 GFLOP/s, and curves for an eighth of the time
    assert [row["of limit"] for row in rows(text, "T, B, I, H")] == ["65%"]
    assert "FMA peak, by threads: 125 GFLOP/s (1)." in text


def test_a_step_has_the_arithmetic_of_those_who_take_part_in_it(results):
    near = given(0.01 * MICRO, gflops=200)
    row = SLOW | {"limits": near, "threads": 2}
    # 4096 operations of W_ih x by both threads, 8192 of W_hh h and 64 tanhs by one
    assert results.limits_of(row)["arithmetic"] == pytest.approx(0.02048 * MICRO + 0.08192 * MICRO)
    assert results.share_of_limit(row) == pytest.approx((0.1024 + 0.032) / 0.4)
    assert results.share_of_limit(row | {"sharers": 2}) == pytest.approx((0.06144 + 0.032) / 0.4)


def test_the_mean_the_machine_and_the_commands(text):
    # of 2, 1.25 and 0.8; at the limits without curves of 3.05, 2.44 and 1.38
    assert "ratios: 1.26, the bar: 3; with every row at its limit without curves: 2.18. " in text
    assert text.startswith(
        "Measured at commit 0123456 on Abacus, 2 cores, Linux, Python 3, numba 1.2, "
    )
    assert "the median over the 3 rounds of a row" in text
    assert text.count("`python -m pytest benches -k 'not slow'` (2 times)") == 1
    (start,) = rows(text, "what")
    assert start["measured"] == "1.30 (1.20–1.50) x `import numba`"
    assert start[""] == "met"


def test_of_what_was_measured_twice_all_rounds_count(table, results, written):
    slow = {"task": "import", "seconds": {"fastbptt": [0.4, 0.42], "numba": [0.2, 0.2]}}
    text = table.text(results.read([written(START), written(slow, WON)]), None)
    (start,) = rows(text, "what")  # of 1.5, 1.2, 1.3, 2.0 and 2.1
    assert start["measured"] == "1.50 (1.20–2.10) x `import numba`"
    assert start[""] == "**missed**"


def test_of_a_row_that_was_visited_twice_all_rounds_count(table, results, written):
    held_up = copy.deepcopy(WON)
    held_up["seconds"] |= {"fastbptt": [40 * MICRO, 20 * MICRO], "torch (2)": [60 * MICRO] * 2}
    for name in ("torch (1)", "jax (1)", "call"):
        held_up["seconds"][name] = held_up["seconds"][name][:2]
    held_up["limits"]["gflops"] = [50, 50]
    held_up["errors"] = {"fastbptt": 5e-7}
    files = [written(WON, SLOW), written(held_up)]
    text = table.text(results.read(files), results.read(files))
    won, _ = rows(text, "T, B, I, H")
    assert won["µs/step"] == "10"  # of 7, 8, 10, 40 and 20
    assert won["ratio (min–max)"] == "2.00 (1.50–3.00)"  # of 3, 2, 2, 1.5 and 3
    assert won["of peak"] == "105%"  # of 50, 100, 120, 50 and 50
    assert won["error"] == "5e-07"
    assert "the median over the 3 to 5 rounds" in text
    assert "`python -m pytest benches -k 'not slow'` (2 times). All" in text
    assert "is fastest in 2 of 2 rows" in text
    del held_up["seconds"]["call"]
    with pytest.raises(ValueError, match="the same libraries in both visits to a row, not call"):
        table.text(results.read([written(WON), written(held_up)]), None)


def test_what_was_no_comparison_may_be_measured_twice(table, results, written):
    long = {"task": "long", "seconds": 11.0, "growth_bytes": 1e5}
    text = table.text(results.read([written(long), written(long | {"seconds": 12.0}, WON)]), None)
    (row,) = rows(text, "what")
    assert row["measured"] == "12 s, peak memory + 0.1 MB"


def test_the_parts_of_a_run_are_of_one_state(table, written, readme, monkeypatch, capsys):
    for odd in (written(SLOW, commit="fedcba9"), written(SLOW, quick=True)):
        arguments = ["table.py", str(written(WON)), str(odd), "--readme", str(readme)]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit):
            table.main()
        assert f"{odd}: " in capsys.readouterr().err
    again = ["--again", str(written(WON, commit="fedcba9"))]
    monkeypatch.setattr(
        sys, "argv", ["table.py", str(written(WON)), *again, "--readme", str(readme)]
    )
    with pytest.raises(SystemExit):
        table.main()
    said = "--again: the commit is fedcba9, of the first run it is 0123456789"
    assert said in capsys.readouterr().err
    assert "old" in readme.read_text()


def test_windows_with_a_bar_and_without(table, results, written):
    def windows(lag, bar, ours):
        numpy = {"numpy (1)": [90 * MICRO, 120 * MICRO, 60 * MICRO], "numpy (2)": [130 * MICRO] * 3}
        seconds = {"fastbptt": [ours * MICRO] * 3} | numpy
        info = {"task": f"windows 1 {lag}", "T": 5000, "size": 128, "threads": 1, "lag": lag}
        return info | {"bar": bar, "seconds": seconds, "note": f"so many of {lag}", "error": 0.004}

    text = table.text(results.read([written(windows(100, 8, 10), windows(9, None, 180))]), None)
    short, long = sorted(rows(text, "what"), key=lambda row: row["bar"], reverse=True)
    assert short["what"] == "`growth_window(lag=9)`, T = 5,000, H = 128, threads: 1"
    assert short["ratio (min–max)"] == "0.50 (0.33–0.67) x faster"
    assert (short["bar"], short[""]) == ("–", "–")
    assert short["off the explicit, nats"] == "4e-03, the median"
    assert long["ratio (min–max)"] == "9.00 (6.00–12.00) x faster"
    assert long["measured"] == "10 µs/step; explicit products in numpy (1) 90"
    assert (long["bar"], long[""]) == ("8", "met")
    assert "Windows of lag 9: so many of 9." in text


def test_again_says_where_a_second_run_has_another_winner(table, results, written):
    turned = copy.deepcopy(LOST)
    turned["seconds"]["torch (1)"] = [6 * MICRO] * 3
    first, second = results.read([written(WON, SLOW, LOST)]), results.read([written(WON, turned)])
    text = table.text(first, second)
    assert "agrees on who is fastest in 1 of 2 rows; the first has fastbptt ahead in 1." in text
    counts = "1 of 1 rows of forward and 0 of 1 rows of train"
    assert f"In a second run {counts} are at their bar." in text
    bridge = written(SLOW | {"task": "bridge", "seconds": SLOW["seconds"] | {"layer": [0.3]}})
    assert "at their bar." not in table.text(results.read([bridge]), results.read([bridge]))
    (other,) = rows(text, "row")
    assert other["row"] == "train, lstm, float32, 1000, 1, 32, 64, threads: 1"
    assert other["fastest, ratio"] == "torch, 0.80"
    assert other["in the second run"] == "fastbptt, 1.20"
    assert "fastest in 2 of 2 rows" in table.text(first, results.read([written(SLOW, WON)]))


@pytest.fixture
def readme(table, tmp_path):
    file = tmp_path / "README.md"
    file.write_text(f"above\n{table.BEGIN}\nold\n{table.END}\nbelow\n")
    return file


def test_only_what_stands_between_the_markers_is_written(table, written, readme):
    # as its users call it
    subprocess.run([sys.executable, table.__file__, written(WON), "--readme", readme], check=True)
    new = readme.read_text()
    assert new.startswith(f"above\n{table.BEGIN}\nMeasured at commit 0123456 on Abacus")
    assert new.endswith(f"\n{table.END}\nbelow\n")
    assert "old" not in new


def test_without_a_file_the_suite_is_run_and_the_pictures_drawn(
    table, results, written, readme, monkeypatch
):
    drawn, run = [], results.read([written(WON, LOST)])
    monkeypatch.setattr(table, "measure", lambda: run)
    monkeypatch.setattr(table, "draw_all", drawn.append)
    monkeypatch.setattr(sys, "argv", ["table.py", "--readme", str(readme)])
    table.main()
    assert "Measured at commit 0123456 on Abacus" in readme.read_text()
    assert drawn == [run["infos"]]
    monkeypatch.setattr(sys, "argv", ["table.py", str(written(WON)), "--readme", str(readme)])
    table.main()
    assert len(drawn) == 1  # of files that are given `pictures.py` draws


def test_quick_times_make_no_table(table, written, readme, monkeypatch, capsys):
    file = written(WON, quick=True)
    monkeypatch.setattr(sys, "argv", ["table.py", str(file), "--readme", str(readme)])
    with pytest.raises(SystemExit):
        table.main()
    assert "--quick" in capsys.readouterr().err


def test_quick_times_make_no_picture(pictures, written, tmp_path, monkeypatch, capsys):
    file = written(WON | {"task": "sizes"}, quick=True)
    monkeypatch.setattr(sys, "argv", ["pictures.py", str(file), "--folder", str(tmp_path)])
    with pytest.raises(SystemExit):
        pictures.main()
    assert "--quick" in capsys.readouterr().err


def test_pictures(pictures, written, tmp_path, monkeypatch):
    seconds = {"fastbptt": [1, 1, 1], "torch (1)": [3, 3, 3], "numba (1)": [2, 2, 2]}
    infos = [
        case(
            "sizes",
            (100, B, 64, H),
            cell,
            {name: [H * s for s in y] for name, y in seconds.items()},
        )
        for B in (1, 32)
        for cell in ("rnn", "lstm")
        for H in (16, 64, 256)
    ]
    file = written(WON, *infos)
    monkeypatch.setattr(sys, "argv", ["pictures.py", str(file), "--folder", str(tmp_path)])
    pictures.main()
    drawn = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert set(drawn) == {"sizes_time.png", "sizes_peak.png"}
    assert all(image.startswith(b"\x89PNG") and len(image) > 10_000 for image in drawn.values())


def test_the_lines_of_a_picture(pictures):
    first = case("sizes", (100, 1, 64, 64), "rnn", {"fastbptt": [2, 2, 2], "jax (1)": [3, 5, 4]})
    second = first | {"H": 16}
    infos = [pictures.with_limit(info) for info in (first, second)]
    found = pictures.lines(infos, lambda info, seconds: seconds / MICRO)
    assert found["jax"].tolist() == [[16, 64], [4, 4]]
    assert list(found) == ["fastbptt", "jax", "limit"]
    # 16384 operations at 100 GFLOP/s, 16 KB from L1 in place of half of them, 64 tanhs
    assert found["limit"][1][1] == pytest.approx(0.082 + 0.164 + 0.032, abs=1e-3)


def test_sizes_that_are_lost(table, results, written):
    won = case("sizes", ONE, "gru", {"fastbptt": [2, 2, 2], "jax (1)": [3, 5, 4]})
    text = table.text(results.read([written(won)]), None)
    assert "Of the 1 sizes of the pictures, fastbptt is fastest in all." in text
    lost = case("sizes", BATCH, "rnn", {"fastbptt": [8, 8, 8], "torch (1)": [6, 6, 6]})
    text = table.text(results.read([written(won, lost)]), None)
    assert "Of the 2 sizes of the pictures, fastbptt is fastest in 1; the others:" in text
    (row,) = rows(text, "T, B, I, H")
    assert (row["cell"], row["ratio (min–max)"]) == ("tanh", "0.75 (0.75–0.75)")
    assert row["our time goes to"] == "arithmetic 66%, rest 22%, curves 13%"
    alone = without(won, "jax")
    assert "No other library was there" in table.text(results.read([written(alone)]), None)


def test_smaller_nets_are_none_of_the_matrix(table, results, written):
    seconds = {"fastbptt": [1] * 3, "jax (1)": [4] * 3, "torch (1)": [40] * 3}
    small = case("train", (1000, 1, 32, 16), "rnn", seconds)
    run = results.read([written(LOST, small)])
    text = table.text(run, run)
    assert "Train, 0 of 1 rows at their bar:" in text
    assert "In a second run 0 of 1 rows of train are at their bar." in text
    (row,) = rows(text[text.index("Train, smaller nets,") :], "T, B, I, H")
    assert (row["T, B, I, H"], row["bar"]) == ("1000, 1, 32, 16", "met")


def test_a_row_without_a_bar_that_is_lost_says_where_the_time_goes(table, results, written):
    lost = LOST | {"task": "stream", "k": 16, "seconds": LOST["seconds"] | {"forward": [1, 1, 1]}}
    text = table.text(results.read([written(lost)]), None)
    (row,) = rows(text, "H, k")
    assert row["bar"] == "–"
    assert "rest" in row["limited by"]
    assert "at the limit" in row["limited by"]


def test_peak_memory(table, results, written):
    train = {"task": "memory of a", "of": "train", "cell": "gru", "shape": [3, 2, 4, 5]}
    train |= {"growth_bytes": {"fastbptt": 16.4e6, "torch": 41e6}}
    forward = train | {"task": "memory of b", "of": "forward"}
    forward["growth_bytes"] = {"fastbptt": 4e6, "torch": 7e6, "onnxruntime": 9e6}
    found = rows(table.text(results.read([written(train, forward)]), None), "T, B, I, H")
    assert [list(row.values()) for row in found] == [
        ["3, 2, 4, 5", "train", "gru", "16", "41", "–"],
        ["3, 2, 4, 5", "forward", "gru", "4", "7", "9"],
    ]


def test_windows_count_in_what_a_second_run_agrees_on(table, results, written):
    windows = {"task": "windows 1 100", "threads": 1, "lag": 100, "T": 10, "size": 8, "bar": 8}
    windows |= {"note": "", "error": 0.001}
    windows["seconds"] = {"fastbptt": [1.0] * 3, "numpy (1)": [9.0] * 3}
    first = results.read([written(WON, windows, START)])
    slower = windows | {"seconds": windows["seconds"] | {"fastbptt": [10.0] * 3}}
    assert "fastest in 2 of 2 rows" in table.text(first, first)
    assert "fastest in 1 of 2 rows" in table.text(first, results.read([written(WON, slower)]))


def test_calls_of_few_steps_have_a_table_of_their_own(table, results, written):
    seconds = {"fastbptt": [2, 2.5, 2], "torch (2)": [9, 9, 9], "numpy (1)": [3, 4, 4]}
    # 48 KB of W_hh from L1, once each way: 0.98 us; other products: 0.61; curves: 0.1
    one = case("train", (10, 1, 32, 64), "gru", seconds | {"packed": [1.9, 1.9, 1.8]})
    run = results.read([written(WON, one)])
    text = table.text(run, run)
    (row,) = rows(text, "task")
    assert list(row.values()) == [
        *("train", "gru", "10", "20", "numpy (1): 40", "1.60 (1.50–2.00)"),
        *("4.5", "–", "–", "1.6", "–", "85%"),
        "W from L1 49%, arithmetic 31%, new weights 10%, call 5%, curves 5%",
    ]
    assert "Forward, 1 of 1 rows at their bar" in text
    assert "Train," not in text
    assert "In a second run 1 of 1 rows of forward are at their bar" in text
    assert "agrees on who is fastest in 2 of 2 rows" in text


def test_a_whole_training_step(table, results, written):
    shape = (100, 8, 64, 128)
    seconds = {"fastbptt": [60, 70, 90], "torch (2)": [84, 77, 90]}
    seconds |= {"layer": [42, 49, 56], "torch alone": [14, 14, 14]}
    one = case("train", shape, "lstm", seconds)
    text = table.text(
        results.read([written(one | {"task": "step", "threads": 2, "sharers": 2})]), None
    )
    (row,) = rows(text, "T, B, I, H")
    assert list(row.values()) == [
        *("100, 8, 64, 128", "lstm", "2", "7", "torch (2): 8.4", "1.10 (1.00–1.40)", "71%"),
        "layer 70%, torch alone 20%, bridge 10%",
    ]


def test_a_layer_through_the_bridge(table, results, written):
    seconds = {"fastbptt": [1, 2, 3], "torch (1)": [9, 30, 33], "layer": [0.5, 1.5, 3]}
    one = case("train", ONE, "gru", seconds) | {"task": "bridge"}
    text = table.text(results.read([written(one)]), None)
    (row,) = rows(text, "layer")
    assert list(row.values()) == [
        *("gru", "2", "torch (1): 30", "11.0 (9.0–15.0)", "85%"),
        *("layer 75%, bridge and torch 25%", "met"),
    ]


@pytest.mark.parametrize(
    ("H", "k", "jax", "share", "said"),
    [
        (64, 8, 2.5, 0.78, "**missed**"),
        (64, 8, 3.1, 0.6, "met"),
        (256, 8, 1.4, 0.78, "**missed**"),
        (256, 8, 1.6, 0.78, "met"),
        (256, 8, 1.6, 0.6, "**missed**"),
        (256, 1, 9, 0.78, "**missed**"),
        (64, 1, 9, 0.78, "–"),
        (256, 16, 0.5, 0.78, "–"),
    ],
)
def test_the_bars_of_a_stream(table, results, written, H, k, jax, share, said):
    seconds = {"fastbptt": [1] * 3, "jax (1)": [jax] * 3, "torch (1)": [9] * 3}
    seconds |= {"forward": [0.8] * 3, "numpy (1)": [20] * 3}
    stream = case("forward", (1000, 1, 32, H), "rnn", seconds, flops=1e5 * share)
    text = table.text(results.read([written(LIMITS, stream | {"task": "stream", "k": k})]), None)
    (row,) = rows(text, "H, k")
    assert row["bar"] == said
    assert ("at the limit" in row["limited by"]) == ("missed" in said or jax < 1)
    assert [row[library] for library in ("torch", "numpy", "lyapax")] == ["9", "20", "–"]
    if (H, k) == (64, 8):
        # the operations of a step take `share` of a microsecond, 64 tanhs 0.032
        assert row["jax, at the limit"] == f"{jax / (share + 0.032):.2f}"


def test_what_takes_one_number_a_line(table, results, written):
    first = {"task": "first call gru", "seconds": {"cold": [25.0], "warm": [0.4, 0.5, 0.9]}}
    windows = {"task": "truncated", "T": 10**6, "window": 1000, "growth_bytes": 4e6}
    windows["seconds"] = {"truncated": [1.2, 1.1, 1.5], "whole": [1.0, 1.0, 1.0]}
    text = table.text(results.read([written(first, windows)]), None)
    found = {row.pop("what"): list(row.values()) for row in rows(text, "what")}
    assert found == {
        "first train call, gru, warm cache": ["0.5 s", "1 s", "met"],
        "first train call, gru, cold cache": ["25 s", "20 s", "**missed**"],
        "truncated BPTT, windows of 1,000 steps, T = 1,000,000, H = 64, B = 1": [
            "1.20 (1.10–1.50) x the whole, 4 MB above x and d_output",
            "–",
            "–",
        ],
    }


def test_what_full_measures_beside_the_usual_rows(table, results, written):
    relu = SLOW | {"nonlinearity": "relu", "kind": "relu"}
    seconds = {"fastbptt": [0.5] * 3, "jax (1)": [0.625] * 3, "torch (1)": [4] * 3}
    near = case(
        "forward", ONE, "rnn", seconds
    )  # of which its limit in float64, but curves, is 0.451
    half = given(0.369 * MICRO, gflops=50, gcurves=1)  # 28 of 32 KB from L1
    double = [row | {"dtype": "float64", "limits": half} for row in (WON, near)]
    text = table.text(results.read([written(LIMITS, WON, relu, *double)]), None)
    assert len(rows(text, "T, B, I, H")) == 1
    some, both = rows(text, "task")
    assert list(some.values())[1:] == [
        *("relu", "float32", "1 of 1", "0 of 1", "1.25", "1.25", "51% (51%–51%)"),
    ]
    assert list(both.values())[1:] == [
        *("tanh", "float64", "2 of 2", "2 of 2", "1.25", "1.58", "130% (103%–157%)"),
    ]
    missed = rows(text[text.index("Those below their bar:") :], "T, B, I, H")
    assert [row["cell"] for row in missed] == ["relu"]


def test_the_bar_of_a_forward_pass_asks_for_onnxruntime_where_it_has_the_dtype(results):
    row = without(WON, "onnxruntime")
    assert results.sweep_bar(WON) is True
    assert results.sweep_bar(row) is None
    assert results.sweep_bar(row | {"dtype": "float64"}) is True


@pytest.mark.parametrize("left_out", [["jax"], ["torch"], ["jax", "torch", "onnxruntime"]])
def test_a_peer_that_is_not_installed_has_no_figure(table, results, written, left_out):
    given = [without(info, *left_out) for info in (WON, SLOW, LOST)]
    text = table.text(results.read([written(*given)]), None)
    for row in rows(text, "T, B, I, H"):
        for library in left_out[:2]:
            assert row[library] == "–"
        assert row["bar"] == "–"
        if len(left_out) > 1:
            assert (row["best peer (threads): µs/step"], row["ratio (min–max)"]) == ("–", "–")
    assert ("Geometric mean" in text) == (len(left_out) == 1)


def test_a_lost_row_that_no_bar_judges(table, results, written):
    """A small net without jax, of which its bar is read."""
    seconds = {"fastbptt": [1] * 3, "torch (1)": [40] * 3, "numba (1)": [0.5] * 3}
    for H in (16, 64):
        lost = case("train", (1000, 1, 32, H), "rnn", seconds)
        (row,) = rows(table.text(results.read([written(lost)]), None), "T, B, I, H")
        assert row["bar"] == "–"
        assert "at the limit" in row["limited by"]
        assert "jax" not in row["limited by"]


def test_pictures_of_a_part_are_not_drawn(table, capsys):
    table.draw_all([WON | {"task": "sizes"}])
    assert "no pictures: some sizes were not measured" in capsys.readouterr().err


def test_the_bar_of_small_nets_asks_for_both_peers(results):
    seconds = {"fastbptt": [1] * 3, "jax (1)": [4] * 3, "torch (1)": [40] * 3}
    row = case("train", ONE, "rnn", seconds)
    assert results.sweep_bar(row) is True
    assert results.sweep_bar(without(row, "torch")) is None
    assert results.sweep_bar(without(row, "jax")) is None


def test_a_bench_that_failed_is_named(table, results, written):
    text = table.text(results.read([written(WON, left=["test_1"]), written({})]), None)
    assert "Failed or not run, and without a row: test_1." in text
    # a part that has it, and one that has not
    again = [written(WON, left=["test_1"]), written(WON, LOST), written(WON, left=["test_1"])]
    assert results.read(again)["failed"] == []
    assert "Failed" not in table.text(results.read([written(WON)]), None)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"benchmarks": []}', None])
def test_a_file_that_is_no_report_is_named(
    table, pictures, written, readme, tmp_path, monkeypatch, capsys, content
):
    file = tmp_path / "odd.json"
    if content is not None:
        file.write_text(content)
    for program, *more in ((table, "--readme", str(readme)), (pictures, "--folder", str(tmp_path))):
        monkeypatch.setattr(sys, "argv", ["program", str(file), *more])
        with pytest.raises(SystemExit):
            program.main()
        assert "odd.json" in capsys.readouterr().err
    assert "old" in readme.read_text()


@pytest.mark.parametrize("other", [{"brand": "Slide rule"}, {"cores": 64}, {"dirty": True}])
def test_a_second_run_is_of_the_same_machine(table, written, readme, monkeypatch, capsys, other):
    first, second = written(WON), written(WON, **other)
    for arguments in ([first, second], [first, "--again", second]):
        given = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["table.py", *given, "--readme", str(readme)])
        with pytest.raises(SystemExit):
            table.main()
        assert "is" in capsys.readouterr().err
    assert "old" in readme.read_text()


def test_changed_code_is_not_its_commit(table, results, written):
    text = table.text(results.read([written(WON, dirty=True)]), None)
    assert text.startswith("Measured at commit 0123456, with changes, on Abacus")
