"""Charts: inline SVG for pages, drawn by the templates, and matplotlib figures for files (extra `report`)."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from face2scene.common.files import atomic_write
from face2scene.common.optional import import_optional
from face2scene.common.pages import fragment

BLUE, ORANGE, GREY, PALE = "#2166ac", "#e08214", "#8a919c", "#9ecae1"  # distinguishable with colour blindness
_BINS = 40
_GRID = "#e4e6ea"


def matrix_svg(matrix: Sequence[Sequence[float]], labels: Sequence[str]) -> Markup:
    """A cosine matrix: orange alike, white unrelated, blue opposite; distinguishable with colour blindness."""
    return fragment("charts.html.j2", "matrix", matrix, labels, _diverging)


def _diverging(value: float) -> str:
    end = (179, 88, 6) if value > 0 else (33, 102, 172)  # ColorBrewer's
    share = min(1.0, abs(value)) ** 0.9
    return "#" + "".join(f"{round(247 + (part - 247) * share):02x}" for part in end)


def curve_svg(key: str, curve: Sequence[tuple[float, float]]) -> Markup:
    """A curve of (step, value) with its moving average, as a figure titled `key`."""
    steps, values = zip(*curve, strict=True)
    reach = max(1, len(values) // 25) if len(values) > 8 else 0  # a few values, as of a validation, are not averaged
    averages = [statistics.fmean(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]
    return fragment("charts.html.j2", "curve", key, steps, values, averages)


def curves_svg(title: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> Markup:
    """Several curves of (step, value) on one axis; their names stand beside it in the order of where they end."""
    ends = sorted(((curve[-1][1], name) for name, curve in curves.items()), reverse=True)
    names = {name: 18 + 200 * place / len(ends) for place, (_, name) in enumerate(ends)}
    return fragment("charts.html.j2", "curves", title, curves, names)


def spread_svg(title: str, values: Mapping[str, Sequence[float]]) -> Markup:
    """Each row's values as a box (median and quartiles) with a line from the 5th to the 95th percentile."""
    spans = {name: np.percentile(row, (5, 25, 50, 75, 95)).tolist() for name, row in values.items()}
    return fragment("charts.html.j2", "spread", title, spans)


class Histogram:
    """Range and histogram of one measure, for values that are read twice: `add` every one, then `count` every one."""

    def __init__(self) -> None:
        self.low, self.high, self.total = math.inf, -math.inf, 0
        self.bins = [0] * _BINS

    def add(self, value: float) -> None:
        self.low, self.high, self.total = min(self.low, value), max(self.high, value), self.total + 1

    def count(self, value: float) -> None:
        """Count a value, after all were added."""
        width = (self.high - self.low) or 1.0
        self.bins[min(int((value - self.low) / width * _BINS), _BINS - 1)] += 1

    def svg(self, name: str, cuts: Iterable[float | None]) -> Markup:
        """The histogram, with red lines at the thresholds `cuts`."""
        return fragment("charts.html.j2", "histogram", name, self, [cut for cut in cuts if cut is not None])


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure of a size in inches; raises ModuleNotFoundError naming the extra."""
    return import_optional("matplotlib.figure", "report", why="Figures").Figure(
        figsize=(width, height), layout="constrained"
    )


def save_figure(figure: Any, stem: Path) -> list[Path]:
    """Write `stem`.png and `stem`.svg."""
    made = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    for path in made:
        with atomic_write(path) as partial:
            figure.savefig(partial, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)
    return made


def small_plots(
    labels: Sequence[str], plots: Mapping[str, Sequence[float]], chosen: str | None, axis: str, columns: int
) -> Any:
    """A figure with a small plot for each title in `plots`, over labels that may be numbers; the chosen in orange."""
    lines = math.ceil(len(plots) / columns)
    figure = new_figure(2.5 * columns, 2.1 * lines)
    try:
        places, style = [float(label) for label in labels], "-o"
    except ValueError:
        places, style = list(range(len(labels))), "o"
    grid = figure.subplots(lines, columns, squeeze=False).flat
    for axes in grid[len(plots) :]:
        axes.set_visible(False)
    for number, (axes, (title, values)) in enumerate(zip(grid, plots.items(), strict=False)):
        axes.plot(places, values, style, color=BLUE, markersize=3.5, linewidth=1.2)
        if chosen in labels:
            at = labels.index(chosen)
            axes.plot(places[at], values[at], "o", color=ORANGE, markersize=7)
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.yaxis.get_major_formatter().set_useOffset(False)  # it would be written over the title
        axes.grid(color=_GRID, linewidth=0.6)
        axes.margins(0.1, 0.15)
        if style == "o":
            axes.set_xticks(places, labels, rotation=25, ha="right")
        elif len(places) <= 4:
            axes.set_xticks(places, labels)
        if number + columns >= len(plots):
            axes.set_xlabel(axis, fontsize=8)
    return figure
