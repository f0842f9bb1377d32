"""Batches for FaDeX: several operators, each on several faces for queries and on others for keys (supplement 2.1).

Everything random in batch `index` follows from (seed, index), whatever the order, workers or a resumed training.
Shapes: O operators, P images, c pixels of a square crop.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from face2scene.common.reproducibility import seed_from
from face2scene.common.types import Box
from face2scene.data.face_crops import FaceRegions
from face2scene.data.mix import Mix, draw_distinct
from face2scene.data.restored_bank import RestoredBank, RestoredPairs
from face2scene.degradation import Bank, Mixture, Recipe, Space
from face2scene.image_io.arrays import read_tensor, to_bytes, to_tensor
from face2scene.ref_fr import AlignedRefFR
from face2scene.ref_fr.base import in_bytes

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


class FacePairBatches(Dataset):
    """An endless stream of face pairs: batch `index` has O operators on P faces for queries and P others for keys.

    The 2 P images under one operator are different, so that queries and keys share the degradation only. Each crop is
    degraded by itself, with a margin of its surroundings. A face of n times the crop's side is reduced by a whole
    number from 1 to n before, so that small crops hold small faces as well as parts of large ones (ours). Results are
    in 8 bits, as photos are.

    Args:
        faces: paths, or uint8 arrays (h, w, 3), by number. boxes: the face in each: (x0, y0, x1, y1) in its pixels.
        space: draws recipes.
        operators, images: O and P.
        crop: side of the crops in pixels, from 16 on.
        seed: of everything drawn.
        restore: makes the restored face; the default is the ground truth.
        buckets: crop to number of images, such as {48: 3, 96: 1}, in place of `crop` and `images`; every batch is of
            one of them, drawn from its number.
        augment: mirror crops, rotate them by multiples of 90 degrees, and vary brightness and colours, all before the
            degradation (ours).
        margin: pixels around a crop that are degraded with it and removed.
        identities: of the images; only counted.
        shares: probability of every image; None is the same for all.

    Raises:
        ValueError: too few images, operators or pixels.
    """

    in_bytes = ("query_restored", "query_degraded", "key_restored", "key_degraded")  # for `train.dataloader`

    def __init__(
        self,
        faces: Any,
        boxes: Sequence[Box],
        space: Space | Mixture | Bank,
        *,
        operators: int,
        images: int,
        crop: int,
        seed: int,
        restore: Restore = ground_truth,
        margin: int = 16,
        identities: Sequence[str] | None = None,
        shares: np.ndarray | None = None,
        buckets: Mapping[int, int] | None = None,
        augment: bool = False,
    ):
        self.faces, self.shares = faces, shares
        self.bank: RestoredBank | None = None  # in place of new operators and `restore`, except for its `gt_share`
        self.boxes = [tuple(map(float, box)) for box in boxes]
        self.sides = np.array([min(x1 - x0, y1 - y0) for x0, y0, x1, y1 in self.boxes])
        self.people = len(set(identities)) if identities is not None else len(self.boxes)
        self.space, self.restore, self.seed = space, restore, seed
        self.operators, self.margin, self.augment = operators, margin, augment
        if operators < 2:
            raise ValueError(f"{operators} operator gives no negatives: raise train.fadex.operators to 2 or more.")
        self._use(buckets or {crop: images})

    def _use(self, buckets: Mapping[int, int]) -> None:
        self.buckets = [(int(c), int(p)) for c, p in buckets.items()]
        self.images, self.crop = max(p for _, p in self.buckets), max(c for c, _ in self.buckets)
        if min(c for c, _ in self.buckets) < 16 or self.margin < 0:
            raise ValueError(
                f"train.fadex.crop (or buckets) must be at least 16 pixels, its margin not negative: {dict(buckets)}, "
                f"{self.margin}."
            )
        for crop, images in self.buckets:
            if images < 1 or 2 * images > (self.sides >= crop).sum():
                raise ValueError(
                    f"A batch needs 2 x {images} different images for queries and keys with faces of {crop} pixels, "
                    f"and {(self.sides >= crop).sum()} of {len(self.sides)} are so large: lower train.fadex.images or "
                    "train.fadex.crop (or buckets), or give more images with data."
                )
            if self.bank is not None:
                self.bank.groups(crop, 2 * images, self.operators)

    @classmethod
    def from_manifest(
        cls,
        folder: str | Path | Sequence[Mapping[str, Any]],
        split: str,
        space: Space | Mixture | Bank,
        *,
        recipes: int = 1,
        keep: Callable[[Any], Any] = lambda images: images,
        **options: Any,
    ) -> "FacePairBatches":
        """The images of one split of an InScene set, or of a mix of several (see `Mix`).

        Args:
            recipes: with a Stage I of the aligned face (FaceMe), the first so many recipes of every image
                (`mix.recipe_of`) make the pairs; the space must be a `Bank`, whose operators images share.
            keep: stores faces, see `face_crops.Stored`; the default cuts them from the images every time.
        """
        mix = Mix(folder, split)
        regions, restore = FaceRegions(mix, options.get("margin", 16)), options.get("restore")
        given = {"identities": mix.column("identity"), "shares": mix.shares()} | options
        data = cls(regions, regions.boxes, space, **given)
        if not (isinstance(restore, RestoredBy) and isinstance(restore.restorer, AlignedRefFR)):
            data.faces = keep(regions)
            return data
        if data.augment:
            raise ValueError("Faces that Stage I restored cannot be varied any more: set train.fadex.augment=false.")
        pairs = RestoredPairs(mix, space, restore.restorer, recipes)
        data.bank = RestoredBank(pairs, pairs.operators, recipes, mix.shares(), data.sides.repeat(recipes))
        data._use(dict(data.buckets))  # too few faces are found before any is made
        data.bank = RestoredBank(keep(pairs), pairs.operators, recipes, mix.shares())
        data._use(dict(data.buckets))
        return data

    def at(self, crop: int, images: int) -> "FacePairBatches":
        """The same images, operators and seed in batches of another size."""
        other = copy.copy(self)
        other._use({crop: images})
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
        if self.bank is not None:
            for key, triples in self.bank.draw(crop, 2 * count, self.operators, rng):
                labels.append(key)
                share = getattr(self.restore, "gt_share", 0.0)
                pairs = [(gt if rng.random() < share else face, degraded) for face, degraded, gt in triples]
                rows.append(tuple(torch.stack(side) for side in zip(*pairs, strict=True)))
        else:
            for operator in range(self.operators):
                recipe = self.space.draw(rng).with_noise_seed(seed_from(self.seed, "noise", index, operator))
                labels.append(recipe.key)
                tiles = [self._tile(number, crop, rng) for number in self._choose(crop, 2 * count, rng)]
                rows.append(self._pairs(recipe, tiles, crop, rng))
        if len(set(labels)) == 1:
            raise ValueError(
                "All faces of a batch were degraded by one operator, so there are no negatives: raise "
                "train.fadex.operators, or choose a degradation of several operators."
            )
        restored, degraded = (in_bytes(torch.stack(side)) for side in zip(*rows, strict=True))  # (O, 2P, 3, c, c)
        return {
            "query_restored": restored[:, :count].flatten(0, 1),
            "query_degraded": degraded[:, :count].flatten(0, 1),
            "key_restored": restored[:, count:].flatten(0, 1),
            "key_degraded": degraded[:, count:].flatten(0, 1),
            "labels": torch.tensor([int(key, 16) >> 1 for key in labels]).repeat_interleave(count),
        }

    def grid(self, recipes: Sequence[Recipe], images: int, *, seed: int) -> tuple[Tensor, Tensor]:
        """Every recipe (O) on the same crops of the same images (P), for the probe.

        Returns:
            restored, degraded: (O, P, 3, c, c).
        """
        if images > (self.sides >= self.crop).sum():
            raise ValueError(
                f"The probe needs {images} images with faces of {self.crop} pixels, of {len(self.sides)}: lower "
                "train.fadex.probe_images or train.fadex.probe_crop."
            )
        rng = np.random.default_rng(seed_from(seed, "grid"))
        tiles = [self._tile(number, self.crop, rng) for number in self._choose(self.crop, images, rng)]
        rows = [
            self._pairs(recipe.with_noise_seed(seed_from(seed, "grid noise", number)), tiles, self.crop, rng)
            for number, recipe in enumerate(recipes)
        ]
        restored, degraded = (in_bytes(torch.stack(side)) for side in zip(*rows, strict=True))
        return restored, degraded

    def _choose(self, crop: int, count: int, rng: np.random.Generator) -> list[int]:
        return draw_distinct(np.flatnonzero(self.sides >= crop), count, rng, self.shares)

    def _pairs(self, recipe: Recipe, tiles: list[Tensor], crop: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        degraded = degrade_each(recipe, tiles)
        restored = [self.restore(t, d, rng) for t, d in zip(tiles, degraded, strict=True)]
        inner = slice(self.margin, self.margin + crop)
        return torch.stack(restored)[..., inner, inner], torch.stack(degraded)[..., inner, inner]

    def _tile(self, number: int, crop: int, rng: np.random.Generator) -> Tensor:
        """A random crop of the face with its margin, reflected at the borders: (3, c + 2 margin, c + 2 margin)."""
        found = self.faces[number]
        image = _decoded(found) if isinstance(found, str | Path) else found
        reduced = int(rng.integers(1, int(self.sides[number] // crop), endpoint=True))
        x0, y0, x1, y1 = (value / reduced for value in self.boxes[number])
        if reduced > 1:
            image = np.asarray(Image.fromarray(image).reduce(reduced))
        rows = _around(_start(y0, y1, crop, image.shape[0], rng), crop, self.margin, image.shape[0])
        columns = _around(_start(x0, x1, crop, image.shape[1], rng), crop, self.margin, image.shape[1])
        tile = to_tensor(image[np.ix_(rows, columns)])
        return _augmented(tile, rng) if self.augment else tile


@lru_cache(maxsize=32)
def _decoded(path: str | Path) -> np.ndarray:
    return to_bytes(read_tensor(path))


def degrade_each(recipe: Recipe, tiles: Sequence[Tensor]) -> list[Tensor]:
    """Apply one recipe to several images (3, h, w), each by itself, with noise of its own.

    Side by side in one image they would be degraded faster and leak into each other: over a margin of 64 pixels by up
    to 5 grey levels through the paper's blurs, resizes and JPEGs, and by up to 40 where noise follows them.
    """
    seeds = [seed_from(recipe.noise_seed, "image", number) for number in range(len(tiles))]
    return [recipe.with_noise_seed(seed).apply(tile) for seed, tile in zip(seeds, tiles, strict=True)]


def _augmented(tile: Tensor, rng: np.random.Generator) -> Tensor:
    turns, mirror = int(rng.integers(4)), rng.random() < 0.5
    gamma = float(rng.uniform(0.7, 1.4))
    gain = torch.from_numpy(rng.uniform(0.8, 1.0, (3, 1, 1)).astype(np.float32))
    rotated = torch.rot90(tile.flip(-1) if mirror else tile, turns, (-2, -1))
    return rotated[rng.permutation(3).tolist()].pow(gamma).mul_(gain).contiguous()


def _start(low: float, high: float, crop: int, size: int, rng: np.random.Generator) -> int:
    # A random place inside the face.
    return int(np.clip(round(rng.uniform(low, max(low, high - crop))), 0, max(size - crop, 0)))


def _around(start: int, crop: int, margin: int, size: int) -> np.ndarray:
    # Places of a crop and its margin, reflected at the borders as often as it takes.
    places = np.arange(start - margin, start + crop + margin) % max(2 * size - 2, 1)
    return np.minimum(places, 2 * size - 2 - places)
