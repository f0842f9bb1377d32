"""Whether two methods differ: paired tests over the pictures that both were scored on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import wilcoxon

from face2scene.eval.metrics import METRICS
from face2scene.eval.pairing import ScoreError, some
from face2scene.eval.results import interval, read_scores
from face2scene.eval.tables import shown

LEVEL = 0.05  # of the tests, after Holm's correction


@dataclass(frozen=True)
class Difference:
    """How two methods differ in one metric, over pictures that both have."""

    metric: str
    means: tuple[float, float]
    interval: tuple[float, float]  # 95 % of the mean of (second - first), by bootstrap over pictures
    p: float  # Wilcoxon's signed ranks, two-sided
    p_holm: float  # corrected for the number of metrics
    better: float  # share of pictures where the second is better; equal ones count half
    pictures: int

    @property
    def verdict(self) -> str:
        """`first`, `second`, or `no difference found`."""
        if self.p_holm >= LEVEL:
            return "no difference found"
        higher = self.means[1] > self.means[0]
        return "second" if higher == (METRICS[self.metric].better == "higher") else "first"


def compare(first: str | Path, second: str | Path) -> list[Difference]:
    """Two scored folders, metric by metric.

    Raises:
        ScoreError: the folders hold other pictures, another protocol or no common metric, or a CSV was changed.
        FileNotFoundError: a folder is not scored.
    """
    sides = [read_scores(folder) for folder in (first, second)]
    tables = [{name: row for name, row in table.items() if row} for _, table in sides]
    apart = [sorted(tables[0].keys() - tables[1].keys()), sorted(tables[1].keys() - tables[0].keys())]
    if any(apart):
        raise ScoreError(
            f"{first} and {second} were not scored on the same pictures: only the first has "
            f"{some(apart[0]) or 'none'}, only the second {some(apart[1]) or 'none'}. Score both on one set."
        )
    protocols = [scores["protocol"] for scores, _ in sides]
    for key in protocols[0].keys() & protocols[1].keys():
        if any(protocols[0][key][part] != protocols[1][key][part] for part in ("protocol", "weights_sha256")):
            raise ScoreError(f"{key} of {first} and of {second} follow another protocol: score both again.")
    found = []
    for key in [key for key in protocols[0] if key in protocols[1]]:
        names = [n for n, row in tables[0].items() if key in row and key in tables[1][n]]
        if names:
            found.append(_difference(key, *(np.array([table[n][key] for n in names]) for table in tables)))
    if not found:
        raise ScoreError(f"{first} and {second} have no metric of single pictures in common (option metrics).")
    return _corrected(found)


def table(differences: Sequence[Difference], first: str, second: str) -> str:
    """Markdown."""
    lines = [
        f"| metric | {first} | {second} | difference, 95 % interval | p (Wilcoxon), Holm's | {second} better in | |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for d in differences:
        metric, (a, b) = METRICS[d.metric], d.means
        low, high = (f"{value:+.4f}" for value in d.interval)
        verdict = {"first": f"{first} is better", "second": f"{second} is better"}.get(d.verdict, d.verdict)
        lines.append(
            f"| {metric.title} {metric.arrow} | {shown(d.metric, a)} | {shown(d.metric, b)} "
            f"| {b - a:+.4f} [{low}, {high}] | {d.p:.2g}, {d.p_holm:.2g} | {d.better:.0%} of {d.pictures} | {verdict} |"
        )
    return "\n".join(lines) + "\n"


def _difference(key: str, a: np.ndarray, b: np.ndarray) -> Difference:
    apart = b - a
    # All equal: the test is not defined, and there is nothing to find.
    p = float(wilcoxon(apart, zero_method="pratt").pvalue) if np.any(apart) else 1.0
    wins = apart > 0 if METRICS[key].better == "higher" else apart < 0
    better = float(np.mean(wins + 0.5 * (apart == 0)))
    low, high = interval(apart.tolist())
    return Difference(key, (float(a.mean()), float(b.mean())), (low, high), p, p, better, len(a))


def _corrected(found: Sequence[Difference]) -> list[Difference]:
    """Holm (1979): the smallest p times the number of tests, the next times one less, never falling."""
    order = sorted(range(len(found)), key=lambda n: found[n].p)
    corrected, highest = {}, 0.0
    for place, n in enumerate(order):
        highest = max(highest, min(1.0, found[n].p * (len(found) - place)))
        corrected[n] = highest
    return [Difference(**{**vars(d), "p_holm": corrected[n]}) for n, d in enumerate(found)]
