"""The quickstart's page: what was found, the scores behind it, every picture, and what it took.

One HTML file that asks nothing of the network: pictures are data URIs, plots inline SVG, the script is short.
A part whose input is not there is said to be missing rather than left out silently.
"""

import base64
import html
import io
import itertools
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from face2scene.data.manifest import Record, read_manifest
from face2scene.eval.metrics import METRICS
from face2scene.eval.score import read_scores_csv, score_folders, versions
from face2scene.eval.tables import ranks, row_from_scores
from face2scene.files import atomic_write, read_json, write_json
from face2scene.images import read_image, to_bytes, write_png
from face2scene.runs import commit

MARGIN = 0.3  # how far same-damage cosines should be above different ones: the quickstart's own target
MAX_BYTES = 11_000_000  # our setting: a page that a phone opens
ROW_ORDER = ("input", "trained_here", "restored", "wrong_tokens")
HEADLINE = ("psnr", "lpips", "dists")
Block = dict[str, Any]


def quickstart_report(
    run: str | Path,
    *,
    dataset: str | Path,
    split: str = "val",
    metrics: Sequence[str] = ("psnr", "ssim_y", "lpips", "dists"),
    device: str = "cpu",
    shipped_probe: str | Path | None = None,
    max_bytes: int = MAX_BYTES,
) -> dict[str, Any]:
    """Score what the quickstart made, write report.html, scores.json and scores.csv, print the findings.

    Args:
        run: the folder with `restored/` and, where made, `trained_here/` and `wrong_tokens/` (pictures in
            `images/`), `fadex/`, `fadex_shipped/`, `restorer/`, seconds.json and config.yaml; `input/` is filled.
        dataset: the InScene folder whose fixed pairs of `split` are input and truth.
        shipped_probe: the probe.json of the shipped FaDeX, where the run has none in `fadex_shipped/`.
        max_bytes: pictures are compressed harder, and in the end fewer of them shown, to stay below this.

    Returns:
        The contents of `run/scores.json`.

    Raises:
        FileNotFoundError: the run has no pictures yet.
    """
    run, dataset = Path(run), Path(dataset)
    if not (run / "restored/images").is_dir():
        raise FileNotFoundError(f"{run / 'restored/images'} is not there: restore the pictures first (make demo).")
    records = {Path(record.image).stem: record for record in read_manifest(dataset, split=split) if record.lq}
    truths = {name: dataset / record.image for name, record in records.items()}
    for name, record in records.items():  # a row like the others, and never older than the set
        write_png(run / "input/images" / f"{name}.png", read_image(dataset / str(record.lq)))
    folders = {row: (run / row, run / row) for row in ROW_ORDER if (run / row / "images").is_dir()}
    rows = score_folders(folders, truths, metrics, device=device)

    probes = _probes(run, Path(shipped_probe) if shipped_probe else None)
    scores = _merged(run, rows, probes)
    write_json(run / "scores.json", scores)
    with atomic_write(run / "scores.csv") as partial:
        shutil.copyfile(run / "restored/scores.csv", partial)
    page = _page(run, scores, rows, probes, records, truths, metrics, max_bytes)
    with atomic_write(run / "report.html") as partial:
        partial.write_text(page, encoding="utf-8")

    for finding in findings(scores["quickstart"]):
        print(finding)
    print(f"report: {run / 'report.html'}")
    return scores


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
            "Restored pictures are closer to the truth than the degraded ones",
            ("input", "restored"),
            block["input"],
            block["restored"],
            HEADLINE,
        ),
        _cosines(block),
        _comparison(
            "A picture's own tokens restore it better than another's",
            ("another's", "its own"),
            block["wrong_tokens"],
            block["restored"],
            ("psnr", "lpips"),
        ),
    ]


def _comparison(
    claim: str, columns: tuple[str, str], base: Block | None, ours: Block | None, keys: Sequence[str]
) -> Finding:
    if not ours or not base or any(key not in ours or key not in base for key in keys):
        return Finding(claim, "not measured", columns, (), "the scores of one side are missing or incomplete")
    won = [ours[k] != base[k] and (ours[k] > base[k]) == (METRICS[k].better == "higher") for k in keys]
    figures = tuple((METRICS[k].title, _number(k, base[k]), _number(k, ours[k])) for k in keys)
    lost = ", ".join(METRICS[k].title for k, w in zip(keys, won, strict=True) if not w)
    return Finding(claim, "yes" if all(won) else "no", columns, figures, lost and f"not in {lost}")


def _cosines(block: Mapping[str, Any]) -> Finding:
    claim, columns = "FaDeX tells degradations apart", ("same damage", "different")
    used = block["fadex"]
    if not used:
        return Finding(claim, "not measured", columns, (), "there is no probe of FaDeX in this run")
    names = {"fadex_shipped": "shipped", "fadex_trained_here": "this run"}
    figures = tuple(
        (f"cosine, {title}", f"{block[key]['same']:.3f}", f"{block[key]['different']:.3f}")
        for key, title in names.items()
        if block[key]
    )
    gap = used["same"] - used["different"]
    note = f"apart by {gap:.3f}, at least {MARGIN} was asked"
    return Finding(claim, "yes" if gap >= MARGIN else "no", columns, figures, note)


def _merged(run: Path, rows: Mapping[str, Block], probes: Mapping[str, Block]) -> dict[str, Any]:
    def three(row: str) -> dict[str, float] | None:
        means = rows[row]["means"] if row in rows else {}
        return {key: means[key] for key in HEADLINE if key in means} or None

    cosines = {name: {key: probe[f"{key}_mean"] for key in ("same", "different")} for name, probe in probes.items()}
    seconds = read_json(run / "seconds.json") if (run / "seconds.json").is_file() else {}
    # The headline is of the network that restored the pictures: the shipped one where there is one.
    used = "fadex_shipped" if "fadex_shipped" in cosines and "trained_here" in rows else "fadex"
    return {
        **rows["restored"],
        "rows": {name: {key: row[key] for key in ("complete", "means", "counts")} for name, row in rows.items()},
        "commit": commit(),
        "quickstart": {
            **{row: three(row) for row in ROW_ORDER},
            "fadex": cosines.get(used),
            "fadex_trained_here": cosines.get("fadex"),
            "fadex_shipped": cosines.get("fadex_shipped"),
            "pictures": rows["restored"]["counts"]["scored"],
            "seconds": seconds,
        },
    }


def _probes(run: Path, shipped: Path | None) -> dict[str, Block]:
    """The probes of FaDeX there are, by the folder they are of; the trainer writes beside its weights."""
    places = {
        "fadex_shipped": [run / "fadex_shipped/probe.json", *([shipped] if shipped else [])],
        "fadex": [run / "fadex/probe.json", run / "fadex/weights/probe.json"],
    }
    found = {name: next((path for path in paths if path.is_file()), None) for name, paths in places.items()}
    return {name: read_json(path) for name, path in found.items() if path}


def _page(
    run: Path,
    scores: Block,
    rows: Mapping[str, Block],
    probes: Mapping[str, Block],
    records: Mapping[str, Record],
    truths: Mapping[str, Path],
    metrics: Sequence[str],
    max_bytes: int,
) -> str:
    steps = _last_step(run / "restorer/metrics.jsonl")
    shipped = "trained_here" in rows  # two rows: the one trained here, and the one that restored the pictures
    titles = {
        "input": "degraded input",
        "trained_here": f"restored, weights trained in this run ({steps} steps)",
        "restored": "restored, weights trained longer (shipped)"
        if shipped
        else f"restored, weights trained in this run ({steps} steps)",
        "wrong_tokens": "restored, tokens of another picture's damage",
        "truth": "truth",
    }
    seconds = scores["quickstart"]["seconds"]
    count = scores["quickstart"]["pictures"]
    facts = [f"{count} held-out pictures", f"commit {scores['commit'][:10]}"]
    if seconds:
        facts.insert(1, f"{_minutes(sum(seconds.values()))} in all")
    sections = [
        ("findings", "Findings", _findings_html(scores)),
        ("scores", "Scores", _score_table(run, rows, titles, metrics, scores)),
        ("pictures", "Pictures", _gallery(run, rows, records, truths, titles, max_bytes)),
        ("fadex", "FaDeX", _fadex_html(probes)),
        ("training", "Training", _training_html(run)),
        ("time", "Time", _time_html(seconds)),
        ("setup", "Configuration and versions", _setup_html(run, scores)),
    ]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in sections)
    body = "".join(f'<section id="{key}"><h2>{title}</h2>{content}</section>' for key, title, content in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>Face2Scene quickstart</title><style>{_STYLE}</style></head><body>"
        '<header><div class="wrap"><p class="kicker">Face2Scene · quickstart</p>'
        "<h1>The face in a damaged photo measures the damage, and the whole photo is restored with it</h1>"
        f'<p class="facts">{" · ".join(map(html.escape, facts))}</p></div></header>'
        f'<nav aria-label="Sections"><div class="wrap">{links}</div></nav><main class="wrap">{body}</main>'
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def _findings_html(scores: Block) -> str:
    cards = []
    for finding in findings(scores["quickstart"]):
        kind = {"yes": "yes", "no": "no"}.get(finding.verdict, "none")
        lines = "".join(
            f'<tr><th scope="row">{what}</th><td>{a}</td><td>{b}</td></tr>'
            for what, a, b in (map(html.escape, figures) for figures in finding.figures)
        )
        left, right = map(html.escape, finding.columns)
        table = (
            '<table class="mini full"><thead><tr><td></td>'
            f'<th scope="col">{left}</th><th scope="col">{right}</th>'
            f"</tr></thead><tbody>{lines}</tbody></table>"
            if lines
            else ""
        )
        note = f'<p class="note">{html.escape(finding.note)}</p>' if finding.note else ""
        cards.append(
            f'<article class="card"><p class="verdict {kind}">{html.escape(finding.verdict)}</p>'
            f"<h3>{html.escape(finding.claim)}</h3>{table}{note}</article>"
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _score_table(
    run: Path, rows: Mapping[str, Block], titles: Mapping[str, str], metrics: Sequence[str], scores: Block
) -> str:
    measured = [key for key in metrics if key in scores["protocol"]]
    lines = {row: row_from_scores(titles[row], run / row / "scores.json", measured) for row in rows}
    # The row of wrong tokens answers a question and is no contender, so it is shown without marks.
    marks = {key: ranks([line for row, line in lines.items() if row != "wrong_tokens"], key) for key in measured}
    head = "".join(
        f'<th scope="col">{METRICS[key].title} '
        f'<span aria-label="{METRICS[key].better} is better">{METRICS[key].arrow}</span></th>'
        for key in measured
    )
    body = []
    for row, line in lines.items():
        cells = []
        for key in measured:
            place = marks[key].index(line.values[key]) if line.values.get(key) in marks[key] else None
            kind = {0: ' class="best"', 1: ' class="second"'}.get(place, "") if row != "wrong_tokens" else ""
            cells.append(f"<td{kind}>{html.escape(line.cells[key])}</td>")
        note = f"<small>{html.escape(line.note)}</small>" if line.note.startswith("incomplete") else ""
        body.append(f'<tr><th scope="row">{html.escape(line.name)}{note}</th>{"".join(cells)}</tr>')
    protocol = "".join(
        f"<dt>{entry['title']}</dt><dd>{html.escape(entry['protocol'])}</dd>" for entry in scores["protocol"].values()
    )
    absent = "".join(
        f'<p class="warn">{METRICS[key].title} is not measured: {html.escape(why)}</p>'
        for key, why in scores["not_measured"].items()
    )
    return (
        f'<div class="scroll"><table class="scores"><thead><tr><th scope="col">Row</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
        '<p class="note">Means over the pictures. <span class="best">Best</span> and '
        '<span class="second">second best</span> of the first rows; '
        f"the row with another picture's tokens is a control.</p>{absent}"
        f"<details><summary>How each number is made</summary><dl>{protocol}</dl></details>"
    )


def _gallery(
    run: Path,
    rows: Mapping[str, Block],
    records: Mapping[str, Record],
    truths: Mapping[str, Path],
    titles: Mapping[str, str],
    max_bytes: int,
) -> str:
    names = [
        name
        for name in truths
        if all((run / row / "images" / f"{name}.png").is_file() for row in ("input", "restored"))
    ]
    tables = {row: read_scores_csv(run / row / "scores.csv") for row in ("input", "restored")}
    log = _why_log(run / "restored/restore.jsonl")
    views = [*rows, "truth"]
    for quality in (93, 88, 80, 70):
        figures = []
        size = 0
        for name in tqdm(names, desc="report", unit="picture"):
            files = {row: run / row / "images" / f"{name}.png" for row in rows} | {"truth": truths[name]}
            images = {view: to_bytes(read_image(file)) for view, file in files.items() if file.is_file()}
            figures.append(_figure(name, images, records[name], run, tables, titles, quality, log.get(name)))
            size += len(figures[-1])
            if size > max_bytes and quality > 70:
                break
        if size <= max_bytes:
            break
    left_out = ""
    while len(figures) > 1 and sum(map(len, figures)) > max_bytes:
        figures.pop()
    if len(figures) < len(names):
        left_out = f'<p class="note">{len(names) - len(figures)} more pictures are in the folders of the run.</p>'
    options = {view: titles[view] for view in views}
    return (
        '<div class="controls" role="group" aria-label="What the sliders compare">'
        f"{_select('left', 'Left', options, 'input')}{_select('right', 'Right', options, 'restored')}"
        '<p class="note">Drag across a picture, or focus it and use the arrow keys.</p></div>'
        f'<div class="gallery">{"".join(figures)}</div>{left_out}'
    )


def _select(key: str, label: str, options: Mapping[str, str], chosen: str) -> str:
    items = "".join(
        f'<option value="{value}"{" selected" if value == chosen else ""}>{html.escape(text)}</option>'
        for value, text in options.items()
    )
    return f'<label>{label}<select id="{key}">{items}</select></label>'


def _figure(
    name: str,
    images: Mapping[str, Any],
    record: Record,
    run: Path,
    tables: Mapping[str, Mapping[str, Mapping[str, float]]],
    titles: Mapping[str, str],
    quality: int,
    why: Block | None,
) -> str:
    height, width = images["truth"].shape[:2]
    shown = "".join(
        f'<img data-view="{view}" src="{_data_uri(image, quality)}" width="{width}" height="{height}" '
        f'alt="{html.escape(f"{name}, {titles[view]}")}"{"" if view in ("input", "restored") else " hidden"}>'
        for view, image in images.items()
    )
    pair, caption = _face_pair(name, images, record, run, quality)
    safe = html.escape(name)
    numbers = []
    for key in HEADLINE:
        before, after = (tables[row].get(name, {}).get(key) for row in ("input", "restored"))
        if before is None or after is None:
            continue
        won = (after > before) == (METRICS[key].better == "higher")
        numbers.append(
            f"<tr><th scope='row'>{METRICS[key].title}</th><td>{_number(key, before, unit=False)}</td>"
            f"<td class='{'up' if won else 'down'}'>{_number(key, after, unit=False)}</td></tr>"
        )
    log = f"<details><summary>Why-log</summary><pre>{html.escape(_yaml_like(why))}</pre></details>" if why else ""
    return (
        f'<figure class="card shot"><div class="compare" style="aspect-ratio:{width}/{height}">{shown}'
        '<span class="tag l"></span><span class="tag r"></span><span class="bar" aria-hidden="true"></span>'
        f'<input type="range" min="0" max="100" value="50" aria-label="{safe}: share of the left picture">'
        "</div>"
        f'<figcaption><h3>{safe}</h3><p class="note">{html.escape(_damage(record.recipe))}</p>'
        f'<div class="beside"><div class="pair">{pair}<p class="note">{caption}</p></div>'
        '<table class="mini"><thead><tr><td></td><th scope="col">input</th><th scope="col">restored</th></tr>'
        "</thead>"
        f"<tbody>{''.join(numbers)}</tbody></table></div>{log}</figcaption></figure>"
    )


def _face_pair(name: str, images: Mapping[str, Any], record: Record, run: Path, quality: int) -> tuple[str, str]:
    """The pair FaDeX saw if the run kept it (`restored/faces`), else the face in both pictures."""
    kept = [run / "restored/faces" / f"{name}_{side}.png" for side in ("degraded", "restored")]
    if all(path.is_file() for path in kept):
        pair = [to_bytes(read_image(path)) for path in kept]
        caption = "the face pair: as taken, as the reference restorer sees it"
    else:
        x0, y0, x1, y1 = _square(record.face_box, images["truth"].shape)
        pair = [images[view][y0:y1, x0:x1] for view in ("input", "restored")]
        caption = "the face: degraded, restored"
    tags = "".join(f'<img src="{_data_uri(face, quality)}" alt="{caption}">' for face in pair)
    return f'<div class="faces">{tags}</div>', caption


def _square(box: Sequence[float], shape: Sequence[int]) -> tuple[int, int, int, int]:
    height, width = shape[:2]
    side = min(max(box[2] - box[0], box[3] - box[1]) * 1.2, height, width)
    x0 = min(max((box[0] + box[2] - side) / 2, 0), width - side)
    y0 = min(max((box[1] + box[3] - side) / 2, 0), height - side)
    return round(x0), round(y0), max(round(x0 + side), round(x0) + 1), max(round(y0 + side), round(y0) + 1)


def _damage(recipe: Mapping[str, Any] | None) -> str:
    """A recipe's operators in one line, each with the strength that says most."""
    shown = {
        "Blur": ("blur", "sigma_x"),
        "Resize": ("resize", "factor"),
        "GaussianNoise": ("noise", "sigma"),
        "PoissonNoise": ("Poisson noise", "scale"),
        "Jpeg": ("JPEG", "quality"),
    }
    words = []
    for operator in (recipe or {}).get("operators", []):
        if operator["kind"] == "RestoreSize":
            continue  # every recipe ends at the full size
        word, strength = shown.get(operator["kind"], (operator["kind"].lower(), ""))
        words.append(f"{word} {operator[strength]:.3g}" if strength in operator else word)
    return " → ".join(words)


def _fadex_html(probes: Mapping[str, Block]) -> str:
    parts = []
    for name, probe in probes.items():
        title = "trained longer (shipped)" if name == "fadex_shipped" else "trained in this run"
        parts.append(
            f'<figure class="card"><figcaption><h3>FaDeX, {title}</h3>'
            "<p>Mean cosine, same damage on different pictures "
            f"<b>{probe['same_mean']:.3f}</b> (the diagonal); "
            f"different damage on the same picture <b>{probe['different_mean']:.3f}</b>.</p></figcaption>"
            f"{_matrix_svg(probe.get('matrix', []), probe.get('labels', []))}</figure>"
        )
    if not parts:
        return '<p class="warn">There is no probe of FaDeX in this run.</p>'
    return f'<div class="cards two">{"".join(parts)}</div>'


def _matrix_svg(matrix: Sequence[Sequence[float]], labels: Sequence[object]) -> str:
    """A cosine matrix drawn: orange alike, white unrelated, blue opposite; safe for colour-blind eyes."""
    count = len(matrix)
    if not count:
        return '<p class="note">no matrix was kept</p>'
    names = [str(label) for label in labels] if len(labels) == count else [str(i + 1) for i in range(count)]
    side, left, top = 480 / count, 8 + 7 * min(max(map(len, names)), 18), 8
    edge = f"{side + 0.3:.1f}"  # a little over, or hairlines show between cells
    cells, words = [], []
    free = top  # a name needs 11 units of height
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            x, y = left + j * side, top + i * side
            cells.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{edge}" height="{edge}" fill="{_diverging(value)}">'
                f"<title>{html.escape(names[i])}, {html.escape(names[j])}: {value:.2f}</title></rect>"
            )
            if count <= 12:
                ink = "#fff" if abs(value) > 0.7 else "#1b2230"
                words.append(
                    f'<text x="{x + side / 2:.1f}" y="{y + side / 2 + 4:.1f}" text-anchor="middle" '
                    f'fill="{ink}">{value:.2f}</text>'
                )
    for name, group in itertools.groupby(range(count), key=names.__getitem__):  # one name for a run of equal ones
        members = list(group)
        y = top + (members[0] + len(members) / 2) * side + 4
        if y - 9 >= free - 5:
            free = y + 4
            words.append(
                f'<text class="ink" x="{left - 6}" y="{y:.1f}" text-anchor="end">{html.escape(name[:18])}</text>'
            )
    stops = "".join(
        f'<rect x="{left + step * 4.8:.1f}" y="502" width="5.2" height="10" fill="{_diverging(step / 50 - 1)}"/>'
        for step in range(100)
    )
    marks = "".join(
        f'<text class="ink" x="{left + (value + 1) * 240:.0f}" y="526" text-anchor="{anchor}">{text}</text>'
        for value, text, anchor in ((-1, "-1", "start"), (0, "0", "middle"), (1, "cosine 1", "end"))
    )
    return (
        f'<svg viewBox="0 0 {left + 488} 532" role="img" aria-label="Mean cosine for every pair of degradations">'
        f"{''.join(cells)}{''.join(words)}{stops}{marks}</svg>"
    )


def _diverging(value: float) -> str:
    """-1 blue, 0 near white, 1 orange; the ends are ColorBrewer's, which every common eye tells apart."""
    value = max(-1.0, min(1.0, value if math.isfinite(value) else 0.0))
    end = (179, 88, 6) if value > 0 else (33, 102, 172)
    share = abs(value) ** 0.9
    return "#" + "".join(f"{round(247 + (part - 247) * share):02x}" for part in end)


def _training_html(run: Path) -> str:
    charts = []
    for name, title in (("fadex", "FaDeX"), ("restorer", "Restorer")):
        curves = _curves(run / name / "metrics.jsonl")
        drawn = "".join(_curve_svg(key, points) for key, points in curves.items())
        if drawn:
            charts.append(f'<h3>{title}</h3><div class="charts">{drawn}</div>')
        else:
            charts.append(f'<h3>{title}</h3><p class="note">no training steps were logged in this run</p>')
    return "".join(charts)


def _curves(path: Path, most: int = 8) -> dict[str, list[tuple[float, float]]]:
    """key -> [(step, value)] of a metrics.jsonl; a key that never moves says nothing and is left out."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in _json_lines(path):
        for key, value in line.items():
            if key != "step" and "step" in line and isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(key, []).append((line["step"], value))
    moving = {k: p for k, p in curves.items() if len(p) > 1 and len({v for _, v in p}) > 1}
    order = sorted(moving, key=lambda key: ("loss" not in key, key.startswith(("lr", "seconds", "grad"))))
    return {key: moving[key] for key in order[:most]}


def _curve_svg(key: str, points: Sequence[tuple[float, float]]) -> str:
    width, height, pad = 300, 150, 46
    steps, values = [p[0] for p in points], [p[1] for p in points]
    low, high = min(values), max(values)
    first, last = min(steps), max(steps)

    def place(step: float, value: float) -> str:
        x = pad + (step - first) / max(last - first, 1e-9) * (width - pad - 8)
        y = height - 22 - (value - low) / (high - low) * (height - 34)
        return f"{x:.1f},{y:.1f}"

    window = max(1, len(points) // 25)
    smooth = [
        sum(values[max(0, i - window) : i + window + 1]) / len(values[max(0, i - window) : i + window + 1])
        for i in range(len(values))
    ]
    thin = max(1, len(points) // 400)
    raw = " ".join(place(s, v) for s, v in list(zip(steps, values, strict=True))[::thin])
    line = " ".join(place(s, v) for s, v in list(zip(steps, smooth, strict=True))[::thin])
    title = html.escape(key)
    return (
        f'<figure class="chart"><figcaption>{title}</figcaption>'
        f'<svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{title} from {values[0]:.4g} to {values[-1]:.4g} over {last:g} steps">'
        f'<path class="axis" d="M{pad},8V{height - 22}H{width - 6}"/><polyline class="raw" points="{raw}"/>'
        f'<polyline class="line" points="{line}"/>'
        f'<text class="ink" x="{pad - 4}" y="15" text-anchor="end">{high:.2g}</text>'
        f'<text class="ink" x="{pad - 4}" y="{height - 22}" text-anchor="end">{low:.2g}</text>'
        f'<text class="ink" x="{pad}" y="{height - 6}">{first:g}</text>'
        f'<text class="ink" x="{width - 6}" y="{height - 6}" text-anchor="end">step {last:g}</text>'
        "</svg></figure>"
    )


def _time_html(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return '<p class="note">no timings were kept</p>'
    longest = max(seconds.values()) or 1
    lines = "".join(
        f'<tr><th scope="row">{html.escape(str(step).replace("_", " "))}</th><td>{_minutes(value)}</td>'
        f'<td class="wide"><span class="length" style="width:{100 * value / longest:.1f}%"></span></td></tr>'
        for step, value in seconds.items()
    )
    total = f"<tr><th scope='row'>in all</th><td>{_minutes(sum(seconds.values()))}</td><td></td></tr>"
    return f'<table class="time"><tbody>{lines}</tbody><tfoot>{total}</tfoot></table>'


def _setup_html(run: Path, scores: Block) -> str:
    files = [run / name / "config.yaml" for name in (".", "fadex", "restorer")]
    configs = "".join(
        f"<details><summary>Configuration: {html.escape(str(file.parent.relative_to(run.parent)))}</summary>"
        f"<pre>{html.escape(file.read_text(encoding='utf-8'))}</pre></details>"
        for file in files
        if file.is_file()
    )
    lines = "".join(
        f'<tr><th scope="row">{html.escape(k)}</th><td>{html.escape(v)}</td></tr>' for k, v in versions().items()
    )
    return (
        f'<table class="mini"><tbody><tr><th scope="row">commit</th><td>{html.escape(scores["commit"])}</td></tr>'
        f"{lines}</tbody></table>{configs}"
    )


def _why_log(path: Path) -> dict[str, Block]:
    lines = {}
    for line in _json_lines(path):
        name = next((line[key] for key in ("name", "image", "input") if isinstance(line.get(key), str)), None)
        if name:
            lines[Path(name).stem] = line
    return lines


def _json_lines(path: Path) -> list[Block]:
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue  # the line a stop cut through
    return [line for line in lines if isinstance(line, dict)]


def _last_step(path: Path) -> int:
    return max((int(line.get("step", 0)) for line in _json_lines(path)), default=0)


def _yaml_like(value: Block) -> str:
    return "\n".join(f"{key}: {json.dumps(item, ensure_ascii=False)}" for key, item in value.items())


def _data_uri(image: Any, quality: int) -> str:
    out = io.BytesIO()
    Image.fromarray(image).save(out, format="JPEG", quality=quality, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _number(key: str, value: float, unit: bool = True) -> str:
    return f"{value:.2f}{' dB' if unit else ''}" if key.startswith("psnr") else f"{value:.4f}"


def _minutes(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


_STYLE = """
:root{--page:#f7f7f5;--card:#fff;--ink:#1b2230;--soft:#5a6372;--line:#e1e3e6;--accent:#1f5f8b;
  --good:#1a6b4f; --good-bg:#e3f2ec;--bad:#9a3412;--bad-bg:#fdeee6;--raw:#b9c9d6}
@media (prefers-color-scheme:dark){:root{--page:#12151a;--card:#1a1e25;--ink:#e8eaee;--soft:#a0a8b5;
  --line:#2c323c; --accent:#79b8e6;--good:#7fd1ae;--good-bg:#17352a;--bad:#f4a67f;--bad-bg:#3d2216;
  --raw:#3c4c5a}}
*{box-sizing:border-box}html{scroll-behavior:smooth;scroll-padding-top:3.5rem}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0;background:var(--page);color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto, "Noto Sans","DejaVu Sans",sans-serif;
  font-variant-numeric:tabular-nums}
.wrap{max-width:1120px;margin:0 auto;padding:0 1.25rem}header{padding:3rem 0 1.5rem}
h1{font-size:clamp(1.5rem,3.6vw,2.3rem);line-height:1.2;margin:.2rem 0 .8rem; max-width:30em;
  font-weight:650;letter-spacing:-.015em;text-wrap:balance}
.kicker{margin:0;color:var(--accent);font-weight:600;font-size:.9rem}
.facts,.note{color:var(--soft);font-size:.875rem;margin:.4rem 0}
nav{position:sticky;top:0;z-index:5;background:var(--page);border-bottom:1px solid var(--line)}
nav .wrap{display:flex;gap:1.25rem;overflow-x:auto;scrollbar-width:none}
nav a{color:var(--soft);text-decoration:none;padding:.7rem 0;white-space:nowrap;font-size:.9rem}
nav a:hover{color:var(--ink)}section{padding:2.25rem 0 .5rem}
h2{font-size:1.3rem;margin:0 0 1rem;letter-spacing:-.01em}
h3{font-size:1rem;margin:0 0 .35rem;line-height:1.35}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1.1rem;margin:0;
  min-width:0}
.card p{margin:.3rem 0}
.cards{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,290px),1fr))}
.cards.two{grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),520px))}
.verdict{display:inline-block;font-weight:650;font-size:.85rem;padding:.1rem .7rem;border-radius:99px;
  margin:0 0 .6rem!important;background:var(--line)}
.yes{background:var(--good-bg);color:var(--good)}.no{background:var(--bad-bg);color:var(--bad)}
.scroll{overflow-x:auto}table{border-collapse:collapse}th{font-weight:500;text-align:left}
.scores{width:100%;background:var(--card);border:1px solid var(--line);border-radius:10px;
  border-spacing:0;border-collapse:separate}
.scores th,.scores td{padding:.6rem .9rem;border-bottom:1px solid var(--line)}
.scores tbody tr:last-child>*{border-bottom:0}
.scores thead th{color:var(--soft);font-size:.85rem;white-space:nowrap}
.scores td,.scores thead th:not(:first-child){text-align:right;white-space:nowrap}
.scores small{display:block;color:var(--bad)}.best{font-weight:700}
.second{text-decoration:underline;text-underline-offset:.25em;text-decoration-thickness:1px}
.warn{color:var(--bad);font-size:.9rem}details{margin:.6rem 0}
summary{cursor:pointer;color:var(--accent);font-size:.9rem}
dl{font-size:.875rem;display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem}dt{font-weight:600}
dd{margin:0;color:var(--soft)}
pre{overflow:auto;max-height:26rem;font:12.5px/1.5 ui-monospace,"DejaVu Sans Mono",monospace;
  background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.9rem}
.controls{display:flex;flex-wrap:wrap;gap:.6rem 1.25rem;align-items:end;margin-bottom:1rem}
.controls label{font-size:.8rem;color:var(--soft);display:block;min-width:0;max-width:100%}
.controls select{display:block;margin-top:.2rem}
select{font:inherit;font-size:.9rem;color:var(--ink);background:var(--card);border:1px solid var(--line);
  border-radius:7px;padding:.4rem .5rem;max-width:100%}
.gallery{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,320px),1fr))}
.shot{padding:0;overflow:hidden;display:flex;flex-direction:column}
.shot figcaption{padding:.9rem 1rem 1rem}
.compare{position:relative;overflow:hidden;background:#000;--cut:50%}
.compare img{position:absolute;inset:0;width:100%;height:100%;object-fit:cover;display:block}
.compare img[hidden]{display:none}
.compare img.over{clip-path:inset(0 calc(100% - var(--cut)) 0 0);z-index:1}
.bar{position:absolute;z-index:2;top:0;bottom:0;left:var(--cut);width:2px;margin-left:-1px;
  background:#fff;box-shadow:0 0 4px #0009;pointer-events:none}
.bar::after{content:"";position:absolute;bottom:8%;left:50%;width:20px;height:20px;margin:0 -10px;
  border-radius:50%;background:#fff;box-shadow:0 0 5px #0007}
.compare input{position:absolute;z-index:4;inset:0;width:100%;height:100%;margin:0;opacity:0;
  cursor:ew-resize;touch-action:pan-y}
.compare:focus-within{outline:3px solid var(--accent);outline-offset:-3px}
.tag{position:absolute;z-index:3;bottom:.5rem;font-size:.72rem;line-height:1.3;color:#fff;
  background:#000a;border-radius:5px;padding:.1rem .45rem;pointer-events:none;max-width:46%}
.tag.l{left:.5rem}.tag.r{right:.5rem}.tag:empty{display:none}
.beside{display:flex;gap:.9rem;align-items:flex-start;justify-content:space-between;margin-top:.5rem}
.pair{flex:0 1 128px;min-width:90px}.faces{display:flex;gap:4px}
.faces img{width:calc(50% - 2px);aspect-ratio:1;object-fit:cover;border-radius:5px}
.pair .note{font-size:.75rem;line-height:1.35;margin:.3rem 0 0}.mini{font-size:.82rem}
.mini th,.mini td{padding:.12rem 0 .12rem .7rem}.mini th:first-child,.mini td:first-child{padding-left:0}
.mini.full{width:100%;font-size:.9rem;margin:.5rem 0 .2rem}
.mini.full th,.mini.full td{padding-top:.25rem;padding-bottom:.25rem;border-top:1px solid var(--line)}
.mini.full thead th,.mini.full thead td{border-top:0}.mini td{text-align:right;white-space:nowrap}
.mini thead th{color:var(--soft);text-align:right}
#setup .mini td{text-align:left;white-space:normal;overflow-wrap:anywhere}
.up{color:var(--good);font-weight:600}.down{color:var(--bad);font-weight:600}
svg{width:100%;height:auto;display:block;font-size:11px}svg .ink{fill:var(--soft)}
.charts{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,250px),1fr));
  margin-bottom:1.5rem}
.chart{margin:0;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.7rem}
.chart figcaption{font-size:.85rem;font-weight:600}.axis{fill:none;stroke:var(--line)}
.raw{fill:none;stroke:var(--raw)}
.line{fill:none;stroke:var(--accent);stroke-width:2;stroke-linejoin:round}
.time{width:100%;max-width:46rem}.time th,.time td{padding:.3rem 1rem .3rem 0;white-space:nowrap}
.time td{text-align:right}.time .wide{width:60%;text-align:left}
.length{display:block;height:.7rem;border-radius:3px;background:var(--accent);min-width:2px}
.time tfoot>tr>*{border-top:1px solid var(--line);font-weight:600}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}main{padding-bottom:4rem}
@media (max-width:560px){header{padding-top:2rem}.scores th,.scores td{padding:.5rem .6rem}
  .scores{font-size:.875rem} .scores tbody th{min-width:9.5rem}
  .controls label,.controls select{width:100%}.scroll{margin:0 -1.25rem;padding:0 1.25rem}
  .time .wide{width:35%}.time th{white-space:normal}}
@media print{nav,.controls{display:none}}
"""

_SCRIPT = """
const left=document.getElementById('left'),right=document.getElementById('right');
function show(){document.querySelectorAll('.compare').forEach(box=>{
  box.querySelectorAll('img').forEach(img=>{const v=img.dataset.view;
    img.hidden=v!==left.value&&v!==right.value;img.classList.toggle('over',v===left.value)});
  box.querySelector('.tag.l').textContent=label(left);box.querySelector('.tag.r').textContent=label(right)})}
const names={input:'input',restored:'restored',truth:'truth',
  trained_here:'trained in this run',wrong_tokens:'wrong tokens'};
function label(s){return names[s.value]}
document.querySelectorAll('.compare input').forEach(i=>i.addEventListener('input',
  ()=>i.parentNode.style.setProperty('--cut',i.value+'%')));
left.addEventListener('change',show);right.addEventListener('change',show);show();
"""
