"""Pretraining of the tiny base: a VAE, then a one-step denoiser with its text encoder.

It plays SD-Turbo's part where no weights can be had: the same classes at a small size. Its noise schedule ends
at half signal instead of almost none, because a small network cannot carry a prediction that is then multiplied
by 14.6: it removes noise and damage in one step, it does not make pictures from nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerBase

from face2scene.degradation import Space
from face2scene.images import to_tensor
from face2scene.restorer.backbone import CLIP_VOCABULARY
from face2scene.runs import seed_from
from face2scene.train.loop import Phase


def tiny_vae(*, channels: Sequence[int], latent_channels: int) -> AutoencoderKL:
    """An AutoencoderKL that halves the size at every channel step but the last."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
        block_out_channels=list(channels),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=256,
        mid_block_add_attention=False,  # at half size it would cost more than all the rest
    )


def tiny_unet(*, channels: Sequence[int], latent_channels: int, text_width: int, heads: int) -> UNet2DConditionModel:
    """A UNet whose finest level is convolutional; the others attend to picture and text."""
    depth = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=128,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * depth,
        up_block_types=["CrossAttnUpBlock2D"] * depth + ["UpBlock2D"],
        block_out_channels=list(channels),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=text_width,
        attention_head_dim=heads,  # the number of heads, under diffusers' historical name
        use_linear_projection=True,
    )


def tiny_text_encoder(*, text_width: int) -> CLIPTextModel:
    """A CLIP text model with the real vocabulary and two narrow layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=CLIP_VOCABULARY,
            hidden_size=text_width,
            intermediate_size=2 * text_width,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=CLIP_VOCABULARY - 2,
            eos_token_id=CLIP_VOCABULARY - 1,
            pad_token_id=0,
        )
    )


def tiny_schedule() -> DDPMScheduler:
    """1000 linear steps down to about half signal, epsilon prediction."""
    return DDPMScheduler(
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=1.286e-3,
        prediction_type="epsilon",
        clip_sample=False,  # latents have no bound
        timestep_spacing="trailing",  # one step is the last timestep
    )


class Crops(Dataset):
    """Batches of random crops, some of them damaged; batch `index` is always the same batch.

    Args:
        pictures: files, all at least `crop` pixels high and wide; kept in memory as bytes.
        damaged: share of crops that a recipe drawn from `space` is applied to.

    Returns per batch: `image` (B, 3, crop, crop) in [0, 1], `damaged` (B,) bool.
    """

    def __init__(self, pictures: Sequence[Path], *, crop: int, batch: int, space: Space, damaged: float, seed: int):
        self.pictures = [np.asarray(Image.open(p).convert("RGB")) for p in pictures]
        self.crop, self.batch, self.space, self.share, self.seed = crop, batch, space, damaged, seed

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng(seed_from(self.seed, "crops", index))
        images, damaged = [], rng.random(self.batch) < self.share
        for bad in damaged:
            picture = Image.fromarray(self.pictures[rng.integers(len(self.pictures))])
            side = int(rng.integers(self.crop, min(picture.size) + 1))  # every scale from native to whole
            x, y = (int(rng.integers(0, full - side + 1)) for full in picture.size)
            cut = picture.resize((self.crop, self.crop), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side))
            image = to_tensor(np.asarray(cut))
            if rng.random() < 0.5:
                image = image.flip(-1)
            if bad:
                image = self.space.draw(rng).apply(image)
            images.append(image)
        return {"image": torch.stack(images), "damaged": torch.from_numpy(damaged)}


class _Autoencoding(nn.Module):
    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(image).latent_dist
        return self.vae.decode(posterior.sample()).sample, posterior.kl().mean()


class VaeTask:
    """Reconstruct crops: L1 + LPIPS + a whisper of KL."""

    def __init__(self, vae: AutoencoderKL, perceptual: nn.Module, data: Crops, validation: Crops, *, lr: float):
        self.vae, self.perceptual, self.data, self.validation = vae, perceptual, data, validation
        model = _Autoencoding(vae)
        self.phase = Phase("vae", model, torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0), self._losses)
        self.phases = [self.phase]

    def _losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        image = batch["image"] * 2 - 1
        output, kl = self.phase.model(image)
        return {
            "l1": (output - image).abs().mean(),
            "lpips": 0.5 * self.perceptual(output, image),
            "kl": 1e-7 * kl,
        }

    def after_step(self) -> None: ...

    def validate(self) -> dict[str, float]:
        image = self.validation[0]["image"].to(self.vae.device)
        output = self.vae.decode(self.vae.encode(image * 2 - 1).latent_dist.mode()).sample / 2 + 0.5
        error = (output.clamp(0, 1) - image).square().mean((1, 2, 3))
        return {"validation/vae_psnr": (-10 * error.log10()).mean().item()}

    @torch.no_grad()
    def export(self, folder: Path, step: int) -> None:
        latents = torch.cat([self.vae.encode(self.data[i]["image"] * 2 - 1).latent_dist.mode() for i in range(8)])
        self.vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
        self.vae.half().save_pretrained(folder.parent.parent / "base" / "vae")
        self.vae.float()


class _Denoising(nn.Module):
    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel):
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, noisy: Tensor, timestep: Tensor, ids: Tensor, which: Tensor) -> Tensor:
        text = self.text_encoder(ids).last_hidden_state[which]
        return self.unet(noisy, timestep, text).sample


class DenoiserTask:
    """Predict the noise of latents under a prompt that says whether the picture is good or damaged.

    Half of the batch is ordinary diffusion at a random timestep. The other half is what a one-step model meets:
    the last timestep, whatever noise the latent really has, none included.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: PreTrainedTokenizerBase,
        data: Crops,
        validation: Crops,
        *,
        prompts: tuple[str, str, str],  # good, damaged, neither
        lr: float,
    ):
        self.vae, self.unet, self.text_encoder = vae.requires_grad_(False), unet, text_encoder
        self.tokenizer, self.data, self.validation = tokenizer, data, validation
        self.schedule = tiny_schedule()
        self.ids = tokenizer(
            list(prompts), padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        model = _Denoising(unet, text_encoder)
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
        self.phase = Phase("denoiser", model, optimizer, self._losses)
        self.phases = [self.phase]

    def _losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            clean = self.vae.encode(batch["image"] * 2 - 1).latent_dist.mode() * self.vae.config.scaling_factor
        size = len(clean)
        timestep = torch.randint(0, 1000, (size,), device=clean.device)
        signal = self.schedule.alphas_cumprod.to(clean)[timestep].sqrt().view(-1, 1, 1, 1)
        noise = torch.randn_like(clean)
        noisy = signal * clean + (1 - signal**2).sqrt() * noise
        last = self.schedule.alphas_cumprod[-1].item()
        one_step = torch.arange(size, device=clean.device) % 2 == 0
        noisy[one_step] = clean[one_step] + (1 - signal[one_step] ** 2) * noise[one_step]
        target = noise.clone()
        target[one_step] = (noisy[one_step] - last**0.5 * clean[one_step]) / (1 - last) ** 0.5
        timestep = torch.where(one_step, torch.full_like(timestep, 999), timestep)
        which = batch["damaged"].long()  # 0 good, 1 damaged
        which = torch.where(torch.rand(size, device=clean.device) < 0.1, torch.full_like(which, 2), which)
        prediction = self.phase.model(noisy, timestep, self.ids.to(clean.device), which)
        return {"mse": F.mse_loss(prediction, target)}

    def after_step(self) -> None: ...

    def validate(self) -> dict[str, float]:
        batch = self.validation[0]
        return {
            "validation/denoiser_mse": self._losses({k: v.to(self.vae.device) for k, v in batch.items()})["mse"].item()
        }

    def export(self, folder: Path, step: int) -> None:
        base = folder.parent.parent / "base"  # beside the parts of the run
        self.unet.half().save_pretrained(base / "unet")
        self.text_encoder.half().save_pretrained(base / "text_encoder")
        self.schedule.save_pretrained(base / "scheduler")
        self.tokenizer.save_pretrained(base / "tokenizer")
