"""The restorer: one UNet evaluation turns a degraded scene into a restored one.

B images, N tokens of width D. Images are RGB in [0, 1].
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from face2scene.common import model_files
from face2scene.common.files import atomic_write
from face2scene.common.memory import explained, on_device
from face2scene.common.types import Box, Progress
from face2scene.image_io.arrays import pad_to_multiple
from face2scene.models.mapnet import MapNet
from face2scene.models.restorer import lora
from face2scene.models.restorer.acceleration import fuse_upsample_conv, run_with_fp32_fallback
from face2scene.models.restorer.base_model import DiffusionBase, PackagedBase, Seeds, per_sample_noise, predict_x0
from face2scene.models.restorer.restorer_base import MEMORY_ADVICE, RestorerBase
from face2scene.models.restorer.shared_norms import SharedNorms
from face2scene.models.restorer.skips import KeptFeatures, attach, channels_of
from face2scene.models.restorer.tiling import TilePlan, network_in_tiles

log = logging.getLogger(__name__)
POSITIVE = "a high-resolution, 8K, ultra-realistic sharp image, vibrant colors, and natural lighting"
NEGATIVE = "oil painting, cartoon, blur, dirty, messy, low quality, deformation, low resolution, oversmooth"


class OneStepRestorer(RestorerBase):
    """VAE encoder (LoRA) -> UNet (LoRA) once, guided by text and degradation tokens -> VAE decoder (frozen).

    Trained parts: the two LoRAs, the UNet's first convolution, MapNet, and the null tokens for scenes without a usable
    face (supplement 2.2; the null tokens are ours).

    Args:
        base: from `load_base`; its text encoder runs once, here, and is then dropped.
        mapnet: FaDeX's map to tokens; its width must be the base's.
        vae_rank, unet_rank: LoRA ranks; the paper's are 16 and 32. 0 leaves the network unchanged.
        lora_alpha: the LoRA scale is this over the rank; 8 is peft's default, which S3Diff trained with.
        timestep: given to the UNet; not public, S3Diff's is 999.
        prompts: positive and negative (supplement 2.2).
        guidance: lambda of classifier-free guidance at inference; the paper's is 1.10.
        negative_tokens: give the negative prompt the degradation tokens, in training and in guidance, or else the null
            tokens. Not public; true is ours.
        posterior: what `restore` takes of the VAE's posterior, its `mean` (ours) or a `sample`, as S3Diff does.
        full: train the whole UNet and VAE encoder in place of LoRAs; the ranks are then not used (ours).
        skips: add skip connections from the VAE's encoder to its decoder (img2img-turbo's; the paper has none).
        residual: decode a correction of the input, restored = input + decoded (ours).
        skip_channels: of the skip connections in a weights file; a base of other shapes is refused.

    VAE and UNet of the base may be bf16 or fp16. Trained parts are float32, and until the LoRAs are merged the networks
    run under autocast in the base's precision. At timestep 999 a UNet in less than float32 (TF32) puts noise into the
    latent: see configs/restorer/sd_turbo.yaml.
    """

    kind = "restorer"

    @model_files.recorded("base")
    def __init__(
        self,
        base: DiffusionBase | PackagedBase,
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
        negative_tokens: bool = True,
        posterior: Literal["mean", "sample"] = "mean",
        full: bool = False,
        skips: bool = False,
        residual: bool = False,
        skip_channels: Sequence[Sequence[int]] | None = None,
        source: str = "",
    ):
        super().__init__(base, prompts=prompts, timestep=timestep, guidance=guidance, posterior=posterior)
        width = base.unet.config.cross_attention_dim
        if mapnet.config["width"] != width:
            wrong = mapnet.config["width"]
            raise ValueError(f"MapNet makes tokens of width {wrong}, the base model reads {width}: set mapnet.width.")
        self.mapnet = mapnet
        # the VAE's factor times the UNet's
        self.multiple = 2 ** sum(len(part.config.block_out_channels) - 1 for part in (self.vae, self.unet))
        adapted = 0
        for network, layers, rank in ((self.vae, vae_layers, vae_rank), (self.unet, unet_layers, unet_rank)):
            if rank and not full:
                adapted += len(lora.add_lora(network, layers, rank=rank, alpha=lora_alpha))
        for part in (self.unet, self.vae.encoder, self.vae.quant_conv) if full else (self.unet.conv_in,):
            if part is not None:
                part.requires_grad_(True)
        pretrained = getattr(base, "skips", None)
        if pretrained is not None and not skips:
            raise ValueError(
                f"The base {source or 'given'} was pretrained with skip connections from encoder to decoder: set "
                "restorer.adapters.skips=true, or use a base without them; these weights are of another base."
            )
        if skips:
            attach(self.vae, skip_channels, pretrained, source)
        self.skips, self.residual = skips, residual
        self._trained_in_float32()
        self.null_tokens = nn.Parameter(torch.zeros(1, mapnet.num_tokens, width))
        self.negative_tokens = negative_tokens
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in self.parameters()) - trained
        log.info("Restorer: %.2f M trained, %.2f M frozen, %d layers adapted.", trained / 1e6, frozen / 1e6, adapted)

    def tokens(self, features: Tensor | None, batch: int, drop: Tensor | None = None) -> Tensor:
        """Degradation tokens (B, N, D) from FaDeX's map (B, C, h, w).

        Args:
            features: None gives the null tokens.
            drop: (B,) bool, which images get the null tokens.
        """
        null = self.null_tokens.expand(batch, -1, -1)
        if features is None:
            return null
        tokens = self.mapnet(features)
        return tokens if drop is None else torch.where(drop.view(-1, 1, 1), null.to(tokens), tokens)

    def forward(
        self, image: Tensor, tokens: Tensor, negative: Tensor | None = None, seeds: Seeds | None = None
    ) -> Tensor:
        """One step without guidance, as in training.

        Args:
            image: (B, 3, H, W) in [0, 1], sides multiples of `multiple`.
            tokens: (B, N, D).
            negative: (B,) bool, which images get the negative prompt; None is none of them.
            seeds: (B,), one per image, of the sample from the VAE's posterior; None takes its mean.

        Returns:
            (B, 3, H, W), float32, about [0, 1]; not clamped, which would cut gradients (ours; S3Diff clamps).
        """
        if negative is None:
            negative = torch.zeros(len(image), dtype=torch.bool, device=image.device)
        if not self.negative_tokens:
            tokens = torch.where(negative.view(-1, 1, 1), self.null_tokens.to(tokens), tokens)
        with self._autocast():
            with self._recorded() as features:
                latent = self._encode(image, seeds)
            prediction = self._predict(latent, self.text[negative.long()], tokens)
            return self._decode(predict_x0(latent, prediction, self.alpha, self.prediction), image, features)

    @torch.inference_mode()
    def restore(
        self, image: Tensor, tokens: Tensor, *, guidance: float | None = None, seeds: Tensor | None = None
    ) -> Tensor:
        """Restore images of any size with classifier-free guidance (supplement 2.2).

        z_neg + guidance * (z_pos - z_neg) on the UNet's output, both prompts in one batch; 1 skips the negative one.
        A network whose output is not finite in half precision runs again in float32, with a warning.

        Args:
            guidance: None is the model's own.
            seeds: (B,) int64, one per image, of the posterior's sample; None is 0 for each. Not used with the mean.

        Returns:
            (B, 3, H, W) in [0, 1], the size of `image`.

        Raises:
            FloatingPointError: not finite in float32 either.
            torch.OutOfMemoryError: the message names the options that lower the memory.
        """
        padded, (height, width) = pad_to_multiple(image, self.multiple)
        with explained(MEMORY_ADVICE):
            guidances = [self.guidance if guidance is None else guidance]
            with self._recorded() as features:
                latent = self.draw(self.encode(padded), seeds)
            (clean,) = self.denoise(latent, tokens, guidances=guidances)
            return self.decode(clean, padded, features)[..., :height, :width]

    def restore_tiled(
        self,
        image: Tensor,
        tokens_at: Callable[[Box], Tensor],
        plan: TilePlan,
        guidances: Sequence[float],
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        offload: bool = False,
        progress: Progress | None = None,
    ) -> Iterator[Tensor]:
        """Restore an image by a plan at several guidances; a plan of one tile gives `restore`.

        Each network runs over all tiles before the next one starts, encoder and UNet once for all guidances. The
        posterior's sample is drawn for the whole latent, so that tiles leave no seams. The image, the latents and the
        result stay on `image`'s device; only tiles and samples go to `device`.

        Args:
            image: (1, 3, H, W) in [0, 1].
            tokens_at: (1, N, D) for a tile's box, in pixels of the image; a box may reach beyond its border.
            guidances: see `restore`.
            seed: of the sample from the VAE's posterior, where one is taken.
            offload: keep a network on `device` only while it runs, otherwise on the CPU.
            progress: called with the stage, the tiles done and the number of tiles.

        Yields:
            (1, 3, H, W) in [0, 1] for each of `guidances`.
        """
        padded, (top, left) = plan.padded(image), plan.margins
        kept = KeptFeatures(plan.boxes, image.device)

        def encode(part: Tensor, boxes: list[Box]) -> Tensor:
            with self._recorded() as features:
                posterior = self.encode(part)
            kept.put(boxes, features)
            return posterior

        def denoise(latent: Tensor, boxes: list[Box]) -> Tensor:
            tokens = torch.cat([tokens_at((x0 - left, y0 - top, x1 - left, y1 - top)) for x0, y0, x1, y1 in boxes])
            return torch.cat(self.denoise(latent, tokens, guidances=guidances), dim=1)  # as further channels

        def decode(latent: Tensor, boxes: list[Box]) -> Tensor:
            if not self.reads_input:
                return self.decode(latent)
            given = torch.cat([padded[..., y0:y1, x0:x1] for x0, y0, x1, y1 in boxes]).to(latent.device)
            return self.decode(latent, given, kept.of(boxes, latent.device))

        def run(name: str, network: nn.Module, norms: SharedNorms, work: Callable[..., Tensor], x: Tensor) -> Tensor:
            with explained(MEMORY_ADVICE), on_device(device, network) if offload else nullcontext():
                return network_in_tiles(name, norms, work, x, plan, device, progress)

        encoder_norms = SharedNorms(self.vae.encoder)
        posterior = run("encoding", self.vae, encoder_norms, encode, padded)
        latent = self.draw(posterior, torch.tensor([seed]))
        clean = run("denoising", self.unet, SharedNorms(self.unet), denoise, latent)
        for one in clean.chunk(len(guidances), dim=1):
            # A tile that is encoded again gets the features that it would have kept.
            norms = SharedNorms(self.vae, encoder_norms) if self.reads_input else SharedNorms(self.vae.decoder)
            output = run("decoding", self.vae, norms, decode, one)
            if len(guidances) == 1:  # what is not needed after the only one, before the caller's work
                kept.clear()
                padded = image
            yield plan.cropped(output, (image.shape[-2], image.shape[-1]))

    @torch.inference_mode()
    def encode(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], sides multiples of `multiple`, to the scaled posterior (B, 2 C, h, w).

        Mean and standard deviation; the mean alone, (B, C, h, w), where `restore` takes the mean.
        """
        count = 2 if self.posterior == "sample" else 1
        with self._autocast():
            return run_with_fp32_fallback(
                "VAE encoder", self.vae, lambda: torch.cat(self._posterior(image)[:count], dim=1)
            )

    def draw(self, posterior: Tensor, seeds: Tensor | None = None) -> Tensor:
        """The latent (B, C, h, w) from the output of `encode`; seeds as in `restore`."""
        if self.posterior == "mean":
            return posterior
        mean, std = posterior.chunk(2, dim=1)
        seeds = torch.zeros(len(mean), dtype=torch.long) if seeds is None else seeds
        return mean + std * per_sample_noise(seeds, mean)

    @torch.inference_mode()
    def denoise(self, latent: Tensor, tokens: Tensor, *, guidances: Sequence[float]) -> list[Tensor]:
        """The clean latent (B, C, h, w), float32, at each guidance; the UNet runs once.

        Both prompts go in one batch, the positive half first.
        """
        text = self.text[:1].expand(len(latent), -1, -1)
        if any(guidance != 1 for guidance in guidances):
            text = torch.cat([text, self.text[1:].expand(len(latent), -1, -1)])
            null = self.null_tokens[:, : tokens.shape[1]].to(tokens).expand_as(tokens)
            tokens = torch.cat([tokens, tokens if self.negative_tokens else null])
        noisy = latent.repeat(len(text) // len(latent), 1, 1, 1)
        with self._autocast():
            prediction = run_with_fp32_fallback("UNet", self.unet, lambda: self._predict(noisy, text, tokens))
        positive, negative = prediction[: len(latent)], prediction[len(latent) :]
        guided = [
            positive if guidance == 1 else negative.float() + guidance * (positive.float() - negative.float())
            for guidance in guidances
        ]
        return [predict_x0(latent, one, self.alpha, self.prediction) for one in guided]

    @torch.inference_mode()
    def decode(self, latent: Tensor, image: Tensor | None = None, features: Sequence[Tensor] | None = None) -> Tensor:
        """A clean latent (B, C, h, w) to the image (B, 3, H, W) in [0, 1], float32.

        Args:
            image: the encoded image (B, 3, H, W); required where the restorer `reads_input`.
            features: `Skips.recorded` while it was encoded; None encodes it again where they are needed.
        """
        with self._autocast():
            output = run_with_fp32_fallback("VAE decoder", self.vae, lambda: self._decode(latent, image, features))
        return output.clamp(0, 1).float()

    @property
    def reads_input(self) -> bool:
        """Whether `decode` needs the encoded image: for skip connections or the residual."""
        return self.skips or self.residual

    def _posterior(self, image: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode((image * 2 - 1).to(self.vae_dtype)).latent_dist
        factor = self.vae.config.scaling_factor
        return posterior.mean * factor, posterior.std * factor

    def _encode(self, image: Tensor, seeds: Seeds | None = None) -> Tensor:
        mean, std = self._posterior(image)
        return mean if seeds is None else mean + std * per_sample_noise(seeds, mean)

    def _predict(self, latent: Tensor, text: Tensor, tokens: Tensor) -> Tensor:
        context = torch.cat([text, tokens.to(text)], dim=1)  # 77 + 21 = 98 tokens
        dtype = self.unet_dtype
        with self._unet_autocast():
            return self.unet(latent.to(dtype), self.timestep, encoder_hidden_states=context.to(dtype)).sample

    def _recorded(self) -> AbstractContextManager[list[Tensor]]:
        return self.vae.skips.recorded(self.vae) if self.skips else nullcontext([])

    def _decode(self, latent: Tensor, image: Tensor | None = None, features: Sequence[Tensor] | None = None) -> Tensor:
        scaled = (latent / self.vae.config.scaling_factor).to(self.vae_dtype)
        if self.reads_input and image is None:
            raise ValueError("A restorer with skip connections or a residual needs the encoded image to decode.")
        if self.skips and image is not None:
            given = (image * 2 - 1).to(self.vae_dtype)
            decoded = self.vae.skips.decode(self.vae, scaled, given, features).float() / 2
        else:
            decoded = self.vae.decode(scaled).sample.float() / 2  # bf16 has 375 values in [0, 1] after `/ 2 + 0.5`
        return image + decoded if self.residual and image is not None else decoded + 0.5

    def save(self, path: str | Path, *, about: Mapping[str, Any], dtype: torch.dtype | None = None) -> None:
        """Write the trained parts into one safetensors file whose header rebuilds the restorer.

        Args:
            about: provenance, for the header.
            dtype: of the stored LoRA weights; None keeps float32.

        Raises:
            ValueError: the LoRAs are merged.
        """
        ranks = self.config["vae_rank"], self.config["unet_rank"]
        if any(ranks) and not self.config["full"] and not any(".lora_" in name for name, _ in self.named_parameters()):
            raise ValueError("The LoRAs of this restorer are merged into its base: save it by loading.save_merged.")
        config = self.config | {"skip_channels": channels_of(self.vae) if self.skips else None}
        config |= {"base": self.base_origin} if self.base_origin else {}
        model_files.save_weights(path, self._stored(), kind=self.kind, config=config, about=about, dtype=dtype)

    @classmethod
    def _built(cls, base: DiffusionBase, config: dict[str, Any]) -> "OneStepRestorer":
        return cls(base, MapNet(**config.pop("mapnet")), **config)

    def _stored(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in model_files.all_tensors(self).items() if self._is_trained(name)}

    def _is_trained(self, name: str) -> bool:
        own = name.startswith(("null_tokens", "mapnet.", "unet.conv_in.", "vae.skips.")) or ".lora_" in name
        return own or (self.config["full"] and name.startswith(("unet.", "vae.encoder.", "vae.quant_conv.")))

    def save_lora(self, folder: str | Path) -> None:
        """Write both adapters for plain diffusers (see `lora.save_lora`): `unet/`, `vae/`, and `conv_in.safetensors`.

        The last is the UNet's first convolution, which is trained whole: load it into `unet.conv_in`. MapNet and the
        null tokens are left out; `save` writes everything.
        """
        if self.config["full"]:
            raise ValueError("This restorer was trained in full and has no LoRA: use save, or save_merged.")
        folder = Path(folder)
        for name, network in (("unet", self.unet), ("vae", self.vae)):
            if getattr(network, "peft_config", None):
                lora.save_lora(network, folder / name)
        with atomic_write(folder / "conv_in.safetensors") as partial:
            save_file({n: t.detach().contiguous() for n, t in self.unet.conv_in.state_dict().items()}, partial)

    def unfreeze(self) -> "OneStepRestorer":
        """Make the trained parts trainable again, to continue from a file."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(self._is_trained(name))
        return self.train()

    def merged(self, dtype: torch.dtype | None = None) -> "OneStepRestorer":
        """Merge both LoRAs into the base for inference; the restorer can no longer be trained or saved.

        Upsampling and convolution are also fused (see `acceleration`). The output changes by rounding only.

        Args:
            dtype: of VAE and UNet afterwards; None is as they are in the base. LoRAs are added in float32: bf16 would
                round small updates away.
        """
        for network, own in ((self.vae, self.vae_dtype), (self.unet, self.unet_dtype)):
            nn.Module.float(network)  # diffusers' own casts warn without need
            lora.merge_lora(network)
            nn.Module.to(network, dtype or own)
            fuse_upsample_conv(network)
        # The VAE's large maps of few channels: half the time in bf16 and two thirds in fp32 on a processor with AMX, no
        # change elsewhere. The UNet's small maps of many channels gain nothing.
        self.vae.to(memory_format=torch.channels_last)
        return self.eval().requires_grad_(False)
