"""How blurred and how noisy an image is: the degradation-score network that S3Diff conditions on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from face2scene.assets import catalogue
from face2scene.common import model_files


class ScoreNet(nn.Module):
    """One residual network without normalisation per score (DEResNet of MM-RealSR, 2.351 M weights at full size).

    Args:
        widths, blocks, strides: channels, residual blocks and stride (1 or 2) of each stage.
        hidden: width of the head.
        num_scores: MM-RealSR's two are blur and noise.

    Shapes: image (B, 3, H, W) in [0, 1], of any size -> scores (B, num_scores) in (0, 1).
    """

    config: dict[str, Any]  # the arguments

    @model_files.recorded()
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
                nn.init.zeros_(layer.bias)
                layer.weight.data *= 0.1  # DEResNet's start

    def forward(self, image: Tensor) -> Tensor:
        scores = []
        for first, body, head in zip(self.first, self.body, self.head, strict=True):
            pooled = body(first(image)).mean((-2, -1))
            scores.append(head(pooled).sigmoid())
        return torch.cat(scores, dim=1)

    def save(self, path: str | Path, *, about: Mapping[str, Any]) -> None:
        """Write the weights, with a header that rebuilds the network."""
        model_files.save_weights(path, self.state_dict(), kind="score_net", config=self.config, about=about)

    @classmethod
    def from_file(cls, path: str | Path) -> "ScoreNet":
        """Rebuild from a file of `save` or of the converter, frozen."""
        tensors, config, _ = model_files.load_weights(path, kind="score_net")
        network = cls(**config)
        model_files.fit(network, tensors, expected=set(network.state_dict()), source=path)
        return network.eval().requires_grad_(False)

    @classmethod
    def published(cls) -> "ScoreNet":
        """MM-RealSR's weights, as S3Diff ships them.

        Raises:
            MissingWeights: they have not been fetched; the message holds the command.
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
