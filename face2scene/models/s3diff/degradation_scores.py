"""How blurred and how noisy an image is: the degradation-score network that S3Diff conditions on."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from face2scene.assets import catalogue
from face2scene.common.model_files import recorded
from face2scene.models.saved_module import SavedModule


class ScoreNet(SavedModule):
    """One residual network without normalisation per score (DEResNet of MM-RealSR, 2.351 M weights at full size).

    Args:
        widths, blocks, strides: channels, residual blocks and stride (1 or 2) of each stage.
        hidden: width of the head.
        num_scores: MM-RealSR's two are blur and noise.

    Shapes: image (B, 3, H, W) in [0, 1], of any size -> scores (B, num_scores) in (0, 1).
    """

    kind = "score_net"

    @recorded()
    def __init__(
        self,
        *,
        widths: Sequence[int] = (64, 64, 64, 128),
        blocks: Sequence[int] = (2, 2, 2, 2),
        strides: Sequence[int] = (1, 1, 2, 1),
        hidden: int = 512,
        num_scores: int = 2,
    ):
        super().__init__()
        if not len(widths) == len(blocks) == len(strides):
            raise ValueError(f"widths, blocks and strides need one number per stage: {widths}, {blocks}, {strides}.")
        self.first = nn.ModuleList(nn.Conv2d(3, widths[0], 3, padding=1) for _ in range(num_scores))
        self.body = nn.ModuleList(_body(widths, blocks, strides) for _ in range(num_scores))
        self.head = nn.ModuleList(
            nn.Sequential(nn.Linear(widths[-1], hidden), nn.ReLU(), nn.Linear(hidden, 1)) for _ in range(num_scores)
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
                layer.weight.data *= 0.1  # DEResNet's initialisation

    def forward(self, image: Tensor) -> Tensor:
        scores = []
        for first, body, head in zip(self.first, self.body, self.head, strict=True):
            pooled = body(first(image)).mean((-2, -1))
            scores.append(head(pooled).sigmoid())
        return torch.cat(scores, dim=1)

    @classmethod
    def published(cls) -> "ScoreNet":
        """MM-RealSR's weights, as S3Diff ships them.

        Raises:
            MissingWeights: not fetched yet.
        """
        return cls.from_file(catalogue.folder("s3diff") / "de_net.safetensors")


def _body(widths: Sequence[int], blocks: Sequence[int], strides: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for stage, (width, count, stride) in enumerate(zip(widths, blocks, strides, strict=True)):
        layers += [_Residual(width) for _ in range(count)]
        following = widths[min(stage + 1, len(widths) - 1)]
        if stride > 1 or following != width:
            layers.append(nn.Conv2d(width, following, 3, stride=stride, padding=1))
    return nn.Sequential(*layers)


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x).relu())
