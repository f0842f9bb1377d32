"""How the benchmarks print what they measured."""

from collections.abc import Mapping
from typing import Any


def show(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """One line a measure: ours, the other side's and the ratio to three digits, the unit and the note."""
    print(f"{'measure':<22}{'ours':>10}{'other':>10}{'ratio':>8}  unit")
    for name, line in rows.items():
        cells = [f"{line[key]:.3g}" if line[key] is not None else "-" for key in ("ours", "other", "ratio")]
        print(f"{name:<22}{cells[0]:>10}{cells[1]:>10}{cells[2]:>8}  {line['unit']} ({line['note']})")
