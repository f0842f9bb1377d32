"""Large images in overlapping tiles, so that memory is bounded by the tile and not by the image.

Each network goes over the whole image before the next one starts: tiles of the image are encoded and blended into
one latent, tiles of the latent are denoised and blended, tiles of the clean latent are decoded and blended.

What makes a tile differ from the same place of the whole is, before all, group normalisation: its means and spreads
would be the tile's own, so that a tile of sky and one of hair come out with different colours (the shift of plain VAE
tiling). `shared` statistics are measured once for the whole image and used by every tile: see `norms`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from tqdm import tqdm

from face2scene.common.memory import free_memory
from face2scene.common.types import Box, Progress
from face2scene.models.restorer.shared_norms import SharedNorms
from face2scene.models.restorer.strata import Square, strata

SPLIT = 2  # of a tile's side: halves are as good as whole tiles and reach four times as many places (ours)
MAPS = 4  # of the decoder's widest full-size map are in memory at once: 3 at SD 2.1's shape, and one for workspaces
SAMPLES = 4  # tiles' area that the shared statistics are measured on at once (ours)


class Tileable(Protocol):
    """What a plan reads of a restorer."""

    vae: AutoencoderKL
    text: Tensor  # on the device of the networks

    @property
    def multiple(self) -> int: ...  # sides of tiles are multiples of it


@dataclass(frozen=True)
class TilePlan:
    """How an image is cut up.

    Args:
        height, width: of the image, padded to multiples of `unit`.
        tile, overlap: pixels, multiples of `unit` where there is more than one tile.
        unit: sides and corners of tiles are multiples of it, so that every layer halves the same pixels as in the
            whole.
        statistics: `shared` or `tile`.
    """

    height: int
    width: int
    tile: int
    overlap: int
    unit: int
    statistics: str = "shared"

    @classmethod
    def of(
        cls,
        size: tuple[int, int],
        restorer: Tileable,
        *,
        tile: int | str | None,
        overlap: int = 64,
        statistics: str = "shared",
    ) -> "TilePlan":
        """Of an image (height, width).

        Args:
            tile: pixels, `auto` for the largest that the free memory holds, None for no tiles.

        Raises:
            ValueError: an overlap that leaves no room or is negative, a tile too small, an unknown option.
        """
        if statistics not in ("shared", "tile"):
            raise ValueError(f"statistics is {statistics!r}: choose shared or tile (option pipeline.statistics).")
        unit = restorer.multiple
        height, width = (-(-side // unit) * unit for side in size)
        if tile is None or (tile != "auto" and max(height, width) <= int(tile)):
            return cls(height, width, max(height, width), 0, unit, statistics)
        side = fitting_tile(restorer) if tile == "auto" else int(tile)
        if not 0 <= overlap < side // 2:
            raise ValueError(
                f"overlap must be from 0 to less than half of tile={side}, not {overlap} (options pipeline.overlap "
                "and pipeline.tile)."
            )
        side, overlap = side // unit * unit, -(-overlap // unit) * unit
        if side < 2 * unit or side <= overlap:
            raise ValueError(
                f"tile={tile} is too small for overlap={overlap}: this restorer needs tiles of at least "
                f"{max(2 * unit, overlap + unit)} pixels (option pipeline.tile)."
            )
        return cls(height, width, side, overlap, unit, statistics)

    @property
    def rows(self) -> list[int]:
        """Where the tiles begin, from top to bottom."""
        return tile_starts(self.height, self.tile, self.overlap, self.unit)

    @property
    def columns(self) -> list[int]:
        """Where they begin from left to right."""
        return tile_starts(self.width, self.tile, self.overlap, self.unit)

    @property
    def boxes(self) -> list[Box]:
        """The tiles, row by row, in pixels of the padded image."""
        return [
            (x, y, min(x + self.tile, self.width), min(y + self.tile, self.height))
            for y in self.rows
            for x in self.columns
        ]

    def squares(self, x: Tensor) -> list[Square]:
        """Where the shared statistics are measured, for a network's input x (1, C, h, w); together `SAMPLES` tiles."""
        side = max(self.tile // SPLIT // self.unit, 1) * self.unit
        return strata(x, (self.height, self.width), side, SAMPLES * self.tile**2 // side**2, self.unit)

    @property
    def notes(self) -> dict[str, Any]:
        """For the restoration log."""
        plan = {"rows": len(self.rows), "columns": len(self.columns), "size": self.tile, "overlap": self.overlap}
        return plan | {"statistics": self.statistics}


def tile_starts(length: int, tile: int, overlap: int, unit: int = 1) -> list[int]:
    """Where tiles of `tile` pixels begin along a side, about evenly; neighbours share at least `overlap`."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    step = -(-(length - tile) // ((count - 1) * unit)) * unit
    return [min(i * step, length - tile) for i in range(count)]


def network_in_tiles(
    name: str,
    network: nn.Module,
    work: Callable[[Tensor, list[Box]], Tensor],
    x: Tensor,
    plan: TilePlan,
    device: torch.device | str,
    progress: Progress | None,
) -> Tensor:
    """One network over (1, C, h, w), which may be smaller than the image by a whole factor; blended on x's device."""
    boxes, shrunk = plan.boxes, plan.height // x.shape[-2]

    def run(places: list[Box]) -> Tensor:
        parts = [x[..., y0 // shrunk : y1 // shrunk, x0 // shrunk : x1 // shrunk] for x0, y0, x1, y1 in places]
        return work(torch.cat(parts).to(device), places).to(x.device)

    if len(boxes) == 1:
        output = run(boxes)
        if progress:
            progress(name, 1, 1)
        return output
    norms = SharedNorms(network)
    if norms.norms and plan.statistics == "shared":
        squares = plan.squares(x)
        with norms.measuring([square.share for square in squares], [square.core for square in squares]):
            run([square.box for square in squares])
    total = weight = None
    x0, y0, x1, y1 = boxes[0]
    with norms.measured((x1 - x0) * (y1 - y0) / (plan.width * plan.height)):
        bar = tqdm(boxes, desc=name, unit="tile", leave=False, disable=progress is not None or len(boxes) < 4)
        for number, box in enumerate(bar):
            part = run([box])
            shrinks = (box[3] - box[1]) // part.shape[-2]  # what comes out may be smaller than the image, too
            if total is None:
                size = (plan.height // shrinks, plan.width // shrinks)
                total = part.new_zeros(1, part.shape[1], *size)
                weight = part.new_zeros(1, 1, *size)
            x0, y0, x1, y1 = (side // shrinks for side in box)
            overlap = plan.overlap // shrinks
            ramp = torch.outer(_ramp(y0, y1, size[0], overlap), _ramp(x0, x1, size[1], overlap)).to(part)
            total[..., y0:y1, x0:x1] += ramp * part
            weight[..., y0:y1, x0:x1] += ramp
            if progress:
                progress(name, number + 1, len(boxes))
    return total.div_(weight)


def in_tiles(work: Callable[[Tensor], Tensor], image: Tensor, *, tile: int, overlap: int, scale: int = 1) -> Tensor:
    """Apply a network without normalisation over the image, such as Real-ESRGAN, to tiles, and blend the results.

    Args:
        work: (1, 3, h, w) to (1, 3, scale h, scale w).
        image: (1, 3, H, W).
        tile, overlap: pixels of the input.
        scale: how much larger than its tile the result of `work` is.
    """
    size = tuple(image.shape[-2:])
    rows, columns = (tile_starts(side, tile, overlap) for side in size)
    if len(rows) == len(columns) == 1:
        return work(image)
    height, width = (scale * side for side in size)
    total, weight = image.new_zeros(1, 3, height, width), image.new_zeros(1, 1, height, width)
    places = [(y, x) for y in rows for x in columns]
    for y, x in tqdm(places, desc="tiles", unit="tile", leave=False, disable=len(places) < 4):
        part = work(image[..., y : y + tile, x : x + tile])
        y0, x0 = scale * y, scale * x
        y1, x1 = y0 + part.shape[-2], x0 + part.shape[-1]
        ramp = torch.outer(_ramp(y0, y1, height, scale * overlap), _ramp(x0, x1, width, scale * overlap)).to(part)
        total[..., y0:y1, x0:x1] += ramp * part
        weight[..., y0:y1, x0:x1] += ramp
    return total / weight


def _ramp(start: int, end: int, length: int, overlap: int) -> Tensor:
    """Weights of a tile along one side: one inside, falling over the overlap, none in its outer quarter.

    What lies nearest to a border that is not the image's own has seen zeros beyond it.
    """
    weight = torch.ones(end - start)
    dead = overlap // 4
    rise = ((torch.arange(end - start) + 0.5 - dead) / max(overlap - 2 * dead, 1)).clamp(0, 1)
    if start > 0:
        weight = weight * rise
    if end < length:
        weight = weight * rise.flip(0)
    return weight


@contextmanager
def on_device(network: nn.Module, device: torch.device | str) -> Iterator[None]:
    nn.Module.to(network, device)
    try:
        yield
    finally:
        nn.Module.to(network, "cpu")


def fitting_tile(restorer: Tileable) -> int:
    """The largest tile of 128 to 1024 pixels, in steps of 128, whose samples fit into half of the free memory.

    The decoder's last level decides, see `MAPS`. The steps are coarse, so that a little less memory at the
    next start seldom changes the plan, and with it the images.
    """
    weight = restorer.vae.decoder.conv_in.weight
    widest = max(restorer.vae.config.block_out_channels[:2])  # the last level is given what the one before made
    each = SAMPLES * widest * weight.element_size() * MAPS
    side = int((free_memory(restorer.text.device) / 2 / each) ** 0.5)
    return min(max(side // 128 * 128, 128), 1024)
