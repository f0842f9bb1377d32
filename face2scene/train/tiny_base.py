"""Pretraining of the tiny base as a blind restorer: from random weights to one step that corrects a damaged picture.

It plays SD-Turbo's part where no weights can be had: the same classes at a small size. VAE, UNet and the joins between
encoder and decoder learn together, under the positive prompt and the null tokens, what the restorer does with them
afterwards: restored = input + decoded. The text encoder stays as it was.

Its noise schedule ends at half signal instead of almost none, because a small network cannot carry a prediction that
is then multiplied by 14.6: it removes noise and damage in one step, it does not make pictures from nothing.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import CLIPTextConfig, CLIPTextModel

from face2scene import checkpoints
from face2scene.degradation import Mixture, Space
from face2scene.images import to_bytes, to_tensor
from face2scene.mapnet import MapNet
from face2scene.restorer.backbone import CLIP_VOCABULARY, Base
from face2scene.restorer.one_step import OneStepRestorer
from face2scene.restorer.trained import WEIGHTS_FILE
from face2scene.runs import seed_from
from face2scene.train.average import Average
from face2scene.train.loop import Phase

_OWN = ("mapnet.", "null_tokens", "unet.conv_in.", "vae.skips.")  # in a restorer's file beside adapters
_FIRST_CORRECTION = 0.1  # of the decoder's output at the start; at zero, with joins of zero, it learns ten times slower
_SPREAD = -12.0  # log variance of the posterior at the start: a sample is the mean, but for a thousandth


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


@dataclass(frozen=True)
class Pictures:
    """Pictures of one kind, in memory.

    Args:
        files: their paths.
        share: of the crops; all kinds sum to 1.
        longest: pixels of the longer side that a larger picture is shrunk to, so that crops are sharp.
    """

    files: Sequence[Path]
    share: float
    longest: int = 1536

    def load(self) -> list[np.ndarray]:
        """uint8 (H, W, 3) each."""
        return [_read(file, self.longest) for file in self.files]


def _read(file: Path, longest: int) -> np.ndarray:
    picture = Image.open(file).convert("RGB")
    if max(picture.size) > longest:
        factor = longest / max(picture.size)
        size = round(picture.width * factor), round(picture.height * factor)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(picture)


class Pairs(Dataset):
    """Batches of damaged crops and what they were; batch `index` is always the same batch.

    Args:
        kinds: whose shorter sides are at least `crop` pixels.
        space: where the recipes are drawn from.
        zoom: a crop is cut from at most this many times its side, so that faces of all sizes occur.

    Returns per batch: `image` and `truth`, (B, 3, crop, crop) in [0, 1].
    """

    def __init__(
        self, kinds: Sequence[Pictures], *, crop: int, batch: int, space: Space | Mixture, seed: int, zoom: float = 4.0
    ):
        self.pictures = [kind.load() for kind in kinds]
        shares = np.array([kind.share for kind in kinds])
        if abs(shares.sum() - 1) > 1e-6:
            raise ValueError(f"The shares of the pictures must sum to 1, not {shares.tolist()} (pictures.*.share).")
        # A large picture has more to show than a small one.
        self.places = [np.sqrt([p.shape[0] * p.shape[1] for p in kind]) for kind in self.pictures]
        self.shares, self.crop, self.batch, self.space = shares, crop, batch, space
        self.seed, self.zoom = seed, zoom

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng(seed_from(self.seed, "pairs", index))
        truths = [self._crop(rng) for _ in range(self.batch)]
        images = [self.space.draw(rng).apply(truth) for truth in truths]
        return {"image": torch.stack(images), "truth": torch.stack(truths)}

    def _crop(self, rng: np.random.Generator) -> Tensor:
        kind = rng.choice(len(self.shares), p=self.shares)
        place = self.places[kind]
        picture = Image.fromarray(self.pictures[kind][rng.choice(len(place), p=place / place.sum())])
        largest = min(min(picture.size) / self.crop, self.zoom)
        side = min(round(self.crop * largest ** rng.random()), *picture.size)
        x, y = (int(rng.integers(0, full - side + 1)) for full in picture.size)
        box = (x, y, x + side, y + side)
        cut = picture.crop(box).resize((self.crop, self.crop), Image.Resampling.BICUBIC)
        image = to_tensor(np.asarray(cut))
        return image.flip(-1) if rng.random() < 0.5 else image


def untrained(
    shipped: Base, *, vae_channels: Sequence[int], unet_channels: Sequence[int], latent_channels: int, heads: int
) -> Base:
    """VAE and UNet of random weights under the text encoder and tokenizer of a base that ships."""
    vae = tiny_vae(channels=vae_channels, latent_channels=latent_channels)
    vae.register_to_config(scaling_factor=1.0)
    with torch.no_grad():
        vae.quant_conv.weight[latent_channels:] = 0  # the second half are the spreads
        vae.quant_conv.bias[latent_channels:] = _SPREAD
        for weight in vae.decoder.conv_out.parameters():  # little is corrected yet
            weight.mul_(_FIRST_CORRECTION)
    width = shipped.unet.config.cross_attention_dim
    unet = tiny_unet(channels=unet_channels, latent_channels=latent_channels, text_width=width, heads=heads)
    alphas = tiny_schedule().alphas_cumprod.float()
    return Base(vae, unet, shipped.text_encoder, shipped.tokenizer, alphas, "epsilon")


def started(base: Base, mapnet: MapNet, source: str) -> OneStepRestorer:
    """The restorer whose VAE, UNet and joins are trained, all of them; MapNet and null tokens are not."""
    restorer = OneStepRestorer(
        base, mapnet, vae_rank=0, unet_rank=0, skips=True, residual=True, guidance=1.0, source=source
    )
    for projector in mapnet.projectors:  # measured tokens are the null tokens, until they are trained
        nn.init.zeros_(projector[-1].weight)
    for conv in restorer.vae.skips.convs:  # zero is the start beside a decoder that was trained without them
        conv.reset_parameters()
    restorer.requires_grad_(False)
    for part in (restorer.vae, restorer.unet):
        part.requires_grad_(True)
    return restorer


class _Restoring(nn.Module):
    def __init__(self, restorer: OneStepRestorer):
        super().__init__()
        self.restorer = restorer

    def forward(self, image: Tensor) -> Tensor:
        return self.restorer(image, self.restorer.tokens(None, len(image)))


class RestoringTask:
    """L1 and LPIPS of restored crops, both on pictures in [-1, 1].

    Args:
        base: of random weights, its text encoder and tokenizer apart.
        mapnet: untrained; it goes into the restorer's file, so that this can be read, and no crop passes it.
        ema: share that the average, which is validated and exported, keeps of itself at a step.
        source: where the restorer's file will look for the base.
    """

    def __init__(
        self,
        base: Base,
        mapnet: MapNet,
        perceptual: nn.Module,
        data: Pairs,
        validation: Pairs,
        *,
        lpips_weight: float,
        lr: float,
        ema: float,
        source: str,
    ):
        self.base, self.perceptual, self.data, self.validation = base, perceptual, data, validation
        self.lpips_weight = lpips_weight
        self.restorer = started(base, mapnet, source)
        model = _Restoring(self.restorer)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.phase = Phase("restoring", model, torch.optim.AdamW(trained, lr=lr, weight_decay=0.0), self._losses)
        self.phases = [self.phase]
        self.average = Average(self.restorer, ema)
        self.stateful = [self.average]

    def _losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        output, truth = self.phase.model(batch["image"]).float() * 2 - 1, batch["truth"] * 2 - 1
        return {"l1": (output - truth).abs().mean(), "lpips": self.lpips_weight * self.perceptual(output, truth)}

    def after_step(self) -> None:
        self.average.update()

    def count(self, batch: Mapping[str, Tensor]) -> int:
        return len(batch["image"])

    def shown(self) -> AbstractContextManager:
        return self.average.swapped()

    def validate(self) -> dict[str, float]:
        device = self.restorer.null_tokens.device
        batch = {name: value.to(device) for name, value in self.validation[0].items()}
        restored = self.phase.model(batch["image"]).float().clamp(0, 1)
        values = {}
        for name, image in (("", restored), ("input_", batch["image"])):
            error = (image - batch["truth"]).square().mean((1, 2, 3)).clamp_min(1e-6)  # an untouched crop counts 60 dB
            values[f"validation/{name}psnr"] = (-10 * error.log10()).mean().item()
            values[f"validation/{name}lpips"] = self.perceptual(image * 2 - 1, batch["truth"] * 2 - 1).item()
        return values

    def pictures(self) -> dict[str, np.ndarray]:
        batch = self.validation[0]
        image = batch["image"][:8].to(self.restorer.null_tokens.device)
        rows = [image.cpu(), self.phase.model(image).float().cpu().clamp(0, 1), batch["truth"][:8]]
        return {"input_restored_truth": to_bytes(torch.cat([torch.cat(list(row), 2) for row in rows], 1))}

    @torch.no_grad()
    def export(self, folder: Path, step: int) -> None:
        """Write the base in diffusers' layout, half precision, and a restorer that is that base and nothing more."""
        base, vae = folder / "base", self.restorer.vae
        skips = vae.skips
        del vae.skips  # a part of the base of its own
        parts = {"vae": vae, "unet": self.restorer.unet, "skips": skips, "text_encoder": self.base.text_encoder}
        for name, part in parts.items():
            kept = {key: value.clone() for key, value in part.state_dict().items()}
            part.half().save_pretrained(base / name)
            part.float().load_state_dict(kept)
        vae.skips = skips
        self.base.tokenizer.save_pretrained(base / "tokenizer")
        tiny_schedule().save_pretrained(base / "scheduler")
        own = {n: t for n, t in self.restorer.state_dict().items() if n.startswith(_OWN)}
        checkpoints.save_weights(
            folder / WEIGHTS_FILE,
            own,
            kind=self.restorer.kind,
            config=self.restorer.config,
            about={"steps": step},
            dtype=torch.float16,
        )
