"""The filter report of a build: how many images each stage left out and why, with examples and histograms.

One HTML file. The histograms count every measured image, rejected or kept, with the thresholds in red.
"""

import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from face2scene.common.charts import Histogram
from face2scene.common.pages import write_page
from face2scene.data.building.staging_db import StagingDB

_EXAMPLES = 12  # of every stage
THUMBNAIL = 112  # pixels


def thumbnail(pixels: np.ndarray) -> bytes:
    """A JPEG of an image (H, W, 3), float in [0, 1], at most `THUMBNAIL` pixels a side."""
    step = max(1, min(pixels.shape[:2]) // (2 * THUMBNAIL))
    image = Image.fromarray((pixels[::step, ::step].clip(0, 1) * 255).round().astype(np.uint8))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def write_filter_report(path: Path, table: StagingDB, thresholds: Mapping[str, Any], order: Sequence[str]) -> None:
    """Write the report.

    Args:
        thresholds: measure to a number, or a list of numbers.
        order: of the stages; reading comes before them, stages that need the whole set after.
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
    for values in _all_measured(table):  # a second pass, now that the ranges of the axes are known
        for name, value in values.items():
            spread[name].count(value)
    first = ("suffix", "input", *order)
    names = sorted(stages, key=lambda name: first.index(name) if name in first else len(first))
    kept = table.count_kept()
    left = total = kept + stages.total()
    bars = [("all", total)]
    for name in names:
        left -= stages[name]
        bars.append((f"after {name}", left))
    lines = {name: value if isinstance(value, list | tuple) else (value,) for name, value in thresholds.items()}
    write_page(
        path,
        "funnel.html.j2",
        style="collection.css",
        title="What became of the images",
        kept=kept,
        total=total,
        left=bars,
        stages=[
            {"name": name, "count": stages[name], "reasons": reasons[name], "examples": examples[name]}
            for name in names
        ],
        histograms=[spread[name].svg(name, lines.get(name, ())) for name in sorted(spread)],
    )


def _all_measured(table: StagingDB) -> Iterable[dict[str, float]]:
    for _, values in table.measured():
        yield values
    for row in table.rejected():
        yield json.loads(row["measured"])
