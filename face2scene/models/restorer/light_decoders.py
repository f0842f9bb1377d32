"""Small decoders in place of the VAE's, for speed (ours; never the default). The encoder stays.

`taesd` (diffusers' AutoencoderTiny), and the half-width decoder of Stable Diffusion 2.1 that VOSR published
(`vosr_decoder`), whose blocks are those of diffusers' decoder and whose file names their widths.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.autoencoders.vae import Decoder
from torch import Tensor, nn

from face2scene.assets import catalogue
from face2scene.common.model_files import fit

VOSR_FILE, TAESD_FILE = "sd21_lwdecoder.pth", "diffusion_pytorch_model.safetensors"


class _Taesd(nn.Module):
    def __init__(self, network: AutoencoderTiny, factor: float):
        super().__init__()
        self.network, self.factor = network.decoder, factor

    def forward(self, latent: Tensor, latent_embeds: None = None) -> Tensor:
        return self.network(latent * self.factor)  # TAESD's latents have the UNet's scale


def replace_decoder(vae: AutoencoderKL, source: str | Path) -> Path:
    """Let `vae.decode` use a small decoder, frozen and in the VAE's precision; returns the file of its weights.

    Args:
        source: `taesd` or `vosr_decoder` of the asset catalogue, or a folder with the files of one.

    Raises:
        MissingWeights, FileNotFoundError: not fetched yet; a folder without such files.
        ValueError: it decodes other latents than the VAE's, or to another size; the VAE has skip connections.
    """
    folder = catalogue.folder(str(source)) if str(source) in catalogue.catalogue() else Path(source)
    decoder: nn.Module
    if (file := folder / VOSR_FILE).is_file():
        content = torch.load(file, map_location="cpu", weights_only=True)
        shape = content["config"] | {"block_out_channels": tuple(content["config"]["block_out_channels"])}
        known = ("in_channels", "out_channels", "block_out_channels", "layers_per_block")
        blocks = ("UpDecoderBlock2D",) * len(shape["block_out_channels"])
        decoder = Decoder(**{name: shape[name] for name in known}, up_block_types=blocks)
        fit(decoder, content["model_state_dict"], expected=set(decoder.state_dict()), source=file)
        channels, halvings = shape["in_channels"], len(blocks) - 1
    elif (file := folder / TAESD_FILE).is_file():
        tiny = AutoencoderTiny.from_pretrained(folder)
        decoder = _Taesd(tiny, vae.config.scaling_factor)
        channels, halvings = tiny.config.latent_channels, len(tiny.config.decoder_block_out_channels) - 1
    else:
        raise FileNotFoundError(f"{folder} has no {VOSR_FILE} or {TAESD_FILE}: set restorer.decoder to taesd or null.")
    own = (vae.config.latent_channels, len(vae.config.block_out_channels) - 1)
    skips = hasattr(vae, "skips")
    if (channels, halvings) != own or skips:
        raise ValueError(
            f"restorer.decoder={source} decodes {channels} channels to {2**halvings} times the size, and the base's "
            f"latents have {own[0]} and {2 ** own[1]}{' and skip connections' * skips}: set restorer.decoder=null."
        )
    like = vae.decoder.conv_in.weight
    vae.decoder = nn.Module.to(decoder, like.device, like.dtype).eval().requires_grad_(False)
    vae.post_quant_conv = None  # is part of the decoder that it belongs to
    return file
