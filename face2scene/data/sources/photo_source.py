"""The base of all sources of photos: a photo is read, filtered stage by stage, and cropped around the largest face."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from face2scene.data.building.build import BAD_INPUT, RecordCandidate, Rejection
from face2scene.data.building.filter_report import thumbnail
from face2scene.data.building.filters import FaceSize, HasFace, Resolution
from face2scene.data.building.names import printable, safe
from face2scene.data.building.photo_filtering import Candidate, CropSpec, FilterStage, StageContext, reduced
from face2scene.data.building.prompts import plain_prompt, shot_of
from face2scene.faces.detect import Detector
from face2scene.image_io.arrays import SUFFIXES, ImageError
from face2scene.image_io.metadata import OPENED
from face2scene.image_io.photos import HEIF_SUFFIXES, RAW_SUFFIXES, read_photo

_MAX_BYTES = 500_000_000  # larger files are quarantined unread


@dataclass(frozen=True)
class PhotoInfo:
    """What is known of a photo besides its pixels; None is unknown."""

    file: str  # its name in messages and records
    identity: str | None = None
    split: str | None = None
    prompt: str | None = None
    licence: str | None = None
    size: tuple[int, int] | None = None  # width and height in the metadata


class PhotoSource:
    """Reads, filters and crops photos; subclasses list them.

    Args:
        detector: finds faces and computes identity vectors.
        name: of the source; images are called `name_FILE`.
        size: side of the images in pixels; smaller photos are left out. None keeps whole photos.
        licence: recorded with every image that has none of its own.
        max_side: whole photos are reduced to this longest side.
        reference_size: longest side of the images as references of others; None takes the images themselves.
        stages: the filter, in order; None is a minimum: large enough, a face, a face large enough.
        face_share: side of the face over side of the image, where the photo allows it (our setting: 1/3).
        min_face: smallest face in the finished image, in pixels (our setting), where `stages` is None.
        strict_suffix: quarantine files whose content is another format than their suffix says.
        metric, device: see `StageContext`.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        name: str,
        size: int | None,
        licence: str,
        max_side: int | None = None,
        reference_size: int | None = None,
        stages: Sequence[FilterStage] | None = None,
        face_share: float = 1 / 3,
        min_face: int = 32,
        strict_suffix: bool = False,
        metric: Any = None,
        device: Any = "cpu",
    ):
        if stages is None:
            stages = [Resolution(size or 1), HasFace(), FaceSize(min_face)]
        self.context, self.stages = StageContext(detector, metric, device), list(stages)
        self.crop, self.reference_size = CropSpec(size, face_share, max_side), reference_size
        self.name, self.licence, self.strict_suffix = safe(name), licence, strict_suffix
        self._prepared = False

    def prepare(self) -> None:
        """Call every stage's `prepare`, once, before any work."""
        for stage in self.stages if not self._prepared else ():
            getattr(stage, "prepare", lambda context: None)(self.context)
        self._prepared = True

    def process(self, path: Path, name: str, info: PhotoInfo) -> RecordCandidate | Rejection:
        """The image of a photo, or why there is none."""
        shown = f"{self.name}/{printable(info.file)}"
        if printable(info.file) != info.file:
            return Rejection(shown, "the name is not UTF-8: rename the file", BAD_INPUT)
        if Path(info.file).suffix.lower() not in SUFFIXES:
            return Rejection(shown, f"not an image file: the suffix is none of {' '.join(SUFFIXES)}", "suffix")
        try:
            if path.stat().st_size > _MAX_BYTES:
                return Rejection(shown, f"too many bytes: more than {_MAX_BYTES / 1e6:g} million", BAD_INPUT)
            if self.strict_suffix and (reason := _mislabelled(path)):
                return Rejection(shown, reason, BAD_INPUT)
            photo, notes = self.read(path)
        except (ImageError, OSError) as error:
            return Rejection(shown, f"unreadable: {str(error).replace(str(path), info.file)}", BAD_INPUT)
        if not np.isfinite(photo).all():
            return Rejection(shown, "unreadable: the image holds NaN or infinite values", BAD_INPUT)
        height, width = photo.shape[:2]
        if info.size and info.size != (width, height):
            claimed = f"{info.size[0]} x {info.size[1]}"
            return Rejection(shown, f"not what the metadata say: {width} x {height} pixels, not {claimed}", BAD_INPUT)
        if self.crop.side and min(height, width) < self.crop.side:  # whatever the stages let pass
            reason = f"too small: {width} x {height} pixels, data.size is {self.crop.side}"
            return Rejection(shown, reason, "resolution", {"side": min(height, width)}, thumbnail(photo))
        candidate = Candidate(info.file, photo, self.crop, notes=notes)
        for stage in self.stages:
            if reason := stage(candidate):
                return Rejection(shown, reason, stage.name, candidate.measured, thumbnail(photo))
        return self._accepted(candidate, name, info)

    def read(self, path: Path) -> tuple[np.ndarray, dict[str, Any]]:
        """The photo, float32 (H, W, 3) in [0, 1], and what its record says of how it was read."""
        return read_photo(path).on_white(), {"name": "photo"}

    def _accepted(self, candidate: Candidate, name: str, info: PhotoInfo) -> RecordCandidate:
        height, width = candidate.photo.shape[:2]
        x0, y0, x1, y1 = box = candidate.box
        size = candidate.image.shape[1], candidate.image.shape[0]
        face, factor = candidate.face, candidate.factor
        face_box = tuple(((np.array(face.box) - [x0, y0, x0, y0]) * factor).clip(0, size * 2).tolist())
        points = face.landmarks_68
        if points is not None:
            points = (points + 0.5 - [x0, y0]) * factor - 0.5  # pixel centres to edges and back
        shot = shot_of(face_box, size[1])
        return RecordCandidate(
            name=name,
            image=candidate.image,
            reference=reduced(candidate.photo[y0:y1, x0:x1], self.reference_size) if self.reference_size else None,
            split=info.split,
            identity=info.identity,
            prompt=info.prompt or candidate.prompt or plain_prompt(shot),
            shot=shot,
            face_box=face_box,
            landmarks_68=points,
            vector=face.identity,
            source=self.name,
            licence=info.licence or self.licence,
            generator={**candidate.notes, "file": info.file, "photo_size": [width, height], "crop": list(box)},
            measured=candidate.measured,
        )


def _mislabelled(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in (*RAW_SUFFIXES, *HEIF_SUFFIXES):
        return ""
    try:
        with Image.open(path, formats=OPENED) as image:
            found = image.format
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""  # unreadable: the reader gives the better message
    Image.init()
    expected = Image.EXTENSION.get(suffix)
    return "" if found == expected or (found, expected) == ("MPO", "JPEG") else f"mislabelled: a {found} named {suffix}"
