"""Draw what bench_sizes.py measured: time per step, and share of the FMA peak, against H.

    python benches/pictures.py FILE...

FILE is what `python -m pytest benches --benchmark-json=FILE` wrote; several are the parts of a run.
"""

import argparse
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from results import limits_of, read, share_of_peak

FOLDER = pathlib.Path(__file__).resolve().parent / "pictures"
# Okabe and Ito's colours, which the colour-blind tell apart; each line is labelled besides.
COLOURS = {
    "fastbptt": "#D55E00",
    "torch": "#0072B2",
    "jax": "#009E73",
    "onnxruntime": "#CC79A7",
    "numba": "#56B4E9",
    "numpy": "#7F7F7F",
    "limit": "black",
}
LABELS = {"numba": "Numba, plain loops", "numpy": "NumPy", "limit": "fastbptt's limit"}
_GAP = 0.075  # between two labels, in parts of the height of a panel


def lines(infos: list[dict[str, Any]], value: Callable[..., float]) -> dict[str, Any]:
    """{library: (H, value)} over infos of one cell and B."""
    found: dict[str, list[tuple[int, float]]] = {}
    for info in sorted(infos, key=lambda info: info["H"]):
        for name, seconds in info["seconds"].items():
            point = info["H"], value(info, statistics.median(seconds))
            found.setdefault(name.split(" (")[0], []).append(point)
    return {name: np.array(points).T for name, points in found.items()}


def label(ax: Any, ends: dict[str, float]) -> None:
    """Each line's name beside its end, so far apart that they can be read."""
    heights = {
        name: float(ax.transAxes.inverted().transform(ax.transData.transform((1, end)))[1])
        for name, end in ends.items()
    }
    names = sorted(heights, key=heights.get)
    places = np.array([heights[name] for name in names])
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + _GAP)
    places -= np.mean(places - [heights[name] for name in names])
    for name, place in zip(names, places, strict=True):
        weight = "bold" if name == "fastbptt" else "normal"
        text = {"color": COLOURS[name], "weight": weight, "fontsize": 9, "va": "center"}
        ax.annotate(LABELS.get(name, name), (1.02, place), xycoords="axes fraction", **text)


def picture(
    infos: list[dict[str, Any]], title: str, value: Callable[..., float], share: bool
) -> plt.Figure:
    """A row of panels for each B, a column for each cell."""
    sizes, cells = ([*dict.fromkeys(info[name] for info in infos)] for name in ("B", "cell"))
    shape = {"figsize": (4.1 * len(cells), 3.4 * len(sizes)), "squeeze": False}
    figure, axes = plt.subplots(len(sizes), len(cells), sharex=True, sharey="row", **shape)
    for row, B in zip(axes, sizes, strict=True):
        drawn = []
        for ax, cell in zip(row, cells, strict=True):
            chosen = [info for info in infos if (info["B"], info["cell"]) == (B, cell)]
            for name, (H, y) in lines(chosen, value).items():
                thick = {"fastbptt": 2.4, "limit": 1}.get(name, 1.3)
                style = {"ls": ":"} if name == "limit" else {"marker": "o", "ms": 3}
                ax.plot(H, y, color=COLOURS[name], lw=thick, zorder=thick, **style)
            drawn.append((ax, {name: y[-1] for name, (_, y) in lines(chosen, value).items()}))
            ax.set_xscale("log", base=2)
            powers = [h for h in H if np.log2(h) % 1 == 0]
            ax.set_xticks(powers, [f"{h:.0f}" for h in powers], fontsize=8)
            ax.minorticks_off()
            ax.set_title(f"{cell.upper()}, B = {B}", fontsize=10)
            ax.grid(alpha=0.25)
            ax.spines[["top", "right"]].set_visible(False)
        if share:
            row[0].yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1))
            row[0].set_ylim(0, 1.05)
        else:
            row[0].set_yscale("log")
        for ax, ends in drawn:
            label(ax, ends)
        row[0].set_ylabel("share of the FMA peak" if share else "µs per step")
    for ax in axes[-1]:
        ax.set_xlabel("hidden size H")
    I, threads = infos[0]["I"], infos[0]["threads"]
    figure.suptitle(f"{title}; {infos[0]['dtype']}, I = {I}, threads: {threads}", fontsize=12)
    figure.tight_layout(w_pad=3)
    return figure


def with_limit(info: dict[str, Any]) -> dict[str, Any]:
    """A row with what it would take at its limit, as if that were a library."""
    return info | {"seconds": info["seconds"] | {"limit": [sum(limits_of(info).values())]}}


def draw(infos: list[dict[str, Any]], folder: pathlib.Path = FOLDER) -> None:
    """Both pictures of the rows of bench_sizes.py."""
    infos = [with_limit(info) for info in infos]

    def micro(info: dict[str, Any], seconds: float) -> float:
        return 1e6 * seconds

    def share(info: dict[str, Any], seconds: float) -> float:
        # of the library's own seconds, and of the peak measured between them
        own = statistics.median(info["seconds"]["fastbptt"])
        return share_of_peak(info) * own / seconds

    time = picture(infos, "Forward, time per step", micro, share=False)
    peak = picture(infos, "Forward, share of the peak", share, share=True)
    time.savefig(folder / "sizes_time.png", dpi=110)
    peak.savefig(folder / "sizes_peak.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=pathlib.Path, help="made by --benchmark-json")
    parser.add_argument("--folder", type=pathlib.Path, default=FOLDER)
    given = parser.parse_args()
    try:
        report = read(given.files)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    infos = [info for info in report["infos"] if info["task"] == "sizes"]
    if not infos or report["machine_info"]["quick"]:
        parser.error(f"{given.files[0]}: expected times of bench_sizes.py, not made by --quick")
    draw(infos, given.folder)


if __name__ == "__main__":
    main()
