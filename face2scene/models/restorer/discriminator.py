"""The discriminator of the adversarial loss: frozen DINO features, small trained heads at several depths.

The paper uses S3Diff's, which is the DINO discriminator of the package vision_aided_loss (MIT), here with the same
settings on a ViT of transformers.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from transformers import ViTConfig, ViTModel

from face2scene.assets import catalogue
from face2scene.common.model_files import fit

# As published: CLIP's mean with ImageNet's deviation, although the features are DINO's.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.229, 0.224, 0.225)
VIT_B16 = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}


class Discriminator(nn.Module):
    """Classifies images as real or restored.

    B images, D width of the features, t tokens along a side of the ViT's image.

    Args:
        features: a ViT; frozen here and always in evaluation mode.
        levels: depths, in blocks, whose outputs the heads take: all but the last as maps (B, D, t, t), the last as
            class token (B, D). S3Diff's are 5, 9 and 12 of 12.
        width: of the heads' hidden layer; S3Diff's is 128.
        augment: apply DiffAugment to every image, as vision_aided_loss does; draws from torch's global generator,
            which the training loop seeds for every step.

    Raises:
        ValueError: levels that the features do not have.
    """

    mean: Tensor  # (3, 1, 1)
    deviation: Tensor  # (3, 1, 1)

    def __init__(
        self, features: ViTModel, *, levels: Sequence[int] = (5, 9, 12), width: int = 128, augment: bool = True
    ):
        super().__init__()
        depth, channels = features.config.num_hidden_layers, features.config.hidden_size
        if len(levels) < 2 or list(levels) != sorted(set(levels)) or not 1 <= levels[0] <= levels[-1] <= depth:
            raise ValueError(
                f"train.restorer.discriminator.levels must be two or more rising depths from 1 to {depth}, not "
                f"{list(levels)}."
            )
        self.features = features.eval().requires_grad_(False)
        self.levels, self.augment = tuple(levels), augment
        self.maps = nn.ModuleList(
            nn.Sequential(
                _Blur(channels, pad=2),
                spectral_norm(nn.Conv2d(channels, width, 3, stride=2)),
                nn.LeakyReLU(0.2),
                _Blur(width, pad=1),
                spectral_norm(nn.Conv2d(width, 1, 1, stride=2)),
            )
            for _ in levels[:-1]
        )
        self.whole = nn.Sequential(
            spectral_norm(nn.Linear(channels, width)), nn.LeakyReLU(0.2), spectral_norm(nn.Linear(width, 1))
        )
        side = features.config.image_size
        self.size = (side, side) if isinstance(side, int) else tuple(side)
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "Discriminator":
        """Set the heads' mode; the features stay in evaluation mode."""
        super().train(mode)
        self.features.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in about [-1, 1] to the heads' logits, each (B, cells)."""
        images = augmented(images) if self.augment else images
        images = F.interpolate(images * 0.5 + 0.5, size=self.size, mode="area")
        hidden = self.features((images - self.mean) / self.deviation, output_hidden_states=True).hidden_states
        tokens = [self.features.layernorm(hidden[level]) for level in self.levels]
        side = math.isqrt(tokens[0].shape[1] - 1)
        logits = [
            head(level[:, 1:].transpose(1, 2).unflatten(2, (side, side))).flatten(1)
            for head, level in zip(self.maps, tokens[:-1], strict=True)
        ]
        return [*logits, self.whole(tokens[-1][:, 0])]


def multilevel_sigmoid(logits: Sequence[Tensor], target: float) -> Tensor:
    """Cross-entropy of every head with one target, mean over its cells and summed over the heads: (B,).

    S3Diff's targets: 0.8 for real images and, in the restorer's loss, for restored ones; 0 for restored images in the
    discriminator's loss.
    """
    losses = [
        F.binary_cross_entropy_with_logits(each, torch.full_like(each, target), reduction="none").mean(1)
        for each in logits
    ]
    return torch.stack(losses).sum(0)


def load_features(source: str | Path | Mapping[str, Any]) -> ViTModel:
    """The discriminator's frozen ViT.

    Args:
        source: a name of the asset catalogue (`dino_vitb16`) or a file of its converter, with DINO's ViT-B/16 under
            DINO's names; or a mapping of ViTConfig arguments for random weights.

    Raises:
        MissingWeights: not fetched yet.
        ValueError: a file with other weights.
    """
    if isinstance(source, Mapping):
        return ViTModel(ViTConfig(**source), add_pooling_layer=False)
    path = catalogue.folder(str(source)) / "dino.safetensors" if str(source) in catalogue.catalogue() else Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}: set train.restorer.discriminator.features to dino_vitb16 "
            "(face2scene fetch dino_vitb16) or to a file that its converter wrote."
        )
    vit = ViTModel(ViTConfig(**VIT_B16, image_size=224, patch_size=16, layer_norm_eps=1e-6), add_pooling_layer=False)
    return fill_features(vit, load_file(path), source=path)


def fill_features(vit: ViTModel, tensors: Mapping[str, Tensor], *, source: str | Path) -> ViTModel:
    """Load DINO's own names (those of timm's ViT) into a ViT of transformers.

    Raises:
        ValueError: names or shapes do not fit.
    """
    state = {}
    for name, tensor in tensors.items():
        block, _, rest = name.removeprefix("blocks.").partition(".")
        if name.startswith("patch_embed.proj."):
            state[f"embeddings.patch_embeddings.projection.{name.rsplit('.', 1)[1]}"] = tensor
        elif name in _TOP:
            state[_TOP[name]] = tensor
        elif rest.startswith("attn.qkv."):
            kind = rest.rsplit(".", 1)[1]
            for part, values in zip("qkv", tensor.chunk(3), strict=True):
                state[f"layers.{block}.attention.{part}_proj.{kind}"] = values
        else:
            for theirs, ours in _IN_BLOCK.items():
                rest = rest.replace(theirs, ours)
            state[f"layers.{block}.{rest}"] = tensor
    fit(vit, state, expected=set(vit.state_dict()), source=source)
    return vit


_TOP = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_IN_BLOCK = {"norm1.": "layernorm_before.", "norm2.": "layernorm_after.", "attn.proj.": "attention.o_proj."}


class _Blur(nn.Module):
    """A binomial low-pass filter before a stride, for less aliasing."""

    kernel: Tensor  # (C, 1, 4, 4)

    def __init__(self, channels: int, *, pad: int):
        super().__init__()
        line = torch.tensor([1.0, 3.0, 3.0, 1.0])
        kernel = line[:, None] * line / 64
        self.register_buffer("kernel", kernel.expand(channels, 1, 4, 4).clone(), persistent=False)
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel.to(x.dtype), padding=self.pad, groups=len(self.kernel))


def augmented(images: Tensor) -> Tensor:
    """DiffAugment's colour, translation and cutout, drawn for every image of (B, 3, H, W).

    Brightness +- 0.5, saturation times 0 to 2, contrast times 0.5 to 1.5, translation by up to an eighth of a side over
    black, and a square of half the side set to 0 (Zhao et al., arXiv 2006.10738).
    """
    batch, _, height, width = images.shape
    device = images.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(batch, 1, 1, 1, device=device).uniform_(low, high).to(images.dtype)

    def integer(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (batch, 1), device=device)

    images = images + uniform(-0.5, 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * uniform(0, 2)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * uniform(0.5, 1.5)

    keep = []
    for size, dim in ((height, 2), (width, 3)):
        reach = int(size / 8 + 0.5)
        source = torch.arange(size, device=device) + integer(-reach, reach)  # (B, size), of each line
        inside = (source >= 0) & (source < size)
        lines = source.clamp(0, size - 1)
        view = (batch, 1, size, 1) if dim == 2 else (batch, 1, 1, size)
        images = images.gather(dim, lines.view(view).expand_as(images)) * inside.view(view).to(images.dtype)
        hole = int(size / 2 + 0.5)
        start = integer(0, size - hole % 2) - hole // 2
        position = torch.arange(size, device=device)
        keep.append(((position < start) | (position >= start + hole)).view(view))
    return images * (keep[0] | keep[1]).to(images.dtype)
