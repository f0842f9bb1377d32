"""The paper's printed tables, as data, with ours beside them.

A table is `configs/eval/table_NAME.yaml`: parts, each with columns (metric keys) and rows (method: values as text). A
file may also be made of the parts of others (`parts_of`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from face2scene.eval.metrics.registry import choose
from face2scene.eval.tables.render import TableRow, decimals, row_from_scores, same_gt, slug

# Printed PSNR is of the Y channel in this family of papers, so ours of Y stands beside it, and never that of RGB.
_INSTEAD = {"psnr": "psnr_y"}
PSNR_NOTE = "PSNR and SSIM of ours are of the Y channel."


@dataclass(frozen=True)
class Printed:
    """One part of a printed table."""

    table: str  # of the file that holds it; ours are runs table_<table>/<key>/<method>
    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    note: str = ""

    def beside(self, runs: Path) -> list[TableRow]:
        """Every printed row followed by ours, read from `runs/table_<table>/<key>/<method>/scores.json`."""
        files = [self.folder(runs, row.name) / "scores.json" for row in self.rows]
        ours = same_gt(
            [
                row_from_scores(row.name, file, self.columns, _INSTEAD)
                for row, file in zip(self.rows, files, strict=True)
            ]
        )
        pairs = zip(self.rows, ours, strict=True)
        return [line for row, own in pairs for line in (row, _with_difference(own, row))]

    def folder(self, runs: Path, method: str) -> Path:
        return runs / f"table_{self.table}" / self.key / slug(method)

    def hint(self) -> str:
        methods = ", ".join(slug(row.name) for row in self.rows)
        return (
            "Nothing of ours is measured here. Score a folder into this table with "
            f"name=table_{self.table}/{self.key}/METHOD, METHOD one of {methods}."
        )


def load_printed(path: str | Path) -> tuple[str, list[Printed]]:
    """Title and parts of a `configs/eval/table_*.yaml`.

    Raises:
        FileNotFoundError: no such table; the message lists those there are.
        ValueError: an unknown column, or a row with another number of values than columns.
    """
    path = Path(path)
    table = path.stem.removeprefix("table_")
    if not path.is_file():
        known = sorted(file.stem.removeprefix("table_") for file in path.parent.glob("table_*.yaml"))
        raise FileNotFoundError(f"There is no table {table!r}: choose from {', '.join(known)} (option table).")
    data = read_texts(path)
    title = f"{data['title']} ({data['source']})"
    if "parts_of" in data:
        return title, [
            part for other in data["parts_of"] for part in load_printed(path.with_name(f"table_{other}.yaml"))[1]
        ]
    parts = []
    for key, part in data["parts"].items():
        columns = tuple(metric.key for metric in choose(part["columns"]))
        rows = []
        for method, text in part["rows"].items():
            cells = [f"0{cell}" if cell.startswith(".") else cell for cell in text.split()]
            if len(cells) != len(columns):
                raise ValueError(f"{path.name}: {method} has {len(cells)} values for {len(columns)} columns.")
            note = part.get("notes", {}).get(method, "")
            rows.append(TableRow(method, dict(zip(columns, cells, strict=True)), "paper", note))
        parts.append(Printed(table, key, part["title"], columns, tuple(rows), part.get("note", "")))
    return title, parts


def read_texts(path: Path) -> Any:
    """A YAML file with every number left as the text it was written as."""
    import yaml

    return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)


def notes(part: Printed, rows: Sequence[TableRow]) -> list[str]:
    """Sentences to stand under a part."""
    measured = any(row.source == "ours" and row.ranked for row in rows)
    found = [part.note, PSNR_NOTE if "psnr" in part.columns else "", "" if measured else part.hint()]
    return [note for note in found if note]


def _with_difference(ours: TableRow, paper: TableRow) -> TableRow:
    if not ours.ranked:
        return ours
    cells = {
        key: f"{cell} ({ours.values[key] - paper.values[key]:+.{decimals(key)}f})"
        if key in ours.values and key in paper.values
        else cell
        for key, cell in ours.cells.items()
    }
    return replace(ours, cells=cells)
