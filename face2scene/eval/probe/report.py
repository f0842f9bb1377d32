"""The probe's results as text, a CSV file and figures, with the paper's values beside ours."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from face2scene.common.charts import BLUE, ORANGE, PALE, new_figure, save_figure
from face2scene.common.files import atomic_write

# Read off the plot of the paper's poster, to about two hundredths. Ten images: the mean cosine of different images
# under one preset; every mean of one image under two presets lies within +-PAPER_CROSS.
PAPER_SAME = {"d1": 0.89, "d2": 0.83, "d3": 0.93, "d4": 0.94}
PAPER_CROSS = 0.06
_COLUMNS = ("encoder", "measure", "name", "value", "spread", "paper", "chance")


def rows_of(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per number: encoder, measure, name, value, spread, and the values of the paper and of chance."""
    for encoder, answers in {"pair": found, **found["against"]}.items():
        for name, value in answers["same"].items():
            yield _row(encoder, "same", name, value, answers["same_spread"][name], PAPER_SAME.get(name, ""))
        for name, value in answers["cross"].items():
            yield _row(encoder, "cross", name, value, answers["cross_spread"][name], f"+-{PAPER_CROSS}")
        for name in ("retrieval_top1", "map", "one_picture_top1"):
            yield _row(encoder, "retrieval", name, answers[name], chance=answers["chance"])
        for measure in ("linear", "linear_wide"):
            for name, value in answers[measure].items():
                yield _row(encoder, measure, name, value, chance=0.0)
        leak = answers["leakage"]
        for name in ("picture", "picture_centred", "identity"):
            yield _row(encoder, "leakage", name, leak[name], chance=leak[f"{name.partition('_')[0]}_chance"])
    for restorer, answers in found["restorers"].items():
        for name in ("same_mean", "different_mean", "retrieval_top1", "map"):
            yield _row("pair", f"restorer {restorer}", name, answers[name])


def _row(*values: Any, chance: Any = "") -> dict[str, Any]:
    padded = [*values, *[""] * (6 - len(values)), chance]
    rounded = [round(v, 4) if isinstance(v, float) else "" if v is None else v for v in padded]
    return dict(zip(_COLUMNS, rounded, strict=True))


def write_report(folder: Path, found: Mapping[str, Any], embeddings: Tensor) -> None:
    """Write probe.csv and images/probe.png.

    Args:
        embeddings: (O, P, D) unit vectors of P images under the O presets.
    """
    with atomic_write(folder / "probe.csv") as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows_of(found))
    with atomic_write(folder / "images/probe.png") as partial:
        probe_figure(found, embeddings).savefig(partial, format="png", dpi=110)


def summary(found: Mapping[str, Any]) -> str:
    """The main results as text for a terminal."""
    lines = [f"{found['pictures']} images of {found['people']} people, faces of {found['protocol']['crop_sides']} px"]
    lines += [f"left out: {row['name']} ({row['reason']})" for row in found["left_out"]]
    for encoder, answers in {"pair": found, **found["against"]}.items():
        same = "  ".join(f"{k} {v:.3f} (paper {PAPER_SAME[k]})" for k, v in answers["same"].items() if k in PAPER_SAME)
        leak = answers["leakage"]
        content = (
            "image {picture:.3f}, centred {picture_centred:.3f} (chance {picture_chance:.3f})"
            + ("; person {identity:.3f} (chance {identity_chance:.3f})" if leak["identity"] is not None else "")
        ).format(**leak)
        lines += [
            f"{encoder}: same preset, other image: {same}",
            f"  same image, other preset: {_values(answers['cross'], '+.3f')} (paper within +-{PAPER_CROSS})",
            "  retrieval top-1 {retrieval_top1:.3f}, mAP {map:.3f}, on one image {one_picture_top1:.3f} "
            "(chance {chance:.3f})".format(**answers),
            f"  R squared, paper's space: {_values(answers['linear'])}",
            f"  R squared, wide space: {_values(answers['linear_wide'])}",
            f"  content: {content}",
        ]
    scores = "same {same_mean:.3f}, different {different_mean:+.3f}, top-1 {retrieval_top1:.3f}"
    lines += [f"restored by {name}: {scores.format(**answers)}" for name, answers in found["restorers"].items()]
    return "\n".join(lines)


def _values(values: Mapping[str, float], form: str = ".3f") -> str:
    return "  ".join(f"{key} {value:{form}}" for key, value in values.items())


def probe_figure(found: Mapping[str, Any], embeddings: Tensor) -> Any:
    """The cosine matrix of all images under all presets, and the means with their spread beside the paper's."""
    labels, images = found["labels"], embeddings.shape[1]
    figure = new_figure(15, 4.6)
    matrix, same, cross = figure.subplots(1, 3, width_ratios=(1.15, 1, 1.2))
    flat = embeddings.flatten(0, 1).float()
    image = matrix.imshow((flat @ flat.T).numpy(), vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
    middles = [images * (number + 0.5) - 0.5 for number in range(len(labels))]
    for ticks in (matrix.set_xticks, matrix.set_yticks):
        ticks(middles, labels)
    for number in range(1, len(labels)):
        for line in (matrix.axhline, matrix.axvline):
            line(images * number - 0.5, color="black", linewidth=0.6)
    matrix.set_title(f"cosines of {images} images under {len(labels)} presets", fontsize=9, loc="left")
    figure.colorbar(image, ax=matrix, shrink=0.85)
    _draw_means(found, same, cross)
    return figure


def draw_cosines(found: Mapping[str, Any], folder: Path) -> list[Path]:
    """FaDeX's figure: mean cosines of every degradation with itself and of every two, beside those of the poster."""
    figure = new_figure(7.2, 3.4)
    same, cross = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": [len(found["same"]), 6]})
    _draw_means(found, same, cross)
    return save_figure(figure, folder / "figure_fadex")


def _draw_means(found: Mapping[str, Any], same: Any, cross: Any) -> None:
    titles = {"same": "different images, one degradation", "cross": "one image, two"}
    for axes, key, colour in ((same, "same", BLUE), (cross, "cross", PALE)):
        means, spread = found[key], found.get(f"{key}_spread", {})
        errors = [spread.get(name, 0) for name in means]
        axes.bar(range(len(means)), list(means.values()), yerr=errors, color=colour, capsize=3, width=0.62)
        axes.set_xticks(range(len(means)), list(means), fontsize=8)
        axes.set_title(titles[key], fontsize=9, loc="left")
        axes.axhline(0, color="#444", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(-0.5, 1.05)
    same.set_ylabel("cosine: mean and standard deviation", fontsize=9)
    places = [(n, PAPER_SAME[name]) for n, name in enumerate(found["same"]) if name in PAPER_SAME]
    if places:
        same.plot(*zip(*places, strict=True), "D", color=ORANGE, markersize=6, label="the paper's poster", zorder=3)
        same.legend(fontsize=8, frameon=False, loc="lower left")
    label = "range of the paper's means"
    cross.axhspan(-PAPER_CROSS, PAPER_CROSS, color=ORANGE, alpha=0.35, label=label, zorder=0)
    cross.legend(fontsize=8, frameon=False, loc="upper right")
