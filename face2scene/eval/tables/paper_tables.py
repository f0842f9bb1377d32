"""The paper's tables as data, with our rows beside theirs.

A table is `configs/eval/table_NAME.yaml`: parts, each with columns (metric keys) and rows (method: values as text). A
file may also be made of the parts of others (`parts_of`).
"""

from collections.abc import Mapping, Sequence
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

    def with_ours(self, runs: Path, sets: Mapping[str, str] | None = None) -> list[TableRow]:
        """Every row of the paper followed by ours, read from `runs/table_<table>/<key>/<method>/scores.json`.

        Printed numbers are of the paper's images, so ours are ranked among them and compared with them only where they
        are known to be of the same ones. A table without printed rows ranks ours on one ground truth among themselves.

        Args:
            sets: part -> sha256 of the ground truth that is the paper's, as `truth` of scores.json states it.
        """
        names = [row.name for row in self.rows]
        instead = _INSTEAD if self.printed else {}
        read = [row_from_scores(n, self.folder(runs, n) / "scores.json", self.columns, instead) for n in names]
        if not self.printed:
            return same_gt(read)
        papers = (sets or {}).get(self.key)
        ours = [_unless_same_set(row, papers) for row in read]
        return [line for row, mine in zip(self.rows, ours, strict=True) for line in (row, _with_difference(mine, row))]

    @property
    def printed(self) -> bool:
        """Whether it has numbers of the paper."""
        return any(row.cells for row in self.rows)

    def folder(self, runs: Path, method: str) -> Path:
        """The run that is our row of a method."""
        return runs / f"table_{self.table}" / self.key / slug(method)

    def notes(self, rows: Sequence[TableRow]) -> list[str]:
        """Sentences to show under the rows of `with_ours`."""
        measured = [row for row in rows if row.source == "ours" and row.values]
        apart = {row.gt: row for row in measured if self.printed and not row.ranked}
        methods = ", ".join(slug(row.name) for row in self.rows)
        hint = (
            "Nothing of ours is measured here. Score a folder into this table with "
            f"name=table_{self.table}/{self.key}/METHOD, METHOD one of {methods}."
        )
        found = [self.note, PSNR_NOTE if self.printed and "psnr" in self.columns else "", "" if measured else hint]
        found += [
            f"{row.name} was scored on images that are not known to be the paper's, so it is neither ranked nor "
            f"compared; sets.{self.key}={gt or 'SHA256'} says that they are."
            for gt, row in apart.items()
        ]
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
        rows = [TableRow(method, {}, "paper") for method in part.get("methods", ())]
        for method, text in part.get("rows", {}).items():
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


def _unless_same_set(ours: TableRow, papers: str | None) -> TableRow:
    if not ours.ranked or (papers and ours.gt == papers):
        return ours
    known = "another set than the paper's" if papers else "not known to be the paper's set"
    return replace(ours, note=f"{ours.note}, {known}", ranked=False)


def _with_difference(ours: TableRow, paper: TableRow) -> TableRow:
    if not ours.ranked:
        return ours
    both = ours.values.keys() & paper.values.keys()
    differences = {key: f" ({ours.values[key] - paper.values[key]:+.{DECIMALS.get(key, 4)}f})" for key in both}
    return replace(ours, cells={key: cell + differences.get(key, "") for key, cell in ours.cells.items()})
