"""The tables of forward and train, and what a second run says of them."""

import statistics

from columns import COLUMNS, binding, measured, shape, shares, table, verdict
from results import (
    Info,
    best,
    few_steps,
    missed_at_limit,
    ratio,
    ratio_at_limit,
    share_of_limit,
    small_size,
    sweep_bar,
    usual,
)


def sweep_rows(infos: list[Info]) -> str:
    """The table of some cases, a row each."""
    head = ["T, B, I, H", "cell", "threads", *COLUMNS, "of limit", "limited by", "error", "bar"]
    rows = []
    for info in infos:
        met = sweep_bar(info)
        dtype = "" if info["dtype"] == "float32" else f", {info['dtype']}"
        rows.append(
            [
                shape(info),
                info["kind"] + dtype,
                str(info["threads"]),
                *measured(info),
                f"{share_of_limit(info):.0%}",
                binding(info, met),
                f"{info['errors']['fastbptt']:.0e}",
                verdict(met) + (", at its limit too" if missed_at_limit(info) else ""),
            ]
        )
    return table(head, rows)


def beside(infos: list[Info]) -> str:
    """What --full measures beside the usual rows: a line for each kind, and the rows missed."""
    groups: dict[tuple[str, ...], list[Info]] = {}
    infos = [info for info in infos if best(info)]
    for info in infos:
        groups.setdefault((info["task"], info["kind"], info["dtype"]), []).append(info)
    missed = [info for info in infos if sweep_bar(info) is False]
    rows = []
    for kind, group in groups.items():
        values = [ratio(info) for info in group]
        won = sum(value >= 1 for value in values)
        at_bar = sum(sweep_bar(info) is True for info in group)
        counts = [f"{n} of {len(group)}" for n in (won, at_bar)]
        mean = statistics.geometric_mean(values)
        near = [share_of_limit(info) for info in group]
        of_limit = f"{statistics.median(near):.0%} ({min(near):.0%}–{max(near):.0%})"
        rows.append([*kind, *counts, f"{min(values):.2f}", f"{mean:.2f}", of_limit])
    head = ["task", "cell", "dtype", "fastest in", "at the bar in", "least ratio", "geometric mean"]
    head.append("of limit, median (min–max)")
    parts = ["The other nonlinearity and dtype, over the same shapes and threads:"]
    parts.append(table(head, rows))
    if missed:
        parts += ["Those below their bar:", sweep_rows(missed)]
    return "\n\n".join(parts)


def sweeps(infos: list[Info]) -> str:
    parts = []
    for task in dict.fromkeys(info["task"] for info in infos):
        some = [info for info in infos if info["task"] == task]
        met = sum(sweep_bar(info) is True for info in some)
        said = f"{task.capitalize()}, {met} of {len(some)} rows at their bar"
        if beyond := sum(missed_at_limit(info) for info in some):
            said += f"; {beyond} of the others would miss it at the limit too"
        parts.append(f"{said}:")
        parts.append(sweep_rows(some))
    rivalled = [info for info in infos if best(info)]
    if not rivalled:
        return "\n\n".join(parts)
    mean = statistics.geometric_mean(ratio(info) for info in rivalled)
    most = statistics.geometric_mean(ratio_at_limit(info, curves=False) for info in rivalled)
    parts.append(
        f"Geometric mean of these rows' ratios: {mean:.2f}, the bar: 3; with every row at "
        f"its limit without curves: {most:.2f}. The limit of a row: the FMA peak, or where that "
        "takes longer, reading W_hh once a step from its cache; and the sigmoids and tanhs, the "
        "curves; each measured in turn with the row. Limited by: the largest of these and its "
        "share of our time; where the bar is missed, all that the time goes to - `call`: a call "
        "of one step, divided by T; `rest`: operations of a step that wait for one another, and "
        "what no limit explains; and what the ratio would be at the limit, curves at our own rate "
        "among it, where some would miss their bar too. "
        "The bar: 1.5, or 85 % of peak or of the limit without curves, whose rate is our own "
        "code's, and never slower; for B = 1, H ≤ 64, RNN and GRU train also 3 x jax and 30 x "
        "torch."
    )
    return "\n\n".join(parts)


def sized(infos: list[Info]) -> str:
    """Of the sizes of the pictures those where another library is faster."""
    infos = [info for info in infos if best(info)]
    if not infos:
        return "No other library was there to compare the sizes of the pictures with."
    lost = [info for info in infos if ratio(info) < 1]
    said = f"Of the {len(infos)} sizes of the pictures, fastbptt is fastest in "
    if not lost:
        return said + "all."
    head = ["T, B, I, H", "cell", *COLUMNS, "our time goes to"]
    rows = [[shape(info), info["kind"], *measured(info), shares(info)] for info in lost]
    return f"{said}{len(infos) - len(lost)}; the others:\n\n{table(head, rows)}"


def winners(infos: list[Info]) -> dict[str, tuple[str, float]]:
    """{row: (the fastest library, the ratio)}."""
    found = {}
    for info in infos:
        if not isinstance(info.get("seconds"), dict) or not best(info):
            continue
        if "lag" in info:
            row = f"windows of lag {info['lag']}"
        else:
            probes = f", k = {info['k']}" if info["k"] else ""
            row = f"{info['task']}, {info['kind']}, {info['dtype']}, {shape(info)}{probes}"
        row += f", threads: {info['threads']}"
        value = ratio(info)
        found[row] = "fastbptt" if value >= 1 else best(info).split(" (")[0], value
    return found


def counted(infos: list[Info]) -> str:
    """How many rows of each task are at their bar."""
    counts = []
    for task in ("forward", "train"):
        some = [info for info in infos if info["task"] == task and usual(info)]
        some = [info for info in some if not (few_steps(info) or small_size(info))]
        if some:
            met = sum(sweep_bar(info) is True for info in some)
            counts.append(f"{met} of {len(some)} rows of {task}")
    return " and ".join(counts)


def agreement(infos: list[Info], again: list[Info]) -> str:
    """How many rows of two runs have the same winner, those that have not, and the second's bars.

    On a shared machine a row near its bar meets it in one run and not in the next.
    """
    first, second = winners(infos), winners(again)
    both = [row for row in first if row in second]
    rows = [
        [row, *(f"{found[row][0]}, {found[row][1]:.2f}" for found in (first, second))]
        for row in both
        if first[row][0] != second[row][0]
    ]
    won = sum(first[row][0] == "fastbptt" for row in both)
    said = (
        f"A second run agrees on who is fastest in {len(both) - len(rows)} of {len(both)} rows; "
        f"the first has fastbptt ahead in {won}."
    )
    if left := len(first) - len(both):
        said += f" {left} more rows were measured once."
    if counts := counted(again):
        said = f"In a second run {counts} are at their bar.\n\n{said}"
    if not rows:
        return said
    head = ["row", "fastest, ratio", "in the second run"]
    return f"{said} The others:\n\n{table(head, rows)}"
