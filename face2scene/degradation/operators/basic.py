"""The operators of Real-ESRGAN's pipeline, every number a field.

Images are float32 RGB tensors (3, H, W) in [0, 1]. The arithmetic is in `face2scene.degradation.functional`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from face2scene.degradation.functional import jpeg, kernels, noise
from face2scene.degradation.functional.convolve import convolve
from face2scene.degradation.functional.resize import MODES, resize
from face2scene.degradation.operators import validation
from face2scene.degradation.operators.validation import Checked, Number, OneOf

LUMA = (0.2989, 0.587, 0.114)  # torchvision's and basicsr's grey

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Operator(Checked, ABC):
    """One step of a degradation: a function of an image (3, h, w) in [0, 1] whose parameters are its fields."""

    @abstractmethod
    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        """The degraded image, in [0, 1].

        Args:
            generator: on the CPU; its seed decides the noise.
            size: height and width of the recipe's input; None is `image`'s own.
        """


class FamilyBlur(Operator):
    """An operator whose kernels are of one of `kernels.FAMILIES`; parameters that the family lacks are None."""

    family: str
    size: int
    sigma_x: float
    sigma_y: float | None
    theta_rad: float | None
    beta: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        rounded, shaped = kernels.is_round(self.family), kernels.has_shape(self.family)
        needed = {"sigma_y": not rounded, "theta_rad": not rounded, "beta": shaped}
        for name, _, check in validation.declared_checks(type(self)):
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
class Blur(FamilyBlur):
    """Blur by one kernel of `kernels.FAMILIES`; the image is mirrored at the border.

    Attributes:
        size: side of the kernel in pixels, odd.
        sigma_x, sigma_y: widths in pixels. theta_rad: direction of x. Round families have sigma_x alone.
        beta: exponent, of the generalised and plateau families alone.
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
class Sinc(Operator):
    """Circular low-pass filter: rings at edges, as sharpening and resampling in cameras and viewers do."""

    cutoff_rad: Annotated[float, Number(0.01, math.pi)]  # radians per pixel, pi is the grid's limit
    size: Annotated[int, validation.ODD_SIDE]

    def kernel(self) -> Tensor:
        """(size, size) float64, sum 1, with negative lobes."""
        return kernels.low_pass(self.size, self.cutoff_rad)

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        return convolve(image, self)


@dataclass(frozen=True)
class Resize(Operator):
    """Resize to `factor` times the sides of the recipe's input, rounded down; as Real-ESRGAN, not of the last step.

    Attributes:
        antialias: torch's antialiased filters, as in `face2scene.image_io.arrays.resize`. Without it bilinear and
            bicubic alias when shrinking and bicubic is a little sharper when enlarging, as in the published code.
        by_factor: sample at steps of exactly 1 / `factor` instead of the ratio of the rounded sizes, as that code's
            first resize does (`interpolate(scale_factor=...)`): at the far border the content moves to the lower right
            by up to one output pixel. Only bilinear and bicubic without antialias differ.
    """

    factor: Annotated[float, Number(1 / 64, 8)]
    mode: Annotated[str, OneOf(MODES)] = "bicubic"
    antialias: bool = True
    by_factor: Annotated[bool | None, validation.flag] = None  # None is False and is left out of the JSON

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
class RestoreSize(Operator):
    """Back to the size of the recipe's input; `mode` and `antialias` as in `Resize`."""

    mode: Annotated[str, OneOf(MODES)] = "bicubic"
    antialias: bool = True

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        return resize(image, size or (image.shape[-2], image.shape[-1]), self.mode, self.antialias)


@dataclass(frozen=True)
class GaussianNoise(Operator):
    """White noise of `sigma` grey levels (of 255); `grey` adds the same noise to all channels."""

    sigma: Annotated[float, validation.GREY_LEVELS]
    grey: bool = False

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        if self.sigma == 0:
            return image
        shape = (1 if self.grey else 3, *image.shape[-2:])
        grain = noise.gaussian(generator.initial_seed(), math.prod(shape), image.device).view(shape)
        return _add_noise(image, grain, self.sigma / 255)


@dataclass(frozen=True)
class PoissonNoise(Operator):
    """Shot noise as in Real-ESRGAN: the noise of a photon count, times `scale`.

    Intensity is read in 8-bit steps; white counts as many photons as the image has different levels, rounded up to a
    power of two. `grey` counts the luminance and adds the same noise to all channels. The noise has no gradient.
    """

    scale: Annotated[float, validation.SHOT_SCALE]
    grey: bool = False

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        if self.scale == 0:
            return image
        counted = image.detach()
        if self.grey:
            red, green, blue = LUMA
            counted = (red * counted[:1]).add_(counted[1:2], alpha=green).add_(counted[2:], alpha=blue)
        grain, photons = noise.shot(counted, generator.initial_seed())
        return _add_noise(image, grain, self.scale / photons)


@dataclass(frozen=True)
class Jpeg(Operator):
    """A round trip through JPEG at `quality` 1 to 100, colour at half resolution (4:2:0).

    Attributes:
        codec: "libjpeg" is the real one, on the CPU and without gradient; "differentiable" is a formula of it on the
            image's device, see `jpeg.differentiable`; "diffjpeg" is the formula of the published trainings, whose
            quality may be a fraction.
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
        return jpeg.codec(image, int(self.quality))


def _add_noise(image: Tensor, grain: Tensor, strength: float) -> Tensor:
    # In place in the noise where it has the image's shape, which saves the memory of one large image.
    grain = grain.mul_(strength)
    return (grain.add_(image) if grain.shape == image.shape else image + grain).clamp_(0, 1)
