"""PSNR and LPIPS of a restorer on twelve held-out photos at four strengths of degradation.

    python benchmarks/photos.py [--ours FOLDER] [--other FOLDER] [--real-esrgan] [--quick] [--json FILE]
        [--images FOLDER] [--docs docs] [--size 512]

`--ours` is a folder as `Face2ScenePipeline.from_pretrained` reads it (default: checkpoints/photo), `--other` another
one to compare with, `--real-esrgan` the packaged general x4v3 on a quarter of the size, as its author advises. Without
references, as a stranger's photo is restored. PSNR in dB and LPIPS (AlexNet, v0.1), means over the photos; `--images`
writes every photo's row (input, ours, other, ground truth) at full size, `--docs` the page docs/photos.md with its
contact sheets. The photos are in no training set: six scenes of photos_face_api, three portraits (skimage, matplotlib,
photos_face_recognition) and three images of things (skimage, scikit-learn).
"""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from face2scene.assets import catalogue
from face2scene.common.files import atomic_write, write_json
from face2scene.common.memory import keep_freed_memory
from face2scene.common.reproducibility import REPOSITORY
from face2scene.degradation import Blur, GaussianNoise, Jpeg, Recipe, Resize, RestoreSize
from face2scene.eval.baselines.methods import RealESRGANx4
from face2scene.image_io.arrays import to_array, to_bytes, to_tensor, write_png
from face2scene.image_io.metadata import OPENED
from face2scene.inference.pipeline import Face2ScenePipeline
from face2scene.models.restorer.perceptual import Perceptual

Method = Callable[[Tensor], Tensor]  # (3, H, W) in [0, 1] to the same


def degradation(sigma: float, factor: float, noise: float, quality: int) -> Recipe:
    """Blur, shrink, noise in grey levels, JPEG, back to the size."""
    shrunk = [Resize(factor), GaussianNoise(noise), Jpeg(quality), RestoreSize()]
    steps = shrunk if factor < 1 else shrunk[1:3]
    return Recipe((Blur("iso", 21, sigma_x=sigma), *steps), noise_seed=0)


DEGRADATIONS = {
    "none": Recipe((), noise_seed=0),
    "mild": degradation(0.7, 1.0, 4, 85),
    "medium": degradation(1.4, 0.5, 8, 60),
    "strong": degradation(2.2, 0.25, 12, 40),
}
# Goals: PSNR in dB (at `none` of the result, else the gain over the input) and the largest LPIPS.
GOALS = {"none": (40.0, 0.01), "mild": (1.0, 0.085), "medium": (1.2, 0.20), "strong": (1.0, 0.30)}
SHOWN = 240  # pixels of each photo in the contact sheets
UNTOUCHED = 60.0  # dB of an image without error


def photos(size: int) -> dict[str, Tensor]:
    """The held-out photos by name, their longer side of `size` pixels."""
    import matplotlib
    import skimage.data
    import sklearn

    files = {f"sample{n}": catalogue.folder("photos_face_api") / f"sample{n}.jpg" for n in range(1, 7)}
    files["hopper"] = Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg"
    files["obama"] = catalogue.folder("photos_face_recognition") / "obama.jpg"
    files["china"] = Path(sklearn.__file__).parent / "datasets/images/china.jpg"
    loaded = {name: Image.open(file, formats=OPENED).convert("RGB") for name, file in files.items()}
    for name in ("astronaut", "coffee", "chelsea"):
        loaded[name] = Image.fromarray(getattr(skimage.data, name)())
    return {name: to_tensor(np.asarray(_shrunk(image, size))) for name, image in loaded.items()}


def _shrunk(image: Image.Image, size: int) -> Image.Image:
    factor = min(1.0, size / max(image.size))
    return image.resize([round(side * factor) for side in image.size], Image.Resampling.LANCZOS)


def pipeline(folder: Path) -> Method:
    """The method with weights of a folder, as scripts/restore.py has it by default, without a face."""
    loaded = Face2ScenePipeline.from_pretrained(folder, colour="wavelet", tile=512)
    return lambda image: loaded(to_array(image)).image


def measured(
    methods: dict[str, Method], size: int, quick: bool, folder: Path | None, sheets: dict[str, list[Tensor]]
) -> dict[str, dict[str, list]]:
    """For every degradation and method: (name, PSNR, LPIPS, seconds) of each photo; adds rows to the `sheets`."""
    perceptual = Perceptual("alex")
    found: dict[str, dict[str, list]] = {strength: {name: [] for name in methods} for strength in DEGRADATIONS}
    chosen = photos(size)
    for name, gt in list(chosen.items())[:: 4 if quick else 1]:
        for strength, recipe in DEGRADATIONS.items():
            image = recipe.apply(gt).mul(255).round().div(255)
            row = []
            for title, method in methods.items():
                start = perf_counter()
                output = method(image).clamp(0, 1).mul(255).round().div(255)
                seconds = perf_counter() - start
                error = (output - gt).square().mean().clamp_min(10 ** (-UNTOUCHED / 10))
                with torch.no_grad():
                    lpips = perceptual(output[None] * 2 - 1, gt[None] * 2 - 1).item()
                found[strength][title].append((name, -10 * error.log10().item(), lpips, seconds))
                row.append(output)
            sheets.setdefault(strength, []).append(torch.cat([_middle(part) for part in (*row, gt)], 2))
            if folder:
                write_png(folder / f"{strength}_{name}.png", to_array(torch.cat([*row, gt], 2)))
    return found


def _middle(image: Tensor) -> Tensor:
    top, left = ((side - SHOWN) // 2 for side in image.shape[-2:])
    return image[:, top : top + SHOWN, left : left + SHOWN]


def write_page(docs: Path, table: list[str], titles: list[str], sheets: dict[str, list[Tensor]], size: int) -> None:
    """docs/photos.md, and a contact sheet for each degradation."""
    shown = []
    for strength, rows in sheets.items():
        target = docs / f"images/photos_{strength}.jpg"
        with atomic_write(target) as partial:
            Image.fromarray(to_bytes(torch.cat(rows, 1))).save(partial, format="JPEG", quality=72)
        shown.append(f"## {strength.capitalize()}\n\n![{strength}](images/{target.name})\n")
    with atomic_write(docs / "photos.md") as partial:
        page = PAGE.format(
            table="\n".join(table), sheets="\n".join(shown), shown=SHOWN, size=size, columns=", ".join(titles)
        )
        partial.write_text(page, encoding="utf-8")


PAGE = """# Twelve photos, as `face2scene restore` restores them

Twelve photos that are in no training set, of {size} pixels, at four strengths of degradation, without references:
means of PSNR in dB and LPIPS (AlexNet), and seconds a photo. `python benchmarks/photos.py --real-esrgan --docs docs`
measures and writes this page; checkpoints/photo/README.md says what the weights are and what they are not. Mild is a
blur of 0.7 pixels, noise of 4 grey levels and JPEG 85; medium a blur of 1.4, half the size, noise 8, JPEG 60; strong a
blur of 2.2, a quarter of the size, noise 12, JPEG 40. Real-ESRGAN general enlarges the image from a quarter of its
size, as its author advises for degraded images of full size. Goal is what these weights were meant to reach.

{table}

Each row below is the middle {shown} x {shown} pixels of a photo at full size: {columns}, ground truth.

{sheets}"""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ours", type=Path, default=REPOSITORY / "checkpoints/photo")
    parser.add_argument("--other", type=Path)
    parser.add_argument("--real-esrgan", action="store_true")
    parser.add_argument("--quick", action="store_true", help="three photos")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--size", type=int, default=512)
    arguments = parser.parse_args()
    keep_freed_memory()
    logging.disable(logging.INFO)
    methods: dict[str, Method] = {"input": lambda image: image, "ours": pipeline(arguments.ours)}
    if arguments.other:
        methods["other"] = pipeline(arguments.other)
    if arguments.real_esrgan:
        esrgan = RealESRGANx4(version="general-x4v3", device="cpu")
        methods["Real-ESRGAN general"] = lambda image: esrgan(image, 1)
    sheets: dict[str, list[Tensor]] = {}
    found = measured(methods, arguments.size, arguments.quick, arguments.images, sheets)
    rows, titles = {}, [*methods]
    table = [f"| degradation | {' | '.join(titles)} | goal |", "| --- " * (len(titles) + 2) + "|"]
    for strength, by_method in found.items():
        means = {title: np.mean([one[1:] for one in ones], axis=0) for title, ones in by_method.items()}
        gain, lpips = GOALS[strength]
        goal = gain if strength == "none" else means["input"][0] + gain
        summary = "   ".join(f"{title} {psnr:.2f} dB {value:.3f}" for title, (psnr, value, _) in means.items())
        worst = min(ours[1] - given[1] for ours, given in zip(by_method["ours"], by_method["input"], strict=True))
        print(f"{strength:8}{summary}   goal {goal:.2f} dB {lpips:.3f}   worst photo {worst:+.2f} dB", flush=True)
        cells = [f"{psnr:.1f}, {value:.3f}, {seconds:.2f} s" for psnr, value, seconds in means.values()]
        table.append(f"| {strength} | {' | '.join(cells)} | {goal:.1f}, {lpips:.3f} |")
        last = list(means)[-1]  # the other side is what was named last, else the input
        note = f"{len(by_method['ours'])} photos of {arguments.size} pixels, degradation {strength}"
        for place, (name, unit) in enumerate((("PSNR", "dB"), ("LPIPS", ""), ("seconds", "s a photo"))):
            ours, other = float(means["ours"][place]), float(means[last if last != "ours" else "input"][place])
            ratio = (ours / other if name == "PSNR" else other / ours) if ours and other else None
            rows[f"{name}, {strength}"] = {"ours": ours, "other": other, "ratio": ratio, "unit": unit, "note": note}
    if arguments.json:
        write_json(arguments.json, rows)
    if arguments.docs:
        write_page(arguments.docs, table, titles, sheets, arguments.size)


if __name__ == "__main__":
    main()
