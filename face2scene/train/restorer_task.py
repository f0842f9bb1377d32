"""Training of the restorer: reconstruction under the prompt that fits the target, and an adversarial loss."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.utils.data import Dataset

from face2scene.common.choices import one_of
from face2scene.data.scene_batches import ValidationPair
from face2scene.image_io.arrays import to_bytes
from face2scene.models.fadex.encoder import FaDeX
from face2scene.models.restorer.discriminator import Discriminator, multilevel_sigmoid
from face2scene.models.restorer.one_step import OneStepRestorer
from face2scene.models.restorer.perceptual import Perceptual
from face2scene.models.restorer.restorer_base import WEIGHTS_FILE
from face2scene.models.scene_estimator import FILE as ESTIMATOR_FILE
from face2scene.models.scene_estimator import SceneEstimator, estimator_losses
from face2scene.train.ema import EMA
from face2scene.train.fsdp import summon_full_params
from face2scene.train.loop import Phase

_SAVED_IMAGES = 4  # of the validation pairs
_TOKEN_WEIGHTS = ("mapnet.", "null_tokens", ".attn2.")  # the tokens pass through these


class RestorerStep(nn.Module):
    """`OneStepRestorer.forward` with its `tokens` inside, for a wrapper that reduces gradients over the processes.

    Faces have sizes of their own, so MapNet runs once for each: as often on every process, as sharded weights need it.
    Returns the restored images and the tokens (B, N, D), without gradient.
    """

    def __init__(self, restorer: OneStepRestorer):
        super().__init__()
        self.restorer = restorer

    def forward(
        self,
        image: Tensor,
        features: Sequence[Tensor | None] | None,
        *,
        drop: Tensor | None = None,
        **options: Tensor | Sequence[int] | None,
    ) -> tuple[Tensor, Tensor]:
        none = [None] * len(image)
        rows = zip(features or none, none if drop is None else drop.split(1), strict=True)
        tokens = torch.cat([self.restorer.tokens(one, 1, null) for one, null in rows])
        return self.restorer(image, tokens, **options), tokens.detach()


class RestorerTask:
    """Online negatives, L2 and LPIPS on the whole crop, and a discriminator (supplement 2.2; weights 2.0, 5.0, 0.5).

    `published` is S3Diff's loop: a reconstruction step, an adversarial step on a second restoration with positive
    prompts throughout, then discriminator steps on real and on restored images, each clipped by itself. `one_forward`
    (ours, cheaper): one restoration and two optimizer steps, one on all generator losses and one on both of the
    discriminator's; the adversarial losses skip negatives and are means over the positively prompted images of all
    batches and processes of a step.

    Args:
        restorer: trained; moves to `device`.
        fadex: frozen.
        perceptual: LPIPS on [-1, 1].
        data: `SceneBatches`.
        validation: held-out pairs; each is also restored with the tokens of another pair.
        lr, tokens_lr: of AdamW; the second, if given, of MapNet and the UNet's cross-attention, which start from
            scratch while the rest starts from a trained base (ours). An `lr` of 0 trains the estimator alone, of a
            restorer that is trained already.
        discriminator: trained at `lr`, as in S3Diff; None trains without one.
        gan_weight: of all adversarial losses, the discriminator's too, as in S3Diff.
        real_target: label of real images; S3Diff's is 0.8.
        order: `published` or `one_forward`.
        posterior: `sample` (S3Diff's) from the VAE's posterior, seeded per image, or its `mean`.
        ema: decay of an EMA of the trained weights, which is then validated and exported; None keeps none.
        estimator: distilled in a last phase from the tokens of the face pairs (ours); None trains none.
        estimator_lr: of AdamW; None is `lr`.
        about: goes into the header of the exported weights.

    Raises:
        ValueError: unknown order or posterior, or an `lr` of 0 without an estimator and its rate.
    """

    memory_advice = (
        "lower train.restorer.batches.batch (train.restorer.effective_batch then accumulates more calls), set "
        "train.restorer.gradient_checkpointing=true, or restorer.base.dtype=bf16"
    )

    def __init__(
        self,
        restorer: OneStepRestorer,
        fadex: FaDeX,
        perceptual: Perceptual,
        data: Dataset,
        validation: Sequence[ValidationPair],
        *,
        lr: float,
        tokens_lr: float | None = None,
        weight_decay: float = 1e-2,
        l2_weight: float = 2.0,
        lpips_weight: float = 5.0,
        discriminator: Discriminator | None = None,
        gan_weight: float = 0.5,
        real_target: float = 0.8,
        order: Literal["published", "one_forward"] = "published",
        posterior: Literal["sample", "mean"] = "sample",
        ema: float | None = None,
        estimator: SceneEstimator | None = None,
        estimator_lr: float | None = None,
        device: torch.device,
        about: Mapping[str, Any],
    ):
        one_of("train.restorer.order", order, ("published", "one_forward"))
        one_of("train.restorer.posterior", posterior, ("sample", "mean"))
        self.restorer = restorer.to(device)
        self.fadex = fadex.to(device).eval().requires_grad_(False)
        self.perceptual = perceptual.to(device)
        self.data, self.validation = data, validation
        self.l2_weight, self.lpips_weight, self.gan_weight = l2_weight, lpips_weight, gan_weight
        self.real_target, self.posterior, self.order = real_target, posterior, order
        self.device, self.about = device, dict(about)
        step = RestorerStep(self.restorer)
        self._frozen = step if lr == 0 else None
        if self._frozen and (estimator is None or not estimator_lr):
            raise ValueError(
                "train.restorer.lr is 0, which trains the estimator alone: set train.restorer.estimator and "
                "train.restorer.estimator_lr."
            )
        if self._frozen:
            self.restorer.requires_grad_(False)
        rates = {True: lr if tokens_lr is None else tokens_lr, False: lr}
        self.phases = [] if self._frozen else self._phases(step, discriminator, rates, weight_decay)
        self.estimator = estimator
        if estimator is not None:
            e_optimizer = torch.optim.AdamW(estimator.to(device).parameters(), lr=estimator_lr or lr, weight_decay=0.0)
            self.phases.append(Phase("estimator", estimator, e_optimizer, self._estimator_loss))
        self._counts = {"adversarial": torch.ones(()), "distilled": torch.ones(())}
        self._autocast: Callable[[], AbstractContextManager] = nullcontext
        self.ema_weights = None if ema is None else EMA(self.restorer, ema)
        self._images: dict[str, Tensor] = {}  # of the last validation
        self.stateful = [self.ema_weights] if self.ema_weights else []

    def _phases(
        self,
        step: RestorerStep,
        discriminator: Discriminator | None,
        rates: Mapping[bool, float],  # of the weights that the tokens pass through, and of the others
        weight_decay: float,
    ) -> list[Phase]:
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, parameter in step.named_parameters():
            if parameter.requires_grad:
                groups[any(part in name for part in _TOKEN_WEIGHTS)].append(parameter)
        parameters = [{"params": group, "lr": rates[key]} for key, group in groups.items()]
        optimizer = torch.optim.AdamW(parameters, weight_decay=weight_decay)
        generator = partial(Phase, model=step, optimizer=optimizer, shards=True)
        if discriminator is None:
            return [generator("generator", losses=self._g_rec_loss)]
        heads = [p for p in discriminator.to(self.device).parameters() if p.requires_grad]
        d_optimizer = torch.optim.AdamW(heads, lr=rates[False], weight_decay=weight_decay)
        if self.order == "one_forward":
            return [
                generator("generator", losses=self._g_loss),
                Phase("discriminator", discriminator, d_optimizer, self._d_loss),
            ]
        return [
            generator("generator", losses=self._g_rec_loss),
            generator("generator_adversarial", losses=self._g_adv_loss),
            Phase("discriminator_real", discriminator, d_optimizer, partial(self._d_loss, parts=["real"])),
            Phase("discriminator_fake", discriminator, d_optimizer, partial(self._d_loss, parts=["fake"])),
        ]

    def before_step(self, batches: Sequence[dict[str, Tensor]], accelerator: Accelerator) -> None:
        """Mark the images of the losses that leave some out, and count them over the step's batches and processes."""
        for batch in batches:
            every = torch.ones_like(batch["negative"])
            batch["adversarial"] = every if self.order == "published" else ~batch["negative"]
            batch["distilled"] = ~(batch["negative"] | batch["drop"])
        counts = [torch.stack([batch[name].sum() for batch in batches]).float().mean() for name in self._counts]
        self._autocast = accelerator.autocast
        means = accelerator.reduce(torch.stack(counts), "mean").clamp(min=1e-6)  # per batch; 0 has no loss
        self._counts = dict(zip(self._counts, means, strict=True))

    def _restore(self, batch: dict[str, Any], negative: Tensor, seed_offset: int = 0) -> Tensor:
        """(B, 3, c, c) in [-1, 1], the range of all losses."""
        with torch.no_grad():
            pairs = zip(batch["restored"], batch["degraded"], strict=True)
            features = [self.fadex(restored[None], degraded[None]) for restored, degraded in pairs]
        seeds = [seed + seed_offset for seed in batch["seed"]] if self.posterior == "sample" else None
        options = {"negative": negative, "seeds": seeds} | {n: batch[n] for n in ("small",) if n in batch}
        output, tokens = (self._frozen or self.phases[0].model)(batch["image"], features, drop=batch["drop"], **options)
        if self.estimator is not None:  # for its phase
            batch["tokens"], batch["output"] = tokens, output.detach().float()
        return output.float() * 2 - 1

    def _reconstruction_loss(self, output: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        target = torch.where(batch["negative"].view(-1, 1, 1, 1), batch["image"], batch["gt"]) * 2 - 1
        return {
            "l2": self.l2_weight * (output - target).square().mean(),
            "lpips": self.lpips_weight * self.perceptual(output, target),
        }

    @property
    def _discriminator(self) -> Phase:
        return next(phase for phase in self.phases if phase.name.startswith("discriminator"))

    def _adversarial_loss(self, logits: Sequence[Tensor], batch: Mapping[str, Tensor], target: float) -> Tensor:
        losses = multilevel_sigmoid([each.float() for each in logits], target)  # (B,)
        return self.gan_weight * (losses * batch["adversarial"]).sum() / self._counts["adversarial"]

    def _generator_gan(self, output: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        # Not through the wrapped discriminator: its processes would wait for gradients that this phase does not make.
        discriminator = extract_model_from_parallel(self._discriminator.model)
        batch["fake"] = output.detach()  # for the discriminator's phases
        return {"gan": self._adversarial_loss(discriminator(output), batch, self.real_target)}

    def _g_rec_loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self._reconstruction_loss(self._restore(batch, batch["negative"]), batch)

    def _g_adv_loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self._generator_gan(self._restore(batch, torch.zeros_like(batch["negative"]), seed_offset=1), batch)

    def _g_loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        output = self._restore(batch, batch["negative"])
        return self._reconstruction_loss(output, batch) | self._generator_gan(output, batch)

    def _d_loss(self, batch: dict[str, Tensor], parts: Sequence[str] = ("real", "fake")) -> dict[str, Tensor]:
        images, targets = {"real": batch["gt"] * 2 - 1, "fake": batch["fake"]}, {"real": self.real_target, "fake": 0.0}
        logits = self._discriminator.model(torch.cat([images[part] for part in parts]))  # one call for both
        chunks = zip(*(each.chunk(len(parts)) for each in logits), strict=True)
        return {part: self._adversarial_loss(c, batch, targets[part]) for part, c in zip(parts, chunks, strict=True)}

    def _estimator_loss(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        if self._frozen:
            with torch.no_grad(), self._autocast():
                self._restore(batch, batch["negative"])
        tokens = batch["tokens"]
        own, *fidelities = self.phases[-1].model(batch["image"], tokens, self.restorer.mapnet)
        images, count = (batch["image"], batch["output"], batch["gt"]), self._counts["distilled"]
        return estimator_losses(own, tokens, fidelities, *images, batch["distilled"], self.perceptual.each, count)

    def after_step(self) -> None:
        """Update the EMA."""
        if self.ema_weights:
            self.ema_weights.update()

    @contextmanager
    def eval_weights(self) -> Iterator[None]:
        """Inside, the restorer has the EMA weights, if there are any, complete on every process."""
        with (
            self.ema_weights.average_parameters() if self.ema_weights else nullcontext(),
            summon_full_params(self._frozen or self.phases[0].model),
        ):
            yield

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """PSNR (dB) and LPIPS of held-out images, restored with their own tokens and with those of another image."""
        if not self.validation:
            return {}
        tokens = [
            self.restorer.tokens(self.fadex(*(p[None].to(self.device) for p in (h.pair.restored, h.pair.degraded))), 1)
            for h in self.validation
        ]
        values = {}
        for which, shift in (("own", 0), ("other", len(tokens) // 2)):
            psnr, lpips = [], []
            for n, pair in enumerate(self.validation):
                output = self.restorer.restore(pair.image[None].to(self.device), tokens[(n + shift) % len(tokens)])
                gt = pair.gt[None].to(self.device)
                if which == "own" and n < _SAVED_IMAGES:
                    self._images[f"validation_{n}"] = torch.cat([pair.image, output[0].cpu(), pair.gt], dim=2)
                psnr.append(-10 * (output - gt).square().mean().log10())
                lpips.append(self.perceptual(output * 2 - 1, gt * 2 - 1))
            values[f"validation/psnr_{which}_tokens"] = torch.stack(psnr).mean().item()
            values[f"validation/lpips_{which}_tokens"] = torch.stack(lpips).mean().item()
        return values

    def images(self) -> dict[str, np.ndarray]:
        """Of the last validation, side by side: degraded, restored with its own tokens, ground truth."""
        return {name: to_bytes(image) for name, image in self._images.items()}

    def export(self, folder: Path, step: int) -> None:
        """Write restorer.safetensors in float16, and the estimator."""
        self.restorer.save(folder / WEIGHTS_FILE, about=self.about | {"steps": step}, dtype=torch.float16)
        if self.estimator is not None:
            self.estimator.save(folder / ESTIMATOR_FILE, about=self.about | {"steps": step})
