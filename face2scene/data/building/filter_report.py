"""What became of a collection: how many images each stage left out and why, with examples and distributions.

The page is one file. The histograms show every image that was measured, dropped or kept, with the thresholds in red.
"""

import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from face2scene.common.charts import Histogram
from face2scene.common.pages import write_page

_EXAMPLES = 12  # of every stage
THUMBNAIL = 112  # pixels


class Table(Protocol):
    """Where the numbers come from: `table.JoinTable`."""

    def kept(self) -> int: ...
    def rejected(self) -> Iterable[dict[str, Any]]: ...
    def measured(self) -> Iterable[tuple[int, dict[str, float]]]: ...


def thumbnail(pixels: np.ndarray) -> bytes:
    """A small JPEG of an image (H, W, 3), float in [0, 1]."""
    step = max(1, min(pixels.shape[:2]) // (2 * THUMBNAIL))
    image = Image.fromarray((pixels[::step, ::step].clip(0, 1) * 255).round().astype(np.uint8))
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
    spread: dict[str, Histogram] = defaultdict(Histogram)
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
    left = total = kept + stages.total()
    bars = [("all", total)]
    for stage, count in stages.items():
        left -= count
        bars.append((f"after {stage}", left))
    cuts = {name: cut if isinstance(cut, list | tuple) else (cut,) for name, cut in thresholds.items()}
    write_page(
        path,
        "funnel.html.j2",
        style="collection.css",
        title="What became of the images",
        kept=kept,
        total=total,
        left=bars,
        stages=[
            {"name": name, "count": count, "reasons": reasons[name], "examples": examples[name]}
            for name, count in stages.items()
        ],
        histograms=[spread[name].svg(name, cuts.get(name, ())) for name in sorted(spread)],
    )


def _all_measured(table: Table) -> Iterable[dict[str, float]]:
    for _, values in table.measured():
        yield values
    for row in table.rejected():
        yield json.loads(row["measured"])
