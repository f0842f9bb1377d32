"""Group normalisation with the statistics of the whole image, measured from samples of it.

A GroupNorm takes mean and spread over all places of an image. In a tile it would take the tile's, and every layer
after it would see other values than in the whole. Here the statistics are measured once, before the tiles: squares that
stand for all of the image's content (see `strata`) go through the network as one batch, and every GroupNorm
normalises all of them by what it sees in all of them together, each counting for its share of the image. That keeps
the order of cause and effect (a layer's statistics are taken where the layers before it already use the shared ones)
and the image's own scale (a shrunken copy has other noise and other edges). Afterwards every tile is normalised by
these numbers.

With the image's true statistics the tiles of VAE encoder and decoder equal the whole to the last digits; what is left
is the sampling. Sweeps over all tiles that correct the sampled statistics were tried and make them worse: the error of
one layer grows in those behind it.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Core = tuple[float, float, float, float]  # left, top, right, bottom of what counts of a square, as shares of its side


class SharedNorms:
    """The GroupNorms of a network.

    A batch of V variants (the two prompts) of n squares or tiles is variant-major, as `OneStepRestorer.denoise` makes
    it; variants have statistics of their own.
    """

    def __init__(self, network: nn.Module):
        self.norms = [part for part in network.modules() if isinstance(part, nn.GroupNorm)]
        self._statistics: dict[nn.GroupNorm, tuple[Tensor, Tensor]] = {}  # (V, G) mean and variance

    @contextmanager
    def measuring(self, shares: Sequence[float], cores: Sequence[Core]) -> Iterator[None]:
        """Inside, a batch of squares for each variant is normalised together, and what is seen is kept.

        Args:
            shares: how much of the image each square stands for; they sum to 1.
            cores: what counts of each square: beyond it the zeros outside the square have changed too much.
        """
        with self._instead({norm: partial(self._measure, norm, shares, cores) for norm in self.norms}):
            yield

    @contextmanager
    def measured(self, share: float = 0.0) -> Iterator[None]:
        """Inside, everything is normalised by what was kept; a norm that measured nothing goes on by itself.

        Args:
            share: of the image that a tile covers. The whole's variance is at least as much of the tile's, and no
                smaller one is used: what the squares have missed does not come out as too strong a contrast.
        """
        with self._instead({norm: partial(self._apply, norm, share=share) for norm in self._statistics}):
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

    def _measure(self, norm: nn.GroupNorm, shares: Sequence[float], cores: Sequence[Core], x: Tensor) -> Tensor:
        each = []
        for number, one in enumerate(x):  # one square after the other, so that the float32 copy is small
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
            groups = x.unflatten(1, (norm.num_groups, -1)).flatten(2).float()
            own_variances, own_means = torch.var_mean(groups, -1, correction=0)
            variances = variances.maximum(share * (own_variances + (own_means - means).square()))
        # With given statistics that is a batch norm, whose kernels keep half precision in and out.
        means, variances = (
            part.repeat_interleave(norm.num_channels // norm.num_groups, 1) for part in (means, variances)
        )
        weight, bias = (part.float() if norm.affine else None for part in (norm.weight, norm.bias))
        parts = [
            F.batch_norm(part, mean, variance, weight, bias, eps=norm.eps)
            for part, mean, variance in zip(x.chunk(len(means)), means, variances, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
