"""The paper's tables as data, with our rows beside theirs.

A table is `configs/eval/table_NAME.yaml`: parts, each with columns (metric keys) and rows (method: values as text). A
file may also be made of the parts of others (`parts_of`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from face2scene.eval.metrics.registry import choose
from face2scene.eval.tables.render import DECIMALS, TableRow, row_from_scores, same_gt, slug

# Papers of this family print the PSNR of the Y channel, so ours of Y is shown beside it, never that of RGB.
_INSTEAD = {"psnr": "psnr_y"}
PSNR_NOTE = "PSNR and SSIM of ours are of the Y channel."


@dataclass(frozen=True)
class PaperTable:
    """One part of a table of the paper."""

    table: str  # name of its file
    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    note: str = ""

    def with_ours(self, runs: Path) -> list[TableRow]:
        """Every row of the paper followed by ours, read from `runs/table_<table>/<key>/<method>/scores.json`."""
        names = [row.name for row in self.rows]
        read = [row_from_scores(n, self.folder(runs, n) / "scores.json", self.columns, _INSTEAD) for n in names]
        pairs = zip(self.rows, same_gt(read), strict=True)
        return [line for row, ours in pairs for line in (row, _with_difference(ours, row))]

    def folder(self, runs: Path, method: str) -> Path:
        """The run that is our row of a method."""
        return runs / f"table_{self.table}" / self.key / slug(method)

    def notes(self, rows: Sequence[TableRow]) -> list[str]:
        """Sentences to show under the rows of `with_ours`."""
        measured = any(row.source == "ours" and row.ranked for row in rows)
        methods = ", ".join(slug(row.name) for row in self.rows)
        hint = (
            "Nothing of ours is measured here. Score a folder into this table with "
            f"name=table_{self.table}/{self.key}/METHOD, METHOD one of {methods}."
        )
        found = [self.note, PSNR_NOTE if "psnr" in self.columns else "", "" if measured else hint]
        return [note for note in found if note]


def load_table(path: str | Path) -> tuple[str, list[PaperTable]]:
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
        others = [load_table(path.with_name(f"table_{other}.yaml"))[1] for other in data["parts_of"]]
        return title, [part for parts in others for part in parts]
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
        parts.append(PaperTable(table, key, part["title"], columns, tuple(rows), part.get("note", "")))
    return title, parts


def read_texts(path: Path) -> Any:
    """A YAML file with every number left as the text it was written as."""
    import yaml

    return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)


def _with_difference(ours: TableRow, paper: TableRow) -> TableRow:
    if not ours.ranked:
        return ours
    both = ours.values.keys() & paper.values.keys()
    differences = {key: f" ({ours.values[key] - paper.values[key]:+.{DECIMALS.get(key, 4)}f})" for key in both}
    return replace(ours, cells={key: cell + differences.get(key, "") for key, cell in ours.cells.items()})
