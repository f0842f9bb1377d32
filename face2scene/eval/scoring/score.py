"""Folders of PNGs to scores: paired with their ground truth by name, one row per image.

An image that cannot be scored is named, and a folder with a missing or unusable image is marked incomplete: its means
are stored under another key than those of complete folders.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from face2scene.common.files import sha256_of
from face2scene.common.types import Box
from face2scene.eval.metrics.registry import METRICS, Metric, Scorer, build_all, choose
from face2scene.eval.scoring import cache, pairing
from face2scene.eval.scoring.pairing import ScoreError, ScoreRow, some
from face2scene.eval.scoring.regions import REGIONS, Region, cut, size_of
from face2scene.eval.scoring.results import gt_digest, write_results, write_scores
from face2scene.image_io.arrays import nothing_in, read_tensor

log = logging.getLogger(__name__)
DEFAULT_METRICS = ("psnr", "ssim_y", "lpips", "dists")
BATCH_PIXELS = 4 * 256 * 256  # our setting: VGG16's feature maps take about 0.3 GB; larger batches are no faster


def score_folder(
    predictions: str | Path,
    gt: str | Path | Mapping[str, Path] | None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    out: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Score one folder of PNGs, see `score_folders`; results go to `out`, by default `predictions` itself."""
    rows = {"predictions": (Path(predictions), Path(out or predictions))}
    return score_folders(rows, gt, metrics, **options)["predictions"]


def score_folders(
    rows: Mapping[str, tuple[Path, Path]],
    gt: str | Path | Mapping[str, Path] | None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    device: torch.device | str = "cpu",
    batch_pixels: int = BATCH_PIXELS,
    scorers: Mapping[str, Scorer] | None = None,
    boxes: Mapping[str, Box] | None = None,
    regions: Sequence[Region] = ("whole",),
    rank: int = 0,
    processes: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, Any]]:
    """Score folders of PNGs against one ground truth, whose features and the metrics' networks they share.

    Writes `scores.csv` (a row per image: `name`, then a column per metric) and `scores.json` to each row's
    output folder, and those of every region but the whole image to a folder of its name in it. The same call again
    computes only what is new: values are kept with the hashes of both images, and with the face box where it decides.

    Args:
        rows: title -> (folder of predictions, or of `images/` with them; folder for the results).
        gt: a folder, or name -> file. A prediction belongs to the ground truth of the same name, less the suffix. None
            is for metrics of the images alone; a row is then complete with all names that any row has.
        metrics: keys of `registry.METRICS`.
        batch_pixels: images of one size are scored together up to this many pixels.
        scorers: used instead of building the metrics (tests, other engines).
        boxes: name -> face box, for the regions and for the identity score.
        regions: of `regions.REGIONS`, the whole image among them.
        rank, processes, wait: of a distributed run: each process scores its share of the batches, `wait` is the
            barrier, and process 0 writes the results, which are the same as those of one process.

    Returns:
        The contents of each `scores.json`, by title; of the other processes an empty dictionary.

    Raises:
        ScoreError: an empty folder, predictions that are not PNG, images that are not RGB, two of one name, a size
            unlike the ground truth's, a region without boxes, a metric or region that needs a ground truth without one.
        ImageError: an image that cannot be read.
    """
    chosen = choose(metrics)
    gts = {} if gt is None else pairing.named_gt(gt)
    boxes = dict(boxes or {})
    _check_request(chosen, regions, None if gt is None else gts, boxes)
    work = {title: pairing.open_row(title, folder, out, gts) for title, (folder, out) in rows.items()}
    names = list(gts or dict.fromkeys(name for row in work.values() for name in row.paths))
    for row in work.values():
        row.expect(names)
    sizes = pairing.checked_sizes(work.values(), gts)

    if scorers is None:
        ready, missing = build_all(chosen, device)
    else:
        ready = {m.key: scorers[m.key] for m in chosen if m.key in scorers}
        missing = {m.key: "no engine was given for it" for m in chosen if m.key not in scorers}
    for key, reason in missing.items() if rank == 0 else ():
        log.warning("%s is not measured: %s", key, reason)
    measured = [m for m in chosen if m.key in ready]

    hashes = {name: sha256_of(gts[name]) if gts else "" for name in names}
    for row in work.values():
        row.hashes = {name: (sha256_of(path), hashes[name]) for name, path in row.paths.items()}
    copies = {title: pairing.warn_of_copies(row) for title, row in work.items()} if rank == 0 else {}

    results: dict[str, dict[str, Any]] = {}
    # The whole image comes first: an image flagged there is flagged in the other regions.
    for region in sorted(set(regions), key=lambda region: region != "whole"):
        part = {title: row.of_region(region, boxes, sizes) for title, row in work.items()}
        for row in part.values():
            cache.recall(row)
        wait()  # until every process has read the stored values, from which its share follows
        scoring = _RegionScoring(part, gts, sizes, boxes, region, measured, ready, device, batch_pixels)
        scoring.run(rank, processes)
        for row in part.values():
            cache.save(row, rank if processes > 1 else None)
        wait()
        for title, row in part.items() if rank == 0 else ():
            if processes > 1:
                cache.gather(row, processes)
            row.flagged |= work[title].flagged
            digest = gt_digest(hashes, boxes if region != "whole" else None)
            found = write_results(row, measured, ready, missing, chosen, digest, copies[title], device)
            if region == "whole":
                work[title].flagged, results[title] = row.flagged, found
                continue
            kept = ("complete", "means", "means_of_scored_only", "sets", "counts")
            summary = {"about": REGIONS[region]} | {key: found[key] for key in kept if key in found}
            results[title].setdefault("regions", {})[region] = summary
    for title, found in results.items():
        if "regions" in found:
            write_scores(work[title].out / "scores.json", found)
    wait()
    return results


def _check_request(
    chosen: Sequence[Metric], regions: Sequence[Region], gts: Mapping[str, Path] | None, boxes: Mapping[str, Box]
) -> None:
    needing = [m.key for m in chosen if m.compares != "alone"] + [r for r in regions if r != "whole"]
    if gts is None and needing:
        alone = ", ".join(m.key for m in METRICS.values() if m.compares == "alone")
        raise ScoreError(
            f"Without a ground truth there is nothing to compare with for {', '.join(needing)}: give images of the "
            f"same names (option gt), or ask for metrics of the images alone, of {alone} (options metrics, regions)."
        )
    if not set(regions) <= REGIONS.keys() or "whole" not in regions:
        raise ScoreError(
            f"Regions are {', '.join(REGIONS)}, the whole image among them; got {list(regions)} (option regions)."
        )
    without = [name for name in gts or () if name not in boxes]
    if len(regions) > 1 and without:
        raise ScoreError(
            f"{len(without)} images have no face box, so their face and background cannot be told apart: "
            f"{some(without)}. Give a JSON file that maps names to boxes (option boxes)."
        )


@dataclass
class _RegionScoring:
    """The scoring of one region: what is not scored yet, in batches, each loaded while the one before is scored."""

    work: Mapping[str, ScoreRow]
    gts: Mapping[str, Path]
    sizes: Mapping[str, tuple[int, int]]
    boxes: Mapping[str, Box]
    region: Region
    metrics: Sequence[Metric]
    ready: Mapping[str, Scorer]
    device: torch.device | str
    batch_pixels: int
    gt_features: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.due = {title: {n for n in row.paths if self._is_due(row, n)} for title, row in self.work.items()}

    def _is_due(self, row: ScoreRow, name: str) -> bool:
        aligned = name in row.shifts or self.region != "whole" or not self.gts
        return not aligned or any(self._lacks(row, metric, name) for metric in self.metrics)

    @staticmethod
    def _lacks(row: ScoreRow, metric: Metric, name: str) -> bool:
        if metric.compares == "sets":
            return any(f"{metric.key}/{side}/{name}" not in row.features for side in ("ours", "truth"))
        return metric.key not in row.values.get(name, {}) and name not in row.undefined.get(metric.key, {})

    def run(self, rank: int, processes: int) -> None:
        """Score the batches of this process into the rows."""
        batches = self._batches()[rank::processes]
        total = sum(len(due & set(batch)) for batch in batches for due in self.due.values())
        with (
            tqdm(total=total, desc=f"scoring {self.region}", unit="image", disable=not total or rank > 0) as bar,
            ThreadPoolExecutor(1) as ahead,
        ):
            for batch, gts, loaded in self._loaded(batches, ahead):
                for title, row in self.work.items():
                    if mine := [index for index, name in enumerate(batch) if name in self.due[title]]:
                        # The same tensor for every row keeps the ground truth's features, see `perceptual`.
                        gt = gts if gts is None or len(mine) == len(batch) else gts[mine]
                        self._score(row, [batch[i] for i in mine], loaded[title], gt)
                        if row.unsaved >= max(cache.SAVE_EVERY, len(row.values) // 20):
                            cache.save(row, rank if processes > 1 else None)
                        bar.update(len(mine))

    def _batches(self) -> list[list[str]]:
        by_size: dict[tuple[int, int], list[str]] = {}
        for name, size in self.sizes.items():
            if any(name in due for due in self.due.values()):
                by_size.setdefault(size_of(self.region, size, self.boxes.get(name)), []).append(name)
        batches = []
        for (height, width), group in by_size.items():
            count = max(1, self.batch_pixels // (height * width))
            batches += [group[start : start + count] for start in range(0, len(group), count)]
        return batches

    def _loaded(
        self, batches: Sequence[list[str]], ahead: ThreadPoolExecutor
    ) -> Iterator[tuple[list[str], Tensor | None, dict[str, Tensor]]]:
        waiting: Future | None = None
        for number, batch in enumerate(batches):
            now = (waiting or ahead.submit(self._read, batch)).result()
            waiting = ahead.submit(self._read, batches[number + 1]) if number + 1 < len(batches) else None
            yield (batch, *now)

    def _read(self, batch: Sequence[str]) -> tuple[Tensor | None, dict[str, Tensor]]:
        gts = {name: read_tensor(self.gts[name]) for name in batch if self.gts}
        loaded = {}
        for title, row in self.work.items():
            images = {name: read_tensor(row.paths[name]) for name in batch if name in self.due[title]}
            if images:
                loaded[title] = self._stack(self._cut(image, gts.get(n, image), n)[0] for n, image in images.items())
        return self._stack(self._cut(gt, gt, name)[1] for name, gt in gts.items()) if gts else None, loaded

    def _cut(self, image: Tensor, gt: Tensor, name: str) -> tuple[Tensor, Tensor]:
        return cut(self.region, image, gt, self.boxes.get(name))

    def _stack(self, images: Iterable[Tensor]) -> Tensor:
        return torch.stack(list(images)).to(self.device).contiguous(memory_format=torch.channels_last)

    def _score(self, row: ScoreRow, names: Sequence[str], images: Tensor, gt: Tensor | None) -> None:
        for index, name in enumerate(names):
            image, target = images[index], None if gt is None else gt[index]
            if (nothing := nothing_in(image)) and (target is None or not nothing_in(target)):
                row.flagged[name] = f"{nothing}: not a restoration"
            if self.region == "whole" and target is not None:
                found = pairing.global_shift(image, target)
                row.shifts[name] = (math.nan, math.nan) if found is None else found
        for metric in self.metrics:
            lacking = [index for index, name in enumerate(names) if self._lacks(row, metric, name)]
            if len(lacking) == len(names):
                self._measure(metric, row, names, images, gt)
            elif lacking:
                targets = None if gt is None else gt[lacking]
                self._measure(metric, row, [names[n] for n in lacking], images[lacking], targets)
        for name in row.flagged:
            row.values.pop(name, None)
        row.unsaved += len(names)

    def _measure(self, metric: Metric, row: ScoreRow, names: Sequence[str], images: Tensor, gt: Tensor | None) -> None:
        scorer, (height, width) = self.ready[metric.key], images.shape[-2:]
        undefined = row.undefined.setdefault(metric.key, {})
        if min(height, width) < metric.min_size:
            why = f"{width} x {height}, and {metric.title} takes {metric.min_size} pixels a side"
            undefined |= dict.fromkeys(names, why)
            return
        if metric.compares == "sets":
            self._extract_features(metric, row, names, images, gt)
            return
        if metric.compares == "pair":
            values = scorer(images, gt)
        elif metric.compares == "faces":
            boxes = [self.boxes.get(name) if self.region != "face" else None for name in names]
            values = scorer(images, gt, boxes)
        else:
            values = scorer(images)
        for name, value in zip(names, values.tolist(), strict=True):
            if math.isfinite(value):
                row.values.setdefault(name, {})[metric.key] = value
            elif metric.undefined and (math.isinf(value) or metric.compares == "faces"):
                undefined[name] = metric.undefined
            else:
                row.flagged.setdefault(name, f"{metric.key} is {value}")

    def _extract_features(
        self, metric: Metric, row: ScoreRow, names: Sequence[str], images: Tensor, gt: Tensor
    ) -> None:
        scorer = self.ready[metric.key]
        fresh = [index for index, name in enumerate(names) if (metric.key, name) not in self.gt_features]
        if fresh:
            found = scorer.features(gt[fresh])
            self.gt_features |= {(metric.key, names[i]): f for i, f in zip(fresh, found, strict=True)}
        for name, ours in zip(names, scorer.features(images), strict=True):
            row.features[f"{metric.key}/ours/{name}"] = ours
            row.features[f"{metric.key}/truth/{name}"] = self.gt_features[metric.key, name]
