"""A folder of images through the pipeline, and one large image.

    python benchmarks/pipeline.py [--quick] [--json FILE] [--images 20] [--size 512] [--megapixels 12] [--device cuda]
        [--weights tiny]

Ours is `restore_folder`, which reads, restores and writes concurrently. The other side is a plain loop around the same
pipeline: read, restore and write one image after the other. One image of `--size` and, with `--megapixels N`, one of
that size are also restored by ours and by Real-ESRGAN general x4v3 (face2scene fetch real_esrgan_general; on a quarter
of the size, as its author advises for full-size images), each in a process of its own, whose peak memory is reported.
"""

import argparse
import json
import logging
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch

from face2scene.common.files import write_json
from face2scene.common.memory import keep_freed_memory, peak_memory
from face2scene.eval.baselines.methods import RealESRGANx4
from face2scene.image_io.photos import Photo, read_photo, write_photo
from face2scene.inference.batch import restore_folder
from face2scene.inference.pipeline import Face2ScenePipeline
from face2scene.inference.tasks import find_tasks

REAL_ESRGAN = "real_esrgan_general"  # in the place of our weights


def images(folder: Path, count: int, size: int) -> Path:
    """Noisy waves, as 16-bit TIFF files: slow to decode and encode, like camera files."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[:size, :size] / size
    for number in range(count):
        rng = np.random.default_rng(number)
        waves = [0.5 + 0.3 * np.sin(6 * f * (x * np.cos(f) + y * np.sin(f))) for f in rng.uniform(1, 9, 3)]
        image = np.stack(waves, -1) + 0.05 * rng.standard_normal((size, size, 3))
        image = image.clip(0, 1).astype(np.float32)
        write_photo(folder / f"{number:03d}.tif", image, like=Photo(image, bits=16))
    return folder


def one_by_one(pipeline: Face2ScenePipeline, folder: Path, output: Path) -> tuple[float, float]:
    """The plain loop: seconds in the models, and in total."""
    output.mkdir(parents=True)
    models, start = 0.0, perf_counter()
    for path in sorted(folder.iterdir()):
        photo = read_photo(path)
        begun = perf_counter()
        result = pipeline(photo.image, name=path.stem)
        models += perf_counter() - begun
        write_photo(output / f"{path.stem}.png", result.image.permute(1, 2, 0).numpy(), like=photo)
    return models, perf_counter() - start


def large(megapixels: float, device: str, tile: str, weights: str) -> dict[str, Any]:
    """One large image by the pipeline, or by Real-ESRGAN: seconds and MiB, of this process."""
    height = round((megapixels * 1e6 * (3 / 4 if megapixels > 1 else 1)) ** 0.5)
    width = height * 4 // 3 if megapixels > 1 else height
    small = torch.rand(1, 3, 192, 256, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(small, size=(height, width), mode="bilinear")[0]
    if weights == REAL_ESRGAN:
        method = RealESRGANx4(version="general-x4v3", device=device)
        warm, work = partial(method, scale=1), partial(method, image, scale=1)
    else:
        pipeline = load(device, weights).enable_tiling("auto" if tile == "auto" else int(tile))
        warm, work = pipeline, partial(pipeline, image, name="large")
    warm(image[:, :64, :64])
    before = peak_memory() / 2**20
    start = perf_counter()
    result = work()
    seconds = perf_counter() - start
    tiles = "" if isinstance(result, torch.Tensor) else result.notes["tiles"]
    return {"seconds": seconds, "mib": peak_memory() / 2**20, "before_mib": before, "tiles": tiles}


def alone(megapixels: float, arguments: argparse.Namespace, weights: str) -> dict[str, Any]:
    """`large` in a process of its own."""
    command = [sys.executable, __file__, "--only-large", "--megapixels", str(megapixels), "--weights", weights]
    command += ["--device", arguments.device, "--tile", arguments.tile]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def load(device: str, weights: str) -> Face2ScenePipeline:
    """A model that ships."""
    return Face2ScenePipeline.from_pretrained(weights, colour="wavelet", device=device)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="six small images")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--megapixels", type=float, default=0.0)
    parser.add_argument("--tile", default="512")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--weights", default="photo", help="a name that ships, or a folder")
    parser.add_argument("--only-large", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    keep_freed_memory()  # both sides alike
    logging.disable(logging.INFO)
    if arguments.only_large:
        print(json.dumps(large(arguments.megapixels, arguments.device, arguments.tile, arguments.weights)))
        return
    count, size = (6, 96) if arguments.quick else (arguments.images, arguments.size)

    start = perf_counter()
    pipeline = load(arguments.device, arguments.weights)
    loaded = perf_counter() - start
    rows = {"model load": row(loaded, None, "s", f"{arguments.weights}; imports are not in it")}
    with TemporaryDirectory(prefix="face2scene-") as place:
        folder = images(Path(place) / "in", count, size)
        first, second = sorted(folder.iterdir())[:2]
        seconds = []
        for path in (first, second):
            start = perf_counter()
            pipeline(path)
            seconds.append(perf_counter() - start)
        rows["second image"] = row(seconds[1], loaded + seconds[0], "s", "other: the first one, with the load")
        models, wall = one_by_one(pipeline, folder, Path(place) / "plain")
        outcome = restore_folder(pipeline, find_tasks(folder), Path(place) / "out")
        note = f"{count} images of {size} x {size}, 16-bit TIFF to 16-bit PNG, {arguments.device}"
        rows["folder"] = row(outcome.seconds, wall, "s", note)
        ours, other = outcome.seconds_models / outcome.seconds, models / wall
        rows["share in models"] = row(ours, other, "of wall time", note, more=True)
    sizes = {"one image": size**2 / 1e6} | ({"large image": arguments.megapixels} if arguments.megapixels else {})
    for name, megapixels in sizes.items():
        ours, other = (alone(megapixels, arguments, weights) for weights in (arguments.weights, REAL_ESRGAN))
        note = f"{megapixels:.3g} million pixels, {ours['tiles']}, {arguments.device}; other: Real-ESRGAN general"
        rows[name] = row(ours["seconds"], other["seconds"], "s", note)
        begun = f"{ours['before_mib']:.0f} and {other['before_mib']:.0f} before it began"
        rows[f"{name}, peak"] = row(ours["mib"], other["mib"], "MiB", begun)
    print(f"{'measure':24}{'ours':>12}{'other':>12}{'ratio':>8}  unit")
    for name, value in rows.items():
        other = "-" if value["other"] is None else f"{value['other']:.2f}"
        ratio = "-" if value["ratio"] is None else f"{value['ratio']:.2f}"
        print(f"{name:24}{value['ours']:12.2f}{other:>12}{ratio:>8}  {value['unit']}  ({value['note']})")
    if arguments.json:
        write_json(arguments.json, rows)


def row(ours: float, other: float | None, unit: str, note: str, *, more: bool = False) -> dict:
    """One measure; `ratio` above 1 means that ours is better."""
    ratio = None if other is None else (ours / other if more else other / ours)
    return {"ours": ours, "other": other, "ratio": ratio, "unit": unit, "note": note}


if __name__ == "__main__":
    main()
