"""From a photo to an image of the set: read, judged stage by stage, cut around the largest face.

Every source of real photos works this way; they differ in where the files come from.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from face2scene.common.types import Box, Face
from face2scene.data.building.build import BAD_INPUT, RecordCandidate, Rejection
from face2scene.data.building.filter_report import thumbnail
from face2scene.data.building.names import printable, safe
from face2scene.data.building.prompts import plain_prompt, shot_of
from face2scene.faces.align import square_crop_box
from face2scene.faces.detect import Detector
from face2scene.image_io.arrays import SUFFIXES, ImageError, read_image
from face2scene.image_io.photos import HEIF_SUFFIXES, RAW_SUFFIXES, read_photo

Scorer = Callable[[Any], Any]
"""An image metric: f(images (B, 3, H, W) in [0, 1]) -> (B,)."""


@dataclass(frozen=True)
class StageContext:
    """What stages may use.

    Args:
        detector: finds and describes faces.
        metric: gives the scorer of a name, or raises RuntimeError with the command that gets what is missing.
        device: where scorers run.
    """

    detector: Detector
    metric: Callable[[str], Scorer] | None = None
    device: Any = "cpu"


@dataclass
class Candidate:
    """A photo on its way through the stages; a stage may add what it finds out."""

    name: str
    photo: np.ndarray  # float32 (H, W, 3) in [0, 1]
    cut: "CropSpec"
    face: Face | None = None
    prompt: str | None = None
    measured: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)  # go into the record's `generator`
    _image: np.ndarray | None = None

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The part of the photo that becomes the image."""
        return self.cut.box(self.face, self.photo.shape[:2])

    @property
    def factor(self) -> float:
        """How much larger the image is than its part of the photo."""
        x0, y0, x1, y1 = self.box
        return self.cut.factor(x1 - x0, y1 - y0)

    @property
    def image(self) -> np.ndarray:
        """What goes into the set if nothing speaks against it."""
        if self._image is None:
            x0, y0, x1, y1 = self.box
            size = self.cut.size_of(x1 - x0, y1 - y0)
            part = self.photo[y0:y1, x0:x1]
            same = size == (x1 - x0, y1 - y0) and self.cut.side is None
            self._image = part if same else resized(part, size)
        return self._image


class FilterStage(Protocol):
    """One look at a photo. Any class with these three can stand in the list `stages` of a configuration.

    It may also have `prepare(tools)`, which is called before any work and raises if something is missing.
    """

    name: str
    thresholds: Mapping[str, Any]  # measure to number, for the report

    def __call__(self, candidate: Candidate) -> str:
        """The reason to leave the photo out, `kind: particulars`, or nothing."""
        ...


@dataclass(frozen=True)
class CropSpec:
    """How a photo is cut: a square around the face with scene around it, or not at all.

    Args:
        side: of the square image in pixels; None keeps the whole photo.
        max_side: a whole photo is reduced to this longest side.
        face_share: side of the face over side of the square, where the photo allows it (our setting: 1/3).
    """

    side: int | None
    face_share: float = 1 / 3
    max_side: int | None = None

    def box(self, face: Face, size: tuple[int, int]) -> tuple[int, int, int, int]:
        if self.side is None:
            return (0, 0, size[1], size[0])
        return face_crop(face.box, size, self.face_share, self.side)

    def factor(self, width: int, height: int) -> float:
        if self.side is not None:
            return self.side / width
        return min(1.0, (self.max_side or max(width, height)) / max(width, height))

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        if self.side is not None:
            return (self.side, self.side)
        factor = self.factor(width, height)
        return (max(1, round(width * factor)), max(1, round(height * factor)))


@dataclass(frozen=True)
class Label:
    """What is known of a photo besides its pixels; None is unknown."""

    file: str  # as it is named to the reader
    identity: str | None = None
    split: str | None = None
    prompt: str | None = None
    licence: str | None = None
    references: Sequence[tuple[str, np.ndarray]] = ()
    size: tuple[int, int] | None = None  # width and height that the metadata claim


class Photographs:
    """Reads, judges and cuts photos; the part that all sources of photos share.

    Args:
        tools, stages, cut: see there.
        name: of the source.
        reference_size: longest side of the images as references of others; None takes the images.
        licence: recorded with every image that has none of its own.
        strict_suffix: a file whose content is another format than its suffix says is quarantined.
        max_bytes: larger files are quarantined unread.
    """

    def __init__(
        self,
        tools: StageContext,
        stages: Sequence[FilterStage],
        cut: CropSpec,
        *,
        name: str,
        reference_size: int | None = None,
        licence: str,
        strict_suffix: bool = False,
        max_bytes: int = 500_000_000,
    ):
        self.tools, self.stages, self.cut = tools, list(stages), cut
        self.name, self.reference_size, self.licence = name, reference_size, licence
        self.strict_suffix, self.max_bytes = strict_suffix, max_bytes
        self._prepared = False

    def prepare(self) -> None:
        """Let every stage look for what it needs, before any work."""
        for stage in self.stages if not self._prepared else ():
            getattr(stage, "prepare", lambda tools: None)(self.tools)
        self._prepared = True

    def draft(self, path: Path, name: str, label: Label) -> RecordCandidate | Rejection:
        """The image of a photo, or why there is none."""
        shown = f"{self.name}/{printable(label.file)}"
        if printable(label.file) != label.file:
            return Rejection(shown, "the name is not UTF-8: rename the file", BAD_INPUT)
        if Path(label.file).suffix.lower() not in SUFFIXES:
            return Rejection(shown, f"not an image file: the suffix is none of {' '.join(SUFFIXES)}", "suffix")
        try:
            if path.stat().st_size > self.max_bytes:
                return Rejection(shown, f"too many bytes: more than {self.max_bytes / 1e6:g} million", BAD_INPUT)
            if self.strict_suffix and (said := _mislabelled(path)):
                return Rejection(shown, said, BAD_INPUT)
            photo, notes = self.read(path)
        except (ImageError, OSError) as error:
            said = str(error).replace(str(path), label.file)
            return Rejection(shown, f"unreadable: {said}", BAD_INPUT)
        height, width = photo.shape[:2]
        if label.size and label.size != (width, height):
            claimed = f"{label.size[0]} x {label.size[1]}"
            return Rejection(shown, f"not what the metadata say: {width} x {height} pixels, not {claimed}", BAD_INPUT)
        if self.cut.side and min(height, width) < self.cut.side:  # whatever the stages would let pass
            said = f"too small: {width} x {height} pixels, data.size is {self.cut.side}"
            return Rejection(shown, said, "resolution", {"side": min(height, width)}, thumbnail(photo))
        candidate = Candidate(label.file, photo, self.cut, notes=notes)
        for stage in self.stages:
            if reason := stage(candidate):
                return Rejection(shown, reason, stage.name, candidate.measured, thumbnail(photo))
        return self._drafted(candidate, name, label)

    def read(self, path: Path) -> tuple[np.ndarray, dict[str, Any]]:
        """The photo, float32 (H, W, 3) in [0, 1], and what its record says of how it was read."""
        return read_photo(path).on_white(), {"name": "photo"}

    def _drafted(self, candidate: Candidate, name: str, label: Label) -> RecordCandidate:
        height, width = candidate.photo.shape[:2]
        x0, y0, x1, y1 = box = candidate.box
        size = candidate.image.shape[1], candidate.image.shape[0]
        face, factor = candidate.face, candidate.factor
        moved = tuple(
            min(max((value - origin) * factor, 0), limit)
            for value, origin, limit in zip(face.box, (x0, y0, x0, y0), size * 2, strict=True)
        )
        points = face.landmarks_68
        if points is not None:
            points = (points + 0.5 - [x0, y0]) * factor - 0.5  # centres of pixels to edges and back
        shot = shot_of(moved, size[1])
        reference = reduced(candidate.photo[y0:y1, x0:x1], self.reference_size) if self.reference_size else None
        about = {**candidate.notes, "file": label.file, "photo_size": [width, height], "crop": list(box)}
        return RecordCandidate(
            name=name,
            image=candidate.image,
            reference=reference,
            split=label.split,
            identity=label.identity,
            prompt=label.prompt or candidate.prompt or plain_prompt(shot),
            shot=shot,
            face_box=moved,
            landmarks_68=points,
            vector=face.identity,
            source=self.name,
            licence=label.licence or self.licence,
            generator=about,
            measured=candidate.measured,
            references=label.references,
        )


def copies(photos: Sequence[Path], side: int | None) -> list[tuple[str, np.ndarray]]:
    """Reference photos of one person as a draft carries them: a name that no other of them has, and the image."""
    stems = [path.stem for path in photos]
    return [
        (safe(path.stem if stems.count(path.stem) == 1 else path.name), reduced(read_image(path), side))
        for path in photos
    ]


def face_crop(face_box: Box, image_size: tuple[int, int], face_share: float, minimum: int) -> tuple[int, ...]:
    """The whole-pixel square in which a face takes `face_share` of the side, at least `minimum`.

    The square is made smaller where the image is; `image_size` is (height, width).
    """
    return square_crop_box(face_box, image_size, margin=(1 / face_share - 1) / 2, minimum=minimum)


def resized(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """An image (H, W, 3), uint8 or float in [0, 1], in another size (width, height), by Lanczos; same type."""
    size = (size, size) if isinstance(size, int) else size
    if image.dtype == np.uint8:
        return np.asarray(Image.fromarray(image).resize(size, Image.LANCZOS))
    # Float channels one by one: Pillow resizes 8-bit colour or float grey, and 8 bit would round twice.
    channels = [Image.fromarray(image[..., c]).resize(size, Image.LANCZOS) for c in range(3)]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0, 1)


def reduced(image: np.ndarray, side: int | None) -> np.ndarray:
    """An image whose longer side is at most `side`; None leaves it."""
    height, width = image.shape[:2]
    size = CropSpec(None, max_side=side).size_of(width, height)
    return image if size == (width, height) else resized(image, size)


def _mislabelled(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in (*RAW_SUFFIXES, *HEIF_SUFFIXES):
        return ""
    try:
        with Image.open(path) as image:
            found = image.format
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""  # unreadable: the reader has the better words
    Image.init()
    said = Image.EXTENSION.get(suffix)
    return "" if found == said or (found, said) == ("MPO", "JPEG") else f"mislabelled: a {found} named {suffix}"
