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
from torch.nn import functional as F

_MARGIN = 0.125  # of a square's side, on every side: what the zeros beyond the border have changed is not counted


class SharedNorms:
    """The GroupNorms of a network.

    A batch of V variants (the two prompts) of n squares or tiles is variant-major, as `OneStepRestorer.denoise` makes
    it; variants have statistics of their own.
    """

    def __init__(self, network: nn.Module):
        self.norms = [part for part in network.modules() if isinstance(part, nn.GroupNorm)]
        self._statistics: dict[nn.GroupNorm, tuple[Tensor, Tensor]] = {}  # (V, G) mean and variance

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
        core = x
        if x.dim() == 4:
            height, width = x.shape[-2:]
            top, left = int(height * _MARGIN), int(width * _MARGIN)
            core = x[..., top : height - top, left : width - left]
        # One square after the other, so that the float32 copy is small.
        each = [
            torch.var_mean(one.unflatten(0, (norm.num_groups, -1)).flatten(1).float(), 1, correction=0) for one in core
        ]
        variances, means = (torch.stack(parts).unflatten(0, (-1, count)) for parts in zip(*each, strict=True))
        mean = means.mean(1)
        variance = (variances + means.square()).mean(1) - mean.square()
        self._statistics[norm] = mean.detach(), variance.clamp_min(0).detach()
        return self._apply(norm, x)

    def _apply(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        # With given statistics that is a batch norm, whose kernels keep half precision in and out.
        means, variances = (
            part.repeat_interleave(norm.num_channels // norm.num_groups, 1) for part in self._statistics[norm]
        )
        weight, bias = (part.float() if norm.affine else None for part in (norm.weight, norm.bias))
        parts = [
            F.batch_norm(part, mean, variance, weight, bias, eps=norm.eps)
            for part, mean, variance in zip(x.chunk(len(means)), means, variances, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


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
