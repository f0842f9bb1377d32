"""The degradation estimated from the degraded image alone, where there is no face pair (ours, not in the paper).

Distilled from face pairs beside the restorer: an encoder gives FaDeX's map from a crop of the scene, and a small head
gives from the degradation tokens the share of the input that brings the restoration closest to the ground truth.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from face2scene.common.model_files import recorded
from face2scene.models.fadex.encoder import FaDeX
from face2scene.models.mapnet import MapNet
from face2scene.models.saved_module import SavedModule

FILE = "estimator.safetensors"  # beside the restorer's weights


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
        return own, self.fidelity(tokens), self.fidelity(own.detach())


def estimator_losses(
    own: Tensor, tokens: Tensor, fidelities: Sequence[Tensor], image: Tensor, restored: Tensor, gt: Tensor, used: Tensor
) -> dict[str, Tensor]:
    """Distance to the tokens of the face pair, and the blend's squared error over the restoration's.

    Args:
        own, tokens: (B, N, D), estimated and of the face pair.
        fidelities: (B,) each, shares of the input.
        image, restored, gt: (B, 3, c, c), one range.
        used: (B,) bool, images with a face pair and the positive prompt; the other ones count for nothing.
    """
    weight = used.float() / used.sum().clamp(min=1)
    distance = (own - tokens).square().mean((1, 2))
    floor = 1e-5  # of squared errors; without it images that need nothing outweigh all others
    scale = (restored - gt).square().mean((1, 2, 3)) + floor
    errors = [
        (torch.lerp(restored, image, share.view(-1, 1, 1, 1)) - gt).square().mean((1, 2, 3)) / scale
        for share in fidelities
    ]
    return {"tokens": (distance * weight).sum(), "fidelity": (sum(errors) * weight).sum()}
