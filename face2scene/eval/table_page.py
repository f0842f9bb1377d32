"""A printed table with ours beside it as a page, thumbnails under our rows."""

import html
import os
from collections.abc import Sequence
from pathlib import Path

from face2scene.eval.document import document
from face2scene.eval.gallery import thumbnail
from face2scene.eval.printed import Printed, notes
from face2scene.eval.tables import html_table, slug
from face2scene.files import read_json
from face2scene.images import list_images

_SHOTS = 4  # thumbnails of a row


def table_page(title: str, parts: Sequence[Printed], runs: Path) -> str:
    """HTML for a file in `runs`; small pictures are written to `runs/thumbnails/`."""
    sections = []
    for part in parts:
        rows = part.beside(runs)
        shots = {row.name: _shots(part, row.name, runs) for row in part.rows}
        content = html_table(rows, part.columns, thumbnails=shots)
        content += "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes(part, rows))
        sections.append((slug(f"{part.table} {part.key}"), part.title, content))
    facts = ["printed rows and ours, the difference in brackets", "best in bold, second best underlined"]
    return document(f"Face2Scene: {title}", "Face2Scene · tables of the paper", title, facts, sections)


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
