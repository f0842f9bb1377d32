"""Pictures in folders to numbers: PNGs only, paired by name, one row per picture.

Ours or anybody's predictions are scored the same way. What cannot be scored is named, and a folder with a
missing or ruined picture is marked incomplete: its means stand under another name, away from whole ones.
"""

import csv
import logging
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from face2scene import __version__
from face2scene.data.manifest import METADATA, read_manifest
from face2scene.eval.metrics import METRICS, Metric, Scorer, build_all, choose
from face2scene.files import atomic_write, read_json, sha256_of, write_json
from face2scene.images import ImageError, list_images, read_tensor

log = logging.getLogger(__name__)
STATE = "scores.state.json"  # values by picture, with the hashes of the files they belong to
DEFAULT_METRICS = ("psnr", "ssim_y", "lpips", "dists")
BATCH_PIXELS = 4 * 256 * 256  # our setting: VGG16's feature maps take about 0.3 GB; more is no faster
SAVE_EVERY = 16  # pictures of one folder between two writes of its state


class ScoreError(ValueError):
    """Folders that cannot be compared as they are; the message names the pictures."""


@dataclass
class _Row:
    """One folder on its way through the scoring."""

    out: Path
    paths: dict[str, Path]
    missing: list[str]
    extra: list[str]
    flagged: dict[str, str] = field(default_factory=dict)
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    hashes: dict[str, tuple[str, str]] = field(default_factory=dict)
    unsaved: int = 0


def score_folder(
    predictions: str | Path,
    truth: str | Path | Mapping[str, Path],
    metrics: Sequence[str] = DEFAULT_METRICS,
    out: str | Path | None = None,
    *,
    device: torch.device | str = "cpu",
    batch_pixels: int = BATCH_PIXELS,
    scorers: Mapping[str, Scorer] | None = None,
) -> dict[str, Any]:
    """Score one folder of PNGs, see `score_folders`; results go to `out`, by default `predictions` itself."""
    rows = {"predictions": (Path(predictions), Path(out or predictions))}
    return score_folders(rows, truth, metrics, device=device, batch_pixels=batch_pixels, scorers=scorers)["predictions"]


def score_folders(
    rows: Mapping[str, tuple[Path, Path]],
    truth: str | Path | Mapping[str, Path],
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    device: torch.device | str = "cpu",
    batch_pixels: int = BATCH_PIXELS,
    scorers: Mapping[str, Scorer] | None = None,
) -> dict[str, dict[str, Any]]:
    """Score folders of PNGs against one truth, together: models and the truth's features are had once.

    Writes `scores.csv` (a row per picture: `name`, then a column per metric) and `scores.json` to each row's
    output folder. The same call again computes only what is new: values are kept with both pictures' hashes.

    Args:
        rows: title -> (folder of predictions, or of `images/` with them; folder for the results).
        truth: a folder, or name -> file. A prediction belongs to the truth of the same name, less the suffix.
        metrics: keys of `metrics.METRICS`.
        batch_pixels: pictures of one size are scored together up to this many pixels.
        scorers: functions to use instead of building the metrics (tests, other engines).

    Returns:
        The contents of each `scores.json`, by title.

    Raises:
        ScoreError: an empty folder, pictures that are not PNG, two of one name, a size unlike the truth's.
        ImageError: a picture that cannot be read.
    """
    chosen = choose(metrics)
    truths = _named_truth(truth)
    work = {title: _open_row(title, folder, out, truths) for title, (folder, out) in rows.items()}
    sizes = _checked_sizes(work, truths)

    if scorers is None:
        ready, missing = build_all(chosen, device)
    else:
        ready = {m.key: scorers[m.key] for m in chosen if m.key in scorers}
        missing = {m.key: "no engine was given for it" for m in chosen if m.key not in scorers}
    for key, reason in missing.items():
        log.warning("%s is not measured: %s", key, reason)
    per_image = [m for m in chosen if m.key in ready and m.compares != "sets"]

    hashes = {name: sha256_of(truths[name]) for row in work.values() for name in row.paths}
    for row in work.values():
        _recall(row, hashes)
    _score_pictures(work, truths, sizes, per_image, ready, device, batch_pixels)
    results = {}
    for title, row in work.items():
        sets = {
            m.key: float(ready[m.key](list(row.paths.values()), [truths[name] for name in row.paths]))
            for m in chosen
            if m.key in ready and m.compares == "sets"
        }
        results[title] = _write(row, chosen, per_image, sets, missing, len(truths))
    return results


def truth_of(folder: str | Path, split: str = "val") -> str | Path | dict[str, Path]:
    """The truth in `folder`: an InScene folder's pictures of `split` by name, any other folder as it is."""
    if not (Path(folder) / METADATA).is_file():
        return folder
    return {Path(record.image).stem: Path(folder) / record.image for record in read_manifest(folder, split=split)}


def read_scores_csv(path: str | Path) -> dict[str, dict[str, float]]:
    """name -> metric -> value of a `scores.csv`; an empty cell is left out.

    Raises:
        ScoreError: not a table of numbers with the column `name` first.
    """
    with open(path, newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        if not table.fieldnames or table.fieldnames[0] != "name":
            raise ScoreError(f"{path} has no column 'name' in front: score the folder again.")
        try:
            return {row.pop("name"): {k: float(v) for k, v in row.items() if v != ""} for row in table}
        except (TypeError, ValueError) as error:
            raise ScoreError(f"{path} holds a cell that is not a number ({error}): score the folder again.") from error


def _by_name(paths: Iterable[Path], what: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    twice = []
    for path in paths:
        if path.stem in found:
            twice.append(" and ".join(f"{p.parent.name}/{p.name}" for p in (found[path.stem], path)))
        found[path.stem] = path
    if twice:
        raise ScoreError(f"{what}: two pictures have one name ({_some(twice)}). Names must be unique to be paired.")
    return found


def _named_truth(truth: str | Path | Mapping[str, Path]) -> dict[str, Path]:
    if isinstance(truth, Mapping):
        found = {str(name): Path(path) for name, path in truth.items()}
        absent = [str(path) for path in found.values() if not path.is_file()]
        if absent:
            raise ScoreError(f"The truth lacks {len(absent)} files: {_some(absent)}.")
    else:
        found = _by_name(list_images(truth), f"truth {truth}")
    if not found:
        raise ScoreError(f"There are no pictures in {truth} to compare with (option truth).")
    return found


def _open_row(title: str, folder: Path, out: Path, truths: Mapping[str, Path]) -> _Row:
    folder = folder / "images" if (folder / "images").is_dir() else folder
    if not folder.is_dir():
        raise ScoreError(f"{title}: there is no folder {folder} (option predictions).")
    pictures = list_images(folder)
    other = [path.name for path in pictures if path.suffix.lower() != ".png"]
    if other:
        raise ScoreError(f"{title}: only PNG is scored, since lossy files change the numbers; found {_some(other)}.")
    found = _by_name(pictures, title)
    paths = {name: found[name] for name in truths if name in found}
    if not paths:
        raise ScoreError(
            f"{title}: no PNG in {folder} has the name of a truth. "
            f"Predictions: {_some(found) or 'none'}; truth: {_some(truths)}."
        )
    row = _Row(out, paths, [n for n in truths if n not in found], [n for n in found if n not in truths])
    if row.missing:
        log.warning("%s: incomplete, %d pictures are missing: %s", title, len(row.missing), _some(row.missing))
    if row.extra:
        log.warning("%s: %d pictures have no truth and are left out: %s", title, len(row.extra), _some(row.extra))
    return row


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(0x0112, 1) < 5 else (width, height)
    except Exception as error:
        raise ImageError(f"{path} cannot be read as a picture ({type(error).__name__}: {error}).") from error


def _checked_sizes(work: Mapping[str, _Row], truths: Mapping[str, Path]) -> dict[str, tuple[int, int]]:
    """(H, W) of every truth in use; refuses predictions of another size before any model is loaded."""
    sizes = {name: _size(truths[name]) for name in dict.fromkeys(n for row in work.values() for n in row.paths)}
    wrong = []
    for title, row in work.items():
        for name, path in row.paths.items():
            if (size := _size(path)) != sizes[name]:
                wrong.append(f"{title}/{path.name} is {size[1]} x {size[0]}, truth {sizes[name][1]} x {sizes[name][0]}")
    if wrong:
        raise ScoreError(f"{len(wrong)} pictures have another size than their truth: {_some(wrong)}.")
    return sizes


def _recall(row: _Row, truth_hashes: Mapping[str, str]) -> None:
    """Take over values of an earlier run that belong to exactly these two files and protocols."""
    row.hashes = {name: (sha256_of(path), truth_hashes[name]) for name, path in row.paths.items()}
    path = row.out / STATE
    if not path.is_file():
        return
    try:
        stored = read_json(path)
        # Metrics that are not asked for this time are kept too, for the next time they are.
        known = [m.key for m in METRICS.values() if stored["protocol"].get(m.key) == _identity(m)]
        for name, entry in stored["pictures"].items():
            if name in row.paths and tuple(entry["sha256"]) == row.hashes[name]:
                row.values[name] = {key: float(entry["values"][key]) for key in known if key in entry["values"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        row.values.clear()
        log.warning("%s is damaged and is written anew (%s)", path, error)


def _identity(metric: Metric) -> str:
    return f"{metric.protocol} | {metric.engine}" if not callable(metric.engine) else metric.protocol


def _save_state(row: _Row) -> None:
    pictures = {name: {"sha256": list(row.hashes[name]), "values": values} for name, values in row.values.items()}
    write_json(row.out / STATE, {"protocol": {m.key: _identity(m) for m in METRICS.values()}, "pictures": pictures})
    row.unsaved = 0


def _score_pictures(
    work: Mapping[str, _Row],
    truths: Mapping[str, Path],
    sizes: Mapping[str, tuple[int, int]],
    metrics: Sequence[Metric],
    ready: Mapping[str, Scorer],
    device: torch.device | str,
    batch_pixels: int,
) -> None:
    wanted = {m.key for m in metrics}
    todo = {
        title: [name for name in row.paths if not wanted <= row.values.get(name, {}).keys()]
        for title, row in work.items()
    }
    names = [name for name in sizes if any(name in todo_row for todo_row in map(set, todo.values()))]
    batches = _batches(names, sizes, batch_pixels)
    total = sum(map(len, todo.values()))
    with (
        tqdm(total=total, desc="scoring", unit="picture", disable=not total) as bar,
        ThreadPoolExecutor(2) as readers,
    ):
        for batch in batches:
            true = _stack([truths[name] for name in batch], device, readers)
            for title, row in work.items():
                due = set(todo[title])
                mine = [index for index, name in enumerate(batch) if name in due]
                if not mine:
                    continue
                # The very same tensor for every row keeps the truth's features; see metrics._TruthFeatures.
                truth = true if len(mine) == len(batch) else true[mine]
                names_here = [batch[index] for index in mine]
                pictures = _stack([row.paths[name] for name in names_here], device, readers)
                for name, picture, target in zip(names_here, pictures, truth, strict=True):
                    if picture.max() == picture.min() and target.max() != target.min():
                        row.flagged[name] = f"one colour all over ({float(picture.max()):.3g}): not a restoration"
                for metric in metrics:
                    scorer = ready[metric.key]
                    values = scorer(pictures, truth) if metric.compares == "pair" else scorer(pictures)
                    for name, value in zip(names_here, values.tolist(), strict=True):
                        if math.isfinite(value):
                            row.values.setdefault(name, {})[metric.key] = value
                        else:
                            row.flagged.setdefault(name, f"{metric.key} is {value}")
                for name in row.flagged:
                    row.values.pop(name, None)
                row.unsaved += len(mine)
                if row.unsaved >= SAVE_EVERY:
                    _save_state(row)
                bar.update(len(mine))
    for row in work.values():
        _save_state(row)


def _batches(names: Sequence[str], sizes: Mapping[str, tuple[int, int]], batch_pixels: int) -> list[list[str]]:
    by_size: dict[tuple[int, int], list[str]] = {}
    for name in names:
        by_size.setdefault(sizes[name], []).append(name)
    batches = []
    for (height, width), group in by_size.items():
        count = max(1, batch_pixels // (height * width))
        batches += [group[start : start + count] for start in range(0, len(group), count)]
    return batches


def _stack(paths: Sequence[Path], device: torch.device | str, readers: ThreadPoolExecutor) -> Tensor:
    batch = torch.stack(list(readers.map(read_tensor, paths)))
    return batch.to(device).contiguous(memory_format=torch.channels_last)


def _write(
    row: _Row,
    chosen: Sequence[Metric],
    per_image: Sequence[Metric],
    sets: Mapping[str, float],
    missing: Mapping[str, str],
    expected: int,
) -> dict[str, Any]:
    names = [name for name in row.paths if name not in row.flagged]
    means = {m.key: sum(row.values[n][m.key] for n in names) / len(names) for m in per_image if names}
    complete = len(names) == expected
    with (
        atomic_write(row.out / "scores.csv") as partial,
        open(partial, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["name", *(m.key for m in per_image)])
        for name in row.paths:
            writer.writerow([name, *(_cell(row.values.get(name, {}).get(m.key)) for m in per_image)])
    scores = {
        "complete": complete,
        # A mean over fewer pictures is another quantity, so it stands under another name.
        ("means" if complete else "means_of_scored_only"): means,
        "sets": dict(sets) if complete else {},
        "counts": {
            "expected": expected,
            "scored": len(names),
            "missing": len(row.missing),
            "flagged": len(row.flagged),
            "without_truth": len(row.extra),
        },
        "pictures": {"missing": row.missing, "flagged": row.flagged, "without_truth": row.extra},
        "protocol": {
            m.key: {
                "title": m.title,
                "better": m.better,
                "compares": m.compares,
                "protocol": m.protocol,
                "engine": str(m.engine) if not callable(m.engine) else "face2scene",
                "weights_sha256": m.weights(),
            }
            for m in chosen
            if m.key not in missing
        },
        "not_measured": dict(missing),
        "versions": versions(),
    }
    if not complete:
        scores["means"] = {}
    write_json(row.out / "scores.json", scores)
    return scores


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on; a package that is not installed is left out."""
    found = {"face2scene": __version__, "python": platform.python_version()}
    for package in ("torch", "torchvision", "pyiqa", "numpy", "pillow", "diffusers", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _some(names: Iterable[object], most: int = 6) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
