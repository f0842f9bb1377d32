"""Heads that read blur, noise, JPEG quality and scale, with intervals, off a frozen FaDeX and its pair (ours).

The embedding is made to tell operators apart and keeps little of how strong each part is; the statistics of the layers
before it do, and those of the pair itself (`pair_statistics`).
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from face2scene.common.model_files import load_weights, recorded
from face2scene.models.fadex.encoder import FaDeX
from face2scene.models.fadex.linear_readout import FACTORS, LinearProbe
from face2scene.models.fadex.pair_statistics import PAIR_STATISTICS, pair_statistics
from face2scene.models.saved_module import SavedModule

COVERAGE = 0.9  # of the intervals


class Reading(NamedTuple):
    """A factor's estimate and its interval, in the unit of `FACTORS`."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f}" + ("" if math.isnan(self.low) else f" ({self.low:.2f} to {self.high:.2f})")


@torch.no_grad()
def layer_statistics(encoder: FaDeX, restored: Tensor, degraded: Tensor) -> Tensor:
    """(B, S) float32: mean and logarithm of the deviation of every channel of every layer, over the pixels of pairs.

    Args:
        restored, degraded: as for `FaDeX`, which is in evaluation mode.
    """
    features, found = encoder.stacked(restored, degraded), []
    for layer in encoder.body:
        features = layer(features)
        if isinstance(layer, nn.LeakyReLU):
            deviation, mean = torch.std_mean(features.float(), (-2, -1))
            found.append(torch.cat([mean, (deviation + 1e-3).log()], 1))
    return torch.cat(found, 1)


def scaled(values: Tensor) -> Tensor:
    """(..., 4) factors to the scale on which they are estimated: log(1 + blur), log(1 + noise), quality/100, log2."""
    blur, noise, quality, scale = values.unbind(-1)
    return torch.stack([blur.log1p(), noise.log1p(), quality / 100, scale.log2()], -1)


def unscaled(values: Tensor) -> Tensor:
    """The inverse of `scaled`, within the limits of `FACTORS`."""
    blur, noise, quality, scale = values.unbind(-1)
    plain = torch.stack([blur.expm1(), noise.expm1(), quality * 100, scale.exp2()], -1)
    low, high = (torch.tensor([limits[n] for limits in FACTORS.values()]) for n in (1, 2))
    return plain.clamp(low.to(plain), high.to(plain))


class FactorHeads(SavedModule):
    """Estimates the factors, each with the width of its error, from `layer_statistics` and `pair_statistics`.

    Args:
        statistics: their number S together, or that of `layer_statistics` alone.
        hidden: widths of the layers.
    """

    kind = "fadex_readout"
    mean: Tensor  # (S,), and their scale: of the statistics in the training
    scale: Tensor
    reach: Tensor  # (4,): estimated widths to half an interval, measured on draws that were not trained on (conformal)

    @recorded()
    def __init__(self, statistics: int, hidden: Sequence[int] = (256, 128)):
        super().__init__()
        self.register_buffer("mean", torch.zeros(statistics))
        self.register_buffer("scale", torch.ones(statistics))
        self.register_buffer("reach", torch.ones(len(FACTORS)))
        layers: list[nn.Module] = []
        width = statistics
        for out in hidden:
            layers += [nn.Linear(width, out), nn.LeakyReLU(0.1), nn.Dropout(0.1)]
            width = out
        self.net = nn.Sequential(*layers, nn.Linear(width, 2 * len(FACTORS)))

    def predict(self, statistics: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) to centres and widths (B, 4) on the scale of `scaled`; an interval is centre +- reach x width."""
        standard = ((statistics - self.mean) / self.scale).clamp(-6, 6)
        centres, widths = self.net(standard).chunk(2, -1)
        return centres, widths.clamp(-7, 2).exp()

    @torch.no_grad()
    def forward(self, statistics: Tensor) -> dict[str, Reading]:
        """The factors of one pair's statistics (S,) or (1, S), by the names of `FACTORS`."""
        centres, widths = self.predict(statistics.detach().float().cpu().reshape(1, -1))
        half = self.reach * widths
        rows = [unscaled(values)[0].tolist() for values in (centres, centres - half, centres + half)]
        return {name: Reading(*row) for name, row in zip(FACTORS, zip(*rows, strict=True), strict=True)}

    def save(self, path: str | Path, *, about: Mapping[str, Any] | None = None) -> None:
        """See `SavedModule`; the header also holds the units and the intervals' coverage."""
        units = {name: unit for name, (unit, _, _) in FACTORS.items()}
        super().save(path, about={"factors": units, "coverage": COVERAGE, **(about or {})})


class Readout:
    """A FaDeX and the heads of a file, which may be `FactorHeads` or the linear ones of the embedding.

    Args:
        fadex: the encoder that the heads were fitted on, or its file. heads: a readout.safetensors.

    Raises:
        FileNotFoundError, ValueError: no such file; another kind; heads of an encoder of other widths.
    """

    def __init__(self, fadex: FaDeX | str | Path, heads: str | Path):
        self.fadex = fadex = fadex if isinstance(fadex, FaDeX) else FaDeX.from_file(fadex)
        linear = "embedding" in load_weights(heads, kind=FactorHeads.kind)[1]
        self.heads: LinearProbe | FactorHeads = (LinearProbe if linear else FactorHeads).from_file(heads)
        wanted = fadex.config["embedding"] if linear else 2 * sum(fadex.config["widths"])
        given = self.heads.config["embedding" if linear else "statistics"]
        self.whole = not linear and given == wanted + PAIR_STATISTICS
        if given != wanted and not self.whole:
            raise ValueError(f"{heads} was fitted on {given} features of an encoder, and this FaDeX has {wanted}.")

    @torch.inference_mode()
    def __call__(self, restored: Tensor, degraded: Tensor) -> dict[str, Reading]:
        """The factors of one face pair, (3, H, W) in [0, 1]; linear heads give no interval, low and high are NaN."""
        pair = restored[None].float().cpu(), degraded[None].float().cpu()
        if isinstance(self.heads, FactorHeads):
            features = layer_statistics(self.fadex, *pair)
            return self.heads(torch.cat([features, pair_statistics(*pair)], 1) if self.whole else features)
        read = self.heads(self.fadex.embed(self.fadex(*pair)))
        return {name: Reading(value, math.nan, math.nan) for name, value in read.items()}
