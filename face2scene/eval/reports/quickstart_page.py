"""The quickstart's page: what was found, the scores behind it, every image, and what it took.

One HTML file that asks nothing of the network: images are data URIs, plots inline SVG.
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

from face2scene.common.charts import curve_svg, matrix_svg
from face2scene.common.pages import render
from face2scene.data.records import Record
from face2scene.eval.metrics.registry import METRICS
from face2scene.eval.scoring.results import read_scores
from face2scene.eval.sweeps.table import section
from face2scene.eval.tables.render import html_table, row_from_scores
from face2scene.image_io.arrays import read_image, to_bytes
from face2scene.inference.log import RESTORATION_LOG

MARGIN = 0.3  # how far same-degradation cosines should be above different ones: the quickstart's own target


HEADLINE = ("psnr", "lpips", "dists")


@dataclass(frozen=True)
class Finding:
    """One question the quickstart answers: yes, no or "not measured", and the figures, whatever they are."""

    claim: str
    verdict: str
    columns: tuple[str, str]
    figures: tuple[tuple[str, str, str], ...]  # what, and its value in the two columns
    note: str = ""

    def __str__(self) -> str:
        left, right = self.columns
        figures = "; ".join(f"{what} {a} ({left}), {b} ({right})" for what, a, b in self.figures)
        return f"[{self.verdict}] {self.claim}: {figures or self.note}"


def findings(block: Mapping[str, Any]) -> list[Finding]:
    """Restoring, FaDeX and the tokens: three answers from the block `quickstart` of `scores.json`."""
    return [
        _comparison(
            "Restored images are closer to the ground truth than the degraded ones",
            ("input", "restored, shipped weights"),
            block["input"],
            block["restored"],
            HEADLINE,
        ),
        _cosines(block["fadex"], block["fadex_shipped"]),
        _comparison(
            "An image's own tokens restore it better than another's",
            ("another's", "its own"),
            block["wrong_tokens"],
            block["restored"],
            ("psnr", "lpips"),
        ),
    ]


def number(key: str, value: float) -> str:
    """A value of the metric `key` as it is shown, without its unit."""
    return f"{value:.2f}" if key == "psnr" else f"{value:.4f}"


def better(key: str, value: float, than: float) -> bool:
    """Whether `value` of the metric `key` is strictly better."""
    return value > than if METRICS[key].better == "higher" else value < than


def _comparison(
    claim: str, columns: tuple[str, str], base: Mapping[str, float], ours: Mapping[str, float], keys: Sequence[str]
) -> Finding:
    if any(key not in ours or key not in base for key in keys):
        return Finding(claim, "not measured", columns, (), "the scores of one side are incomplete")
    units = {"psnr": " dB"}
    figures = tuple((METRICS[k].title, *(number(k, side[k]) + units.get(k, "") for side in (base, ours))) for k in keys)
    lost = ", ".join(METRICS[key].title for key in keys if not better(key, ours[key], base[key]))
    return Finding(claim, "no" if lost else "yes", columns, figures, lost and f"not in {lost}")


def _cosines(here: Mapping[str, float], shipped: Mapping[str, float]) -> Finding:
    figures = tuple(
        (f"cosine, {title}", f"{probe['same']:.3f}", f"{probe['different']:.3f}")
        for title, probe in (("trained in this run", here), ("shipped", shipped))
    )
    gap = here["same"] - here["different"]
    note = f"apart by {gap:.3f} in this run, at least {MARGIN} was asked"
    columns = ("same degradation", "different")
    return Finding("FaDeX tells degradations apart", "yes" if gap >= MARGIN else "no", columns, figures, note)


MAX_BYTES = 11_000_000  # of the images; our setting: a page that a phone opens


VIEWS = {  # the images to compare, and what a slider calls them
    "input": "input",
    "trained_here": "trained in this run",
    "restored": "restored, shipped weights",
    "wrong_tokens": "another image's tokens",
    "truth": "ground truth",
}


TRAININGS = {"fadex": "FaDeX", "restorer": "Restorer"}  # folders of the run


STAND_INS = {
    "perturbed": "FaceMe's part, Stage I, was played by a stand-in (ref_fr=perturbed: the clean face, softened, "
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
        run: the quickstart's folder, with a folder of images and scores for every view but the ground truth.
        dataset: the InScene folder that `records` are relative to.
        records: the held-out images by name.
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
            "wrong_tokens": "restored, shipped weights, tokens of another image's degradation",
            "truth": "ground truth",
        }

    def image(self, view: str, name: str) -> Path:
        if view == "truth":
            return self.dataset / self.records[name].image
        return self.run / view / "images" / f"{name}.png"


def page(figures: Figures) -> str:
    """The whole HTML document."""
    why = {Path(line["name"]).stem: line for line in _json_lines(figures.run / "restored" / RESTORATION_LOG)}
    seconds = figures.block["seconds"]
    facts = [f"{figures.block['pictures']} held-out images", f"commit {figures.scores['commit'][:10]}"]
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
    # What the gallery shows of each image until the page is full, and how many were left out.
    names = [n for n in figures.records if all(figures.image(view, n).is_file() for view in VIEWS)]
    tables = {row: read_scores(figures.run / row)[1] for row in ("input", "restored")}
    shots: list[dict[str, Any]] = []
    size = 0
    for name in tqdm(names, desc="report", unit="image"):
        shots.append(_shot(figures, name, {row: table.get(name, {}) for row, table in tables.items()}, why[name]))
        size += sum(map(len, [*shots[-1]["images"].values(), *shots[-1]["faces"].values()]))
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
        "degradation": _degradation(figures.records[name].recipe),
        "images": {view: _data_uri(read_image(figures.image(view, name))) for view in VIEWS},
        "faces": {side: _data_uri(read_image(path)) for side, path in faces.items()},
        "numbers": numbers,
        "log": "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in why.items()),
    }


def _degradation(recipe: Mapping[str, Any]) -> str:
    words = []
    for operator in recipe["operators"]:
        if operator["kind"] != "RestoreSize":  # it only undoes a change of size
            word, strength = OPERATORS[operator["kind"]]
            words.append(f"{word} {operator[strength]:.3g}")
    return " → ".join(words) or "not degraded"


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
    """An image (H, W, 3) in [0, 1] as a JPEG without colour subsampling, inside the page."""
    out = io.BytesIO()
    Image.fromarray(to_bytes(image)).save(out, format="JPEG", quality=quality, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _minutes(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
