"""Numbers drawn as inline SVG: a matrix of cosines and training curves. Colours come from the page's style."""

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path

Curve = list[tuple[float, float]]  # (step, value)


def matrix_svg(matrix: Sequence[Sequence[float]], labels: Sequence[str]) -> str:
    """A cosine matrix drawn: orange alike, white unrelated, blue opposite; safe for colour-blind eyes."""
    side, left, top = 480 / len(matrix), 8 + 7 * max(map(len, labels)), 8
    edge = f"{side + 0.3:.1f}"  # a little over, or hairlines show between cells
    names = [html.escape(label) for label in labels]
    cells, words = [], []
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            x, y = left + j * side, top + i * side
            cells.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{edge}" height="{edge}" fill="{_diverging(value)}">'
                f"<title>{names[i]}, {names[j]}: {value:.2f}</title></rect>"
            )
            words.append(
                f'<text x="{x + side / 2:.1f}" y="{y + side / 2 + 4:.1f}" text-anchor="middle" '
                f'fill="{"#fff" if abs(value) > 0.7 else "#1b2230"}">{value:.2f}</text>'
            )
        words.append(f'<text class="ink" x="{left - 6}" y="{y + side / 2 + 4:.1f}" text-anchor="end">{names[i]}</text>')
    stops = "".join(
        f'<rect x="{left + step * 4.8:.1f}" y="502" width="5.2" height="10" fill="{_diverging(step / 50 - 1)}"/>'
        for step in range(100)
    )
    marks = "".join(
        f'<text class="ink" x="{left + (value + 1) * 240:.0f}" y="526" text-anchor="{anchor}">{text}</text>'
        for value, text, anchor in ((-1, "-1", "start"), (0, "0", "middle"), (1, "cosine 1", "end"))
    )
    return (
        f'<svg viewBox="0 0 {left + 488} 532" role="img" aria-label="Mean cosine for every pair of degradations">'
        f"{''.join(cells)}{''.join(words)}{stops}{marks}</svg>"
    )


def _diverging(value: float) -> str:
    """-1 blue, 0 near white, 1 orange; the ends are ColorBrewer's, which every common eye tells apart."""
    end = (179, 88, 6) if value > 0 else (33, 102, 172)
    share = min(1.0, abs(value)) ** 0.9
    return "#" + "".join(f"{round(247 + (part - 247) * share):02x}" for part in end)


def curves(metrics: Path) -> dict[str, Curve]:
    """The curves of a metrics.jsonl by key; one that never moves says nothing and is left out."""
    found: dict[str, Curve] = {}
    for text in metrics.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        for key, value in line.items():
            if key != "step" and math.isfinite(value):
                found.setdefault(key, []).append((line["step"], value))
    moving = {key: curve for key, curve in found.items() if len({value for _, value in curve}) > 1}
    return dict(sorted(moving.items(), key=lambda item: item[0].endswith("grad_norm")))


def curve_svg(key: str, curve: Curve) -> str:
    """A curve with its moving average, as a figure titled `key`."""
    width, height, pad = 300, 150, 46
    steps, values = zip(*curve, strict=True)
    low, high = min(values), max(values)
    first, last = min(steps), max(steps)

    def line(of: Sequence[float]) -> str:
        return " ".join(
            f"{pad + (step - first) / (last - first) * (width - pad - 8):.1f},"
            f"{height - 22 - (value - low) / (high - low) * (height - 34):.1f}"
            for step, value in zip(steps, of, strict=True)
        )

    reach = max(1, len(values) // 25) if len(values) > 8 else 0  # a validation's few values stand as they are
    windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    title = html.escape(key)
    return (
        f'<figure class="chart"><figcaption>{title}</figcaption>'
        f'<svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{title} from {values[0]:.4g} to {values[-1]:.4g} over {last:g} steps">'
        f'<path class="axis" d="M{pad},8V{height - 22}H{width - 6}"/><polyline class="raw" points="{line(values)}"/>'
        f'<polyline class="line" points="{line([sum(w) / len(w) for w in windows])}"/>'
        f'<text class="ink" x="{pad - 4}" y="15" text-anchor="end">{high:.4g}</text>'
        f'<text class="ink" x="{pad - 4}" y="{height - 22}" text-anchor="end">{low:.4g}</text>'
        f'<text class="ink" x="{pad}" y="{height - 6}">{first:g}</text>'
        f'<text class="ink" x="{width - 6}" y="{height - 6}" text-anchor="end">step {last:g}</text>'
        "</svg></figure>"
    )
