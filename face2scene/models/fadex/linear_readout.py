"""Linear probes of the frozen embedding for blur, noise, JPEG quality and scale; see `eval.probe` for R squared."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from face2scene.common.model_files import recorded
from face2scene.degradation import Blur, Jpeg, Recipe, Resize, SpatiallyVaryingBlur, Webp
from face2scene.models.saved_module import SavedModule

# Unit, smallest and largest value of each factor.
FACTORS: dict[str, tuple[str, float, float]] = {
    "blur": ("pixels: sigma of all blur kernels together, at the image's full size", 0.0, math.inf),
    "noise": ("grey levels of 255: standard deviation that is left of a mid-grey image", 0.0, math.inf),
    "jpeg_quality": ("quality of the last JPEG or WebP, 100 for none", 1.0, 100.0),
    "scale": ("smallest size on the way as a share of the full size, at most 1", 1 / 64, 1.0),
}
RIDGES = tuple(10.0**n for n in range(-6, 3))  # candidates, relative to the embeddings' mean scatter (ours)
_FLAT, _GAP, _RAMP, _WIDE = 56, 40, 32, 96  # rows that are measured, left out, and of all grey levels; columns


def factors(recipe: Recipe) -> dict[str, float]:
    """The strength of each degradation of a recipe, by the names and in the units of `FACTORS`.

    Noise is measured on a mid-grey area and not summed, because later operators resize and compress it. All grey levels
    are elsewhere in that image: shot noise counts as many photons as an image has levels (`functional.noise.shot`), so
    that one grey level alone has up to sixteen times the noise of a photo.
    """
    size, smallest, variance, quality = 1.0, 1.0, 0.0, 100.0
    for operator in recipe.operators:
        if isinstance(operator, Resize):
            size = operator.factor
            smallest = min(smallest, size)
        elif isinstance(operator, Blur | SpatiallyVaryingBlur):
            across = operator.sigma_x if operator.sigma_y is None else operator.sigma_y
            variance += (operator.sigma_x**2 + across**2) / 2 / size**2
        elif isinstance(operator, Jpeg | Webp):
            quality = float(operator.quality)
    image = torch.full((3, _FLAT + _GAP + _RAMP, _WIDE), 0.5)
    image[:, -_RAMP:] = torch.linspace(0, 1, 2 * _WIDE).view(_WIDE, 2).T.repeat(_RAMP // 2, 1)
    noise = float(recipe.apply(image)[:, :_FLAT].std((-2, -1)).mean()) * 255
    return {"blur": math.sqrt(variance), "noise": noise, "jpeg_quality": quality, "scale": smallest}


class LinearProbe(SavedModule):
    """Estimates the factors from embeddings of one FaDeX.

    Args:
        embedding: width D.
    """

    kind = "fadex_readout"

    @recorded()
    def __init__(self, embedding: int):
        super().__init__()
        self.heads = nn.Linear(embedding, len(FACTORS))

    def predict(self, embeddings: Tensor) -> Tensor:
        """(..., D) unit vectors to (..., 4), in the order of `FACTORS`, the scale as its logarithm to base 2."""
        return self.heads(embeddings)

    @torch.no_grad()
    def forward(self, embedding: Tensor) -> dict[str, float]:
        """The factors of one embedding, (D,) or (1, D), in their units and within their limits."""
        values = self.predict(embedding.detach().float().cpu().reshape(-1, self.config["embedding"]))
        if len(values) != 1:
            raise ValueError(f"A probe takes one embedding, got {tuple(embedding.shape)}: use predict for several.")
        estimate = dict(zip(FACTORS, values[0].tolist(), strict=True))
        estimate["scale"] = 2 ** estimate["scale"]
        return {name: min(max(value, FACTORS[name][1]), FACTORS[name][2]) for name, value in estimate.items()}

    @classmethod
    def fitted(cls, embeddings: Tensor, recipes: Sequence[Recipe]) -> "LinearProbe":
        """Ridge regression; every factor's ridge is the one with the least leave-one-out error.

        Args:
            embeddings: (N, D), of one image each.
            recipes: of the N images.

        Raises:
            ValueError: fewer than two rows, or not one recipe for each.
        """
        if len(embeddings) < 2 or len(recipes) != len(embeddings):
            raise ValueError(f"A probe is fitted on pairs, got {len(embeddings)} embeddings, {len(recipes)} recipes.")
        x, y = embeddings.detach().cpu().double(), targets(recipes)
        x_mean, y_mean = x.mean(0), y.mean(0)
        left, sizes, right = torch.linalg.svd(x - x_mean, full_matrices=False)
        projected, scatter = left.T @ (y - y_mean), sizes.square()  # (R, 4), (R,)
        best = torch.full((y.shape[1],), torch.inf, dtype=y.dtype)
        slopes = torch.zeros(x.shape[1], y.shape[1], dtype=y.dtype)
        for ridge in RIDGES:
            kept = scatter / (scatter + ridge * scatter.sum() / x.shape[1])
            influence = (left.square() * kept).sum(1, keepdim=True) + 1 / len(x)  # of a row on its own prediction
            residuals = y - y_mean - left @ (kept[:, None] * projected)
            errors = (residuals / (1 - influence).clamp_min(1e-6)).square().mean(0)
            candidate = right.T @ ((kept / sizes.clamp_min(1e-12))[:, None] * projected)
            slopes, best = torch.where(errors < best, candidate, slopes), torch.minimum(best, errors)
        probe = cls(x.shape[1])
        with torch.no_grad():
            probe.heads.weight.copy_(slopes.T)
            probe.heads.bias.copy_(y_mean - x_mean @ slopes)
        return probe.requires_grad_(False)

    def r_squared(self, embeddings: Tensor, recipes: Sequence[Recipe]) -> dict[str, float]:
        """R squared of each factor over N embeddings."""
        y = targets(recipes)
        residual = (self.predict(embeddings.detach().float().cpu()).double() - y).square().sum(0)
        total = (y - y.mean(0)).square().sum(0)
        return {name: float(1 - residual[n] / total[n]) for n, name in enumerate(FACTORS)}

    def save(self, path: str | Path, *, about: Mapping[str, Any] | None = None) -> None:
        """See `SavedModule`; the header also holds the units."""
        units = {name: unit for name, (unit, _, _) in FACTORS.items()}
        super().save(path, about={"factors": units, **(about or {})})


def targets(recipes: Sequence[Recipe]) -> Tensor:
    """(N, 4) float64 in the order of `FACTORS`, the scale as its logarithm to base 2."""
    rows = [factors(recipe) for recipe in recipes]
    return torch.tensor(
        [[math.log2(row[name]) if name == "scale" else row[name] for name in FACTORS] for row in rows],
        dtype=torch.float64,
    )
