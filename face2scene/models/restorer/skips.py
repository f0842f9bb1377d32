"""Skip connections from the VAE's encoder to its decoder, so that detail need not pass through the latent.

As in img2img-turbo, which S3Diff is derived from: the input of each encoder stage is added, through a 1 x 1 convolution
that starts at zero, to the input of the decoder stage of the same size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKL, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, is_grad_enabled, nn

from face2scene.common.types import Box

KEPT = 192 * 2**20  # bytes: half of the tiles of 12 megapixels with the weights that ship (ours)


class Skips(ModelMixin, ConfigMixin):
    """The convolutions, one for each stage; they start at zero, which leaves the VAE's output unchanged.

    Args:
        channels: (encoder's, decoder's) of each skip connection, from the full size down.
    """

    @register_to_config
    def __init__(self, channels: Sequence[Sequence[int]]):
        super().__init__()
        convs = [nn.Conv2d(source, target, 1, bias=False) for source, target in channels]
        for conv in convs:
            nn.init.zeros_(conv.weight)
        self.convs = nn.ModuleList(convs)

    @staticmethod
    @contextmanager
    def recorded(vae: AutoencoderKL) -> Iterator[list[Tensor]]:
        """Inside, `vae.encode` sets the items: inputs (B, C, H / 2^i, W / 2^i) of the encoder's stages, i >= 1."""
        stages = vae.encoder.down_blocks[1:]
        features: list[Tensor] = [torch.empty(0)] * len(stages)
        hooks = [
            stage.register_forward_pre_hook(lambda _, inputs, number=number: features.__setitem__(number, inputs[0]))
            for number, stage in enumerate(stages)
        ]
        try:
            yield features
        finally:
            for hook in hooks:
                hook.remove()

    def decode(self, vae: AutoencoderKL, latent: Tensor, image: Tensor, recorded: Sequence[Tensor] | None) -> Tensor:
        """`vae.decode` with skip connections: latent (B, C, h, w), not scaled, to (B, 3, H, W) about [-1, 1].

        Args:
            image: (B, 3, H, W) in [-1, 1], the encoded one.
            recorded: of encoding it; None encodes it again. The first stage's input, the largest, is always computed
                again: it is one convolution.
        """
        decoder, encoder = vae.decoder, vae.encoder
        features = [encoder.conv_in(image)]
        if recorded is None:
            for block in encoder.down_blocks[:-1]:
                features.append(_run(encoder, block, features[-1]))
        else:
            features += [feature.to(latent.dtype) for feature in recorded]
        x = decoder.conv_in(latent if vae.post_quant_conv is None else vae.post_quant_conv(latent))
        x = _run(decoder, decoder.mid_block, x)
        for block, conv, feature in zip(decoder.up_blocks, reversed(self.convs), reversed(features), strict=True):
            x = _run(decoder, block, x + conv(feature))
        return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x)))


class KeptFeatures:
    """`Skips.recorded` of an image's tiles, from their encoding to their decoding.

    One tensor on `device` holds a stage's features of the tiles: small blocks between those of the networks would keep
    freed memory from being used again. Tiles beyond `KEPT` bytes are encoded again, and those that needed another
    precision than the first one: half precision does not hold their values.
    """

    def __init__(self, boxes: Sequence[Box], device: torch.device):
        self._device = device
        self._places = {box: place for place, box in enumerate(boxes)}
        self._stages: list[Tensor] = []  # (tiles, C, h, w) each
        self._kept: set[int] = set()  # places of the tiles

    def put(self, boxes: Sequence[Box], features: Sequence[Tensor]) -> None:
        """Keep the features (1, C, h, w) of one tile; those of other boxes, such as squares, are not kept."""
        place = self._places.get(boxes[0]) if features and len(boxes) == 1 else None
        if place is None:
            return
        if not self._stages:
            count = min(len(self._places), KEPT // sum(one.numel() * one.element_size() for one in features))
            self._stages = [one.new_empty(count, *one.shape[1:], device=self._device) for one in features]
        if place < len(self._stages[0]) and features[0].dtype == self._stages[0].dtype:
            self._kept.add(place)
            for stage, feature in zip(self._stages, features, strict=True):
                stage[place].copy_(feature[0])

    def of(self, boxes: Sequence[Box], device: torch.device) -> list[Tensor] | None:
        """The features of one tile, or None where they were not kept."""
        place = self._places.get(boxes[0]) if len(boxes) == 1 else None
        return [stage[place, None].to(device) for stage in self._stages] if place in self._kept else None

    def clear(self) -> None:
        """Free the features."""
        self._stages = []
        self._kept.clear()


def channels_of(vae: AutoencoderKL) -> list[list[int]]:
    """`Skips.channels` that fit a VAE."""
    widths = list(vae.config.block_out_channels)
    sources = [widths[0], *widths[:-1]]  # inputs of the encoder's stages
    targets = [*widths[1:], widths[-1]]  # inputs of the decoder's stages: each has the width of the coarser one
    return [list(pair) for pair in zip(sources, targets, strict=True)]


def attach(vae: AutoencoderKL, channels: Sequence[Sequence[int]] | None, pretrained: Skips | None, source: str) -> None:
    """Set `vae.skips` to trainable skip connections, the base's own where it was pretrained with some.

    Args:
        channels: of the skip connections in a weights file; None where there is no file.
        pretrained: the base's.
        source: the base, for messages.

    Raises:
        ValueError: the file's skip connections do not fit this VAE.
    """
    own = channels_of(vae)
    if channels is not None and [list(pair) for pair in channels] != own:
        raise ValueError(
            f"The skip connections of these weights have {_formatted(channels)} channels, but the base "
            f"{source or 'given'} has {_formatted(own)}: they were trained on another base. Set that one (base= of "
            "restore.py, restorer.base.source)."
        )
    skips = Skips(own)
    if pretrained is not None:
        skips.load_state_dict(pretrained.state_dict())
    vae.skips = skips.requires_grad_(True)


def _formatted(channels: Sequence[Sequence[int]]) -> str:
    return ", ".join(f"{source} to {target}" for source, target in channels)


def _run(owner: Any, block: nn.Module, x: Tensor) -> Tensor:
    if is_grad_enabled() and owner.gradient_checkpointing:
        return owner._gradient_checkpointing_func(block, x)
    return block(x)
