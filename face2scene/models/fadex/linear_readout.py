"""What the embedding says of a degradation, in words a person knows: blur, noise, JPEG quality and scale.

Linear heads on the frozen embedding. That straight lines suffice is the finding; see `eval.probe` for the R squared.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from face2scene.common.model_files import fit, load_weights, save_weights
from face2scene.degradation import Blur, Jpeg, Recipe, Resize, SpatiallyVaryingBlur, Webp

# What each factor is measured in, and the smallest and largest value that exists.
FACTORS: dict[str, tuple[str, float, float]] = {
    "blur": ("pixels: sigma of all blur kernels together, at the image's full size", 0.0, math.inf),
    "noise": ("grey levels of 255: standard deviation that is left of a mid-grey image", 0.0, math.inf),
    "jpeg_quality": ("quality of the last JPEG or WebP, 100 for none", 1.0, 100.0),
    "scale": ("smallest size on the way as a share of the full size, at most 1", 1 / 64, 1.0),
}
RIDGES = tuple(10.0**n for n in range(-6, 3))
_FLAT = 128  # side of the mid-grey image in pixels


def factors(recipe: Recipe) -> dict[str, float]:
    """What a recipe does, by the names and in the units of `FACTORS`.

    The noise is measured rather than summed up, since what a recipe adds first it shrinks and compresses afterwards.
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
    flat = recipe.apply(torch.full((3, _FLAT, _FLAT), 0.5))
    noise = float(flat.std((-2, -1)).mean()) * 255
    return {"blur": math.sqrt(variance), "noise": noise, "jpeg_quality": quality, "scale": smallest}


class LinearProbe(nn.Module):
    """Reads the factors off embeddings of one FaDeX.

    Args:
        embedding: width D.
    """

    def __init__(self, embedding: int):
        super().__init__()
        self.config: dict[str, Any] = {"embedding": int(embedding)}
        self.heads = nn.Linear(embedding, len(FACTORS))

    def predict(self, embeddings: Tensor) -> Tensor:
        """(..., D) unit vectors to (..., 4), in the order of `FACTORS`, the scale as its logarithm to base 2."""
        return self.heads(embeddings)

    @torch.no_grad()
    def forward(self, embedding: Tensor) -> dict[str, float]:
        """The factors of one embedding, (D,) or (1, D), in their units and within their limits."""
        values = self.predict(embedding.detach().float().cpu().reshape(-1, self.config["embedding"]))
        if len(values) != 1:
            raise ValueError(f"A readout is of one embedding, got {tuple(embedding.shape)}: use predict for several.")
        found = dict(zip(FACTORS, values[0].tolist(), strict=True))
        found["scale"] = 2 ** found["scale"]
        return {name: min(max(value, FACTORS[name][1]), FACTORS[name][2]) for name, value in found.items()}

    @classmethod
    def fitted(
        cls, embeddings: Tensor, recipes: Sequence[Recipe], *, ridges: Sequence[float] = RIDGES
    ) -> "LinearProbe":
        """Least squares with a ridge, of every factor the one that leaves the least error on left-out rows.

        Args:
            embeddings: (N, D), of one image each.
            recipes: the N that degraded them.
            ridges: weights of the squared slopes to choose from, relative to the embeddings' mean scatter (ours).

        Raises:
            ValueError: fewer rows than two, or not one recipe for each.
        """
        if len(embeddings) < 2 or len(recipes) != len(embeddings):
            raise ValueError(f"A readout is fitted on pairs, got {len(embeddings)} embeddings, {len(recipes)} recipes.")
        x, y = embeddings.detach().double().cpu(), targets(recipes)
        centre, middle = x.mean(0), y.mean(0)
        left, sizes, right = torch.linalg.svd(x - centre, full_matrices=False)
        turned, scatter = left.T @ (y - middle), sizes.square()  # (R, 4), (R,)
        best = torch.full((y.shape[1],), torch.inf, dtype=y.dtype)
        slopes = torch.zeros(x.shape[1], y.shape[1], dtype=y.dtype)
        for ridge in ridges:
            kept = scatter / (scatter + ridge * scatter.sum() / x.shape[1])
            influence = (left.square() * kept).sum(1, keepdim=True) + 1 / len(x)  # of a row on its own prediction
            errors = ((y - middle - left @ (kept[:, None] * turned)) / (1 - influence).clamp_min(1e-6)).square().mean(0)
            found = right.T @ ((kept / sizes.clamp_min(1e-12))[:, None] * turned)
            slopes, best = torch.where(errors < best, found, slopes), torch.minimum(best, errors)
        readout = cls(x.shape[1])
        with torch.no_grad():
            readout.heads.weight.copy_(slopes.T)
            readout.heads.bias.copy_(middle - centre @ slopes)
        return readout.requires_grad_(False)

    def r_squared(self, embeddings: Tensor, recipes: Sequence[Recipe]) -> dict[str, float]:
        """Share of each factor's variance over N embeddings that is explained: 1 is all, 0 what the mean explains."""
        y = targets(recipes)
        left = (self.predict(embeddings.detach().float().cpu()).double() - y).square().sum(0)
        whole = (y - y.mean(0)).square().sum(0)
        return {name: float(1 - left[n] / whole[n]) for n, name in enumerate(FACTORS)}

    def save(self, path: str | Path, *, about: Mapping[str, Any] | None = None) -> None:
        """Write the heads with their units in the header."""
        units = {name: unit for name, (unit, _, _) in FACTORS.items()}
        about = {"factors": units, **(about or {})}
        save_weights(path, self.state_dict(), kind="fadex_readout", config=self.config, about=about)

    @classmethod
    def from_file(cls, path: str | Path) -> "LinearProbe":
        """The heads of a file of `save`, frozen.

        Raises:
            FileNotFoundError, ValueError: from `load_weights` and `fit`; the message names the file.
        """
        tensors, config, _ = load_weights(path, kind="fadex_readout")
        readout = cls(**config)
        fit(readout, tensors, expected=set(readout.state_dict()), source=path)
        return readout.eval().requires_grad_(False)


def targets(recipes: Sequence[Recipe]) -> Tensor:
    """(N, 4) float64 in the order of `FACTORS`, the scale as its logarithm to base 2."""
    rows = [factors(recipe) for recipe in recipes]
    return torch.tensor(
        [[math.log2(row[name]) if name == "scale" else row[name] for name in FACTORS] for row in rows],
        dtype=torch.float64,
    )
