"""A folder of images through the pipeline, and one large image.

    python benchmarks/pipeline.py [--quick] [--json FILE] [--images 20] [--size 512] [--megapixels 12] [--device cuda]

Ours is `restore_folder`, which reads, restores and writes concurrently. The other side is a plain loop around the same
pipeline: read, restore and write one image after the other. `--megapixels N` also restores one image of that size in a
process of its own and reports its peak memory; on a CPU with the tiny model that takes minutes.
"""

import argparse
import json
import logging
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import torch

from face2scene.common.files import write_json
from face2scene.common.memory import keep_freed_memory
from face2scene.common.reproducibility import REPOSITORY
from face2scene.image_io.photos import Photo, read_photo, write_photo
from face2scene.inference.batch import restore_folder
from face2scene.inference.pipeline import Face2ScenePipeline
from face2scene.inference.tasks import find_tasks


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


def large(megapixels: float, device: str, tile: str) -> dict[str, float]:
    """One large image: seconds and MiB, of this process."""
    pipeline = load(device).enable_tiling("auto" if tile == "auto" else int(tile))
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    small = torch.rand(1, 3, 192, 256, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(small, size=(height, height * 4 // 3), mode="bilinear")[0]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = perf_counter()
    result = pipeline(image, name="large")
    peak = result.notes["peak_memory_mib"]
    return {"seconds": perf_counter() - start, "mib": peak, "before_mib": before, "tiles": result.notes["tiles"]}


def load(device: str) -> Face2ScenePipeline:
    """The tiny model that ships."""
    return Face2ScenePipeline.from_pretrained(REPOSITORY / "checkpoints/tiny", colour="wavelet", device=device)


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
    parser.add_argument("--only-large", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    keep_freed_memory()  # both sides alike
    logging.disable(logging.INFO)
    if arguments.only_large:
        print(json.dumps(large(arguments.megapixels, arguments.device, arguments.tile)))
        return
    count, size = (6, 96) if arguments.quick else (arguments.images, arguments.size)

    start = perf_counter()
    pipeline = load(arguments.device)
    loaded = perf_counter() - start
    rows = {"model load": row(loaded, None, "s", "the tiny model; imports are not in it")}
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
    if arguments.megapixels:
        command = [sys.executable, __file__, "--only-large", "--megapixels", str(arguments.megapixels)]
        command += ["--device", arguments.device, "--tile", arguments.tile]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        note = f"{arguments.megapixels:g} million pixels, {found['tiles']}, {arguments.device}"
        rows["large image"] = row(found["seconds"], None, "s", note)
        rows["large image, peak"] = row(found["mib"], None, "MiB", f"{found['before_mib']:.0f} before it began; {note}")
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
