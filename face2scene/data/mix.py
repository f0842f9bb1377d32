"""The images of a training: of one InScene set, or of several mixed by weight, loose or in archives."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from face2scene.common.ledger import digest
from face2scene.common.reproducibility import seed_from
from face2scene.data.records import Record, Records
from face2scene.data.shards import read_stored
from face2scene.degradation import Bank, Mixture, Recipe, Space
from face2scene.faces.align import five_points, square_crop_box
from face2scene.image_io.arrays import to_bytes
from face2scene.ref_fr.base import upright_points


class Mix:
    """The records of one split, numbered through all sets, each with the folder of its set.

    Args:
        folder: an InScene dataset, or a mix of several: `{"folder": ..., "weight": ...}` each, see `MixtureSampler`.
        split: `train`, `val` or `test`; None takes all.

    Raises:
        ManifestError, FileNotFoundError: see `Records`.
    """

    def __init__(self, folder: str | Path | Sequence[Mapping[str, Any]], split: str | None = "train"):
        parts: Sequence[Mapping[str, Any]] = [{"folder": folder}] if isinstance(folder, str | Path) else folder
        self.folders = [Path(part["folder"]) for part in parts]
        self.sets = [Records(part, split) for part in self.folders]
        self.first = np.cumsum([0, *map(len, self.sets)])  # number of every set's first image
        self.weights = [float(part["weight"]) for part in parts] if all("weight" in part for part in parts) else None

    def __len__(self) -> int:
        return int(self.first[-1])

    def __getitem__(self, number: int) -> tuple[Path, Record]:
        part = int(np.searchsorted(self.first, number, side="right")) - 1
        return self.folders[part], self.sets[part][number - int(self.first[part])]

    def column(self, name: str) -> list[Any]:
        """One field of all records."""
        return [value for part in self.sets for value in part.column(name)]

    def shares(self) -> np.ndarray | None:
        """Every image's probability by the weights of the sets; None where all are equal."""
        if self.weights is None or len(self.sets) == 1:
            return None
        counts, weights = np.diff(self.first), np.array(self.weights)
        return np.repeat(weights / weights.sum() / counts, counts)

    def image(self, number: int) -> np.ndarray:
        """Pixels of image `number`, uint8 (H, W, 3)."""
        folder, record = self[number]
        return to_bytes(read_stored(folder, record.image))


def draw_distinct(numbers: np.ndarray, count: int, rng: np.random.Generator, shares: np.ndarray | None) -> list[int]:
    """`count` different ones of the images `numbers`, by their `Mix.shares`."""
    weights = None if shares is None else shares[numbers] / shares[numbers].sum()
    return rng.choice(numbers, count, replace=False, p=weights).tolist()


def points_of(record: Record) -> np.ndarray:
    """The five landmarks (5, 2) of a record's face, those of an upright face where none are recorded."""
    if record.landmarks_68:
        return five_points(record.landmarks_68)
    return upright_points(square_crop_box(record.face_box, (record.height, record.width)))


def face_name(record: Record, recipe: Recipe | None = None) -> str:
    """What a degraded face was made from, for `ref_fr.cache`; without a recipe that of the fixed degraded image."""
    made = [record.recipe, record.lq] if recipe is None else [recipe.key, recipe.noise_seed]
    return digest([record.sha256, record.face_box, record.landmarks_68, *made])


def recipe_of(space: Space | Mixture | Bank, content: str, number: int) -> Recipe:
    """Recipe `number` of an image; it depends on the image's `content` (`Record.sha256`) only."""
    return space.draw(np.random.default_rng(seed_from("recipe", content, number)))
