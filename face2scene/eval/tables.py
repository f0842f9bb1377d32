"""Scores as the paper prints them: our row beside the printed one, best and second best marked.

Printed numbers are data (`configs/eval/table_*.yaml`) and stay text: every digit is shown as it was printed.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from face2scene.eval.metrics import METRICS, choose
from face2scene.files import read_json

NOT_MEASURED = "not measured"
DECIMALS = {"psnr": 2, "psnr_y": 2, "fid": 2, "musiq": 2, "niqe": 2}  # others 4; only for our own numbers
# Printed PSNR is of the Y channel in this family of papers, so ours of Y stands beside it where measured.
_STAND_IN = {"psnr": "psnr_y"}


@dataclass(frozen=True)
class Row:
    """One method's line: `cells` holds what is shown, `values` what is compared."""

    name: str
    cells: Mapping[str, str]
    source: str  # "paper" or "ours"
    note: str = ""
    ranked: bool = True  # an incomplete or unmeasured row is shown and never marked

    @property
    def values(self) -> dict[str, float]:
        return {key: float(cell.split()[0]) for key, cell in self.cells.items() if _is_number(cell)}


@dataclass(frozen=True)
class Printed:
    """One part of a printed table."""

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = field(default=())


def load_printed(path: str | Path) -> tuple[str, list[Printed]]:
    """Title and parts of a `configs/eval/table_*.yaml`.

    Raises:
        FileNotFoundError: no such table; the message lists those there are.
        ValueError: an unknown column, or a row with another number of values than columns.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        known = sorted(file.stem.removeprefix("table_") for file in path.parent.glob("table_*.yaml"))
        name = path.stem.removeprefix("table_")
        raise FileNotFoundError(f"There is no table {name!r}: choose from {', '.join(known)} (option table).")
    data: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    parts = []
    for key, part in data["parts"].items():
        columns = tuple(metric.key for metric in choose(part["columns"]))
        rows = []
        for method, text in part["rows"].items():
            cells = [f"0{cell}" if cell.startswith(".") else cell for cell in str(text).split()]
            if len(cells) != len(columns):
                raise ValueError(f"{path.name}: {method} has {len(cells)} values for {len(columns)} columns.")
            rows.append(Row(method, dict(zip(columns, cells, strict=True)), "paper"))
        parts.append(Printed(key, part["title"], columns, tuple(rows)))
    return f"{data['title']} ({data['source']})", parts


def row_from_scores(name: str, scores: Path, columns: Sequence[str], prefer: Mapping[str, str] | None = None) -> Row:
    """Our row from a run's `scores.json`; a file that is not there gives a row that says so.

    Args:
        prefer: column -> key whose value is shown in it where it was measured.
    """
    if not scores.is_file():
        return Row(name, {key: NOT_MEASURED for key in columns}, "ours", ranked=False)
    found = read_json(scores)
    if not found["complete"]:
        counts = found["counts"]
        note = f"incomplete: {counts['scored']} of {counts['expected']} pictures"
        return Row(name, {key: NOT_MEASURED for key in columns}, "ours", note, ranked=False)
    values = {**found["means"], **found["sets"]}
    picked = {key: values.get((prefer or {}).get(key, key), values.get(key)) for key in columns}
    cells = {key: NOT_MEASURED if value is None else _shown(key, value) for key, value in picked.items()}
    return Row(name, cells, "ours", f"{found['counts']['scored']} pictures")


def beside(printed: Printed, folder: Path) -> list[Row]:
    """Every printed row followed by ours, read from `folder/<part>/<method>/scores.json`."""
    rows = []
    for row in printed.rows:
        scores = folder / printed.key / slug(row.name) / "scores.json"
        ours = row_from_scores(row.name, scores, printed.columns, prefer=_STAND_IN)
        rows += [row, _with_difference(ours, row)]
    return rows


def slug(name: str) -> str:
    """A method's folder name: `S3Diff retrained` is `s3diff_retrained`."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def ranks(rows: Iterable[Row], key: str) -> tuple[float | None, float | None]:
    """Best and second best value of a column among ranked rows; equal values share a place."""
    values = {row.values[key] for row in rows if row.ranked and key in row.values}
    ordered = sorted(values, reverse=METRICS[key].better == "higher")
    best, second, *_ = [*ordered, None, None]
    return best, second


def markdown(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """A Markdown table: **best** and <u>second best</u> of what is measured; arrows show the better way."""
    marks = {key: ranks(rows, key) for key in columns}
    mixed = len({row.source for row in rows}) > 1
    header = ["Method", *(f"{METRICS[key].title} {METRICS[key].arrow}" for key in columns)]
    lines = [header]
    for row in rows:
        cells = []
        for key in columns:
            cell, value = row.cells.get(key, NOT_MEASURED), row.values.get(key)
            if row.ranked and value is not None and value in marks[key]:
                number, _, rest = cell.partition(" ")
                number = f"**{number}**" if value == marks[key][0] else f"<u>{number}</u>"
                cell = f"{number} {rest}".strip()
            cells.append(cell)
        name = f"{row.name}, {row.source}" if mixed else row.name
        lines.append([f"{name} ({row.note})" if row.note else name, *cells])
    widths = [max(len(line[index]) for line in lines) for index in range(len(header))]
    drawn = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    rule = "| " + " | ".join("-" * w for w in widths) + " |"
    return "\n".join([drawn[0], rule, *drawn[1:]]) + "\n"


def csv_text(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """The same table as CSV: numbers only, an unmeasured cell is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["method", "source", "note", *columns])
    for row in rows:
        cells = (row.cells.get(key, "") for key in columns)
        writer.writerow([row.name, row.source, row.note, *(c.split()[0] if _is_number(c) else "" for c in cells)])
    return out.getvalue()


def printed_table(configs: Path, runs: Path, table: str | int, form: str = "markdown") -> str:
    """Table `table` of the paper with ours beside it, ready to print.

    Args:
        configs: the folder with `table_*.yaml`.
        runs: the runs' folder; ours are `table_<table>/<part>/<method>` in it.
        form: `markdown` or `csv`.
    """
    if form not in ("markdown", "csv"):
        raise ValueError(f"Unknown format {form!r}: choose markdown or csv (option format).")
    title, parts = load_printed(configs / f"table_{table}.yaml")
    texts = [] if form == "csv" else [f"{title}\n"]
    for part in parts:
        rows = beside(part, runs / f"table_{table}")
        if form == "csv":
            texts.append(f"# {part.title}\n{csv_text(rows, part.columns)}")
            continue
        texts.append(f"{part.title}\n\n{markdown(rows, part.columns)}")
        if not any(row.source == "ours" and row.ranked for row in rows):
            methods = ", ".join(slug(row.name) for row in part.rows)
            texts.append(
                "Nothing of ours is measured here. Score a folder into this table with "
                f"name=table_{table}/{part.key}/METHOD, METHOD one of {methods}.\n"
            )
    if form == "markdown" and any("psnr" in part.columns for part in parts):
        texts.append("PSNR and SSIM of ours are of the Y channel (PSNR of RGB where only that was measured).\n")
    return "\n".join(texts)


def _with_difference(ours: Row, paper: Row) -> Row:
    if not ours.ranked:
        return ours
    cells = {
        key: f"{cell} ({ours.values[key] - paper.values[key]:+.{_decimals(key)}f})"
        if key in ours.values and key in paper.values
        else cell
        for key, cell in ours.cells.items()
    }
    return Row(ours.name, cells, ours.source, ours.note)


def _decimals(key: str) -> int:
    return DECIMALS.get(key, 4)


def _shown(key: str, value: float) -> str:
    return f"{value:.{_decimals(key)}f}"


def _is_number(cell: str) -> bool:
    try:
        float(cell.split()[0])
    except (ValueError, IndexError):
        return False
    return True
