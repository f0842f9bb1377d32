"""A printed table with ours beside it as a page, thumbnails under our rows."""

import os
from collections.abc import Sequence
from pathlib import Path

from face2scene.eval.gallery import thumbnail
from face2scene.eval.printed import Printed, notes
from face2scene.eval.tables import html_table, slug
from face2scene.files import read_json
from face2scene.images import list_images
from face2scene.pages import render

_SHOTS = 4  # thumbnails of a row


def table_page(title: str, parts: Sequence[Printed], runs: Path) -> str:
    """HTML for a file in `runs`; small pictures are written to `runs/thumbnails/`."""
    sections, shown = {}, {}
    for part in parts:
        rows, key = part.beside(runs), slug(f"{part.table} {part.key}")
        shots = {row.name: _shots(part, row.name, runs) for row in part.rows}
        sections[key] = part.title
        shown[key] = {"table": html_table(rows, part.columns, thumbnails=shots), "notes": notes(part, rows)}
    return render(
        "tables.html.j2",
        style="page.css",
        title=f"Face2Scene: {title}",
        heading=title,
        sections=sections,
        parts=shown,
    )


def _shots(part: Printed, method: str, runs: Path) -> list[str]:
    scores = part.folder(runs, method) / "scores.json"
    if not scores.is_file():
        return []
    folder = read_json(scores).get("predictions")
    made = []
    for picture in list_images(folder)[:_SHOTS] if folder and Path(folder).is_dir() else ():
        target = runs / "thumbnails" / f"table_{part.table}" / part.key / slug(method) / f"{picture.stem}.jpg"
        thumbnail((target, picture))
        made.append(os.path.relpath(target, runs))
    return made
