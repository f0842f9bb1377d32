"""Real photos as a source of InScene pictures: a square around the largest face, with scene around it.

Every file is used or left out by name with the reason; nothing stops a build.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from face2scene import weights
from face2scene.data.build import Draft, Made, largest
from face2scene.data.prompts import plain_prompt, shot_of
from face2scene.extras import need
from face2scene.faces.align import square_crop_box
from face2scene.faces.detect import Detector
from face2scene.images import SUFFIXES, ImageError, read_image
from face2scene.records import Box

# Photos that come with an installed package: its extra, and where it keeps its data.
_PACKAGES = {
    "matplotlib": ("report", lambda package: package.get_data_path()),
    "skimage": ("dev", lambda package: Path(package.__file__).parent),
}


def photo_folder(where: str | Path) -> Path:
    """The folder behind a name: a folder, `matplotlib/sample_data`, `skimage/data`, or a photo set of the catalogue.

    Raises:
        FileNotFoundError: when it is none of these, or the set was not fetched.
    """
    package, _, inside = str(where).partition("/")
    if inside and package in _PACKAGES:
        extra, root_of = _PACKAGES[package]
        return Path(root_of(need(package, extra, why=f"The photos of {where}"))) / inside
    if Path(where).is_dir():
        return Path(where)
    if str(where) in weights.catalogue():
        return weights.folder(str(where))
    sets = sorted(name for name in weights.catalogue() if name.startswith("photos"))
    raise FileNotFoundError(
        f"data.photos: {where} is neither a folder nor one of the photo sets {sets} of `face2scene fetch`."
    )


class Photos:
    """The photos of a folder, as a build source. One item is one file.

    Args:
        where: see `photo_folder`.
        detector: finds and describes faces.
        name: of the source; pictures are called `name_FILE`.
        people: file name to person. Then only these files are used. Without it every file is looked at, and a
            photo's person is the name of its sub-folder; photos that lie in no sub-folder have a person each.
        split: `train` or `val`, for all, or by person. People known to be one must not be in both, and
            photos of unknown people should all be in one.
        size: side of the pictures in pixels; smaller photos are left out.
        reference_size: longest side of the pictures as references of others; None takes the pictures
            themselves.
        face_share: side of the face over side of the picture, where the photo allows it (our setting: 1/3).
        min_face: smallest face in the finished picture, in pixels (our setting).
        licence: recorded with every picture.
    """

    def __init__(
        self,
        where: str | Path,
        detector: Detector,
        *,
        name: str,
        people: Mapping[str, str] | None = None,
        split: str | Mapping[str, str] = "val",
        size: int,
        reference_size: int | None = None,
        face_share: float = 1 / 3,
        min_face: int = 32,
        licence: str,
    ):
        self.where = where
        self.detector = detector
        self.name = _safe(name)
        self.people = dict(people) if people else None
        self.split = split
        self.size = size
        self.reference_size = reference_size
        self.face_share = face_share
        self.min_face = min_face
        self.licence = licence

    @cached_property
    def folder(self) -> Path:
        return photo_folder(self.where)

    @cached_property
    def _files(self) -> list[str]:
        # Links are followed to files only, so that a link to a parent folder is no endless tree.
        found = [path for path in self.folder.rglob("*") if path.is_file()]
        names = (path.relative_to(self.folder) for path in found)
        return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))

    def listing(self) -> Any:
        """Files and sizes; only the names where they are given, so that a finished set needs no photos."""
        if self.people is not None:
            return sorted(self.people)
        return [[name, (self.folder / name).stat().st_size] for name in self._files]

    def items(self) -> Sequence[str]:
        return list(self.people) if self.people is not None else self._files

    def key(self, item: str) -> str:
        name = f"{self.name}_{_safe(item.rsplit('.', 1)[0])}"
        if self.people is None:
            name += f"_{self._files.index(item):04d}"  # a.jpg and a.png, or names that differ in odd letters
        return name

    def make(self, item: str) -> Made:
        draft, reason = self._make(item)
        return Made([draft]) if draft is not None else Made(rejected=[(f"{self.name}/{item}", reason)])

    def _make(self, item: str) -> tuple[Draft | None, str]:
        if Path(item).suffix.lower() not in SUFFIXES:
            return None, f"not a picture file: the suffix is none of {' '.join(SUFFIXES)}"
        try:
            photo = read_image(self.folder / item)
        except (ImageError, OSError) as error:
            return None, f"unreadable: {str(error).replace(str(self.folder) + '/', '')}"
        height, width = photo.shape[:2]
        if min(height, width) < self.size:
            return None, f"too small: {width} x {height} pixels, data.size is {self.size}"
        face = largest(self.detector.find(photo))
        if face is None:
            return None, "no face found"
        x0, y0, x1, y1 = box = face_crop(face.box, (height, width), self.face_share, self.size)
        factor = self.size / (x1 - x0)
        if face.size * factor < self.min_face:
            return None, f"face too small: {face.size * factor:.0f} pixels, needed are {self.min_face}"
        cut = photo[y0:y1, x0:x1]
        moved = [min(max((v - o) * factor, 0), self.size) for v, o in zip(face.box, (x0, y0, x0, y0), strict=True)]
        points = face.landmarks_68
        if points is not None:
            points = (points + 0.5 - [x0, y0]) * factor - 0.5  # centres of pixels to edges and back
        person = self._person(item)
        shot = shot_of(tuple(moved), self.size)
        return (
            Draft(
                name=self.key(item),
                picture=_resized(cut, self.size),
                reference=_resized(cut, min(self.reference_size, x1 - x0)) if self.reference_size else None,
                split=self.split if isinstance(self.split, str) else self.split[person],
                identity=f"{self.name}_{_safe(person)}",
                prompt=plain_prompt(shot),
                shot=shot,
                face_box=tuple(moved),
                landmarks_68=points,
                vector=face.identity,
                source=self.name,
                licence=self.licence,
                generator={"name": "photo", "file": item, "photo_size": [width, height], "crop": list(box)},
            ),
            "",
        )

    def _person(self, item: str) -> str:
        if self.people is not None:
            return self.people[item]
        return item.split("/")[0] if "/" in item else self.key(item).removeprefix(f"{self.name}_")


def face_crop(face_box: Box, image_size: tuple[int, int], face_share: float, minimum: int) -> tuple[int, ...]:
    """The whole-pixel square in which a face takes `face_share` of the side, at least `minimum`.

    The square is made smaller where the picture is; `image_size` is (height, width).
    """
    return square_crop_box(face_box, image_size, margin=(1 / face_share - 1) / 2, minimum=minimum)


def _resized(picture: np.ndarray, size: int) -> np.ndarray:
    # Float channels one by one: Pillow resizes 8-bit colour or float grey, and 8 bit would round twice.
    channels = [Image.fromarray(picture[..., c]).resize((size, size), Image.LANCZOS) for c in range(3)]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0, 1)


def _safe(text: str) -> str:
    # A file name from any name: letters and digits of any script stay.
    return "".join(c if c.isalnum() or c in "-." else "-" for c in text).strip("-.") or "unnamed"
