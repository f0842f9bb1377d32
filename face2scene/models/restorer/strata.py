"""Squares that stand for a whole image: where the statistics that its tiles share are measured.

The image is divided into cells. Cells of like content (mean, spread and detail of each channel) form a stratum; the
most typical cell of each stratum is measured and counts for as much of the image as the stratum covers. So an even
ground costs one square however large it is, and what lies on it is measured wherever it lies.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from face2scene.common.types import Box
from face2scene.models.restorer.shared_norms import Core

CORE = 0.75  # of a square's side counts as its cell; what lies nearer to its border has seen zeros beyond it


@dataclass(frozen=True)
class Square:
    """A square of an image, in pixels; its core as shares of its sides, and the share of the image it stands for."""

    box: Box
    core: Core
    share: float


def strata(x: Tensor, size: tuple[int, int], side: int, count: int, unit: int) -> list[Square]:
    """At most `count` squares that stand for an image; all cells where they are no more.

    Args:
        x: (1, C, h, w), the image or a map of it; h and w divide `size`.
        size: (height, width) of the image, multiples of `unit`.
        side: of a square, a multiple of `unit`.
    """
    shrunk = size[0] // x.shape[-2]
    rows, columns = (_cells(length, side, unit) for length in size)
    cells = [(row, column) for row in rows for column in columns]
    area = np.array([(y1 - y0) * (x1 - x0) for (_, y0, y1), (_, x0, x1) in cells], np.float64)
    chosen, shares = list(range(len(cells))), area / area.sum()
    if len(cells) > count:
        chosen, shares = _typical(_described(x[0], [(c[1:], r[1:]) for r, c in cells], shrunk), area, count)
    squares = []
    for number, share in zip(chosen, shares, strict=True):
        (y, y0, y1), (x, x0, x1) = cells[number]
        height, width = min(side, size[0]), min(side, size[1])
        core = ((x0 - x) / width, (y0 - y) / height, (x1 - x) / width, (y1 - y) / height)
        squares.append(Square((x, y, x + width, y + height), core, float(share)))
    return squares


def _cells(length: int, side: int, unit: int) -> list[tuple[int, int, int]]:
    """Along one side of the image: where a square begins, and from where to where its cell goes.

    The cells meet without a gap, and the outermost reach the image's border.
    """
    if length <= side:
        return [(0, 0, length)]
    step = max(int(side * CORE) // unit, 1) * unit
    count = -(-(length - side) // step) + 1
    ends = [0, *(number * step + (side - step) // 2 for number in range(1, count)), length]
    return [(min(number * step, length - side), ends[number], ends[number + 1]) for number in range(count)]


def _described(x: Tensor, cells: list[tuple[tuple[int, int], tuple[int, int]]], shrunk: int) -> np.ndarray:
    """Mean, standard deviation and detail of each channel of each cell: (cells, 3 C)."""
    rows = []
    for (x0, x1), (y0, y1) in cells:
        part = x[:, y0 // shrunk : -(-y1 // shrunk), x0 // shrunk : -(-x1 // shrunk)].float()
        detail = part.diff(dim=-1).abs().mean((-2, -1)) + part.diff(dim=-2).abs().mean((-2, -1))
        rows.append(torch.cat([part.mean((-2, -1)), part.std((-2, -1)), detail.nan_to_num()]))
    return torch.stack(rows).double().cpu().numpy()


def _typical(features: np.ndarray, area: np.ndarray, count: int) -> tuple[list[int], np.ndarray]:
    """The most typical cell of each of `count` strata, the most detailed cell among them, and their shares."""
    detailed = int(features[:, -features.shape[1] // 3 :].sum(1).argmax())
    features = (features - features.mean(0)) / (features.std(0) + 1e-6)
    chosen = [len(features) // 2]  # about the middle; then always what is least like all before
    while len(chosen) < count - 1:
        apart = _distances(features, features[chosen]).min(1)
        if apart.max() < 1e-6:
            break
        chosen.append(int(apart.argmax()))
    for _ in range(10):  # k-medoids
        nearest = _distances(features, features[chosen]).argmin(1)
        strata = [np.flatnonzero(nearest == number) for number in range(len(chosen))]
        means = [features[stratum].mean(0, keepdims=True) for stratum in strata]
        chosen = [
            int(stratum[_distances(features[stratum], mean).argmin()])
            for stratum, mean in zip(strata, means, strict=True)
        ]
    chosen = sorted({detailed, *chosen})
    nearest = _distances(features, features[chosen]).argmin(1)
    shares = np.bincount(nearest, weights=area, minlength=len(chosen)) / area.sum()
    return chosen, shares


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ((a[:, None] - b[None]) ** 2).sum(-1)
