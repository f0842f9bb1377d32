"""A static leaderboard: a folder of results files, and one page of tables that can be sorted, a table for each set."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from face2scene.common.files import remove_partials, write_json
from face2scene.common.locks import locked
from face2scene.common.pages import write_page
from face2scene.eval.metrics.registry import METRICS
from face2scene.eval.scoring.pairing import ScoreError
from face2scene.eval.scoring.results import interval
from face2scene.eval.scoring.submission import FILE, check_against, read_results, results_of
from face2scene.eval.tables.render import NOT_MEASURED, TableRow, formatted, html_table, slug


def submit(folder: str | Path, board: str | Path) -> tuple[Path, list[str]]:
    """Check the results in `folder`, add them to the leaderboard in `board`, and write its page again.

    Args:
        folder: holds `results.json`, or is a scored run, of which results are made.
        board: `entries/METHOD_SET.json` and index.html; the same method on the same set is replaced. A digest follows
            where another method's name differs in its signs alone.

    Returns:
        The page, and why the entry is incomplete.

    Raises:
        FileNotFoundError, ScoreError: see `read_results`, `results_of` and `check_against`; nothing is written then,
            but for the run's own `results.json`.
        FolderInUse: another process adds to it.
    """
    folder, board = Path(folder), Path(board)
    if (folder / "scores.json").is_file():
        write_json(folder / FILE, results_of(folder))
    if not (folder / FILE).is_file():
        raise FileNotFoundError(f"{folder} holds neither {FILE} nor the scores of a run (submit=FOLDER).")
    results, lacking = read_results(folder / FILE)
    with locked(board, "choose another board"):
        remove_partials(board, "entries")
        entries = {path: entry for path, (entry, _) in _entries(board)[0].items()}
        target = board / "entries" / f"{slug(results['method']) or 'method'}_{results['set']['sha256'][:8]}.json"
        if entries.get(target, results)["method"] != results["method"]:
            digest = hashlib.sha256(results["method"].encode()).hexdigest()[:8]
            target = target.with_stem(f"{target.stem}_{digest}")
        others = [entry for path, entry in entries.items() if path != target]
        check_against(results, [other for other in others if other["set"]["sha256"] == results["set"]["sha256"]])
        write_json(target, results)
        return write_board(board), lacking


def write_board(board: str | Path) -> Path:
    """index.html from all entries; a file that cannot be read is left out and named on the page."""
    sets: dict[str, list[tuple[dict[str, Any], list[str]]]] = {}
    found, refused = _entries(Path(board))
    for results, lacking in found.values():
        sets.setdefault(results["set"]["sha256"], []).append((results, lacking))
    sections, parts = {}, {}
    for digest, entries in sets.items():
        facts = entries[0][0]["set"]
        key = f"set_{digest[:8]}"
        sections[key] = f"{facts.get('name') or 'Set'}, {facts['pictures']} images, {digest[:8]}"
        parts[key] = _table(entries)
    page = Path(board) / "index.html"
    values = {"title": "Leaderboard", "heading": "Leaderboard", "sections": sections, "parts": parts}
    write_page(page, "leaderboard.html.j2", style="page.css", scripts=["sort.js"], refused=refused, **values)
    return page


def _entries(board: Path) -> tuple[dict[Path, tuple[dict[str, Any], list[str]]], list[str]]:
    """Results and what they lack by file, and why other files are refused."""
    found, refused = {}, []
    for path in sorted((board / "entries").glob("*.json")):
        try:
            found[path] = read_results(path)
        except ScoreError as error:
            refused.append(str(error))
    return found, refused


def _table(entries: Sequence[tuple[Mapping[str, Any], Sequence[str]]]) -> dict[str, Any]:
    protocol: dict[str, str] = {}
    for results, _ in entries:
        protocol = dict(results["protocol"]) | protocol  # of several, the first entry's is the board's
    columns = [key for key in METRICS if key in protocol]
    rows = []
    for results, lacking in entries:
        cells, intervals = dict.fromkeys(columns, NOT_MEASURED), {}
        hashes = ", ".join(sorted({w["sha256"][:8] for w in results["weights"] if w["sha256"]})) or "none"
        notes = [f"commit {results['code']['commit'][:8]}, weights {hashes}"]
        for key in [key for key in columns if results["protocol"].get(key) == protocol[key]]:
            if values := [image["scores"][key] for image in results["images"].values() if key in image["scores"]]:
                cells[key] = formatted(key, math.fsum(values) / len(values))
                intervals |= {key: tuple(spread)} if (spread := interval(values)) else {}
                notes += [f"{METRICS[key].title} over {len(values)}"] if len(values) < len(results["images"]) else []
        other = [METRICS[key].title for key in columns if results["protocol"].get(key, protocol[key]) != protocol[key]]
        notes += [f"{', '.join(other)} by another protocol"] if other else []
        notes += [f"INCOMPLETE: {'; '.join(lacking)}"] if lacking else []
        row = TableRow(results["method"], cells, "ours", "; ".join(notes), ranked=not lacking, intervals=intervals)
        rows.append(row)
    return {"table": html_table(rows, columns, notes=True), "notes": []}
