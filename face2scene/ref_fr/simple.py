"""Restorers that need no weights: the upper bound, the lower bound, and a controlled imitation between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def _known(truth: Tensor | None, name: str) -> Tensor:
    if truth is None:
        raise ValueError(
            f"ref_fr={name} is made from the undamaged face and there is none: give truth=FOLDER with pictures of the "
            "same names, or choose another ref_fr."
        )
    return truth


@dataclass(frozen=True)
class GroundTruth:
    """The undamaged face itself: the best that Stage I could do."""

    name: str = "ground_truth"
    needs_truth: bool = True

    def restore(
        self, degraded: Tensor, references: Sequence[Path], *, truth: Tensor | None, rng: np.random.Generator
    ) -> Tensor:
        return _known(truth, self.name)


@dataclass(frozen=True)
class Copy:
    """The degraded face unchanged: Stage I that does nothing."""

    name: str = "copy"
    needs_truth: bool = False

    def restore(
        self, degraded: Tensor, references: Sequence[Path], *, truth: Tensor | None, rng: np.random.Generator
    ) -> Tensor:
        return degraded


@dataclass(frozen=True)
class Perturbed:
    """The undamaged face as an imperfect restorer would give it: a little soft, a little off in colour.

    A stand-in for FaceMe where its weights are missing (supplement 4.6 perturbs Stage I the same way to vary its
    quality; the amounts here are ours).

    Args:
        softness: shrink factor of a there-and-back resize, drawn from 1 to this.
        tint: largest shift of a channel's mean.
        grain: sigma of fine noise, in [0, 1] units.
    """

    softness: float = 1.6
    tint: float = 0.02
    grain: float = 0.01
    name: str = "perturbed"
    needs_truth: bool = True

    def restore(
        self, degraded: Tensor, references: Sequence[Path], *, truth: Tensor | None, rng: np.random.Generator
    ) -> Tensor:
        truth = _known(truth, self.name)
        height, width = truth.shape[-2:]
        factor = rng.uniform(1, self.softness)
        small = (max(8, round(height / factor)), max(8, round(width / factor)))
        soft = F.interpolate(truth[None], size=small, mode="bicubic", antialias=True, align_corners=False)
        soft = F.interpolate(soft, size=(height, width), mode="bicubic", align_corners=False)[0]
        shift = torch.from_numpy(rng.uniform(-self.tint, self.tint, (3, 1, 1)).astype(np.float32))
        noise = torch.from_numpy(rng.standard_normal(truth.shape, dtype=np.float32))
        return (soft + shift + self.grain * noise).clamp(0, 1)
