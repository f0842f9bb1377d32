"""Camera RAW photos as a source of InScene images: the paper's real test set, real degradation without ground truth.

Every record holds the development settings, the EXIF data, and whether the image is motion-blurred.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from face2scene.data.building.build import BAD_INPUT, BuildError, BuildResult, RecordCandidate, Rejection, largest
from face2scene.data.building.filters import HasFace
from face2scene.data.building.names import distinct
from face2scene.data.building.photo_filtering import Candidate, copies
from face2scene.data.building.sharpness import directional_blur
from face2scene.data.sources.photo_folder import Photos
from face2scene.faces.detect import Detector
from face2scene.image_io.arrays import ImageError, list_images, read_image
from face2scene.image_io.photos import RAW_SUFFIXES
from face2scene.image_io.raw import Development, RawError, develop_apart


@dataclass
class MotionBlurFilter:
    """A stage that leaves nothing out: it records whether an image is motion-blurred. All thresholds are ours."""

    listed: Sequence[str] | None = None  # file patterns of motion-blurred images; None measures the blur instead
    _: KW_ONLY
    ratio: float = 1.7  # smallest ratio of the largest to the smallest blur over directions
    pixels: float = 1.5  # smallest blur along the motion, in pixels of the photo
    min_exposure_s: float = 0.0  # shorter exposures never count as motion-blurred by measurement
    name: ClassVar = "motion"
    thresholds = property(lambda self: {"blur_ratio": self.ratio})

    def __call__(self, candidate: Candidate) -> str:
        if self.listed is not None:
            flag = any(fnmatch(candidate.name, pattern) for pattern in self.listed)
            candidate.notes["motion_blur"] = {"flag": flag, "by": "list"}
            return ""
        ratio, along, degrees = directional_blur(candidate.face_pixels)
        exposure = (candidate.notes.get("exif") or {}).get("exposure_s")
        long = exposure is None or exposure >= self.min_exposure_s
        candidate.measured["blur_ratio"] = ratio
        candidate.notes["motion_blur"] = {
            "flag": bool(ratio >= self.ratio and along >= self.pixels and long),
            "by": "edges",
            **{"ratio": round(ratio, 3), "pixels": round(along, 3), "degrees": round(degrees, 1)},
        }
        return ""


class RawPhotos(Photos):
    """The RAW files of a folder, no others. One item is one file; images are whole photos unless `size` is given.

    Args:
        where, detector, name: see `Photos`; the person is the name of the sub-folder.
        develop: options of `raw.Development`.
        gallery: folder with a sub-folder of reference photos per person. A file in no sub-folder gets the person with
            the most similar photo; every image of a person in the gallery gets that person's photos as references.
        match_threshold: lowest identity cosine of a match; None is the detector's `same_threshold`.
        motion_blur: options of `MotionBlurFilter`.
        references: photos of the gallery per image at most.
        options: see `Photos` and `PhotoSource`.
    """

    def __init__(
        self,
        where: str | Path,
        detector: Detector,
        *,
        name: str,
        develop: dict[str, Any] | None = None,
        gallery: str | Path | None = None,
        match_threshold: float | None = None,
        motion_blur: dict[str, Any] | None = None,
        references: int = 4,
        size: int | None = None,
        split: str | None = "test",
        **options: Any,
    ):
        if options.get("stages") is None:
            options["stages"] = [HasFace(), MotionBlurFilter(**(motion_blur or {}))]
        super().__init__(where, detector, name=name, size=size, split=split, **options)
        self.develop = Development(**(develop or {}))
        self.gallery = Path(gallery) if gallery else None
        self.match_threshold = detector.same_threshold if match_threshold is None else match_threshold
        self.references = references
        self._unreadable: list[Rejection] = []  # photos of the gallery

    @cached_property
    def _people(self) -> dict[str, list[tuple[Path, np.ndarray]]]:
        if self.gallery is None:
            return {}
        if not self.gallery.is_dir():
            raise BuildError(f"There is no folder {self.gallery} with reference photos (option gallery).")
        people: dict[str, list[tuple[Path, np.ndarray]]] = {}
        for path in list_images(self.gallery):
            file = path.relative_to(self.gallery)
            try:
                face = largest(self.context.detector.find(read_image(path))) if len(file.parts) > 1 else None
            except (ImageError, OSError) as error:
                reason = str(error).replace(str(path), file.as_posix())
                self._unreadable.append(Rejection(f"gallery/{file.as_posix()}", f"unreadable: {reason}", BAD_INPUT))
                continue
            if face is not None and face.identity is not None:
                people.setdefault(file.parts[0], []).append((path, face.identity))
        if not people:
            raise BuildError(f"No photo in the sub-folders of {self.gallery} shows a face (option gallery).")
        return people

    def listing(self) -> Any:
        """The files and their sizes, of the gallery too."""
        photos = list_images(self.gallery) if self.gallery and self.gallery.is_dir() else []
        return [super().listing(), [[p.relative_to(self.gallery).as_posix(), p.stat().st_size] for p in photos]]

    def read(self, path: Path) -> tuple[np.ndarray, dict[str, Any]]:
        try:
            raw = develop_apart(path, self.develop)
        except RawError as error:
            raise ImageError(str(error)) from error
        return raw.image, {"name": "raw", "develop": self.develop.as_record(), "exif": dict(raw.facts)}

    def make(self, item: str) -> BuildResult:
        if Path(item).suffix.lower() not in RAW_SUFFIXES:
            reason = f"not a RAW file: the suffix is none of {' '.join(RAW_SUFFIXES)}"
            result = BuildResult(rejected=[Rejection(f"{self.name}/{item}", reason, "suffix")])
        else:
            result = super().make(item)
        if not self._people:
            return result
        bad = self._unreadable if item == self.items()[0] else []  # once, with the first item
        candidates = [self._with_references(one, item) for one in result.candidates]
        return BuildResult(candidates, [*result.rejected, *bad])

    def _with_references(self, candidate: RecordCandidate, item: str) -> RecordCandidate:
        """The candidate with its person and that person's photos, the most similar first."""
        folder, vector = item.split("/")[0] if "/" in item else None, candidate.vector
        person, similarity = folder if folder in self._people else None, None
        if vector is not None:
            cosines = {name: max(float(vector @ v) for _, v in photos) for name, photos in self._people.items()}
            best = max(cosines, key=lambda name: cosines[name])
            if person is None and cosines[best] >= self.match_threshold:
                person = best
            similarity = cosines.get(person)
        if person is None:
            return candidate
        photos = self._people[person]
        if vector is not None:
            photos = sorted(photos, key=lambda pair: -float(vector @ pair[1]))
        return replace(
            candidate,
            identity=f"{self.name}_{distinct(person)}",
            references=copies([path for path, _ in photos[: self.references]], self.reference_size),
            similarity=similarity,
            generator={**candidate.generator, "person_by": "folder" if person == folder else "gallery"},
        )
