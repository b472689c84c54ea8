"""Run by an environment with matplotlib: two pictures of a file of results, as SVG beside it."""

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

OURS, OTHERS, INK, PALE = "#0f6fde", "#b8c0cc", "#1f2933", "#e6e9ee"
STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.edgecolor": PALE,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "axes.axisbelow": True,
    "grid.color": PALE,
    "svg.hashsalt": "bench",
    "figure.facecolor": "white",
}


def main() -> None:
    """Draw `argv[1]`."""
    file = Path(sys.argv[1])
    results: dict[str, Any] = json.loads(file.read_text())
    with plt.rc_context(STYLE):  # type: ignore[arg-type, unused-ignore]  # its keys are an enumeration of its own
        picture(
            results,
            file.with_name("cpu.svg"),
            (("request_cpu_us", "CPU per request, us"), ("chunk_cpu_us", "CPU per streamed chunk, us")),
            logarithmic=True,
        )
        picture(
            results,
            file.with_name("latency.svg"),
            (
                ("latency_p50_ms", "p50 at 20 requests/s, ms"),
                ("first_chunk_p99_ms", "1,000 streams: p99 to first chunk, ms"),
            ),
            logarithmic=False,
        )


def picture(results: dict[str, Any], path: Path, panels: tuple[tuple[str, str], ...], *, logarithmic: bool) -> None:
    """Bars of a figure per panel, the gateways below each other in the same order, least first panel on top."""
    shown = [each for each in results["contenders"] if values(results, each["name"], panels[0][0])]
    if not shown:
        return
    shown.sort(key=lambda each: median(values(results, each["name"], panels[0][0])), reverse=True)
    size = (10, 0.45 * len(shown) + 1.2)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, layout="constrained")
    for axis, (name, title) in zip(axes, panels, strict=True):
        bars(axis, [(each, values(results, each["name"], name)) for each in shown], logarithmic=logarithmic)
        axis.set_title(title, loc="left", fontsize=11, fontweight="bold")
    rounds = results["rounds"]
    told = f"one core, median of {rounds} rounds; lines: least and most" if rounds > 1 else "one core, one round"
    figure.supxlabel(told, fontsize=8, color="#7b8794")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def bars(axis: Any, rows: list[tuple[dict[str, str], list[float]]], *, logarithmic: bool) -> None:
    """One bar per gateway with its median beside it, ours in colour."""
    if logarithmic:
        axis.set_xscale("log")
        axis.set_xlim(left=1)
        axis.xaxis.set_major_formatter(lambda value, _place: f"{value:,.0f}")
        axis.minorticks_off()
    most = max((max(taken) for _, taken in rows if taken), default=1.0)
    for place, (contender, taken) in enumerate(rows):
        if not taken:
            axis.annotate("not run", (0.01, place), xycoords=("axes fraction", "data"), va="center", color="#9aa5b1")
            continue
        middle, ours = median(taken), contender["name"].startswith("penstock")
        axis.barh(place, middle, color=OURS if ours else OTHERS, height=0.62)
        axis.hlines(place, min(taken), max(taken), color=INK, linewidth=1)
        text = f"{middle:,.0f}" if middle >= 100 else f"{middle:.3g}"  # noqa: PLR2004 - two digits need a comma
        weight = "bold" if ours else "normal"
        axis.annotate(text, (max(taken), place), (5, 0), textcoords="offset points", va="center", fontweight=weight)
    axis.set_xlim(right=most * (4 if logarithmic else 1.15))
    axis.set_yticks(range(len(rows)), [contender["title"] for contender, _ in rows])
    axis.tick_params(length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)


def values(results: dict[str, Any], gateway: str, name: str) -> list[float]:
    """A figure of a gateway in each round that has it."""
    samples = (sample for sample in results["samples"] if sample["gateway"] == gateway)
    return [float(sample["figures"][name]) for sample in samples if name in sample["figures"]]


if __name__ == "__main__":
    main()
