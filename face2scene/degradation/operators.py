"""What a recipe is made of: one step of damage each, every number a field.

Pictures are float32 RGB tensors (3, H, W) in [0, 1]. How the heavy ones are computed is in convolve.py, resize.py,
noise.py and jpeg.py.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from face2scene.degradation import checks, jpeg, kernels, noise
from face2scene.degradation.convolve import convolve
from face2scene.degradation.resize import MODES, resize

LUMA = (0.2989, 0.587, 0.114)  # torchvision's and basicsr's grey

Size = tuple[int, int]  # height, width


class Operator(Protocol):
    """One step of damage: a picture (3, h, w) in [0, 1] becomes another, all numbers being fields.

    `generator` is on the CPU; its seed stands for the noise realisation. `size` is the height and width of the
    picture the recipe started from; left out, it is `image`'s own.
    """

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Blur:
    """Blur by one kernel of `kernels.FAMILIES`, mirrored at the border.

    `sigma_x`, `sigma_y` in pixels, `theta_rad` the direction of x, `beta` the exponent of the generalised and
    plateau families. What a family does not have is left out.
    """

    family: str
    size: int
    sigma_x: float
    sigma_y: float | None = None
    theta_rad: float | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        checks.one_of(self, "family", kernels.FAMILIES)
        checks.odd(self, "size")
        checks.number(self, "sigma_x", 0, 100)
        if kernels.is_round(self.family):
            checks.absent(self, "sigma_y", "theta_rad")
        else:
            checks.number(self, "sigma_y", 0, 100)
            checks.number(self, "theta_rad", -math.pi, math.pi)
        if kernels.has_shape(self.family):
            checks.number(self, "beta", 0.1, 16)
        else:
            checks.absent(self, "beta")

    def kernel(self) -> Tensor:
        """(size, size) float64, sum 1."""
        sigma_y = self.sigma_x if self.sigma_y is None else self.sigma_y
        beta = 1.0 if self.beta is None else self.beta
        return kernels.bivariate(self.family, self.size, self.sigma_x, sigma_y, self.theta_rad or 0.0, beta)

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        return convolve(image, self)


@dataclass(frozen=True)
class Sinc:
    """Circular low-pass filter: rings at edges, as sharpening and resampling in cameras and viewers do."""

    cutoff_rad: float  # radians per pixel, pi is the grid's limit
    size: int

    def __post_init__(self) -> None:
        checks.number(self, "cutoff_rad", 0.01, math.pi)
        checks.odd(self, "size")

    def kernel(self) -> Tensor:
        """(size, size) float64, sum 1, with negative lobes."""
        return kernels.low_pass(self.size, self.cutoff_rad)

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        return convolve(image, self)


@dataclass(frozen=True)
class Resize:
    """Resize to `factor` times the sides of the picture the recipe started from, rounded down.

    Relative to the start and not to the previous step, as in Real-ESRGAN, so that rounding does not add up.
    `antialias` takes torch's antialiased filters, the ones of `face2scene.images.resize`; without it
    bilinear and bicubic alias when shrinking and bicubic is a little sharper when growing, as in the
    published training code.

    `by_factor` steps by exactly 1 / `factor` where the rounded sizes would have it a little otherwise, as the first
    resize of that code does (`interpolate(scale_factor=...)`): the content moves towards the lower right by up to
    one pixel of the small picture at the far border. Only bilinear and bicubic without antialias know it.
    """

    factor: float
    mode: str = "bicubic"
    antialias: bool = True
    by_factor: bool | None = None  # None is False, and what stored recipes say of it

    def __post_init__(self) -> None:
        checks.number(self, "factor", 1 / 64, 8)
        checks.one_of(self, "mode", MODES)
        checks.flag(self, "antialias")
        if self.by_factor is not None:
            checks.flag(self, "by_factor")

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        return resize(image, self.target(image, size), self.mode, self.antialias, self.steps(image, size))

    def target(self, image: Tensor, size: Size | None = None) -> Size:
        """Height and width of the result."""
        height, width = (max(1, math.floor(side * self.factor + 1e-6)) for side in size or image.shape[-2:])
        return height, width

    def steps(self, image: Tensor, size: Size | None = None) -> tuple[float, float] | None:
        """Pixels of `image` from one row and column of the result to the next; None is the ratio of the sizes."""
        if not self.by_factor:
            return None
        down, right = (
            side / start / self.factor for side, start in zip(image.shape[-2:], size or image.shape[-2:], strict=True)
        )
        return down, right


@dataclass(frozen=True)
class RestoreSize:
    """Back to the size of the picture the recipe started from; `mode` and `antialias` as in `Resize`."""

    mode: str = "bicubic"
    antialias: bool = True

    def __post_init__(self) -> None:
        checks.one_of(self, "mode", MODES)
        checks.flag(self, "antialias")

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        return resize(image, size or tuple(image.shape[-2:]), self.mode, self.antialias)


@dataclass(frozen=True)
class GaussianNoise:
    """White noise of `sigma` grey levels (of 255); `grey` puts the same on all channels."""

    sigma: float
    grey: bool = False

    def __post_init__(self) -> None:
        checks.number(self, "sigma", 0, 255)
        checks.flag(self, "grey")

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        if self.sigma == 0:
            return image
        shape = (1 if self.grey else 3, *image.shape[-2:])
        grain = noise.gaussian(generator.initial_seed(), math.prod(shape), image.device).view(shape)
        return _add_noise(image, grain, self.sigma / 255)


@dataclass(frozen=True)
class PoissonNoise:
    """Shot noise as Real-ESRGAN has it: the noise of a photon count, times `scale`.

    Intensity is read in 8-bit steps; white counts as many photons as the picture has different levels,
    rounded up to a power of two. `grey` counts the luminance and puts the same noise on all channels. A
    gradient passes the noise by.
    """

    scale: float
    grey: bool = False

    def __post_init__(self) -> None:
        checks.number(self, "scale", 0, 20)
        checks.flag(self, "grey")

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        if self.scale == 0:
            return image
        counted = image.detach()
        grain, photons = noise.shot(_luma(counted) if self.grey else counted, generator.initial_seed())
        return _add_noise(image, grain, self.scale / photons)


@dataclass(frozen=True)
class Jpeg:
    """A round trip through JPEG at `quality` 1 to 100, colour at half resolution (4:2:0).

    Attributes:
        codec: "libjpeg" is the real one, on the CPU, and refuses gradients; "differentiable" is a formula of it, on
            the picture's device, see `jpeg.differentiable`; "diffjpeg" is the published trainings' formula, of which
            the quality may be any number.
    """

    quality: float
    codec: str = "libjpeg"

    def __post_init__(self) -> None:
        checks.one_of(self, "codec", jpeg.CODECS)
        (checks.number if self.codec == "diffjpeg" else checks.whole)(self, "quality", 1, 100)

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        if self.codec != "libjpeg":
            return jpeg.differentiable(image, self.quality, published=self.codec == "diffjpeg")
        if torch.is_grad_enabled() and image.requires_grad:
            raise ValueError("Jpeg.codec is 'libjpeg', which has no gradient: make it 'differentiable'.")
        return jpeg.codec(image, self.quality)


def _luma(image: Tensor) -> Tensor:
    red, green, blue = LUMA
    return (red * image[:1]).add_(image[1:2], alpha=green).add_(image[2:], alpha=blue)


def _add_noise(image: Tensor, grain: Tensor, strength: float) -> Tensor:
    # In place on the noise where it has the picture's shape: a large picture is not held once more.
    grain = grain.mul_(strength)
    return (grain.add_(image) if grain.shape == image.shape else image + grain).clamp_(0, 1)
