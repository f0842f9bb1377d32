"""Group normalisation with the statistics of the whole image, estimated from samples of it.

A GroupNorm takes mean and variance over all pixels of an image. In a tile it would take the tile's, and every layer
after it would see other values than in the whole image. Here the statistics are estimated once, before the tiles:
squares that represent the image's content (see `strata`) go through the network as one batch, and every GroupNorm
normalises them by their joint statistics, each weighted by its share of the image. So a layer's statistics are taken
where the layers before it already use the shared ones, and at the image's own scale (a downsampled copy has other noise
and edges). Afterwards every tile is normalised by these statistics.

With the image's true statistics, tiles of VAE encoder and decoder equal the whole up to rounding; the remaining error
is the sampling's. Correcting the estimate by passes over all tiles was tried and is worse: the error of one layer grows
in the following ones.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Core = tuple[float, float, float, float]  # left, top, right, bottom of the used part of a square, as shares of its side


class SharedNorms:
    """The GroupNorms of a network.

    A batch of V variants (the two prompts) of n squares or tiles is variant-major, as in `OneStepRestorer.denoise`;
    every variant has statistics of its own.

    Args:
        known: of a part of the network that was measured before; tiles are normalised by its statistics.
    """

    def __init__(self, network: nn.Module, known: "SharedNorms | None" = None):
        self.norms = [part for part in network.modules() if isinstance(part, nn.GroupNorm)]
        self._statistics: dict[nn.GroupNorm, tuple[Tensor, Tensor]] = {}  # (V, G) mean and variance
        self._known = dict(known._statistics) if known else {}

    @contextmanager
    def measuring(self, shares: Sequence[float], cores: Sequence[Core]) -> Iterator[None]:
        """Inside, each variant's squares are normalised jointly and the statistics are kept.

        Args:
            shares: of the image that each square represents; they sum to 1.
            cores: the used part of each square; pixels outside depend too much on zero padding.
        """
        with self._replaced({norm: partial(self._measure, norm, shares, cores) for norm in self.norms}):
            yield
        self._statistics |= self._known

    @contextmanager
    def measured(self, share: float = 0.0) -> Iterator[None]:
        """Inside, every norm with kept statistics uses them.

        Args:
            share: of the image that a tile covers. The image's variance is at least this share of the tile's, and no
                smaller one is used, so that content missed by the squares is not amplified.
        """
        with self._replaced({norm: partial(self._apply, norm, share=share) for norm in self._statistics}):
            yield

    @contextmanager
    def _replaced(self, forwards: dict[nn.GroupNorm, partial]) -> Iterator[None]:
        for norm, forward in forwards.items():
            norm.forward = forward  # type: ignore[method-assign]  # only inside this context
        try:
            yield
        finally:
            for norm in forwards:
                del norm.forward

    def _measure(self, norm: nn.GroupNorm, shares: Sequence[float], cores: Sequence[Core], x: Tensor) -> Tensor:
        each = []
        for number, one in enumerate(x):  # one square at a time, for a small float32 copy
            if one.dim() == 3:
                height, width = one.shape[-2:]
                x0, y0, x1, y1 = cores[number % len(cores)]
                one = one[..., int(height * y0) : math.ceil(height * y1), int(width * x0) : math.ceil(width * x1)]
            each.append(torch.var_mean(one.unflatten(0, (norm.num_groups, -1)).flatten(1).float(), 1, correction=0))
        variances, means = (torch.stack(parts).unflatten(0, (-1, len(shares))) for parts in zip(*each, strict=True))
        weight = means.new_tensor(shares)[:, None]  # (n, 1) against (V, n, G)
        mean = (weight * means).sum(1)
        variance = (weight * (variances + (means - mean[:, None]).square())).sum(1)
        self._statistics[norm] = mean.detach(), variance.detach()
        return self._apply(norm, x)

    def _apply(self, norm: nn.GroupNorm, x: Tensor, share: float = 0.0) -> Tensor:
        means, variances = self._statistics[norm]
        if share:  # one tile for each variant
            groups = x.unflatten(1, (norm.num_groups, -1)).flatten(2)
            squares = torch.linalg.vector_norm(groups, dim=-1, dtype=torch.float32).square() / groups.shape[-1]
            around = squares - 2 * means * groups.mean(-1, dtype=torch.float32) + means.square()  # E (x - mean)^2
            variances = variances.maximum(share * around)
        # With given statistics this is a batch norm, whose kernels keep half precision in and out.
        means, variances = (
            part.repeat_interleave(norm.num_channels // norm.num_groups, 1) for part in (means, variances)
        )
        weight, bias = (part.float() if norm.affine else None for part in (norm.weight, norm.bias))
        parts = [
            F.batch_norm(part, mean, variance, weight, bias, eps=norm.eps)
            for part, mean, variance in zip(x.chunk(len(means)), means, variances, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
