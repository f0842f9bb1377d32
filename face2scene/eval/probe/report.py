"""The probe's answers as a table, a CSV file and one image, the paper's figures beside ours."""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from face2scene.common.charts import new_figure
from face2scene.common.files import atomic_write

# Read off the paper's poster: ten images, mean cosine of different images under one preset; every mean of one
# image under two presets lies within the band.
PAPER_SAME = {"d1": 0.89, "d2": 0.83, "d3": 0.93, "d4": 0.94}
PAPER_CROSS = 0.06
_SCALARS = {
    "retrieval_top1": "one operator among all, nearest of all other images",
    "map": "the same, mean average precision",
    "one_picture_top1": "one operator among all, on one other image",
}


def rows_of(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row a number: encoder, measure, name, value, spread, and what the paper or chance gives."""
    for encoder, answers in {"pair": found, **found["against"]}.items():
        for name, value in answers["same"].items():
            spread, paper = answers["same_spread"][name], PAPER_SAME.get(name)
            yield _row(encoder, "same", name, value, spread, paper, "")
        for name, value in answers["cross"].items():
            yield _row(encoder, "cross", name, value, answers["cross_spread"][name], f"+-{PAPER_CROSS}", "")
        for name in _SCALARS:
            yield _row(encoder, "retrieval", name, answers[name], None, None, answers["chance"])
        for measure in ("linear", "linear_wide"):
            for name, value in answers[measure].items():
                yield _row(encoder, measure, name, value, None, None, 0.0)
        leak = answers["leakage"]
        for name in ("picture", "picture_centred", "identity"):
            chance = leak["identity_chance" if name == "identity" else "picture_chance"]
            yield _row(encoder, "leakage", name, leak[name], None, None, chance)
    for restorer, answers in found["restorers"].items():
        for name in ("same_mean", "different_mean", "retrieval_top1", "map"):
            yield _row("pair", f"restorer {restorer}", name, answers[name], None, None, "")


def _row(encoder: str, measure: str, name: str, value: Any, spread: Any, paper: Any, chance: Any) -> dict[str, Any]:
    rounded = [round(v, 4) if isinstance(v, float) else v for v in (value, spread, paper, chance)]
    return dict(
        zip(
            ("encoder", "measure", "name", "value", "spread", "paper", "chance"),
            (encoder, measure, name, *("" if v is None else v for v in rounded)),
            strict=True,
        )
    )


def write_report(folder: Path, found: Mapping[str, Any], embeddings: Tensor) -> None:
    """probe.csv, and images/probe.png where matplotlib is installed.

    Args:
        embeddings: (O, P, D) unit vectors of the presets.
    """
    text = io.StringIO()
    rows = list(rows_of(found))
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(folder / "probe.csv") as partial:
        partial.write_text(text.getvalue(), encoding="utf-8")
    figure = probe_figure(found, embeddings)
    with atomic_write(folder / "images/probe.png") as partial:
        figure.savefig(partial, format="png", dpi=110)


def summary(found: Mapping[str, Any]) -> str:
    """What a terminal shows."""
    lines = [f"{found['pictures']} images of {found['people']} people, faces of {found['protocol']['crop_sides']} px"]
    lines += [f"left out: {row['name']} ({row['reason']})" for row in found["left_out"]]
    for encoder, answers in {"pair": found, **found["against"]}.items():
        same = "  ".join(f"{k} {v:.3f} (paper {PAPER_SAME[k]})" for k, v in answers["same"].items() if k in PAPER_SAME)
        cross = "  ".join(f"{k} {v:+.3f}" for k, v in answers["cross"].items())
        leak = answers["leakage"]
        lines += [
            f"{encoder}: same preset, other image: {same}",
            f"  same image, other preset: {cross} (paper within +-{PAPER_CROSS})",
            f"  retrieval top-1 {answers['retrieval_top1']:.3f}, mAP {answers['map']:.3f}, on one image "
            f"{answers['one_picture_top1']:.3f} (chance {answers['chance']:.3f})",
            "  R squared, paper's space: " + "  ".join(f"{k} {v:.3f}" for k, v in answers["linear"].items()),
            "  R squared, wide space: " + "  ".join(f"{k} {v:.3f}" for k, v in answers["linear_wide"].items()),
            f"  content: image {leak['picture']:.3f}, centred {leak['picture_centred']:.3f} (chance "
            f"{leak['picture_chance']:.3f})"
            + (
                ""
                if leak["identity"] is None
                else f"; person {leak['identity']:.3f} (chance {leak['identity_chance']:.3f})"
            ),
        ]
    for name, answers in found["restorers"].items():
        lines.append(
            f"restored by {name}: same {answers['same_mean']:.3f}, different {answers['different_mean']:+.3f}, "
            f"top-1 {answers['retrieval_top1']:.3f}"
        )
    return "\n".join(lines)


def probe_figure(found: Mapping[str, Any], embeddings: Tensor) -> Any:
    """The cosine matrix of all images under all presets, and the means with their spread beside the paper's."""
    labels, images = found["labels"], embeddings.shape[1]
    figure = new_figure(15, 4.6)
    matrix, same, cross = figure.subplots(1, 3, width_ratios=(1.15, 1, 1.2))
    flat = embeddings.flatten(0, 1).float()
    eval_weights = matrix.imshow((flat @ flat.T).numpy(), vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
    middles = [images * (number + 0.5) - 0.5 for number in range(len(labels))]
    for ticks in (matrix.set_xticks, matrix.set_yticks):
        ticks(middles, labels)
    for number in range(1, len(labels)):
        for line in (matrix.axhline, matrix.axvline):
            line(images * number - 0.5, color="black", linewidth=0.6)
    matrix.set_title(f"cosines of {images} images under {len(labels)} presets")
    figure.colorbar(eval_weights, ax=matrix, shrink=0.85)

    places = range(len(labels))
    spread = [found["same_spread"][name] for name in labels]
    same.bar([p - 0.2 for p in places], [found["same"][n] for n in labels], 0.4, yerr=spread, capsize=3, label="here")
    same.bar(
        [p + 0.2 for p in places], [PAPER_SAME.get(n, 0) for n in labels], 0.4, color="0.7", label="paper's poster"
    )
    same.set_xticks(places, labels)
    same.set_ylim(min(0, *found["same"].values()), 1.05)
    same.set_title("same preset, different images")
    same.legend(loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=2)  # below: bars reach everywhere above

    names = list(found["cross"])
    cross.axhspan(-PAPER_CROSS, PAPER_CROSS, color="0.85", label="paper's means lie here")
    values, spreads = ([found[key][name] for name in names] for key in ("cross", "cross_spread"))
    cross.errorbar(range(len(names)), values, yerr=spreads, fmt="o", capsize=3, label="here")
    cross.axhline(0, color="black", linewidth=0.6)
    cross.set_xticks(range(len(names)), names)
    cross.set_ylim(-1, 1)
    cross.set_title("same image, different presets")
    cross.legend(loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=2)
    for axis in (same, cross):
        axis.set_ylabel("cosine: mean and standard deviation")
    return figure
