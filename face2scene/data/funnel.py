"""What became of a collection: how many pictures each stage left out and why, with examples and distributions.

The page is one file. The histograms show every picture that was measured, dropped or kept, with the thresholds in red.
"""

import html
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from face2scene.files import atomic_write

_EXAMPLES = 12  # of every stage
_BINS = 40
_WIDTH, _HEIGHT = 560, 120
THUMBNAIL = 112  # pixels


class Table(Protocol):
    """Where the numbers come from: `table.JoinTable`."""

    def kept(self) -> int: ...
    def rejected(self) -> Iterable[dict[str, Any]]: ...
    def measured(self) -> Iterable[tuple[int, dict[str, float]]]: ...


def thumbnail(picture: np.ndarray) -> bytes:
    """A small JPEG of a picture (H, W, 3), float in [0, 1]."""
    step = max(1, min(picture.shape[:2]) // (2 * THUMBNAIL))
    image = Image.fromarray((picture[::step, ::step].clip(0, 1) * 255).round().astype(np.uint8))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def write_funnel(path: Path, table: Table, thresholds: Mapping[str, Any], order: Sequence[str]) -> None:
    """Write the report.

    Args:
        thresholds: measure to a number, or a list of numbers.
        order: of the stages; reading comes before them, what follows from the whole set after.
    """
    stages: Counter = Counter()
    reasons: dict[str, Counter] = defaultdict(Counter)
    examples: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    spread: dict[str, _Spread] = defaultdict(_Spread)
    for row in table.rejected():
        stages[row["stage"]] += 1
        reasons[row["stage"]][row["reason"].split(":")[0]] += 1
        if row["thumbnail"] and len(examples[row["stage"]]) < _EXAMPLES:
            examples[row["stage"]].append((row["thumbnail"], row["name"], row["reason"]))
    for values in _all_measured(table):
        for name, value in values.items():
            spread[name].add(value)
    for values in _all_measured(table):  # a second walk, now that the ends of the axes are known
        for name, value in values.items():
            spread[name].count(value)
    places = {name: number for number, name in enumerate(("suffix", "input", *order))}
    stages = Counter({name: stages[name] for name in sorted(stages, key=lambda name: places.get(name, len(places)))})
    kept = table.kept()
    lines = [f"<h1>{kept} of {kept + sum(stages.values())} pictures stayed</h1>", _bars(kept, stages)]
    for stage in stages:
        lines.append(f"<h2>{html.escape(stage)}: {stages[stage]} left out</h2><ul>")
        lines += [f"<li>{html.escape(reason)}: {count}</li>" for reason, count in sorted(reasons[stage].items())]
        lines.append("</ul><div>")
        for data, name, reason in examples[stage]:
            caption = f"{html.escape(name)}<br>{html.escape(reason)}"
            lines.append(
                f"<figure><img src='data:image/jpeg;base64,{data}'><figcaption>{caption}</figcaption></figure>"
            )
        lines.append("</div>")
    lines.append("<h2>What was measured</h2>")
    for name in sorted(spread):
        cuts = thresholds.get(name, ())
        lines.append(spread[name].drawn(name, cuts if isinstance(cuts, list | tuple) else (cuts,)))
    with atomic_write(path) as partial:
        partial.write_text(_PAGE.replace("BODY", "\n".join(lines)), encoding="utf-8")


def _all_measured(table: Table) -> Iterable[dict[str, float]]:
    for _, values in table.measured():
        yield values
    for row in table.rejected():
        yield json.loads(row["measured"])


def _bars(kept: int, stages: Counter) -> str:
    # How many pictures were left after every stage.
    left = kept + sum(stages.values())
    total = max(left, 1)
    rows = [("all", left)]
    for stage in stages:
        left -= stages[stage]
        rows.append((f"after {stage}", left))
    return "<table>" + "".join(
        f"<tr><td>{html.escape(name)}<td>{count}<td><span style='width:{400 * count // total}px'></span>"
        for name, count in rows
    ) + "</table>"  # fmt: skip


class _Spread:
    # Range and histogram of one measure.
    def __init__(self) -> None:
        self.low, self.high, self.total = np.inf, -np.inf, 0
        self.bins = np.zeros(_BINS, int)

    def add(self, value: float) -> None:
        self.low, self.high, self.total = min(self.low, value), max(self.high, value), self.total + 1

    def count(self, value: float) -> None:
        width = (self.high - self.low) or 1.0
        self.bins[min(int((value - self.low) / width * _BINS), _BINS - 1)] += 1

    def drawn(self, name: str, cuts: Iterable[float]) -> str:
        top, width = max(self.bins.max(), 1), (self.high - self.low) or 1.0
        step = _WIDTH / _BINS
        shapes = [
            f"<rect x='{n * step:.1f}' y='{_HEIGHT * (1 - count / top):.1f}' width='{step - 1:.1f}' "
            f"height='{_HEIGHT * count / top:.1f}' fill='#579'/>"
            for n, count in enumerate(self.bins)
            if count
        ]
        shown = []
        for cut in cuts:
            if cut is None:
                continue
            x = (cut - self.low) / width * _WIDTH
            shown.append(f"{cut:g}")
            if 0 <= x <= _WIDTH:
                shapes.append(f"<path d='M{x:.1f} 0V{_HEIGHT}' stroke='#c33' stroke-width='2'/>")
        text = f"<b>{html.escape(name)}</b> of {self.total} pictures, {self.low:.4g} to {self.high:.4g}"
        text += f"; threshold {', '.join(shown)}" if shown else ""
        return f"<p>{text}<br><svg width={_WIDTH} height={_HEIGHT} style='background:#eee'>{''.join(shapes)}</svg></p>"


_PAGE = """<!doctype html><meta charset=utf-8><title>What became of the pictures</title>
<style>body{font:14px sans-serif;margin:2em}div{display:flex;flex-wrap:wrap;gap:8px}figure{margin:0;width:150px;
overflow-wrap:anywhere;font-size:10px}td span{display:block;background:#579;height:1em}td{padding:0 1em 0 0}</style>
BODY
"""
