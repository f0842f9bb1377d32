"""Face detection: boxes, five and 68 landmarks, and an identity vector for every face of an image.

A `Backend` is a set of networks; the `Detector` applies them to an image pyramid, to changed images where nothing was
found, and to every uncertain or tilted face a second time, alone and upright.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from face2scene.common.types import Box, Face
from face2scene.faces.align import warp
from face2scene.faces.pose import turned_view, with_pose
from face2scene.image_io.arrays import resize, to_bytes, to_tensor

_PADDING = 0.25  # of the longer side, for a face that fills its image: detectors need some background
_TILE, _OVERLAP = 1536, 256  # pixels; a larger level is searched in parts, to bound the networks' memory
_CHIP, _CHIP_FACE = 160, 72  # sides in pixels of the crop around one face, and of the face in it
_SURE = 0.92  # score from which a face needs no second look; the median of upright clean ones is 0.93
_TURNS = (0, 40, -40, 180, 90, -90, 140, -140)  # degrees by which an uncertain face is turned, in this order


class Backend(Protocol):
    """Networks that detect and describe faces. They are loaded at first use and kept.

    `identity_model` names the space of the identity vectors, `same_threshold` is the lowest cosine of one person's.

    Raises:
        MissingWeights: when a network is not there; the message names the fetch command.
    """

    identity_model: str
    same_threshold: float

    def search(self, image: np.ndarray) -> list[Face]:
        """Faces of an image as it is, uint8 RGB (H, W, 3): boxes, scores and five points."""
        ...

    def describe(self, image: np.ndarray, found: Sequence[Face], *, identities: bool) -> list[Face]:
        """Add the 68 landmarks and, if asked, the identity, in order.

        Args:
            image: float RGB (H, W, 3) in [0, 1].
            found: in its pixels, with neither landmarks nor identity yet.
        """
        ...


@dataclass(eq=False)
class Detector:
    """Detects and describes faces."""

    backend: Backend | None  # the networks; None finds no face in anything
    _: KW_ONLY
    # Longer side in pixels of the largest image that the backend sees. A larger photo is reduced to it once, so its
    # small faces need more (a 12-megapixel photo at 1024: faces from 40 pixels).
    max_side: int = 1024
    min_face: int = 16  # smallest longer side of a face in pixels of the image (our setting: FaDeX needs 16)
    landmarks: bool = True  # also find 68 landmarks (needed for identities)
    identities: bool = True  # also compute identity vectors
    same_threshold: float | None = None  # None is the backend's own
    # Lowest score after the second look; the backend's threshold may be lower. None is the backend's own, else 0.
    min_score: float | None = None
    retry_score: float = 0.82  # the same for faces that only a retry finds
    rotations: Sequence[int] = (0,)  # degrees by which the image is turned and searched, of 0, 90, 180 and 270
    # What to try, in order, where the first search found nothing, until something is found: see `RETRIES`.
    retries: Sequence[str] = ("padded", "turned", "brightened")
    # Search uncertain and tilted faces again, alone and upright: else tilted heads have the landmarks of upright ones.
    second_look: bool = True

    def __post_init__(self) -> None:
        if self.max_side < 64:
            raise ValueError(f"faces.max_side is {self.max_side}; the detector needs images of at least 64 pixels.")
        if not self.rotations or not set(self.rotations) <= {0, 90, 180, 270}:
            raise ValueError(f"faces.rotations is {list(self.rotations)}; choose from 0, 90, 180 and 270 degrees.")
        if unknown := [name for name in self.retries if name not in RETRIES]:
            raise ValueError(f"faces.retries names {unknown}; choose from {list(RETRIES)}.")
        self.landmarks = self.landmarks or self.identities
        if self.min_score is None:
            self.min_score = getattr(self.backend, "min_score", 0.0)
        if self.same_threshold is None:
            self.same_threshold = 1.0 if self.backend is None else self.backend.same_threshold

    def ready(self) -> None:
        """Load all networks by describing one face on an empty image.

        Raises:
            MissingWeights, WeightsError, ModuleNotFoundError: one cannot be loaded.
        """
        if self.backend is not None:
            points = np.array([[76.0, 86], [116, 86], [96, 106], [80, 130], [112, 130]])
            self.backend.search(np.zeros((192, 192, 3), np.uint8))
            if self.landmarks:
                face = Face((48.0, 48.0, 144.0, 152.0), 1.0, points)
                self.backend.describe(np.zeros((192, 192, 3), np.float32), [face], identities=self.identities)

    def find(self, image: np.ndarray) -> list[Face]:
        """All faces of an image, largest first.

        Args:
            image: float (H, W, 3) in [0, 1].

        Raises:
            ValueError: for another shape, type or range; the message says what makes such an image.
            MissingWeights: when a network is not there; the message names the fetch command.
        """
        _check_image(image)
        if self.backend is None or min(image.shape[:2]) < self.min_face:
            return []
        height, width = image.shape[:2]
        shown = _reduced(image, self.max_side)
        scale = width / shown.shape[1], height / shown.shape[0]
        found = self._faces(shown, self.rotations, scale, self.min_score or 0.0)
        for name in self.retries:
            if found:
                break
            found = self._retry(shown, name, scale)
        found = [_moved(face, scale) for face in found]
        found = [replace(f, box=tuple(np.clip(f.box, 0, [width, height] * 2).tolist())) for f in found]
        found.sort(key=lambda face: -face.size)
        if self.landmarks:
            found = self.backend.describe(image, found, identities=self.identities)
        return [with_pose(face) for face in found]

    def _faces(
        self, shown: np.ndarray, rotations: Sequence[int], scale: tuple[float, float], min_score: float
    ) -> list[Face]:
        # Faces in pixels of `shown`; the image is `scale` times as large.
        found = self._turned(shown, rotations)
        if self.second_look:
            found = self._search_again(shown, found)
            # If one head is turned by a quarter or more, the first search may have missed others.
            turns = {round(_roll(face) / (np.pi / 2)) * 90 % 360 for face in found} - set(rotations)
            if turns:
                found = self._search_again(shown, _best_of_overlapping(found + self._turned(shown, sorted(turns))))
        height, width = shown.shape[:2]
        large = [f for f in found if _moved(f, scale).size >= self.min_face and f.score >= min_score]
        return [f for f in large if _inside(f, width, height)]

    def _turned(self, shown: np.ndarray, rotations: Sequence[int]) -> list[Face]:
        found: list[Face] = []
        for degrees in rotations:
            turned = np.ascontiguousarray(np.rot90(shown, degrees // 90))
            found += [_turned_back(face, degrees // 90, shown.shape[:2]) for face in self._search(turned)]
        return _best_of_overlapping(found)

    def _search(self, shown: np.ndarray) -> list[Face]:
        # Detectors find faces of about 10 to 300 pixels, so the image is searched at halving sizes.
        found: list[Face] = []
        height, width = shown.shape[:2]
        level = shown
        while True:
            scale = width / level.shape[1], height / level.shape[0]
            for part, (x, y) in _tiles(level):
                found += [_moved(_moved(face, shift=(x, y)), scale) for face in self.backend.search(part)]
            if max(level.shape) // 2 < 160:
                return found
            half = max(1, level.shape[0] // 2), max(1, level.shape[1] // 2)
            level = to_bytes(resize(to_tensor(level), half))

    def _retry(self, shown: np.ndarray, name: str, scale: tuple[float, float]) -> list[Face]:
        score = max(self.min_score or 0.0, self.retry_score)
        if name == "turned":
            return self._faces(shown, [d for d in (90, 270, 180) if d not in self.rotations], scale, score)
        variant = RETRIES[name](shown)
        if variant is None:
            return []
        changed, shift, factor = variant
        found = self._faces(changed, self.rotations, (scale[0] / factor, scale[1] / factor), score)
        found = [_moved(_moved(face, shift=(-shift, -shift)), (1 / factor, 1 / factor)) for face in found]
        return [face for face in found if _inside(face, shown.shape[1], shown.shape[0])]

    def _search_again(self, shown: np.ndarray, found: list[Face]) -> list[Face]:
        if not found:
            return []
        image = to_tensor(shown)
        return _best_of_overlapping([self._refined(image, face) for face in found])

    def _refined(self, image: Tensor, face: Face) -> Face:
        # Landmarks do not show the tilt (YuNet gives a head tilted by 45 degrees nearly upright ones), scores do: the
        # turn with the highest score counts.
        if face.score >= _SURE:
            return face
        best = seen_at = None
        for turn in _TURNS:
            roll = _roll(face) + np.radians(turn)
            look = self._search_chip(image, face, roll)
            if look is not None and (best is None or look.score > best.score + 0.01):
                best, seen_at = look, roll
            if best is not None and best.score >= _SURE:
                break
        if best is None:
            return face
        tilt = (_roll(best) - seen_at + np.pi) % (2 * np.pi) - np.pi  # what is left; the landmarks show less than that
        if abs(tilt) > np.radians(8):
            best = self._search_chip(image, best, _roll(best)) or best
        # The mean of both, since the maximum over many turns would raise the scores of false positives.
        return replace(best, score=(best.score + face.score) / 2)

    def _search_chip(self, image: Tensor, face: Face, roll: float) -> Face | None:
        # Searches a small crop around the face, turned back by `roll` radians.
        scale = _CHIP_FACE / max(face.size, 1.0)
        transform = turned_view(face.box, _CHIP, scale, roll)
        chip = to_bytes(warp(image, transform, (_CHIP, _CHIP)))
        seen = [f for f in self.backend.search(chip) if _is_same_face(f)]
        if not seen:
            return None
        best = max(seen, key=lambda f: f.score)
        back = transform.inverse()
        x, y = back(np.array(best.box).reshape(2, 2).mean(0)[None] - 0.5)[0] + 0.5
        width, height = (best.box[2] - best.box[0]) / scale / 2, (best.box[3] - best.box[1]) / scale / 2
        if abs(np.sin(roll)) > abs(np.cos(roll)):
            width, height = height, width
        box = (float(x - width), float(y - height), float(x + width), float(y + height))
        return Face(box, best.score, back(best.landmarks_5))


def _roll(face: Face) -> float:
    # Clockwise turn of the head in the image in radians, by eyes and mouth.
    across, down = face.landmarks_5[3:].mean(0) - face.landmarks_5[:2].mean(0)
    return float(np.arctan2(-across, down))


def _moved(face: Face, scale: tuple[float, float] = (1.0, 1.0), shift: tuple[float, float] = (0.0, 0.0)) -> Face:
    # The same face where the image is `scale` times larger (x, y) and then shifted by `shift`.
    box = np.array(face.box) * (scale * 2) + shift * 2
    return Face(tuple(box.tolist()), face.score, face.landmarks_5 * scale + shift)


def _turned_back(face: Face, quarters: int, size: tuple[int, int]) -> Face:
    # The same face in the image of `size` (height, width) before `np.rot90(image, quarters)`; exact.
    height, width = size if quarters % 2 == 0 else size[::-1]  # of what was searched
    box, points = np.array(face.box).reshape(2, 2), face.landmarks_5
    for _ in range(quarters):
        # One quarter clockwise. Points are pixel centres, boxes pixel edges: one pixel apart at the far side.
        box = np.stack([height - box[:, 1], box[:, 0]], axis=1)
        points = np.stack([height - 1 - points[:, 1], points[:, 0]], axis=1)
        height, width = width, height
    return Face((*box.min(0).tolist(), *box.max(0).tolist()), face.score, points)


def _is_same_face(face: Face) -> bool:
    # Centred in the crop and of about the expected size.
    off = np.array(face.box).reshape(2, 2).mean(0) - _CHIP / 2
    return bool(np.abs(off).max() < 0.35 * _CHIP_FACE and 0.6 < face.size / _CHIP_FACE < 1.6)


_Variant = tuple[np.ndarray, int, float] | None


def _padded(shown: np.ndarray) -> _Variant:
    # For faces that fill the image, so half the size suffices for a large one.
    factor = 0.5 if max(shown.shape) > 640 else 1.0
    if factor < 1:
        shown = to_bytes(resize(to_tensor(shown), (max(1, shown.shape[0] // 2), max(1, shown.shape[1] // 2))))
    pad = round(_PADDING * max(shown.shape))
    return np.pad(shown, ((pad, pad), (pad, pad), (0, 0)), mode="edge"), pad, factor


def _brightened(shown: np.ndarray) -> _Variant:
    # Dark images only: the brightest 5 % become nearly white, and the mean 0.45.
    light = shown.max(2)
    top = max(float(np.percentile(light, 95)), 1.0)
    if light.mean() > 80:
        return None
    steps = np.clip(np.arange(256) / top, 0, 1)
    mean = max(float(steps[light].mean()), 1e-3)
    return to_bytes(steps ** min(1.0, np.log(0.45) / np.log(min(mean, 0.99))))[shown], 0, 1.0


# What is tried where nothing was found. Each gives a changed image, the offset of the old one in it in pixels and its
# scale there, or None where it does not apply; `turned` searches the quarter turns. In 43 degraded images without a
# detection, blurring and enlarging found nothing that these do not.
RETRIES: dict[str, Callable[[np.ndarray], _Variant]] = {
    "padded": _padded,
    "turned": lambda shown: None,
    "brightened": _brightened,
}


def _check_image(image: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or not np.issubdtype(image.dtype, np.floating):
        kind = f"{image.dtype} {image.shape}"
        if image.ndim == 2 or image.shape[2:] == (1,):
            kind = f"a grey image, {kind}"
        elif image.shape[2:] == (4,):
            kind = f"an image with transparency, {kind}"
        elif image.ndim == 3 and image.shape[0] == 3:
            kind = f"channels first, {kind} (`arrays.to_array` converts a tensor)"
        raise ValueError(
            f"A float image (H, W, 3) in [0, 1] is needed, got {kind}: `arrays.read_image` reads one from any file."
        )
    if image.size and not (image.min() >= -0.001 and image.max() <= 1.001):  # NaN fails both
        raise ValueError(
            f"The image holds values outside [0, 1] or NaN ({image.min():g} to {image.max():g}); divide 8 bit by 255 "
            "and 16 bit by 65535, as `arrays.read_image` does."
        )


def _reduced(image: np.ndarray, side: int) -> np.ndarray:
    # 8 bit, at most `side` long. Channel by channel, without a second copy of a large photo.
    height, width = image.shape[:2]
    factor = side / max(height, width)
    if factor >= 1:
        return to_bytes(image)
    size = max(1, round(height * factor)), max(1, round(width * factor))
    channels = (torch.from_numpy(np.ascontiguousarray(image[..., c], dtype=np.float32))[None] for c in range(3))
    return to_bytes(torch.cat([resize(channel, size) for channel in channels]))


def _tiles(level: np.ndarray) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    # Overlapping parts of a level and their offsets. A face cut by an edge is whole in the next part or level.
    ys, xs = (range(0, max(1, side - _OVERLAP), _TILE - _OVERLAP) for side in level.shape[:2])
    for y in ys:
        for x in xs:
            yield level[y : y + _TILE, x : x + _TILE], (x, y)


def _inside(face: Face, width: int, height: int) -> bool:
    # At least half of the box is in the image; padding can cause false positives beside it.
    return intersection(face.box, (0, 0, width, height)) >= 0.5 * area(face.box)


def _best_of_overlapping(found: list[Face], limit: float = 0.4) -> list[Face]:
    # Greedy non-maximum suppression by score over the pyramid's levels. The shared area is relative to the smaller box,
    # so that a part of a face is not another face.
    kept: list[Face] = []
    for face in sorted(found, key=lambda f: -f.score):
        smaller = [min(area(face.box), area(other.box)) for other in kept]
        if all(intersection(face.box, k.box) < limit * max(a, 1e-9) for k, a in zip(kept, smaller, strict=True)):
            kept.append(face)
    return kept


def area(box: Box) -> float:
    """Of a box, in square pixels."""
    return (box[2] - box[0]) * (box[3] - box[1])


def intersection(a: Box, b: Box) -> float:
    """Area that two boxes share, in square pixels."""
    x = min(a[2], b[2]) - max(a[0], b[0])
    y = min(a[3], b[3]) - max(a[1], b[1])
    return max(x, 0) * max(y, 0)
