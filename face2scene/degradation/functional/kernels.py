"""Blur kernels as functions of numbers: Gaussian, generalised Gaussian, plateau and circular low-pass.

The formulas are those of Real-ESRGAN's pipeline (Wang et al. 2021, sections 3.1 and 3.3), in float64. A
kernel is a (size, size) tensor that sums to 1, rows downwards, centred at size // 2, symmetric under a turn by 180
degrees. With q = x^T S^-1 x the squared distance under the covariance S = R(theta) diag(sigma_x^2,
sigma_y^2) R(theta)^T:

    Gaussian              exp(-q / 2)
    generalised Gaussian  exp(-q^beta / 2)       beta 1 is the Gaussian, a smaller one has longer tails
    plateau               1 / (1 + q^beta)       the larger beta, the flatter its top
    circular low-pass     w J1(w r) / (2 pi r)   w in radians per pixel; the filter whose pass band is a disc
"""

import math

import torch
from torch import Tensor

FAMILIES = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
NARROWEST_PX = 1e-3  # a smaller width is a line or a point on any pixel grid; keeps the quotient finite


def is_round(family: str) -> bool:
    """Whether a family has one width and no direction."""
    return family.endswith("iso") and not family.endswith("aniso")


def has_shape(family: str) -> bool:
    """Whether a family has the exponent beta."""
    return family.startswith(("generalized", "plateau"))


def bivariate(
    family: str, size: int, sigma_x: float, sigma_y: float, theta_rad: float = 0.0, beta: float = 1.0
) -> Tensor:
    """One of `FAMILIES` as a float64 (size, size) kernel; widths in pixels, both 0 gives the delta."""
    rows, columns = _grid(size)
    if sigma_x == 0 and sigma_y == 0:
        return ((rows == 0) & (columns == 0)).double()
    cosine, sine = math.cos(theta_rad), math.sin(theta_rad)
    along = (cosine * columns + sine * rows) / max(sigma_x, NARROWEST_PX)
    across = (cosine * rows - sine * columns) / max(sigma_y, NARROWEST_PX)
    distance = along**2 + across**2
    if family.startswith("plateau"):
        kernel = 1 / (1 + distance**beta)
    else:
        kernel = torch.exp(-0.5 * distance ** (beta if has_shape(family) else 1.0))
    return kernel / kernel.sum()


def low_pass(size: int, cutoff_rad: float) -> Tensor:
    """Circular low-pass ("sinc") kernel, float64 (size, size); `cutoff_rad` up to pi, the grid's limit."""
    rows, columns = _grid(size)
    radius = torch.sqrt(rows**2 + columns**2)
    middle = radius == 0
    radius = torch.where(middle, 1.0, radius)
    kernel = cutoff_rad * torch.special.bessel_j1(cutoff_rad * radius) / (2 * math.pi * radius)
    kernel = torch.where(middle, cutoff_rad**2 / (4 * math.pi), kernel)  # the limit r -> 0
    return kernel / kernel.sum()


def trim(kernel: Tensor, tolerance: float = 1e-7) -> Tensor:
    """Drop outer rings that together weigh at most `tolerance`, far below one float32 step of a bright pixel."""
    half = kernel.shape[-1] // 2
    rows, columns = _grid(kernel.shape[-1])
    ring = torch.maximum(rows.abs(), columns.abs()).long().flatten()
    outside = torch.bincount(ring, kernel.abs().flatten()).flip(0).cumsum(0)  # of the outermost ring, of two, ...
    edge = min(int((outside <= tolerance).sum()), half)
    kernel = kernel[edge : kernel.shape[-1] - edge, edge : kernel.shape[-1] - edge]
    return kernel / kernel.sum()


def _grid(size: int) -> tuple[Tensor, Tensor]:
    axis = torch.arange(size, dtype=torch.float64) - size // 2
    return axis[:, None], axis[None, :]
