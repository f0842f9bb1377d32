"""The degraded faces of an InScene set that training and validation give to Stage I, restored ahead of time."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from face2scene.data.mix import Mix, face_name, points_of, recipe_of
from face2scene.data.records import SPLITS
from face2scene.data.shards import read_stored, stored_path
from face2scene.degradation import Bank, Mixture, Space
from face2scene.faces.align import square_crop_box
from face2scene.image_io.arrays import to_tensor
from face2scene.ref_fr.base import FaceRestorationError, aligned_face
from face2scene.ref_fr.cache import Cached


@dataclass(frozen=True)
class PrecomputeSummary:
    """Counts of one process."""

    seen: int
    new: int
    reasons: Counter  # of refusals: message to count
    problems: list[str]  # entries that cannot be read back


class Faces(Dataset):
    """Degraded aligned faces (3, size, size) in [0, 1] with the paths of their references and their names.

    Args:
        tasks: number of an image of the mix, and of its recipe; None is the fixed LQ image.
    """

    def __init__(self, mix: Mix, tasks: Sequence[tuple[int, int | None]], space: Space | Mixture | Bank, size: int):
        self.mix, self.tasks, self.space, self.size = mix, tasks, space, size

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, task: int) -> tuple[Tensor, list[Path], str]:
        number, which = self.tasks[task]
        folder, record = self.mix[number]
        recipe = None if which is None else recipe_of(self.space, record.sha256, which)
        if recipe is None:
            scene = to_tensor(read_stored(folder, str(record.lq)))
        else:
            scene = recipe.apply(to_tensor(self.mix.image(number)))
        box = square_crop_box(record.face_box, (record.height, record.width))
        face, _, _ = aligned_face(scene, box, points_of(record), self.size)
        return face, [stored_path(folder, name) for name in record.references], face_name(record, recipe)


def faces_of(
    folder: str | Path | Sequence[Mapping[str, Any]],
    space: Space | Mixture | Bank,
    *,
    size: int,
    recipes: int,
    splits: Sequence[str],
    rank: int = 0,
    processes: int = 1,
) -> Faces:
    """One process's share of a set, or of a mix (see `Mix`): every training image under each of its recipes, every
    fixed pair once.

    Args:
        space: the training's, see `mix.recipe_of`.
        recipes: recipes per training image, `recipes` of train.fadex and train.restorer.batches.
        splits: of `train`, `val`, `test`; the last two have fixed LQ images.
    """
    if unknown := sorted({*splits} - {*SPLITS}):
        raise ValueError(f"There is no split {unknown[0]!r}: choose among {', '.join(SPLITS)} (option splits).")
    mix = Mix(folder, None)
    tasks: list[tuple[int, int | None]] = []
    rows = zip(mix.column("split"), mix.column("sha256"), mix.column("lq"), strict=True)
    for number, (split, digest, lq) in enumerate(rows):
        if split in splits and int(digest[:8], 16) % processes == rank:
            fixed = [None] if lq else []
            tasks += [(number, which) for which in (range(recipes) if split == "train" else fixed)]
    return Faces(mix, tasks, space, size)


def fill(
    cache: Cached, faces: Faces, *, batch: int, progress: Callable[[int], object] = lambda count: None
) -> PrecomputeSummary:
    """Put every face into the cache and read it back.

    Args:
        batch: faces per call of the restorer.
        progress: called with the number of faces after every batch.
    """
    new, keys = 0, []
    for start in range(0, len(faces), batch):
        rows = [faces[number] for number in range(start, min(start + batch, len(faces)))]
        images, references, names = zip(*rows, strict=True)
        new += cache.fill(torch.stack(images), references, names)
        keys += [cache.key(*row) for row in rows]
        progress(len(rows))
    reasons, problems = Counter(), []
    for key in dict.fromkeys(keys):
        try:
            cache.read(key)
        except FaceRestorationError as error:
            reasons[str(error)] += 1
        except (ValueError, OSError) as error:
            problems.append(str(error))
    return PrecomputeSummary(len(keys), new, reasons, problems)
