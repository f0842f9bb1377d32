"""A table of the paper with ours beside it, as text or as a page with thumbnails under our rows."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from face2scene.common.choices import one_of
from face2scene.common.files import read_json
from face2scene.common.pages import render
from face2scene.common.provenance import provenance
from face2scene.eval.reports.gallery import thumbnail
from face2scene.eval.tables.paper_tables import PaperTable, load_table
from face2scene.eval.tables.render import csv_text, html_table, latex, markdown, slug
from face2scene.image_io.arrays import list_images

FORMS = ("markdown", "latex", "csv", "html")
_THUMBNAILS = 4  # of a row


def paper_table(
    configs: Path, runs: Path, table: str | int, form: str = "markdown", sets: Mapping[str, str] | None = None
) -> str:
    """Table `table` of the paper with ours beside it, ready to print.

    Args:
        configs: the folder with `table_*.yaml`.
        runs: the runs' folder; ours are `table_<table>/<part>/<method>` in it.
        form: of `FORMS`; `html` is a page for `runs/table_<table>.html`, see `table_page`.
        sets: see `PaperTable.with_ours`.
    """
    one_of("format", form, FORMS)
    title, parts = load_table(configs / f"table_{table}.yaml")
    if form == "html":
        return table_page(title, parts, runs, sets)
    comment = {"markdown": "", "csv": "# ", "latex": "% "}[form]
    texts = [] if form == "csv" else [f"{comment}{title}\n"]
    for part in parts:
        rows = part.with_ours(runs, sets)
        text = {"markdown": markdown, "csv": csv_text, "latex": latex}[form](rows, part.columns)
        notes = [f"{comment}{note}\n" for note in part.notes(rows)]
        if form == "markdown":
            texts += [f"{part.title}\n\n{text}", *notes]
        else:  # comments come first, so that the rest is the table alone
            texts.append("".join([f"{comment}{part.title}\n", *notes, text]))
    return "\n".join(texts)


def table_page(title: str, parts: Sequence[PaperTable], runs: Path, sets: Mapping[str, str] | None = None) -> str:
    """HTML for a file in `runs`; thumbnails are written to `runs/thumbnails/`."""
    sections, tables = {}, {}
    for part in parts:
        rows, key = part.with_ours(runs, sets), slug(f"{part.table} {part.key}")
        images = {row.name: _thumbnails(part, row.name, runs) for row in part.rows}
        sections[key] = part.title
        tables[key] = {"table": html_table(rows, part.columns, thumbnails=images), "notes": part.notes(rows)}
    values = {"title": f"Face2Scene: {title}", "heading": title, "sections": sections, "parts": tables}
    found = {f"{p.key} {row.name}": p.folder(runs, row.name) / "scores.json" for p in parts for row in p.rows}
    records = {name: read_json(path).get("provenance") for name, path in found.items() if path.is_file()}
    return render("tables.html.j2", style="page.css", provenance=provenance() | {"rows": records}, **values)


def _thumbnails(part: PaperTable, method: str, runs: Path) -> list[str]:
    scores = part.folder(runs, method) / "scores.json"
    folder = read_json(scores).get("predictions") if scores.is_file() else None
    made = []
    for image in list_images(folder)[:_THUMBNAILS] if folder and Path(folder).is_dir() else ():
        target = runs / "thumbnails" / f"table_{part.table}" / part.key / slug(method) / f"{image.stem}.jpg"
        thumbnail((target, image))
        made.append(os.path.relpath(target, runs))
    return made
