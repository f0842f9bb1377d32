"""The result of a sweep: every variant scored against the same ground truth, a table, small plots, and sweep.json."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from face2scene.common.charts import save_figure, small_plots
from face2scene.common.files import atomic_write, read_json, write_json
from face2scene.common.pages import fragment
from face2scene.common.reproducibility import commit
from face2scene.data.records import METADATA, read_manifest
from face2scene.eval.metrics.registry import METRICS
from face2scene.eval.scoring.score import score_folders
from face2scene.eval.sweeps.plan import Sweep, SweepPlan
from face2scene.eval.tables.render import markdown, row_from_scores, same_gt


def collect(
    sweep: Sweep,
    plan: SweepPlan,
    *,
    metrics: Sequence[str] = ("psnr_y", "ssim_y", "lpips", "dists"),
    limit: int | None = None,
    device: str = "cpu",
    failed: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Score the restored images, write sweep.json, sweep.md, and (with matplotlib) sweep.svg and sweep.png.

    A variant with missing images is incomplete and has no numbers.

    Args:
        limit: the first so many pairs were restored.
        failed: name of a step -> why, for the record.

    Returns:
        The contents of sweep.json.
    """
    for dataset in dict.fromkeys(plan.datasets.values()):
        folders = {v.label: plan.folder / v.folder for v in plan.variants if plan.datasets[v.label] == dataset}
        rows = {label: (place, place) for label, place in folders.items() if any(place.glob("images/*.png"))}
        if rows and (dataset / METADATA).is_file():
            records = [record for record in read_manifest(dataset, "val") if record.lq][:limit]
            gt = {Path(str(record.lq)).stem: dataset / record.image for record in records}
            score_folders(rows, gt, metrics, device=device)
    files = [plan.folder / v.folder / "scores.json" for v in plan.variants]
    scores = [read_json(file) if file.is_file() else {"complete": False} for file in files]
    kept = ("complete", "means", "sets", "counts")
    measured = [found for found in scores if "protocol" in found]
    sharing = plan.folder / "sharing.json"
    result = {
        **{key: getattr(sweep, key) for key in ("key", "title", "source", "axis", "chosen")},
        "variants": [
            {"label": v.label, "folder": v.folder} | {key: found[key] for key in kept if key in found}
            for v, found in zip(plan.variants, scores, strict=True)
        ],
        "left_out": dict(plan.left_out),
        "failed": dict(failed or {}),
        "commit": commit(),
        **({"sharing": read_json(sharing)} if sharing.is_file() else {}),
        "protocol": measured[0]["protocol"] if measured else {},
        "versions": measured[0]["versions"] if measured else {},
    }
    write_json(plan.folder / "sweep.json", result)
    with atomic_write(plan.folder / "sweep.md") as partial:
        partial.write_text(table(sweep, plan, list(result["protocol"])), encoding="utf-8", newline="\n")
    draw(result, plan.folder)
    return result


def table(sweep: Sweep, plan: SweepPlan, columns: Sequence[str]) -> str:
    """The sweep as a Markdown table, the paper's choice marked with a star."""
    rows = []
    for variant in plan.variants:
        row = row_from_scores(variant.label, plan.folder / variant.folder / "scores.json", columns)
        rows.append(replace(row, name=f"{row.name} *") if variant.label == sweep.chosen else row)
    lines = [f"{sweep.title} ({sweep.source})\n", markdown(same_gt(rows), columns)]
    if sweep.chosen is not None:
        lines.append(f"* the paper's choice; rows: {sweep.axis}\n")
    lines += [f"{label} is left out: it needs use.{option}=WEIGHTS\n" for label, option in plan.left_out.items()]
    return "\n".join(lines)


def sharing_sentence(result: Mapping[str, Any]) -> str:
    """How much time restoring all variants together has saved; empty where they were restored apart."""
    found = result.get("sharing")
    if not found:
        return ""
    count = f"{found['values']:.0f}"
    return (
        f"{count} variants of an image took {found['together']:.2f} s and one took {found['one']:.2f} s: "
        f"{found['ratio']:.2f} times as long, where {count} restorations would take {count} times."
    )


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """One small plot per metric, five a row, in sweep.svg and .png; none without numbers or without matplotlib."""
    rows = [row for row in result["variants"] if row["complete"]]
    keys = [key for key in result["protocol"] if any(key in {**row["means"], **row["sets"]} for row in rows)]
    if not keys:
        return []
    try:
        return draw_variants(rows, keys, result["chosen"], result["axis"], min(5, len(keys)), folder / "sweep")
    except ModuleNotFoundError:
        return []


def draw_variants(
    rows: Sequence[Mapping[str, Any]], keys: Sequence[str], chosen: str | None, axis: str, columns: int, stem: Path
) -> list[Path]:
    """A small plot per metric of `keys` over complete variants, the chosen one in orange, as files named `stem`."""
    values = [{**row["means"], **row["sets"]} for row in rows]
    plots = {f"{METRICS[key].title} {METRICS[key].arrow}": [v.get(key, math.nan) for v in values] for key in keys}
    return save_figure(small_plots([row["label"] for row in rows], plots, chosen, axis, columns), stem)


def section(folder: str | Path) -> Markup:
    """HTML of a sweep that was collected in `folder`, for a report: plot, table and facts."""
    result = read_json(Path(folder) / "sweep.json")
    image = Path(folder) / "sweep.svg"
    plot = base64.b64encode(image.read_bytes()).decode() if image.is_file() else ""
    counts = [row["counts"]["scored"] for row in result["variants"] if row["complete"]]
    facts = [f"Source: {result['source']}.", f"{counts[0]} images." if counts else "Nothing was measured."]
    facts += [f"* the paper's choice; rows: {result['axis']}."] if result["chosen"] is not None else []
    facts += [sharing_sentence(result), result.get("note", "")]
    return fragment("parts.html.j2", "sweep", result, [METRICS[key] for key in result["protocol"]], plot, facts)
