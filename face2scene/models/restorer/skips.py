"""Joins from the VAE's encoder to its decoder, so that detail need not pass through the latent.

As in img2img-turbo, the ancestor of S3Diff: what goes into each stage of the encoder is added, through a 1 x 1
convolution that starts at zero, to what goes into the decoder's stage of the same size.
"""

from collections.abc import Sequence
from typing import Any

from diffusers import AutoencoderKL, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, is_grad_enabled, nn


class Skips(ModelMixin, ConfigMixin):
    """The convolutions, one for each stage; zero at first, so that the VAE decodes as it did.

    Args:
        channels: (encoder's, decoder's) of each join, from the full size down.
    """

    @register_to_config
    def __init__(self, channels: Sequence[Sequence[int]]):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(given, taken, 1, bias=False) for given, taken in channels)
        for conv in self.convs:
            nn.init.zeros_(conv.weight)

    def taps(self, vae: AutoencoderKL, image: Tensor) -> list[Tensor]:
        """What goes into each stage of the encoder, (B, C, H / 2^i, W / 2^i); `image` (B, 3, H, W) in [-1, 1]."""
        tap = vae.encoder.conv_in(image)
        taps = [tap]
        for block in vae.encoder.down_blocks[:-1]:
            tap = _run(vae.encoder, block, tap)
            taps.append(tap)
        return taps

    def decode(self, vae: AutoencoderKL, latent: Tensor, taps: Sequence[Tensor]) -> Tensor:
        """`vae.decode(latent)` with the joins: (B, C, h, w), not scaled, to (B, 3, H, W), about [-1, 1]."""
        decoder = vae.decoder
        x = decoder.conv_in(latent if vae.post_quant_conv is None else vae.post_quant_conv(latent))
        x = _run(decoder, decoder.mid_block, x)
        for block, conv, tap in zip(decoder.up_blocks, reversed(self.convs), reversed(taps), strict=True):
            x = _run(decoder, block, x + conv(tap))
        return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x)))


def channels_of(vae: AutoencoderKL) -> list[list[int]]:
    """`channels` of the joins that a VAE has room for."""
    widths = list(vae.config.block_out_channels)
    given = [widths[0], *widths[:-1]]  # into the encoder's stages
    taken = [*widths[1:], widths[-1]]  # into the decoder's, whose stage gives its own width to the next finer one
    return [list(pair) for pair in zip(given, taken, strict=True)]


def attach(vae: AutoencoderKL, channels: Sequence[Sequence[int]] | None, pretrained: Skips | None, source: str) -> None:
    """Put trainable joins into `vae.skips`, the base's own where it was pretrained with some.

    Args:
        channels: of the joins in a weights file; None where there is no file.
        pretrained: the base's.
        source: the base, for messages.

    Raises:
        ValueError: the file's joins do not fit this VAE.
    """
    own = channels_of(vae)
    if channels is not None and [list(pair) for pair in channels] != own:
        raise ValueError(
            f"These weights join VAE stages of {_told(channels)} channels, but the base {source or 'given'} has "
            f"{_told(own)}: they were trained on another base. Name that one (base= of restore.py, "
            "restorer.base.source)."
        )
    skips = Skips(own)
    if pretrained is not None:
        skips.load_state_dict(pretrained.state_dict())
    vae.skips = skips.requires_grad_(True)


def _told(channels: Sequence[Sequence[int]]) -> str:
    return ", ".join(f"{given} to {taken}" for given, taken in channels)


def _run(owner: Any, block: nn.Module, x: Tensor) -> Tensor:
    if is_grad_enabled() and owner.gradient_checkpointing:
        return owner._gradient_checkpointing_func(block, x)
    return block(x)
