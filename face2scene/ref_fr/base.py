"""The interface of reference-based face restorers, and the aligned face that they work on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from face2scene.common.types import Box, FacePair
from face2scene.faces.align import FFHQ_512, AlignmentError, Similarity, crop, face_transform, paste_back, warp

# Assumed of a face without landmarks: centre and side of a detector's box in the FFHQ frame, as shares of its side,
# and how much wider the square crop is (`align.square_crop_box`).
_BOX_CENTRE, _BOX_SIDE, _SQUARE = (0.515, 0.575), 0.53, 1.4


class FaceRestorationError(ValueError):
    """A face cannot be restored; the scene is then restored without its tokens, and the message logged."""


class RestorerUnavailableError(FaceRestorationError):
    """The restorer itself does not work, for lack of weights or memory; not stored in caches."""


class RefFR(Protocol):
    """Restores a degraded face, with pixel-aligned output."""

    @property
    def name(self) -> str: ...

    @property
    def needs_gt(self) -> bool:
        """Whether it needs the ground truth, as the stand-ins of experiments do."""
        ...

    def restore(
        self, degraded: Tensor, references: Sequence[Path], *, gt: Tensor | None, rng: np.random.Generator
    ) -> Tensor:
        """(3, h, w) in [0, 1] to the same shape.

        Raises:
            ValueError: the ground truth or references are missing.
        """
        ...


@dataclass(frozen=True, eq=False)
class RestoredFace:
    """An aligned face after Stage I."""

    image: Tensor  # (3, size, size) in [0, 1]
    notes: tuple[str, ...] = ()  # sentences for the restoration log


class AlignedRefFR:
    """A restorer of faces that are upright in the FFHQ frame, as FaceMe's training data.

    The result depends on the face, its references and `fingerprint` alone, not on order, batch or `rng`. A subclass
    implements `restore_aligned`; `face_pair` crops the face from the scene and pastes the result back, `restore` does
    the same within a crop.
    """

    name: str
    needs_gt: bool = False
    size: int = 512  # side of the aligned face

    @property
    def fingerprint(self) -> str:
        """Changes with everything that decides the output: weights, settings and code."""
        raise NotImplementedError

    def restore_aligned(self, faces: Tensor, references: Sequence[Sequence[Path]]) -> list[RestoredFace]:
        """Restore faces (B, 3, size, size) in [0, 1], each with its references.

        Raises:
            FaceRestorationError: one of them cannot be restored.
        """
        raise NotImplementedError

    def restore(
        self, degraded: Tensor, references: Sequence[Path], *, gt: Tensor | None, rng: np.random.Generator
    ) -> Tensor:
        """See `RefFR.restore`; the face is upright in a crop of `square_crop_box`. `gt` and `rng` are not used."""
        return self.restore_in(degraded, (0, 0, degraded.shape[-1], degraded.shape[-2]), None, references).restored

    def ready(self) -> None:
        """Load the networks.

        Raises:
            RestorerUnavailableError: they cannot be loaded.
        """

    def restore_named(self, face: Tensor, references: Sequence[Path], name: str) -> RestoredFace:
        """Restore one face (3, size, size), which a cache knows by `name`, see `face_pair`."""
        return self.restore_aligned(face[None], [references])[0]

    def restore_in(
        self, scene: Tensor, box: Box, landmarks: np.ndarray | None, references: Sequence[Path], name: str = ""
    ) -> FacePair:
        """The face pair of `box`, or of the part of it that the aligned face covers; see `face_pair`."""
        aligned, transform, notes = aligned_face(scene, box, landmarks, self.size)
        box = covered_box(box, transform, self.size)
        restored = self.restore_named(aligned, references, name)
        pasted = paste_back(scene, restored.image.to(scene), transform, feather=0)
        return FacePair(crop(pasted, box).clone(), crop(scene, box), box, notes + restored.notes)


def aligned_face(
    scene: Tensor, box: Box, landmarks: np.ndarray | None, size: int
) -> tuple[Tensor, Similarity, tuple[str, ...]]:
    """The input of an `AlignedRefFR` from a scene (3, H, W): the face (3, size, size), rounded to bytes.

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
            notes = (f"The face was assumed to be upright in its box, because {str(error)[0].lower()}{str(error)[1:]}",)
        else:
            roll = float(np.degrees(np.arctan2(transform.matrix[1, 0], transform.matrix[0, 0])))
            notes = (f"The face is turned by {roll:.0f} degrees; it was restored upright.",) if abs(roll) > 60 else ()
            return transform, notes
    x0, y0, x1, y1 = box
    scale = _BOX_SIDE * size * _SQUARE / max(x1 - x0, y1 - y0)
    right, down = size * _BOX_CENTRE[0] - scale * (x0 + x1) / 2, size * _BOX_CENTRE[1] - scale * (y0 + y1) / 2
    return Similarity(np.array([[scale, 0.0, right], [0.0, scale, down]])), notes


def covered_box(box: Box, transform: Similarity, size: int) -> Box:
    """The part of a square crop that an aligned face covers: the same box, or a smaller one around its centre.

    Beside it (in the corners of the crop, if the head is turned) the pasted scene is the degraded one, and FaDeX would
    read there that nothing is degraded.

    Args:
        transform: from the scene to the aligned face of `size` x `size` pixels.

    Raises:
        FaceRestorationError: less than 16 x 16 pixels are covered.
    """
    x0, y0, x1, y1 = (int(v) for v in box)
    centre = transform(np.array([[x0 + x1 - 1, y0 + y1 - 1]]) / 2) + 0.5
    reach = min(centre.min(), (size - centre).min()) / np.abs(transform.matrix[0, :2]).sum()  # in pixels of the scene
    cut = max(0, int(np.ceil((x1 - x0) / 2 - reach)))
    if x1 - x0 - 2 * cut < 16:
        raise FaceRestorationError(f"The aligned face covers too little of the crop {(x0, y0, x1, y1)} around its box.")
    return (x0 + cut, y0 + cut, x1 - cut, y1 - cut)


def upright_points(square: Box) -> np.ndarray:
    """The five points (5, 2) of an upright face in its square crop."""
    return _frame(square, None, 512)[0].inverse()(FFHQ_512)


def mirrored_points(landmarks_5: np.ndarray, width: int) -> np.ndarray:
    """The five points (5, 2) of an image of `width` pixels after horizontal flipping; left is the image's left."""
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
    name: str = "",
) -> FacePair:
    """Crop the face from a scene at its native size and restore it.

    Args:
        scene: (3, H, W) in [0, 1], degraded.
        box: integer square inside the scene, see `faces.align.face_crop_box`.
        gt: the clean scene, for stand-ins.
        landmarks: (5, 2) in the scene, see `types.Face`, to align the face; without them it is assumed to be upright
            in the middle of `box`.
        rng: for restorers that draw random numbers.
        name: what the degraded face was made from, by which caches know it on every processor; empty for its pixels.

    Returns:
        The pair, of `box` or, where an aligned face covers less of it, of the part it covers.

    Raises:
        FaceRestorationError: the face cannot be restored.
    """
    if isinstance(restorer, AlignedRefFR):
        return restorer.restore_in(scene, box, landmarks, references, name)
    degraded = crop(scene, box)
    restored = restorer.restore(degraded, references, gt=None if gt is None else crop(gt, box), rng=rng)
    return FacePair(restored=restored, degraded=degraded, box=box)


def in_bytes(faces: Tensor) -> Tensor:
    """[0, 1] rounded to the 256 values of an image file, so that storing a face loses nothing."""
    return (faces.detach().float().clamp(0, 1) * 255).round() / 255
