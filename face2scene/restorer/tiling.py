"""Large pictures in overlapping tiles, so that memory is bounded by the tile and not by the picture."""

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles of `tile` pixels begin along a side, evenly spread, neighbours sharing at least `overlap`."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def in_tiles(work: Callable[[Tensor], Tensor], image: Tensor, *, tile: int, overlap: int, scale: int = 1) -> Tensor:
    """Apply `work` to overlapping tiles of (1, 3, H, W) and blend the results; one tile is no tiling at all.

    Args:
        work: (1, 3, h, w) to (N, 3, scale h, scale w); several pictures made of one stay apart.
        tile, overlap: pixels of the input; weights fall linearly to the tile's border over the overlap.
        scale: how much larger than its tile the result of `work` is.

    Raises:
        ValueError: an overlap that leaves no room, or negative.
    """
    if not 0 <= overlap < tile // 2:
        raise ValueError(f"overlap must be from 0 to less than half of tile={tile}, not {overlap}.")
    height, width = image.shape[-2:]
    rows, columns = tile_starts(height, tile, overlap), tile_starts(width, tile, overlap)
    if len(rows) == len(columns) == 1:
        return work(image)
    total: Tensor | None = None
    weight = image.new_zeros(1, 1, scale * height, scale * width)
    places = [(y, x) for y in rows for x in columns]
    for y, x in tqdm(places, desc="tiles", unit="tile", leave=False, disable=len(places) < 4):
        made = work(image[..., y : y + tile, x : x + tile])
        if total is None:
            total = image.new_zeros(*made.shape[:2], scale * height, scale * width)
        high, wide = made.shape[-2:]
        ramp = _ramp(high, scale * overlap).outer(_ramp(wide, scale * overlap)).to(image)
        area = (..., slice(scale * y, scale * y + high), slice(scale * x, scale * x + wide))
        total[area] += ramp * made
        weight[area] += ramp
    return total / weight


def _ramp(length: int, overlap: int) -> Tensor:
    position = torch.arange(length) + 0.5
    return (torch.minimum(position, length - position) / max(overlap, 1)).clamp(max=1)
