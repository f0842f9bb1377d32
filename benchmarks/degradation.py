"""Images per second of our degradations against basicsr's functions in S3Diff's order, on one thread.

Both sides get the same recipes, drawn from configs/degradation/paper.yaml, and the same batches of four 512
x 512 images; both run in this process, in turns, and processor time counts, so that other load on the machine matters
little. The other side is Real-ESRGAN's pipeline as S3Diff runs it: kernels convolved in
one grouped convolution of 21 x 21, noise and resize shared by the batch, the differentiable JPEG's
exact-rounding form. Ours applies one recipe to each image of the batch, kernels included, through the real
codec. basicsr is optional: without it, or where it does not import, our side is measured alone and the table
says so. A scene of 12 million pixels is measured in a process of its own, for its peak memory; a spatially
varying blur of 2048 x 2048 pixels has no other side.

    python benchmarks/degradation.py [--quick] [--json FILE]
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from face2scene.common.files import write_json
from face2scene.common.memory import keep_freed_memory
from face2scene.degradation import (
    Blur,
    GaussianNoise,
    Jpeg,
    PoissonNoise,
    Recipe,
    Resize,
    RestoreSize,
    Sinc,
    Space,
    SpatiallyVaryingBlur,
    apply_batch,
)

CONFIGS = Path(__file__).parents[1] / "configs" / "degradation"
LARGEST_KERNEL = 21
SCENE = (3000, 4000)
FIELD = SpatiallyVaryingBlur("aniso", 21, sigma_x=3.0, centre=0.3, sigma_y=1.0, theta_rad=0.2)


def configured(name: str) -> Space:
    values = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"))
    return Space(**{key: value for key, value in values.items() if key != "_target_"})


def images(count: int, side: int) -> Tensor:
    """Smooth shapes with fine texture: the cost of Poisson noise and JPEG depends on the content a little."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, side // 32, side // 32, generator=generator)
    smooth = F.interpolate(coarse, size=(side, side), mode="bicubic")
    return (smooth + 0.05 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


def load_basicsr() -> tuple[types.ModuleType, Any, Callable] | None:
    from torchvision.transforms import functional as transforms  # large in memory: not in the scene's process

    # basicsr 1.4.2 imports a torchvision module that was removed; it only wants this one function of it.
    old = types.ModuleType("torchvision.transforms.functional_tensor")
    old.rgb_to_grayscale = transforms.rgb_to_grayscale
    sys.modules.setdefault(old.__name__, old)
    try:
        degradations = importlib.import_module("basicsr.data.degradations")
        jpeger = importlib.import_module("basicsr.utils.diffjpeg").DiffJPEG(differentiable=False)
        filter2d = importlib.import_module("basicsr.utils.img_process_util").filter2D
    except ImportError as error:
        print(f"The other side is missing: basicsr does not import here ({error}); see benchmarks/README.md.")
        return None
    return degradations, jpeger, filter2d


@torch.no_grad()
def basicsr_apply(parts: tuple[types.ModuleType, Any, Callable], recipe: Recipe, batch: Tensor) -> Tensor:
    """The recipe by basicsr's functions, a batch at a time; kernels are made anew and padded to 21 x 21."""
    degradations, jpeger, filter2d = parts
    size, image = batch.shape[-2:], batch
    for operator in recipe.operators:
        match operator:
            case Blur():
                name = "plateau" if operator.family.startswith("plateau") else "Gaussian"
                name = "generalized_Gaussian" if operator.family.startswith("generalized") else name
                shape = () if name == "Gaussian" else (operator.beta,)
                sigma_y, theta = operator.sigma_y or operator.sigma_x, operator.theta_rad or 0.0
                make = getattr(degradations, f"bivariate_{name}")
                isotropic = operator.sigma_y is None
                kernel = make(operator.size, operator.sigma_x, sigma_y, theta, *shape, isotropic=isotropic)
                image = filter2d(image.contiguous(), padded(kernel, len(batch)))
            case Sinc():
                kernel = degradations.circular_lowpass_kernel(operator.cutoff_rad, operator.size)
                image = filter2d(image.contiguous(), padded(kernel, len(batch)))
            case Resize() if operator.by_factor:
                image = F.interpolate(image, scale_factor=operator.factor, mode=operator.mode)
            case Resize():
                target = tuple(max(1, int(side * operator.factor + 1e-6)) for side in size)
                image = F.interpolate(image, size=target, mode=operator.mode)
            case RestoreSize():
                image = F.interpolate(image, size=size, mode=operator.mode)
            case GaussianNoise():
                sigma, grey = image.new_full((len(image),), operator.sigma), float(operator.grey)
                grey = image.new_full((len(image),), grey)  # one value each, as the drawing form makes them
                image = degradations.add_gaussian_noise_pt(image, sigma, grey)
            case PoissonNoise():
                scale, grey = image.new_full((len(image),), operator.scale), float(operator.grey)
                grey = image.new_full((len(image),), grey)
                image = degradations.add_poisson_noise_pt(image, scale, gray_noise=grey)
            case Jpeg():
                quality = image.new_full((len(image),), operator.quality)
                image = jpeger(image.clamp(0, 1), quality=quality)
    return image.clamp(0, 1)


def padded(kernel: np.ndarray, count: int) -> Tensor:
    edge = (LARGEST_KERNEL - len(kernel)) // 2
    return torch.from_numpy(np.pad(kernel, edge)).float().expand(count, -1, -1)


def ours_apply(recipe: Recipe, batch: Tensor) -> Tensor:
    return apply_batch(batch, [recipe.with_noise_seed(number) for number in range(len(batch))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the table here")
    parser.add_argument("--quick", action="store_true", help="fewer recipes, under a minute")
    parser.add_argument("--scene", type=int, metavar="COUNT", help="only the large scene: this many recipes, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.scene:
        print(json.dumps(scene(options.scene)))
        return
    keep_freed_memory()  # both sides alike; a large scene is a little faster so, and takes a tenth more memory

    batch = images(4, 512)
    rng = np.random.default_rng(0)
    recipes = [configured("paper").draw(rng) for _ in range(10 if options.quick else 60)]
    other = load_basicsr()
    seconds = {"ours": 0.0, "other": 0.0}
    mean_difference = []
    for number, recipe in enumerate(tqdm([recipes[0], *recipes], desc="paper recipes")):
        start = time.process_time()
        mine = ours_apply(recipe, batch)
        middle = time.process_time()
        theirs = basicsr_apply(other, recipe, batch) if other else None
        if number:  # the first is the warm-up
            seconds["ours"] += middle - start
            seconds["other"] += time.process_time() - middle
            if theirs is not None:
                mean_difference.append((mine.mean((0, 2, 3)) - theirs.mean((0, 2, 3))).abs().max().item())

    ours = len(recipes) * len(batch) / seconds["ours"]
    theirs_rate = len(recipes) * len(batch) / seconds["other"] if other else None
    note = f"{len(recipes)} recipes of paper.yaml x 4 images of 512 x 512, one thread"
    if other:
        note += f"; largest difference of a channel's mean {max(mean_difference):.4f}"
    else:
        note += "; basicsr missing"
    large = subprocess.run(
        [sys.executable, __file__, "--scene", "3" if options.quick else "12"],
        stdout=subprocess.PIPE, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    large = json.loads(large.stdout)
    drawing = drawing_ms(200)
    field = field_s(3)
    results = {
        "recipes_paper_512": row(ours, "pictures/s", note, theirs_rate),
        "draw_paper": row(drawing, "ms a recipe", f"{drawing * ours / 10:.2g} % of applying it to one such image"),
        "scene_12mp": row(
            large["slowest_s"],
            "s",
            f"slowest of {large['recipes']} recipes of paper.yaml on 4000 x 3000; mean {large['mean_s']:.2f} s",
        ),
        "scene_12mp_memory": row(
            large["peak_gb"],
            "GB",
            f"peak of that process; {large['start_gb']:.2f} GB of it before the first recipe, the scene included",
        ),
        "field_2048": row(
            min(field),
            "s",
            f"{FIELD.family} kernels of {FIELD.size} x {FIELD.size}; {field[0]:.2f} s with its preparation",
        ),
        "tiny_256": row(
            tiny_ms(60 if options.quick else 300),
            "ms per image",
            "draw and apply one recipe of tiny.yaml to one 256 x 256 image",
        ),
    }
    print(f"{'measure':<20}{'ours':>10}{'basicsr':>10}{'ratio':>8}  unit")
    for name, measure in results.items():
        cells = [f"{measure[key]:.2f}" if measure[key] is not None else "-" for key in ("ours", "other", "ratio")]
        print(f"{name:<20}{cells[0]:>10}{cells[1]:>10}{cells[2]:>8}  {measure['unit']} ({measure['note']})")
    if options.json:
        write_json(options.json, results)


def row(ours: float, unit: str, note: str, other: float | None = None) -> dict[str, Any]:
    """One measure of the table; more is better where there is another side."""
    return {"ours": ours, "other": other, "ratio": ours / other if other else None, "unit": unit, "note": note}


def scene(count: int) -> dict[str, float]:
    """Seconds and peak memory of `count` recipes on one large scene, in this process."""
    space, rng = configured("paper"), np.random.default_rng(2)
    image = torch.empty(3, *SCENE)
    for channel in image:  # one at a time, not to set the peak here
        coarse = torch.from_numpy(rng.random((1, 1, SCENE[0] // 100, SCENE[1] // 100), dtype=np.float32))
        channel.copy_(F.interpolate(coarse, size=SCENE, mode="bicubic")[0, 0]).clamp_(0, 1)
        channel.mul_(0.9).add_(torch.from_numpy(rng.random(SCENE, dtype=np.float32)), alpha=0.1)
    seconds = []
    start_gb = peak_gb()
    for _ in range(count):
        recipe = space.draw(rng)
        start = time.process_time()
        recipe.apply(image)
        seconds.append(time.process_time() - start)
    return {
        "recipes": count,
        "slowest_s": max(seconds),
        "mean_s": sum(seconds) / count,
        "peak_gb": peak_gb(),
        "start_gb": start_gb,
    }


def peak_gb() -> float:
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's peak in
    return int(status.split("VmHWM:")[1].split()[0]) / 1e6


def drawing_ms(count: int) -> float:
    space, rng = configured("paper"), np.random.default_rng(1)
    start = time.process_time()
    for _ in range(count):
        space.draw(rng)
    return 1000 * (time.process_time() - start) / count


def field_s(count: int) -> list[float]:
    """Seconds of a spatially varying blur on 2048 x 2048; the first includes the decomposition of its kernels."""
    recipe, image, seconds = Recipe((FIELD,)), images(1, 2048)[0], []
    for _ in range(count):
        start = time.process_time()
        recipe.apply(image)
        seconds.append(time.process_time() - start)
    return seconds


def tiny_ms(count: int) -> float:
    space, image, rng = configured("tiny"), images(1, 256)[0], np.random.default_rng(1)
    space.draw(rng).apply(image)
    start = time.process_time()
    for _ in range(count):
        space.draw(rng).apply(image)
    return 1000 * (time.process_time() - start) / count


if __name__ == "__main__":
    main()
