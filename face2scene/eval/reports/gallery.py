"""The report of scored folders with one ground truth: one page with tables, plots and a gallery.

The page holds the numbers; the images are small JPEGs in `thumbnails/` beside it, which are loaded when they come into
view, so that a page of a thousand images opens fast.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image
from tqdm.auto import tqdm

from face2scene.common.charts import spread_svg
from face2scene.common.files import atomic_write, sha256_of
from face2scene.common.ledger import Ledger, content
from face2scene.common.pages import write_page
from face2scene.common.provenance import provenance
from face2scene.eval.metrics.registry import METRICS
from face2scene.eval.scoring import significance
from face2scene.eval.scoring.pairing import ScoreError, named_gt
from face2scene.eval.scoring.results import alignment_doubts, gt_digest, read_scores
from face2scene.eval.tables.render import TableRow, html_table, row_from_scores, same_gt, slug
from face2scene.image_io.arrays import list_images, read_image, to_bytes
from face2scene.inference.log import RESTORATION_LOG

THUMBNAIL = 448  # pixels, longer side (ours)
QUALITY = 82  # of their JPEG (ours)


@dataclass(frozen=True)
class GalleryMethod:
    """One scored folder of the report."""

    title: str
    folder: Path  # with scores.json and scores.csv
    scores: Mapping[str, Any]
    values: Mapping[str, Mapping[str, float]]
    log: Mapping[str, Mapping[str, Any]]  # entries of the restoration log by name
    images: Mapping[str, Path]  # by name

    @classmethod
    def read(cls, title: str, folder: Path) -> "GalleryMethod":
        """Raises FileNotFoundError (also where the scored images are not found) or ScoreError, see `read_scores`."""
        scores, values = read_scores(folder)
        named = Path(scores["predictions"])  # perhaps relative to the folder that the scoring was started in
        places = [named, *(parent / named for parent in folder.resolve().parents)]
        made = next((place for place in places if place.is_dir()), None)
        if made is None:
            raise FileNotFoundError(f"{title}: the scored images are not in {named}; start where they were scored.")
        images = {path.stem: path for path in list_images(made)}
        return cls(title, folder, scores, values, log_entries(folder) or log_entries(made.parent), images)


def log_entries(folder: Path) -> dict[str, dict[str, Any]]:
    """The entries of a folder's restoration log, if it has one, by the name of the image, less its suffix."""
    lines = Ledger(folder / RESTORATION_LOG).read().lines
    return {Path(name).stem: line for name, line in lines.items() if "failed" not in line}


def write_report(
    run: str | Path, methods: Mapping[str, str | Path], gt: str | Path | Mapping[str, Path], *, title: str = ""
) -> Path:
    """Write `run`/report.html and its thumbnails; those of unchanged images are kept.

    Args:
        methods: title -> scored folder; the others are tested against the first.
        gt: as for `score.score_folders`.

    Raises:
        ScoreError: no method, titles that cannot be told apart as folders, a method that was scored against another
            ground truth, or a CSV that was changed.
        FileNotFoundError: a folder is not scored.
    """
    run = Path(run)
    if not methods:
        raise ScoreError("A report needs at least one scored folder (option methods).")
    if len({slug(name) for name in methods}) < len(methods) or "truth" in map(slug, methods):
        raise ScoreError(f"The titles {list(methods)} cannot be told apart as folder names: rename one.")
    read = [GalleryMethod.read(name, Path(folder)) for name, folder in methods.items()]
    gts = named_gt(gt)
    against = gt_digest({name: sha256_of(path) for name, path in gts.items()})
    if others := [method.title for method in read if method.scores.get("truth") != against]:
        raise ScoreError(
            f"{', '.join(others)}: not scored against this ground truth of {against['pictures']} images. Score them "
            "again, or give the ground truth that they were scored against (option gt)."
        )
    names = [name for name in gts if any(name in method.images for method in read)]
    views = {slug(method.title): method for method in read}
    tasks = [
        (run / "thumbnails" / view / f"{name}.jpg", method.images[name])
        for view, method in views.items()
        for name in names
        if name in method.images
    ]
    tasks += [(run / "thumbnails/truth" / f"{name}.jpg", gts[name]) for name in names]
    with ThreadPoolExecutor(2) as pool:
        sizes = dict(tqdm(pool.map(thumbnail, tasks), total=len(tasks), desc="thumbnails", unit="image"))
    data = {
        "names": names,
        "sizes": [sizes.get(run / "thumbnails/truth" / f"{name}.jpg") for name in names],
        "metrics": {key: [METRICS[key].title, METRICS[key].better == "higher"] for key in _columns(read)},
        "views": {
            **{
                view: {
                    "title": method.title,
                    "values": {key: [method.values.get(n, {}).get(key) for n in names] for key in _columns([method])},
                    "why": [method.log.get(n) for n in names] if method.log else None,
                    "flagged": method.scores["pictures"]["flagged"],
                    "missing": [n for n in names if n not in method.images],
                    "full": [os.path.relpath(method.images[n], run) if n in method.images else None for n in names],
                }
                for view, method in views.items()
            },
            "truth": {"title": "ground truth", "values": {}, "why": None, "flagged": {}, "missing": [], "full": None},
        },
    }
    return _write_page(run / "report.html", title or run.name, read, data)


def _columns(methods: Sequence[GalleryMethod]) -> list[str]:
    keys = [key for method in methods for row in method.values.values() for key in row]
    return [key for key in METRICS if key in set(keys)]


def _write_page(path: Path, title: str, methods: Sequence[GalleryMethod], data: Mapping[str, Any]) -> Path:
    keys = [key for key in METRICS if any(key in method.scores["protocol"] for method in methods)]
    rows = [row_from_scores(method.title, method.folder / "scores.json", keys) for method in methods]
    plots = []
    for key in _columns(methods):
        values = {m.title: [row[key] for row in m.values.values() if key in row] for m in methods}
        plots.append(spread_svg(f"{METRICS[key].title} {METRICS[key].arrow}", {k: v for k, v in values.items() if v}))
    write_page(
        path,
        "report.html.j2",
        style="page.css",
        scripts=("page.js", "gallery.js"),
        title=f"{title}: report",
        heading=title,
        facts=[f"{len(data['names'])} images", f"{len(methods)} {'methods' if len(methods) > 1 else 'method'}"],
        table=html_table(rows, keys),
        warnings=_warnings(methods),
        regions=_regions(methods, keys),
        protocol={k: next(m.scores["protocol"][k] for m in methods if k in m.scores["protocol"]) for k in keys},
        tests=_tests(methods) if len(methods) > 1 else [],
        plots=plots,
        data=data,
        versions=methods[0].scores["versions"],
        provenance=provenance() | {"rows": {m.title: m.scores.get("provenance") for m in methods}},
    )
    return path


def _warnings(methods: Sequence[GalleryMethod]) -> list[str]:
    warnings = [
        f"{METRICS[key].title} is not measured: {why}"
        for key, why in {k: w for m in methods for k, w in m.scores["not_measured"].items()}.items()
    ]
    for method in methods:
        if alignment := method.scores.get("alignment"):
            warnings += [f"{method.title}: {doubt}" for doubt in alignment_doubts(alignment)]
        for key, names in method.scores.get("undefined", {}).items():
            warnings.append(f"{METRICS[key].title} of {method.title} has no value for {len(names)} images.")
    return warnings


def _regions(methods: Sequence[GalleryMethod], keys: Sequence[str]) -> dict[str, Markup]:
    """A table for each region, by its title."""
    regions: dict[str, list[TableRow]] = {}
    for method in methods:
        for region, found in method.scores.get("regions", {}).items():
            row = row_from_scores(method.title, method.folder / region / "scores.json", keys)
            regions.setdefault(f"{region}: {found['about']}", []).append(row)
    return {title: html_table(same_gt(rows), keys) for title, rows in regions.items()}


def _tests(methods: Sequence[GalleryMethod]) -> list[tuple[str, list[Any], str]]:
    """For each other method: title, differences from the first with metric and verdict, or the error instead."""
    first, *others = methods
    tests: list[tuple[str, list[Any], str]] = []
    for other, found in zip(others, significance.compare_all(first.folder, [o.folder for o in others]), strict=True):
        title, names = f"{other.title} against {first.title}", (first.title, other.title)
        if isinstance(found, ScoreError):
            tests.append((title, [], str(found)))
        else:
            tests.append((title, [(d, METRICS[d.metric], significance.describe(d, *names)) for d in found], ""))
    return tests


def thumbnail(task: tuple[Path, Path]) -> tuple[Path, tuple[int, int]]:
    """Write the small JPEG of (target, source) unless it is there; returns the target and its (width, height).

    Its comment is the source's hash: times tell nothing when a title is given to another folder.
    """
    target, source = task
    source_hash = content(source).encode()
    with suppress(OSError), Image.open(target, formats=["JPEG"]) as image:  # OSError: not there, or no image
        if image.info.get("comment") == source_hash:
            return target, image.size
    image = Image.fromarray(to_bytes(read_image(source)))
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    with atomic_write(target) as partial:
        image.save(partial, format="JPEG", quality=QUALITY, comment=source_hash)
    return target, image.size
