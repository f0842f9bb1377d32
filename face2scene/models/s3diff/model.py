"""S3Diff, which the restorer is derived from; the baseline of the paper's Table 5 (arXiv 2409.17058).

The same base, layers and ranks as `OneStepRestorer`. In place of tokens in the context, two degradation scores of the
image modulate every LoRA layer: an r x r matrix, computed from the scores and the index of the layer's block, stands
between its two factors. Equal to the released code for the released weights.

B images, r the LoRA's rank. Images are RGB in [0, 1].
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn
from torch.nn import functional as F

from face2scene.common import model_files
from face2scene.common.memory import explained, on_device
from face2scene.common.types import Box, Progress
from face2scene.image_io.arrays import pad_to_multiple
from face2scene.models.restorer import lora
from face2scene.models.restorer.acceleration import run_with_fp32_fallback
from face2scene.models.restorer.base_model import DiffusionBase, Seeds, per_sample_noise, predict_x0
from face2scene.models.restorer.restorer_base import MEMORY_ADVICE, RestorerBase
from face2scene.models.restorer.shared_norms import SharedNorms
from face2scene.models.restorer.tiling import TilePlan, network_in_tiles
from face2scene.models.s3diff.degradation_scores import ScoreNet
from face2scene.models.s3diff.latent_tiles import in_latent_tiles
from face2scene.models.s3diff.modulation import Modulation, modulated, unet_block, vae_block

log = logging.getLogger(__name__)
POSITIVE = "A high-resolution, 8K, ultra-realistic image with sharp focus, vibrant colors, and natural lighting."
NEGATIVE = "oil painting, cartoon, blur, dirty, messy, low quality, deformation, low resolution, oversmooth"
VAE_BLOCKS, UNET_BLOCKS = 6, 10  # down 0 to 3, middle, (up 0 to 3,) the rest: fixed in the released weights
MULTIPLE = 64  # pixels; S3Diff pads to this for every base


class S3Diff(RestorerBase):
    """VAE encoder -> UNet once -> VAE decoder, with LoRAs that the image's degradation scores modulate.

    Has the interface of `OneStepRestorer`, for pipeline and training; `tokens` is empty, because the scores come from
    the image itself. Trained parts: both LoRAs, the UNet's first convolution, both modulations.

    Args:
        base: from `load_base`.
        score_net: degradation scores of an image; frozen unless `train_scores`.
        vae_rank, unet_rank, lora_alpha, timestep, prompts, guidance: the defaults are S3Diff's.
        latent_tile, latent_overlap: larger latents are predicted in overlapping tiles; S3Diff's numbers.
        posterior: what `restore` takes of the VAE's posterior, a `sample` as S3Diff does, or its `mean`.
        start: of the modulations, see `Modulation`.
        train_scores: also train `score_net`; S3Diff does not.
        score_reduction: scores are those of the image at 1/this of the sides. S3Diff scores the image before its
            enlargement by 4, in training and inference: 4 for images that come enlarged, 1 for those that do not.
    """

    kind = "s3diff"
    multiple = MULTIPLE
    frequencies: Tensor  # (num_frequencies,)

    @model_files.recorded("base")
    def __init__(
        self,
        base: DiffusionBase,
        score_net: ScoreNet,
        *,
        vae_rank: int = 16,
        unet_rank: int = 32,
        lora_alpha: float = 8.0,
        vae_layers: Sequence[str] = lora.VAE_ENCODER,
        unet_layers: Sequence[str] = lora.UNET,
        timestep: int = 999,
        prompts: tuple[str, str] = (POSITIVE, NEGATIVE),
        guidance: float = 1.07,
        latent_tile: int = 96,
        latent_overlap: int = 32,
        num_frequencies: int = 64,
        posterior: Literal["sample", "mean"] = "sample",
        start: Literal["near_zero", "identity"] = "near_zero",
        train_scores: bool = False,
        score_reduction: int = 1,
        source: str = "",
    ):
        super().__init__(base, prompts=prompts, timestep=timestep, guidance=guidance, posterior=posterior)
        for network in (base.vae, base.unet):
            if len(network.config.block_out_channels) > 4:
                raise ValueError(
                    f"S3Diff numbers at most 4 resolutions and the {type(network).__name__} of {source or 'the base'} "
                    f"has {len(network.config.block_out_channels)}: set restorer.base.source to an SD 2.1-shaped model."
                )
        if not 0 <= latent_overlap < latent_tile:
            raise ValueError(f"latent_overlap must be from 0 to less than latent_tile={latent_tile}: {latent_overlap}.")
        self.score_net = score_net.requires_grad_(train_scores)
        vae_names = lora.add_lora(self.vae, vae_layers, rank=vae_rank, alpha=lora_alpha)
        unet_names = lora.add_lora(self.unet, unet_layers, rank=unet_rank, alpha=lora_alpha)
        self.vae_layers = {name: vae_block(name) for name in vae_names}
        self.unet_layers = {name: unet_block(name) for name in unet_names}
        self.unet.conv_in.requires_grad_(True)
        self._trained_in_float32()
        waves = 4 * num_frequencies  # sine and cosine of two scores
        self.vae_modulation = Modulation(VAE_BLOCKS, vae_rank, waves=waves, start=start)
        self.unet_modulation = Modulation(UNET_BLOCKS, unet_rank, waves=waves, start=start)
        self.register_buffer("frequencies", torch.randn(num_frequencies))
        self.clip = base.clip
        self.latent_tile, self.latent_overlap = latent_tile, latent_overlap
        self.score_reduction = score_reduction
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        log.info("S3Diff: %.2f M weights trained, %d layers adapted.", trained / 1e6, len(vae_names + unet_names))

    def tokens(self, features: Tensor | None, batch: int, drop: Tensor | None = None) -> Tensor:
        """No tokens (B, 0, D): degradation is estimated from the image and not from a face."""
        return self.text.new_zeros(batch, 0, self.text.shape[-1])

    def matrices(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, 2) to the matrices of the VAE's (B, 6, r, r) and the UNet's (B, 10, r, r) blocks."""
        phase = scores[..., None] * self.frequencies * 2 * math.pi  # (B, 2, F)
        waves = torch.cat([phase.sin(), phase.cos()], dim=-1).flatten(1)
        return self.vae_modulation(waves), self.unet_modulation(waves)

    def forward(
        self,
        image: Tensor,
        tokens: Tensor | None = None,
        negative: Tensor | None = None,
        seeds: Seeds | None = None,
        small: Tensor | None = None,
    ) -> Tensor:
        """One step without guidance, as in training; see `OneStepRestorer.forward`.

        `tokens` is not used. Scores are those of `small`, the image before its enlargement, if it is given. Without
        `seeds` the sample follows `posterior`. The sides of `image` are multiples of the total stride of VAE and UNet,
        and the result is clamped to [0, 1], as S3Diff does in training too.
        """
        which = torch.zeros(len(image), dtype=torch.long, device=image.device) if negative is None else negative.long()
        vae_matrices, unet_matrices = self.matrices(self._scores(image) if small is None else self.score_net(small))
        with self._autocast():
            posterior = self._encode(image, vae_matrices)
            latent = self._draw(posterior, self.posterior if seeds is None else "sample", seeds)
            prediction = self._predict(latent, self.text[which], unet_matrices)
        return _image(self._decode(latent, prediction))

    @torch.inference_mode()
    def restore(
        self,
        image: Tensor,
        tokens: Tensor | None = None,
        *,
        guidance: float | None = None,
        scale: int = 1,
        scores: Tensor | None = None,
        posterior: Literal["sample", "mean"] | None = None,
        seeds: Tensor | None = None,
    ) -> Tensor:
        """Restore images of any size as S3Diff's inference does, before its colour alignment.

        `tokens` is not used; `guidance`, the run in float32 and the errors are those of `OneStepRestorer.restore`.

        Args:
            image: (B, 3, H, W) in [0, 1].
            scale: bilinear enlargement before the VAE; S3Diff's own use is 4.
            scores: (B, 2); None computes them from `image` before the enlargement.
            posterior: `sample` or `mean`; None is the model's own.
            seeds: (B,) int64, one per image, of the sample; None draws from torch's own generator, as S3Diff does.

        Returns:
            (B, 3, scale H, scale W) in [0, 1].
        """
        guidance = self.guidance if guidance is None else guidance
        vae_matrices, unet_matrices = self.matrices(self._scores(image, scale) if scores is None else scores)
        if scale != 1:
            image = F.interpolate(image, scale_factor=scale, mode="bilinear", align_corners=False)
        padded, (height, width) = pad_to_multiple(image, MULTIPLE)
        positive, negative = (text.expand(len(image), -1, -1) for text in self.text[:, None])

        def predict(part: Tensor) -> Tensor:
            plus = self._predict(part, positive, unet_matrices)
            if guidance == 1:
                return plus
            minus = self._predict(part, negative, unet_matrices)  # two calls, as released: bit for bit its numbers
            return minus + guidance * (plus - minus)

        def encode() -> Tensor:
            return self._draw(self._encode(padded, vae_matrices), posterior or self.posterior, seeds)

        with explained(MEMORY_ADVICE):
            with self._autocast():
                latent = run_with_fp32_fallback("VAE encoder", self.vae, encode)
                tiled = partial(in_latent_tiles, predict, latent, tile=self.latent_tile, overlap=self.latent_overlap)
                prediction = run_with_fp32_fallback("UNet", self.unet, tiled)
            output = run_with_fp32_fallback("VAE decoder", self.vae, lambda: self._decode(latent, prediction))
        return _image(output)[..., :height, :width]

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
        """See `OneStepRestorer.restore_tiled`; each tile is restored with the scores of the whole image.

        Every guidance is a run of its own, with the UNet's calls as released, and each tile takes all networks, which
        `offload` has on the device together. `tokens_at` is not used: scores come from the image.
        """
        padded, scores = plan.padded(image), None
        if len(plan.boxes) > 1:  # mean over the squares that represent the image, see `strata`
            squares = plan.squares(padded)
            parts = torch.cat([padded[..., y0:y1, x0:x1] for x0, y0, x1, y1 in (square.box for square in squares)])
            shares = torch.tensor([[square.share] for square in squares], device=device)
            with torch.inference_mode():
                scores = (self._scores(parts.to(device)) * shares).sum(0, keepdim=True)
        for guidance in guidances:

            def restore(part: Tensor, _: list[Box], guidance: float = guidance) -> Tensor:
                return self.restore(part, guidance=guidance, scores=scores, seeds=torch.full((len(part),), seed))

            with on_device(device, self.vae, self.unet) if offload else nullcontext():
                norms = SharedNorms(nn.Identity())  # none: a tile has its own, as released
                output = network_in_tiles("restoring", norms, restore, padded, plan, device, progress)
            yield plan.cropped(output, (image.shape[-2], image.shape[-1]))

    def _scores(self, image: Tensor, scale: int = 1) -> Tensor:
        reduction = max(1, self.score_reduction // scale)
        if reduction > 1:  # undoes a bicubic enlargement by 4 to within 2 % of white noise; area to within 31 %
            image = F.interpolate(image, scale_factor=1 / reduction, mode="bicubic")
        return self.score_net(image)

    def _encode(self, image: Tensor, matrices: Tensor) -> DiagonalGaussianDistribution:
        image = (image * 2 - 1).clamp(-1, 1).to(self.vae_dtype)
        with modulated(self.vae, self.vae_layers, matrices):
            return self.vae.encode(image).latent_dist

    def _draw(self, posterior: DiagonalGaussianDistribution, how: str, seeds: Seeds | None = None) -> Tensor:
        if how == "mean":
            latent = posterior.mode()
        elif seeds is None:
            latent = posterior.sample()
        else:
            latent = posterior.mean + posterior.std * per_sample_noise(seeds, posterior.mean)
        return latent * self.vae.config.scaling_factor

    def _predict(self, latent: Tensor, text: Tensor, matrices: Tensor) -> Tensor:
        dtype = self.unet_dtype
        with modulated(self.unet, self.unet_layers, matrices), self._unet_autocast():
            return self.unet(latent.to(dtype), self.timestep, encoder_hidden_states=text.to(dtype)).sample

    def _decode(self, latent: Tensor, prediction: Tensor) -> Tensor:
        clean = predict_x0(latent, prediction, self.alpha, self.prediction)
        if self.clip is not None:
            clean = clean.clamp(-self.clip, self.clip)
        scaled = (clean / self.vae.config.scaling_factor).to(self.vae_dtype)
        return self.vae.decode(scaled).sample  # not clamped yet: that would hide an overflow

    def save(self, path: str | Path, *, about: Mapping[str, Any], dtype: torch.dtype | None = None) -> None:
        """See `OneStepRestorer.save`; the modulations, which start at 1e-5, stay float32."""
        tensors = {
            name: t.to(dtype) if name.startswith(("vae.", "unet.")) and dtype else t
            for name, t in self._stored().items()
        }
        config = self.config | ({"base": self.base_origin} if self.base_origin else {})
        model_files.save_weights(path, tensors, kind=self.kind, config=config, about=about)

    @classmethod
    def _built(cls, base: DiffusionBase, config: dict[str, Any]) -> "S3Diff":
        return cls(base, ScoreNet(**config.pop("score_net")), **config)

    def _stored(self) -> dict[str, Tensor]:
        return {
            name: tensor
            for name, tensor in model_files.all_tensors(self).items()
            if not name.startswith(("vae.", "unet.")) or ".lora_" in name or name.startswith("unet.conv_in.")
        }

    def unfreeze(self) -> "S3Diff":
        """Make the trained parts trainable again, to continue from a file."""
        own = self._stored().keys()
        for name, parameter in self.named_parameters():
            frozen = name.startswith("score_net.") and not self.config["train_scores"]
            parameter.requires_grad_(name in own and not frozen)
        return self.train()

    def merged(self, dtype: torch.dtype | None = None) -> "S3Diff":
        """The model for inference; LoRAs are not merged, because every image modulates them differently.

        Args:
            dtype: of the base; None leaves it. LoRAs and conv_in stay float32 and run under autocast.
        """
        own = self._stored().keys()
        for name, parameter in self.named_parameters():
            if dtype is not None and name not in own:
                parameter.data = parameter.data.to(dtype)
        return self.eval().requires_grad_(False)


def _image(output: Tensor) -> Tensor:
    return (output.float().clamp(-1, 1) + 1) / 2


class NoFaDeX(nn.Module):
    """Stands in for FaDeX where S3Diff is trained, which uses no face."""

    def forward(self, restored: Tensor, degraded: Tensor) -> None:
        return None
