"""What of a degradation can be read off a frozen FaDeX: which features and heads hold blur, noise, JPEG and scale.

    python benchmarks/readout.py [--quick] [--cache FOLDER] [--json FILE] [--page FOLDER] [--save FILE] [--steps 130]
        [--identifiable FILE ...]

Heads are fitted on the faces that the encoder was trained on (80 generated people, 28 real faces), with new operators,
and asked on photos of people it has never seen. Two spaces: `single and mixed` (below; half of its draws are one
degradation alone) and `wide` (configs/degradation/fadex.yaml, the encoder's training). A third, EXTREMES, is fitted and
not asked. Stage I is the ground truth or `ref_fr=mixed` in fitting, and each of four in asking. `--cache` keeps the
draws, which take most of the time; `--save` writes the heads that come out as readout.safetensors; `--identifiable` is
what identifiable.py wrote. Before it: face2scene fetch facegen yunet photos_face_api
photos_face_recognition photos_unsplash_people photos_argon photos_argon_free photos_uikit.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from people import FILES, find_faces
from torch import Tensor
from tqdm import tqdm

from face2scene.assets import catalogue
from face2scene.cli.rehearse import composed
from face2scene.common.charts import BLUE, GREY, new_figure, save_figure
from face2scene.common.files import atomic_write, read_json, write_json
from face2scene.common.reproducibility import REPOSITORY
from face2scene.data.generators.base import GenerationRequest
from face2scene.data.generators.facegen import FaceGenerator
from face2scene.degradation import Mixture, Recipe, Space
from face2scene.eval.probe.faces import ProbeFace, cut
from face2scene.eval.tables.render import plain_markdown
from face2scene.image_io.arrays import resize, to_tensor
from face2scene.models.fadex import FaDeX
from face2scene.models.fadex.factor_heads import COVERAGE, FactorHeads, layer_statistics, scaled, unscaled
from face2scene.models.fadex.linear_readout import FACTORS, factors
from face2scene.models.fadex.pair_statistics import pair_statistics

ENCODER = REPOSITORY / "checkpoints/fadex/fadex.safetensors"
CROPS = (48, 64, 96, 128, 160)  # pixels
MARGIN = 32  # degraded too, then removed
BATCH = 8  # draws of one crop's size
GT_SHARE = 0.3  # of the fitted pairs have the ground truth in Stage I's place, as in the encoder's training
ASKED = ("ground_truth", "perturbed", "perturbed_medium", "copy")
GOAL = 0.8  # R squared of every factor

_OFF = {
    "scale": 1,
    "no_degradation_prob": 0.0,
    "antialias": True,
    "sinc_prob": 0.0,
    "sinc_prob2": 0.0,
    "kernel_probs": {"iso": 0.6, "aniso": 0.4},  # families whose sigma is their width
    "blur_prob": 0.0,
    "blur_prob2": 0.0,
    "resize_probs": (0, 0, 1),
    "resize_probs2": (0, 0, 1),
    "noise_prob": 0.0,
    "noise_prob2": 0.0,
    "jpeg_prob": 0.0,
    "jpeg_prob2": 0.0,
    "final_sinc_prob": 0.0,
    "kernel_sizes": (7, 21),
    "blur_sigma": (0.2, 4.0),
    "resize_range": (0.25, 1.0),
    "gaussian_sigma": (1, 30),
    "poisson_scale": (0.05, 3.0),
    "jpeg_quality2": (10, 100),
}
_MIXED = {"no_degradation_prob": 0.02, "blur_prob": 0.7, "noise_prob": 0.7, "jpeg_prob2": 0.7}
SINGLE_AND_MIXED = Mixture(
    {
        "blur": Space(**_OFF | {"blur_prob": 1}),
        "noise": Space(**_OFF | {"noise_prob": 1}),
        "jpeg": Space(**_OFF | {"jpeg_prob2": 1}),
        "scale": Space(**_OFF | {"resize_probs": (0, 1, 0)}),
        "mixed": Space(**_OFF | _MIXED | {"resize_probs": (0, 0.6, 0.4)}),
    },
    {"blur": 0.125, "noise": 0.125, "jpeg": 0.125, "scale": 0.125, "mixed": 0.5},
)
# Fitted on and never asked: beyond the ends of the other, so that an estimate there is not drawn to the middle.
_FAR = {"blur_sigma": (0.2, 5.0), "gaussian_sigma": (1, 60), "poisson_scale": (0.05, 4.0), "jpeg_quality2": (5, 100)}
EXTREMES = Mixture(
    {
        "blur": Space(**_OFF | _FAR | {"blur_prob": 1}),
        "noise": Space(**_OFF | _FAR | {"noise_prob": 1}),
        "jpeg": Space(**_OFF | _FAR | {"jpeg_prob2": 1}),
        "scale": Space(**_OFF | _FAR | {"resize_probs": (0, 1, 0), "resize_range": (0.2, 1.0)}),
        "mixed": Space(**_OFF | _FAR | _MIXED | {"resize_probs": (0, 0.6, 0.4), "resize_range": (0.2, 1.0)}),
    },
    {"blur": 0.15, "noise": 0.25, "jpeg": 0.2, "scale": 0.15, "mixed": 0.25},
)
REDUCED = 0.6  # share of the faces of EXTREMES that are reduced, down to a third: sharper, as faces of small photos are


def option(group: str, name: str) -> Any:
    """An option of a config group, built."""
    cfg = composed([f"{group}={name}"])["train_fadex"][group]
    return instantiate(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)), _convert_="all")


def drawn_faces(numbers: range) -> list[ProbeFace]:
    """Generated people, as configs/data/fadex.yaml numbers them: up to 20239 the encoder's own, from 20240 not."""
    generator = FaceGenerator(threads=1)
    found = []
    for number in numbers:
        image = resize(to_tensor(generator.draw(GenerationRequest(number, 0))), (512, 512))
        found.append(cut(image, (128.0, 128.0, 384.0, 409.6), f"g{number}", f"g{number}", 256, MARGIN))
    return found


def fitted_faces() -> list[ProbeFace]:
    """Faces of the encoder's training: generated ones, and real ones twice."""
    unsplash = catalogue.folder("photos_unsplash_people")
    emily = [str(p.relative_to(unsplash)) for p in sorted(unsplash.glob("references/emily*/*"))]
    real = find_faces("photos_face_api", [f"sample{n}.jpg" for n in range(1, 7)], crop=256, margin=MARGIN)
    real += find_faces("photos_unsplash_people", emily, crop=256, margin=MARGIN)
    real += find_faces("photos_face_recognition", ["biden.jpg"], crop=256, margin=MARGIN)
    return drawn_faces(range(20000, 20080)) + real + real


def asked_faces() -> list[ProbeFace]:
    """26 real faces of seventeen people whom the encoder was not trained on."""
    unsplash = catalogue.folder("photos_unsplash_people")
    people = [p for who in ("jessica", "tara") for p in sorted(unsplash.glob(f"references/{who}*/*"))]
    obama = ["obama.jpg", "obama2.jpg", "obama3.jpg"]
    found = find_faces("photos_face_recognition", obama, crop=256, margin=MARGIN)
    found += find_faces(
        "photos_unsplash_people", [str(p.relative_to(unsplash)) for p in people], crop=256, margin=MARGIN
    )
    others = {asset: files for asset, files in FILES.items() if asset != "photos_face_recognition"}
    return found + [f for a, files in others.items() for f in find_faces(a, files, crop=256, margin=MARGIN)]


class Mostly:
    """`ref_fr=mixed`, and the ground truth for a share of the faces."""

    def __init__(self) -> None:
        self.mixed = option("ref_fr", "mixed")

    def restore(self, degraded: Tensor, references: Sequence[Path], *, gt: Tensor, rng: np.random.Generator) -> Tensor:
        return gt if rng.random() < GT_SHARE else self.mixed.restore(degraded, references, gt=gt, rng=rng)


Draws = dict[str, np.ndarray]


def draws(
    encoder: FaDeX, faces: Sequence[ProbeFace], space: Any, stages: dict[str, Any], count: int, seed: int
) -> Draws:
    """Statistics and embeddings for each Stage I, and the factors (N, 4), of `count` operators on random crops."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list[np.ndarray]] = {"factors": []}
    for _ in tqdm(range(count // BATCH), desc="operators", unit="batch"):
        crop = int(rng.choice(CROPS))
        for _ in range(BATCH):
            face = faces[int(rng.integers(len(faces)))]
            recipe = space.draw(rng)
            across, down = face.inner[1], face.inner[0]
            side = min(crop, down.stop - down.start, *face.gt.shape[-2:])
            y = int(rng.integers(down.start, down.stop - side + 1))
            x = int(rng.integers(across.start, across.stop - side + 1))
            top, left = max(y - MARGIN, 0), max(x - MARGIN, 0)
            tile = recipe.apply(face.gt[:, top : y + side + MARGIN, left : x + side + MARGIN]).mul(255).round().div(255)
            degraded = tile[:, y - top : y - top + side, x - left : x - left + side]
            gt = face.gt[:, y : y + side, x : x + side]
            rows["factors"].append(np.array([factors(recipe)[name] for name in FACTORS]))
            rows.setdefault("earlier noise", []).append(np.array(earlier_noise(recipe)))
            for name, stage in stages.items():
                pair = stage.restore(degraded, (), gt=gt, rng=rng)[None], degraded[None]
                rows.setdefault(f"statistics {name}", []).append(layer_statistics(encoder, *pair)[0].numpy())
                rows.setdefault(f"pair {name}", []).append(pair_statistics(*pair)[0].numpy())
                rows.setdefault(f"embedding {name}", []).append(encoder.embed(encoder(*pair))[0].detach().numpy())
                rows.setdefault(f"crop {name}", []).append(middle(pair[0][0]))
            rows.setdefault("crop degraded", []).append(middle(degraded))
    return {
        name: np.stack(parts) if name.startswith("crop") else np.stack(parts).astype(np.float32)
        for name, parts in rows.items()
    }


def earlier_noise(recipe: Recipe) -> float:
    """The noise's target as it was: on one grey level alone, where shot noise counts one photon for white."""
    return float(recipe.apply(torch.full((3, 128, 128), 0.5)).std((-2, -1)).mean()) * 255


def more_draws(
    encoder: FaDeX, faces: Sequence[ProbeFace], space: Any, count: int, seed: int, *, reduced: float = 0.0
) -> Draws:
    """Factors (N, 4), `statistics mixed` and `pair mixed` of `count` operators; a share of the faces is reduced."""
    rng, stage = np.random.default_rng(seed), Mostly()
    rows: dict[str, list[np.ndarray]] = {"factors": [], "statistics mixed": [], "pair mixed": []}
    for _ in range(count):
        face = faces[int(rng.integers(len(faces)))].gt
        if rng.random() < reduced:
            share = max(rng.uniform(1 / 3, 1), CROPS[0] / min(face.shape[-2:]))
            face = resize(face, (round(face.shape[-2] * share), round(face.shape[-1] * share))).clamp(0, 1)
        side = min(int(rng.choice(CROPS)), *face.shape[-2:])
        y, x = (int(rng.integers(length - side + 1)) for length in face.shape[-2:])
        top, left = max(y - MARGIN, 0), max(x - MARGIN, 0)
        recipe = space.draw(rng)
        tile = recipe.apply(face[:, top : y + side + MARGIN, left : x + side + MARGIN]).mul(255).round().div(255)
        degraded = tile[:, y - top : y - top + side, x - left : x - left + side]
        pair = stage.restore(degraded, (), gt=face[:, y : y + side, x : x + side], rng=rng)[None], degraded[None]
        rows["factors"].append(np.array([factors(recipe)[name] for name in FACTORS]))
        rows["statistics mixed"].append(layer_statistics(encoder, *pair)[0].numpy())
        rows["pair mixed"].append(pair_statistics(*pair)[0].numpy())
    return {name: np.stack(parts).astype(np.float32) for name, parts in rows.items()}


def middle(image: Tensor) -> np.ndarray:
    """The middle of a crop, (3, 48, 48) in bytes."""
    top, left = ((side - CROPS[0]) // 2 for side in image.shape[-2:])
    return image[:, top : top + CROPS[0], left : left + CROPS[0]].mul(255).round().byte().numpy()


def kept(cache: Path | None, name: str, make: Callable[[], Draws]) -> Draws:
    """The draws of a file of the cache, made where it is not there."""
    file = cache / f"{name}.npz" if cache else None
    if file is not None and file.is_file():
        return dict(np.load(file, allow_pickle=False))
    made = make()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **made)
    return made


def joined(parts: Sequence[Draws]) -> Draws:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def r_squared(estimate: np.ndarray, values: np.ndarray) -> list[float]:
    """Of each factor in its own unit, the scale as its logarithm to base 2."""
    estimate, values = (np.column_stack([a[:, :3], np.log2(a[:, 3])]) for a in (estimate, values))
    residual = np.square(estimate - values).sum(0)
    return [float(v) for v in 1 - residual / np.square(values - values.mean(0)).sum(0)]


def ridge(x: np.ndarray, y: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Linear estimates of y (N, K) at `asked`; each column's ridge is the best on the last fifth."""
    mean, scale = x.mean(0), x.std(0) + 1e-6
    x, asked = (x - mean) / scale, (asked - mean) / scale
    fitted = len(x) * 4 // 5

    def slopes(rows: int, strength: float) -> np.ndarray:
        part, target = x[:rows], y[:rows] - y[:rows].mean(0)
        return np.linalg.solve(part.T @ part + strength * rows * np.eye(x.shape[1]), part.T @ target)

    strengths = 10.0 ** np.arange(-5, 3)
    errors = [np.square(x[fitted:] @ slopes(fitted, s) + y[:fitted].mean(0) - y[fitted:]).mean(0) for s in strengths]
    best = np.argmin(errors, axis=0)
    return np.stack([asked @ slopes(len(x), strengths[b])[:, k] + y[:, k].mean() for k, b in enumerate(best)], 1)


def fitted_heads(
    fitted: tuple[np.ndarray, np.ndarray],
    calibrate: tuple[np.ndarray, np.ndarray],
    *,
    epochs: int = 60,
    hidden: Sequence[int] = (256, 128),
    seed: int = 0,
) -> FactorHeads:
    """Heads with intervals, by Gaussian likelihood weighted by the width (Seitzer et al. 2022), then conformal.

    The errors of `calibrate`, which is of other faces, over their estimated widths give `reach`, the quantile by which
    `COVERAGE` of them lie in their interval (Romano et al. 2019, normalised).

    Args:
        fitted, calibrate: features (N, S) and factors (N, 4).
    """
    x, values = fitted
    torch.manual_seed(seed)
    heads = FactorHeads(x.shape[1], hidden)
    rows, target = torch.from_numpy(x).float(), scaled(torch.from_numpy(values).float())
    count = len(rows)
    heads.mean.copy_(rows.mean(0))
    heads.scale.copy_(rows.std(0).clamp_min(1e-6))
    mean, scale = target.mean(0), target.std(0)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (count // 128))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs * (count // 128)):
        chosen = torch.randint(count, (128,), generator=generator)
        centres, widths = heads.predict(rows[chosen])
        error = (centres - (target[chosen] - mean) / scale).square()
        likelihood = error / widths.square() / 2 + widths.log()
        optimizer.zero_grad()
        (likelihood * widths.detach()).mean().backward()
        optimizer.step()
        schedule.step()
    heads.eval().requires_grad_(False)
    last = heads.net[-1]  # the targets' standardisation moves into it
    last.weight.mul_(torch.cat([scale, torch.ones(4)])[:, None])
    last.bias.copy_(torch.cat([last.bias[:4] * scale + mean, last.bias[4:] + scale.log()]))
    other_rows, other = torch.from_numpy(calibrate[0]).float(), scaled(torch.from_numpy(calibrate[1]).float())
    centres, widths = heads.predict(other_rows)
    left = (centres - other).abs() / widths
    level = min(1.0, COVERAGE * (1 + 1 / len(left)))
    heads.reach.copy_(left.quantile(level, dim=0))
    return heads


def both(draws: Draws, stage: str) -> np.ndarray:
    """What the heads read of pairs with a Stage I: (N, S) statistics of the layers and of the pair."""
    return np.concatenate([draws[f"statistics {stage}"], draws[f"pair {stage}"]], 1)


def kept_heads(cache: Path | None, name: str, stage: str, fitted: Draws, calibrate: Draws) -> FactorHeads:
    """`fitted_heads` on pairs of a Stage I; of the cache where they are there."""
    file = cache / f"heads_{name}.safetensors" if cache else None
    if file is not None and file.is_file():
        return FactorHeads.from_file(file)
    heads = fitted_heads(*((both(part, stage), part["factors"]) for part in (fitted, calibrate)))
    if file is not None:
        heads.save(file)
    return heads


def told_others(fitted: Draws, calibrate: Draws, other: Draws) -> list[float]:
    """R squared of each factor by heads that are told the true values of the other three besides."""
    found = []
    for n in range(len(FACTORS)):
        parts = []
        for part, stage in ((fitted, "mixed"), (calibrate, "mixed"), (other, "ground_truth")):
            others = np.delete(scaled(torch.from_numpy(part["factors"])).numpy(), n, 1)
            parts.append((np.concatenate([both(part, stage), others], 1), part["factors"]))
        found.append(asked(fitted_heads(*parts[:2], epochs=30), *parts[2])["r_squared"][n])
    return found


def asked(heads: FactorHeads, statistics: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """R squared in plain units and on the scale of `scaled`, coverage of the intervals and their median width."""
    target = scaled(torch.from_numpy(values).float())
    centres, widths = heads.predict(torch.from_numpy(statistics).float())
    half = heads.reach * widths
    inside = ((centres - target).abs() <= half).float().mean(0)
    low, high = unscaled(centres - half), unscaled(centres + half)
    spread = (centres - target).square().sum(0) / (target - target.mean(0)).square().sum(0)
    return {
        "r_squared": r_squared(unscaled(centres).numpy(), values),
        "r_squared_scaled": (1 - spread).tolist(),
        "coverage": inside.tolist(),
        "width": (high - low).median(0).values.tolist(),
    }


def trained_encoder(
    kind: str, fitted: Draws, *, steps: int, batch: int = 24, seed: int = 0
) -> tuple[FaDeX, FactorHeads]:
    """An encoder of `fadex=shipped`'s shape and heads on its layers, trained together from the start on the factors.

    Args:
        kind: of the encoder's inputs, `pair` or `lq_only`.
    """
    torch.manual_seed(seed)
    shape = FaDeX.from_file(ENCODER).config | {"inputs": kind}
    encoder = FaDeX(**shape).train()
    heads = FactorHeads(2 * sum(shape["widths"]), (128,))
    restored, degraded = (torch.from_numpy(fitted[f"crop {name}"]) for name in ("mixed", "degraded"))
    target = scaled(torch.from_numpy(fitted["factors"]).float())
    mean, scale = target.mean(0), target.std(0)
    optimizer = torch.optim.AdamW([*encoder.body.parameters(), *heads.parameters()], lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    generator = torch.Generator().manual_seed(seed)
    for step in tqdm(range(steps), desc=kind, unit="step"):
        chosen = torch.randint(len(target), (batch,), generator=generator)
        pair = (part[chosen].float() / 255 for part in (restored, degraded))
        statistics = layer_statistics.__wrapped__(encoder, *pair)
        if step == 0:
            heads.mean.copy_(statistics.detach().mean(0))
            heads.scale.copy_(statistics.detach().std(0).clamp_min(0.05))
        centres, _ = heads.predict(statistics)
        loss = torch.nn.functional.smooth_l1_loss(centres, (target[chosen] - mean) / scale, beta=0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    last = heads.net[-1]
    with torch.no_grad():
        last.weight[:4].mul_(scale[:, None])
        last.bias[:4] = last.bias[:4] * scale + mean
    return encoder.eval().requires_grad_(False), heads.eval().requires_grad_(False)


def asked_encoder(encoder: FaDeX, heads: FactorHeads, draws: Draws, stage: str) -> dict[str, Any]:
    """R squared of `trained_encoder` on the middles of other draws' crops."""
    rows = []
    for n in range(0, len(draws["factors"]), 64):
        pair = (torch.from_numpy(draws[f"crop {name}"][n : n + 64]).float() / 255 for name in (stage, "degraded"))
        rows.append(layer_statistics(encoder, *pair))
    found = asked(heads, torch.cat(rows).numpy(), draws["factors"])
    return {name: found[name] for name in ("r_squared", "r_squared_scaled")}


SPACES = ("single and mixed", "wide")
COUNTS = {"fit": 2000, "asked": 640}
HELD = 4  # every fourth face sets the intervals' width and is not fitted on
PART = 500  # draws, of each file of the cache
MORE = {  # parts that the heads are fitted on, and those of the other faces that set the intervals' width
    "fit": {"single and mixed": 10, "wide": 4, "extremes": 3},
    "calibrate": {"single and mixed": 2, "wide": 1},
}


def further(encoder: FaDeX, cache: Path | None, quick: bool) -> dict[str, Draws]:
    """The draws of `MORE`, by their use."""
    found: dict[str, list[Draws]] = {}
    faces: list[ProbeFace] = []
    spaces: dict[str, Any] = {SPACES[0]: SINGLE_AND_MIXED, "extremes": EXTREMES}
    spaces[SPACES[1]] = option("degradation", "fadex")
    number = 0
    for use, parts in MORE.items():
        for space, count in parts.items():
            for part in range(1 if quick else count):
                number += 1

                def make(use: str = use, space: str = space, seed: int = 1000 + number) -> Draws:
                    if not faces:
                        faces.extend(fitted_faces())
                    chosen = [face for n, face in enumerate(faces) if (n % HELD == 0) == (use == "calibrate")]
                    reduced = REDUCED if space == "extremes" else 0.0
                    return more_draws(encoder, chosen, spaces[space], 40 if quick else PART, seed, reduced=reduced)

                name = f"{use}_{space.replace(' ', '_')}_{part}{'_quick' * quick}"
                found.setdefault(use, []).append(kept(cache, name, make))
    return {use: joined(parts) for use, parts in found.items()}


def all_draws(encoder: FaDeX, cache: Path | None, quick: bool) -> dict[tuple[str, str], Draws]:
    """The draws to fit on and to ask, by (fit or asked, space)."""
    found: dict[tuple[str, str], Draws] = {}
    faces: dict[str, list[ProbeFace]] = {}
    for number, space in enumerate(SPACES):
        for kind in ("fit", "asked"):

            def make(kind: str = kind, space: str = space, seed: int = 2 * number + 1 + (kind == "asked")) -> Draws:
                if kind not in faces:
                    faces[kind] = fitted_faces() if kind == "fit" else asked_faces()
                drawn = SINGLE_AND_MIXED if space == SPACES[0] else option("degradation", "fadex")
                stages = {"mixed": Mostly(), "copy": option("ref_fr", "copy")}
                if kind == "asked":
                    stages = {name: option("ref_fr", name) for name in ASKED}
                return draws(encoder, faces[kind], drawn, stages, 80 if quick else COUNTS[kind], seed)

            found[kind, space] = kept(cache, f"{kind}_{space.replace(' ', '_')}{'_quick' * quick}", make)
    return found


def compared(fitted: Draws, other: Draws) -> list[list[str]]:
    """R squared of features and heads, asked with the ground truth in Stage I's place."""
    values, wanted = fitted["factors"], other["factors"]
    plain = np.column_stack([values[:, :3], np.log2(values[:, 3])])
    rows = []
    titles = {
        "embedding": "embedding",
        "statistics": "all layers",
        "pair": "the pair itself",
        "both": "layers and pair",
    }
    for name, title in titles.items():
        if name == "both":
            x, asked_x = both(fitted, "mixed"), both(other, "ground_truth")
        else:
            x, asked_x = fitted[f"{name} mixed"], other[f"{name} ground_truth"]
        if name == "embedding":
            before = np.column_stack([fitted["earlier noise"], fitted["earlier noise"]])
            noise = ridge(x, before, asked_x)[:, 0]
            residual = np.square(noise - other["earlier noise"]).sum()
            lost = 1 - residual / np.square(other["earlier noise"] - other["earlier noise"].mean()).sum()
            rows.append([title, "linear, the target before", "", f"{lost:.2f}", "", ""])
        linear = ridge(x, plain, asked_x)
        rows.append([title, "linear", *_two(r_squared(np.column_stack([linear[:, :3], 2 ** linear[:, 3]]), wanted))])
        target = scaled(torch.from_numpy(values)).numpy()
        curved = unscaled(torch.from_numpy(ridge(x, target, asked_x))).numpy()
        rows.append([title, "linear in logarithms", *_two(r_squared(curved, wanted))])
    return rows


def _two(values: Sequence[float]) -> list[str]:
    return [f"{value:.2f}" for value in values]


def answers(heads: FactorHeads, asked_draws: dict[str, Draws]) -> dict[str, Any]:
    """`asked` for every space and Stage I."""
    return {
        f"{space}, {stage}": asked(heads, both(found, stage), found["factors"])
        for space, found in asked_draws.items()
        for stage in ASKED
    }


def drawn_figure(heads: FactorHeads, found: Draws, stage: str) -> Any:
    """True and estimated values of each factor, with the intervals of every eighth draw."""
    centres, widths = heads.predict(torch.from_numpy(both(found, stage)))
    half = heads.reach * widths
    value, low, high = (unscaled(part).numpy() for part in (centres, centres - half, centres + half))
    figure = new_figure(13, 3.4)
    for number, (name, (unit, _, _)) in enumerate(FACTORS.items()):
        axes = figure.add_subplot(1, 4, number + 1)
        true, shown = found["factors"][:, number], slice(None, None, 8)
        axes.plot(true, value[:, number], ".", color=BLUE, markersize=2.5)
        errors = np.abs(np.stack([low[shown, number], high[shown, number]]) - value[shown, number])
        axes.errorbar(true[shown], value[shown, number], errors, fmt="none", ecolor=GREY, elinewidth=0.6)
        axes.plot([true.min(), true.max()], [true.min(), true.max()], color="black", linewidth=0.6)
        axes.set_title(f"{name.replace('_', ' ')}, {unit.partition(':')[0].partition(',')[0]}", fontsize=8, loc="left")
        axes.set_xlabel("true", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


PAGE = """# What a face pair holds of a degradation

`python benchmarks/readout.py --identifiable docs/identifiable*.json --json docs/readout.json --page docs --save
checkpoints/fadex/readout.safetensors` makes this page and the heads that ship, in hours; `--quick --page FOLDER` makes
one of few draws in minutes, whose heads are worth nothing.

`single and mixed`: an eighth of the draws each are a blur (sigma 0.2 to 4), noise (Gaussian 1 to 30, or shot noise), a
JPEG (10 to 100) or a smaller size (0.25 to 1) alone, the others mixtures in the order blur, smaller size, noise, full
size, JPEG. `wide` is what the encoder was trained on, with two stages. {asked} operators of each are asked on 26 photos
of people whom the encoder does not know, in crops of 48 to 160 pixels. R squared in plain units (scale: log 2); stage I
is the ground truth.

## The heads that ship

{heads}

{goal} R squared in brackets is that of log(1 + value). Coverage is the share of draws inside their 90 % interval,
width the interval's median. The heads were fitted on {fit} operators and three quarters of 108 faces that the encoder
knows; {held} operators on the other quarter set the width of the intervals. Stage I was `ref_fr=mixed` and, for three
tenths, the ground truth. {far} of the operators go beyond the ends of the space that is asked (`EXTREMES`), on faces of
more sizes.

The mean error where a factor is alone, of the mean value:

{alone}

![True and read values with intervals](images/readout.png)

## Which features hold what

With {drawn} operators of each space, on the same faces:

{before}

{why}

## What could be read at all

{ceiling}

Where the heads that ship lose them, in the asked draws of `single and mixed`:

{parts}

A smaller size takes away frequencies which a wide blur before it has taken already, and only the noise at that size
then shows it: without a blur the scale is read well, and behind a blur of 1.5 pixels without noise hardly.

## Does the pair pay?

{pay}

{paid}"""


def goal(values: Sequence[float]) -> str:
    """Which factors are read as well as was aimed at."""
    reached = [name for name, value in zip(FACTORS, values, strict=True) if value >= GOAL]
    missed = [f"{name} {value:.2f}" for name, value in zip(FACTORS, values, strict=True) if value < GOAL]
    told = f"reached by {', '.join(reached) or 'none'}; missed by {', '.join(missed) or 'none'}"
    return f"The goal was {GOAL} each in `{SPACES[0]}`: {told}."


def alone_table(heads: FactorHeads, single: Draws) -> str:
    """Mean error of each factor where it is alone, on people whom no fit has seen."""
    rows = []
    for stage in ("ground_truth", "perturbed"):
        values = single["factors"]
        told = unscaled(heads.predict(torch.from_numpy(both(single, stage)))[0]).numpy()
        blur, noise, quality, scale = values.T
        there = np.stack([blur > 0, noise > 1, quality < 100, scale < 1])
        cells = []
        for n in range(4):
            only = there[n] & (np.delete(there, n, 0).sum(0) == 0)
            error = told[only, n] - values[only, n]
            cells.append(f"{error.mean():+.2f} of {values[only, n].mean():.3g}")
        rows.append([stage.replace("_", " "), *cells])
    return plain_markdown(["Stage I", *FACTORS], rows)


def parts_table(heads: FactorHeads, single: Draws) -> str:
    """How well blur and scale are read where the other is there or not: R squared and mean error (scale: log 2)."""
    values = single["factors"]
    told = unscaled(heads.predict(torch.from_numpy(both(single, "ground_truth")))[0]).numpy()
    blur, noise, _, scale = values.T
    rows = []
    for title, chosen in (
        ("no blur", blur == 0),
        ("blur below 1.5", (blur > 0) & (blur < 1.5)),
        ("blur from 1.5", blur >= 1.5),
        ("blur from 1.5, noise below 2", (blur >= 1.5) & (noise < 2)),
        ("full size", scale == 1),
        ("a smaller size", scale < 1),
        ("below half the size", scale < 0.5),
    ):
        found = r_squared(told[chosen], values[chosen])
        error = np.abs(told[chosen, 0] - blur[chosen]).mean(), np.abs(np.log2(told[chosen, 3] / scale[chosen])).mean()
        constant = [np.ptp(part[chosen]) == 0 for part in (blur, scale)]
        cells = ["" if c else f"{found[n]:.2f}" for c, n in zip(constant, (0, 3), strict=True)]
        rows.append([title, str(int(chosen.sum())), cells[0], f"{error[0]:.2f}", cells[1], f"{error[1]:.2f}"])
    return plain_markdown(["draws", "number", "blur: R²", "mean error", "scale: R²", "mean error"], rows)


def ceiling(heads: Sequence[float], told: Sequence[float], files: Sequence[Path]) -> str:
    """What keeps R squared below 1: the other factors, or the statistics that are read."""
    rows = [["the heads that ship", *_two(heads)], ["the same features, and the other three factors", *_two(told)]]
    text = f"{plain_markdown(['what is known', *FACTORS], rows)}\n{CEILING}"
    for found in map(read_json, files):
        names = [n for n in ("heads", "all but both", "all but the blur", "all but the scale") if n in found]
        lines = [[n, *("" if v is None else "{:.2f} [{:.2f}, {:.2f}]".format(*v) for v in found[n])] for n in names]
        if "scale" not in found:
            table = plain_markdown(["known", "blur", "scale"], lines)
            text += f"\n\n{LIKELIHOOD.format(draws=found['draws'])}\n\n{table}"
            continue
        rows = [
            [title, str(count), *(f"{e:.2f}" for e in errors)] for title, (count, *errors) in found["scale"].items()
        ]
        table = plain_markdown(["draws", "number", "heads", "all but the scale known"], rows)
        values = {"draws": found["draws"], "heads": lines[0][2], "likelihood": lines[1][2]}
        text += f"\n\n{SCALE.format(**values)}\n\n{table}\n{TRIED}"
    return text


def heads_table(found: dict[str, Any]) -> str:
    rows = []
    for name, entry in found.items():
        space, stage = name.rsplit(", ", 1)
        cells = []
        for n in range(4):
            more = f" ({entry['r_squared_scaled'][n]:.2f})" if n < 2 else ""
            cells.append(f"{entry['r_squared'][n]:.2f}{more}; {entry['coverage'][n]:.0%}; {entry['width'][n]:.2g}")
        rows.append([space, stage.replace("_", " "), *cells])
    return plain_markdown(["space", "Stage I", *(f"{n}: R², coverage, width" for n in FACTORS)], rows)


def pay_table(found: dict[str, Any]) -> str:
    """R squared by encoder, Stage I and heads."""
    rows = [[*name.split(", "), *_two(values)] for name, values in found.items()]
    return plain_markdown(["encoder", "Stage I", "heads", *FACTORS], rows)


def main() -> None:
    """Draw, fit, ask, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="80 draws in place of 2,000 and 640")
    parser.add_argument("--cache", type=Path, help="keep the draws here, and take those that are there")
    parser.add_argument("--steps", type=int, default=130, help="of encoders trained from the start; 0: none")
    parser.add_argument("--trained", type=Path, help="keep the figures of these encoders here, and take those there")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="write readout.md and images/readout.png here")
    parser.add_argument("--save", type=Path, help="write the heads here")
    parser.add_argument(
        "--identifiable", type=Path, nargs="+", default=[], help="what identifiable.py wrote, for the page"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    encoder = FaDeX.from_file(ENCODER)
    every, more = all_draws(encoder, options.cache, options.quick), further(encoder, options.cache, options.quick)
    fitted = joined([_small(every["fit", space]) for space in SPACES])
    order = np.random.default_rng(0).permutation(len(fitted["factors"]))
    few = [{name: part[chosen] for name, part in fitted.items()} for chosen in np.split(order, [len(order) * 3 // 4])]
    other = {space: every["asked", space] for space in SPACES}
    single = other[SPACES[0]]

    heads = kept_heads(options.cache, "mixed", "mixed", more["fit"], more["calibrate"])
    alike = {stage: kept_heads(options.cache, f"few_{stage}", stage, *few) for stage in ("mixed", "copy")}
    if options.save:
        heads.save(options.save, about={"weights": ENCODER.name, "draws": len(more["fit"]["factors"])})
    read = answers(heads, other)
    before = {space: compared(_small(every["fit", space]), found) for space, found in other.items()}
    told = told_others(more["fit"], more["calibrate"], single)
    pay = {
        f"shipped, {title}, {which}": asked(fit, both(single, stage), single["factors"])["r_squared"]
        for title, stage, which, fit in (
            ("ground truth", "ground_truth", "that ship", heads),
            ("perturbed", "perturbed", "that ship", heads),
            ("the degraded face", "copy", "that ship", heads),
            ("ground truth", "ground_truth", "fitted on few pairs", alike["mixed"]),
            ("perturbed", "perturbed", "fitted on few pairs", alike["mixed"]),
            ("the degraded face", "copy", "fitted on as many copies", alike["copy"]),
        )
    }
    pay |= from_the_start(every["fit", SPACES[0]], single, options.steps, options.trained)
    text = PAGE.format(
        fit=f"{len(more['fit']['factors']):,}",
        held=f"{len(more['calibrate']['factors']):,}",
        far=f"{40 if options.quick else MORE['fit']['extremes'] * PART:,}",
        drawn=f"{len(every['fit', SPACES[0]]['factors']):,}",
        asked=len(single["factors"]),
        before="\n".join(f"{space}:\n\n{_table(rows)}" for space, rows in before.items()),
        alone=alone_table(heads, single),
        why=WHY,
        heads=heads_table(read),
        goal=goal(read[f"{SPACES[0]}, ground_truth"]["r_squared"]),
        ceiling=ceiling(read[f"{SPACES[0]}, ground_truth"]["r_squared"], told, options.identifiable),
        parts=parts_table(heads, single),
        pay=pay_table(pay),
        paid=PAID.format(few=f"{len(few[0]['factors']):,}")
        + (TRAINED.format(steps=options.steps) if options.steps > 0 else NOT_TRAINED)
        + CONTRAST,
    )
    print(text)
    if options.json:
        write_json(options.json, {"heads": read, "features": before, "pair": pay, "told_others": told})
    if options.page:
        save_figure(drawn_figure(heads, single, "ground_truth"), options.page / "images/readout")
        (options.page / "images/readout.svg").unlink()
        with atomic_write(options.page / "readout.md") as partial:
            partial.write_text(text, encoding="utf-8")


def from_the_start(fitted: Draws, other: Draws, steps: int, kept_at: Path | None) -> dict[str, list[float]]:
    """R squared of the two encoders of `trained_encoder`, by Stage I."""
    found: dict[str, list[float]] = dict(read_json(kept_at)) if kept_at and kept_at.is_file() else {}
    if steps < 1:
        return found
    stages = {"ground truth": "ground_truth", "perturbed": "perturbed", "the degraded face": "copy"}
    for kind, titles in (("pair", list(stages)), ("lq_only", ["the degraded face"])):
        names = {
            title: f"{kind} from the start, {title if kind == 'pair' else 'none'}, trained together" for title in titles
        }
        if not names.keys() or any(name not in found for name in names.values()):
            encoder, heads = trained_encoder(kind, fitted, steps=steps)
            for title, name in names.items():
                found[name] = asked_encoder(encoder, heads, other, stages[title])["r_squared"]
    if kept_at:
        write_json(kept_at, found)
    return found


def _small(draws: Draws) -> Draws:
    return {name: part for name, part in draws.items() if not name.startswith("crop")}


def _table(rows: list[list[str]]) -> str:
    return plain_markdown(["features", "heads", *FACTORS], rows)


WHY = """\
The embedding is made to tell operators apart, and holds the noise: a first target of the noise, measured on one grey
level alone, hid that, since shot noise (Real-ESRGAN's code) counts as many photons as an image has grey levels. What
the layers miss is in the pair: their first convolution has a stride of two and their statistics are means over places,
so that the highest frequencies and the grid of JPEG's blocks are averaged away. `pair_statistics` reads them off the
two images: power spectra, the response between the restored and the degraded face (what a blur and a resize leave of
each frequency, however much noise lies on it), the unevenness of 8-pixel blocks, and the period that an enlarging
leaves (Gallagher 2005). An encoder that is to hold them itself would have to see them before its first stride; that
was not trained."""
CEILING = """\
The second row is fitted like the first with the true values of the other three factors besides: what it gains is lost
to their confusion, since a blur and a smaller size both take away high frequencies, and what follows hides what came
before."""
LIKELIHOOD = """\
`python benchmarks/identifiable.py --json docs/identifiable.json` asks a likelihood on {draws} draws of its own, crops
of 96 pixels. It knows the true face and every step of the recipe but the blur's width or the size on the way, tries
nine of each on the true face, and weighs each by how likely what is left of the degraded face is as noise. It takes
JPEG's rounding for that of the image without noise and its grid is coarse, so that it is no upper bound. In brackets:
95 % bootstrap intervals over draws. The heads that ship, which know nothing of the recipe, read no less of these crops
than it does with all of that, and the likelihood too confuses a blur and a smaller size where it knows neither:"""
SCALE = """\
`python benchmarks/identifiable.py --only "all but the scale" --draws {draws} --json docs/identifiable_scale.json` asks
it for the scale alone, of more draws: R squared {heads} by the heads, which know nothing but the pair, and
{likelihood} by the likelihood, which knows the true face, the blur, the noise and the JPEG. The root
mean square error (log 2):"""
TRIED = """\
Both read a smaller size behind a wide blur without noise worst. The rest is not lost in the scale's unit (it is read
and scored as its logarithm) nor in the heads' form: fitted again on the same draws, R squared of the scale (640 draws,
ground truth) is 0.71 with 8,500 operators by one head and by the mean of four, 0.70 to 0.71 with dropout of 0.3 and
noise on the statistics, by plain squared error, and with mixed rows (Zhang et al. 2018), and 0.68 with dropout of 0.4
and of a fifth of the statistics. More operators help: 0.63 with 2,000, 0.71 with 8,500, 0.74 with 12,500, so that 0.8
would take some 30,000 if the growth goes on."""
PAID = """\
R squared in the space `single and mixed`. `shipped` is the frozen encoder with heads; `few` are {few} operators. Heads
fitted on copies see the degraded face alone, by the layers and by its own spectra: `lq_only`, at a budget at which it
learns. They read every factor worse than heads fitted on as many pairs: the pair pays, most for the blur. Heads of
pairs fail where a pair is two copies."""
TRAINED = """

`from the start` trains encoder and heads together on the factors, with regression and not contrast, {steps} steps
of 24 crops of 48 pixels. It is short: the noise comes first, for both."""
NOT_TRAINED = """

An encoder of the degraded face alone (`lq_only`) was not trained for this page."""
CONTRAST = """

By contrast, as the paper trains it: [contrast.md](contrast.md)."""


if __name__ == "__main__":
    main()
