"""The faces that FaDeX is probed on: crops of the images of a built set, or of a folder of photos."""

import logging
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from torch import Tensor

from face2scene.common.types import Box
from face2scene.data.building.build import largest
from face2scene.data.records import read_manifest
from face2scene.faces.align import square_crop_box
from face2scene.image_io.arrays import SUFFIXES, ImageError, list_files, read_image, read_tensor, to_tensor

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ProbeFace:
    """One clean face with a margin around it, which is degraded too and then cropped."""

    name: str
    identity: str
    gt: Tensor  # (3, H, W) in [0, 1]
    inner: tuple[slice, slice]  # rows and columns of the face crop in it


def faces_of_set(folder: str | Path, split: str, *, crop: int, margin: int, count: int) -> list[ProbeFace]:
    """Faces of a built set, at their native size but at most `crop` pixels a side.

    One image of each person comes first, alternating between sources, then their other images.

    Raises:
        FileNotFoundError, ManifestError: no such set or split.
    """
    groups: dict[tuple[int, str], list] = {}
    seen: dict[str, int] = {}
    for record in read_manifest(folder, split):
        number = seen[record.identity] = seen.get(record.identity, -1) + 1
        groups.setdefault((number, record.source), []).append(record)
    rounds = sorted({number for number, _ in groups})
    chosen = [
        record
        for number in rounds
        for row in zip_longest(*(rows for (n, _), rows in groups.items() if n == number))
        for record in row
        if record is not None
    ][:count]
    return [
        cut(read_tensor(Path(folder) / r.image), r.face_box, Path(r.image).stem, r.identity, crop, margin)
        for r in chosen
    ]


def faces_of_photos(
    folder: str | Path, detector: Any, *, crop: int, margin: int, count: int
) -> tuple[list[ProbeFace], list[tuple[str, str]]]:
    """The largest face of every photo in a folder; a sub-folder holds the photos of one person.

    Returns:
        the faces, and names with the reasons of the photos that were left out.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: fewer than two photos have a usable face; the message says why each was left out.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"probe.photos={folder} is no folder.")
    faces: list[ProbeFace] = []
    left_out: list[tuple[str, str]] = []
    for path in list_files(folder):
        if len(faces) == count:
            break
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() not in SUFFIXES:
            left_out.append((name, "not an image file"))
            continue
        try:
            photo = read_image(path)
        except (ImageError, OSError) as error:
            left_out.append((name, f"unreadable: {error}"))
            continue
        face = largest(detector.find(photo))
        if face is None:
            left_out.append((name, "no face found"))
            continue
        person = name.split("/")[0] if "/" in name else name
        faces.append(cut(to_tensor(photo), face.box, name, person, crop, margin))
    if len(faces) < 2:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out) or "the folder is empty"
        raise ValueError(f"The probe compares two images at least, and {folder} has {len(faces)}: {reasons}.")
    return faces, left_out


def cut(image: Tensor, box: Box, name: str, identity: str, crop: int, margin: int) -> ProbeFace:
    """The face in `box` of an image (3, H, W): its square, at most `crop` pixels a side, with `margin` around it."""
    height, width = image.shape[-2:]
    x0, y0, x1, y1 = (int(v) for v in square_crop_box(box, (height, width)))
    side = min(x1 - x0, crop)
    left, top = (x0 + x1 - side) // 2, (y0 + y1 - side) // 2
    x, y = max(left - margin, 0), max(top - margin, 0)
    gt = image[:, y : min(top + side + margin, height), x : min(left + side + margin, width)].clone()
    return ProbeFace(name, identity, gt, (slice(top - y, top - y + side), slice(left - x, left - x + side)))
