"""What the tables' columns say of a row."""

import statistics

from results import (
    Info,
    best,
    gflops,
    limits_of,
    ratio,
    ratio_at_limit,
    ratios,
    share_of_peak,
    small_train,
    spent,
)

COLUMNS = ["µs/step", "GFLOP/s", "of peak", "best peer (threads): µs/step", "ratio (min–max)"]
COLUMNS += ["torch", "jax"]


def micro(values: list[float]) -> str:
    return f"{statistics.median(values) * 1e6:.3g}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def verdict(met: bool | None) -> str:
    return "–" if met is None else "met" if met else "**missed**"


def shares(info: Info) -> str:
    """What our time goes to, the largest first."""
    ours = statistics.median(info["seconds"]["fastbptt"])
    return ", ".join(
        f"{name} {seconds / ours:.0%}"
        for name, seconds in sorted(spent(info).items(), key=lambda part: -part[1])
        if abs(seconds) >= 0.005 * ours
    )


def binding(info: Info, met: bool | None) -> str:
    """The limit that most of the time goes to; of a row below its bar, or lost, all of its time."""
    lost = best(info) and ratio(info) < 1
    if met is not False and not lost:
        parts = limits_of(info)
        name = max(parts, key=parts.get)
        return f"{name} {parts[name] / statistics.median(info['seconds']['fastbptt']):.0%}"
    text = shares(info)
    if not best(info):
        return text
    text = f"{text}; at the limit {ratio_at_limit(info):.2f} x"
    if small_train(info) and best(info, "jax ("):
        text += f", {ratio_at_limit(info, 'jax ('):.2f} x jax"
    return text


def against(info: Info, library: str) -> str:
    """The ratio to a library at its best, if it was measured."""
    return f"{ratio(info, library):.3g}" if best(info, library) else "–"


def rival(info: Info, steps: int = 1) -> list[str]:
    """The fastest peer with its time for so many steps, and the ratio with its spread."""
    peer = best(info)
    if not peer:
        return ["–", "–"]
    spread, seconds = ratios(info, peer), [steps * each for each in info["seconds"][peer]]
    return [
        f"{peer}: {micro(seconds)}",
        f"{ratio(info):.2f} ({min(spread):.2f}–{max(spread):.2f})",
    ]


def measured(info: Info) -> list[str]:
    """The columns that every comparison has."""
    return [
        micro(info["seconds"]["fastbptt"]),
        f"{gflops(info):.3g}",
        f"{share_of_peak(info):.0%}",
        *rival(info),
        against(info, "torch"),
        against(info, "jax ("),
    ]


def shape(info: Info) -> str:
    return f"{info['T']}, {info['B']}, {info['I']}, {info['H']}"


def compared(seconds: Info, name: str, other: str) -> tuple[float, str]:
    """The median of the ratios of the rounds, and it with its spread."""
    values = [a / b for a, b in zip(seconds[name], seconds[other], strict=True)]
    median = statistics.median(values)
    return median, f"{median:.2f} ({min(values):.2f}–{max(values):.2f})"
