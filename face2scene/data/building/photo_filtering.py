"""What the filter stages of real photos work on: a candidate photo, its crop, and the interface of a stage."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from face2scene.common.types import Face
from face2scene.data.building.names import distinct
from face2scene.faces.align import square_crop_box
from face2scene.faces.detect import Detector
from face2scene.image_io.arrays import ImageError, read_image

Scorer = Callable[[Any], Any]
"""An image metric: f(images (B, 3, H, W) in [0, 1]) -> (B,)."""


@dataclass(frozen=True)
class StageContext:
    """What stages may use."""

    detector: Detector
    metric: Callable[[str], Scorer] | None = None  # the scorer of a name; RuntimeError says how to get what is missing
    device: Any = "cpu"  # of the scorers


@dataclass
class Candidate:
    """A photo on its way through the stages, which may add to it."""

    name: str
    photo: np.ndarray  # float32 (H, W, 3) in [0, 1]
    crop: "CropSpec"
    face: Face | None = None
    prompt: str | None = None
    measured: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)  # go into the record's `generator`

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The part of the photo that becomes the image: (x0, y0, x1, y1)."""
        return self.crop.box(self.face, self.photo.shape[:2])

    @property
    def factor(self) -> float:
        """Scale from the photo to the image."""
        x0, y0, x1, y1 = self.box
        return self.crop.factor(x1 - x0, y1 - y0)

    @cached_property
    def image(self) -> np.ndarray:
        """The image for the set: the photo's part `box`, resized."""
        x0, y0, x1, y1 = self.box
        return resized(self.photo[y0:y1, x0:x1], self.crop.size_of(x1 - x0, y1 - y0))

    @property
    def face_pixels(self) -> np.ndarray:
        """The photo inside the face box, (h, w, 3)."""
        height, width = self.photo.shape[:2]
        x0, y0, x1, y1 = self.face.box
        rows = slice(max(int(y0), 0), min(int(np.ceil(y1)), height))
        return self.photo[rows, max(int(x0), 0) : min(int(np.ceil(x1)), width)]


class FilterStage(Protocol):
    """One test of a photo; any class with these three members can stand in the list `stages` of a configuration.

    It may also have `prepare(context)`, called before any work, which raises if something is missing.
    """

    name: str
    thresholds: Mapping[str, Any]  # measure to number, for the report

    def __call__(self, candidate: Candidate) -> str:
        """The reason to leave the photo out, `kind: details`, or an empty string."""
        ...


@dataclass(frozen=True)
class CropSpec:
    """How a photo is cropped: a square around the face with scene, smaller where the photo is, or not at all."""

    side: int | None  # of the square image in pixels; None keeps the whole photo
    face_share: float = 1 / 3  # side of the face over side of the square, where the photo allows it (our setting)
    max_side: int | None = None  # a whole photo is reduced to this longest side

    def box(self, face: Face, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """The part of a photo of `size` (height, width)."""
        if self.side is None:
            return (0, 0, size[1], size[0])
        return square_crop_box(face.box, size, margin=(1 / self.face_share - 1) / 2, minimum=self.side)

    def factor(self, width: int, height: int) -> float:
        """Scale of a part to the image."""
        if self.side is not None:
            return self.side / width
        return min(1.0, (self.max_side or max(width, height)) / max(width, height))

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the image of a part."""
        factor = self.factor(width, height)
        return (max(1, round(width * factor)), max(1, round(height * factor)))


def copies(photos: Sequence[Path], side: int | None) -> list[tuple[str, np.ndarray]]:
    """Reference photos of one person for a `RecordCandidate`: unique names and images, reduced to `side`.

    Unreadable photos are left out with a warning.
    """
    stems, found = [path.stem for path in photos], []
    for path in photos:
        try:
            image = reduced(read_image(path), side)
        except (ImageError, OSError) as error:
            logging.getLogger(__name__).warning("A reference photo is left out: %s", error)
            continue
        found.append((distinct(path.stem if stems.count(path.stem) == 1 else path.name), image))
    return found


def resized(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """An image (H, W, 3), uint8 or float in [0, 1], in another size (width, height), by Lanczos; same type."""
    size = (size, size) if isinstance(size, int) else size
    if size == image.shape[1::-1]:
        return image
    if image.dtype == np.uint8:
        return np.asarray(Image.fromarray(image).resize(size, Image.LANCZOS))
    # Channel by channel: Pillow resizes float images of one channel only, and 8 bit would round twice.
    channels = [Image.fromarray(image[..., c]).resize(size, Image.LANCZOS) for c in range(3)]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0, 1)


def reduced(image: np.ndarray, side: int | None) -> np.ndarray:
    """An image whose longer side is at most `side`; None keeps it."""
    height, width = image.shape[:2]
    return resized(image, CropSpec(None, max_side=side).size_of(width, height))
