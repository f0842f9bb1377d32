"""What a step of the restorer's training is: reconstruct, under the prompt that fits the target."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from face2scene.data.scenes import HeldOut
from face2scene.fadex.encoder import FaDeX
from face2scene.restorer.one_step import OneStepRestorer
from face2scene.train.loop import Phase

_TOKENS_PATH = ("mapnet.", "null_tokens", ".attn2.")


class _Step(nn.Module):
    # MapNet and the null tokens must run inside the wrapped module: gradients meet across processes there.
    def __init__(self, restorer: OneStepRestorer):
        super().__init__()
        self.restorer = restorer

    def forward(self, image: Tensor, features: Tensor, negative: Tensor, drop: Tensor) -> Tensor:
        return self.restorer(image, self.restorer.tokens(features, len(image), drop), negative)


class RestorerTask:
    """Online negatives, L2 and LPIPS on the whole crop (supplement 2.2; weights 2.0 and 5.0 of the paper).

    Args:
        restorer: trained; moves to `device`.
        fadex: frozen.
        perceptual: LPIPS on [-1, 1].
        data: `SceneBatches`.
        validation: held-out pairs; the second half of the figure pair restores each with its neighbour's tokens.
        lr, tokens_lr: of AdamW; the second, if given, of what the tokens pass through (MapNet and the UNet's
            cross-attention), which starts from nothing while the rest starts from a trained base (ours).
        about: goes into the header of the exported weights.
    """

    def __init__(
        self,
        restorer: OneStepRestorer,
        fadex: FaDeX,
        perceptual: nn.Module,
        data: Dataset,
        validation: Sequence[HeldOut],
        *,
        lr: float,
        tokens_lr: float | None = None,
        weight_decay: float = 1e-2,
        l2_weight: float = 2.0,
        lpips_weight: float = 5.0,
        device: torch.device,
        about: Mapping[str, Any],
    ):
        self.restorer = restorer.to(device)
        self.fadex = fadex.to(device).eval().requires_grad_(False)
        self.perceptual = perceptual.to(device)
        self.data, self.validation = data, validation
        self.l2_weight, self.lpips_weight = l2_weight, lpips_weight
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
        self.phase = Phase("generator", step, optimizer, self._losses)
        self.phases = [self.phase]

    def _losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            features = self.fadex(batch["restored"], batch["degraded"])
        output = self.phase.model(batch["image"], features, batch["negative"], batch["drop"])
        output, target = output.float() * 2 - 1, batch["target"] * 2 - 1  # the weights are for this range
        return {
            "l2": self.l2_weight * (output - target).square().mean(),
            "lpips": self.lpips_weight * self.perceptual(output, target),
        }

    def after_step(self) -> None: ...

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """PSNR (dB) and LPIPS of held-out pictures, restored with their own and with their neighbour's tokens."""
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
                truth = held.truth[None].to(self.device)
                psnr.append(-10 * (output - truth).square().mean().log10())
                lpips.append(self.perceptual(output * 2 - 1, truth * 2 - 1))
            values[f"validation/psnr_{which}_tokens"] = torch.stack(psnr).mean().item()
            values[f"validation/lpips_{which}_tokens"] = torch.stack(lpips).mean().item()
        return values

    def export(self, folder: Path, step: int) -> None:
        self.restorer.save(folder / "restorer.safetensors", about=self.about | {"steps": step}, dtype=torch.float16)
