"""A printed table with ours beside it as a page, thumbnails under our rows."""

import os
from collections.abc import Sequence
from pathlib import Path

from face2scene.common.files import read_json
from face2scene.common.pages import render
from face2scene.eval.reports.gallery import thumbnail
from face2scene.eval.tables.paper import Printed, load_printed, notes
from face2scene.eval.tables.render import csv_text, html_table, latex, markdown, slug
from face2scene.image_io.arrays import list_images

_SHOTS = 4  # thumbnails of a row


def table_page(title: str, parts: Sequence[Printed], runs: Path) -> str:
    """HTML for a file in `runs`; small images are written to `runs/thumbnails/`."""
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
    for image in list_images(folder)[:_SHOTS] if folder and Path(folder).is_dir() else ():
        target = runs / "thumbnails" / f"table_{part.table}" / part.key / slug(method) / f"{image.stem}.jpg"
        thumbnail((target, image))
        made.append(os.path.relpath(target, runs))
    return made


FORMS = ("markdown", "latex", "csv", "html")


def printed_table(configs: Path, runs: Path, table: str | int, form: str = "markdown") -> str:
    """Table `table` of the paper with ours beside it, ready to print.

    Args:
        configs: the folder with `table_*.yaml`.
        runs: the runs' folder; ours are `table_<table>/<part>/<method>` in it.
        form: of `FORMS`; `html` is a page for `runs/table_<table>.html`, see `table_page.table_page`.
    """
    if form not in FORMS:
        raise ValueError(f"Unknown format {form!r}: choose {', '.join(FORMS)} (option format).")
    title, parts = load_printed(configs / f"table_{table}.yaml")
    if form == "html":
        return table_page(title, parts, runs)
    comment = {"markdown": "", "csv": "# ", "latex": "% "}[form]
    texts = [] if form == "csv" else [f"{comment}{title}\n"]
    for part in parts:
        rows = part.beside(runs)
        drawn = {"markdown": markdown, "csv": csv_text, "latex": latex}[form](rows, part.columns)
        said = [f"{comment}{note}\n" for note in notes(part, rows)]
        if form == "markdown":
            texts += [f"{part.title}\n\n{drawn}", *said]
        else:  # comments in front, so that what follows is the table to its end
            texts.append("".join([f"{comment}{part.title}\n", *said, drawn]))
    return "\n".join(texts)
