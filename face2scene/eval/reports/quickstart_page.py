"""The quickstart's page: findings, scores, images, training curves and times.

One HTML file that loads nothing else: images are data URIs, plots inline SVG.
"""

import base64
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image
from tqdm.auto import tqdm

from face2scene.common.charts import curve_svg, curves_svg, matrix_svg
from face2scene.common.pages import render
from face2scene.eval.metrics.registry import METRICS
from face2scene.eval.reports.gallery import log_entries
from face2scene.eval.reports.quickstart_images import ImageGroup
from face2scene.eval.scoring.results import read_scores
from face2scene.eval.sweeps.table import section
from face2scene.eval.tables.render import DECIMALS, formatted, html_table, row_from_scores
from face2scene.image_io.arrays import read_image, to_bytes

HEADLINE = ("psnr", "lpips", "dists")
MARGIN = 0.3  # how far cosines of one degradation should be above those of different ones; the quickstart's own target
MAX_BYTES = 8_000_000  # of the portraits, ours: a page that a phone can open
FIRST_SEEN = "astronaut_astronaut"  # before scrolling, of each degradation; the photo is in the public domain
VIEWS = {  # the images to compare, and their short names in a slider
    "input": "input",
    "trained_here": "trained in this run",
    "restored": "restored, shipped weights",
    "wrong_tokens": "another image's tokens",
    "truth": "ground truth",
}
TRAININGS = {"fadex": "FaDeX", "restorer": "Restorer"}  # folders of the run
STAND_INS = {
    "perturbed": "Stage I was not FaceMe but ref_fr=perturbed, the ground-truth face with blur, a tint and grain, "
    "because FaceMe's weights need a model hub.",
}
OPERATOR_WORDS = {  # stored name of a recipe's operator -> word, and the number shown
    "Blur": ("blur", "sigma_x"),
    "SpatialBlur": ("blur that varies over the image", "sigma_x"),
    "MotionBlur": ("motion blur", "length_px"),
    "Sinc": ("ringing", "cutoff_rad"),
    "Resize": ("resize", "factor"),
    "GaussianNoise": ("noise", "sigma"),
    "PoissonNoise": ("Poisson noise", "scale"),
    "SensorNoise": ("sensor noise", "shot"),
    "Jpeg": ("JPEG", "quality"),
    "Webp": ("WebP", "quality"),
}


@dataclass(frozen=True)
class Finding:
    """One question of the quickstart with its answer and the numbers behind it."""

    claim: str
    verdict: str  # yes, no or "not measured"
    columns: tuple[str, ...]
    figures: tuple[tuple[str, ...], ...]  # title, and its value in each column
    note: str = ""

    def __str__(self) -> str:
        figures = "; ".join(
            f"{title} " + ", ".join(f"{value} ({column})" for value, column in zip(values, self.columns, strict=True))
            for title, *values in self.figures
        )
        return f"[{self.verdict}] {self.claim}: {figures or self.note}"


def findings(block: Mapping[str, Any]) -> list[Finding]:
    """The findings on restoration, FaDeX, the tokens and the scenes, from the block `quickstart` of `scores.json`."""
    restoration = "Restored images are closer to the ground truth than the degraded ones"
    tokens = "An image's own tokens restore it better than another's"
    views = ("input", "restored, shipped weights")
    return [
        _comparison(restoration, views, block, "input", HEADLINE),
        _cosines(block["fadex"], block["fadex_shipped"]),
        _comparison(tokens, ("another's", "its own"), block, "wrong_tokens", ("psnr", "lpips")),
        *([_scenes(block["scenes"])] if block.get("scenes") else []),
    ]


def better(key: str, value: float, than: float) -> bool:
    """Whether `value` of the metric `key` is strictly better."""
    return value > than if METRICS[key].better == "higher" else value < than


def _comparison(
    claim: str, columns: tuple[str, ...], block: Mapping[str, Any], row: str, keys: Sequence[str]
) -> Finding:
    base, ours, apart = block[row], block["restored"], block.get("differences", {}).get(row, {})
    if any(key not in ours or key not in base for key in keys):
        return Finding(claim, "not measured", columns, (), "the scores of one side are incomplete")
    apart, figures = apart if all(key in apart for key in keys) else {}, []
    for key in keys:
        unit, digits = " dB" if key == "psnr" else "", DECIMALS.get(key, 4)
        figures.append((METRICS[key].title, *(formatted(key, side[key]) + unit for side in (base, ours))))
        if apart:
            mean, low, high = apart[key]
            figures[-1] += (f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]",)
    lost = ", ".join(METRICS[key].title for key in keys if not better(key, ours[key], base[key]))
    columns += ("difference, 95 % interval",) if apart else ()
    return Finding(claim, "no" if lost else "yes", columns, tuple(figures), lost and f"not in {lost}")


def _scenes(scenes: Mapping[str, Mapping[str, Any]]) -> Finding:
    claim, columns = "In scenes the background comes closer too, not the face alone", ("input", "restored")
    figures, lost = [], []
    for name, region in product(scenes, ("background", "face")):
        before, after = (scenes[name][region][view].get("lpips") for view in columns)
        if before is None or after is None:
            return Finding(claim, "not measured", columns, (), f"the scores of {name} are incomplete")
        figures.append((f"LPIPS, {region}, {name}", formatted("lpips", before), formatted("lpips", after)))
        lost += [] if better("lpips", after, before) else [f"{region}, {name}"]
    note = f"not in {'; '.join(lost)}" if lost else "PSNR and intervals are below"
    return Finding(claim, "no" if lost else "yes", columns, tuple(figures), note)


def _cosines(here: Mapping[str, float], shipped: Mapping[str, float]) -> Finding:
    figures = tuple(
        (f"cosine, {title}", f"{probe['same']:.3f}", f"{probe['different']:.3f}")
        for title, probe in (("trained in this run", here), ("shipped", shipped))
    )
    gap = here["same"] - here["different"]
    note = f"a difference of {gap:.3f} in this run; the target is {MARGIN} or more"
    columns = ("same degradation", "different")
    return Finding("FaDeX tells degradations apart", "yes" if gap >= MARGIN else "no", columns, figures, note)


@dataclass(frozen=True)
class Figures:
    """The contents of the page."""

    run: Path  # the quickstart's folder
    portraits: ImageGroup
    scenes: Sequence[ImageGroup]
    scores: Mapping[str, Any]  # the contents of the run's scores.json
    findings: Sequence[Finding]  # in their order on the page
    probes: Mapping[str, Mapping[str, Any]]  # contents of the FaDeX probes, `fadex` (this run's) and `fadex_shipped`

    @property
    def block(self) -> Mapping[str, Any]:
        return self.scores["quickstart"]

    @property
    def titles(self) -> dict[str, str]:
        """Long names of the views."""
        steps = self.block["steps"]
        return {
            "input": "degraded input",
            "trained_here": f"restored, weights trained in this run ({steps['trained_here']} steps)",
            "restored": f"restored, weights trained longer, shipped ({steps['restored']} steps)",
            "wrong_tokens": "restored, shipped weights, tokens of another image's degradation",
            "truth": "ground truth",
        }


def page(figures: Figures) -> str:
    """The whole HTML document."""
    log = log_entries(figures.run / "restored")
    seconds = dict(figures.block["seconds"])
    in_all = seconds.pop("all steps", sum(seconds.values()))
    facts = [f"{figures.block['pictures']} held-out portraits", f"commit {figures.scores['commit'][:10]}"]
    if figures.scenes:
        facts.insert(1, f"{sum(len(group.records) for group in figures.scenes)} degraded scenes")
    if seconds:
        facts.insert(-1, f"{_minutes(in_all)} in all")
    scenes = {group.title: (group.region_table(), _shots(group, quality=84)[0]) for group in figures.scenes}
    shots, left_out = _shots(figures.portraits)
    first = [shots for _, shots in scenes.values()] or [[shot] for shot in shots[:3]]
    stage_one = sorted({line["ref_fr"] for line in log.values() if "ref_fr" in line})
    return render(
        "quickstart.html.j2",
        style="page.css",
        provenance=figures.scores.get("provenance"),
        scripts=("page.js", "order.js"),
        facts=facts,
        figures=figures,
        metrics=METRICS,
        stage_i=[STAND_INS.get(name, f"Stage I was ref_fr={name}.") for name in stage_one],
        table=_score_table(figures),
        views=VIEWS,
        first=[next((one for one in group if one["name"] == FIRST_SEEN), group[0]) for group in first if group],
        orders={"": "as built"} | {key: f"{METRICS[key].title} when restored, worst first" for key in HEADLINE[:2]},
        scenes=scenes,
        shots=shots,
        left_out=left_out,
        sweeps=[section(path.parent) for path in sorted(figures.run.glob("sweep/*/sweep.json"))],
        matrices={name: matrix_svg(probe["matrix"], probe["labels"]) for name, probe in figures.probes.items()},
        trainings={title: _charts(figures.run / name / "metrics.jsonl") for name, title in TRAININGS.items()},
        seconds=seconds,
        in_all=in_all,
        minutes=_minutes,
        configs={name: (figures.run / name / "config.yaml").read_text(encoding="utf-8") for name in TRAININGS},
    )


def _score_table(figures: Figures) -> Markup:
    keys = list(figures.scores["protocol"])
    rows = {
        row: row_from_scores(figures.titles[row], figures.run / row / "scores.json", keys)
        for row in figures.scores["rows"]
    }
    # The row of wrong tokens is a control and no contender, so it gets no marks.
    contenders = [line for row, line in rows.items() if row != "wrong_tokens"]
    return html_table(list(rows.values()), keys, contenders=contenders)


def _shots(group: ImageGroup, quality: int = 92) -> tuple[list[dict[str, Any]], int]:
    """The images of a group until the page is full, and the number of those left out."""
    names = [name for name in group.records if all(path.is_file() for path in group.images(name).values())]
    tables = {row: read_scores(group.folders[row])[1] for row in ("input", "restored")}
    log = log_entries(group.folders["restored"])
    shots: list[dict[str, Any]] = []
    size = 0
    for name in tqdm(names, desc="report", unit="image"):
        scores = {row: table.get(name, {}) for row, table in tables.items()}
        shots.append(_shot(group, name, scores, log[name], quality))
        size += sum(map(len, [*shots[-1]["images"].values(), *shots[-1]["faces"].values()]))
        if size > MAX_BYTES:
            break
    return shots, len(names) - len(shots)


def _shot(
    group: ImageGroup, name: str, scores: Mapping[str, Mapping[str, float]], entry: Mapping[str, Any], quality: int
) -> dict[str, Any]:
    numbers, worst = [], {}
    for key in HEADLINE:
        before, after = (scores[row].get(key) for row in ("input", "restored"))
        if before is not None and after is not None:
            change = "up" if better(key, after, before) else "down"
            numbers.append((METRICS[key].title, formatted(key, before), formatted(key, after), change))
            worst[key] = -after if METRICS[key].better == "higher" else after
    record = group.records[name]
    x0, y0, x1, y1 = record.face_box
    faces = {side: group.folders["restored"] / "faces" / f"{name}_{side}.png" for side in ("degraded", "restored")}
    return {
        "name": name,
        "record": record,
        "middle": f"{50 * (x0 + x1) / record.width:.1f}% {50 * (y0 + y1) / record.height:.1f}%",  # of the face
        "degradation": _degradation(record.recipe),
        "images": {view: _data_uri(read_image(path), quality) for view, path in group.images(name).items()},
        "faces": {side: _data_uri(read_image(path)) for side, path in faces.items() if path.is_file()},
        "numbers": numbers,
        "worst": json.dumps(worst),
        "log": "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in entry.items()),
    }


def _degradation(recipe: Mapping[str, Any]) -> str:
    operators = [one for one in recipe["operators"] if one["kind"] != "RestoreSize"]  # which undoes a resize
    words = [(*OPERATOR_WORDS[one["kind"]], one) for one in operators]
    return " → ".join(f"{word} {one[strength]:.3g}" for word, strength, one in words) or "not degraded"


def _charts(metrics: Path) -> list[Markup]:
    """A chart for each curve of a metrics.jsonl; those of single operators (`.../g1`, `.../g2`) share one."""
    curves, together = _curves(metrics), {}
    for key in [key for key in curves if re.search(r"/g\d+$", key)]:
        family, _, operator = key.rpartition("/")
        together.setdefault(f"{family} by degradation", {})[operator] = curves.pop(key)
    return [*(curve_svg(*one) for one in curves.items()), *(curves_svg(*one) for one in together.items())]


def _curves(metrics: Path) -> dict[str, list[tuple[float, float]]]:
    """The curves of a metrics.jsonl by key, as (step, value); constant ones are left out."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in map(json.loads, metrics.read_text(encoding="utf-8").splitlines()):
        for key, value in line.items():
            if key != "step" and math.isfinite(value):
                found.setdefault(key, []).append((line["step"], value))
    moving = {key: curve for key, curve in found.items() if len({value for _, value in curve}) > 1}
    return dict(sorted(moving.items(), key=lambda item: item[0].endswith("grad_norm")))


def _data_uri(image: np.ndarray, quality: int = 92) -> str:
    """An image (H, W, 3) in [0, 1] as a JPEG without colour subsampling, inside the page."""
    out = io.BytesIO()
    Image.fromarray(to_bytes(image)).save(out, format="JPEG", quality=quality, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _minutes(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
