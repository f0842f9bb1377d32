"""The two files of a scored folder: `scores.csv`, a row per image, and `scores.json`, means and protocol."""

import csv
import hashlib
import json
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from face2scene.common.files import atomic_write, read_json, sha256_of, write_json
from face2scene.common.ledger import Ledger
from face2scene.common.provenance import provenance, versions
from face2scene.common.types import Box
from face2scene.eval.metrics.registry import Metric, Scorer
from face2scene.eval.scoring.pairing import MIN_SHIFT_SIDE, SHIFT, ScoreError, ScoreRow, some
from face2scene.inference.log import RESTORATION_LOG

log = logging.getLogger(__name__)
_DRAWS = 2000  # of the bootstrap, ours


def write_results(
    row: ScoreRow,
    measured: Sequence[Metric],
    ready: Mapping[str, Scorer],
    missing: Mapping[str, str],
    chosen: Sequence[Metric],
    gt: Mapping[str, Any],
    copies: Mapping[str, Sequence[str]],
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Write both files of a row and return the contents of `scores.json`.

    A mean is given where every image has a value and no image of another set is in the folder. Images without one for a
    stated reason, such as no face for the identity score (as in the paper) or an infinite PSNR, are left out and named.

    Args:
        gt: number and `sha256` of the ground truths, see `gt_digest`.
    """
    names = [name for name in row.paths if name not in row.flagged]
    complete = len(names) == gt["pictures"] and not row.extra
    per_image = [m for m in measured if m.compares != "sets"]
    columns = {m.key: [row.values[n][m.key] for n in names if m.key in row.values.get(n, {})] for m in per_image}
    whole = {m.key for m in per_image if complete and (len(columns[m.key]) == len(names) or m.undefined)}
    means = {key: math.fsum(values) / len(values) for key, values in columns.items() if values}
    sets: dict[str, float] = {}
    for metric in measured:
        if metric.compares == "sets" and complete and not row.undefined.get(metric.key):
            features = (
                torch.stack([row.features[f"{metric.key}/{side}/{name}"] for name in names])
                for side in ("ours", "truth")
            )
            try:
                sets[metric.key] = float(ready[metric.key].distance(*features))
            except ValueError as error:
                missing = {**missing, metric.key: str(error)}

    with atomic_write(row.out / "scores.csv") as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", *columns])
        for name in row.paths:
            found = {} if name in row.flagged else row.values.get(name, {})
            writer.writerow([name, *(f"{found[key]:.6f}" if key in found else "" for key in columns)])
    undefined = {}
    for key, reasons in ((m.key, row.undefined.get(m.key, {})) for m in measured):
        if images := {name: reasons[name] for name in names if name in reasons}:
            undefined[key] = images
            log.warning("%s: %s has no value for %s", row.title, key, some(f"{n} ({w})" for n, w in images.items()))
    partly = {key: mean for key, mean in means.items() if key not in whole}
    scores = {
        "complete": complete,
        "region": row.region,
        "means": {key: mean for key, mean in means.items() if key in whole},
        "intervals": {key: spread for key in means if key in whole and (spread := interval(columns[key]))},
        # A mean over fewer images is another quantity, so it has another name.
        **({"means_of_scored_only": partly} if partly else {}),
        "sets": sets,
        "counts": row.counts(gt["pictures"]),
        "truth": dict(gt),
        "pictures": {
            "missing": row.missing,
            "flagged": {name: row.flagged[name] for name in row.paths if name in row.flagged},
            "without_truth": row.extra,
        },
        "undefined": undefined,
        "copies": dict(copies),
        **({"alignment": _alignment(row)} if row.region == "whole" else {}),
        "protocol": {m.key: m.described() | _boxes_digest(m, row) for m in chosen if m.key not in missing},
        "not_measured": dict(missing),
        "versions": versions(),
        "provenance": provenance(config={m.key: m.described() for m in chosen}, data=gt.get("sha256"), device=device)
        | {"predictions": _made_by(row.folder)},
        "predictions": str(row.folder),
        "csv_sha256": sha256_of(row.out / "scores.csv"),
    }
    write_scores(row.out / "scores.json", scores)
    return scores


def write_scores(path: Path, scores: dict[str, Any]) -> None:
    """Write a `scores.json` with the digest by which `check_scores` tells a file that was edited."""
    scores["self_sha256"] = _digest(scores)
    write_json(path, scores)


def check_scores(path: str | Path, needed: Sequence[str] = ()) -> dict[str, Any]:
    """The contents of a `scores.json`.

    Raises:
        ScoreError: it is no whole file with the keys `needed`, or not what was written.
    """
    try:
        scores = read_json(path)
        whole = set(needed) <= scores.keys()
    except (ValueError, AttributeError):
        whole = False
    if not whole:
        raise ScoreError(f"{path} is no file of scores: score the folder again.")
    if scores.get("self_sha256", digest := _digest(scores)) != digest:
        raise ScoreError(f"{path} is not what was written, it was edited: score the folder again.")
    return scores


def _digest(scores: Mapping[str, Any]) -> str:
    facts = {key: value for key, value in scores.items() if key != "self_sha256"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _made_by(folder: Path) -> list[Any]:
    """The records of what made the images, from a restoration log in their folder or the one above."""
    for place in (folder, folder.parent):
        if (path := place / RESTORATION_LOG).is_file():
            records = [line.get("provenance") for line in Ledger(path).read().lines.values()]
            return [record for number, record in enumerate(records) if record and record not in records[:number]]
    return []


def read_scores_csv(path: str | Path) -> dict[str, dict[str, float]]:
    """name -> metric -> value of a `scores.csv`; an empty cell is left out.

    Raises:
        ScoreError: not a table of numbers with the column `name` first.
    """
    with open(path, newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        if not table.fieldnames or table.fieldnames[0] != "name":
            raise ScoreError(f"{path} has no first column 'name': score the folder again.")
        try:
            return {row.pop("name"): {k: float(v) for k, v in row.items() if v != ""} for row in table}
        except (TypeError, ValueError) as error:
            raise ScoreError(f"{path} holds a cell that is not a number ({error}): score the folder again.") from error


def read_scores(folder: str | Path) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Both files of a scored folder: the contents of `scores.json`, and values by image.

    Raises:
        FileNotFoundError: the folder is not scored.
        ScoreError: a file was changed after the scoring.
    """
    folder = Path(folder)
    for file in ("scores.json", "scores.csv"):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder / file} is not there: score the folder first (predictions=, name=).")
    scores = check_scores(folder / "scores.json")
    if scores.get("csv_sha256") != sha256_of(folder / "scores.csv"):
        raise ScoreError(
            f"{folder / 'scores.csv'} is not the file that was written with scores.json: it was changed. "
            "Score the folder again; values are kept, so it takes seconds."
        )
    return scores, read_scores_csv(folder / "scores.csv")


def gt_digest(hashes: Mapping[str, str], boxes: Mapping[str, Box] | None = None) -> dict[str, Any]:
    """What must be equal for two rows to be comparable: number of images, and sha256 of names, ground truths and boxes.

    Args:
        hashes: name -> sha256 of the ground truth.
        boxes: of the images, where a part of them is scored.
    """
    facts = [[n, digest, *map(float, (boxes or {}).get(n, ()))] for n, digest in sorted(hashes.items())]
    return {"pictures": len(facts), "sha256": hashlib.sha256(json.dumps(facts).encode()).hexdigest()}


def interval(values: Sequence[float]) -> list[float]:
    """95 % percentile bootstrap interval of the mean over images, [low, high]; the same for the same values.

    Of few images it is too narrow: of Gaussian values it holds the true mean in 74, 83, 90, 93 and 95 % for 3, 5, 10,
    24 and 100 images. Empty for fewer than two.
    """
    data = np.asarray(values, dtype=np.float64)
    if len(data) < 2:
        return []
    rng = np.random.default_rng(0)
    low, high = np.quantile(data[rng.integers(0, len(data), (_DRAWS, len(data)))].mean(1), [0.025, 0.975])
    return [float(low), float(high)]


def _alignment(row: ScoreRow) -> dict[str, Any]:
    shifts = {n: row.shifts[n] for n in row.paths if n in row.shifts and n not in row.flagged}
    known = {n: shift for n, shift in shifts.items() if math.isfinite(shift[0])}
    unlike = [n for n in shifts if math.isnan(shifts[n][0]) and min(row.sizes[n]) >= MIN_SHIFT_SIDE]
    uncertain = [n for n in shifts if math.isinf(shifts[n][0])]
    median = [round(statistics.median(axis), 3) for axis in zip(*known.values(), strict=True)] or None
    off = {n: [round(v, 3) for v in shift] for n, shift in known.items() if math.hypot(*shift) > SHIFT}
    if off:
        listed = some(f"{name} ({x:+.1f}, {y:+.1f})" for name, (x, y) in off.items())
        log.warning("%s: %d images are shifted by more than half a pixel: %s", row.title, len(off), listed)
    found = {"median_shift": median, "pictures": off, "estimated": len(known), "unlike": unlike, "uncertain": uncertain}
    for doubt in alignment_doubts(found):
        log.warning("%s: %s", row.title, doubt)
    return found


def alignment_doubts(alignment: Mapping[str, Any]) -> list[str]:
    """Whether names may be mixed up and whether all images are shifted, in sentences, from `alignment` of a row."""
    unlike, shift = alignment["unlike"], alignment["median_shift"]
    total, doubts = alignment["estimated"] + len(unlike) + len(alignment.get("uncertain", ())), []
    if 2 * len(unlike) > total:
        doubts.append(
            f"{len(unlike)} of {total} images have too little in common with the ground truth of their name for their "
            f"shift to be estimated: {some(unlike)}. Names may be mixed up."
        )
    if shift and math.hypot(*shift) > SHIFT:
        doubts.append(
            "predictions are shifted against their ground truth by {:+.2f} px (right) and {:+.2f} px (down) in the "
            "median: size, crop or pairing differ, and metrics that compare pixels measure that.".format(*shift)
        )
    return doubts


def _boxes_digest(metric: Metric, row: ScoreRow) -> dict[str, str]:
    if metric.compares != "faces":
        return {}
    boxes = sorted((name, *map(float, box)) for name, box in row.boxes.items())
    return {"boxes": hashlib.sha256(json.dumps(boxes).encode()).hexdigest()}
