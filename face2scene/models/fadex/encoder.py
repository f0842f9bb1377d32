"""The encoder: from a restored and a degraded face to a map of degradation features (supplement 2.1).

Shapes: B faces, C channels of the map, D width of the embedding, h x w pixels of the map.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from face2scene.common.choices import one_of
from face2scene.common.model_files import recorded
from face2scene.models.saved_module import SavedModule

MINIMUM_SIZE = 16  # pixels; stride 2 here and 2 in MapNet leave the 4 x 4 grid of tokens (supplement 4.3)


class FaDeX(SavedModule):
    """Estimates an image's degradation from the restored and the degraded version of one face (supplement 2.1).

    A stack of 3x3 convolution, batch norm and leaky ReLU gives the map that conditions the restorer. A head
    (global average, linear, leaky ReLU, linear) gives a unit vector, for training and evaluation. Fully convolutional,
    for sizes of at least 16 pixels.

    Args:
        widths: channels after each convolution; the last is the map's. The default is DASR's; the paper gives
            only the 256 at the end.
        strides: of each convolution. Total stride 2 is our reading of the 16-pixel minimum (supplement 4.3);
            DASR has 4.
        embedding: width D of the unit vector (our setting, DASR's).
        slope: of the leaky ReLUs (our setting, DASR's).
        order: `restored_first` or `degraded_first`, how the pair is stacked (the paper does not say).
        inputs: `pair` is the paper's. Two ablations: `lq_only` takes the degraded face alone, `difference` the restored
            minus the degraded face.
        start: of the first convolution of a pair. `difference` makes its two halves each other's negative, so that it
            starts as a filter of the difference of the two faces; training at small scale then takes minutes, and many
            times as long from `random` (our setting).
        head_norm: batch norm inside the head (our setting; faster at small scale).

    Raises:
        ValueError: unknown or inconsistent options.
    """

    kind = "fadex"

    @recorded()
    def __init__(
        self,
        widths: Sequence[int] = (64, 64, 128, 128, 256, 256),
        strides: Sequence[int] = (1, 1, 2, 1, 1, 1),
        embedding: int = 256,
        slope: float = 0.1,
        order: str = "restored_first",
        inputs: str = "pair",
        start: str = "difference",
        head_norm: bool = False,
    ):
        super().__init__()
        one_of("fadex.encoder.order", order, ("restored_first", "degraded_first"))
        one_of("fadex.encoder.inputs", inputs, ("pair", "lq_only", "difference"))
        one_of("fadex.encoder.start", start, ("difference", "random"))
        if not widths or len(widths) != len(strides):
            raise ValueError(
                f"FaDeX needs one stride for each width, got fadex.encoder.widths={list(widths)} "
                f"and fadex.encoder.strides={list(strides)}."
            )
        self.order, self.inputs = order, inputs
        self.channels = int(widths[-1])

        layers: list[nn.Module] = []
        width = 6 if inputs == "pair" else 3
        for out, stride in zip(widths, strides, strict=True):
            # No bias: the batch norm would cancel it.
            layers += [nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.LeakyReLU(slope)]
            width = out
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Linear(width, embedding),
            *([nn.BatchNorm1d(embedding)] if head_norm else []),
            nn.LeakyReLU(slope),
            nn.Linear(embedding, embedding),
        )
        if start == "difference" and inputs == "pair":
            first = self.body.get_parameter("0.weight")
            with torch.no_grad():
                first[:, 3:] = -first[:, :3]

    def forward(self, restored: Tensor, degraded: Tensor) -> Tensor:
        """Map of degradation features.

        Args:
            restored, degraded: (B, 3, H, W) in [0, 1], pixel for pixel the same face, at its native size.

        Returns:
            (B, C, h, w); h = H / total stride, rounded up.

        Raises:
            ValueError: sizes differ or are below 16 pixels.
        """
        return self.body(self.stacked(restored, degraded))

    def stacked(self, restored: Tensor, degraded: Tensor) -> Tensor:
        """What the first layer sees of a pair: (B, 6, H, W), or 3 channels; arguments and errors of `forward`."""
        if restored.shape != degraded.shape:
            raise ValueError(
                f"A face pair must have one size, got restored {tuple(restored.shape)} and degraded "
                f"{tuple(degraded.shape)}: see ref_fr, which has to return the crop's own size."
            )
        height, width = degraded.shape[-2:]
        if min(height, width) < MINIMUM_SIZE:
            raise ValueError(
                f"A face crop of {width} x {height} pixels is too small for FaDeX, which needs "
                f"{MINIMUM_SIZE}: raise train.fadex.crop, or let faces.min_face leave such faces out."
            )
        if self.inputs == "lq_only":
            return degraded
        if self.inputs == "difference":
            return restored - degraded
        first, second = (restored, degraded) if self.order == "restored_first" else (degraded, restored)
        return torch.cat((first, second), dim=1)

    def embed(self, features: Tensor) -> Tensor:
        """Unit vectors (B, D), float32, of maps (B, C, h, w); close for similar degradations."""
        return F.normalize(self.head(features.mean((-2, -1))).float(), dim=1)
