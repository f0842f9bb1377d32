"""LPIPS and DISTS with pyiqa's networks: the same values in less time.

The features of a ground truth are kept while several methods are compared with it, convolutions are Winograd's on a
CPU, and statistics are taken in one pass. Images are (B, 3, H, W), float32 RGB in [0, 1], of one size.
"""

import torch
from torch import Tensor, nn

from face2scene.eval.metrics.winograd import use_winograd

_PIXELS = 2048  # summed in float32 before the sums go on in float64


class _FeatureMetric:
    """A metric that compares features; subclasses have `features` of images and the `distance` of two sets of them."""

    _kept: tuple[Tensor, list[Tensor]] | None = None  # the last ground truth, and its features

    @torch.inference_mode()
    def __call__(self, images: Tensor, gts: Tensor) -> Tensor:
        """(B,) in float64."""
        if self._kept is None or self._kept[0] is not gts:
            self._kept = None  # frees its memory before the next features are computed
            self._kept = (gts, self.features(gts))
        return self.distance(self.features(images), self._kept[1])


class Lpips(_FeatureMetric):
    """LPIPS (Zhang et al. 2018) by pyiqa's network `net`."""

    def __init__(self, net: nn.Module, device: torch.device):
        self.scaling = net.scaling_layer
        stages = [getattr(net.net, f"slice{number}") for number in range(1, 6)]
        self.stages = [_prepared(stage, device) for stage in stages]
        # A head is a 1 x 1 convolution to one channel: a weighted sum over channels.
        self.heads = [head.model[-1].weight.detach().reshape(1, -1, 1, 1) for head in net.lins]

    def features(self, images: Tensor) -> list[Tensor]:
        layer, found = self.scaling(2 * images - 1), []
        for stage in self.stages:
            layer = stage(layer)
            found.append(layer / (torch.linalg.vector_norm(layer, dim=1, keepdim=True) + 1e-10))
        return found

    def distance(self, ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
        layers = zip(self.heads, ours, theirs, strict=True)
        return sum(((a - b).square_() * head).sum(1).double().mean((1, 2)) for head, a, b in layers)


class Dists(_FeatureMetric):
    """DISTS (Ding et al. 2020) by pyiqa's network `net`."""

    def __init__(self, net: nn.Module, device: torch.device):
        self.mean, self.std = net.mean, net.std
        self.stages = [_prepared(getattr(net, f"stage{number}"), device) for number in range(1, 6)]
        total = (net.alpha.sum() + net.beta.sum()).detach()
        self.alpha, self.beta = ((w.detach() / total).flatten().double().split(net.chns) for w in (net.alpha, net.beta))

    def features(self, images: Tensor) -> list[Tensor]:
        layer, found = (images - self.mean) / self.std, [images]
        for stage in self.stages:
            layer = stage(layer)
            found.append(layer)
        return found

    def distance(self, ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
        similar = torch.zeros(len(ours[0]), dtype=torch.float64, device=ours[0].device)
        for alpha, beta, x, y in zip(self.alpha, self.beta, ours, theirs, strict=True):
            mean_x, mean_y, square_x, square_y, product = _moments(x, y)
            var_x, var_y, covariance = square_x - mean_x**2, square_y - mean_y**2, product - mean_x * mean_y
            c = 1e-6
            texture = (2 * mean_x * mean_y + c) / (mean_x**2 + mean_y**2 + c)
            structure = (2 * covariance + c) / (var_x + var_y + c)
            similar += (alpha * texture).sum(1) + (beta * structure).sum(1)
        return 1 - similar


def _moments(x: Tensor, y: Tensor) -> list[Tensor]:
    """Means over the pixels of x, y, x x, y y and x y, each (B, C) in float64, in one pass over both layers."""
    x, y = (layer.permute(0, 2, 3, 1).flatten(1, 2) for layer in (x, y))
    sums = []
    for a, b in zip(x.split(_PIXELS, 1), y.split(_PIXELS, 1), strict=True):  # chunks that stay in a core's cache
        sums.append(torch.stack([part.sum(1) for part in (a, b, a * a, b * b, a * b)]))
    return list(torch.stack(sums).double().sum(0) / x.shape[1])


def _prepared(stage: nn.Sequential, device: torch.device) -> nn.Sequential:
    stage = stage.to(memory_format=torch.channels_last).requires_grad_(False)
    return use_winograd(stage) if device.type == "cpu" else stage
