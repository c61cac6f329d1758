"""The tables of all that is neither forward nor train over many steps."""

import statistics

from columns import (
    COLUMNS,
    against,
    binding,
    compared,
    measured,
    micro,
    rival,
    shape,
    shares,
    table,
    verdict,
)
from results import Info, best, ratio, ratio_at_limit, ratios, share_of_limit, stream_bar


def roofline(limits: dict[int, Info]) -> str:
    rows = [
        [
            str(threads),
            *(f"{info['gflops'][dtype]:.0f}" for dtype in ("float32", "float64")),
            f"{info['sgemm']:.0f}",
            f"{info['gcurves']['float32']:.1f}",
            *(f"{value:.0f}" for value in info["gbytes"].values()),
        ]
        for threads, info in sorted(limits.items())
    ]
    head = ["threads", "FMA float32, GFLOP/s", "float64", "NumPy's sgemm"]
    head += ["our sigmoid and tanh, 10⁹/s", "L1, GB/s", "L2", "L3", "memory"]
    return f"The machine's limits:\n\n{table(head, rows)}"


def streams(infos: list[Info]) -> str:
    rows = []
    for info in infos:
        met = stream_bar(info)
        times = [
            against(info, library) for library in ("jax QR each 40", "numpy", "lyapax", "lyapynov")
        ]
        jax = best(info, "jax (")
        rows.append(
            [
                f"{info['H']}, {info['k']}",
                *measured(info),
                *times,
                f"{ratio_at_limit(info, 'jax ('):.2f}" if jax else "–",
                f"{1 / statistics.median(ratios(info, 'forward')):.2f}",
                binding(info, met),
                f"{info['errors']['fastbptt']:.0e}",
                verdict(met),
            ]
        )
    head = [
        "H, k",
        *COLUMNS,
        "jax, QR each 40",
        "numpy",
        "lyapax",
        "lyapynov",
        "jax, at the limit",
        "÷ forward",
    ]
    head += ["limited by", "error", "bar"]
    return (
        f"`JacobianStream`, B = 1, one thread:\n\n{table(head, rows)}\n\nThe bar: k = 8: 3 x jax "
        "at H = 64, 1.5 x and 70 % of the FMA peak at H = 256; k = 1: 1.15 x the time of the "
        "forward pass alone at H = 256. At the limit: what the ratio to jax would be if a step "
        "were its multiply-adds at the FMA peak, or W_hh from its cache, and its tanhs at our own "
        "rate alone. jax, torch, numpy and lyapax with a QR every eighth step, lyapynov at each; "
        "jax also with one every fortieth; here how the tangents grow says when."
    )


def calls(infos: list[Info]) -> str:
    rows, others = [], ("onnxruntime", "numpy", "numba")
    for info in infos:
        rows.append(
            [
                info["task"],
                info["cell"],
                str(info["T"]),
                micro([info["T"] * each for each in info["seconds"]["fastbptt"]]),
                *rival(info, info["T"]),
                *(against(info, name) for name in ("torch", "jax (", *others)),
                f"{share_of_limit(info):.0%}",
                shares(info),
            ]
        )
    head = ["task", "cell", "T", "µs a call", "best peer (threads): µs a call", "ratio (min–max)"]
    head += ["torch", "jax", *others, "of limit", "our time goes to"]
    B, I, H = (infos[0][name] for name in "BIH")
    return (
        f"Calls of few steps, B = {B}, I = {I}, H = {H}, one thread, from a state of zeros; in "
        f"train only ours gets new weights at each call:\n\n{table(head, rows)}\n\n"
        "`new weights`: by so much a call is shorter that has the last one's; `call`: what no "
        "limit explains, above all Python - checks, and the order of kernels - which loops under "
        "`@njit` do not have."
    )


def bridges(infos: list[Info]) -> str:
    rows = []
    for info in infos:
        spread, plain = ratios(info, best(info)), info["cell"] != "lstm"
        rows.append(
            [
                info["cell"],
                micro(info["seconds"]["fastbptt"]),
                f"{best(info)}: {micro(info['seconds'][best(info)])}",
                f"{ratio(info):.1f} ({min(spread):.1f}–{max(spread):.1f})",
                f"{share_of_limit(info):.0%}",
                shares(info),
                verdict(ratio(info) >= 10) if plain else verdict(None),
            ]
        )
    head = ["layer", "µs/step", "torch.nn (threads): µs/step", "ratio (min–max)"]
    head += ["of limit", "our time goes to", "bar"]
    return (
        "Forward and backward through `fastbptt.bridges.torch` inside torch's autograd, T = 1000, "
        f"B = 1, H = 64:\n\n{table(head, rows)}\n\nThe bar: 10 for RNN and GRU. `layer`: the same "
        "by fastbptt's own functions, without torch; the limit is the layer's."
    )


def steps(infos: list[Info]) -> str:
    rows = []
    for info in infos:
        spread, whole = ratios(info, best(info)), 1e3 * info["T"]
        ours, theirs = (
            f"{whole * statistics.median(info['seconds'][name]):.3g}"
            for name in ("fastbptt", best(info))
        )
        rows.append(
            [
                shape(info),
                info["cell"],
                str(info["threads"]),
                ours,
                f"{best(info)}: {theirs}",
                f"{ratio(info):.2f} ({min(spread):.2f}–{max(spread):.2f})",
                f"{share_of_limit(info):.0%}",
                shares(info),
            ]
        )
    head = ["T, B, I, H", "layer", "threads", "ms", "torch.nn (threads): ms", "ratio (min–max)"]
    head += ["of limit", "our time goes to"]
    return (
        "A whole training step of torch - the layer, a dense one, a loss, backward, Adam - with "
        f"the layer through the bridge:\n\n{table(head, rows)}\n\n`layer`: its passes and "
        "gradients by fastbptt's own functions and threads; `torch alone`: the same step with the "
        "layer's output and gradients given, which torch.nn's has to do as well; `bridge`: the "
        "rest, with what those gain from caches where they run alone, and below 0 where one took "
        "longer so. The limit is the layer's."
    )


def starts(infos: dict[str, Info]) -> str:
    rows = []
    if "import" in infos:
        both = infos["import"]["seconds"]
        values = [a / b for a, b in zip(both["fastbptt"], both["numba"], strict=True)]
        median = statistics.median(values)
        text = f"{median:.2f} ({min(values):.2f}–{max(values):.2f}) x `import numba`"
        rows.append(["`import fastbptt`", text, "1.3", verdict(median <= 1.3)])
    for cell in ("rnn", "gru", "lstm"):
        for state, bar in (("warm", 1), ("cold", 20)) if f"first call {cell}" in infos else ():
            value = statistics.median(infos[f"first call {cell}"]["seconds"][state])
            what = f"first train call, {cell}, {state} cache"
            rows.append([what, f"{value:.2g} s", f"{bar} s", verdict(value <= bar)])
    if "long" in infos:
        seconds, growth = infos["long"]["seconds"], infos["long"]["growth_bytes"]
        what = "stream of 10⁷ steps, H = 64, k = 8, one core"
        text = f"{seconds:.3g} s, peak memory + {growth / 1e6:.1f} MB"
        rows.append([what, text, "60 s, 50 MB", verdict(seconds <= 60 and growth <= 50e6)])
    rows += lengthy(infos) + lengths(infos)
    return table(["what", "measured", "bar", ""], rows)


def lengthy(infos: dict[str, Info]) -> list[list[str]]:
    """Rows of what long sequences cost."""
    rows = []
    for info in [info for task, info in infos.items() if task.startswith("checkpoints ")]:
        median, text = compared(info["seconds"], "checkpoints", "whole")
        growth = info["growth_bytes"] / 1e6
        what = (
            f"train without dL/dx, checkpoints every {info['segment']:,} steps, T = {info['T']:,}, "
            "H = 64, B = 1"
        )
        text = f"{text} x without, {growth:.0f} MB above x and d_output"
        rows.append([what, text, "1.4, 100 MB", verdict(median <= 1.4 and growth < 100)])
    if "truncated" in infos:
        info = infos["truncated"]
        _, text = compared(info["seconds"], "truncated", "whole")
        what = (
            f"truncated BPTT, windows of {info['window']:,} steps, T = {info['T']:,}, H = 64, B = 1"
        )
        growth = info["growth_bytes"] / 1e6
        text = f"{text} x the whole, {growth:.0f} MB above x and d_output"
        rows.append([what, text, "–", verdict(None)])
    for cell in ("rnn", "gru", "lstm"):
        if f"subnormal {cell}" in infos:
            info = infos[f"subnormal {cell}"]
            for name, bar in (("vanishing", "1.1"), ("saturated", "–")):
                median, text = compared(info["seconds"], name, "healthy")
                what = f"train, {cell}, T = {info['T']:,}, H = {info['size']}, {name}"
                met = verdict(median <= 1.1) if name == "vanishing" else verdict(None)
                rows.append([what, f"{text} x healthy", bar, met])
    return rows


def lengths(infos: dict[str, Info]) -> list[list[str]]:
    """Rows of forward and train over T = 10^5 to 10^7."""
    rows = []
    for task, info in infos.items():
        if " sequence " in task:
            name, growth = task.split()[0], info["growth_bytes"] / 1e6
            name = "train without dL/dx" if name == "train" else name
            long, short = (info["seconds"][which] for which in ("long", "short"))
            what = f"{name}, T = {info['T']:,}, B = 1, H = {info['size']}"
            text = f"{long * 1e6:.3g} µs/step, {long / short:.2f} x that of T = 1000"
            rows.append([what, f"{text}; memory + {growth:.0f} MB", "–", verdict(None)])
    return rows


def memory(infos: list[Info]) -> str:
    names = list(dict.fromkeys(name for info in infos for name in info["growth_bytes"]))
    rows = []
    for info in infos:
        growth = info["growth_bytes"]
        found = [f"{growth[name] / 1e6:.0f}" if name in growth else "–" for name in names]
        rows.append([", ".join(map(str, info["shape"])), info["of"], info["cell"], *found])
    return (
        "Peak memory of setting up and of a first call above the inputs, MB, all threads; where a "
        "library compiles at its first call, with that:"
        f"\n\n{table(['T, B, I, H', 'task', 'cell', *names], rows)}"
    )


def norms(infos: dict[str, Info]) -> str:
    rows = []
    windows = [infos[task] for task in sorted(infos) if task.startswith("windows")]
    for info in windows:
        peer, bar = best(info), info["bar"]
        spread = ratios(info, peer)
        ours, theirs = (micro(info["seconds"][name]) for name in ("fastbptt", peer))
        rows.append(
            [
                f"`growth_window(lag={info['lag']})`, T = {info['T']:,}, H = {info['size']}, "
                f"threads: {info['threads']}",
                f"{ours} µs/step; explicit products in {peer} {theirs}",
                f"{statistics.median(spread):.2f} ({min(spread):.2f}–{max(spread):.2f}) x faster",
                f"{info['error']:.0e}, the median",
                f"{bar or '–'}",
                verdict(statistics.median(spread) >= bar) if bar else "–",
            ]
        )
    if "log_norm" in infos:
        info = infos["log_norm"]
        spread = [1 / value for value in ratios(info, "passes")]
        ours, theirs, explicit = (
            micro(info["seconds"][name]) for name in ("fastbptt", "passes", "numpy")
        )
        rows.append(
            [
                f"`log_norm`, T = {info['T']:,}, H = {info['size']}, one thread, "
                f"{info['half_sweeps']} half-sweeps",
                f"{ours} µs/step; a forward pass and one vector back {theirs}; the explicit "
                f"product and its SVD {explicit}",
                f"{statistics.median(spread):.2f} ({min(spread):.2f}–{max(spread):.2f}) x the time "
                "of the passes",
                f"{info['error']:.0e}; its interval {info['width']:.0e}",
                "5",
                verdict(statistics.median(spread) <= 5),
            ]
        )
    notes = [f"Windows of lag {info['lag']}: {info['note']}." for info in windows]
    head = ["what", "measured", "ratio (min–max)", "off the explicit, nats", "bar", ""]
    return "\n\n".join(["Norms:", table(head, rows), *dict.fromkeys(notes)])
