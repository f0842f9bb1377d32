"""Linear maps along the rows and the columns of an image, fast on one core.

A blur by a separable kernel, a mirrored border and every kind of resizing have one form: each output row is a weighted
sum of a few neighbouring input rows, and the same along the columns. As a matrix per axis, it is zero outside a narrow
band. `BandedMatrix` keeps the band only, cut into blocks of up to `BLOCK` outputs: small dense products run at the full
speed of a core.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK = 32  # outputs per block, at least; measured: smaller ones are all overhead, larger ones multiply more zeros
STRIP = 512  # rows computed at a time, which bounds the memory of a large image; fewer make enlarging slower
LARGE = 2**20  # values from which memory comes in large pages
ALIGNED = 16  # float32 values; the last digits of a product may depend on the alignment of its rows


@dataclass(frozen=True)
class BandedBlock:
    """Outputs `start` to `stop` from inputs `low` to `high`: `rank` float32 matrices (stop - start, high - low)."""

    start: int
    stop: int
    low: int
    high: int
    matrices: tuple[Tensor, ...]


@dataclass(frozen=True)
class BandedMatrix:
    """The maps of one axis, one for each separable term (`rank` of them), in blocks of about the same size."""

    blocks: tuple[BandedBlock, ...]

    @property
    def rank(self) -> int:
        return len(self.blocks[0].matrices)

    @property
    def length_out(self) -> int:
        return self.blocks[-1].stop

    @classmethod
    def of(cls, index: Tensor, weight: Tensor, length_in: int) -> "BandedMatrix":
        """From the inputs that each output reads, (length_out, taps), and their weights, (rank, length_out, taps).

        An input may occur twice in a row; rows should read neighbours, or the band is wide.
        """
        count, rank = len(index), len(weight)
        block = round(BLOCK * min(max(count / length_in, 1.0), 4.0))  # where it enlarges, a block reads few inputs
        blocks = -(-count // block)
        starts = [number * count // blocks for number in range(blocks + 1)]
        rows = (torch.tensor(starts[:-1])[:, None] + torch.arange(block)).clamp(max=count - 1)  # some in excess
        index, weight = index[rows], weight[:, rows]
        lows, highs = index.amin(dim=(1, 2)), index.amax(dim=(1, 2)) + 1
        width = int((highs - lows).max())
        lows = lows.clamp(max=length_in - width)
        place = (index - lows[:, None, None]).expand(rank, -1, -1, -1)
        band = weight.new_zeros(rank, blocks, block, width).scatter_add_(3, place, weight).float()
        return cls(
            tuple(
                BandedBlock(start, stop, low, low + width, tuple(band[:, number, : stop - start].unbind()))
                for number, (start, stop, low) in enumerate(zip(starts[:-1], starts[1:], lows.tolist(), strict=True))
            )
        )


def runs_banded(image: Tensor) -> bool:
    """Whether `banded_matmul` serves an image: on the CPU, without gradient."""
    return not image.is_cuda and not (torch.is_grad_enabled() and image.requires_grad)


def banded_matmul(image: Tensor, rows: BandedMatrix, columns: BandedMatrix) -> Tensor:
    """Sum over the ranks of (rows x image x columns transposed), clamped to [0, 1].

    Args:
        image: float32 (C, h, w) on the CPU.
        rows: from h to the height of the result; columns: from w to its width. Of the same rank.

    Returns:
        A new contiguous tensor (C, height, width).
    """
    image = image.contiguous()
    result = empty_aligned(len(image), rows.length_out, columns.length_out)
    step = max(1, STRIP // (rows.blocks[0].stop - rows.blocks[0].start))
    strips = [rows.blocks[first : first + step] for first in range(0, len(rows.blocks), step)]
    for channel, out in zip(image, result, strict=True):
        for strip in strips:
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

    Large arrays on the CPU come from NumPy, which asks the system for large pages: their first use takes a fifth of the
    time, 2 ns less for every value, as much as some operators need in all.
    """
    count = math.prod(shape)
    if count < LARGE or torch.device(device).type != "cpu":
        return torch.empty(shape, device=device)
    memory = np.empty(count + ALIGNED, dtype=np.float32)
    start = -(memory.ctypes.data // memory.itemsize) % ALIGNED
    return torch.from_numpy(memory[start : start + count]).view(shape)
