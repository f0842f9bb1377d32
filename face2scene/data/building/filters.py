"""The stages of the real-photo filter (supplement, figure 3): 1 face detection, 2 face quality, 3 image quality.

No threshold of the paper is public; all numbers are settings and ours. The configuration lists the stages; any
`photo_filtering.FilterStage` can be one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from face2scene.common.types import Box
from face2scene.data.building.build import BuildError, largest
from face2scene.data.building.photo_filtering import Candidate, Scorer, StageContext
from face2scene.data.building.sharpness import edge_blur, laplacian_variance
from face2scene.image_io.arrays import to_tensor


class Resolution:
    """Stage 1: enough pixels, and not too elongated.

    Args:
        min_side: smallest shorter side in pixels.
        max_aspect: largest ratio of longer to shorter side; None takes all.
    """

    name = "resolution"

    def __init__(self, min_side: int, max_aspect: float | None = None):
        self.min_side, self.max_aspect = min_side, max_aspect
        self.thresholds = {"side": min_side}

    def __call__(self, candidate: Candidate) -> str:
        height, width = candidate.photo.shape[:2]
        candidate.measured["side"] = min(height, width)
        if min(height, width) < self.min_side:
            return f"too small: {width} x {height} pixels, data.size is {self.min_side}"
        if self.max_aspect and max(height, width) > self.max_aspect * min(height, width):
            return f"too long: {width} x {height} pixels"
        return ""


class HasFace:
    """Stage 1: a face with a high detection score; the largest is taken.

    Args:
        min_score: lowest score, above the detector's own threshold.
        max_faces: photos with more are left out; None takes all.
        alone: largest size of the second largest face as a share of the largest; None takes all.
    """

    name = "face"

    def __init__(self, min_score: float = 0.0, max_faces: int | None = None, alone: float | None = None):
        self.min_score, self.max_faces, self.alone = min_score, max_faces, alone
        self.thresholds = {"face_score": min_score} if min_score else {}

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


class FaceSize:
    """Stage 2: the face is large enough.

    Args:
        min_pixels: longer side of the face in the finished image.
        min_photo_pixels: longer side in the photo, so that faces are not enlarged much.
    """

    name = "face size"

    def __init__(self, min_pixels: int = 32, min_photo_pixels: int = 0):
        self.min_pixels, self.min_photo_pixels = min_pixels, min_photo_pixels
        self.thresholds = {"face_pixels": min_pixels}

    def __call__(self, candidate: Candidate) -> str:
        size = candidate.face.size * candidate.factor
        candidate.measured["face_pixels"] = size
        if size < self.min_pixels:
            return f"face too small: {size:.0f} pixels, needed are {self.min_pixels}"
        if candidate.face.size < self.min_photo_pixels:
            return f"face too small in the photo: {candidate.face.size:.0f} pixels, needed are {self.min_photo_pixels}"
        return ""


class Sharp:
    """Stage 2: the face is not blurred, see `laplacian_variance`.

    Args:
        min_variance: of the Laplacian of the luma (0 to 255).
        side: faces are reduced to this many pixels first.
    """

    name = "sharpness"

    def __init__(self, min_variance: float, side: int = 160):
        self.min_variance, self.side = min_variance, side
        self.thresholds = {"laplacian": min_variance}

    def __call__(self, candidate: Candidate) -> str:
        value = laplacian_variance(candidate.face_pixels, self.side)
        candidate.measured["laplacian"] = value
        blurred = value < self.min_variance
        return f"blurred face: Laplacian {value:.1f} is under {self.min_variance:g}" if blurred else ""


class InFocus:
    """Stage 2: the sharpest edges of the face are sharp, so that noise does not hide defocus; see `edge_blur`.

    Args:
        max_blur: standard deviation of the edges' blur as a share of the face's longer side.
    """

    name = "focus"

    def __init__(self, max_blur: float):
        self.max_blur = max_blur
        self.thresholds = {"edge_blur": max_blur}

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
            value = float(np.asarray(scorer(image).cpu()).reshape(-1)[0])
            if not np.isfinite(value):
                return f"no quality: {name} is {value}"
            candidate.measured[name] = value
            limits = self.limits[name]
            if value < limits.get("min", value) or value > limits.get("max", value):
                wanted = ", ".join(f"{key} {limit:g}" for key, limit in limits.items())
                return f"low quality by {name}: {value:.3f}, wanted {wanted}"
        return ""


class Persons:
    """A person detector as a stage: the person with the largest face is large enough.

    Args:
        find: photo (H, W, 3) in [0, 1] to person boxes, such as a YOLO model wrapped in a function.
        min_share: smallest share of the photo's area that the person takes.
    """

    name = "person"

    def __init__(self, find: Callable[[np.ndarray], Sequence[Box]], min_share: float = 0.0):
        self.find, self.min_share = find, min_share
        self.thresholds = {"person_share": min_share}

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


class Tagged:
    """A tagger as a stage: its tags become the prompt. It leaves nothing out.

    Args:
        tags: finished image (H, W, 3) in [0, 1] to words, most certain first, such as RAM wrapped in a function.
        max_tags: words in the prompt.
    """

    name = "tags"

    def __init__(self, tags: Callable[[np.ndarray], Sequence[str]], max_tags: int = 12):
        self.tags, self.max_tags, self.thresholds = tags, max_tags, {}

    def __call__(self, candidate: Candidate) -> str:
        words = list(self.tags(candidate.image))[: self.max_tags]
        candidate.prompt = f"A photo of a person, {', '.join(words)}." if words else None
        return ""


def thresholds(stages: Sequence[Any]) -> dict[str, Any]:
    """All thresholds of some stages, by measure."""
    return {name: value for stage in stages for name, value in stage.thresholds.items()}
