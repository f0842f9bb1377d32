"""Squares that represent a whole image, for the statistics that its tiles share: stratified sampling.

The image is divided into cells. Cells of similar content (mean, standard deviation and detail of each channel) form a
stratum; the most typical cell of each stratum is sampled, weighted by the area of the stratum. So a uniform background
costs one square however large it is, and objects are sampled wherever they lie.

Where most of an image is empty or soft (a page, a sky, the ground of a portrait), its area would rule the statistics,
and the content would be restored worse than by itself; untiled it is. There cells count more the more detail they have,
until the content weighs as if it covered half of the image: it is restored about as if the image had been cropped to
it. An image of which detail covers half or more is weighted by area alone, so that tiles equal the whole.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from face2scene.common.types import Box
from face2scene.models.restorer.shared_norms import Core

COVERED = 0.5  # the least share of an image that its content weighs (ours)
CORE = 0.75  # of a square's side is its cell; pixels nearer to its border depend on zero padding


@dataclass(frozen=True)
class Square:
    """A square of an image, in pixels; its core as shares of its sides, and the share of the image it represents."""

    box: Box
    core: Core
    share: float


def strata(
    x: Tensor, size: tuple[int, int], side: int, count: int, unit: int, covered: float = COVERED
) -> list[Square]:
    """At most `count` squares that represent an image; all cells where there are no more.

    Args:
        x: (1, C, h, w), the image or a map of it; h and w divide `size`.
        size: (height, width) of the image, multiples of `unit`.
        side: of a square, a multiple of `unit`.
        covered: the least share of the image that its content weighs; 0 weighs by area alone.
    """
    stride = size[0] // x.shape[-2]
    rows, columns = (_cells(length, side, unit) for length in size)
    cells = [(row, column) for row in rows for column in columns]
    area = np.array([(y1 - y0) * (x1 - x0) for (_, y0, y1), (_, x0, x1) in cells], np.float64)
    features = _features(x[0], [(c[1:], r[1:]) for r, c in cells], stride)
    detail = features[:, -x.shape[1] :].sum(1)
    chosen, shares = list(range(len(cells))), _weights(area, detail, covered)
    if len(cells) > count:
        chosen, shares = _typical(features, detail, shares, count)
    squares = []
    for number, share in zip(chosen, shares, strict=True):
        (top, y0, y1), (left, x0, x1) = cells[number]
        height, width = min(side, size[0]), min(side, size[1])
        core = ((x0 - left) / width, (y0 - top) / height, (x1 - left) / width, (y1 - top) / height)
        squares.append(Square((left, top, left + width, top + height), core, float(share)))
    return squares


def _cells(length: int, side: int, unit: int) -> list[tuple[int, int, int]]:
    """(start of the square, start and end of its cell) along one side of the image; the cells cover it without gaps."""
    if length <= side:
        return [(0, 0, length)]
    step = max(int(side * CORE) // unit, 1) * unit
    count = -(-(length - side) // step) + 1
    ends = [0, *(number * step + (side - step) // 2 for number in range(1, count)), length]
    return [(min(number * step, length - side), ends[number], ends[number + 1]) for number in range(count)]


def _features(x: Tensor, cells: list[tuple[tuple[int, int], tuple[int, int]]], stride: int) -> np.ndarray:
    """Mean, standard deviation and detail of each channel of each cell: (cells, 3 C)."""
    rows = []
    for (x0, x1), (y0, y1) in cells:
        part = x[:, y0 // stride : -(-y1 // stride), x0 // stride : -(-x1 // stride)].float()
        detail = part.diff(dim=-1).abs().mean((-2, -1)) + part.diff(dim=-2).abs().mean((-2, -1))
        rows.append(torch.cat([part.mean((-2, -1)), part.std((-2, -1)), detail.nan_to_num()]))
    return torch.stack(rows).cpu().double().numpy()


def _weights(area: np.ndarray, detail: np.ndarray, least: float) -> np.ndarray:
    """Of the cells: their areas, and where detail covers less than `least` of the image, partly their detail."""
    area = area / area.sum()
    mean = (area * detail).sum()
    if mean == 0:
        return area
    covered = mean**2 / (area * detail**2).sum()  # 1 where all cells are alike, 1 / n where only one of n has detail
    part = max(least - covered, 0) / (1 - covered) if covered < 1 else 0
    return area * (1 - part + part * detail / mean)


def _typical(features: np.ndarray, detail: np.ndarray, weights: np.ndarray, count: int) -> tuple[list[int], np.ndarray]:
    """The medoids of `count` strata, the most detailed cell among them, and their shares of the weights."""
    detailed = int(detail.argmax())
    features = (features - features.mean(0)) / (features.std(0) + 1e-6)
    chosen = [len(features) // 2]  # about the middle; then the cell farthest from all before
    while len(chosen) < count - 1:
        distance = _distances(features, features[chosen]).min(1)
        if distance.max() < 1e-6:
            break
        chosen.append(int(distance.argmax()))
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
    return chosen, np.bincount(nearest, weights=weights, minlength=len(chosen))


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ((a[:, None] - b[None]) ** 2).sum(-1)
