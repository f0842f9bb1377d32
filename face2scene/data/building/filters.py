"""The stages of the real-photo filter (supplement, figure 3): 1 face detection, 2 face quality, 3 image quality.

No threshold of the paper is public; all numbers are settings and ours. The configuration lists the stages; any
`photo_filtering.FilterStage` can be one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from face2scene.common.types import Box
from face2scene.data.building.build import BuildError, largest
from face2scene.data.building.photo_filtering import Candidate, Scorer, StageContext
from face2scene.data.building.sharpness import edge_blur, laplacian_variance
from face2scene.image_io.arrays import to_tensor

_NOT_THE_IMAGE = (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", MemoryError))  # the latter since torch 2.8


@dataclass
class Resolution:
    """Stage 1: enough pixels, and not too elongated."""

    min_side: int  # smallest shorter side in pixels
    max_aspect: float | None = None  # largest ratio of longer to shorter side; None takes all
    name: ClassVar = "resolution"
    thresholds = property(lambda self: {"side": self.min_side})

    def __call__(self, candidate: Candidate) -> str:
        height, width = candidate.photo.shape[:2]
        candidate.measured["side"] = min(height, width)
        if min(height, width) < self.min_side:
            return f"too small: {width} x {height} pixels, data.size is {self.min_side}"
        if self.max_aspect and max(height, width) > self.max_aspect * min(height, width):
            return f"too long: {width} x {height} pixels"
        return ""


@dataclass
class HasFace:
    """Stage 1: a face with a high detection score; the largest is taken."""

    min_score: float = 0.0  # lowest score, above the detector's own threshold
    max_faces: int | None = None  # photos with more are left out; None takes all
    alone: float | None = None  # largest size of the second largest face, as a share of the largest; None takes all
    name: ClassVar = "face"
    thresholds = property(lambda self: {"face_score": self.min_score} if self.min_score else {})

    def prepare(self, context: StageContext) -> None:
        self.detector = context.detector

    def __call__(self, candidate: Candidate) -> str:
        faces = self.detector.find(candidate.photo)
        candidate.face = largest(faces)
        if candidate.face is None:
            return "no face found"
        candidate.measured["face_score"] = candidate.face.score
        candidate.measured["faces"] = len(faces)
        if candidate.face.score < self.min_score:
            return f"no sure face: score {candidate.face.score:.2f} is under {self.min_score}"
        if self.max_faces and len(faces) > self.max_faces:
            return f"too many faces: {len(faces)}"
        sizes = sorted((face.size for face in faces), reverse=True)
        if self.alone is not None and len(sizes) > 1 and sizes[1] > self.alone * sizes[0]:
            return f"not one person's photo: the second face has {sizes[1] / sizes[0]:.2f} of the first's size"
        return ""


@dataclass
class FaceSize:
    """Stage 2: the face is large enough."""

    min_pixels: int = 32  # longer side of the face in the finished image
    min_photo_pixels: int = 0  # longer side in the photo, so that faces are not enlarged much
    name: ClassVar = "face size"
    thresholds = property(lambda self: {"face_pixels": self.min_pixels})

    def __call__(self, candidate: Candidate) -> str:
        size = candidate.face.size * candidate.factor
        candidate.measured["face_pixels"] = size
        if size < self.min_pixels:
            return f"face too small: {size:.0f} pixels, needed are {self.min_pixels}"
        if candidate.face.size < self.min_photo_pixels:
            return f"face too small in the photo: {candidate.face.size:.0f} pixels, needed are {self.min_photo_pixels}"
        return ""


@dataclass
class Sharp:
    """Stage 2: the face is not blurred, see `laplacian_variance`."""

    min_variance: float  # of the Laplacian of the luma (0 to 255)
    side: int = 160  # faces are reduced to this many pixels first
    name: ClassVar = "sharpness"
    thresholds = property(lambda self: {"laplacian": self.min_variance})

    def __call__(self, candidate: Candidate) -> str:
        value = laplacian_variance(candidate.face_pixels, self.side)
        candidate.measured["laplacian"] = value
        blurred = value < self.min_variance
        return f"blurred face: Laplacian {value:.1f} is under {self.min_variance:g}" if blurred else ""


@dataclass
class InFocus:
    """Stage 2: the sharpest edges of the face are sharp, so that noise does not hide defocus; see `edge_blur`."""

    max_blur: float  # standard deviation of the edges' blur as a share of the face's longer side
    name: ClassVar = "focus"
    thresholds = property(lambda self: {"edge_blur": self.max_blur})

    def __call__(self, candidate: Candidate) -> str:
        value = min(edge_blur(candidate.face_pixels) / candidate.face.size, 1.0)
        candidate.measured["edge_blur"] = value
        blurred = value > self.max_blur
        return f"out of focus: edges of {value:.4f} of the face, over {self.max_blur:g}" if blurred else ""


class Quality:
    """Stage 3: image quality metrics on the finished image, each with its own threshold.

    Args:
        metrics: name to `{min: ...}`, `{max: ...}` or None, which only measures (for `data.selection`); False removes
            an inherited one. Names are those of face2scene/eval/metrics/registry.py (musiq, clipiqa, maniqa, niqe,
            ...), or pyiqa's after `pyiqa:`.
    """

    name = "quality"

    def __init__(self, metrics: Mapping[str, Mapping[str, float] | bool | None]):
        self.limits = {name: dict(limits or {}) for name, limits in metrics.items() if limits is not False}
        if wrong := {key for limits in self.limits.values() for key in limits} - {"min", "max"}:
            raise ValueError(f"Quality: a metric has min, max or nothing, not {sorted(wrong)}.")
        self.thresholds = {name: list(limits.values()) for name, limits in self.limits.items()}
        self._scorers: dict[str, Scorer] = {}

    def prepare(self, context: StageContext) -> None:
        missing = []
        for name in self.limits:
            try:
                if context.metric is None:
                    raise RuntimeError("no metrics are given")
                self._scorers[name] = context.metric(name)
            except (RuntimeError, ValueError, ModuleNotFoundError) as error:
                missing.append(f"{name}: {error}")
        if missing:
            raise BuildError(
                "The quality stage cannot measure\n  " + "\n  ".join(missing) + "\nGet these, or name metrics that are "
                "here in the stage's `metrics` and in data.selection.measures (niqe and pyiqa:piqe need no network)."
            )
        self.device = context.device

    def __call__(self, candidate: Candidate) -> str:
        image = to_tensor(candidate.image)[None].to(self.device)
        for name, scorer in self._scorers.items():
            try:
                value = float(np.asarray(scorer(image).cpu()).reshape(-1)[0])
            except _NOT_THE_IMAGE:
                raise
            except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
                return f"no quality: {name} cannot measure it ({type(error).__name__}: {error})"
            if not np.isfinite(value):
                return f"no quality: {name} is {value}"
            candidate.measured[name] = value
            limits = self.limits[name]
            if value < limits.get("min", value) or value > limits.get("max", value):
                wanted = ", ".join(f"{key} {limit:g}" for key, limit in limits.items())
                return f"low quality by {name}: {value:.3f}, wanted {wanted}"
        return ""


@dataclass
class Persons:
    """A person detector as a stage: the person with the largest face is large enough."""

    find: Callable[[np.ndarray], Sequence[Box]]  # photo (H, W, 3) in [0, 1] to person boxes, such as a wrapped YOLO
    min_share: float = 0.0  # smallest share of the photo's area that the person takes
    name: ClassVar = "person"
    thresholds = property(lambda self: {"person_share": self.min_share})

    def __call__(self, candidate: Candidate) -> str:
        x0, y0, x1, y1 = candidate.face.box
        middle = (x0 + x1) / 2, (y0 + y1) / 2
        around = [b for b in self.find(candidate.photo) if b[0] <= middle[0] <= b[2] and b[1] <= middle[1] <= b[3]]
        if not around:
            return "no person around the face"
        height, width = candidate.photo.shape[:2]
        share = max((b[2] - b[0]) * (b[3] - b[1]) for b in around) / (width * height)
        candidate.measured["person_share"] = share
        small = share < self.min_share
        return f"person too small: {share:.3f} of the photo, under {self.min_share:g}" if small else ""


@dataclass
class Tagged:
    """A tagger as a stage: its tags become the prompt. It leaves nothing out."""

    tags: Callable[[np.ndarray], Sequence[str]]  # image (H, W, 3) in [0, 1] to words, most certain first, such as RAM
    max_tags: int = 12
    name: ClassVar = "tags"
    thresholds: ClassVar = {}

    def __call__(self, candidate: Candidate) -> str:
        words = list(self.tags(candidate.image))[: self.max_tags]
        candidate.prompt = f"A photo of a person, {', '.join(words)}." if words else None
        return ""


def thresholds(stages: Sequence[Any]) -> dict[str, Any]:
    """All thresholds of some stages, by measure."""
    return {name: value for stage in stages for name, value in stage.thresholds.items()}
