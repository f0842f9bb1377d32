"""Group normalisation with the statistics of the whole picture, measured from samples of it.

A GroupNorm takes mean and spread over all places of a picture. In a tile it would take the tile's, and every layer
after it would see other values than in the whole. Here the statistics are measured once, before the tiles: squares
spread over the picture go through the network as one batch, and every GroupNorm normalises all of them by what it sees
in all of them together. That keeps the order of cause and effect (a layer's statistics are taken where the layers
before it already use the shared ones) and the picture's own scale (a shrunken copy has other noise and other edges).
Afterwards every tile is normalised by these numbers.

With the picture's true statistics the tiles of VAE encoder and decoder equal the whole to the last digits; what is left
is the sampling. Sweeps over all tiles that correct the sampled statistics were tried and make them worse: the error of
one layer grows in those behind it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

_MARGIN = 0.125  # of a square's side, on every side: what the zeros beyond the border have changed is not counted


class SharedNorms:
    """The GroupNorms of a network.

    A batch of V variants (the two prompts) of n squares or tiles is variant-major, as `OneStepRestorer.denoise` makes
    it; variants have statistics of their own.
    """

    def __init__(self, network: nn.Module):
        self.norms = [part for part in network.modules() if isinstance(part, nn.GroupNorm)]
        self._statistics: dict[nn.GroupNorm, tuple[Tensor, Tensor]] = {}  # (V, G) mean and 1 / spread

    @contextmanager
    def measuring(self, count: int) -> Iterator[None]:
        """Inside, a batch of `count` squares for each variant is normalised together, and what is seen is kept."""
        with self._instead({norm: partial(self._measure, norm, count) for norm in self.norms}):
            yield

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Inside, everything is normalised by what was kept; a norm that measured nothing goes on by itself."""
        with self._instead({norm: partial(self._apply, norm) for norm in self._statistics}):
            yield

    @contextmanager
    def _instead(self, forwards: dict[nn.GroupNorm, partial]) -> Iterator[None]:
        for norm, forward in forwards.items():
            norm.forward = forward
        try:
            yield
        finally:
            for norm in forwards:
                del norm.forward

    def _measure(self, norm: nn.GroupNorm, count: int, x: Tensor) -> Tensor:
        groups = x.unflatten(1, (norm.num_groups, -1)).unflatten(0, (-1, count))  # (V, n, G, C / G, ...)
        if x.dim() == 4:
            height, width = x.shape[-2:]
            y, x_ = int(height * _MARGIN), int(width * _MARGIN)
            groups = groups[..., y : height - y, x_ : width - x_]
        over = [1, *range(3, groups.dim())]
        variance, mean = torch.var_mean(groups.float(), dim=over, correction=0)
        self._statistics[norm] = mean, torch.rsqrt(variance + norm.eps)
        return self._apply(norm, x)

    def _apply(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        mean, factor = self._statistics[norm]
        each = norm.num_channels // norm.num_groups
        mean, factor = (s.repeat_interleave(each, 1) for s in (mean, factor))  # (V, C)
        if norm.affine:
            factor = factor * norm.weight.float()
            shift = norm.bias.float() - mean * factor
        else:
            shift = -mean * factor
        places = (..., *[None] * (x.dim() - 2))
        variants = x.unflatten(0, (len(mean), -1))
        return (variants * factor[:, None][places] + shift[:, None][places]).to(x.dtype).flatten(0, 1)


def samples(size: tuple[int, int], part: tuple[int, int], count: int, unit: int) -> list[tuple[int, int]]:
    """Where about `count` parts begin (y, x) that lie evenly over a picture, at multiples of `unit`.

    Args:
        size, part: (height, width), multiples of `unit`.
    """
    height, width = size
    rows = max(1, min(round((count * height / width) ** 0.5), count))

    def starts(length: int, side: int, number: int) -> list[int]:
        room = length - side
        places = [room // 2] if number == 1 else [i * room // (number - 1) for i in range(number)]
        return sorted({place // unit * unit for place in places})

    columns = max(1, count // rows)
    return [(y, x) for y in starts(height, part[0], rows) for x in starts(width, part[1], columns)]
