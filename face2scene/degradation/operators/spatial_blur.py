"""Blur that varies over the image: a field of point-spread functions (supplement, section 4.8).

A lens is sharper in its middle than in its corners. The field is a function of the position relative to the image, so
one recipe fits every size. The kernels of `WIDTHS` widths are decomposed into their mean and a few principal kernels:

    k(u) = mean + sum_j w_j(u) e_j          and so          blurred(u) = (mean * I)(u) + sum_j w_j(u) (e_j * I)(u)

with one Fourier transform of the image, one back for every two kernels, and weights w_j that are smooth functions of
the position, so there are no cells with borders. (The transforms are computed in overlapping tiles, which is exact and
fits the processor's cache.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Annotated

import torch
from scipy.fft import next_fast_len
from scipy.interpolate import CubicSpline
from torch import Tensor
from torch.nn import functional as F

from face2scene.degradation.functional.banded import empty_aligned
from face2scene.degradation.functional.convolve import check_mirrorable
from face2scene.degradation.operators import validation
from face2scene.degradation.operators.basic import FamilyBlur, Size

WIDTHS = 97  # kernel widths that are decomposed
FASTEST_PX = 0.2  # a kernel on the pixel grid changes fastest with its width around this width
STEPS = 4096  # entries of a weight's table over the squared distance
TILE = 320  # pixels a side of a tile, at least
TOLERANCE = 0.25 / 255  # the most that leaving principal kernels out may change a pixel: a quarter of an 8-bit level


@dataclass(frozen=True)
class SpatiallyVaryingBlur(FamilyBlur):
    """Blur by a kernel that is widest in the corner farthest from the optical centre.

    At the distance r from the optical centre, 1 being that corner, the widths are centre + (1 - centre) r^power times
    the given ones; with `centre` 1 it is `Blur`. Each pixel is a weighted mean with the kernel of its own position, to
    within a quarter of an 8-bit level (`TOLERANCE`). Lin et al. (Learning Lens Blur Fields, 2025) measure such fields;
    this is our parametric form of the supplement's words, milder near the centre and stronger towards the corners.

    Attributes:
        family, size, sigma_x, sigma_y, theta_rad, beta: as in `Blur`, for the corner.
        centre: width in the middle over that in the corner, 0 to 1.
        power: exponent of the growth, 1 to 8; from 2 on the field is smooth in the middle too.
        centre_x, centre_y: the optical centre as shares of width and height.
    """

    family: Annotated[str, validation.FAMILY]
    size: Annotated[int, validation.ODD_SIDE]
    sigma_x: Annotated[float, validation.SIGMA_PX]
    centre: Annotated[float, validation.SHARE]
    power: Annotated[float, validation.POWER] = 2.0
    centre_x: Annotated[float, validation.SHARE] = 0.5
    centre_y: Annotated[float, validation.SHARE] = 0.5
    sigma_y: Annotated[float | None, validation.SIGMA_PX] = None
    theta_rad: Annotated[float | None, validation.ANGLE] = None
    beta: Annotated[float | None, validation.BETA] = None

    def __call__(self, image: Tensor, generator: torch.Generator, size: Size | None = None) -> Tensor:
        mean, principal, tables = _decomposed(self)
        tables = tables.to(image)
        slopes = tables.diff()
        down, right = self._squared_distances(image)

        def weights(rows: slice, columns: slice) -> list[Tensor]:
            place = (down[rows, None] + right[columns]).mul_(STEPS - 1)
            step = place.int().clamp_(max=STEPS - 2).flatten()
            beyond = place.flatten().sub_(step)
            return [
                table.index_select(0, step).addcmul_(slope.index_select(0, step), beyond).view_as(place)
                for table, slope in zip(tables, slopes, strict=True)
            ]

        return convolve(image, torch.cat([mean[None], principal]), weights, owner=self).clamp_(0, 1)

    def _squared_distances(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Of rows (H) and columns (W): their sum is 0 at the optical centre and 1 at the corner farthest from it."""
        sides = list(zip(image.shape[-2:], (self.centre_y, self.centre_x), strict=True))
        farthest = math.hypot(*(length * max(centre, 1 - centre) for length, centre in sides))
        down, right = (
            (((torch.arange(length, dtype=torch.float64) + 0.5 - centre * length) / farthest) ** 2).to(image)
            for length, centre in sides
        )
        return down, right


def convolve(
    image: Tensor,
    stack: Tensor,
    weights: Callable[[slice, slice], list[Tensor]] = lambda rows, columns: [],
    *,
    owner: object,
) -> Tensor:
    """The image convolved with the first kernel, plus its position-dependent weighted convolutions with the others.

    A kernel's pixel at (row, column) from its middle moves light by that much, down and right.

    Args:
        image: (3, H, W), mirrored at the border.
        stack: the kernels (n, k, k), k odd.
        weights: of the rows and columns of a block, the n - 1 weight maps of the second and the following kernels.
        owner: the operator that an error names.

    Raises:
        ValueError: the kernel is larger than the mirrored image.
    """
    height, width = image.shape[-2:]
    side = stack.shape[-1]
    check_mirrorable(image, side, f"{type(owner).__name__} has a kernel of side")
    padded = F.pad(image[None], (side // 2,) * 4, mode="reflect")[0]
    blocks = [_blocks(length, max(TILE, 4 * side) - side + 1) for length in (height, width)]
    grid = tuple(next_fast_len(max(b.stop - b.start for b in along) + side - 1) for along in blocks)
    # The image is real, so two real kernels share one complex transform: half the transforms.
    evens, odds = stack[::2], torch.cat([stack[1::2], torch.zeros_like(stack[: len(stack) % 2])])
    pairs = torch.fft.fft2(torch.complex(evens, odds), s=grid).to(device=image.device, dtype=torch.complex64)
    result = empty_aligned(*image.shape, device=image.device)
    for rows in blocks[0]:
        for columns in blocks[1]:
            # Circular on a grid that holds the tile: what wraps around falls in the rows and columns cut off.
            tile = padded[:, rows.start : rows.stop + side - 1, columns.start : columns.stop + side - 1]
            spectrum = torch.fft.fft2(tile, s=grid)
            inside = (..., slice(side - 1, tile.shape[-2]), slice(side - 1, tile.shape[-1]))
            maps = weights(rows, columns)
            for number, pair in enumerate(pairs):
                filtered = torch.fft.ifft2(spectrum * pair)[inside]
                if number == 0:
                    total = filtered.real.clone()
                else:
                    total.addcmul_(filtered.real, maps[2 * number - 1])
                if 2 * number < len(maps):
                    total.addcmul_(filtered.imag, maps[2 * number])
            result[:, rows, columns] = total
    return result


def _blocks(length: int, at_most: int) -> list[slice]:
    """A side in slices of about the same length."""
    count = math.ceil(length / at_most)
    ends = [round(length * n / count) for n in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]


@lru_cache(maxsize=64)
def _decomposed(field: SpatiallyVaryingBlur) -> tuple[Tensor, Tensor, Tensor]:
    """Mean kernel (k, k), principal kernels (n, k, k), and the weights of these over the squared distance (n, STEPS).

    The principal kernels sum to zero, so whichever are left out, the kernel of every position sums to one.
    """
    # The widths lie closer where the kernel changes fast with its width.
    offset = FASTEST_PX / max(field.sigma_x, field.sigma_y or 0, FASTEST_PX)
    low, high = math.log(field.centre + offset), math.log(1 + offset)
    marks = torch.linspace(low, high, WIDTHS, dtype=torch.float64)
    sampled = torch.stack(
        [field.scaled_kernel(width).flatten() for width in (marks.exp() - offset).clamp(0, 1).tolist()]
    )
    mean = sampled.mean(dim=0)
    rest = sampled - mean
    left, strength, right = torch.linalg.svd(rest, full_matrices=False)
    count = 0
    # The light that a kernel puts at wrong positions is half the sum of its absolute errors.
    while rest.abs().sum(dim=1).max() / 2 > TOLERANCE:
        rest = rest - strength[count] * left[:, count, None] * right[count]
        count += 1
    tables = torch.zeros(count, STEPS, dtype=torch.float64)
    if count:
        distance = torch.linspace(0, 1, STEPS, dtype=torch.float64).sqrt()
        width = field.centre + (1 - field.centre) * distance**field.power
        weights = CubicSpline(marks.numpy(), (left[:, :count] * strength[:count]).numpy())
        tables = torch.from_numpy(weights((width + offset).log().numpy())).T.contiguous()
    side = (field.size, field.size)
    return mean.reshape(side), right[:count].reshape(count, *side), tables
