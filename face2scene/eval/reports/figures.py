"""The paper's figures with our values beside the printed ones, as PNG and SVG (matplotlib, extra `report`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from face2scene.common.charts import BLUE, GREY, ORANGE, PALE, new_figure, save_figure
from face2scene.common.choices import one_of
from face2scene.common.files import read_json
from face2scene.common.optional import import_optional
from face2scene.eval.metrics.registry import METRICS
from face2scene.eval.probe.report import draw_cosines
from face2scene.eval.sweeps.table import draw_variants
from face2scene.eval.tables.paper_tables import load_table, read_texts
from face2scene.eval.tables.render import TableRow

FIGURES = ("5", "6", "fadex", "tradeoff")
_STAGES = {"stage_1": "Stage I (face)", "stage_2": "Stage II (scene)"}
_PLANES = (("psnr", "lpips"), ("psnr", "fid"), ("lpips", "musiq"))  # distortion and perception; our choice


def draw_figure(figure: str, configs: Path, runs: Path, run: Path, sets: Mapping[str, str] | None = None) -> list[Path]:
    """Draw a figure of `FIGURES` into `run`; returns the files.

    5: time by method and stage, ours from `run`/figure_5.json if it is there. 6: metrics against the guidance scale,
    from `run`/sweep.json of scripts/sweep.py. fadex: cosines of `run`/probe.json. tradeoff: distortion against
    perception of the rows of the synthetic table, ours from `runs` where they are of the paper's set, by `sets`.

    Raises:
        ValueError: an unknown figure, or no data of ours for one that the paper does not print as numbers.
    """
    one_of("figure", figure, FIGURES)
    if figure == "5":
        times = run / "figure_5.json"
        return draw_times(read_texts(configs / "figure_5.yaml"), read_json(times) if times.is_file() else None, run)
    if figure == "6":
        sweep = _read(run / "sweep.json", "run scripts/sweep.py sweep=cfg, and name its folder")
        layout = read_texts(configs / "figure_6.yaml")
        return draw_sweep(sweep, layout["metrics"], layout["chosen"], run)
    if figure == "fadex":
        probe = _read(run / "probe.json", "measure FaDeX first (probe=fadex), and name its run")
        return draw_cosines(probe, run)
    _, (part,) = load_table(configs / "table_synthetic.yaml")
    return draw_tradeoff(part.with_ours(runs, sets), run)


def draw_times(printed: Mapping[str, Any], measured: Mapping[str, Any] | None, folder: Path) -> list[Path]:
    """Figure 5: a bar of its stages for each method; a panel of printed and one of our times, with their machines."""
    panels = [(f"printed: {printed['device']}, {printed['size']}", _bars(printed["methods"]))]
    if measured is not None:
        where = measured.get("machine", {})
        means = {
            name: {key: found[key]["mean"] for key in (*_STAGES, "total") if key in found}
            for name, found in measured["methods"].items()
        }
        panels.append((f"ours: {where.get('card', where.get('device', ''))}, {measured['protocol']}", _bars(means)))
    heights = [max(1, len(bars)) for _, bars in panels]
    figure = new_figure(7.2, 0.9 * len(panels) + 0.42 * sum(heights))
    grid = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    colours = {"restoration": GREY, **dict(zip(_STAGES.values(), (PALE, BLUE), strict=True))}
    for axes, (title, bars) in zip(grid, panels, strict=True):
        longest = max(sum(stages.values()) for stages in bars.values())
        for place, stages in enumerate(bars.values()):
            left = 0.0
            for stage, seconds in stages.items():
                axes.barh(place, seconds, left=left, color=colours[stage], height=0.62)
                left += seconds
            parts = f" ({' + '.join(map(_seconds, stages.values()))})" if len(stages) > 1 else ""
            axes.text(left + 0.01 * longest, place, f"{_seconds(left)} s{parts}", va="center", fontsize=8)
        axes.set_yticks(range(len(bars)), list(bars), fontsize=9)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.22 * longest)
        axes.set_title(title, fontsize=8.5, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="x", labelsize=8)
    grid[-1].set_xlabel("seconds for one image", fontsize=9)
    patches = import_optional("matplotlib.patches", "report", why="Figures")
    handles = [patches.Patch(color=colour, label=stage) for stage, colour in colours.items()]
    grid[0].legend(handles=handles, fontsize=8, loc="upper right", frameon=False)
    return save_figure(figure, folder / "figure_5")


def draw_sweep(sweep: Mapping[str, Any], metrics: Sequence[str], chosen: str, folder: Path) -> list[Path]:
    """Figure 6: a small plot for each measured metric, the chosen scale in orange."""
    rows = [row for row in sweep["variants"] if row["complete"]]
    values = [{**row["means"], **row["sets"]} for row in rows]
    keys = [key for key in metrics if any(key in found for found in values)]
    keys += [key for key in METRICS if key not in keys and any(key in found for found in values)]
    if not keys:
        raise ValueError(f"The sweep in {folder} has no complete variant with a metric: run scripts/sweep.py on.")
    columns = min(5, len(keys)) if len(keys) > 9 else min(3, len(keys))
    return draw_variants(rows, keys, chosen, "guidance scale", columns, folder / "figure_6")


def draw_tradeoff(rows: Sequence[TableRow], folder: Path) -> list[Path]:
    """Perception against distortion (Blau and Michaeli 2018), a point for each method; better is up and right."""
    figure = new_figure(4.3 * len(_PLANES), 4.1)
    for axes, (x, y) in zip(figure.subplots(1, len(_PLANES)), _PLANES, strict=True):
        points = [(row.values[x], row.values[y], row) for row in rows if row.ranked and {x, y} <= row.values.keys()]
        for a, b, row in points:
            mine = row.source == "ours"
            colour = ORANGE if mine else BLUE if row.name.startswith("Face2Scene") else GREY
            axes.plot([a], [b], "*" if mine else "o", color=colour, markersize=10 if mine else 6)
        for key, invert in ((x, axes.invert_xaxis), (y, axes.invert_yaxis)):
            if METRICS[key].better == "lower":
                invert()
        axes.margins(0.16, 0.12)
        axes.set_xlabel(f"{METRICS[x].title} {METRICS[x].arrow}", fontsize=9)
        axes.set_ylabel(f"{METRICS[y].title} {METRICS[y].arrow}", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(color="#e4e6ea", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        _label(axes, points)
    return save_figure(figure, folder / "figure_tradeoff")


def _label(axes: Any, points: Sequence[tuple[float, float, TableRow]]) -> None:
    """A name beside every point, moved where it would overlap another name or point."""
    axes.figure.draw_without_rendering()
    bbox = import_optional("matplotlib.transforms", "report", why="Figures").Bbox
    dots = [axes.transData.transform((a, b)) for a, b, _ in points]
    taken = [bbox.from_bounds(px - 4, py - 4, 8, 8) for px, py in dots]
    scale, frame = axes.figure.dpi / 72, axes.get_window_extent()
    for (a, b, row), (px, py) in zip(points, dots, strict=True):
        name = row.name.replace(" without degradation estimation", ", no tokens") + (", ours" * (row.source == "ours"))
        wide, high = 4.1 * scale * len(name), 9 * scale
        for dx, dy in ((6, -3), (6, 6), (6, -12), (-6, 6), (-6, -12), (6, 16), (6, -22), (-6, 16), (-6, -22), (6, 26)):
            left = px + dx * scale - (wide if dx < 0 else 0)
            box = bbox.from_bounds(left, py + dy * scale, wide, high)
            if frame.x0 < box.x0 and box.x1 < frame.x1 + 0.1 * frame.width and not box.count_overlaps(taken):
                break
        taken.append(box)
        align = "right" if dx < 0 else "left"
        axes.annotate(name, (a, b), (dx, dy), textcoords="offset points", fontsize=7, ha=align)


def _bars(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Seconds by stage, the fastest method first; a method without stages has one bar, its total."""
    bars = {}
    for name, seconds in methods.items():
        stages = {title: float(seconds[key]) for key, title in _STAGES.items() if key in seconds}
        bars[name] = stages or {"restoration": float(seconds["total"])}
    return dict(sorted(bars.items(), key=lambda item: sum(item[1].values())))


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _read(path: Path, remedy: str) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is not there: {remedy}.")
    return read_json(path)
