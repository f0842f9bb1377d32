"""Large latents in overlapping tiles, as S3Diff predicts them."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def in_latent_tiles(work: Callable[[Tensor], Tensor], latent: Tensor, *, tile: int, overlap: int) -> Tensor:
    """Predict a latent of more than tile x tile positions in tiles, blended by S3Diff's Gaussian window.

    Raises:
        ValueError: the latent is narrower than the overlap.
    """
    height, width = latent.shape[-2:]
    if height * width <= tile**2:
        return work(latent)
    tile = min(tile, height, width)
    if tile <= overlap:
        raise ValueError(
            f"A latent of {height} x {width} is too narrow for tiles that overlap by {overlap}: lower latent_overlap."
        )
    middle_x, middle_y = (tile - 1) / 2, tile / 2  # half a position apart, as released
    place = torch.arange(tile, dtype=torch.float64, device=latent.device)
    ramp_x, ramp_y = (torch.exp(-(((place - middle) / tile) ** 2) / 0.02) for middle in (middle_x, middle_y))
    window = torch.outer(ramp_y, ramp_x)
    total, weight = torch.zeros_like(latent, dtype=torch.float64), window.new_zeros(height, width)
    for x in _starts(width, tile, overlap):
        for y in _starts(height, tile, overlap):
            area = (..., slice(y, y + tile), slice(x, x + tile))
            total[area] += work(latent[area]) * window
            weight[area] += window
    return (total / weight).to(latent.dtype)


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    count = 1 + max(0, math.ceil((length - tile) / (tile - overlap)))
    return [min(number * (tile - overlap), length - tile) for number in range(count)]
