"""What a reference-based face restorer is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from face2scene.faces.align import crop
from face2scene.records import Box, FacePair


class RefFR(Protocol):
    """Turns a degraded face into a restored one, pixel for pixel aligned with it.

    `needs_truth` marks the stand-ins of experiments: they are given the undamaged face and cannot serve a photo
    whose truth nobody has.
    """

    name: str
    needs_truth: bool

    def restore(
        self, degraded: Tensor, references: Sequence[Path], *, truth: Tensor | None, rng: np.random.Generator
    ) -> Tensor:
        """(3, h, w) in [0, 1] to the same shape.

        Raises:
            ValueError: it needs the truth, or references, and got none.
        """
        ...


def face_pair(
    restorer: RefFR,
    scene: Tensor,
    box: Box,
    *,
    references: Sequence[Path] = (),
    truth: Tensor | None = None,
    rng: np.random.Generator,
) -> FacePair:
    """Cut the face out of a scene at its native size and restore it.

    Args:
        scene: (3, H, W) in [0, 1], damaged.
        box: whole-pixel square inside the scene, as `faces.align.square_crop_box` makes it.
        truth: the same scene undamaged, for the stand-ins that need it.
        rng: of the restorer's own randomness.
    """
    degraded = crop(scene, box)
    known = None if truth is None else crop(truth, box)
    restored = restorer.restore(degraded, references, truth=known, rng=rng)
    return FacePair(restored=restored, degraded=degraded, box=box)
