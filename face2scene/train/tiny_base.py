"""Pretraining of the tiny base, which replaces SD-Turbo where its weights are missing, as a one-step restorer.

VAE, UNet and the skips between encoder and decoder are diffusers' classes at a small size. They train from random
weights on what the restorer later computes: restored = input + decoded, with both prompts and with MapNet's tokens of
another image of the same degradation, or blind: with constant prompts and the null tokens, which is a third faster and
what `checkpoints/photo` was trained with. A blind base does not read tokens: random ones change its images by 3e-7, and
no LoRA of 600 steps made it read them again. The text encoder and FaDeX are not trained.

The noise schedule ends at half signal instead of almost none, because a small network cannot carry a prediction that
is then multiplied by 14.6: it removes noise and degradation in one step, and does not generate images from noise.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from face2scene.common import model_files
from face2scene.common.reproducibility import seed_from
from face2scene.degradation import Mixture, Space
from face2scene.image_io.arrays import to_bytes, to_tensor
from face2scene.image_io.metadata import OPENED
from face2scene.models.fadex.encoder import FaDeX
from face2scene.models.mapnet import MapNet
from face2scene.models.restorer.base_model import DiffusionBase
from face2scene.models.restorer.one_step import OneStepRestorer
from face2scene.models.restorer.restorer_base import WEIGHTS_FILE
from face2scene.train.ema import EMA
from face2scene.train.loop import Phase
from face2scene.train.restorer_task import RestorerStep

_OWN = ("mapnet.", "null_tokens", "unet.conv_in.", "vae.skips.")  # in a restorer's file besides adapters
_INITIAL_CORRECTION = 0.1  # factor on the decoder's last layer; from zero, training is ten times slower
_DROPPED = 0.3  # share of the images that are restored with the null tokens
_NEGATIVE = 0.05  # share whose target is the degraded image, under the negative prompt
_GOOD = 1e-4  # squared error, on [0, 1], at which PSNR stops to matter in training: 40 dB
_UNTOUCHED = 1e-6  # squared error of an untouched crop, on [0, 1]: 60 dB
_LOG_VARIANCE = -12.0  # of the initial posterior, whose samples then differ from the mean by 0.0025


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
        mid_block_add_attention=False,  # at half resolution it would cost more than the rest together
    )


def tiny_unet(*, channels: Sequence[int], latent_channels: int, text_width: int, heads: int) -> UNet2DConditionModel:
    """A UNet whose finest level is convolutional; the others attend to image and text."""
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


def load_images(files: Sequence[Path], longest: int = 1536) -> list[np.ndarray]:
    """uint8 (H, W, 3) each; a longer side above `longest` pixels is downsampled to it, so that crops are sharp."""
    images = [Image.open(file, formats=OPENED).convert("RGB") for file in files]
    for image in images:
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS, reducing_gap=None)
    return [np.asarray(image) for image in images]


class Pairs(Dataset):
    """Batches of degraded crops and their ground truth; a batch depends on its index alone.

    Args:
        kinds: files of images with shorter sides of at least `crop` pixels, and their share of the crops, for each kind
            of images; the shares sum to 1.
        space: of the degradation recipes.
        pairs: also give what FaDeX and the prompts need.
        zoom: a crop's side before resizing is at most this many times `crop`, so that faces of all sizes occur.

    Returns per batch: `image` and `gt`, (B, 3, crop, crop) in [0, 1]; with `pairs` also `restored` and `degraded`,
    other crops with the same degradation, and `drop` and `negative`, (B,) bool: null tokens, and the negative prompt.

    Raises:
        ValueError: the shares do not sum to 1.
    """

    def __init__(
        self,
        kinds: Sequence[tuple[Sequence[Path], float]],
        *,
        crop: int,
        batch: int,
        space: Space | Mixture,
        seed: int,
        pairs: bool = True,
        zoom: float = 4.0,
    ):
        self.images = [load_images(files) for files, _ in kinds]
        shares = np.array([share for _, share in kinds])
        if abs(shares.sum() - 1) > 1e-6:
            raise ValueError(f"The shares of the images must sum to 1, not {shares.tolist()} (images.*.share).")
        # Larger images have more different crops, and are drawn more often.
        self.sides = [np.sqrt([p.shape[0] * p.shape[1] for p in kind]) for kind in self.images]
        self.shares, self.crop, self.batch, self.space = shares, crop, batch, space
        self.seed, self.pairs, self.zoom = seed, pairs, zoom

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng(seed_from(self.seed, "pairs", index))
        recipes = [self.space.draw(rng) for _ in range(self.batch)]
        gts = [self._crop(rng) for _ in recipes]
        columns = {"image": [recipe.apply(gt) for recipe, gt in zip(recipes, gts, strict=True)], "gt": gts}
        if not self.pairs:
            return {name: torch.stack(column) for name, column in columns.items()}
        others = [self._crop(rng) for _ in recipes]
        degraded = [
            recipe.with_noise_seed(seed_from(self.seed, "noise", index, row)).apply(other)
            for row, (recipe, other) in enumerate(zip(recipes, others, strict=True))
        ]
        columns |= {"restored": others, "degraded": degraded}
        chance = torch.from_numpy(rng.random((2, self.batch)))
        marks = {"drop": chance[0] < _DROPPED, "negative": chance[1] < _NEGATIVE}
        return {name: torch.stack(column) for name, column in columns.items()} | marks

    def _crop(self, rng: np.random.Generator) -> Tensor:
        kind = rng.choice(len(self.shares), p=self.shares)
        sides = self.sides[kind]
        image = Image.fromarray(self.images[kind][rng.choice(len(sides), p=sides / sides.sum())])
        largest = min(min(image.size) / self.crop, self.zoom)
        side = min(round(self.crop * largest ** rng.random()), *image.size)
        x, y = (int(rng.integers(0, full - side + 1)) for full in image.size)
        box = (x, y, x + side, y + side)
        crop = to_tensor(np.asarray(image.crop(box).resize((self.crop, self.crop), Image.Resampling.BICUBIC)))
        return crop.flip(-1) if rng.random() < 0.5 else crop


def untrained(
    shipped: DiffusionBase,
    *,
    vae_channels: Sequence[int],
    unet_channels: Sequence[int],
    latent_channels: int,
    heads: int,
) -> DiffusionBase:
    """VAE and UNet with random weights, and the text encoder and tokenizer of the shipped base."""
    vae = tiny_vae(channels=vae_channels, latent_channels=latent_channels)
    vae.register_to_config(scaling_factor=1.0)
    with torch.no_grad():
        vae.quant_conv.weight[latent_channels:] = 0  # the second half are log variances
        vae.quant_conv.bias[latent_channels:] = _LOG_VARIANCE
        for weight in vae.decoder.conv_out.parameters():  # the initial restoration is close to the input
            weight.mul_(_INITIAL_CORRECTION)
    width = shipped.unet.config.cross_attention_dim
    unet = tiny_unet(channels=unet_channels, latent_channels=latent_channels, text_width=width, heads=heads)
    alphas = tiny_schedule().alphas_cumprod.float()
    return DiffusionBase(vae, unet, shipped.text_encoder, shipped.tokenizer, alphas, "epsilon")


def untrained_restorer(base: DiffusionBase, mapnet: MapNet, source: str) -> OneStepRestorer:
    """A restorer without adapters: VAE, UNet, skips, MapNet and the null tokens are trained."""
    restorer = OneStepRestorer(
        base, mapnet, vae_rank=0, unet_rank=0, skips=True, residual=True, guidance=1.0, source=source
    )
    skips: Any = restorer.vae.skips
    if base.skips is None:
        for conv in skips.convs:  # zeros are the start beside a decoder that was trained without skips
            conv.reset_parameters()
    return restorer.requires_grad_(True)


class RestoringTask:
    """L1, PSNR and LPIPS of restored crops, all on images in [-1, 1].

    PSNR weighs a decibel alike at every strength of degradation, where L1 is nearly all of the strong ones'. It is
    bounded at 40 dB: bounded at 60, images that need nothing outweighed the others, and after 3,000 steps mildly
    degraded ones came back as they were.

    Args:
        base: from `untrained`, or a base pretrained earlier.
        mapnet: untrained.
        fadex: frozen; None trains blind, with the null tokens and the positive prompt throughout.
        ema: decay of the EMA, which is validated and exported.
        source: path of the base in the restorer's file.
    """

    def __init__(
        self,
        base: DiffusionBase,
        mapnet: MapNet,
        fadex: FaDeX | None,
        perceptual: nn.Module,
        data: Pairs,
        validation: Pairs,
        *,
        l1_weight: float,
        psnr_weight: float,
        lpips_weight: float,
        lr: float,
        weight_decay: float,
        ema: float,
        source: str,
    ):
        self.base, self.perceptual = base, perceptual
        self.fadex = None if fadex is None else fadex.eval().requires_grad_(False)
        self.data, self.validation = data, validation
        self.weights = {"l1": l1_weight, "psnr": psnr_weight, "lpips": lpips_weight}
        self.restorer = untrained_restorer(base, mapnet, source)
        model = RestorerStep(self.restorer)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay)
        self.phases = [Phase("restoring", model, optimizer, self._losses)]
        self.ema = EMA(self.restorer, ema)
        self.stateful = [self.ema]

    def _restore(self, batch: Mapping[str, Tensor], shift: int = 0, **options: Tensor) -> Tensor:
        if self.fadex is None:
            return self.phases[0].model(batch["image"], None)[0].float()
        with torch.no_grad():
            features = self.fadex(batch["restored"].roll(shift, 0), batch["degraded"].roll(shift, 0))
        return self.phases[0].model(batch["image"], features.split(1), **options)[0].float()

    def _losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.fadex is None:
            output, gt = self._restore(batch) * 2 - 1, batch["gt"] * 2 - 1
        else:
            output = self._restore(batch, drop=batch["drop"], negative=batch["negative"]) * 2 - 1
            gt = torch.where(batch["negative"].view(-1, 1, 1, 1), batch["image"], batch["gt"]) * 2 - 1
        error = (output - gt).square().mean((1, 2, 3))
        losses: dict[str, Callable[[], Tensor]] = {
            "l1": lambda: (output - gt).abs().mean(),
            "psnr": lambda: 10 * (error + 4 * _GOOD).log10().mean(),  # squared errors are four times those on [0, 1]
            "lpips": lambda: self.perceptual(output, gt),
        }
        return {name: weight * losses[name]() for name, weight in self.weights.items() if weight}

    def after_step(self) -> None:
        self.ema.update()

    def count(self, batch: Mapping[str, Tensor]) -> int:
        return len(batch["image"])

    def eval_weights(self) -> AbstractContextManager:
        return self.ema.average_parameters()

    def validate(self) -> dict[str, float]:
        """PSNR and LPIPS of the input, and with its own tokens, those of another image and the null tokens."""
        device = self.restorer.null_tokens.device
        batch = {name: value.to(device) for name, value in self.validation[0].items()}
        outputs = {"": self._restore(batch)}
        if self.fadex is not None:
            outputs["other_"] = self._restore(batch, 1)
            outputs["null_"] = self._restore(batch, drop=torch.ones_like(batch["drop"]))
        values = {}
        for name, image in (outputs | {"input_": batch["image"]}).items():
            image = image.clamp(0, 1)
            error = (image - batch["gt"]).square().mean((1, 2, 3)).clamp_min(_UNTOUCHED)
            values[f"validation/{name}psnr"] = (-10 * error.log10()).mean().item()
            values[f"validation/{name}lpips"] = self.perceptual(image * 2 - 1, batch["gt"] * 2 - 1).item()
        return values

    def images(self) -> dict[str, np.ndarray]:
        device = self.restorer.null_tokens.device
        batch = {name: value[:8].to(device) for name, value in self.validation[0].items()}
        rows = [batch["image"], self._restore(batch).clamp(0, 1), batch["gt"]]
        return {"input_restored_gt": to_bytes(torch.cat([torch.cat(list(row), 2).cpu() for row in rows], 1))}

    @torch.no_grad()
    def export(self, folder: Path, step: int) -> None:
        """Write the base in diffusers' layout, float16, and a restorer of that base without adapters."""
        base, vae = folder / "base", self.restorer.vae
        skips = vae.skips
        del vae.skips  # saved in a folder of its own
        parts = {"vae": vae, "unet": self.restorer.unet, "skips": skips, "text_encoder": self.base.text_encoder}
        for name, part in parts.items():
            kept = {key: value.clone() for key, value in part.state_dict().items()}
            part.half().save_pretrained(base / name)
            part.float().load_state_dict(kept)
        vae.skips = skips
        self.base.tokenizer.save_pretrained(base / "tokenizer")
        tiny_schedule().save_pretrained(base / "scheduler")
        own = {n: t for n, t in self.restorer.state_dict().items() if n.startswith(_OWN)}
        model_files.save_weights(
            folder / WEIGHTS_FILE,
            own,
            kind=self.restorer.kind,
            config=self.restorer.config,
            about={"steps": step},
            dtype=torch.float16,
        )
