"""How well blur and scale could be told at all: by a likelihood that knows the picture and the rest of the recipe.

    python benchmarks/identifiable.py --json FILE [--draws 120] [--heads FILE] [--only "all but the scale"]

Operators of `single and mixed` (readout.py) on faces that FaDeX does not know, crops of 96 pixels. Every candidate for
the unknown factors is applied to the ground truth itself, without its noise; what is left of the degraded face then has
the spectrum of that candidate's noise, or has not (Whittle's likelihood over rings of frequencies). The estimate is the
mean of the factor on its scale under the likelihood, with the space's own prior. `--only` asks one of the three in a
fraction of the time, so of more draws. Before it: see readout.py.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from readout import ENCODER, MARGIN, SINGLE_AND_MIXED, asked_faces, r_squared
from torch import Tensor
from tqdm import tqdm

from face2scene.common.files import write_json
from face2scene.degradation import Blur, Jpeg, Recipe, Resize
from face2scene.degradation.operators.basic import Operator
from face2scene.eval.probe.faces import ProbeFace
from face2scene.models.fadex import FaDeX
from face2scene.models.fadex.factor_heads import Readout
from face2scene.models.fadex.linear_readout import factors

SIDE = 96  # pixels
WIDTHS = (0.0, 0.4, 0.8, 1.2, 1.7, 2.2, 2.8, 3.4, 4.0)  # of candidates' blurs, pixels; the prior is even
SCALES = (1.0, 0.92, 0.82, 0.72, 0.62, 0.52, 0.42, 0.33, 0.25)
FLOOR = 0.3  # grey levels squared: rounding, and what the candidates' grid leaves
KNOWN = {"all but the blur": (WIDTHS, ()), "all but the scale": ((), SCALES), "all but both": (WIDTHS, SCALES)}


@dataclass(frozen=True)
class Steps:
    """The five steps of a recipe of the space; None is a step that is not there."""

    blur: Blur | None
    down: Resize | None
    noise: Operator | None
    up: Resize | None
    jpeg: Jpeg | None

    @classmethod
    def of(cls, recipe: Recipe) -> "Steps":
        sizes = [op for op in recipe.operators if isinstance(op, Resize)]
        rest = [op for op in recipe.operators if not isinstance(op, Resize | Blur | Jpeg)]
        one = {kind: next((op for op in recipe.operators if isinstance(op, kind)), None) for kind in (Blur, Jpeg)}
        down, up = sizes or (None, None)
        return cls(one[Blur], down, rest[0] if rest else None, up, one[Jpeg])

    def changed(self, width: float | None, scale: float | None) -> "Steps":
        """With a blur of another width (same shape) and another size on the way; None leaves what is there."""
        found = self
        if width is not None:
            found = replace(found, blur=self._blur(width) if width else None)
        if scale is not None and scale < 1:
            down, up = self.down or Resize(scale, "bicubic"), self.up or Resize(1.0, "bicubic")
            found = replace(found, down=replace(down, factor=scale), up=up)
        elif scale is not None:
            found = replace(found, down=None, up=None)
        return found

    def _blur(self, width: float) -> Blur:
        if self.blur is None:
            return Blur("iso", 21, sigma_x=width)
        across = self.blur.sigma_x if self.blur.sigma_y is None else self.blur.sigma_y
        share = width / math.sqrt((self.blur.sigma_x**2 + across**2) / 2)
        more = {} if self.blur.sigma_y is None else {"sigma_y": across * share}
        return replace(self.blur, sigma_x=self.blur.sigma_x * share, **more)

    def recipe(self, seed: int, *, noise: bool = True) -> Recipe:
        steps = (self.blur, self.down, self.noise if noise else None, self.up, self.jpeg)
        return Recipe(tuple(step for step in steps if step is not None), noise_seed=seed)


def spectrum(image: Tensor) -> tuple[Tensor, Tensor]:
    """Power of (3, H, W) in grey levels squared by rings of frequencies, and how many independent ones each has."""
    window = torch.outer(*[torch.hann_window(n, periodic=False) for n in image.shape[-2:]])
    power = torch.fft.rfft2(image * 255 * window).abs().square().mean(0) / window.square().sum()
    down, across = torch.fft.fftfreq(power.shape[0]).abs(), torch.fft.rfftfreq(image.shape[-1])
    ring = (torch.hypot(down[:, None], across[None]) * 48).long().clamp(max=24).flatten()
    count = ring.bincount()
    return torch.zeros(len(count)).index_add_(0, ring, power.flatten()) / count, count / 2.25


def inner(image: Tensor) -> Tensor:
    """Without the margin."""
    return image[:, MARGIN : MARGIN + SIDE, MARGIN : MARGIN + SIDE]


def unlikeliness(candidate: Steps, tile: Tensor, degraded: Tensor) -> float:
    """Minus twice the logarithm of Whittle's likelihood of a candidate."""
    plain = inner(candidate.recipe(0, noise=False).apply(tile))
    expected = torch.zeros(())
    if candidate.noise is not None:
        expected = spectrum(inner(candidate.recipe(1).apply(tile)) - plain)[0]
    left, count = spectrum(degraded - plain)
    return float((count * (left / (expected + FLOOR) + (expected + FLOOR).log())).sum())


def told(steps: Steps, tile: Tensor, degraded: Tensor, widths: Sequence[float], scales: Sequence[float]) -> list[float]:
    """Blur and scale by the likelihood of all candidates; a factor without candidates is NaN."""
    pairs = [(width, scale) for width in widths or (None,) for scale in scales or (None,)]
    values = np.array([unlikeliness(steps.changed(*pair), tile, degraded) for pair in pairs])
    # The prior: the share of draws with a blur or a resize, of which half are mixtures.
    prior = np.array([_prior(width, 0.0, widths) * _prior(scale, 1.0, scales) for width, scale in pairs])
    weights = np.exp(-(values - values.min()) / 2) * prior
    weights /= weights.sum()
    blur = np.expm1(sum(w * math.log1p(p[0]) for w, p in zip(weights, pairs, strict=True))) if widths else math.nan
    scale = 2 ** sum(w * math.log2(p[1]) for w, p in zip(weights, pairs, strict=True)) if scales else math.nan
    return [float(blur), float(scale)]


def _prior(value: float | None, off: float, candidates: Sequence[float]) -> float:
    return 1.0 if value is None else 0.5 if value == off else 0.5 / (len(candidates) - 1)


def draw(faces: Sequence[ProbeFace], number: int) -> tuple[Recipe, Tensor, Tensor]:
    """An operator, a face with a margin, and its degraded middle."""
    rng = np.random.default_rng([7, number])
    face, recipe = faces[int(rng.integers(len(faces)))].gt, SINGLE_AND_MIXED.draw(rng)
    whole = SIDE + 2 * MARGIN
    if (short := whole - min(face.shape[-2:])) > 0:
        face = torch.nn.functional.pad(face[None], (short,) * 4, mode="replicate")[0]
    top, left = (int(rng.integers(side - whole + 1)) for side in face.shape[-2:])
    tile = face[:, top : top + whole, left : left + whole]
    return recipe, tile, inner(recipe.apply(tile).mul(255).round().div(255))


def measured(
    faces: Sequence[ProbeFace], count: int, kept: Path | None, names: Sequence[str]
) -> list[dict[str, list[float]]]:
    """What each likelihood says of each draw; `kept` holds what is done."""
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept and kept.is_file() else []
    for number in tqdm(range(len(rows), count), desc="draws", unit="draw"):
        recipe, tile, degraded = draw(faces, number)
        found = {name: told(Steps.of(recipe), tile, degraded, *KNOWN[name]) for name in names}
        rows.append(found)
        if kept:
            with kept.open("a") as file:
                file.write(json.dumps(found) + "\n")
    return rows[:count]


def summary(faces: Sequence[ProbeFace], rows: list[dict[str, list[float]]], readout: Readout) -> dict[str, Any]:
    """R squared of blur and scale by what is known, with bootstrap intervals over draws; the heads' on the same."""
    drawn = [draw(faces, number) for number in range(len(rows))]
    true = np.array([list(factors(recipe).values()) for recipe, _, _ in drawn])
    heads = np.array([[read.value for read in readout(inner(tile), face).values()] for _, tile, face in drawn])
    rng = np.random.default_rng(0)
    chosen = [rng.integers(len(rows), size=len(rows)) for _ in range(1000)]

    def spread(estimate: np.ndarray) -> list[list[float]]:
        again = np.array([r_squared(estimate[some], true[some]) for some in chosen])
        return [[r_squared(estimate, true)[n], *np.quantile(again[:, n], (0.025, 0.975)).tolist()] for n in (0, 3)]

    found: dict[str, Any] = {"draws": len(rows), "heads": spread(heads)}
    for name in rows[0]:
        estimate = true.copy()
        estimate[:, [0, 3]] = np.array([row[name] for row in rows])
        values = spread(np.nan_to_num(estimate, nan=1.0))
        found[name] = [value if candidates else None for value, candidates in zip(values, KNOWN[name], strict=True)]
    if list(rows[0]) == ["all but the scale"]:
        found["scale"] = scale_errors(true, heads[:, 3], np.array([row["all but the scale"][1] for row in rows]))
    return found


def scale_errors(true: np.ndarray, heads: np.ndarray, likelihood: np.ndarray) -> dict[str, list[float]]:
    """Of the scale in parts of the draws: their number, and the rms error (log 2) of heads and likelihood."""
    blur, noise, quality, scale = true.T
    small, wide, coarse = scale < 1, blur >= 1.5, quality < 40
    parts = {
        "full size": ~small,
        "a smaller size": small,
        "a smaller size, blur from 1.5": small & wide,
        "a smaller size, blur from 1.5, noise below 2": small & wide & (noise < 2),
        "a smaller size, JPEG below 40": small & coarse,
        "a smaller size, neither": small & ~wide & ~coarse,
    }
    errors = [np.log2(estimate / scale) for estimate in (heads, likelihood)]
    rms = [[float(np.sqrt(np.square(e[part]).mean())) for e in errors] for part in parts.values()]
    return {title: [int(part.sum()), *two] for (title, part), two in zip(parts.items(), rms, strict=True)}


def main() -> None:
    """Draw, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=120)
    parser.add_argument("--heads", type=Path, default=ENCODER.with_name("readout.safetensors"))
    parser.add_argument("--rows", type=Path, help="keep every draw here, and go on from it")
    parser.add_argument("--only", choices=list(KNOWN), help="of the three that are asked")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = [options.only] if options.only else list(KNOWN)
    readout, faces = Readout(FaDeX.from_file(ENCODER), options.heads), asked_faces()
    found = summary(faces, measured(faces, options.draws, options.rows, names), readout)
    print(json.dumps(found, indent=2))
    if options.json:
        write_json(options.json, found)


if __name__ == "__main__":
    main()
