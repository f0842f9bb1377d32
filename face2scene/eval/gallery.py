"""The report of an evaluation: any methods on one truth, in one page with tables, plots and a gallery.

The page holds numbers only; pictures are small JPEGs in `thumbnails/` beside it, loaded when they come into view, so
that a thousand pictures open at once.
"""

import html
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from face2scene.eval import compare
from face2scene.eval.document import document, pairs_table, protocol_list, select
from face2scene.eval.metrics import METRICS
from face2scene.eval.pairing import ScoreError, named_truth
from face2scene.eval.plots import spread_svg
from face2scene.eval.results import SHIFT, read_scores, truth_digest
from face2scene.eval.tables import Row, html_table, one_truth, row_from_scores, slug
from face2scene.files import atomic_write, sha256_of
from face2scene.images import list_images, read_image, to_bytes
from face2scene.why_log import WHY_LOG

THUMBNAIL = 448  # pixels, longer side (ours)
QUALITY = 82  # of their JPEG (ours)


@dataclass(frozen=True)
class Method:
    """One scored folder of the report."""

    title: str
    folder: Path  # with scores.json and scores.csv
    scores: Mapping[str, Any]
    values: Mapping[str, Mapping[str, float]]
    why: Mapping[str, Mapping[str, Any]]  # the why-log by name, where there is one
    pictures: Mapping[str, Path]  # by name

    @classmethod
    def read(cls, title: str, folder: Path) -> "Method":
        """Raises FileNotFoundError or ScoreError, see `results.read_scores`."""
        scores, values = read_scores(folder)
        logs = [path for path in (folder / WHY_LOG, Path(scores["predictions"]).parent / WHY_LOG) if path.is_file()]
        lines = logs[0].read_text(encoding="utf-8").splitlines() if logs else []
        why = {Path(line["name"]).stem: line for line in map(json.loads, filter(str.strip, lines))}
        made = Path(scores["predictions"])
        pictures = {path.stem: path for path in list_images(made)} if made.is_dir() else {}
        return cls(title, folder, scores, values, why, pictures)


def write_report(
    run: str | Path, methods: Mapping[str, str | Path], truth: str | Path | Mapping[str, Path], *, title: str = ""
) -> Path:
    """Write `run`/report.html and its thumbnails; thumbnails newer than their picture are kept.

    Args:
        run: the report's folder.
        methods: title -> scored folder; the first is what the others are tested against.
        truth: as for `score.score_folders`.

    Raises:
        ScoreError: no method, titles that cannot be told apart as folders, a method that was scored against another
            truth, or a CSV that was changed.
        FileNotFoundError: a folder is not scored.
    """
    run = Path(run)
    if not methods:
        raise ScoreError("A report needs at least one scored folder (option methods).")
    if len({slug(name) for name in methods}) < len(methods) or "truth" in map(slug, methods):
        raise ScoreError(f"The titles {list(methods)} cannot be told apart as folder names: rename one.")
    read = [Method.read(name, Path(folder)) for name, folder in methods.items()]
    truths = named_truth(truth)
    against = truth_digest({name: sha256_of(path) for name, path in truths.items()})
    if others := [method.title for method in read if method.scores.get("truth") != against]:
        raise ScoreError(
            f"{', '.join(others)}: not scored against this truth of {against['pictures']} pictures. Score them again, "
            "or give the truth that they were scored against (option truth)."
        )
    names = [name for name in truths if any(name in method.pictures for method in read)]
    views = {slug(method.title): method for method in read}
    jobs = [
        (run / "thumbnails" / view / f"{name}.jpg", method.pictures[name])
        for view, method in views.items()
        for name in names
        if name in method.pictures
    ]
    jobs += [(run / "thumbnails/truth" / f"{name}.jpg", truths[name]) for name in names]
    with ThreadPoolExecutor(2) as pool:
        sizes = dict(tqdm(pool.map(thumbnail, jobs), total=len(jobs), desc="thumbnails", unit="picture"))
    data = {
        "names": names,
        "sizes": [sizes.get(run / "thumbnails/truth" / f"{name}.jpg") for name in names],
        "metrics": {key: [METRICS[key].title, METRICS[key].better == "higher"] for key in _columns(read)},
        "views": {
            **{
                view: {
                    "title": method.title,
                    "values": {key: [method.values.get(n, {}).get(key) for n in names] for key in _columns([method])},
                    "why": [method.why.get(n) for n in names] if method.why else None,
                    "flagged": method.scores["pictures"]["flagged"],
                    "missing": [n for n in names if n not in method.pictures],
                    "full": [os.path.relpath(method.pictures[n], run) if n in method.pictures else None for n in names],
                }
                for view, method in views.items()
            },
            "truth": {"title": "truth", "values": {}, "why": None, "flagged": {}, "missing": [], "full": None},
        },
    }
    page = _page(title or run.name, read, data)
    with atomic_write(run / "report.html") as partial:
        partial.write_text(page, encoding="utf-8")
    return run / "report.html"


def _columns(methods: Sequence[Method]) -> list[str]:
    keys = [key for method in methods for row in method.values.values() for key in row]
    return [key for key in METRICS if key in set(keys)]


def _page(title: str, methods: Sequence[Method], data: Mapping[str, Any]) -> str:
    keys = [key for key in METRICS if any(key in method.scores["protocol"] for method in methods)]
    protocol = {key: next(m.scores["protocol"][key] for m in methods if key in m.scores["protocol"]) for key in keys}
    rows = [row_from_scores(method.title, method.folder / "scores.json", keys) for method in methods]
    sections = [
        ("scores", "Scores", _scores(methods, rows, keys) + protocol_list(protocol)),
        ("plots", "Spread over the pictures", _plots(methods)),
        ("pictures", "Pictures", _gallery(methods, data)),
        ("setup", "Versions", pairs_table(methods[0].scores["versions"])),
    ]
    if len(methods) > 1:
        sections.insert(1, ("tests", "Differences", _tests(methods)))
    count = len(data["names"])
    facts = [f"{count} pictures", f"{len(methods)} {'methods' if len(methods) > 1 else 'method'}"]
    return document(f"{title}: report", "Face2Scene · evaluation", title, facts, sections, ("gallery.js",))


def _scores(methods: Sequence[Method], rows: Sequence[Row], keys: Sequence[str]) -> str:
    warnings = [
        f"{METRICS[key].title} is not measured: {why}"
        for key, why in {k: w for m in methods for k, w in m.scores["not_measured"].items()}.items()
    ]
    for method in methods:
        alignment = method.scores.get("alignment", {})
        if 2 * len(unlike := alignment.get("unlike", [])) > alignment.get("estimated", 0) + len(unlike):
            warnings.append(f"{method.title}: {len(unlike)} pictures are unlike the truth of their name.")
        shift = alignment.get("median_shift")
        if shift and (shift[0] ** 2 + shift[1] ** 2) ** 0.5 > SHIFT:
            warnings.append(f"{method.title} lies beside its truth by {shift[0]:+.2f}, {shift[1]:+.2f} pixels.")
        for key, names in method.scores.get("undefined", {}).items():
            warnings.append(f"{METRICS[key].title} of {method.title} has no value for {len(names)} pictures.")
    shown = "".join(f'<p class="warn">{html.escape(text)}</p>' for text in warnings)
    regions = {}
    for method in methods:
        for region, found in method.scores.get("regions", {}).items():
            regions.setdefault(region, (found["about"], []))[1].append(
                row_from_scores(method.title, method.folder / region / "scores.json", keys)
            )
    parts = "".join(
        f"<h3>{region}: {html.escape(about)}</h3>{html_table(one_truth(lines), keys)}"
        for region, (about, lines) in regions.items()
    )
    return f"{html_table(rows, keys)}{shown}{parts}"


def _tests(methods: Sequence[Method]) -> str:
    first, *others = methods
    cards, count = [], 0
    for other, found in zip(others, compare.compare_all(first.folder, [o.folder for o in others]), strict=True):
        if isinstance(found, ScoreError):
            cards.append(f'<p class="warn">{html.escape(str(found))}</p>')
            continue
        count += len(found)
        lines = "".join(
            f'<tr><th scope="row">{METRICS[d.metric].title} {METRICS[d.metric].arrow}</th>'
            f"<td>{d.means[1] - d.means[0]:+.4f}</td><td>{d.interval[0]:+.4f} to {d.interval[1]:+.4f}</td>"
            f"<td>{d.p_holm:.2g}</td><td>{d.better:.0%}</td><td>"
            f"{html.escape(compare.said(d, first.title, other.title))}</td></tr>"
            for d in found
        )
        cards.append(
            f"<h3>{html.escape(other.title)} against {html.escape(first.title)}</h3>"
            '<div class="scroll"><table class="scores"><thead><tr><td></td><th>difference</th><th>95 % interval</th>'
            f"<th>p, corrected</th><th>better in</th><td></td></tr></thead><tbody>{lines}</tbody></table></div>"
        )
    note = (
        "Paired over the pictures: bootstrap interval of the mean difference, Wilcoxon's test with Holm's correction "
        f"for the {count} tests of this page."
    )
    return f'{"".join(cards)}<p class="note">{note}</p>'


def _plots(methods: Sequence[Method]) -> str:
    figures = []
    for key in _columns(methods):
        values = {m.title: [row[key] for row in m.values.values() if key in row] for m in methods}
        figures.append(spread_svg(f"{METRICS[key].title} {METRICS[key].arrow}", {k: v for k, v in values.items() if v}))
    return f'<div class="charts wide">{"".join(figures)}</div>'


def _gallery(methods: Sequence[Method], data: Mapping[str, Any]) -> str:
    titles = {view: entry["title"] for view, entry in data["views"].items()}
    views = list(titles)
    right = views[-2] if len(methods) > 1 else views[0]
    left = views[0] if len(methods) > 1 else "truth"
    orders = {"name": "name", **{key: title for key, (title, _) in data["metrics"].items()}}
    of = {"right": "the right method", "left": "the left method", "apart": "right less left", "spread": "disagreement"}
    # "</" inside a script would end it
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    return (
        '<div class="controls" role="group" aria-label="What is shown">'
        f"{select('left', 'Left', titles, left)}{select('right', 'Right', titles, right)}"
        f"{select('order', 'Sort by', orders, 'name')}{select('of', 'of', of, 'right')}"
        '<label>Direction<select id="direction"><option value="1">worst first</option>'
        '<option value="-1">best first</option></select></label>'
        '<label>Find<input id="find" type="search" placeholder="part of a name"></label>'
        '<p class="note" id="count"></p></div>'
        '<div class="gallery" id="gallery"></div><div id="more"></div>'
        f'<script type="application/json" id="data">{text}</script>'
    )


def thumbnail(job: tuple[Path, Path]) -> tuple[Path, tuple[int, int]]:
    """Write the small JPEG of (target, source) unless it is newer; returns the target and its (width, height)."""
    target, source = job
    if target.is_file() and target.stat().st_mtime > source.stat().st_mtime:
        with Image.open(target) as image:
            return target, image.size
    image = Image.fromarray(to_bytes(read_image(source)))
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    with atomic_write(target) as partial:
        image.save(partial, format="JPEG", quality=QUALITY)
    return target, image.size
