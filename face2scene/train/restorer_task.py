"""What a step of the restorer's training is: reconstruct, under the prompt that fits the target, and fool a
discriminator."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.utils.data import Dataset

from face2scene.data.scene_batches import ValidationPair
from face2scene.image_io.arrays import to_bytes
from face2scene.models.fadex.encoder import FaDeX
from face2scene.models.restorer.discriminator import Discriminator, multilevel_sigmoid
from face2scene.models.restorer.one_step import OneStepRestorer
from face2scene.models.restorer.restorer_base import WEIGHTS_FILE
from face2scene.train.ema import EMA
from face2scene.train.fsdp import summon_full_params
from face2scene.train.loop import Phase

_SHOWN = 4  # held-out images that are written at every validation
_TOKENS_PATH = ("mapnet.", "null_tokens", ".attn2.")


class _Step(nn.Module):
    # MapNet and the null tokens must run inside the wrapped module: gradients meet across processes there.
    def __init__(self, restorer: OneStepRestorer):
        super().__init__()
        self.restorer = restorer

    def forward(self, image: Tensor, features: Tensor, negative: Tensor, drop: Tensor, seeds: Tensor | None) -> Tensor:
        return self.restorer(image, self.restorer.tokens(features, len(image), drop), negative, seeds)


class RestorerTask:
    """Online negatives, L2 and LPIPS on the whole crop, and a discriminator (supplement 2.2; weights 2.0, 5.0, 0.5).

    The discriminator judges what was prompted positively and never a negative target. With `order` one_forward (ours) a
    step
    restores once and takes two optimiser steps: one for all of the generator's losses, one for the discriminator's two.
    With `published` it is S3Diff's loop: a reconstruction step, a second restoration of the same images, all under the
    positive prompt, for the adversarial step, then a discriminator step on real and one on made images. What is not
    copied
    from there: its warm-up counts the generator's optimiser steps, ours the loop's.

    Args:
        restorer: trained; moves to `device`.
        fadex: frozen.
        perceptual: LPIPS on [-1, 1].
        data: `SceneBatches`.
        validation: held-out pairs; the second half of the figure pair restores each with its neighbour's tokens.
        lr, tokens_lr: of AdamW; the second, if given, of what the tokens pass through (MapNet and the UNet's
            cross-attention), which starts from nothing while the rest starts from a trained base (ours).
        discriminator: None trains without one.
        discriminator_lr: None is `lr`, as in S3Diff.
        gan_weight: of all adversarial losses, the discriminator's too, as in S3Diff.
        real_target: what a real image is to be called; S3Diff's is 0.8.
        order: `one_forward` or `published`.
        posterior: `sample` (S3Diff's) from the VAE's posterior, seeded per image, or its `mean`.
        ema: decay of an average of the trained weights, which is then what is validated and exported; None keeps none.
        about: goes into the header of the exported weights.
    """

    memory_advice = (
        "lower train.restorer.batches.batch (and raise train.restorer.accumulate as much), set "
        "train.restorer.gradient_checkpointing=true, or restorer.base.dtype=bf16"
    )

    def __init__(
        self,
        restorer: OneStepRestorer,
        fadex: FaDeX,
        perceptual: nn.Module,
        data: Dataset,
        validation: Sequence[ValidationPair],
        *,
        lr: float,
        tokens_lr: float | None = None,
        weight_decay: float = 1e-2,
        l2_weight: float = 2.0,
        lpips_weight: float = 5.0,
        discriminator: Discriminator | None = None,
        discriminator_lr: float | None = None,
        gan_weight: float = 0.5,
        real_target: float = 0.8,
        order: Literal["one_forward", "published"] = "one_forward",
        posterior: Literal["sample", "mean"] = "sample",
        ema: float | None = None,
        device: torch.device,
        about: Mapping[str, Any],
    ):
        for option, value, known in (
            ("order", order, ("one_forward", "published")),
            ("posterior", posterior, ("sample", "mean")),
        ):
            if value not in known:
                raise ValueError(f"train.restorer.{option} must be {' or '.join(known)}, not {value!r}.")
        self.restorer = restorer.to(device)
        self.fadex = fadex.to(device).eval().requires_grad_(False)
        self.perceptual = perceptual.to(device)
        self.data, self.validation = data, validation
        self.l2_weight, self.lpips_weight, self.gan_weight = l2_weight, lpips_weight, gan_weight
        self.real_target, self.posterior = real_target, posterior
        self.device, self.about = device, dict(about)
        step = _Step(self.restorer)
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, parameter in step.named_parameters():
            if parameter.requires_grad:
                groups[any(part in name for part in _TOKENS_PATH)].append(parameter)
        optimizer = torch.optim.AdamW(
            [{"params": groups[True], "lr": tokens_lr or lr}, {"params": groups[False], "lr": lr}],
            weight_decay=weight_decay,
        )
        self._fake: Tensor | None = None  # by the generator in this step, without gradients
        if discriminator is None:
            self.phases = [Phase("generator", step, optimizer, self._reconstruct, shards=True)]
        else:
            discriminator = discriminator.to(device)
            heads = [p for p in discriminator.parameters() if p.requires_grad]
            judge = torch.optim.AdamW(heads, lr=discriminator_lr or lr, weight_decay=weight_decay)
            if order == "one_forward":
                self.phases = [
                    Phase("generator", step, optimizer, self._g_loss, shards=True),
                    Phase("discriminator", discriminator, judge, self._d_loss),
                ]
            else:
                self.phases = [
                    Phase("generator", step, optimizer, self._reconstruct, shards=True),
                    Phase("generator_adversarial", step, optimizer, self._g_adv_loss, shards=True),
                    Phase("discriminator_real", discriminator, judge, self._d_loss_real),
                    Phase("discriminator_fake", discriminator, judge, self._d_loss_fake),
                ]
        self.ema_weights = None if ema is None else EMA(self.restorer, ema)
        self._seen: dict[str, Tensor] = {}  # images of the last validation
        self.stateful = [self.ema_weights] if self.ema_weights else []

    def _restored(self, batch: Mapping[str, Tensor], negative: Tensor, second: bool = False) -> Tensor:
        """(B, 3, c, c) in [-1, 1], the range the weights of the losses are for."""
        with torch.no_grad():
            features = self.fadex(batch["restored"], batch["degraded"])
        seeds = batch["seed"] + int(second) if self.posterior == "sample" else None
        output = self.phases[0].model(batch["image"], features, negative, batch["drop"], seeds)
        return output.float() * 2 - 1

    def _reconstruction_loss(self, output: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        target = batch["target"] * 2 - 1
        return {
            "l2": self.l2_weight * (output - target).square().mean(),
            "lpips": self.lpips_weight * self.perceptual(output, target),
        }

    def _reconstruct(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._reconstruction_loss(self._restored(batch, batch["negative"]), batch)

    def _g_loss(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        output = self._restored(batch, batch["negative"])
        return self._reconstruction_loss(output, batch) | self._adversarial(output, ~batch["negative"])

    def _g_adv_loss(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        everything = torch.ones_like(batch["negative"])
        return self._adversarial(self._restored(batch, ~everything, second=True), everything)

    def _adversarial(self, output: Tensor, positive: Tensor) -> dict[str, Tensor]:
        # Not through the wrapped discriminator: its processes would wait for gradients that this phase does not make.
        discriminator = extract_model_from_parallel(self.phases[-1].model)
        self._fake = output.detach()
        return {"gan": self._adversarial_loss(discriminator(output), positive, self.real_target)}

    def _d_loss(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits = self.phases[-1].model(torch.cat([batch["gt"] * 2 - 1, self._fake]))  # one call for both
        real, fake = zip(*(each.chunk(2) for each in logits), strict=True)
        positive = ~batch["negative"]
        return {
            "real": self._adversarial_loss(real, positive, self.real_target),
            "fake": self._adversarial_loss(fake, positive, 0.0),
        }

    def _d_loss_real(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        everything = torch.ones_like(batch["negative"])
        return {
            "real": self._adversarial_loss(self.phases[-1].model(batch["gt"] * 2 - 1), everything, self.real_target)
        }

    def _d_loss_fake(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        everything = torch.ones_like(batch["negative"])
        return {"fake": self._adversarial_loss(self.phases[-1].model(self._fake), everything, 0.0)}

    def _adversarial_loss(self, logits: Sequence[Tensor], chosen: Tensor, target: float) -> Tensor:
        losses = multilevel_sigmoid([each.float() for each in logits], target)  # (B,)
        return self.gan_weight * (losses * chosen).sum() / chosen.sum().clamp(min=1)

    def after_step(self) -> None:
        """The average takes in the new weights."""
        if self.ema_weights:
            self.ema_weights.update()

    @contextmanager
    def eval_weights(self) -> Iterator[None]:
        """Inside, the weights are whole on every process, and the average where there is one; see `train.loop.Task`."""
        with (
            self.ema_weights.average_parameters() if self.ema_weights else nullcontext(),
            summon_full_params(self.phases[0].model),
        ):
            yield

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """PSNR (dB) and LPIPS of held-out images, restored with their own and with their neighbour's tokens.

        The first few are shown, see `images`.
        """
        if not self.validation:
            return {}
        tokens = [
            self.restorer.tokens(self.fadex(*(p[None].to(self.device) for p in (h.pair.restored, h.pair.degraded))), 1)
            for h in self.validation
        ]
        values = {}
        for which, shift in (("own", 0), ("other", len(tokens) // 2)):
            psnr, lpips = [], []
            for n, held in enumerate(self.validation):
                output = self.restorer.restore(held.image[None].to(self.device), tokens[(n + shift) % len(tokens)])
                gt = held.gt[None].to(self.device)
                if which == "own" and n < _SHOWN:
                    rows = [held.image, output[0].cpu(), held.gt]
                    self._seen[f"validation_{n}"] = torch.cat(rows, dim=2)
                psnr.append(-10 * (output - gt).square().mean().log10())
                lpips.append(self.perceptual(output * 2 - 1, gt * 2 - 1))
            values[f"validation/psnr_{which}_tokens"] = torch.stack(psnr).mean().item()
            values[f"validation/lpips_{which}_tokens"] = torch.stack(lpips).mean().item()
        return values

    def images(self) -> dict[str, np.ndarray]:
        """Of the last validation, side by side: degraded, restored with their own tokens, clean."""
        return {name: to_bytes(image) for name, image in self._seen.items()}

    def export(self, folder: Path, step: int) -> None:
        """Write restorer.safetensors: the average where there is one and `eval_weights` is on."""
        about = self.about | {"steps": step}
        self.restorer.save(folder / WEIGHTS_FILE, about=about, dtype=torch.float16)
