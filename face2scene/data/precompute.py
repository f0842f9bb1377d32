"""The degraded faces of an InScene set that training and validation give to Stage I, restored ahead of time."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from face2scene.data.records import Record, read_manifest
from face2scene.data.scene_batches import points_of, recipe_of
from face2scene.degradation import Space
from face2scene.faces.align import square_crop_box
from face2scene.image_io.arrays import read_image, read_tensor, to_bytes, to_tensor
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
    """Degraded aligned faces (3, size, size) in [0, 1] with the paths of their references.

    Args:
        tasks: record and number of its recipe; None is the fixed LQ image.
    """

    def __init__(self, folder: Path, tasks: Sequence[tuple[Record, int | None]], space: Space, size: int):
        self.folder, self.tasks, self.space, self.size = folder, tasks, space, size

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, number: int) -> tuple[Tensor, list[Path]]:
        record, recipe = self.tasks[number]
        if recipe is None:
            scene = read_tensor(self.folder / record.lq)
        else:
            # in 8 bits, as in SceneBatches
            gt = to_tensor(to_bytes(read_image(self.folder / record.image)))
            scene = recipe_of(self.space, record, recipe).apply(gt)
        box = square_crop_box(record.face_box, (record.height, record.width))
        face, _, _ = aligned_face(scene, box, points_of(record), self.size)
        return face, [self.folder / r for r in record.references]


def faces_of(
    folder: str | Path,
    space: Space,
    *,
    size: int,
    recipes: int,
    splits: Sequence[str],
    rank: int = 0,
    processes: int = 1,
) -> Faces:
    """One process's share of a set: every training image under each of its recipes, every fixed pair once.

    Args:
        space: the training's, see `scene_batches.recipe_of`.
        recipes: recipes per training image, `train.restorer.batches.recipes`.
        splits: of `train`, `val`, `test`; the last two have fixed LQ images.
    """
    tasks: list[tuple[Record, int | None]] = []
    for record in read_manifest(folder):
        if record.split not in splits or int(record.sha256[:8], 16) % processes != rank:
            continue
        if record.split == "train":
            tasks += [(record, number) for number in range(recipes)]
        elif record.lq:
            tasks.append((record, None))
    return Faces(Path(folder), tasks, space, size)


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
        images, references = torch.stack([image for image, _ in rows]), [paths for _, paths in rows]
        new += cache.fill(images, references)
        keys += [cache.key(image, paths) for image, paths in rows]
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
