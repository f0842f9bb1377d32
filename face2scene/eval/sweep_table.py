"""What came of a sweep: every variant scored against the same truth, a table, small plots, and sweep.json."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from face2scene.data.manifest import read_manifest
from face2scene.eval.metrics import METRICS
from face2scene.eval.score import score_folders
from face2scene.eval.sweep import Plan, Sweep
from face2scene.eval.tables import markdown, one_truth, row_from_scores
from face2scene.extras import need
from face2scene.files import atomic_write, read_json, write_json
from face2scene.runs import commit

COLUMNS = 5  # of small plots, as in the paper's Figure 6
_LINE, _CHOSEN = "#2166ac", "#e08214"  # ColorBrewer's blue and orange, which every common eye tells apart


def collect(
    sweep: Sweep,
    plan: Plan,
    *,
    metrics: Sequence[str] = ("psnr_y", "ssim_y", "lpips", "dists"),
    limit: int | None = None,
    device: str = "cpu",
    failed: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Score what the steps left, write sweep.json, sweep.md, and (with matplotlib) sweep.svg and sweep.png.

    A variant with missing pictures is marked incomplete and shown without numbers, one without any as not measured.

    Args:
        limit: the first so many pairs were restored.
        failed: name of a step -> why, for the record.

    Returns:
        The contents of sweep.json.
    """
    truths: dict[Path, dict[str, Path]] = {}
    for folder in dict.fromkeys(plan.datasets.values()):
        if (folder / "metadata.parquet").is_file():
            records = [record for record in read_manifest(folder, "val") if record.lq][:limit]
            truths[folder] = {Path(str(record.lq)).stem: folder / record.image for record in records}
    for folder, truth in truths.items():
        rows = {
            v.label: (plan.folder / v.folder, plan.folder / v.folder)
            for v in plan.variants
            if plan.datasets[v.label] == folder and any((plan.folder / v.folder / "images").glob("*.png"))
        }
        if rows:
            score_folders(rows, truth, metrics, device=device)
    result = {
        "key": sweep.key,
        "title": sweep.title,
        "source": sweep.source,
        "axis": sweep.axis,
        "chosen": sweep.chosen,
        "variants": [_row(plan, variant.label, variant.folder) for variant in plan.variants],
        "left_out": dict(plan.left_out),
        "failed": dict(failed or {}),
        "commit": commit(),
    }
    sharing = plan.folder / "sharing.json"
    if sharing.is_file():
        result["sharing"] = read_json(sharing)
    measured = [row["scores"] for row in result["variants"] if row["scores"]]
    result["protocol"] = measured[0]["protocol"] if measured else {}
    result["versions"] = measured[0]["versions"] if measured else {}
    for row in result["variants"]:
        scores = row.pop("scores")
        row |= {key: scores[key] for key in ("complete", "means", "sets", "counts")} if scores else {"complete": False}
    write_json(plan.folder / "sweep.json", result)
    with atomic_write(plan.folder / "sweep.md") as partial:
        partial.write_text(table(sweep, plan, list(result["protocol"])), encoding="utf-8")
    draw(result, plan.folder)
    return result


def _row(plan: Plan, label: str, folder: str) -> dict[str, Any]:
    scores = plan.folder / folder / "scores.json"
    return {"label": label, "folder": folder, "scores": read_json(scores) if scores.is_file() else None}


def table(sweep: Sweep, plan: Plan, columns: Sequence[str]) -> str:
    """The sweep as a Markdown table, the paper's choice marked with a star."""
    rows = []
    for variant in plan.variants:
        row = row_from_scores(variant.label, plan.folder / variant.folder / "scores.json", columns)
        rows.append(replace(row, name=f"{row.name} *") if variant.label == sweep.chosen else row)
    lines = [f"{sweep.title} ({sweep.source})\n", markdown(one_truth(rows), columns)]
    if sweep.chosen is not None:
        lines.append(f"* the paper's choice; rows: {sweep.axis}\n")
    lines += [f"{label} is left out: it needs use.{option}=WEIGHTS\n" for label, option in plan.left_out.items()]
    return "\n".join(lines)


def sharing_sentence(result: Mapping[str, Any]) -> str:
    """What restoring all variants together has saved, or nothing."""
    found = result.get("sharing")
    if not found:
        return ""
    count = f"{found['values']:.0f}"
    return (
        f"{count} variants of a picture took {found['together']:.2f} s and one took {found['one']:.2f} s: "
        f"{found['ratio']:.2f} times as long, where {count} restorations would take {count} times."
    )


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """One small plot per metric into sweep.svg and sweep.png; nothing where there are no numbers or no matplotlib."""
    rows = [row for row in result["variants"] if row["complete"]]
    keys = [key for key in result["protocol"] if any(key in {**row["means"], **row["sets"]} for row in rows)]
    if not rows or not keys:
        return []
    try:
        figure_module = need("matplotlib.figure", "report", why="Plotting a sweep")
    except ModuleNotFoundError:
        return []
    wide, high = min(COLUMNS, len(keys)), math.ceil(len(keys) / COLUMNS)
    figure = figure_module.Figure(figsize=(2.6 * wide, 2.3 * high), layout="constrained")
    labels = [row["label"] for row in rows]
    numeric = all(_is_number(label) for label in labels)
    places = [float(label) for label in labels] if numeric else list(range(len(labels)))
    for axes, key in zip(figure.subplots(high, wide, squeeze=False).flat, [*keys, *[None] * wide], strict=False):
        if key is None:
            axes.set_visible(False)
            continue
        values = [{**row["means"], **row["sets"]}.get(key, math.nan) for row in rows]
        axes.plot(places, values, "-o" if numeric else "o", color=_LINE, markersize=3.5, linewidth=1.2)
        for place, value, label in zip(places, values, labels, strict=True):
            if label == result["chosen"]:
                axes.plot([place], [value], "o", color=_CHOSEN, markersize=7)
        axes.set_title(f"{METRICS[key].title} {METRICS[key].arrow}", fontsize=9)
        axes.tick_params(labelsize=7)
        axes.yaxis.get_major_formatter().set_useOffset(False)  # it would be written over the title
        axes.grid(color="#dddddd", linewidth=0.5)
        if not numeric or len(places) <= 4:
            axes.set_xticks(places, labels, rotation=0 if numeric else 25, ha="center" if numeric else "right")
        axes.margins(0.12)
    for axes in figure.axes[wide * (high - 1) :]:
        axes.set_xlabel(result["axis"], fontsize=8)
    made = [folder / f"sweep.{kind}" for kind in ("svg", "png")]
    for path in made:
        with atomic_write(path) as partial:
            figure.savefig(partial, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    return made


def section(folder: str | Path) -> str:
    """HTML of a sweep that was collected in `folder`, for a report: plot, table, and what it took."""
    result = read_json(Path(folder) / "sweep.json")
    keys = list(result["protocol"])
    head = "".join(f'<th scope="col">{METRICS[key].title} {METRICS[key].arrow}</th>' for key in keys)
    body = []
    for row in result["variants"]:
        values = {**row.get("means", {}), **row.get("sets", {})}
        cells = "".join(f"<td>{values[key]:.4f}</td>" if key in values else "<td>not measured</td>" for key in keys)
        star = " *" if row["label"] == result["chosen"] else ""
        body.append(f'<tr><th scope="row">{html.escape(row["label"])}{star}</th>{cells}</tr>')
    picture = Path(folder) / "sweep.svg"
    plot = _inline(picture.read_text(encoding="utf-8"), result["title"]) if picture.is_file() else ""
    counts = [row["counts"]["scored"] for row in result["variants"] if row["complete"]]
    facts = [f"Source: {result['source']}.", f"{counts[0]} pictures." if counts else "Nothing was measured."]
    facts += [f"* the paper's choice; rows: {result['axis']}."] if result["chosen"] is not None else []
    facts += [sharing_sentence(result), result.get("note", "")]
    return (
        f"<h3>{html.escape(result['title'])}</h3>{plot}"
        f'<div class="scroll"><table class="scores"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
        f'<p class="note">{html.escape(" ".join(fact for fact in facts if fact))}</p>'
    )


def _inline(svg: str, title: str) -> str:
    start = svg.index("<svg")
    return f'<div class="scroll" role="img" aria-label="{html.escape(title)}">{svg[start:]}</div>'


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
