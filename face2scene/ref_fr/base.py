"""What a reference-based face restorer is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from face2scene.common.types import Box, FacePair
from face2scene.faces.align import FFHQ_512, AlignmentError, Similarity, crop, face_transform, paste_back, warp

# Where a detector's box lies in the FFHQ frame, as shares of its side, and how much wider the square crop is
# (`align.square_crop_box`): what is assumed of a face whose landmarks nobody knows.
_BOX_CENTRE, _BOX_SIDE, _SQUARE = (0.515, 0.575), 0.53, 1.4


class FaceRestorationError(ValueError):
    """A face that cannot be restored, in one sentence; the scene is then restored without its tokens."""


class StageOneFailure(FaceRestorationError):
    """What is no face's fault, such as missing weights or memory: a cache does not remember it."""


class RefFR(Protocol):
    """Turns a degraded face into a restored one, pixel for pixel aligned with it.

    `needs_gt` marks the stand-ins of experiments: they are given the clean face and cannot serve a photo
    whose ground truth nobody has.
    """

    name: str
    needs_gt: bool

    def restore(
        self, degraded: Tensor, references: Sequence[Path], *, gt: Tensor | None, rng: np.random.Generator
    ) -> Tensor:
        """(3, h, w) in [0, 1] to the same shape.

        Raises:
            ValueError: it needs the ground truth, or references, and got none.
        """
        ...


@dataclass(frozen=True, eq=False)
class RestoredFace:
    """An aligned face after Stage I."""

    image: Tensor  # (3, size, size) in [0, 1]
    notes: tuple[str, ...] = ()  # sentences for the restoration log


class AlignedRefFR:
    """A restorer that wants the face upright in the FFHQ frame, as FaceMe and its kind were trained.

    What it makes of a face follows from the face, its references and `fingerprint` alone: no order, batch or
    generator enters. A subclass gives `restore_aligned`; `face_pair` cuts the face out of the scene and lays the
    result back, `restore` does the same within a crop.
    """

    name: str
    needs_gt: bool = False
    size: int = 512  # side of the aligned face

    @property
    def fingerprint(self) -> str:
        """Changes whenever weights, settings or code change what comes out."""
        raise NotImplementedError

    def restore_aligned(self, faces: Tensor, references: Sequence[Sequence[Path]]) -> list[RestoredFace]:
        """Faces (B, 3, size, size) in [0, 1], each with the images of its person.

        Raises:
            FaceRestorationError: one of them cannot be restored.
        """
        raise NotImplementedError

    def restore(
        self, degraded: Tensor, references: Sequence[Path], *, gt: Tensor | None, rng: np.random.Generator
    ) -> Tensor:
        """A crop as `square_crop_box` makes it, of an upright face; see `RefFR.restore`. Ground truth and rng are not
        used."""
        return self.restore_in(degraded, (0, 0, degraded.shape[-1], degraded.shape[-2]), None, references)[0]

    def ready(self) -> None:
        """Load what is loaded late.

        Raises:
            FaceRestorationError: it cannot be.
        """

    def restore_in(
        self, scene: Tensor, box: Box, landmarks: np.ndarray | None, references: Sequence[Path]
    ) -> tuple[Tensor, tuple[str, ...]]:
        """The restored face at the place of `box`, and notes; see `face_pair`."""
        aligned, transform, notes = aligned_face(scene, box, landmarks, self.size)
        made = self.restore_aligned(aligned[None], [references])[0]
        back = paste_back(scene, made.image.to(scene), transform, feather=0)
        return crop(back, box).clone(), notes + made.notes


def aligned_face(
    scene: Tensor, box: Box, landmarks: np.ndarray | None, size: int
) -> tuple[Tensor, Similarity, tuple[str, ...]]:
    """What an `AlignedRefFR` sees of a scene (3, H, W): the face (3, size, size), rounded to bytes.

    Args:
        box, landmarks: see `face_pair`.

    Returns:
        The face, the transform from the scene to it, and notes for the restoration log.
    """
    transform, notes = _frame(box, landmarks, size)
    return in_bytes(warp(scene, transform, (size, size))), transform, notes


def _frame(box: Box, landmarks: np.ndarray | None, size: int) -> tuple[Similarity, tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    if landmarks is not None:
        try:
            transform = face_transform(landmarks, size)
        except AlignmentError as error:
            notes = (
                f"The face was taken to stand upright in its box, because {str(error)[0].lower()}{str(error)[1:]}",
            )
        else:
            roll = float(np.degrees(np.arctan2(transform.matrix[1, 0], transform.matrix[0, 0])))
            turned = (f"The face is turned by {roll:.0f} degrees; it was restored upright.",) if abs(roll) > 60 else ()
            return transform, turned
    x0, y0, x1, y1 = box
    scale = _BOX_SIDE * size * _SQUARE / max(x1 - x0, y1 - y0)
    right, down = size * _BOX_CENTRE[0] - scale * (x0 + x1) / 2, size * _BOX_CENTRE[1] - scale * (y0 + y1) / 2
    return Similarity(np.array([[scale, 0.0, right], [0.0, scale, down]])), notes


def upright_points(square: Box) -> np.ndarray:
    """Where the five points of an upright face are whose square crop is known and nothing else; (5, 2)."""
    return _frame(square, None, 512)[0].inverse()(FFHQ_512)


def mirrored_points(landmarks_5: np.ndarray, width: int) -> np.ndarray:
    """The five points of the image mirrored left to right; left stays what is left in the image."""
    points = np.asarray(landmarks_5, dtype=np.float64)[[1, 0, 2, 4, 3]].copy()
    points[:, 0] = width - 1 - points[:, 0]
    return points


def face_pair(
    restorer: RefFR,
    scene: Tensor,
    box: Box,
    *,
    references: Sequence[Path] = (),
    gt: Tensor | None = None,
    landmarks: np.ndarray | None = None,
    rng: np.random.Generator,
) -> FacePair:
    """Cut the face out of a scene at its native size and restore it.

    Args:
        scene: (3, H, W) in [0, 1], degraded.
        box: whole-pixel square inside the scene, as `faces.align.square_crop_box` makes it.
        gt: the same scene clean, for the stand-ins that need it.
        landmarks: (5, 2) in the scene, see `records.Face`; a restorer that wants an aligned face takes it from the
            scene by them, and an upright face in the middle of `box` without them.
        rng: of the restorer's own randomness.

    Raises:
        FaceRestorationError: the face cannot be restored.
    """
    degraded = crop(scene, box)
    if hasattr(restorer, "restore_in"):
        restored, notes = restorer.restore_in(scene, box, landmarks, references)
        return FacePair(restored=restored, degraded=degraded, box=box, notes=notes)
    known = None if gt is None else crop(gt, box)
    restored = restorer.restore(degraded, references, gt=known, rng=rng)
    return FacePair(restored=restored, degraded=degraded, box=box)


def in_bytes(faces: Tensor) -> Tensor:
    """[0, 1] rounded to the 256 values that a file can hold, so that a stored face is the face itself."""
    return (faces.detach().float().clamp(0, 1) * 255).round() / 255
