"""Batches for the restorer: crops of degraded scenes, each with the face pair for the estimate of its degradation.

Everything random in batch number `index` follows from (seed, index). Shapes: B scenes; c, side of a square scene crop
in pixels; f, side of a scene's face crop (`faces.align.face_crop_box`), each its own.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from face2scene.common.reproducibility import seed_from
from face2scene.common.types import Box, FacePair
from face2scene.data.mix import Mix, face_name, points_of, recipe_of
from face2scene.data.records import Record, read_manifest
from face2scene.data.sampler import MixtureSampler
from face2scene.data.shards import read_stored, shard_of, stored_path
from face2scene.degradation import Bank, Mixture, Recipe, Space
from face2scene.faces.align import MAX_FACE_SIZE, crop, face_crop_box
from face2scene.image_io.arrays import to_tensor
from face2scene.ref_fr import FaceRestorationError, RefFR, face_pair
from face2scene.ref_fr.base import mirrored_points
from face2scene.ref_fr.stand_ins import GroundTruth

log = logging.getLogger(__name__)
_GT = GroundTruth()


class SceneBatches(Dataset):
    """An endless stream of training batches.

    Args:
        folder: an InScene dataset, or a mix of several: `{"folder": ..., "weight": ...}` each, see `MixtureSampler`.
        space: draws one recipe per scene; the degraded face is a crop of the degraded scene.
        ref_fr: Stage I. A face that it refuses is trained on with the null tokens.
        crop: c, a multiple of what the restorer needs.
        batch: B.
        negative_prob: p_n, share of scenes whose target is the degraded image itself, under the negative prompt
            (supplement 2.2).
        token_dropout: share of scenes whose tokens are replaced by the null tokens, for scenes without a face (ours).
        gt_share: share of scenes with the ground-truth face in place of Stage I's; the paper mixes both for FaDeX and
            does not state what the restorer is trained with.
        gt_without_references: use the ground-truth face for images without references, as the paper must for its
            29,697; false uses Stage I for them too.
        seed: of everything drawn.
        recipes: 0 draws a new recipe for every scene; N gives every image N recipes of its own (`recipe_of`) and
            mirrors it after the degradation, so that Stage I can be precomputed.
        order: `random` draws images with replacement; `epochs` uses each once an epoch and reads archives one after
            the other; None is `random` for one set of loose files, else `epochs`.
        max_face_size: pixels; of a larger face the centre is taken, as in use. Less saves time: MapNet's attention
            takes the fourth power of it.
        cache_mib: images are kept in memory as bytes up to this many MiB, on one machine in all.
        small: s, of a space of this scale: `small`, the crop before its enlargement by s, is also given (S3Diff scores
            it), and crops begin at multiples of s.

    Raises:
        ValueError: images smaller than the crop.
    """

    in_bytes = ("image", "gt", "restored", "degraded")  # for `train.dataloader`

    def __init__(
        self,
        folder: str | Path | Sequence[Mapping[str, Any]],
        space: Space | Mixture | Bank,
        ref_fr: RefFR,
        *,
        crop: int,
        batch: int,
        negative_prob: float,
        token_dropout: float,
        gt_share: float = 0.0,
        gt_without_references: bool = False,
        seed: int,
        split: str = "train",
        recipes: int = 0,
        order: str | None = None,
        max_face_size: int = MAX_FACE_SIZE,
        cache_mib: int = 2048,
        small: int = 0,
    ):
        if order not in (None, "random", "epochs"):
            raise ValueError(f"train.restorer.batches.order must be random, epochs or null, not {order!r}.")
        self.recipes, self.small = recipes, small if small > 1 else 0
        self.mix = mix = Mix(folder, split)
        sizes = list(zip(mix.column("height"), mix.column("width"), strict=True))
        found = zip(mix.column("face_box"), sizes, strict=True)
        self.boxes = np.array([face_crop_box(box, size, max_face_size) for box, size in found], np.int32)
        shards = [[shard_of(name) for name in part.column("image")] for part in mix.sets]
        if order is None:
            order = "epochs" if len(shards) > 1 or any(map(any, shards)) else "random"
        self.order = MixtureSampler(shards, mix.weights, seed=seed) if order == "epochs" else None
        self.space, self.ref_fr, self.crop, self.batch = space, ref_fr, crop, batch
        self.seed, self.negative_prob, self.token_dropout = seed, negative_prob, token_dropout
        self.gt_share, self.gt_without_references = gt_share, gt_without_references
        smallest = min(map(min, sizes))
        if crop > smallest:
            raise ValueError(
                f"A crop of {crop} exceeds an image of {smallest} pixels: lower train.restorer.batches.crop."
            )
        self._images: dict[int, np.ndarray] = {}
        self._free_bytes = cache_mib * 2**20

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Batch `index`.

        Returns:
            image (degraded), gt: (B, 3, c, c) in [0, 1], the loader makes 8 bits of them; restored, degraded: B times
            (3, f, f), in lists; negative: (B,) bool, the image itself is the target; drop: (B,) bool; seed: B whole
            numbers, for other random choices of a scene, in a list, because the host reads them; small, where it is
            asked for: (B, 3, c / s, c / s).
        """
        rng = np.random.default_rng(seed_from(self.seed, "scenes", index))
        negative, drop = rng.random(self.batch) < self.negative_prob, rng.random(self.batch) < self.token_dropout
        rows = [self._one(self._chosen(index, row, rng), rng) for row in range(self.batch)]
        image, gt, restored, degraded, refused, *small = map(list, zip(*rows, strict=True))
        return {
            "image": torch.stack(image),
            "gt": torch.stack(gt),
            "restored": restored,
            "degraded": degraded,
            "negative": torch.from_numpy(negative),
            **({"small": torch.stack(small[0])} if small else {}),
            "drop": torch.from_numpy(drop | np.array(refused)),
            "seed": [seed_from(self.seed, "scene", index, row) for row in range(self.batch)],
        }

    def _chosen(self, index: int, row: int, rng: np.random.Generator) -> int:
        if self.order is None:
            return int(rng.integers(len(self.boxes)))
        part, number = self.order[index * self.batch + row]
        return int(self.mix.first[part]) + number

    def _one(self, number: int, rng: np.random.Generator) -> tuple[Any, ...]:
        folder, record = self.mix[number]
        gt = to_tensor(self._image(number))
        mirror = rng.random() < 0.5
        mirror_first = mirror and not self.recipes  # before the degradation
        if mirror_first:
            gt = gt.flip(-1)
        fixed = self.recipes > 0
        recipe = (
            recipe_of(self.space, record.sha256, int(rng.integers(self.recipes))) if fixed else self.space.draw(rng)
        )
        degraded = recipe.apply(gt)
        x0, y0, x1, y1 = map(int, self.boxes[number])
        points = points_of(record)
        if mirror_first:
            width = gt.shape[-1]
            x0, x1 = width - x1, width - x0
            points = mirrored_points(points, width)
        box = (x0, y0, x1, y1)
        references = [stored_path(folder, r) for r in record.references]
        use_gt = self.gt_share > 0 and rng.random() < self.gt_share
        use_gt = use_gt or (self.gt_without_references and not references)
        given = {"references": references, "gt": gt, "landmarks": points, "rng": rng}
        given |= {"name": face_name(record, recipe)} if fixed else {}
        try:
            pair, refused = face_pair(_GT if use_gt else self.ref_fr, degraded, box, **given), False
        except FaceRestorationError:
            face = crop(degraded, box)
            pair, refused = FacePair(restored=face, degraded=face, box=box), True
        place = _window(rng, gt.shape[-2:], self.crop, self.small or 1)
        image, clean = crop(degraded, place), crop(gt, place)
        rows = [image, clean, pair.restored, pair.degraded]
        small = [self._before_enlargement(recipe, gt, place)] if self.small else []
        if mirror and not mirror_first:
            rows, small = ([row.flip(-1) for row in part] for part in (rows, small))
        return *rows, refused, *small

    def _before_enlargement(self, recipe: Recipe, gt: Tensor, place: Box) -> Tensor:
        low = recipe.apply(gt, keep_size=False)
        if low.shape == gt.shape:  # not degraded
            low = interpolate(gt[None], scale_factor=1 / self.small, mode="bicubic", antialias=True)[0].clamp(0, 1)
        x0, y0, x1, y1 = (int(v) // self.small for v in place)
        return crop(low, (x0, y0, x1, y1))

    def divide_memory(self, parts: int) -> None:
        """Share the memory for images with the copies of this object in `parts` workers and processes."""
        self._free_bytes //= parts

    def _image(self, number: int) -> np.ndarray:
        image = self._images.get(number)
        if image is None:
            image = self.mix.image(number)
            if image.nbytes <= self._free_bytes:
                self._free_bytes -= image.nbytes
                self._images[number] = image
        return image


def _window(rng: np.random.Generator, size: Sequence[int], side: int, step: int) -> tuple[int, int, int, int]:
    x, y = (int(rng.integers(0, length - side + 1)) // step * step for length in reversed(size))
    return x, y, x + side, y + side


@dataclass(frozen=True, eq=False)
class ValidationPair:
    """One validation pair with its face pair."""

    record: Record
    image: Tensor  # (3, H, W), degraded
    gt: Tensor  # (3, H, W)
    pair: FacePair


def held_out(folder: str | Path, ref_fr: RefFR, *, count: int, seed: int) -> Sequence[ValidationPair]:
    """`count` validation pairs of an InScene dataset, or all, if there are fewer.

    The same ones in every training: one image of every person before a second one of anybody, in the order of a hash
    of their names. An image whose face Stage I refuses is left out, with a warning.
    """
    folder, rows, shown = Path(folder), list[ValidationPair](), Counter[str]()

    def turn(record: Record) -> int:
        shown[record.identity] += 1
        return shown[record.identity]

    hashed = sorted((r for r in read_manifest(folder, "val") if r.lq), key=lambda r: seed_from("held out", r.image))
    for record in sorted(hashed, key=turn):
        if len(rows) == count:
            break
        image, gt = (to_tensor(read_stored(folder, name)) for name in (record.lq, record.image) if name)
        box = face_crop_box(record.face_box, (record.height, record.width))
        references = [stored_path(folder, name) for name in record.references]
        given = {"references": references, "gt": gt, "landmarks": points_of(record), "name": face_name(record)}
        given["rng"] = np.random.default_rng(seed_from(seed, record.image))
        try:
            rows.append(ValidationPair(record, image, gt, face_pair(ref_fr, image, box, **given)))
        except FaceRestorationError as error:
            log.warning("Validation leaves out %s, because %s.", record.image, str(error).rstrip("."))
    return rows
