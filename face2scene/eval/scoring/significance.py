"""Paired tests of two methods over the images that both were scored on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.stats import rankdata, wilcoxon

from face2scene.eval.metrics.registry import METRICS
from face2scene.eval.scoring.pairing import ScoreError, some
from face2scene.eval.scoring.results import interval, read_scores
from face2scene.eval.tables.render import formatted, plain_markdown

_PROTOCOL = ("protocol", "engine", "weights_sha256", "boxes")
LEVEL = 0.05  # of the tests, after Holm's correction


@dataclass(frozen=True)
class Difference:
    """How two methods differ in one metric, over images that both have."""

    metric: str
    means: tuple[float, float]
    interval: tuple[float, ...]  # 95 % of the mean of (second - first), see `results.interval`
    ranks: float  # signed ranks of (second - first), from -1, where all are below 0, to 1
    p: float  # Wilcoxon's test of these ranks, two-sided
    p_holm: float  # corrected for the number of tests
    better: float  # share of images where the second is better; equal ones count half
    images: int

    @property
    def verdict(self) -> str:
        """`first`, `second`, `mixed` (the ranks differ one way and the means do not), or `no difference found`."""
        if self.p_holm >= LEVEL:
            return "no difference found"
        if (self.means[1] - self.means[0]) * self.ranks <= 0:
            return "mixed"
        return "second" if (self.ranks > 0) == (METRICS[self.metric].better == "higher") else "first"


def compare(first: str | Path, second: str | Path) -> list[Difference]:
    """Two scored folders, metric by metric.

    Raises:
        ScoreError: the folders hold other images, were scored against another ground truth or by another protocol, have
            no metric in common, or a CSV was changed.
        FileNotFoundError: a folder is not scored.
    """
    return corrected([_differences(first, second)])[0]


def compare_all(first: str | Path, others: Sequence[str | Path]) -> list[list[Difference] | ScoreError]:
    """One scored folder with several, p corrected for all tests together; the error where two cannot be compared."""
    found: list[list[Difference] | ScoreError] = []
    for other in others:
        try:
            found.append(_differences(first, other))
        except ScoreError as error:
            found.append(error)
    done = iter(corrected([group for group in found if not isinstance(group, ScoreError)]))
    return [group if isinstance(group, ScoreError) else next(done) for group in found]


def corrected(groups: Sequence[Sequence[Difference]]) -> list[list[Difference]]:
    """Holm (1979) over all groups: the smallest p times the number of tests, the next times one less, never falling."""
    places = [(g, n) for g, group in enumerate(groups) for n in range(len(group))]
    highest, done = 0.0, [list(group) for group in groups]
    for rank, (g, n) in enumerate(sorted(places, key=lambda place: groups[place[0]][place[1]].p)):
        highest = max(highest, min(1.0, groups[g][n].p * (len(places) - rank)))
        done[g][n] = replace(groups[g][n], p_holm=highest)
    return done


def _differences(first: str | Path, second: str | Path) -> list[Difference]:
    sides = [read_scores(folder) for folder in (first, second)]
    tables = [{name: row for name, row in table.items() if row} for _, table in sides]
    apart = [sorted(tables[0].keys() - tables[1].keys()), sorted(tables[1].keys() - tables[0].keys())]
    if any(apart):
        raise ScoreError(
            f"{first} and {second} were not scored on the same images: only the first has "
            f"{some(apart[0]) or 'none'}, only the second {some(apart[1]) or 'none'}. Score both on one set."
        )
    gts = [scores.get("truth") for scores, _ in sides]
    if None in gts:
        raise ScoreError(f"{(first, second)[gts.index(None)]} does not say what it was scored against: score it again.")
    if gts[0] != gts[1]:
        raise ScoreError(
            f"{first} and {second} were scored against other ground truths, of {gts[0]['pictures']} and "
            f"{gts[1]['pictures']} images: score both against one (option gt)."
        )
    protocols = [scores["protocol"] for scores, _ in sides]
    for key in protocols[0].keys() & protocols[1].keys():
        if any(protocols[0][key].get(part) != protocols[1][key].get(part) for part in _PROTOCOL):
            raise ScoreError(f"{key} of {first} and of {second} follow another protocol: score both again.")
    found = []
    for key in [key for key in protocols[0] if key in protocols[1]]:
        names = [n for n, row in tables[0].items() if key in row and key in tables[1][n]]
        if names:
            found.append(_difference(key, *(np.array([table[n][key] for n in names]) for table in tables)))
    if not found:
        raise ScoreError(f"{first} and {second} have no metric of single images in common (option metrics).")
    return found


def describe(difference: Difference, first: str, second: str) -> str:
    """The verdict as a sentence."""
    words = {
        "first": f"{first} is better",
        "second": f"{second} is better",
        "mixed": "mixed: means and signed ranks disagree",
    }
    return words.get(difference.verdict, difference.verdict)


def table(differences: Sequence[Difference], first: str, second: str) -> str:
    """The differences as a Markdown table."""
    header = ["metric", first, second, "difference, 95 % interval", "p (Wilcoxon), Holm's", f"{second} better in", ""]
    lines = []
    for d in differences:
        metric, (a, b), ends = METRICS[d.metric], d.means, ", ".join(f"{end:+.4f}" for end in d.interval)
        apart, p = f"{b - a:+.4f} [{ends or 'one image'}]", f"{d.p:.2g}, {d.p_holm:.2g}"
        means = (formatted(d.metric, a), formatted(d.metric, b))
        share, verdict = f"{d.better:.0%} of {d.images}", describe(d, first, second)
        lines.append([f"{metric.title} {metric.arrow}", *means, apart, p, share, verdict])
    return plain_markdown(header, lines)


def _difference(key: str, a: np.ndarray, b: np.ndarray) -> Difference:
    apart = b - a
    # The test is not defined for differences that are all 0.
    p = float(wilcoxon(apart, zero_method="pratt").pvalue) if np.any(apart) else 1.0
    places = rankdata(np.abs(apart))
    ranks = float((places * np.sign(apart)).sum() / places.sum())
    wins = apart > 0 if METRICS[key].better == "higher" else apart < 0
    better = float(np.mean(wins + 0.5 * (apart == 0)))
    means, spread = (float(a.mean()), float(b.mean())), tuple(interval(apart.tolist()))
    return Difference(key, means, spread, ranks, p, p, better, len(a))
