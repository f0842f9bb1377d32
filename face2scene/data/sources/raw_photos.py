"""Camera RAW files as a build source: the paper's real test set, real corruption without a ground truth.

Every record holds how the file was developed and what the camera wrote down, and whether the image is motion-blurred.
"""

from collections.abc import Sequence
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from face2scene.data.building.build import BuildError, BuildResult, RecordCandidate, Rejection, largest
from face2scene.data.building.filters import HasFace
from face2scene.data.building.names import safe
from face2scene.data.building.photo_filtering import Candidate, Photographs, copies
from face2scene.data.building.sharpness import directional_blur
from face2scene.data.sources.photo_folder import Photos
from face2scene.faces.detect import Detector
from face2scene.image_io.arrays import ImageError, list_images, read_image
from face2scene.image_io.photos import RAW_SUFFIXES
from face2scene.image_io.raw import Development, RawError, develop_apart


class _Developing(Photographs):
    # Reads RAW files by their recipe; other images as they are.
    develop: Development = Development()

    def read(self, path: Path) -> tuple[np.ndarray, dict[str, Any]]:
        if path.suffix.lower() not in RAW_SUFFIXES:
            return super().read(path)
        try:
            made = develop_apart(path, self.develop)
        except RawError as error:
            raise ImageError(str(error)) from error
        return made.image, {"name": "raw", "develop": self.develop.as_record(), "exif": dict(made.facts)}


class MotionBlurFilter:
    """A stage that leaves nothing out: it notes whether an image is motion-blurred.

    Args:
        listed: file patterns that are; None measures instead.
        ratio: blur along over blur across, from which edges say motion (ours).
        pixels: and the blur along, in pixels of the finished image's face.
        min_exposure_s: shorter exposures are never called motion-blurred by measurement.
    """

    name = "motion"

    def __init__(
        self,
        listed: Sequence[str] | None = None,
        *,
        ratio: float = 1.7,
        pixels: float = 1.5,
        min_exposure_s: float = 0.0,
    ):
        self.listed, self.ratio, self.pixels, self.min_exposure_s = listed, ratio, pixels, min_exposure_s
        self.thresholds = {"blur_ratio": ratio}

    def __call__(self, candidate: Candidate) -> str:
        if self.listed is not None:
            said = any(fnmatch(candidate.name, pattern) for pattern in self.listed)
            candidate.notes["motion_blur"] = {"flag": said, "by": "list"}
            return ""
        height, width = candidate.photo.shape[:2]
        x0, y0, x1, y1 = candidate.face.box
        face = candidate.photo[max(int(y0), 0) : min(int(y1), height), max(int(x0), 0) : min(int(x1), width)]
        ratio, along, degrees = directional_blur(face)
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
    """The RAW files of a folder. One item is one file; images are whole photos unless `size` says otherwise.

    Args:
        where, detector, name: see `Photos`; the person is the name of the sub-folder.
        develop: options of `raw.Development`.
        gallery: folder with a sub-folder of reference photos per person. A file that lies in no sub-folder of its own
            gets the person whose photos are nearest, and every image gets that person's photos as references.
        match_threshold: lowest cosine to be matched; None is the detector's `same_threshold`.
        motion_blur: see `MotionBlurFilter`; options of it.
        references: photos of the gallery per image at most.
        raw_only: other images in the folder are left out.
        options: see `Photos` and `PhotoSource`.
    """

    _photographs = _Developing

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
        raw_only: bool = True,
        size: int | None = None,
        split: str | None = "test",
        **options: Any,
    ):
        stages = options.pop("stages", None)
        if stages is None:
            stages = [HasFace(), MotionBlurFilter(**(motion_blur or {}))]
        super().__init__(where, detector, name=name, size=size, split=split, stages=stages, **options)
        self.photographs.develop = Development(**(develop or {}))
        self.detector = detector
        self.gallery = Path(gallery) if gallery else None
        self.match_threshold = detector.same_threshold if match_threshold is None else match_threshold
        self.references, self.raw_only = references, raw_only

    @cached_property
    def _people(self) -> dict[str, list[tuple[Path, np.ndarray]]]:
        if self.gallery is None:
            return {}
        if not self.gallery.is_dir():
            raise BuildError(f"There is no folder {self.gallery} with reference photos (option gallery).")
        people: dict[str, list[tuple[Path, np.ndarray]]] = {}
        for folder in sorted(path for path in self.gallery.iterdir() if path.is_dir()):
            for path in list_images(folder):
                face = largest(self.detector.find(read_image(path)))
                if face is not None and face.identity is not None:
                    people.setdefault(folder.name, []).append((path, face.identity))
        if not people:
            raise BuildError(f"No photo in the sub-folders of {self.gallery} shows a face (option gallery).")
        return people

    def listing(self) -> Any:
        """The files and their sizes, of the gallery too."""
        photos = (
            [[p.relative_to(self.gallery).as_posix(), p.stat().st_size] for p in list_images(self.gallery)]
            if (self.gallery and self.gallery.is_dir())
            else []
        )
        return [super().listing(), photos]

    def make(self, item: str) -> BuildResult:
        if self.raw_only and Path(item).suffix.lower() not in RAW_SUFFIXES:
            said = f"not a RAW file: the suffix is none of {' '.join(RAW_SUFFIXES)}"
            return BuildResult(rejected=[Rejection(f"{self.name}/{item}", said, "suffix")])
        made = super().make(item)
        return BuildResult([self._known(draft, item) for draft in made.drafts], made.rejected) if self._people else made

    def _known(self, draft: RecordCandidate, item: str) -> RecordCandidate:
        # Whose image it is, and the person's photos.
        folder = item.split("/")[0] if "/" in item else None
        person, near = folder if folder in self._people else None, None
        if draft.vector is not None:
            cosines = {
                name: max(float(draft.vector @ vector) for _, vector in photos) for name, photos in self._people.items()
            }
            best = max(cosines, key=lambda name: cosines[name])
            if person is None and cosines[best] >= self.match_threshold:
                person = best
            near = cosines.get(person)
        if person is None:
            return draft
        photos = self._people[person]
        if draft.vector is not None:
            photos = sorted(photos, key=lambda pair: -float(draft.vector @ pair[1]))
        chosen = [path for path, _ in photos[: self.references]]
        copied = copies(chosen, self.photographs.reference_size)
        return RecordCandidate(
            **{
                **vars(draft),
                "identity": f"{self.name}_{safe(person)}",
                "references": copied,
                "similarity": near,
                "generator": {**draft.generator, "person_by": "folder" if person == folder else "gallery"},
            }
        )
