"""The quickstart's page: what was found, the scores behind it, every picture, and what it took.

One HTML file that asks nothing of the network: pictures are data URIs, plots inline SVG.
"""

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image
from tqdm import tqdm

from face2scene.charts import curve_svg, matrix_svg
from face2scene.data.manifest import Record
from face2scene.eval.findings import HEADLINE, Finding, better, number
from face2scene.eval.metrics import METRICS
from face2scene.eval.results import read_scores
from face2scene.eval.sweep_table import section
from face2scene.eval.tables import html_table, row_from_scores
from face2scene.images import read_image, to_bytes
from face2scene.pages import render
from face2scene.why_log import WHY_LOG

MAX_BYTES = 11_000_000  # of the pictures; our setting: a page that a phone opens
VIEWS = {  # the pictures to compare, and what a slider calls them
    "input": "input",
    "trained_here": "trained in this run",
    "restored": "restored, shipped weights",
    "wrong_tokens": "another picture's tokens",
    "truth": "truth",
}
TRAININGS = {"fadex": "FaDeX", "restorer": "Restorer"}  # folders of the run
STAND_INS = {
    "perturbed": "FaceMe's part, Stage I, was played by a stand-in (ref_fr=perturbed: the undamaged face, softened, "
    "tinted and grained), because FaceMe's weights need a model hub.",
}
OPERATORS = {  # a recipe's operator: its word, and the strength that says most
    "Blur": ("blur", "sigma_x"),
    "Sinc": ("ringing", "cutoff_rad"),
    "Resize": ("resize", "factor"),
    "GaussianNoise": ("noise", "sigma"),
    "PoissonNoise": ("Poisson noise", "scale"),
    "Jpeg": ("JPEG", "quality"),
}


@dataclass(frozen=True)
class Figures:
    """What the page is made of.

    Args:
        run: the quickstart's folder, with a folder of pictures and scores for every view but the truth.
        dataset: the InScene folder that `records` are relative to.
        records: the held-out pictures by name.
        scores: the contents of the run's scores.json.
        findings: in the order to show.
        probes: the contents of the FaDeX probes, `fadex` (this run's) and `fadex_shipped`.
    """

    run: Path
    dataset: Path
    records: Mapping[str, Record]
    scores: Mapping[str, Any]
    findings: Sequence[Finding]
    probes: Mapping[str, Mapping[str, Any]]

    @property
    def block(self) -> Mapping[str, Any]:
        return self.scores["quickstart"]

    @property
    def titles(self) -> dict[str, str]:
        """What each view is called where there is room."""
        steps = self.block["steps"]
        return {
            "input": "degraded input",
            "trained_here": f"restored, weights trained in this run ({steps['trained_here']} steps)",
            "restored": f"restored, weights trained longer, shipped ({steps['restored']} steps)",
            "wrong_tokens": "restored, shipped weights, tokens of another picture's damage",
            "truth": "truth",
        }

    def picture(self, view: str, name: str) -> Path:
        if view == "truth":
            return self.dataset / self.records[name].image
        return self.run / view / "images" / f"{name}.png"


def page(figures: Figures) -> str:
    """The whole HTML document."""
    why = {Path(line["name"]).stem: line for line in _json_lines(figures.run / "restored" / WHY_LOG)}
    seconds = figures.block["seconds"]
    facts = [f"{figures.block['pictures']} held-out pictures", f"commit {figures.scores['commit'][:10]}"]
    if seconds:
        facts.insert(1, f"{_minutes(sum(seconds.values()))} in all")
    sweeps = [section(path.parent) for path in sorted(figures.run.glob("sweep/*/sweep.json"))]
    shots, left_out = _shots(figures, why)
    return render(
        "quickstart.html.j2",
        style="page.css",
        scripts=("page.js",),
        facts=facts,
        figures=figures,
        metrics=METRICS,
        stage_i=[
            STAND_INS.get(n, f"Stage I was ref_fr={n}.") for n in sorted({line["ref_fr"] for line in why.values()})
        ],
        table=_score_table(figures),
        views=VIEWS,
        shots=shots,
        left_out=left_out,
        sweeps=sweeps,
        matrices={name: matrix_svg(probe["matrix"], probe["labels"]) for name, probe in figures.probes.items()},
        trainings={
            title: [curve_svg(*item) for item in _curves(figures.run / name / "metrics.jsonl").items()]
            for name, title in TRAININGS.items()
        },
        minutes=_minutes,
        configs={name: (figures.run / name / "config.yaml").read_text(encoding="utf-8") for name in TRAININGS},
    )


def _score_table(figures: Figures) -> Markup:
    keys = list(figures.scores["protocol"])
    rows = {
        row: row_from_scores(figures.titles[row], figures.run / row / "scores.json", keys)
        for row in figures.scores["rows"]
    }
    # The row of wrong tokens answers a question and is no contender, so it is shown without marks.
    contenders = [line for row, line in rows.items() if row != "wrong_tokens"]
    return html_table(list(rows.values()), keys, contenders=contenders)


def _shots(figures: Figures, why: Mapping[str, Mapping[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    # What the gallery shows of each picture until the page is full, and how many were left out.
    names = [n for n in figures.records if all(figures.picture(view, n).is_file() for view in VIEWS)]
    tables = {row: read_scores(figures.run / row)[1] for row in ("input", "restored")}
    shots: list[dict[str, Any]] = []
    size = 0
    for name in tqdm(names, desc="report", unit="picture"):
        shots.append(_shot(figures, name, {row: table.get(name, {}) for row, table in tables.items()}, why[name]))
        size += sum(map(len, [*shots[-1]["pictures"].values(), *shots[-1]["faces"].values()]))
        if size > MAX_BYTES:
            break
    return shots, len(names) - len(shots)


def _shot(
    figures: Figures, name: str, scores: Mapping[str, Mapping[str, float]], why: Mapping[str, Any]
) -> dict[str, Any]:
    numbers = []
    for key in HEADLINE:
        before, after = (scores[row].get(key) for row in ("input", "restored"))
        if before is not None and after is not None:
            way = "up" if better(key, after, before) else "down"
            numbers.append((METRICS[key].title, number(key, before), number(key, after), way))
    faces = {side: figures.run / "restored/faces" / f"{name}_{side}.png" for side in ("degraded", "restored")}
    return {
        "name": name,
        "record": figures.records[name],
        "degradation": _damage(figures.records[name].recipe),
        "pictures": {view: _data_uri(read_image(figures.picture(view, name))) for view in VIEWS},
        "faces": {side: _data_uri(read_image(path)) for side, path in faces.items()},
        "numbers": numbers,
        "log": "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in why.items()),
    }


def _damage(recipe: Mapping[str, Any]) -> str:
    words = []
    for operator in recipe["operators"]:
        if operator["kind"] != "RestoreSize":  # it only undoes a change of size
            word, strength = OPERATORS[operator["kind"]]
            words.append(f"{word} {operator[strength]:.3g}")
    return " → ".join(words) or "undamaged"


def _curves(metrics: Path) -> dict[str, list[tuple[float, float]]]:
    """The curves of a metrics.jsonl by key, as (step, value); one that never moves says nothing and is left out."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in _json_lines(metrics):
        for key, value in line.items():
            if key != "step" and math.isfinite(value):
                found.setdefault(key, []).append((line["step"], value))
    moving = {key: curve for key, curve in found.items() if len({value for _, value in curve}) > 1}
    return dict(sorted(moving.items(), key=lambda item: item[0].endswith("grad_norm")))


def _data_uri(image: np.ndarray, quality: int = 92) -> str:
    """A picture (H, W, 3) in [0, 1] as a JPEG without colour subsampling, inside the page."""
    out = io.BytesIO()
    Image.fromarray(to_bytes(image)).save(out, format="JPEG", quality=quality, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _minutes(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
