"""Faces restored by Stage I ahead of FaDeX's training, each from its own degraded face (supplement 2.1).

The whole scene is degraded and its face cropped, as in use.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from face2scene.common.ledger import digest
from face2scene.data.mix import Mix, draw_distinct, face_name, points_of, recipe_of
from face2scene.data.shards import stored_path
from face2scene.degradation import Bank, Mixture, Space
from face2scene.faces.align import crop, square_crop_box
from face2scene.image_io.arrays import to_bytes, to_tensor
from face2scene.ref_fr import AlignedRefFR, FaceRestorationError, face_pair


class RestoredPairs:
    """Every image under each of its recipes (`recipe_of`): uint8 (3, c, c, 3), the restored, degraded and clean face.

    A face that Stage I refuses stays the clean one.
    """

    def __init__(self, mix: Mix, space: Space | Mixture | Bank, restorer: AlignedRefFR, recipes: int):
        self.mix, self.space, self.restorer, self.recipes = mix, space, restorer, recipes
        drawn = [recipe_of(space, content, n) for content in mix.column("sha256") for n in range(recipes)]
        names = {recipe: recipe.key for recipe in drawn}
        self.operators = [names[recipe] for recipe in drawn]
        columns = [mix.column(name) for name in ("sha256", "face_box", "landmarks_68", "references")]
        facts = [digest([restorer.fingerprint, *row]) for row in zip(*columns, strict=True)]
        self.keys = [
            f"{facts[item // recipes]} {operator} {recipe.noise_seed}"
            for item, (operator, recipe) in enumerate(zip(self.operators, drawn, strict=True))
        ]

    def __getitem__(self, item: int) -> np.ndarray:
        folder, record = self.mix[item // self.recipes]
        recipe = recipe_of(self.space, record.sha256, item % self.recipes)
        gt = to_tensor(self.mix.image(item // self.recipes))
        degraded = recipe.apply(gt)
        box = square_crop_box(record.face_box, (record.height, record.width))
        given = {"references": [stored_path(folder, r) for r in record.references], "landmarks": points_of(record)}
        given |= {"name": face_name(record, recipe), "rng": np.random.default_rng(0)}
        try:
            pair = face_pair(self.restorer, degraded, box, **given)
        except FaceRestorationError:
            return np.stack([to_bytes(crop(image, box)) for image in (gt, degraded, gt)])
        return np.stack([to_bytes(image) for image in (pair.restored, pair.degraded, crop(gt, pair.box))])


class RestoredBank:
    """The pairs of `RestoredPairs` by operator.

    Args:
        operators: of the pairs. recipes: pairs of every image.
        shares: see `Mix.shares`.
        sides: of the pairs in pixels; None reads those of stored ones.
    """

    def __init__(
        self,
        pairs: Any,
        operators: Sequence[str],
        recipes: int,
        shares: np.ndarray | None,
        sides: np.ndarray | None = None,
    ):
        self.pairs, self.shares = pairs, None if shares is None else shares.repeat(recipes)
        self.sides = pairs.sides() if sides is None else sides
        members: dict[str, dict[int, int]] = {}  # operator to image to pair
        for pair, operator in enumerate(operators):
            members.setdefault(operator, {}).setdefault(pair // recipes, pair)
        self.members = {operator: np.array(list(pairs.values())) for operator, pairs in members.items()}
        self._groups: dict[tuple[int, int], list[tuple[str, np.ndarray]]] = {}

    def groups(self, side: int, count: int, operators: int) -> list[tuple[str, np.ndarray]]:
        """Operators with `count` or more faces of `side` pixels, and these.

        Raises:
            ValueError: there are fewer than `operators`.
        """
        if (side, count) not in self._groups:
            fitting = [(operator, pairs[self.sides[pairs] >= side]) for operator, pairs in self.members.items()]
            self._groups[side, count] = [(operator, pairs) for operator, pairs in fitting if len(pairs) >= count]
        found = self._groups[side, count]
        if len(found) < operators:
            raise ValueError(
                f"Of {len(self.members)} operators {len(found)} have {count} faces of {side} pixels that Stage I "
                f"restored, and a batch takes {operators}: train with degradation=paper_bank and a smaller "
                "degradation.size, more recipes, or smaller train.fadex.buckets (or crop)."
            )
        return found

    def draw(
        self, side: int, count: int, operators: int, rng: np.random.Generator
    ) -> Iterator[tuple[str, list[tuple[Tensor, Tensor, Tensor]]]]:
        """Different operators with `count` different images each: restored, degraded, clean (3, side, side)."""
        groups = self.groups(side, count, operators)
        for number in rng.choice(len(groups), operators, replace=False):
            operator, pairs = groups[number]
            rows = []
            for pair in draw_distinct(pairs, count, rng, self.shares):
                y, x = rng.integers(0, int(self.sides[pair]) - side, 2, endpoint=True)
                restored, degraded, gt = self.pairs[pair][:, y : y + side, x : x + side]
                rows.append((to_tensor(restored), to_tensor(degraded), to_tensor(gt)))
            yield operator, rows
