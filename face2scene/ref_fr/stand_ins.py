"""Restorers without weights: upper bound, lower bound, and controlled perturbations of the ground truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from face2scene.degradation.operators.validation import check_shares


class _FromGroundTruth:
    name: str
    needs_gt = True

    def restore(
        self, degraded: Tensor, references: Sequence[Path], *, gt: Tensor | None, rng: np.random.Generator
    ) -> Tensor:
        """See `RefFR.restore`; only the clean face and `rng` are used."""
        if gt is None:
            raise ValueError(
                f"ref_fr={self.name} needs the clean face: give gt=FOLDER with images of the same names, or choose "
                "another ref_fr."
            )
        return self.perturb(gt, rng)

    def perturb(self, gt: Tensor, rng: np.random.Generator) -> Tensor:
        """(3, h, w) in [0, 1] to the same."""
        raise NotImplementedError


@dataclass(frozen=True)
class GroundTruth(_FromGroundTruth):
    """The clean face itself: the upper bound of Stage I."""

    name: str = "ground_truth"

    def perturb(self, gt: Tensor, rng: np.random.Generator) -> Tensor:
        return gt


@dataclass(frozen=True)
class Copy:
    """The degraded face unchanged: the lower bound of Stage I."""

    name: str = "copy"
    needs_gt: bool = False

    def restore(
        self, degraded: Tensor, references: Sequence[Path], *, gt: Tensor | None, rng: np.random.Generator
    ) -> Tensor:
        return degraded


@dataclass(frozen=True)
class Perturbed(_FromGroundTruth):
    """The clean face, slightly blurred, shifted in colour and noised.

    A stand-in for FaceMe where its weights are missing (supplement 4.6 varies the quality of Stage I in this way; the
    amounts are ours).

    Args:
        softness: factor of a resize down and up, drawn from 1 to this.
        tint: largest shift of a channel's mean.
        grain: standard deviation of white noise, in [0, 1] units.
    """

    softness: float = 1.6
    tint: float = 0.02
    grain: float = 0.01
    name: str = "perturbed"

    def perturb(self, gt: Tensor, rng: np.random.Generator) -> Tensor:
        height, width = gt.shape[-2:]
        factor = rng.uniform(1, self.softness)
        small = (max(8, round(height / factor)), max(8, round(width / factor)))
        soft = F.interpolate(gt[None], size=small, mode="bicubic", antialias=True, align_corners=False)
        soft = F.interpolate(soft, size=(height, width), mode="bicubic", align_corners=False)[0]
        shift = torch.from_numpy(rng.uniform(-self.tint, self.tint, (3, 1, 1)).astype(np.float32))
        noise = torch.from_numpy(rng.standard_normal(gt.shape, dtype=np.float32))
        return (soft + shift + self.grain * noise).clamp(0, 1)


@dataclass(frozen=True)
class CalibratedPerturbation(_FromGroundTruth):
    """The clean face with errors of the size of one row of the paper's Table 6.

    The ground truth is blended with a blurred, warped (by a smooth random displacement field, which shifts the
    identity) and noised version. The paper mentions "a controlled synthetic perturbation" only; form and amounts are
    ours, calibrated on its DISTS, LPIPS and PSNR at faces of 256 pixels.

    Args:
        blend: share of the perturbed version, 0 to 1.
        blur: sigma of the Gaussian blur in pixels.
        shift: root mean square displacement in pixels.
        grain: standard deviation of the noise, in [0, 1] units.
        grain_size: sigma in pixels of the noise's Gaussian blur; 0 is white noise.
        scale: wavelength of the displacement field in pixels, about the distance between facial features.
    """

    blend: float
    blur: float
    shift: float
    grain: float
    grain_size: float = 0.0
    scale: float = 48.0
    name: str = "perturbed"

    def perturb(self, gt: Tensor, rng: np.random.Generator) -> Tensor:
        field = self._field(gt.shape[-2], gt.shape[-1], rng)
        noise = torch.from_numpy(rng.standard_normal(gt.shape, dtype=np.float32))
        noise = _blurred(noise, self.grain_size)
        noise = noise / noise.square().mean().sqrt()
        warped = _warped(_blurred(gt, self.blur), field)
        return ((1 - self.blend) * gt + self.blend * (warped + self.grain * noise)).clamp(0, 1)

    def _field(self, height: int, width: int, rng: np.random.Generator) -> Tensor:
        cells = tuple(max(2, round(side / self.scale) + 1) for side in (height, width))
        coarse = torch.from_numpy(rng.standard_normal((1, 2, *cells), dtype=np.float32))
        smooth = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)[0]
        return self.shift * smooth / smooth.square().sum(0).mean().sqrt().clamp_min(1e-6)


def _blurred(image: Tensor, sigma: float) -> Tensor:
    if sigma <= 0:
        return image
    radius = max(1, round(3 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).to(image)
    padded = F.pad(image[:, None], (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, taps[None, None, :, None])
    return F.conv2d(rows, taps[None, None, None, :])[:, 0]


def _warped(image: Tensor, field: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.stack([(x + field[0]) * 2 / max(width - 1, 1) - 1, (y + field[1]) * 2 / max(height - 1, 1) - 1], -1)
    return F.grid_sample(image[None], grid[None].to(image), padding_mode="border", align_corners=True)[0]


@dataclass(frozen=True)
class Mixed:
    """One of several restorers at random, to train for varying quality of Stage I.

    The paper trains FaDeX on restored and on clean faces; the shares, and the mix of qualities, are ours.

    Args:
        restorers: `RefFR` by name.
        shares: of the faces, by the same names; they sum to 1.

    Raises:
        ValueError: names that differ, or shares that do not sum to 1.
    """

    restorers: Mapping[str, Any]
    shares: Mapping[str, float]
    name: str = "mixed"

    def __post_init__(self) -> None:
        check_shares("ref_fr.shares", self.shares, "ref_fr.restorers", self.restorers)

    @property
    def needs_gt(self) -> bool:
        return any(restorer.needs_gt for restorer in self.restorers.values())

    def restore(
        self, degraded: Tensor, references: Sequence[Path], *, gt: Tensor | None, rng: np.random.Generator
    ) -> Tensor:
        names = list(self.shares)
        index = np.searchsorted(np.cumsum([self.shares[name] for name in names]), rng.random(), side="right")
        chosen = self.restorers[names[min(int(index), len(names) - 1)]]
        return chosen.restore(degraded, references, gt=gt, rng=rng)
