"""Degradations of a phone's camera: motion blur by hand shake, sensor noise, and WebP.

The first two arise before the camera's tone curve, so they are computed in linear light: from sRGB and back
(IEC 61966-2-1).
"""

import io
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from face2scene.degradation.functional.banded import empty_aligned
from face2scene.degradation.operators import validation
from face2scene.degradation.operators.basic import Operator, Size
from face2scene.degradation.operators.spatial_blur import convolve
from face2scene.degradation.operators.validation import Number
from face2scene.image_io.arrays import to_bytes, to_tensor

SAMPLES_PER_PX = 64  # samples of the exposure per pixel of the path
MAX_WEBP_SIDE = 16383  # the format's own limit


@dataclass(frozen=True)
class MotionBlur(Operator):
    """Hand shake: the mean, in linear light, of the image shifted along a path during the exposure.

    With t from -1/2 to 1/2, the path is `length_px` t along its direction and
    `bend_px` (4 t^2 - 1/3) + `tremor_px` sin(2 pi `tremor_turns` t) across it: a drift, its curve, and the hand's
    tremor. Its mean is 0, so the image is not shifted. Shifts by fractions of a pixel are bilinear.

    Attributes:
        length_px: 0 to 200. bend_px: how far the middle lags behind the ends, -100 to 100. tremor_px: amplitude, 0 to
            50. All in pixels of the image at that stage.
        theta_rad: direction of the drift, from right to down.
        tremor_turns: swings within the exposure; a hand makes about 10 a second.
    """

    length_px: Annotated[float, validation.LENGTH_PX]
    theta_rad: Annotated[float, validation.ANGLE] = 0.0
    bend_px: Annotated[float, Number(-100, 100)] = 0.0
    tremor_px: Annotated[float, validation.TREMOR_PX] = 0.0
    tremor_turns: Annotated[float, validation.TURNS] = 1.0

    def path(self, moments: int) -> Tensor:
        """(moments, 2) float64: right and down in pixels, at evenly spaced moments of the exposure."""
        time = (torch.arange(moments, dtype=torch.float64) + 0.5) / moments - 0.5
        along = self.length_px * time
        across = self.bend_px * (4 * time**2 - 1 / 3)
        across = across + self.tremor_px * torch.sin(2 * math.pi * self.tremor_turns * time)
        across = across - across.mean()
        cosine, sine = math.cos(self.theta_rad), math.sin(self.theta_rad)
        return torch.stack([cosine * along - sine * across, sine * along + cosine * across], dim=1)

    def kernel(self) -> Tensor:
        """(side, side) float64, side odd and as large as the path needs, sum 1, centroid in its middle."""
        swings = 4 * self.tremor_px * self.tremor_turns
        longest = self.length_px + 4 * abs(self.bend_px) + swings  # an upper bound of the path's length
        path = self.path(SAMPLES_PER_PX * (1 + math.ceil(longest)))
        reach = math.ceil(path.abs().max().item() - 1e-9)
        side = 2 * reach + 1
        places = path + reach
        base = places.floor()
        share = places - base
        kernel = torch.zeros((side + 1) ** 2, dtype=torch.float64)  # one more row and column, for weights of zero
        for right in (0, 1):
            for down in (0, 1):
                weight = (share[:, 0] if right else 1 - share[:, 0]) * (share[:, 1] if down else 1 - share[:, 1])
                cell = (base[:, 1].long() + down) * (side + 1) + base[:, 0].long() + right
                kernel.index_add_(0, cell, weight)
        return kernel.view(side + 1, side + 1)[:side, :side] / len(path)

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        kernel = _kernel(self)
        if kernel.numel() == 1:
            return image
        return to_srgb(convolve(to_linear(image), kernel[None], owner=self))


@dataclass(frozen=True)
class SensorNoise(Operator):
    """Noise of a sensor in linear light: variance `shot` times the light plus `read` squared, white being 1.

    Red and blue are recorded weaker than green and amplified by the white balance together with their noise: with the
    gain g the variance is g `shot` light + (g `read`)^2.

    Attributes:
        shot: 0 to 1, the reciprocal of the electrons of white.
        read: 0 to 1, standard deviation of the read-out.
        red_gain, blue_gain: of the white balance relative to green; 0.2 to 5.
    """

    shot: Annotated[float, validation.SHARE]
    read: Annotated[float, validation.SHARE]
    red_gain: Annotated[float, validation.GAIN] = 1.0
    blue_gain: Annotated[float, validation.GAIN] = 1.0

    # Our setting for a phone of the 2020s with binned pixels: white is 5000 electrons at ISO 100 and in inverse
    # proportion above, read with an error of 1.2 electrons. ISO 800 to 3200 then lie inside the ranges
    # that Brooks et al. (Unprocessing Images for Learned Raw Denoising, 2019) fitted to the Darmstadt set's cameras.
    WHITE_ELECTRONS_ISO_100 = 5000
    READ_ELECTRONS = 1.2

    @classmethod
    def at_iso(cls, iso: float, *, red_gain: float = 1.0, blue_gain: float = 1.0) -> "SensorNoise":
        """The noise of a typical phone at an ISO value from 25 to 102400.

        ISO 800: shot 0.0016, read 0.0019. ISO 1600: 0.0032, 0.0038. ISO 3200: 0.0064, 0.0077.
        """
        if validation.ISO.parse(iso) is None:
            raise ValueError(f"The ISO value is {iso!r}: it must be a {validation.ISO}.")
        shot = iso / 100 / cls.WHITE_ELECTRONS_ISO_100
        return cls(shot, cls.READ_ELECTRONS * shot, red_gain, blue_gain)

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        if self.shot == 0 and self.read == 0:
            return image
        noisy = empty_aligned(*image.shape, device=image.device)
        for channel, gain in enumerate((self.red_gain, 1.0, self.blue_gain)):  # one at a time, for the memory
            light = to_linear(image[channel])
            deviation = (light * (gain * self.shot)).add_((gain * self.read) ** 2).sqrt_()
            noise = torch.randn(light.shape, generator=generator).to(image)
            noisy[channel] = to_srgb(light.addcmul_(noise, deviation))
        return noisy


@dataclass(frozen=True)
class Webp(Operator):
    """A round trip through libwebp, lossy, at `quality` 1 to 100."""

    quality: Annotated[int, validation.QUALITY]

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        if not features.check("webp"):
            raise RuntimeError(
                "WebP is not available: this Pillow was built without libwebp. Install Pillow from its wheel "
                "(pip install --force-reinstall pillow), or use a recipe without Webp."
            )
        if max(image.shape[-2:]) > MAX_WEBP_SIDE:
            raise ValueError(
                f"The image is {image.shape[-2]} x {image.shape[-1]} pixels, but WebP holds at most {MAX_WEBP_SIDE} "
                "a side: use a smaller image or Jpeg."
            )
        file = io.BytesIO()
        Image.fromarray(to_bytes(image)).save(file, format="WEBP", quality=self.quality, method=4)
        with Image.open(file, formats=["WEBP"]) as decoded:
            return to_tensor(np.asarray(decoded.convert("RGB"))).to(image)


_kernel = lru_cache(maxsize=256)(MotionBlur.kernel)


def to_linear(image: Tensor) -> Tensor:
    """sRGB [0, 1] to linear light [0, 1]."""
    light = image.add(0.055).div_(1.055).pow_(2.4)
    return torch.where(image <= 0.04045, image / 12.92, light, out=light)


def to_srgb(light: Tensor) -> Tensor:
    """Linear light, clamped to [0, 1], to sRGB."""
    light = light.clamp(0, 1)
    image = light.pow(1 / 2.4).mul_(1.055).sub_(0.055)
    return torch.where(light <= 0.0031308, light * 12.92, image, out=image).clamp_(0, 1)
