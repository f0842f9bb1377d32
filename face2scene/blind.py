"""Where a picture without a usable face says most about its damage."""

import torch
from torch import Tensor
from torch.nn import functional as F

from face2scene.records import Box


def telling_squares(image: Tensor, side: int, count: int) -> list[Box]:
    """Up to `count` squares of `side` pixels that do not overlap, those with the strongest edges first.

    An edge shows blur, sharpening and compression; in a flat place only noise is seen, and a clipped one shows nothing.

    Args:
        image: (3, H, W) in [0, 1], both sides at least `side`.
    """
    grey = image.mean(0, keepdim=True)[None]
    steps = (grey[..., 1:, :-1] - grey[..., :-1, :-1]).square() + (grey[..., :-1, 1:] - grey[..., :-1, :-1]).square()
    steps = F.pad(steps, (0, 1, 0, 1))
    energy = F.avg_pool2d(steps, side, stride=side)[0, 0]  # one value for each square of the grid
    order = torch.argsort(energy.flatten(), descending=True, stable=True)[:count].tolist()
    columns = energy.shape[1]
    return [
        (x * side, y * side, (x + 1) * side, (y + 1) * side) for y, x in (divmod(place, columns) for place in order)
    ]
