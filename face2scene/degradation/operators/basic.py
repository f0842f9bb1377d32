"""What a recipe is made of: one step of degradation each, every number a field.

Images are float32 RGB tensors (3, H, W) in [0, 1]. How the heavy ones are computed is in convolve.py, resize.py,
noise.py and jpeg.py.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Protocol

import torch
from torch import Tensor

from face2scene.degradation.functional import jpeg, kernels, noise
from face2scene.degradation.functional.convolve import convolve
from face2scene.degradation.functional.resize import MODES, resize
from face2scene.degradation.operators import validation
from face2scene.degradation.operators.validation import Checked, Number, OneOf

LUMA = (0.2989, 0.587, 0.114)  # torchvision's and basicsr's grey

Size = tuple[int, int]  # height, width


class Operator(Protocol):
    """One step of degradation: an image (3, h, w) in [0, 1] becomes another, all numbers being fields.

    `generator` is on the CPU; its seed stands for the noise realisation. `size` is the height and width of the
    image the recipe started from; left out, it is `image`'s own.
    """

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor: ...


class OfFamily(Checked):
    """An operator whose kernels are of one of `kernels.FAMILIES`; what a family does not have is left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rounded, shaped = kernels.is_round(self.family), kernels.has_shape(self.family)
        needed = {"sigma_y": not rounded, "theta_rad": not rounded, "beta": shaped}
        for name, _, check in validation.declared(type(self)):
            if needed.get(name):
                check(self, name)
            elif name in needed and getattr(self, name) is not None:
                validation.refuse(self, name, f"left out for the family {self.family!r}")

    def scaled_kernel(self, width: float) -> Tensor:
        """The kernel of `width` times the sigmas: (size, size) float64, sum 1."""
        sigma_y = self.sigma_x if self.sigma_y is None else self.sigma_y
        beta = 1.0 if self.beta is None else self.beta
        return kernels.bivariate(
            self.family, self.size, width * self.sigma_x, width * sigma_y, self.theta_rad or 0.0, beta
        )


@dataclass(frozen=True)
class Blur(OfFamily):
    """Blur by one kernel of `kernels.FAMILIES`, mirrored at the border.

    `sigma_x`, `sigma_y` in pixels, `theta_rad` the direction of x, `beta` the exponent of the generalised and
    plateau families. What a family does not have is left out.
    """

    family: Annotated[str, validation.FAMILY]
    size: Annotated[int, validation.ODD_SIDE]
    sigma_x: Annotated[float, validation.SIGMA_PX]
    sigma_y: Annotated[float | None, validation.SIGMA_PX] = None
    theta_rad: Annotated[float | None, validation.ANGLE] = None
    beta: Annotated[float | None, validation.BETA] = None

    def kernel(self) -> Tensor:
        """(size, size) float64, sum 1."""
        return self.scaled_kernel(1.0)

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        return convolve(image, self)


@dataclass(frozen=True)
class Sinc(Checked):
    """Circular low-pass filter: rings at edges, as sharpening and resampling in cameras and viewers do."""

    cutoff_rad: Annotated[float, Number(0.01, math.pi)]  # radians per pixel, pi is the grid's limit
    size: Annotated[int, validation.ODD_SIDE]

    def kernel(self) -> Tensor:
        """(size, size) float64, sum 1, with negative lobes."""
        return kernels.low_pass(self.size, self.cutoff_rad)

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        return convolve(image, self)


@dataclass(frozen=True)
class Resize(Checked):
    """Resize to `factor` times the sides of the image the recipe started from, rounded down.

    Relative to the start and not to the previous step, as in Real-ESRGAN, so that rounding does not add up.
    `antialias` takes torch's antialiased filters, the ones of `face2scene.image_io.arrays.resize`; without it
    bilinear and bicubic alias when shrinking and bicubic is a little sharper when growing, as in the
    published training code.

    `by_factor` steps by exactly 1 / `factor` where the rounded sizes would have it a little otherwise, as the first
    resize of that code does (`interpolate(scale_factor=...)`): the content moves towards the lower right by up to
    one pixel of the small image at the far border. Only bilinear and bicubic without antialias know it.
    """

    factor: Annotated[float, Number(1 / 64, 8)]
    mode: Annotated[str, OneOf(MODES)] = "bicubic"
    antialias: bool = True
    by_factor: Annotated[bool | None, validation.flag] = None  # None is False, and what stored recipes say of it

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
class RestoreSize(Checked):
    """Back to the size of the image the recipe started from; `mode` and `antialias` as in `Resize`."""

    mode: Annotated[str, OneOf(MODES)] = "bicubic"
    antialias: bool = True

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        return resize(image, size or tuple(image.shape[-2:]), self.mode, self.antialias)


@dataclass(frozen=True)
class GaussianNoise(Checked):
    """White noise of `sigma` grey levels (of 255); `grey` puts the same on all channels."""

    sigma: Annotated[float, validation.GREY_LEVELS]
    grey: bool = False

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        if self.sigma == 0:
            return image
        shape = (1 if self.grey else 3, *image.shape[-2:])
        grain = noise.gaussian(generator.initial_seed(), math.prod(shape), image.device).view(shape)
        return _add_noise(image, grain, self.sigma / 255)


@dataclass(frozen=True)
class PoissonNoise(Checked):
    """Shot noise as Real-ESRGAN has it: the noise of a photon count, times `scale`.

    Intensity is read in 8-bit steps; white counts as many photons as the image has different levels,
    rounded up to a power of two. `grey` counts the luminance and puts the same noise on all channels. A
    gradient passes the noise by.
    """

    scale: Annotated[float, validation.SHOT_SCALE]
    grey: bool = False

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        if self.scale == 0:
            return image
        counted = image.detach()
        grain, photons = noise.shot(_luma(counted) if self.grey else counted, generator.initial_seed())
        return _add_noise(image, grain, self.scale / photons)


@dataclass(frozen=True)
class Jpeg(Checked):
    """A round trip through JPEG at `quality` 1 to 100, colour at half resolution (4:2:0).

    Attributes:
        codec: "libjpeg" is the real one, on the CPU, and refuses gradients; "differentiable" is a formula of it, on
            the image's device, see `jpeg.differentiable`; "diffjpeg" is the published trainings' formula, of which
            the quality may be any number.
    """

    quality: float
    codec: Annotated[str, OneOf(jpeg.CODECS)] = "libjpeg"

    def __post_init__(self) -> None:
        super().__post_init__()
        replace(validation.QUALITY, whole=self.codec != "diffjpeg")(self, "quality")

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
    # In place on the noise where it has the image's shape: a large image is not held once more.
    grain = grain.mul_(strength)
    return (grain.add_(image) if grain.shape == image.shape else image + grain).clamp_(0, 1)
