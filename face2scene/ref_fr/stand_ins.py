"""Restorers that need no weights: the upper bound, the lower bound, and a controlled imitation between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def _known(gt: Tensor | None, name: str) -> Tensor:
    if gt is None:
        raise ValueError(
            f"ref_fr={name} is made from the clean face and there is none: give gt=FOLDER with images of the "
            "same names, or choose another ref_fr."
        )
    return gt


@dataclass(frozen=True)
class GroundTruth:
    """The clean face itself: the best that Stage I could do."""

    name: str = "ground_truth"
    needs_gt: bool = True

    def restore(
        self, degraded: Tensor, references: Sequence[Path], *, gt: Tensor | None, rng: np.random.Generator
    ) -> Tensor:
        return _known(gt, self.name)


@dataclass(frozen=True)
class Copy:
    """The degraded face unchanged: Stage I that does nothing."""

    name: str = "copy"
    needs_gt: bool = False

    def restore(
        self, degraded: Tensor, references: Sequence[Path], *, gt: Tensor | None, rng: np.random.Generator
    ) -> Tensor:
        return degraded


@dataclass(frozen=True)
class Perturbed:
    """The clean face as an imperfect restorer would give it: a little soft, a little off in colour.

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
    needs_gt: bool = True

    def restore(
        self, degraded: Tensor, references: Sequence[Path], *, gt: Tensor | None, rng: np.random.Generator
    ) -> Tensor:
        gt = _known(gt, self.name)
        height, width = gt.shape[-2:]
        factor = rng.uniform(1, self.softness)
        small = (max(8, round(height / factor)), max(8, round(width / factor)))
        soft = F.interpolate(gt[None], size=small, mode="bicubic", antialias=True, align_corners=False)
        soft = F.interpolate(soft, size=(height, width), mode="bicubic", align_corners=False)[0]
        shift = torch.from_numpy(rng.uniform(-self.tint, self.tint, (3, 1, 1)).astype(np.float32))
        noise = torch.from_numpy(rng.standard_normal(gt.shape, dtype=np.float32))
        return (soft + shift + self.grain * noise).clamp(0, 1)


@dataclass(frozen=True)
class CalibratedPerturbation:
    """The clean face as FaceMe gives it in one row of the paper's Table 6: a controlled perturbation.

    The ground truth is blended with a version of itself that is low-passed, shifted in identity (its features moved by
    a smooth random field, the same in all channels) and noised. The paper names no more than "a controlled synthetic
    perturbation"; form and amounts are ours, calibrated on its row of DISTS, LPIPS and PSNR at faces of 256 pixels.

    Args:
        blend: share of the perturbed version, 0 to 1.
        blur: sigma of the low-pass in pixels.
        shift: root mean square displacement of a feature in pixels.
        grain: sigma of the noise, in [0, 1] units.
        grain_size: sigma in pixels of the low-pass over the noise; 0 is white noise.
        scale: wavelength of the displacement field in pixels, about the distance of a face's features.
    """

    blend: float
    blur: float
    shift: float
    grain: float
    grain_size: float = 0.0
    scale: float = 48.0
    name: str = "perturbed"
    needs_gt: bool = True

    def restore(
        self, degraded: Tensor, references: Sequence[Path], *, gt: Tensor | None, rng: np.random.Generator
    ) -> Tensor:
        gt = _known(gt, self.name)
        field = self._field(gt.shape[-2:], rng)
        noise = torch.from_numpy(rng.standard_normal(gt.shape, dtype=np.float32))
        noise = _blurred(noise, self.grain_size)
        noise = noise / noise.square().mean().sqrt()
        moved = _moved(_blurred(gt, self.blur), field)
        return ((1 - self.blend) * gt + self.blend * (moved + self.grain * noise)).clamp(0, 1)

    def _field(self, size: tuple[int, int], rng: np.random.Generator) -> Tensor:
        height, width = size
        cells = tuple(max(2, round(side / self.scale) + 1) for side in size)
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


def _moved(image: Tensor, field: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([(x + field[0]) * 2 / max(width - 1, 1) - 1, (y + field[1]) * 2 / max(height - 1, 1) - 1], -1)
    return F.grid_sample(image[None], place[None].to(image), padding_mode="border", align_corners=True)[0]


@dataclass(frozen=True)
class Mixed:
    """One of several restorers at random, for a training that has to bear whatever Stage I gives.

    The paper trains FaDeX on restored and on true faces (facts 1.2); the shares, and a mix of qualities, are ours.

    Args:
        restorers: by name; each has `restore(degraded, references, gt=, rng=)` and keeps the crop's size.
        shares: of the faces, by the same names; they sum to 1.

    Raises:
        ValueError: names that differ, or shares that do not sum to 1.
    """

    restorers: Mapping[str, Any]
    shares: Mapping[str, float]
    name: str = "mixed"

    def __post_init__(self) -> None:
        if set(self.restorers) != set(self.shares):
            raise ValueError(
                f"ref_fr.shares names {sorted(self.shares)} and ref_fr.restorers {sorted(self.restorers)}: every "
                "restorer needs one share."
            )
        if any(share < 0 for share in self.shares.values()) or abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError(f"ref_fr.shares must be at least 0 and sum to 1, got {dict(self.shares)}.")

    @property
    def needs_gt(self) -> bool:
        return any(restorer.needs_gt for restorer in self.restorers.values())

    def restore(
        self, degraded: Tensor, references: Sequence[Path], *, gt: Tensor | None, rng: np.random.Generator
    ) -> Tensor:
        names = list(self.shares)
        place = np.searchsorted(np.cumsum([self.shares[name] for name in names]), rng.random(), side="right")
        chosen = self.restorers[names[min(int(place), len(names) - 1)]]
        return chosen.restore(degraded, references, gt=gt, rng=rng)
