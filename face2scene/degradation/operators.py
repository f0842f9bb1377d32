"""What a recipe is made of: one step of damage each, every number a field.

Pictures are float32 RGB tensors (3, H, W) in [0, 1]; noise is drawn on the CPU, so the device of the picture does not
change it.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from face2scene.degradation import kernels

MODES = ("area", "bilinear", "bicubic")
MAX_KERNEL = 255  # our setting, like the limits below: beyond them it is a typing error, not a camera
FFT_FROM = 13  # kernel side from which the Fourier transform beats the direct sum, measured on one core
LUMA = (0.2989, 0.587, 0.114)  # torchvision's and basicsr's grey

Size = tuple[int, int]  # height, width


class Operator(Protocol):
    """One step of damage: a picture (3, h, w) in [0, 1] becomes another, all numbers being fields.

    `size` is the height and width of the picture the recipe started from; left out, it is `image`'s own.
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
        _one_of(self, "family", kernels.FAMILIES)
        _odd(self, "size")
        _number(self, "sigma_x", 0, 100)
        if kernels.is_round(self.family):
            _absent(self, "sigma_y", "theta_rad")
        else:
            _number(self, "sigma_y", 0, 100)
            _number(self, "theta_rad", -math.pi, math.pi)
        if kernels.has_shape(self.family):
            _number(self, "beta", 0.1, 16)
        else:
            _absent(self, "beta")

    def kernel(self) -> Tensor:
        """(size, size) float64, sum 1."""
        sigma_y = self.sigma_x if self.sigma_y is None else self.sigma_y
        beta = 1.0 if self.beta is None else self.beta
        return kernels.bivariate(self.family, self.size, self.sigma_x, sigma_y, self.theta_rad or 0.0, beta)

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        return _convolve(image, self)


@dataclass(frozen=True)
class Sinc:
    """Circular low-pass filter: rings at edges, as sharpening and resampling in cameras and viewers do."""

    cutoff_rad: float  # radians per pixel, pi is the grid's limit
    size: int

    def __post_init__(self) -> None:
        _number(self, "cutoff_rad", 0.01, math.pi)
        _odd(self, "size")

    def kernel(self) -> Tensor:
        """(size, size) float64, sum 1, with negative lobes."""
        return kernels.low_pass(self.size, self.cutoff_rad)

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        return _convolve(image, self)


@dataclass(frozen=True)
class Resize:
    """Resize to `factor` times the sides of the picture the recipe started from, rounded down.

    Relative to the start and not to the previous step, as in Real-ESRGAN, so that rounding does not add up.
    `antialias` takes torch's antialiased filters, the ones of `face2scene.images.resize`; without it
    bilinear and bicubic alias when shrinking and bicubic is a little sharper when growing, as in the
    published training code.
    """

    factor: float
    mode: str = "bicubic"
    antialias: bool = True

    def __post_init__(self) -> None:
        _number(self, "factor", 1 / 64, 8)
        _one_of(self, "mode", MODES)
        _flag(self, "antialias")

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        height, width = (max(1, math.floor(side * self.factor + 1e-6)) for side in size or image.shape[-2:])
        return _resize(image, (height, width), self.mode, self.antialias)


@dataclass(frozen=True)
class RestoreSize:
    """Back to the size of the picture the recipe started from; `mode` and `antialias` as in `Resize`."""

    mode: str = "bicubic"
    antialias: bool = True

    def __post_init__(self) -> None:
        _one_of(self, "mode", MODES)
        _flag(self, "antialias")

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        return _resize(image, size or tuple(image.shape[-2:]), self.mode, self.antialias)


@dataclass(frozen=True)
class GaussianNoise:
    """White noise of `sigma` grey levels (of 255); `grey` puts the same on all channels."""

    sigma: float
    grey: bool = False

    def __post_init__(self) -> None:
        _number(self, "sigma", 0, 255)
        _flag(self, "grey")

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        if self.sigma == 0:
            return image
        noise = torch.randn((1 if self.grey else 3, *image.shape[-2:]), generator=generator)
        return (image + (self.sigma / 255) * noise.to(image)).clamp_(0, 1)


@dataclass(frozen=True)
class PoissonNoise:
    """Shot noise as Real-ESRGAN has it: the noise of a photon count, times `scale`.

    Intensity is read in 8-bit steps; white counts as many photons as the picture has different levels,
    rounded up to a power of two. `grey` counts the luminance and puts the same noise on all channels.
    """

    scale: float
    grey: bool = False

    def __post_init__(self) -> None:
        _number(self, "scale", 0, 20)
        _flag(self, "grey")

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        if self.scale == 0:
            return image
        counted = image.cpu()
        if self.grey:
            counted = (counted * torch.tensor(LUMA)[:, None, None]).sum(dim=0, keepdim=True)
        levels = (counted * 255).round_().clamp_(0, 255)
        used = int(torch.bincount(levels.byte().flatten(), minlength=256).count_nonzero())
        photons = 2.0 ** math.ceil(math.log2(used))
        mean = levels.mul_(photons / 255)
        noise = torch.poisson(mean, generator=generator).sub_(mean).mul_(self.scale / photons)
        return (image + noise.to(image)).clamp_(0, 1)


@dataclass(frozen=True)
class Jpeg:
    """A round trip through libjpeg at `quality` 1 to 100, colour at half resolution (4:2:0)."""

    quality: int

    def __post_init__(self) -> None:
        _whole(self, "quality", 1, 100)

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        levels = (image * 255).round_().to(device="cpu", dtype=torch.uint8).contiguous()
        decoded = decode_jpeg(encode_jpeg(levels, quality=self.quality), mode=ImageReadMode.RGB)
        return decoded.to(device=image.device, dtype=image.dtype).div_(255)


OPERATORS: dict[str, type] = {
    kind.__name__: kind for kind in (Blur, Sinc, Resize, RestoreSize, GaussianNoise, PoissonNoise, Jpeg)
}


# Convolution


@lru_cache(maxsize=512)
def _trimmed_kernel(operator: Blur | Sinc) -> Tensor:
    return kernels.trim(operator.kernel()).float()


def _convolve(image: Tensor, operator: Blur | Sinc) -> Tensor:
    height, width = image.shape[-2:]
    if operator.size // 2 >= min(height, width):
        raise ValueError(
            f"{type(operator).__name__}.size is {operator.size}, but the picture is {height} x {width} "
            f"pixels at this stage, which allows at most {2 * min(height, width) - 1}: "
            "use a larger picture or a smaller size."
        )
    kernel = _trimmed_kernel(operator).to(image)
    side = kernel.shape[-1]
    if side == 1:
        return image
    pad = side // 2
    padded = F.pad(image[None], (pad,) * 4, mode="reflect")
    if side < FFT_FROM:
        blurred = F.conv2d(padded, kernel.expand(3, 1, side, side), groups=3)[0]  # symmetric: no flip
    else:
        blurred = _convolve_by_fourier(padded[0], kernel)
    return blurred.clamp_(0, 1)


def _convolve_by_fourier(padded: Tensor, kernel: Tensor) -> Tensor:
    # Circular convolution on a size that transforms fast; what wraps around falls in the padding cut off
    # below.
    lost = kernel.shape[-1] - 1
    height, width = padded.shape[-2:]
    grid = (_fast_length(height), _fast_length(width))
    spectrum = torch.fft.rfft2(padded, s=grid).mul_(torch.fft.rfft2(kernel, s=grid))
    return torch.fft.irfft2(spectrum, s=grid)[:, lost:height, lost:width].contiguous()


@lru_cache(maxsize=256)
def _fast_length(length: int) -> int:
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1


# Resizing


def _resize(image: Tensor, size: Size, mode: str, antialias: bool) -> Tensor:
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    if mode == "area":
        return F.interpolate(image[None], size=size, mode="area")[0]
    if mode == "bilinear" and size[0] >= image.shape[-2] and size[1] >= image.shape[-1]:
        antialias = True  # growing, both are one formula, and this routine is up to four times faster
    resized = F.interpolate(image[None], size=size, mode=mode, align_corners=False, antialias=antialias)[0]
    return resized.clamp_(0, 1)


# Checks: each names the field, the value and what is allowed


def _refuse(owner: object, name: str, allowed: str) -> None:
    raise ValueError(f"{type(owner).__name__}.{name} is {getattr(owner, name)!r}: it must be {allowed}.")


def _number(owner: object, name: str, low: float, high: float) -> None:
    allowed = f"a number from {low:g} to {high:g}"
    try:
        value = float(getattr(owner, name))
    except (TypeError, ValueError):
        _refuse(owner, name, allowed)
    if not low <= value <= high:
        _refuse(owner, name, allowed)
    object.__setattr__(owner, name, value)  # 1 and 1.0 are one value, in JSON too


def _whole(owner: object, name: str, low: int, high: int) -> None:
    value = getattr(owner, name)
    try:
        whole = int(value)
    except (TypeError, ValueError, OverflowError):
        whole = None
    if whole is None or isinstance(value, str | bool) or whole != value or not low <= whole <= high:
        _refuse(owner, name, f"a whole number from {low} to {high}")
    object.__setattr__(owner, name, whole)


def _odd(owner: object, name: str) -> None:
    _whole(owner, name, 1, MAX_KERNEL)
    if getattr(owner, name) % 2 == 0:
        _refuse(owner, name, f"odd, from 1 to {MAX_KERNEL}")


def _flag(owner: object, name: str) -> None:
    if getattr(owner, name) not in (True, False):
        _refuse(owner, name, "true or false")
    object.__setattr__(owner, name, bool(getattr(owner, name)))


def _one_of(owner: object, name: str, allowed: tuple[str, ...]) -> None:
    if getattr(owner, name) not in allowed:
        _refuse(owner, name, f"one of {', '.join(allowed)}")


def _absent(owner: object, *names: str) -> None:
    for name in names:
        if getattr(owner, name) is not None:
            _refuse(owner, name, f"left out for the family {owner.family!r}")
