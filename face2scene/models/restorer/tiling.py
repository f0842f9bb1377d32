"""Large images in overlapping tiles, so that memory is bounded by the tile and not by the image.

Each network runs over the whole image before the next one starts: tiles of the image are encoded and blended into
one latent, tiles of the latent are denoised and blended, tiles of the clean latent are decoded and blended.

A tile differs from the same region of the whole image mainly through group normalisation: with means and variances of
its own, a tile of sky and one of hair get different colours (the colour shift of plain VAE tiling). `shared`
statistics are estimated once for the whole image and used by every tile, see `shared_norms`.

Around an image of several tiles lies a mirrored margin, which is cut off at the end: the zero padding of the networks'
convolutions is grey beyond the image's border, and puts a coloured line of up to 64 levels along a white page.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from face2scene.common.choices import one_of
from face2scene.common.memory import free_memory
from face2scene.common.types import Box, Progress
from face2scene.image_io.arrays import pad_to_multiple
from face2scene.models.restorer.restorer_base import RestorerBase
from face2scene.models.restorer.shared_norms import SharedNorms
from face2scene.models.restorer.strata import COVERED, Square, strata

SPLIT = 2  # squares for statistics have 1 / SPLIT of a tile's side, for more positions at the same cost (ours)
SMALL = 128  # pixels, the least side of squares that are weighed by area, see `TilePlan.squares` (ours)
MAPS = 4  # full-size maps of the decoder in memory at once: 3 at SD 2.1's shape, and one for workspaces
THIN = 16  # pixels (ours)
SAMPLES = 4  # area, in tiles, on which the shared statistics are estimated at once (ours)


@dataclass(frozen=True)
class TilePlan:
    """How an image is divided into tiles.

    Args:
        height, width: of the image with its margins, multiples of `unit`.
        tile, overlap: pixels, multiples of `unit` where there is more than one tile.
        unit: sides and corners of tiles are multiples of it, so that strided layers see the same grid as in the whole
            image.
        statistics: `shared` or `tile`.
        margins: pixels above and to the left of the image; at least as many lie below and to the right.
        covered: the least share that content weighs in the shared statistics, see `strata`. It is 0, by area, where the
            restorer corrects its input (`residual`): an empty page takes nothing from its content, measured in
            docs/tiles.md.
    """

    height: int
    width: int
    tile: int
    overlap: int
    unit: int
    statistics: str = "shared"
    margins: tuple[int, int] = (0, 0)
    covered: float = COVERED

    @classmethod
    def of(
        cls,
        size: tuple[int, int],
        restorer: RestorerBase,
        *,
        tile: int | str | None,
        overlap: int = 64,
        statistics: str = "shared",
    ) -> "TilePlan":
        """The plan for an image of `size` (height, width).

        Several tiles have margins of half the overlap, or of what one tile holds along a side that fits into it. A side
        of less than `THIN` pixels has a margin of `unit`: a strip that thin is all border.

        Args:
            tile: pixels, `auto` for the largest that fits the free memory, None for no tiles.

        Raises:
            ValueError: an overlap that is negative or too large, a tile too small, an unknown option.
        """
        one_of("pipeline.statistics", statistics, ("shared", "tile"))
        unit, covered = restorer.multiple, 0.0 if getattr(restorer, "residual", False) else COVERED
        thin = [unit if side < THIN else 0 for side in size]
        height, width = (-(-(side + 2 * margin) // unit) * unit for side, margin in zip(size, thin, strict=True))
        if tile is None or (tile != "auto" and max(height, width) <= int(tile)):
            return cls(height, width, max(height, width), 0, unit, statistics, (thin[0], thin[1]), covered)
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
        if max(height, width) <= side:
            return cls(height, width, side, overlap, unit, statistics, (thin[0], thin[1]), covered)
        wanted = -(-overlap // (2 * unit)) * unit
        margins = [wanted if one > side else min(wanted, (side - one) // (2 * unit) * unit) for one in (height, width)]
        height, width = height + 2 * margins[0], width + 2 * margins[1]
        top, left = (sum(both) for both in zip(thin, margins, strict=True))
        return cls(height, width, side, overlap, unit, statistics, (top, left), covered)

    def padded(self, image: Tensor) -> Tensor:
        """(B, C, H, W) with its margins, mirrored: (B, C, height, width)."""
        if not any(self.margins):
            return pad_to_multiple(image, self.unit)[0]
        for axis, (margin, length) in enumerate(zip(self.margins, (self.height, self.width), strict=True), -2):
            period = max(2 * image.shape[axis] - 2, 1)  # of the mirrored image, without its borders twice
            place = (torch.arange(length, device=image.device) - margin) % period
            image = image.index_select(axis, place.minimum(period - place) if period > 1 else place)
        return image

    def cropped(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        """Without the margins, of `size` (height, width)."""
        top, left = self.margins
        return output[..., top : top + size[0], left : left + size[1]]

    @property
    def rows(self) -> list[int]:
        """Top edges of the tiles."""
        return tile_starts(self.height, self.tile, self.overlap, self.unit)

    @property
    def columns(self) -> list[int]:
        """Left edges of the tiles."""
        return tile_starts(self.width, self.tile, self.overlap, self.unit)

    @property
    def boxes(self) -> list[Box]:
        """The tiles, row by row, in pixels of the image with its margins."""
        return [
            (x, y, min(x + self.tile, self.width), min(y + self.tile, self.height))
            for y in self.rows
            for x in self.columns
        ]

    def squares(self, x: Tensor) -> list[Square]:
        """Squares for the shared statistics of a network's input x (1, C, h, w), with the area of `SAMPLES` tiles.

        By area, smaller tiles than twice `SMALL` have larger squares than half a tile, and as many as tiles of `SMALL`
        would: half of a small tile is mostly border, and four squares miss too much. By content, half is nearer to the
        whole image (docs/tiles.md).
        """
        least = 0 if self.covered else SMALL
        side = max(self.tile // SPLIT, min(self.tile, least), self.unit) // self.unit * self.unit
        if self.height % x.shape[-2] or self.width % x.shape[-1]:  # the image without its margins
            x = self.padded(x)
        count = SAMPLES * max(self.tile, least) ** 2 // side**2
        return strata(x, (self.height, self.width), side, count, self.unit, self.covered)

    @property
    def notes(self) -> dict[str, Any]:
        """For the restoration log."""
        plan = {"rows": len(self.rows), "columns": len(self.columns), "size": self.tile, "overlap": self.overlap}
        return plan | {"statistics": self.statistics}


def tile_starts(length: int, tile: int, overlap: int, unit: int = 1) -> list[int]:
    """First pixels of about evenly spaced tiles along a side; neighbours overlap by at least `overlap` pixels."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    step = -(-(length - tile) // ((count - 1) * unit)) * unit
    return [min(i * step, length - tile) for i in range(count)]


class _Blend:
    """A weighted mean of the tiles of a plan, which overlap, of an image of `size` (H, W)."""

    def __init__(self, size: tuple[int, int], overlap: int, like: Tensor):
        self.size, self.overlap = size, overlap
        self.total = like.new_zeros(1, like.shape[1], *size)
        self.rows: dict[int, Tensor] = {}  # weights along each side, by where a tile starts
        self.columns: dict[int, Tensor] = {}

    def add(self, tile: Tensor, x0: int, y0: int) -> None:
        y1, x1 = y0 + tile.shape[-2], x0 + tile.shape[-1]
        self.rows[y0], self.columns[x0] = (
            _ramp(start, end, length, self.overlap)
            for start, end, length in ((y0, y1, self.size[0]), (x0, x1, self.size[1]))
        )
        self.total[..., y0:y1, x0:x1] += torch.outer(self.rows[y0], self.columns[x0]).to(tile) * tile

    def mean(self) -> Tensor:
        """With all tiles added: their weights are products, so that the weights' sum is a product of sums."""
        for length, ramps, shape in zip(self.size, (self.rows, self.columns), ((-1, 1), (1, -1)), strict=True):
            weight = torch.zeros(length)
            for start, ramp in ramps.items():
                weight[start : start + len(ramp)] += ramp
            self.total.div_(weight.view(shape).to(self.total))
        return self.total


def network_in_tiles(
    name: str,
    norms: SharedNorms,
    work: Callable[[Tensor, list[Box]], Tensor],
    x: Tensor,
    plan: TilePlan,
    device: torch.device | str,
    progress: Progress | None,
) -> Tensor:
    """Apply one network to the tiles of a map and blend the results on its device.

    Args:
        name: of the stage, for `progress`.
        norms: of the network; they share statistics where the plan says so.
        work: (n, C, h', w') with the boxes of n tiles to the network's output, of any constant factor of the size.
        x: (1, C, h, w), the image or a map smaller by an integer factor.
    """
    boxes, stride = plan.boxes, plan.height // x.shape[-2]

    def run(places: list[Box]) -> Tensor:
        parts = [x[..., y0 // stride : y1 // stride, x0 // stride : x1 // stride] for x0, y0, x1, y1 in places]
        return work(torch.cat(parts).to(device), places).to(x.device)

    if len(boxes) == 1:
        output = run(boxes)
        if progress:
            progress(name, 1, 1)
        return output
    if norms.norms and plan.statistics == "shared":
        squares = plan.squares(x)
        with norms.measuring([square.share for square in squares], [square.core for square in squares]):
            run([square.box for square in squares])
    blend = None
    x0, y0, x1, y1 = boxes[0]
    with norms.measured((x1 - x0) * (y1 - y0) / (plan.width * plan.height)):
        bar = tqdm(boxes, desc=name, unit="tile", leave=False, disable=progress is not None or len(boxes) < 4)
        for number, box in enumerate(bar):
            part = run([box])
            scale = Fraction(part.shape[-2], box[3] - box[1])  # the output may be smaller or larger than the image
            size = int(plan.height * scale), int(plan.width * scale)
            blend = blend or _Blend(size, int(plan.overlap * scale), part)
            blend.add(part, int(box[0] * scale), int(box[1] * scale))
            if progress:
                progress(name, number + 1, len(boxes))
    assert blend is not None  # there is a tile
    return blend.mean()


def _ramp(start: int, end: int, length: int, overlap: int) -> Tensor:
    """Weights of a tile along one side: 1 inside, falling over the overlap, 0 in the overlap's outer quarter.

    Pixels next to a border that is not the image's own depend on the zero padding beyond it.
    """
    weight = torch.ones(end - start)
    margin = overlap // 4
    rise = ((torch.arange(end - start) + 0.5 - margin) / max(overlap - 2 * margin, 1)).clamp(0, 1)
    if start > 0:
        weight = weight * rise
    if end < length:
        weight = weight * rise.flip(0)
    return weight


def fitting_tile(restorer: RestorerBase) -> int:
    """The largest tile of 128 to 1024 pixels, in steps of 128, whose samples fit into half of the free memory.

    The decoder's last level needs the most, see `MAPS`. Coarse steps keep the plan, and with it the images, the same
    at slightly different free memory.
    """
    weight = restorer.vae.decoder.conv_in.weight
    widest = max(restorer.vae.config.block_out_channels[:2])  # the last level's input comes from the one before
    bytes_per_pixel = SAMPLES * widest * weight.element_size() * MAPS
    side = int((free_memory(restorer.text.device) / 2 / bytes_per_pixel) ** 0.5)
    return min(max(side // 128 * 128, 128), 1024)
