"""The quickstart's page: what was found, the scores behind it, every picture, and what it took.

One HTML file that asks nothing of the network: pictures are data URIs, plots inline SVG.
"""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from face2scene.data.manifest import Record
from face2scene.eval.document import data_uri, document, pairs_table, protocol_list, select, slider
from face2scene.eval.findings import HEADLINE, Finding, better, number
from face2scene.eval.metrics import METRICS
from face2scene.eval.plots import curve_svg, curves, matrix_svg
from face2scene.eval.results import read_scores
from face2scene.eval.sweep_table import section
from face2scene.eval.tables import html_table, row_from_scores
from face2scene.images import read_image
from face2scene.why_log import WHY_LOG

MAX_BYTES = 11_000_000  # of the pictures; our setting: a page that a phone opens
VIEWS = {  # the pictures to compare, and what a slider calls them
    "input": "input",
    "trained_here": "trained in this run",
    "restored": "restored, shipped weights",
    "wrong_tokens": "another picture's tokens",
    "truth": "truth",
}
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
    sections = [
        ("findings", "Findings", _findings(figures.findings, {line["ref_fr"] for line in why.values()})),
        ("scores", "Scores", _score_table(figures)),
        ("pictures", "Pictures", _gallery(figures, why)),
        ("fadex", "FaDeX", _fadex(figures)),
        ("training", "Training", _training(figures.run)),
        ("time", "Time", _time(seconds)),
        ("setup", "Configuration and versions", _setup(figures)),
    ]
    swept = [section(path.parent) for path in sorted(figures.run.glob("sweep/*/sweep.json"))]
    if swept:
        sections.insert(3, ("ablations", "Ablations", "".join(swept)))
    return document(
        "Face2Scene quickstart",
        "Face2Scene · quickstart",
        "The face in a damaged photo measures the damage, and the whole photo is restored with it",
        facts,
        sections,
    )


def _findings(findings: Sequence[Finding], stage_i: set[str]) -> str:
    cards = []
    for finding in findings:
        lines = "".join(
            f'<tr><th scope="row">{what}</th><td>{a}</td><td>{b}</td></tr>' for what, a, b in finding.figures
        )
        left, right = finding.columns
        table = (
            f'<table class="mini full"><thead><tr><td></td><th scope="col">{left}</th><th scope="col">{right}</th>'
            f"</tr></thead><tbody>{lines}</tbody></table>"
        )
        note = f'<p class="note">{finding.note}</p>' if finding.note else ""
        cards.append(
            f'<article class="card"><p class="verdict {finding.verdict}">{finding.verdict}</p>'
            f"<h3>{finding.claim}</h3>{table if lines else ''}{note}</article>"
        )
    stand_ins = "".join(f'<p class="note">{STAND_INS.get(n, f"Stage I was ref_fr={n}.")}</p>' for n in sorted(stage_i))
    return f'<div class="cards">{"".join(cards)}</div>{stand_ins}'


def _score_table(figures: Figures) -> str:
    protocol, titles = figures.scores["protocol"], figures.titles
    rows = {
        row: row_from_scores(titles[row], figures.run / row / "scores.json", list(protocol))
        for row in figures.scores["rows"]
    }
    # The row of wrong tokens answers a question and is no contender, so it is shown without marks.
    contenders = [line for row, line in rows.items() if row != "wrong_tokens"]
    absent = "".join(
        f'<p class="warn">{METRICS[key].title} is not measured: {html.escape(why)}</p>'
        for key, why in figures.scores["not_measured"].items()
    )
    return (
        f"{html_table(list(rows.values()), list(protocol), contenders=contenders)}"
        '<p class="note">Means over the pictures. <span class="best">Best</span> and '
        '<span class="second">second best</span> of the first rows; '
        f"the row with another picture's tokens is a control.</p>{absent}{protocol_list(protocol)}"
    )


def _gallery(figures: Figures, why: Mapping[str, Mapping[str, Any]]) -> str:
    names = [n for n in figures.records if all(figures.picture(view, n).is_file() for view in VIEWS)]
    tables = {row: read_scores(figures.run / row)[1] for row in ("input", "restored")}
    shots: list[str] = []
    for name in tqdm(names, desc="report", unit="picture"):
        shots.append(_shot(figures, name, {row: table.get(name, {}) for row, table in tables.items()}, why[name]))
        if sum(map(len, shots)) > MAX_BYTES:
            break
    left_out = len(names) - len(shots)
    rest = f'<p class="note">{left_out} more pictures are in the folders of the run.</p>' if left_out else ""
    return (
        '<div class="controls" role="group" aria-label="What the sliders compare">'
        f"{select('left', 'Left', figures.titles, 'input', VIEWS)}"
        f"{select('right', 'Right', figures.titles, 'restored', VIEWS)}"
        '<p class="note">Drag across a picture, or focus it and use the arrow keys.</p></div>'
        f'<div class="gallery">{"".join(shots)}</div>{rest}'
    )


def _shot(figures: Figures, name: str, scores: Mapping[str, Mapping[str, float]], why: Mapping[str, Any]) -> str:
    record, safe = figures.records[name], html.escape(name)
    shown = "".join(
        f'<img data-view="{view}" src="{data_uri(read_image(figures.picture(view, name)))}" width="{record.width}" '
        f'height="{record.height}" alt="{safe}, {title}"{"" if view in ("input", "restored") else " hidden"}>'
        for view, title in figures.titles.items()
    )
    faces = "".join(
        f'<img src="{data_uri(read_image(figures.run / "restored/faces" / f"{name}_{side}.png"))}" alt="face, {side}">'
        for side in ("degraded", "restored")
    )
    numbers = []
    for key in HEADLINE:
        before, after = (scores[row].get(key) for row in ("input", "restored"))
        if before is None or after is None:
            continue
        numbers.append(
            f'<tr><th scope="row">{METRICS[key].title}</th><td>{number(key, before)}</td>'
            f'<td class="{"up" if better(key, after, before) else "down"}">{number(key, after)}</td></tr>'
        )
    log = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in why.items())
    return (
        f'<figure class="card shot">{slider(name, (record.width, record.height), shown)}'
        f'<figcaption><h3>{safe}</h3><p class="note">{_damage(record.recipe)}</p>'
        f'<div class="beside"><div class="pair"><div class="faces">{faces}</div>'
        '<p class="note">what FaDeX sees: the face as taken, and as Stage I gives it</p></div>'
        '<table class="mini"><thead><tr><td></td><th scope="col">input</th><th scope="col">restored</th></tr></thead>'
        f"<tbody>{''.join(numbers)}</tbody></table></div>"
        f"<details><summary>Why-log</summary><pre>{html.escape(log)}</pre></details></figcaption></figure>"
    )


def _damage(recipe: Mapping[str, Any]) -> str:
    words = []
    for operator in recipe["operators"]:
        if operator["kind"] != "RestoreSize":  # it only undoes a change of size
            word, strength = OPERATORS[operator["kind"]]
            words.append(f"{word} {operator[strength]:.3g}")
    return " → ".join(words) or "undamaged"


def _fadex(figures: Figures) -> str:
    cards = []
    for name, title in (("fadex", "trained in this run"), ("fadex_shipped", "trained longer, shipped")):
        probe, steps = figures.probes[name], figures.block["steps"][name]
        cards.append(
            f'<figure class="card"><figcaption><h3>FaDeX, {title} ({steps} steps)</h3>'
            f"<p>Mean cosine, same damage on different pictures <b>{probe['same_mean']:.3f}</b> (the diagonal); "
            f"different damage on the same picture <b>{probe['different_mean']:.3f}</b>.</p></figcaption>"
            f"{matrix_svg(probe['matrix'], probe['labels'])}</figure>"
        )
    return f'<div class="cards two">{"".join(cards)}</div>'


def _training(run: Path) -> str:
    return "".join(
        f'<h3>{title}</h3><div class="charts">'
        f"{''.join(curve_svg(key, curve) for key, curve in curves(run / name / 'metrics.jsonl').items())}</div>"
        for name, title in (("fadex", "FaDeX"), ("restorer", "Restorer"))
    )


def _time(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return '<p class="note">The steps were run one by one, so no timings were kept.</p>'
    longest = max(seconds.values())
    lines = "".join(
        f'<tr><th scope="row">{html.escape(step)}</th><td>{_minutes(value)}</td>'
        f'<td class="wide"><span class="length" style="width:{100 * value / longest:.1f}%"></span></td></tr>'
        for step, value in seconds.items()
    )
    total = f'<tr><th scope="row">in all</th><td>{_minutes(sum(seconds.values()))}</td><td></td></tr>'
    return (
        f'<table class="time"><tbody>{lines}</tbody><tfoot>{total}</tfoot></table>'
        '<p class="note">A step is counted when it has ended, so a first run\'s page is without its own making.</p>'
    )


def _setup(figures: Figures) -> str:
    configs = "".join(
        f"<details><summary>Configuration: {name}</summary>"
        f"<pre>{html.escape((figures.run / name / 'config.yaml').read_text(encoding='utf-8'))}</pre></details>"
        for name in ("fadex", "restorer")
    )
    return f"{pairs_table({'commit': figures.scores['commit'], **figures.scores['versions']})}{configs}"


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _minutes(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
