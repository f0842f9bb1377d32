"""Numbers drawn as inline SVG: a matrix of cosines, curves, spreads. Colours come from the page's style."""

import html
import json
import math
import statistics
from collections.abc import Mapping, Sequence
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


def spread_svg(title: str, values: Mapping[str, Sequence[float]]) -> str:
    """Each row's values as a box (median and quartiles) with a line from the 5th to the 95th percentile."""
    width, pad, line = 420, 130, 26
    height = 12 + line * len(values) + 20
    spans = {name: _percentiles(row) for name, row in values.items()}
    low, high = min(span[0] for span in spans.values()), max(span[-1] for span in spans.values())
    reach = (high - low) or 1.0

    def x(value: float) -> float:
        return pad + (value - low) / reach * (width - pad - 14)

    marks = []
    for number, (name, (p5, q1, median, q3, p95)) in enumerate(spans.items()):
        y, shown = 12 + line * (number + 0.5), name if len(name) < 20 else name[:18] + "…"
        marks.append(
            f'<text class="ink" x="{pad - 8}" y="{y + 4:.1f}" text-anchor="end">{html.escape(shown)}</text>'
            f'<path class="whisker" d="M{x(p5):.1f},{y:.1f}H{x(p95):.1f}"/>'
            f'<rect class="box" x="{x(q1):.1f}" y="{y - 7:.1f}" width="{max(1.0, x(q3) - x(q1)):.1f}" height="14">'
            f"<title>{html.escape(name)}: median {median:.4g}, quartiles {q1:.4g} and {q3:.4g}</title></rect>"
            f'<path class="median" d="M{x(median):.1f},{y - 8:.1f}V{y + 8:.1f}"/>'
        )
    return (
        f'<figure class="chart"><figcaption>{html.escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}: spread over the pictures">'
        f'{"".join(marks)}<path class="axis" d="M{pad},{height - 20}H{width - 10}"/>'
        f'<text class="ink" x="{pad}" y="{height - 5}">{low:.4g}</text>'
        f'<text class="ink" x="{width - 12}" y="{height - 5}" text-anchor="end">{high:.4g}</text></svg></figure>'
    )


def _percentiles(values: Sequence[float]) -> tuple[float, ...]:
    """5th, 25th, 50th, 75th and 95th."""
    if len(values) == 1:
        return (values[0],) * 5
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return cuts[0], cuts[4], cuts[9], cuts[14], cuts[18]
