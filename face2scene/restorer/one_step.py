"""The restorer: one UNet evaluation turns a damaged scene into a restored one.

B pictures, N tokens of width D. Pictures come and go as RGB in [0, 1].
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from face2scene import checkpoints
from face2scene.images import pad_to_multiple
from face2scene.mapnet import MapNet
from face2scene.restorer import lora
from face2scene.restorer.backbone import Base, clean_latent, load_base

log = logging.getLogger(__name__)
POSITIVE = "a high-resolution, 8K, ultra-realistic sharp image, vibrant colors, and natural lighting"
NEGATIVE = "oil painting, cartoon, blur, dirty, messy, low quality, deformation, low resolution, oversmooth"


class OneStepRestorer(nn.Module):
    """VAE encoder (LoRA) -> UNet (LoRA) once, guided by text and degradation tokens -> VAE decoder (frozen).

    Trained parts: the two LoRAs, the UNet's first convolution, MapNet, and the null tokens that stand in where no
    face could be measured (supplement 2.2; the null tokens are ours).

    Args:
        base: what `load_base` returned; its text encoder runs here once and is then dropped.
        mapnet: FaDeX's map to tokens; its width must be the base's.
        vae_rank, unet_rank: LoRA ranks; the paper's are 16 and 32.
        lora_alpha: LoRA scale is this over the rank; 8 is peft's default, which S3Diff trained with.
        timestep: the one the UNet is told; not public, S3Diff's is 999.
        prompts: positive and negative (supplement 2.2).
        guidance: lambda of classifier-free guidance at inference; the paper's is 1.10.
    """

    def __init__(
        self,
        base: Base,
        mapnet: MapNet,
        *,
        vae_rank: int = 16,
        unet_rank: int = 32,
        lora_alpha: float = 8.0,
        vae_layers: Sequence[str] = lora.VAE_ENCODER,
        unet_layers: Sequence[str] = lora.UNET,
        timestep: int = 999,
        prompts: tuple[str, str] = (POSITIVE, NEGATIVE),
        guidance: float = 1.10,
        source: str = "",
    ):
        super().__init__()
        width = base.unet.config.cross_attention_dim
        if mapnet.config["width"] != width:
            raise ValueError(
                f"MapNet makes tokens of width {mapnet.config['width']}, the base model reads {width}: "
                "set mapnet.width."
            )
        self.vae, self.unet, self.mapnet = base.vae, base.unet, mapnet  # frozen, both of the base
        adapted = len(lora.add_lora(self.vae, vae_layers, rank=vae_rank, alpha=lora_alpha))
        adapted += len(lora.add_lora(self.unet, unet_layers, rank=unet_rank, alpha=lora_alpha))
        self.unet.conv_in.requires_grad_(True)
        self.null_tokens = nn.Parameter(torch.zeros(1, mapnet.num_tokens, width))
        self.register_buffer("text", base.encode_prompts(list(prompts)), persistent=False)  # (2, 77, D)
        self.alpha = base.alphas[timestep].item()
        self.prediction = base.prediction
        self.timestep = timestep
        self.guidance = guidance
        self.config: dict[str, Any] = {
            "source": source,
            "mapnet": mapnet.config,
            "vae_rank": vae_rank,
            "unet_rank": unet_rank,
            "lora_alpha": lora_alpha,
            "vae_layers": list(vae_layers),
            "unet_layers": list(unet_layers),
            "timestep": timestep,
            "prompts": list(prompts),
            "guidance": guidance,
        }
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in self.parameters()) - trained
        log.info(
            "Restorer: %.2f M weights trained, %.2f M frozen, %d layers adapted.",
            trained / 1e6,
            frozen / 1e6,
            adapted,
        )

    @property
    def multiple(self) -> int:
        """Sides of a picture must be multiples of this: the VAE's factor times the UNet's."""
        vae, unet = len(self.vae.config.block_out_channels) - 1, len(self.unet.config.block_out_channels) - 1
        return 2 ** (vae + unet)

    def tokens(self, features: Tensor | None, batch: int, drop: Tensor | None = None) -> Tensor:
        """Degradation tokens (B, N, D) from FaDeX's map, the null tokens where there is none or `drop` (B,) says so."""
        null = self.null_tokens.expand(batch, -1, -1)
        if features is None:
            return null
        tokens = self.mapnet(features)
        return tokens if drop is None else torch.where(drop.view(-1, 1, 1), null.to(tokens), tokens)

    def forward(self, image: Tensor, tokens: Tensor, negative: Tensor | None = None) -> Tensor:
        """One step without guidance, as in training.

        Args:
            image: (B, 3, H, W) in [0, 1], sides multiples of `multiple`.
            tokens: (B, N, D).
            negative: (B,) bool, which pictures are prompted negatively; None is none of them.

        Returns:
            (B, 3, H, W), about [0, 1] and not clamped, so that gradients survive.
        """
        which = torch.zeros(len(image), dtype=torch.long, device=image.device) if negative is None else negative.long()
        latent = self._encode(image, sample=True)
        return self._decode(self._clean(latent, self._predict(latent, self.text[which], tokens)))

    @torch.inference_mode()
    def restore(self, image: Tensor, tokens: Tensor, *, guidance: float | None = None) -> Tensor:
        """Restore pictures of any size with classifier-free guidance (supplement 2.2).

        z_neg + guidance * (z_pos - z_neg) on the UNet's output, both prompts in one call; tokens go to both. The VAE's
        mean is taken instead of a sample, so that nothing here is random. `guidance` 1 skips the negative prompt.

        Returns:
            (B, 3, H, W) in [0, 1], the size of `image`.
        """
        guidance = self.guidance if guidance is None else guidance
        padded, (height, width) = pad_to_multiple(image, self.multiple)
        latent = self._encode(padded, sample=False)
        text = self.text[:1].expand(len(latent), -1, -1)
        if guidance == 1:
            prediction = self._predict(latent, text, tokens)
        else:
            text = torch.cat([text, self.text[1:].expand(len(latent), -1, -1)])
            positive, negative = self._predict(latent.repeat(2, 1, 1, 1), text, tokens.repeat(2, 1, 1)).chunk(2)
            prediction = negative + guidance * (positive - negative)
        return self._decode(self._clean(latent, prediction))[..., :height, :width].clamp(0, 1).float()

    def _encode(self, image: Tensor, *, sample: bool) -> Tensor:
        posterior = self.vae.encode((image * 2 - 1).to(self.vae.dtype)).latent_dist
        return (posterior.sample() if sample else posterior.mode()) * self.vae.config.scaling_factor

    def _predict(self, latent: Tensor, text: Tensor, tokens: Tensor) -> Tensor:
        context = torch.cat([text, tokens.to(text)], dim=1).to(latent.dtype)  # 77 + 21 = 98 tokens
        return self.unet(latent, self.timestep, encoder_hidden_states=context).sample

    def _clean(self, latent: Tensor, prediction: Tensor) -> Tensor:
        return clean_latent(latent, prediction, self.alpha, self.prediction)

    def _decode(self, latent: Tensor) -> Tensor:
        scaled = (latent / self.vae.config.scaling_factor).to(self.vae.dtype)
        return self.vae.decode(scaled).sample / 2 + 0.5

    def save(self, path: str | Path, *, about: Mapping[str, Any], dtype: torch.dtype | None = None) -> None:
        """Write every trained part into one safetensors file whose header rebuilds the restorer."""
        tensors = checkpoints.trained_tensors(self)
        checkpoints.save_weights(path, tensors, kind="restorer", config=self.config, about=about, dtype=dtype)

    @classmethod
    def from_file(cls, path: str | Path, *, source: str | Path | None = None) -> "OneStepRestorer":
        """Rebuild from a file of `save`: the base from `source` or where the header says, then the trained parts."""
        tensors, config, _ = checkpoints.load_weights(path, kind="restorer")
        where = str(source) if source else config["source"]
        config = config | {"source": where, "prompts": tuple(config["prompts"])}
        mapnet = MapNet(**config.pop("mapnet"))
        restorer = cls(load_base(where), mapnet, **config)
        checkpoints.fit(restorer, tensors, expected=set(checkpoints.trained_tensors(restorer)), source=path)
        return restorer.eval().requires_grad_(False)

    def unfreeze(self) -> "OneStepRestorer":
        """Make the trained parts trainable again, to go on from a file."""
        for name, parameter in self.named_parameters():
            own = name == "null_tokens" or name.startswith(("mapnet.", "unet.conv_in.")) or ".lora_" in name
            parameter.requires_grad_(own)
        return self.train()

    def merged(self) -> "OneStepRestorer":
        """Fold both LoRAs into the base for inference; the restorer can no longer be trained or saved."""
        lora.merge_lora(self.vae)
        lora.merge_lora(self.unet)
        return self.eval().requires_grad_(False)
