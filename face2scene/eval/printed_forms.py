"""A printed table with ours beside it, in the form that is asked for: text to print, or a page."""

from pathlib import Path

from face2scene.eval.printed import load_printed, notes
from face2scene.eval.table_page import table_page
from face2scene.eval.tables import csv_text, latex, markdown

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
