"""Tables of scores as Markdown, LaTeX, CSV or HTML, the best and the second best value marked.

Numbers of the paper stay text, so that every digit is shown as printed; see `paper_tables`.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from markupsafe import Markup

from face2scene.common.files import read_json
from face2scene.common.pages import fragment
from face2scene.eval.metrics.registry import METRICS
from face2scene.eval.scoring.results import check_scores

NOT_MEASURED = "not measured"
DECIMALS = {"psnr": 2, "psnr_y": 2, "fid": 2, "musiq": 2, "niqe": 2}  # of our own values; 4 for other metrics
_FID_IMAGES = 2048  # one for each feature; from fewer, FID is biased upwards (Chong and Forsyth 2020)

_TEX = str.maketrans({sign: f"\\{sign}" for sign in "&%$#_{}"} | {s: rf"\char`\{s}{{}}" for s in "\\~^"})


@dataclass(frozen=True)
class TableRow:
    """One method of a table."""

    name: str
    cells: Mapping[str, str]  # metric -> text
    source: str  # "paper" or "ours"
    note: str = ""
    ranked: bool = True  # false for incomplete or unmeasured rows, which get no marks
    gt: str = ""  # sha256 of the ground truth of a row of ours, see `results.gt_digest`
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # metric -> 95 % interval of its mean

    @property
    def values(self) -> dict[str, float]:
        """The cells that are numbers."""
        return {key: float(cell.split()[0]) for key, cell in self.cells.items() if _is_number(cell)}


def row_from_scores(
    name: str, scores: Path, columns: Sequence[str], instead: Mapping[str, str] | None = None
) -> TableRow:
    """Our row from a run's `scores.json`; without numbers where the file is missing or of an incomplete run.

    Raises:
        ScoreError: see `check_scores`.

    Args:
        instead: column -> the metric whose value is shown in it; a note is added where only the column's own metric was
            measured.
    """
    unmeasured = dict.fromkeys(columns, NOT_MEASURED)
    if not scores.is_file():
        return TableRow(name, unmeasured, "ours", ranked=False)
    found = check_scores(scores, ("complete", "counts", "means", "sets"))
    counts = found["counts"]
    if not found["complete"]:
        note = f"incomplete: {counts['scored']} of {counts['expected']} images"
        if foreign := counts.get("without_truth"):
            note += f", and {foreign} of another set"
        return TableRow(name, unmeasured, "ours", note, ranked=False)
    values, instead = {**found["means"], **found["sets"]}, instead or {}
    cells = {key: formatted(key, values[metric]) for key in columns if (metric := instead.get(key, key)) in values}
    notes = [f"{counts['scored']} images"]
    notes += [
        f"{METRICS[key].title} was measured without {instead[key]} (option metrics)"
        for key in columns
        if key not in cells and key in values
    ]
    for key, without in found.get("undefined", {}).items():
        if key in (instead.get(column, column) for column in columns):
            notes.append(f"{METRICS[key].title} over {counts['scored'] - len(without)}")
    if "fid" in cells and counts["scored"] < _FID_IMAGES:
        notes.append(f"FID of fewer images than features ({_FID_IMAGES}), comparable at this number alone")
    notes += _base_dtype(scores)
    known = found.get("intervals", {})
    intervals = {key: tuple(known[metric]) for key in cells if (metric := instead.get(key, key)) in known}
    gt = found.get("truth", {}).get("sha256", "")
    return TableRow(name, unmeasured | cells, "ours", ", ".join(notes), gt=gt, intervals=intervals)


def _base_dtype(scores: Path) -> list[str]:
    """The precision of a diffusion base, where the record of a method of this process beside its scores names it."""
    record = scores.with_name("baseline.json")
    launches = read_json(record).get("launches", []) if record.is_file() else []
    return [f"base in {dtype}" for dtype in dict.fromkeys(launch.get("base_dtype") for launch in launches) if dtype]


def same_gt(rows: Sequence[TableRow]) -> list[TableRow]:
    """The rows, with a note and without rank for those of ours whose ground truth is not that of most rows."""
    ours = [row for row in rows if row.source == "ours" and row.ranked]
    counts = Counter(row.gt for row in ours)
    if len(counts) < 2:
        return list(rows)
    most = counts.most_common(1)[0][0]
    named = next(row.name for row in ours if row.gt == most)
    return [
        replace(row, note=f"{row.note}, another ground truth than {named}'s", ranked=False)
        if row in ours and row.gt != most
        else row
        for row in rows
    ]


def slug(name: str) -> str:
    """A method's folder name: `S3Diff retrained` is `s3diff_retrained`."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def formatted(key: str, value: float) -> str:
    """One of our own values, with as many digits as its metric is printed with."""
    return f"{value:.{DECIMALS.get(key, 4)}f}"


def ranks(rows: Iterable[TableRow], key: str) -> tuple[float | None, float | None]:
    """Best and second best value of a column among ranked rows; equal values share a rank."""
    values = {row.values[key] for row in rows if row.ranked and key in row.values}
    ordered = sorted(values, reverse=METRICS[key].better == "higher")
    best, second, *_ = [*ordered, None, None]
    return best, second


def markdown(rows: Sequence[TableRow], columns: Sequence[str]) -> str:
    """A Markdown table: **best** and <u>second best</u> of what is measured; arrows show the better direction."""
    header = ["Method", *(f"{METRICS[key].title} {METRICS[key].arrow}" for key in columns)]
    lines = [header, *_cells(rows, columns, "**{}**", "<u>{}</u>", lambda text: text.replace("|", r"\|"))]
    widths = [max(len(line[index]) for line in lines) for index in range(len(header))]
    drawn = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    rule = "| " + " | ".join("-" * w for w in widths) + " |"
    return "\n".join([drawn[0], rule, *drawn[1:]]) + "\n"


def plain_markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table without marks or padding; columns after the first are aligned to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in [header, rule, *lines])


def latex(rows: Sequence[TableRow], columns: Sequence[str]) -> str:
    """The same table for LaTeX with the package booktabs."""
    arrows = {"higher": r"$\uparrow$", "lower": r"$\downarrow$"}
    titles = [f"{_tex(METRICS[key].title)} {arrows[METRICS[key].better]}" for key in columns]
    lines = [" & ".join(line) + r" \\" for line in _cells(rows, columns, r"\textbf{{{}}}", r"\underline{{{}}}", _tex)]
    head = [r"\begin{tabular}{l" + "r" * len(columns) + "}", r"\toprule", " & ".join(["Method", *titles]) + r" \\"]
    return "\n".join([*head, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}", ""])


def csv_text(rows: Sequence[TableRow], columns: Sequence[str]) -> str:
    """The same table as CSV: numbers (empty where not measured), differences, marks (best, second) and intervals."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    more = [f"{key}_{what}" for what in ("difference", "mark", "low", "high") for key in columns]
    writer.writerow(["method", "source", "note", *columns, *more])
    for row, _, cells in _marked(rows, columns):
        numbers = [number if _is_number(number) else "" for _, number, _ in cells]
        differences = [row.cells.get(key, "").partition(" (")[2].strip("()") for key in columns]
        ends = [formatted(k, row.intervals[k][end]) if k in row.intervals else "" for end in (0, 1) for k in columns]
        marks = (mark for mark, _, _ in cells)
        writer.writerow([row.name, row.source, row.note, *numbers, *differences, *marks, *ends])
    return out.getvalue()


def html_table(
    rows: Sequence[TableRow],
    columns: Sequence[str],
    *,
    contenders: Sequence[TableRow] | None = None,
    thumbnails: Mapping[str, Sequence[str]] | None = None,
    notes: bool = False,
) -> Markup:
    """The same table as an HTML `<table class="scores">`.

    Args:
        contenders: the rows that marks are given among, all by default.
        thumbnails: row name -> addresses of images shown under the name of our row.
        notes: show those of ranked rows too where all rows are ours.
    """
    mixed = len({row.source for row in rows}) > 1
    lines = [
        {
            "name": name,
            "note": row.note if mixed or notes or not row.ranked else "",
            "thumbnails": (thumbnails or {}).get(row.name, ()) if row.source == "ours" else (),
            "ours": mixed and row.source == "ours",
            "cells": cells,
        }
        for row, name, cells in _marked(rows, columns, contenders)
    ]
    return fragment("parts.html.j2", "scores_table", [METRICS[key] for key in columns], lines)


def _marked(
    rows: Sequence[TableRow], columns: Sequence[str], contenders: Sequence[TableRow] | None = None
) -> Iterator[tuple[TableRow, str, list[tuple[str, str, str]]]]:
    """Each row, its name as shown, and its cells: mark (best, second or empty), number, and the text in brackets.

    That text is the 95 % interval of a mean and its difference from the paper's.
    """
    contenders = rows if contenders is None else contenders
    marks = {key: ranks(contenders, key) for key in columns}
    mixed = len({row.source for row in rows}) > 1
    for row in rows:
        cells = []
        for key in columns:
            value = row.values.get(key) if row.ranked and row in contenders else None
            best, second = marks[key]
            number, bracket, rest = row.cells.get(key, NOT_MEASURED).partition(" (")
            mark = "" if value is None else {second: "second", best: "best"}.get(value, "")
            low_high = (formatted(key, end) for end in row.intervals.get(key, ()))
            shown = [f"[{', '.join(low_high)}]"] if key in row.intervals else []
            cells.append((mark, number, " ".join([*shown, *([bracket[1:] + rest] if bracket else [])])))
        yield row, f"{row.name}, {row.source}" if mixed else row.name, cells


def _cells(
    rows: Sequence[TableRow], columns: Sequence[str], best: str, second: str, escape: Callable[[str], str]
) -> list[list[str]]:
    forms = {"best": best, "second": second, "": "{}"}
    return [
        [escape(f"{name} ({row.note})" if row.note else name)]
        + [f"{forms[mark].format(escape(number))} {escape(rest)}".rstrip() for mark, number, rest in cells]
        for row, name, cells in _marked(rows, columns)
    ]


def _tex(text: str) -> str:
    return text.translate(_TEX)


def _is_number(cell: str) -> bool:
    try:
        float(cell.split()[0])
    except (ValueError, IndexError):
        return False
    return True
