"""Linear maps along the rows and the columns of an image, fast on one core.

A blur by a separable kernel, a mirrored border and every way of resizing are the same thing: each output row is a
weighted sum of a few neighbouring input rows, and the same along the columns. Written as one matrix per axis, that
matrix is zero but for a narrow band. `Bands` keeps the band only, cut into blocks of up to `BLOCK` outputs; a block is
a small dense matrix, and small dense products run at the full speed of a core, whatever the weights are.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK = 32  # outputs a block at least; measured: smaller ones are all overhead, larger ones multiply more zeros
STRIP = 512  # rows worked on at a time, which bounds the memory of a large image; fewer make enlarging slower
LARGE = 2**20  # values from which memory comes in large pages
ALIGNED = 16  # float32 values; the last digits of a product may depend on where its rows begin


@dataclass(frozen=True)
class Band:
    """Outputs `start` to `stop` from inputs `low` to `high`: `rank` float32 matrices (stop - start, high - low)."""

    start: int
    stop: int
    low: int
    high: int
    matrices: tuple[Tensor, ...]


@dataclass(frozen=True)
class Bands:
    """Linear maps of one length to another, as many as the rank of what they are part of, in blocks of about a size."""

    blocks: tuple[Band, ...]

    @property
    def rank(self) -> int:
        return len(self.blocks[0].matrices)

    @property
    def length_out(self) -> int:
        return self.blocks[-1].stop

    @classmethod
    def of(cls, index: Tensor, weight: Tensor, length_in: int) -> "Bands":
        """From the inputs that each output reads, (length_out, taps), and their weights, (rank, length_out, taps).

        An input may be named twice; rows should read neighbours, or the band is wide.
        """
        count, rank = len(index), len(weight)
        block = round(BLOCK * min(max(count / length_in, 1.0), 4.0))  # where it enlarges, a block reads few inputs
        blocks = -(-count // block)
        starts = [number * count // blocks for number in range(blocks + 1)]
        rows = (torch.tensor(starts[:-1])[:, None] + torch.arange(block)).clamp(max=count - 1)  # some to spare
        index, weight = index[rows], weight[:, rows]
        lows, highs = index.amin(dim=(1, 2)), index.amax(dim=(1, 2)) + 1
        width = int((highs - lows).max())
        lows = lows.clamp(max=length_in - width)
        place = (index - lows[:, None, None]).expand(rank, -1, -1, -1)
        band = weight.new_zeros(rank, blocks, block, width).scatter_add_(3, place, weight).float()
        return cls(
            tuple(
                Band(start, stop, low, low + width, tuple(band[:, number, : stop - start].unbind()))
                for number, (start, stop, low) in enumerate(zip(starts[:-1], starts[1:], lows.tolist(), strict=True))
            )
        )


def transform(image: Tensor, rows: Bands, columns: Bands) -> Tensor:
    """Sum over the ranks of (rows x image x columns transposed), clamped to [0, 1].

    Args:
        image: float32 (C, h, w) on the CPU.
        rows: from h to the height of the result; columns: from w to its width. Of the same rank.

    Returns:
        A new contiguous tensor (C, height, width).
    """
    image = image.contiguous()
    result = empty_aligned(len(image), rows.length_out, columns.length_out)
    for channel, out in zip(image, result, strict=True):
        for strip in _strips(rows.blocks):
            low, start = strip[0].low, strip[0].start
            source = channel[low : strip[-1].high]
            middle = image.new_empty(len(source), columns.length_out)
            for rank in range(rows.rank):
                for block in columns.blocks:
                    part = middle[:, block.start : block.stop]
                    torch.mm(source[:, block.low : block.high], block.matrices[rank].T, out=part)
                for block in strip:
                    part, read = out[block.start : block.stop], middle[block.low - low : block.high - low]
                    if rank == 0:
                        torch.mm(block.matrices[rank], read, out=part)
                    else:
                        part.addmm_(block.matrices[rank], read)
            out[start : strip[-1].stop].clamp_(0, 1)
    return result


def empty_aligned(*shape: int, device: torch.device | str = "cpu") -> Tensor:
    """Uninitialised float32 memory.

    Where it is large and on the CPU, NumPy asks the system for large pages, and touching them for the first time takes
    a fifth of the time: 2 ns less for every value, as much as some operators need in all.
    """
    count = math.prod(shape)
    if count < LARGE or torch.device(device).type != "cpu":
        return torch.empty(shape, device=device)
    memory = np.empty(count + ALIGNED, dtype=np.float32)
    start = -(memory.ctypes.data // memory.itemsize) % ALIGNED
    return torch.from_numpy(memory[start : start + count]).view(shape)


def _strips(blocks: tuple[Band, ...]) -> Iterator[tuple[Band, ...]]:
    step = max(1, STRIP // (blocks[0].stop - blocks[0].start))
    for first in range(0, len(blocks), step):
        yield blocks[first : first + step]
