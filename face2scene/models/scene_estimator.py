"""The degradation estimated from the degraded image alone, where there is no face pair (ours, not in the paper).

Distilled from face pairs beside the restorer: an encoder gives FaDeX's map from a crop of the scene, and a small head
gives from the degradation tokens the share of the input that brings the restoration closest to the ground truth.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from face2scene.common.model_files import recorded
from face2scene.models.fadex.encoder import FaDeX
from face2scene.models.mapnet import MapNet
from face2scene.models.saved_module import SavedModule

FILE = "estimator.safetensors"  # beside the restorer's weights
_PERCEPTUAL = 3.0  # weight of LPIPS beside the squared error; at 1 a quarter of a strongly degraded input stays


class SceneEstimator(SavedModule):
    """Degradation tokens from the degraded image, and the fidelity from tokens.

    Args:
        widths, strides: of the encoder, which is a FaDeX of the degraded image alone; the last width and the total
            stride are those of the restorer's FaDeX.
        width: D of the tokens.
    """

    kind = "scene_estimator"
    config: dict[str, Any]

    @recorded()
    def __init__(self, *, widths: Sequence[int], strides: Sequence[int], width: int):
        super().__init__()
        self.encoder = FaDeX(widths, strides, embedding=1, inputs="lq_only")
        del self.encoder.head  # not used
        last = nn.Linear(2 * width, 1)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, -2.0)  # starts at a fidelity of 0.12 for every image
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), last)

    def fits(self, mapnet: MapNet) -> bool:
        """Whether it makes maps that this MapNet reads, and reads its tokens."""
        return (self.encoder.channels, self.config["width"]) == (mapnet.config["in_channels"], mapnet.config["width"])

    def features(self, image: Tensor) -> Tensor:
        """The map (B, C, h, w) that FaDeX would give for a face of the same degradation, of crops (B, 3, H, W)."""
        return self.encoder(image, image)

    def fidelity(self, tokens: Tensor) -> Tensor:
        """The share (B,) in [0, 1] of the input in the restored image, of tokens (B, N, D); reads the global one."""
        return self.head(tokens[:, 0].float()).sigmoid()[:, 0]

    def forward(self, image: Tensor, tokens: Tensor, mapnet: MapNet) -> tuple[Tensor, Tensor, Tensor]:
        """For training.

        Args:
            image: (B, 3, c, c), degraded crops in [0, 1].
            tokens: (B, N, D) that the restorer used for them.
            mapnet: the restorer's.

        Returns:
            its own tokens (B, N, D), the fidelity (B,) of the given ones, and that of its own.
        """
        own = mapnet(self.features(image))
        return own, self.fidelity(tokens), self.fidelity(own)


def estimator_losses(
    own: Tensor,
    tokens: Tensor,
    fidelities: Sequence[Tensor],
    image: Tensor,
    restored: Tensor,
    gt: Tensor,
    used: Tensor,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    count: Tensor | None = None,
) -> dict[str, Tensor]:
    """Distance to the tokens of the face pair, and the blend's error over the restoration's.

    The squared error alone is least at a quarter to a half of the input at every strength of degradation, for blending
    averages errors; what tells images that need nothing from all others is LPIPS.

    Args:
        own, tokens: (B, N, D), estimated and of the face pair.
        fidelities: (B,) each, shares of the input.
        image, restored, gt: (B, 3, c, c), in [0, 1].
        used: (B,) bool, images with a face pair and the positive prompt; the other ones count for nothing.
        perceptual: distances (B,) of images in [-1, 1], added to the squared error in the same way; None adds none.
        count: of used images per batch, over all batches and processes of a step; None is that of this batch.
    """
    weight = used.float() / (used.sum().clamp(min=1) if count is None else count)
    distance = (own - tokens).square().mean((1, 2))
    blends = [torch.lerp(restored, image, share.view(-1, 1, 1, 1)) for share in fidelities]
    # The floors, a squared error and an LPIPS: without them images that need nothing outweigh all others.
    measures: list[tuple[Callable[[Tensor, Tensor], Tensor], float, float]] = [(_squared_error, 1e-5, 1.0)]
    if perceptual is not None:
        measures.append((lambda a, b: perceptual(a * 2 - 1, b * 2 - 1), 0.01, _PERCEPTUAL))
    losses = []
    for measure, floor, factor in measures:
        scale = measure(restored, gt).detach() + floor
        losses += [factor * measure(blend, gt) / scale for blend in blends]
    return {"tokens": (distance * weight).sum(), "fidelity": (torch.stack(losses).sum(0) * weight).sum()}


def _squared_error(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().mean((1, 2, 3))
