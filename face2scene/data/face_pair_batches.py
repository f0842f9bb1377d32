"""Batches for FaDeX: several operators, each on several faces for queries and on others for keys (supplement 2.1).

Everything random in batch `index` follows from (seed, index), whatever the order, workers or a resumed training.
Shapes: O operators, P images, c pixels of a square crop.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from face2scene.common.reproducibility import seed_from
from face2scene.common.types import Box
from face2scene.data.records import Record, read_manifest
from face2scene.data.scene_batches import points_of, recipe_of
from face2scene.degradation import Mixture, Recipe, Space
from face2scene.faces.align import paste_back, square_crop_box
from face2scene.image_io.arrays import read_tensor, resize, to_bytes, to_tensor
from face2scene.ref_fr import AlignedRefFR, FaceRestorationError
from face2scene.ref_fr.base import aligned_face

# (ground truth, degraded, generator) -> the restored face; all (3, h, w) in [0, 1].
Restore = Callable[[Tensor, Tensor, np.random.Generator], Tensor]


def ground_truth(gt: Tensor, degraded: Tensor, rng: np.random.Generator) -> Tensor:
    """The perfect restorer."""
    return gt


@dataclass(frozen=True)
class RestoredBy:
    """A restorer of `ref_fr` as a `Restore`, with the ground truth for a share of the faces.

    The paper trains FaDeX on restored and ground-truth faces, for robustness (facts 1.2).

    Args:
        restorer: has `restore(degraded, references, gt=, rng=)`.
        gt_share: share of ground-truth faces; the paper's is unknown.
    """

    restorer: Any
    gt_share: float = 0.0

    def __call__(self, gt: Tensor, degraded: Tensor, rng: np.random.Generator) -> Tensor:
        if rng.random() < self.gt_share:
            return gt
        return self.restorer.restore(degraded, (), gt=gt, rng=rng)


@dataclass(frozen=True, eq=False)
class RestoredImages:
    """The images of a set, each with its face restored from the image degraded by its recipe 0.

    A face that the restorer refuses stays the ground truth.
    """

    folder: Path
    records: Sequence[Record]
    space: Space
    restorer: AlignedRefFR

    def __call__(self, number: int) -> Tensor:
        """Image `number`, (3, H, W) in [0, 1]."""
        record = self.records[number]
        gt = to_tensor(to_bytes(read_tensor(self.folder / record.image)))
        fixed = record.split != "train" and record.lq
        degraded = read_tensor(self.folder / record.lq) if fixed else recipe_of(self.space, record, 0).apply(gt)
        box = square_crop_box(record.face_box, (record.height, record.width))
        face, transform, _ = aligned_face(degraded, box, points_of(record), self.restorer.size)
        references = [self.folder / name for name in record.references]
        try:
            restored = self.restorer.restore_aligned(face[None], [references])[0]
        except FaceRestorationError:
            return gt
        return paste_back(gt, restored.image.to(gt), transform)


class FacePairBatches(Dataset):
    """An endless stream of face pairs: batch `index` has O new operators on P faces for queries and P for keys.

    The 2 P images under one operator are different, so that queries and keys share the degradation only. All crops of
    one operator are tiled into one image and degraded at once: it is faster, noise differs between crops, and kernels
    fit. A margin around every crop keeps its neighbours out of the result.

    Args:
        paths, boxes: images, and the face in each: (x0, y0, x1, y1) in its pixels.
        space: draws recipes.
        operators, images: O and P.
        crop: side of the crops in pixels, from 16 on.
        seed: of everything drawn.
        restore: makes the restored face; the default is the ground truth.
        buckets: crop to number of images, such as {48: 3, 96: 1}, in place of `crop` and `images`; every batch is of
            one of them, drawn from its number.
        augment: mirror crops, rotate them by multiples of 90 degrees, reduce a third of them to half size, and vary
            brightness and colours, all before the degradation (ours).
        restored: returns image `number` (3, H, W) with its face restored, for restorers that need the whole face and
            references; used in place of `restore`, except for the `gt_share` of a `RestoredBy`.
        margin: pixels around a crop that are degraded with it and removed.
        side: reduce images to this shorter side in pixels; None keeps them.
        identities: of the images; only counted.
        cache_mib: images are kept in memory as bytes up to this many MiB per process.

    Raises:
        ValueError: too few images, operators or pixels.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        boxes: Sequence[Box],
        space: Space | Mixture,
        *,
        operators: int,
        images: int,
        crop: int,
        seed: int,
        restore: Restore = ground_truth,
        margin: int = 16,
        side: int | None = None,
        identities: Sequence[str] | None = None,
        cache_mib: int = 512,
        restored: Callable[[int], Tensor] | None = None,
        buckets: Mapping[int, int] | None = None,
        augment: bool = False,
    ):
        self.buckets = [(int(c), int(p)) for c, p in (buckets or {crop: images}).items()]
        crop, images = min(c for c, _ in self.buckets), max(p for _, p in self.buckets)
        if operators < 2:
            raise ValueError(f"{operators} operator gives no negatives: raise train.fadex.operators to 2 or more.")
        if images < 1 or 2 * images > len(paths):
            raise ValueError(
                f"A batch needs 2 x {images} different images for queries and keys, and there are "
                f"{len(paths)}: lower train.fadex.images (or buckets), or give more images with data."
            )
        if crop < 16 or margin < 0:
            raise ValueError(
                f"train.fadex.crop (or buckets) must be at least 16 pixels, its margin not negative: {crop}, {margin}."
            )
        self.paths = [Path(p) for p in paths]
        self.boxes = [tuple(map(float, box)) for box in boxes]
        self.people = len(set(identities)) if identities is not None else len(self.paths)
        self.space, self.restore, self.restored = space, restore, restored
        self.operators, self.margin, self.augment = operators, margin, augment
        self.images, self.crop = images, max(c for c, _ in self.buckets)  # the largest of both
        self.seed, self.side = seed, side
        # (number, with its face restored) -> pixels in 8 bits, and the scale of the reduction
        self._cache: dict[tuple[int, bool], tuple[np.ndarray, float]] = {}
        self._free_bytes = cache_mib * 2**20

    @classmethod
    def from_manifest(cls, folder: str | Path, split: str, space: Space | Mixture, **options: Any) -> "FacePairBatches":
        """The images of one split of an InScene folder.

        A restorer of the aligned face with references (FaceMe) restores each image once, degraded by its recipe 0 of
        `scene_batches.recipe_of`, which `scripts/precompute_ref_fr.py` covers; that face is paired with every
        degradation of a batch (ours; the paper does not say).
        """
        records = read_manifest(folder, split)
        restore = options.get("restore")
        if isinstance(restore, RestoredBy) and isinstance(restore.restorer, AlignedRefFR):
            options["restored"] = RestoredImages(Path(folder), records, space, restore.restorer)
        return cls(
            [Path(folder) / r.image for r in records],
            [r.face_box for r in records],
            space,
            identities=[r.identity for r in records],
            **options,
        )

    def at(self, crop: int, images: int) -> "FacePairBatches":
        """The same images, operators and seed in batches of another size."""
        other = copy.copy(self)
        other.buckets, other.crop, other.images = [(crop, images)], crop, images
        return other

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Batch `index`.

        Returns:
            query_restored, query_degraded, key_restored, key_degraded: (O * P, 3, c, c) in [0, 1];
            labels: (O * P,) int64, equal exactly for equal operators, also between batches.
        """
        rng = np.random.default_rng(seed_from(self.seed, "pairs", index))
        several = len(self.buckets) > 1  # a single bucket draws no number
        crop, count = self.buckets[int(rng.integers(len(self.buckets))) if several else 0]
        rows, labels = [], []
        for operator in range(self.operators):
            recipe = self.space.draw(rng).with_noise_seed(seed_from(self.seed, "noise", index, operator))
            chosen = rng.choice(len(self.paths), 2 * count, replace=False)
            labels.append(int(recipe.key, 16) >> 1)
            rows.append(self._pairs(recipe, [self._tile(int(p), crop, rng) for p in chosen], crop, rng))
        restored, degraded = (torch.stack(side) for side in zip(*rows, strict=True))  # (O, 2P, 3, c, c)
        return {
            "query_restored": restored[:, :count].flatten(0, 1),
            "query_degraded": degraded[:, :count].flatten(0, 1),
            "key_restored": restored[:, count:].flatten(0, 1),
            "key_degraded": degraded[:, count:].flatten(0, 1),
            "labels": torch.tensor(labels).repeat_interleave(count),
        }

    def grid(self, recipes: Sequence[Recipe], images: int, *, seed: int) -> tuple[Tensor, Tensor]:
        """Every recipe (O) on the same crops of the same images (P), for the probe.

        Returns:
            restored, degraded: (O, P, 3, c, c).
        """
        if images > len(self.paths):
            raise ValueError(f"The probe needs {images} images of {len(self.paths)}: lower train.fadex.probe_images.")
        rng = np.random.default_rng(seed_from(seed, "grid"))
        tiles = [self._tile(int(p), self.crop, rng) for p in rng.choice(len(self.paths), images, replace=False)]
        rows = [
            self._pairs(recipe.with_noise_seed(seed_from(seed, "grid noise", number)), tiles, self.crop, rng)
            for number, recipe in enumerate(recipes)
        ]
        restored, degraded = (torch.stack(side) for side in zip(*rows, strict=True))
        return restored, degraded

    def _pairs(self, recipe: Recipe, tiles: list[tuple], crop: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        gts = [gt for gt, _ in tiles]
        degraded = degrade_together(recipe, gts)
        if self.restored is None:
            restored = [self.restore(t, d, rng) for t, d in zip(gts, degraded, strict=True)]
        else:
            share = getattr(self.restore, "gt_share", 0.0)
            restored = [gt if rng.random() < share else face for gt, face in tiles]
        inner = slice(self.margin, self.margin + crop)
        return torch.stack(restored)[..., inner, inner], torch.stack(degraded)[..., inner, inner]

    def _tile(self, number: int, crop: int, rng: np.random.Generator) -> tuple[Tensor, Tensor | None]:
        """A random crop of the face with its margin, reflected at the image borders; and the same crop restored."""
        image, (x0, y0, x1, y1) = self._image(number)
        height, width = image.shape[:2]
        margin, half = self.margin, False
        if min(height, width) < max(crop, margin + 1):
            raise ValueError(
                f"{self.paths[number]} has {width} x {height} pixels, too few for a crop of {crop} with "
                f"a margin of {margin}: lower train.fadex.crop, or leave the image out."
            )
        if self.augment:
            half = bool(rng.random() < 1 / 3) and min(height, width) >= 2 * max(crop, margin + 1)
        wanted, around = (2 * crop, 2 * margin) if half else (crop, margin)
        rows = _around(_start(y0, y1, wanted, height, rng), wanted, around, height)
        columns = _around(_start(x0, x1, wanted, width, rng), wanted, around, width)
        place = np.ix_(rows, columns)
        tiles = [torch.from_numpy(image[place]).permute(2, 0, 1).float().div_(255)]
        if self.restored is not None:
            tiles.append(to_tensor(self._image(number, restored=True)[0][place]))
        if half:
            tiles = [F.avg_pool2d(tile, 2) for tile in tiles]
        if self.augment:
            tiles = _augmented(tiles, rng)
        return tiles[0], (tiles[1] if len(tiles) > 1 else None)

    def _image(self, number: int, restored: bool = False) -> tuple[np.ndarray, Box]:
        image, scale = self._cache.get((number, restored), (None, 1.0))
        if image is None:
            full = self.restored(number) if restored else read_tensor(self.paths[number])
            shorter = min(full.shape[-2:])
            if self.side and shorter > self.side:
                scale = self.side / shorter
                full = resize(full, (round(full.shape[-2] * scale), round(full.shape[-1] * scale)))
            image = to_bytes(full)
            if image.nbytes <= self._free_bytes:
                self._free_bytes -= image.nbytes
                self._cache[number, restored] = image, scale
        return image, tuple(v * scale for v in self.boxes[number])


def degrade_together(recipe: Recipe, tiles: Sequence[Tensor]) -> list[Tensor]:
    """Apply one recipe to several images (3, h, w) of one size, tiled into one image; noise differs between them."""
    rows = int(np.sqrt(len(tiles)))
    columns = -(-len(tiles) // rows)
    full = torch.stack([*tiles, *tiles[: rows * columns - len(tiles)]])  # the last row is filled with the first tiles
    sheet = torch.cat([torch.cat(list(row), dim=2) for row in full.split(columns)], dim=1)
    degraded = recipe.apply(sheet)
    return [tile for row in degraded.chunk(rows, dim=1) for tile in row.chunk(columns, dim=2)][: len(tiles)]


def _augmented(tiles: list[Tensor], rng: np.random.Generator) -> list[Tensor]:
    # The same augmentation for a crop and its restored version.
    turns, mirror = int(rng.integers(4)), rng.random() < 0.5
    gamma = float(rng.uniform(0.7, 1.4))
    gain = torch.from_numpy(rng.uniform(0.8, 1.0, (3, 1, 1)).astype(np.float32))
    colours = rng.permutation(3).tolist()
    rotated = [torch.rot90(tile.flip(-1) if mirror else tile, turns, (-2, -1)) for tile in tiles]
    return [tile[colours].pow(gamma).mul_(gain).contiguous() for tile in rotated]


def _start(low: float, high: float, crop: int, size: int, rng: np.random.Generator) -> int:
    # A random place inside the face; centred on a face that is smaller than the crop.
    first, last = (low, high - crop) if high - low >= crop else ((low + high - crop) / 2,) * 2
    return int(np.clip(round(rng.uniform(first, last)), 0, size - crop))


def _around(start: int, crop: int, margin: int, size: int) -> np.ndarray:
    places = np.abs(np.arange(start - margin, start + crop + margin))
    return size - 1 - np.abs(size - 1 - places)
