"""Convolution of an image with an operator's kernel, mirrored at the border, by the fastest exact way.

On a core, a kernel that is a sum of up to `MAX_RANK` separable ones (its singular value decomposition, cut where the
rest weighs less than `RESIDUE`) is one `banded_matmul`; any other small one is summed directly, in windows; the rest
uses SciPy's Fourier transform. On a GPU, and where gradients are wanted, it is the direct sum or torch's Fourier
transform. All of them agree to 2e-6.
"""

from collections.abc import Hashable, Iterator
from functools import lru_cache
from typing import Any, Protocol

import scipy.fft
import torch
from torch import Tensor
from torch.nn import functional as F

from face2scene.degradation.functional import kernels
from face2scene.degradation.functional.banded import BandedMatrix, banded_matmul, empty_aligned, runs_banded
from face2scene.degradation.functional.resize import taps

RESIDUE = 1e-6  # the largest error of the cut in an image in [0, 1]; a fifteenth of a 16-bit step
MAX_RANK = 3  # one more takes longer than the Fourier transform, measured on one core
WINDOW = 8  # neighbouring outputs that are one product with the window they read
LARGEST_WINDOWED = (1, 7, 9, 13)  # side up to which windows are fastest, for a kernel of rank 1, 2, 3, more; measured
TILE = 400_000  # values that are transformed at a time: they fit a core's cache and bound the memory
PLAIN_BELOW = 25  # kernel side from which a GPU takes the Fourier transform; our guess, not measured


class Kernel(Hashable, Protocol):
    """An operator with a kernel; hashable, since what is computed from it is cached."""

    @property
    def size(self) -> int:
        """Side of the kernel in pixels, odd."""

    def kernel(self) -> Tensor:
        """(size, size) float64 on the CPU, sum 1."""


def convolve(image: Tensor, operator: Kernel) -> Tensor:
    """(C, h, w) in [0, 1] convolved with the operator's kernel, clamped to [0, 1].

    Raises:
        ValueError: the kernel is larger than the mirrored image; the message names the operator's `size`.
    """
    check_mirrorable(image, operator.size, f"{type(operator).__name__}.size is")
    height, width = image.shape[-2:]
    kernel = _trimmed(operator)
    side = kernel.shape[-1]
    if side == 1:
        return image
    if not runs_banded(image):
        return plain(image, kernel) if side < PLAIN_BELOW else by_fourier(image, kernel)
    factors = _factors(operator)
    rank = MAX_RANK + 1 if factors is None else len(factors[0])
    if side <= LARGEST_WINDOWED[min(rank, len(LARGEST_WINDOWED)) - 1]:
        return by_windows(image, kernel)
    if factors is None:
        return by_scipy(image, kernel)
    return banded_matmul(image, _matrix(operator, 0, height), _matrix(operator, 1, width))


def convolve_and_resize(
    image: Tensor,
    operator: Kernel,
    size: tuple[int, int],
    mode: str,
    antialias: bool,
    steps: tuple[float, float] | None = None,
) -> Tensor | None:
    """`convolve` and then `resize` in one pass over each axis; None where that is not possible or not faster.

    Only for a kernel without negative weights: between the two nothing leaves [0, 1], so nothing is clamped there.
    """
    check_mirrorable(image, operator.size, f"{type(operator).__name__}.size is")
    height, width = image.shape[-2:]
    kernel = _trimmed(operator)
    if not runs_banded(image) or (height, width) == size:
        return None
    factors = _factors(operator)
    if kernel.shape[-1] == 1 or factors is None or len(factors[0]) > 1 or kernel.min() < 0:
        return None
    down, right = steps or (None, None)
    rows = _matrix(operator, 0, height, size[0], mode, antialias, down)
    return banded_matmul(image, rows, _matrix(operator, 1, width, size[1], mode, antialias, right))


def check_mirrorable(image: Tensor, side: int, subject: str) -> None:
    """Refuse an image that is too small for the mirrored border of a kernel; `subject` begins the message."""
    height, width = image.shape[-2:]
    if side // 2 >= min(height, width):
        raise ValueError(
            f"{subject} {side}, but the image is {height} x {width} pixels at this stage, "
            f"which allows at most {2 * min(height, width) - 1}: use a larger image or a smaller size."
        )


def plain(image: Tensor, kernel: Tensor) -> Tensor:
    """The sum of the definition."""
    side = kernel.shape[-1]
    padded = F.pad(image[None], (side // 2,) * 4, mode="reflect")
    weight = kernel.flip(0, 1).to(image).expand(len(image), 1, side, side)
    return F.conv2d(padded, weight, groups=len(image))[0].clamp(0, 1)


def by_fourier(image: Tensor, kernel: Tensor) -> Tensor:
    """Circular convolution on a grid of a fast size; what wraps around falls in the padding, which is cut off."""
    side = kernel.shape[-1]
    grid = tuple(scipy.fft.next_fast_len(length + side - 1, real=True) for length in image.shape[-2:])
    padded = F.pad(image, (side // 2,) * 4, mode="reflect")
    height, width = padded.shape[-2:]
    spectrum = torch.fft.rfft2(padded, s=grid) * torch.fft.rfft2(kernel.to(image), s=grid)
    return torch.fft.irfft2(spectrum, s=grid)[:, side - 1 : height, side - 1 : width].clamp(0, 1)


def by_scipy(image: Tensor, kernel: Tensor) -> Tensor:
    """`by_fourier` on the CPU, in strips of rows."""
    side = kernel.shape[-1]
    height, width = image.shape[-2:]
    step = min(height, max(TILE // (width + side), 4 * side))
    grid = tuple(scipy.fft.next_fast_len(length + side - 1, real=True) for length in (step, width))
    # Of the kernel's rows only the first `side` are not zero.
    response = scipy.fft.fft(scipy.fft.rfft(kernel.float().numpy(), n=grid[1]), n=grid[0], axis=0)
    result = empty_aligned(*image.shape)
    for start, stop, strip in _mirrored_strips(image, side, step):
        for channel, out in zip(strip, result, strict=True):
            spectrum = scipy.fft.rfft2(channel.numpy(), s=grid)
            spectrum *= response
            blurred = torch.from_numpy(scipy.fft.irfft2(spectrum, s=grid, overwrite_x=True))
            valid = blurred[side - 1 : side - 1 + stop - start, side - 1 : side - 1 + width]
            torch.clamp(valid, 0, 1, out=out[start:stop])
    return result


def by_windows(image: Tensor, kernel: Tensor) -> Tensor:
    """The sum of the definition on the CPU, `WINDOW` neighbouring outputs at a time, in strips of rows.

    To a convolution with that stride the neighbours are output channels, which processors compute fast, and in memory
    with the channels last they are the rows of an image.
    """
    side = kernel.shape[-1]
    count, height, width = image.shape
    across, reach = -(-width // WINDOW), WINDOW + side - 1
    flipped = kernel.flip(0, 1).float()
    windows = torch.zeros(WINDOW, 1, side, reach)
    for place, window in enumerate(windows):
        window[0, :, place : place + side] = flipped
    # Channels last, which a dimension of length 1 leaves ambiguous.
    windows = windows.as_strided(windows.shape, (side * reach, 1, reach, 1))
    step = min(height, max(TILE // width, 4 * side))
    result = empty_aligned(*image.shape)
    for start, stop, strip in _mirrored_strips(image, side, step):
        rows, columns = stop - start + side - 1, across * WINDOW + side - 1
        padded = image.new_zeros(count, rows, columns)
        padded[..., : width + side - 1] = strip
        padded = padded.as_strided((count, 1, rows, columns), (rows * columns, 1, columns, 1))
        blurred = F.conv2d(padded, windows, stride=(1, WINDOW)).permute(0, 2, 3, 1)
        torch.clamp(blurred.reshape(count, stop - start, -1)[..., :width], 0, 1, out=result[:, start:stop])
    return result


def _mirrored_strips(image: Tensor, side: int, step: int) -> Iterator[tuple[int, int, Tensor]]:
    """Start and stop of strips of `step` rows, and the mirrored strip (C, rows + side - 1, width + side - 1)."""
    pad, height = side // 2, image.shape[-2]
    for start in range(0, height, step):
        stop = min(start + step, height)
        low, high = max(start - pad, 0), min(stop + pad, height)
        missing = (pad, pad, pad - (start - low), pad - (high - stop))
        yield start, stop, F.pad(image[None, :, low:high], missing, mode="reflect")[0]


@lru_cache(maxsize=512)
def _trimmed(operator: Kernel) -> Tensor:
    return kernels.trim(operator.kernel())


@lru_cache(maxsize=512)
def _factors(operator: Kernel) -> tuple[Tensor, Tensor] | None:
    """Column and row vectors (rank, side) whose products sum up to the kernel; None beyond `MAX_RANK`."""
    kernel = _trimmed(operator)
    left, values, right = torch.linalg.svd(kernel)
    left = left.T * values[:, None]
    for rank in range(1, min(MAX_RANK, len(values)) + 1):
        if (kernel - left[:rank].T @ right[:rank]).abs().sum() < RESIDUE:
            return left[:rank], right[:rank]
    return None


@lru_cache(maxsize=128)
def _matrix(operator: Kernel, axis: int, length: int, *resize: Any) -> BandedMatrix:
    """The convolution along one axis, then the resize that `resize.taps` describes, if its arguments are given."""
    factors = _factors(operator)
    assert factors is not None, "only separable kernels are banded"
    vectors = factors[axis].flip(1)  # (rank, side)
    index, weight = torch.arange(length)[:, None], torch.ones(length, 1, dtype=torch.float64)
    if resize:
        index, weight = taps(length, *resize)
    side = vectors.shape[1]
    index = index[..., None] + torch.arange(side) - side // 2
    index = (length - 1) - ((length - 1) - index.abs()).abs()  # mirrored about the first and the last pixel
    weight = (weight[..., None] * vectors[:, None, None]).flatten(2)
    return BandedMatrix.of(index.flatten(1), weight, length)
