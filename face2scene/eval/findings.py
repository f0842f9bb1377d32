"""What the quickstart found: three questions, each with its answer and the figures behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from face2scene.eval.metrics import METRICS

MARGIN = 0.3  # how far same-damage cosines should be above different ones: the quickstart's own target
HEADLINE = ("psnr", "lpips", "dists")


@dataclass(frozen=True)
class Finding:
    """One question the quickstart answers: yes, no or "not measured", and the figures, whatever they are."""

    claim: str
    verdict: str
    columns: tuple[str, str]
    figures: tuple[tuple[str, str, str], ...]  # what, and its value in the two columns
    note: str = ""

    def __str__(self) -> str:
        left, right = self.columns
        figures = "; ".join(f"{what} {a} ({left}), {b} ({right})" for what, a, b in self.figures)
        return f"[{self.verdict}] {self.claim}: {figures or self.note}"


def findings(block: Mapping[str, Any]) -> list[Finding]:
    """Restoring, FaDeX and the tokens: three answers from the block `quickstart` of `scores.json`."""
    return [
        _comparison(
            "Restored pictures are closer to the truth than the degraded ones",
            ("input", "restored, shipped weights"),
            block["input"],
            block["restored"],
            HEADLINE,
        ),
        _cosines(block["fadex"], block["fadex_shipped"]),
        _comparison(
            "A picture's own tokens restore it better than another's",
            ("another's", "its own"),
            block["wrong_tokens"],
            block["restored"],
            ("psnr", "lpips"),
        ),
    ]


def number(key: str, value: float) -> str:
    """A value of the metric `key` as it is shown, without its unit."""
    return f"{value:.2f}" if key == "psnr" else f"{value:.4f}"


def better(key: str, value: float, than: float) -> bool:
    """Whether `value` of the metric `key` is strictly better."""
    return value > than if METRICS[key].better == "higher" else value < than


def _comparison(
    claim: str, columns: tuple[str, str], base: Mapping[str, float], ours: Mapping[str, float], keys: Sequence[str]
) -> Finding:
    if any(key not in ours or key not in base for key in keys):
        return Finding(claim, "not measured", columns, (), "the scores of one side are incomplete")
    units = {"psnr": " dB"}
    figures = tuple((METRICS[k].title, *(number(k, side[k]) + units.get(k, "") for side in (base, ours))) for k in keys)
    lost = ", ".join(METRICS[key].title for key in keys if not better(key, ours[key], base[key]))
    return Finding(claim, "no" if lost else "yes", columns, figures, lost and f"not in {lost}")


def _cosines(here: Mapping[str, float], shipped: Mapping[str, float]) -> Finding:
    figures = tuple(
        (f"cosine, {title}", f"{probe['same']:.3f}", f"{probe['different']:.3f}")
        for title, probe in (("trained in this run", here), ("shipped", shipped))
    )
    gap = here["same"] - here["different"]
    note = f"apart by {gap:.3f} in this run, at least {MARGIN} was asked"
    columns = ("same damage", "different")
    return Finding("FaDeX tells degradations apart", "yes" if gap >= MARGIN else "no", columns, figures, note)
