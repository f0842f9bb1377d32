"""Rows for `eval.py table=offline`: networks with packaged weights on packaged photos, and the page about them.

face2scene fetch photos_face_api photos_face_recognition real_esrgan_x4plus real_esrgan_general ffdnet_color
face2scene fetch lpips dists
python scripts/offline_table.py               the images, the rows and the table; the same command goes on
python scripts/offline_table.py docs=docs     and docs/offline_table.md with its pictures
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from face2scene.assets import catalogue
from face2scene.cli.command_line import CONFIGS
from face2scene.cli.commands import run_baseline
from face2scene.common.files import atomic_write
from face2scene.common.shipped import CHECKPOINTS
from face2scene.degradation import Blur, GaussianNoise, Jpeg, Recipe, Resize, RestoreSize
from face2scene.eval.reports.table_page import paper_table
from face2scene.eval.tables.paper_tables import load_table
from face2scene.eval.tables.render import slug
from face2scene.image_io.arrays import read_image, read_tensor, resize, to_tensor, write_png

PHOTOS = {
    "photos_face_api": ["sample1.jpg", "sample2.jpg", "sample4.jpg", "sample5.jpg"],
    "photos_face_recognition": ["obama.jpg", "biden.jpg"],
}
NOISE = 25.0  # grey levels of 255
SIDE = 192  # pixels of a crop, from the middle of a photo whose shorter side is reduced to 1.25 times this
PHOTO, TINY = (
    [f"{name}_weights={CHECKPOINTS}/{folder}/{name}.safetensors" for name in ("restorer", "fadex")]
    for folder in ("photo", "tiny")
)
OURS = ["baseline=face2scene", "pipeline.colour=wavelet"]
TINY_ROW, WITHOUT_FACES = [*OURS, *TINY], ["faces=none", "ref_fr=none"]
FIDELITY = "pipeline.fidelity=0"  # all of the restorer, so that the tokens alone tell the three rows apart
ROWS = {  # the table's rows: a baseline and its options
    "Input": ["baseline=bicubic"],
    "FFDNet, told the noise": ["baseline=ffdnet", f"baseline.method.sigma={NOISE}"],
    "FFDNet": ["baseline=ffdnet"],
    "Real-ESRGAN": ["baseline=real_esrgan"],
    "Real-ESRGAN general": ["baseline=real_esrgan_general"],
    "Face2Scene, tiny, null tokens": [*TINY_ROW, *WITHOUT_FACES, FIDELITY, "pipeline.fallback='null'"],
    "Face2Scene, tiny, whole image's tokens": [*TINY_ROW, *WITHOUT_FACES, FIDELITY, "pipeline.fallback=blind"],
    "Face2Scene, tiny, face pair's tokens": [*TINY_ROW, "faces=open", "ref_fr=real_esrgan", FIDELITY],
    "Face2Scene, photo": [*OURS, *PHOTO, *WITHOUT_FACES],
}
ONLY = {"FFDNet, told the noise": "noise"}  # rows of one part alone
SIZES = {  # the weights that a row reads, for the column of megabytes
    "FFDNet": "ffdnet_color",
    "Real-ESRGAN": "real_esrgan_x4plus",
    "Real-ESRGAN general": "real_esrgan_general",
    "Face2Scene, tiny": "tiny",
    "Face2Scene, photo": "photo",
}
SHOWN = {"noise": "sample2", "mixed": "sample5"}  # part -> the image in the page
CROP = 144  # pixels of it


def main(words: list[str]) -> None:
    """Carry it out; `docs=FOLDER` writes the page, other words are options of run_baseline.py."""
    docs = next((word.removeprefix("docs=") for word in words if word.startswith("docs=")), None)
    options = [word for word in words if not word.startswith("docs=")]
    torch.set_num_threads(1)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        paths = compose("run_baseline", options).paths
        place, runs = Path(paths.data) / "offline_table", Path(paths.runs)
        recipes = make_images(place)
        for part in recipes:
            for title, row in rows_of(part).items():
                name = f"name=table_offline/{part}/{slug(title)}"
                places = [f"input={place}/{part}", f"gt={place}/gt", "metrics=[psnr,ssim_y,lpips,dists]"]
                cfg = compose("run_baseline", [*row, *places, name, *options])
                run_baseline.run(cfg, row[0].partition("=")[2])
    table = paper_table(CONFIGS / "eval", runs, "offline")
    print(table)
    if docs is not None:
        write_page(Path(docs), place, runs, table)


def rows_of(part: str) -> dict[str, list[str]]:
    """The rows of one part of the table."""
    return {title: row for title, row in ROWS.items() if ONLY.get(title, part) == part}


def make_images(place: Path) -> dict[str, list[Recipe]]:
    """Ground truths and their degraded images below `place`, with recipes.json; the same for everyone."""
    recipes: dict[str, list[Recipe]] = {"noise": [], "mixed": []}
    for number, (name, gt) in enumerate(crops()):
        write_png(place / "gt" / f"{name}.png", gt)
        gt, rng = read_tensor(place / "gt" / f"{name}.png"), np.random.default_rng(number)
        drawn = (Blur("iso", 15, sigma_x=rng.uniform(0.5, 2)), Resize(0.5, "bicubic"))
        drawn += (GaussianNoise(rng.uniform(2, 10)), Jpeg(int(rng.integers(50, 91))), RestoreSize())
        recipes["noise"].append(Recipe((GaussianNoise(NOISE),), noise_seed=number))
        recipes["mixed"].append(Recipe(drawn, noise_seed=number))
        for part, drawn_so_far in recipes.items():
            write_png(place / part / f"{name}.png", drawn_so_far[-1].apply(gt))
    listed = {part: [json.loads(recipe.to_json()) for recipe in found] for part, found in recipes.items()}
    with atomic_write(place / "recipes.json") as partial:
        partial.write_text(json.dumps(listed))
    return recipes


def crops() -> Iterator[tuple[str, torch.Tensor]]:
    """Name and the middle (3, SIDE, SIDE) of every photo."""
    for asset, files in PHOTOS.items():
        for file in files:
            photo = to_tensor(read_image(catalogue.folder(asset) / file))
            height, width = photo.shape[-2:]
            factor = 1.25 * SIDE / min(height, width)
            small = resize(photo, (round(factor * height), round(factor * width)))
            top, left = ((side - SIDE) // 2 for side in small.shape[-2:])
            yield Path(file).stem, small[:, top : top + SIDE, left : left + SIDE]


def write_page(docs: Path, place: Path, runs: Path, table: str) -> None:
    """docs/offline_table.md, and a strip of images for each part of the table beside it."""
    titles = {part.key: part.title for part in load_table(CONFIGS / "eval/table_offline.yaml")[1]}
    strips = []
    for part, name in SHOWN.items():
        middle = (SIDE - CROP) // 2
        images = [
            read_tensor(runs / f"table_offline/{part}/{slug(title)}/images/{name}.png") for title in rows_of(part)
        ]
        images = [image[:, middle : middle + CROP, middle : middle + CROP] for image in images]
        images.append(read_tensor(place / f"gt/{name}.png")[:, middle : middle + CROP, middle : middle + CROP])
        pixels = torch.cat(images, dim=2).mul(255).round().byte().permute(1, 2, 0).numpy()
        target = docs / f"offline_table_{part}.jpg"
        with atomic_write(target) as partial:
            Image.fromarray(pixels).save(partial, format="JPEG", quality=88)
        strips.append(
            f"{titles[part]}: {', '.join([*rows_of(part), 'ground truth'])}.\n\n![{titles[part]}]({target.name})\n"
        )
    costs = costs_of(runs)
    text = PAGE.format(table=table.partition("\n\n")[2], costs=costs, strips="\n".join(strips), side=SIDE)
    with atomic_write(docs / "offline_table.md") as partial:
        partial.write_text(text, encoding="utf-8")


def costs_of(runs: Path) -> str:
    """A table of seconds per image, of the part with noise, and megabytes of weights."""
    lines = ["| Method | seconds per image | weights, MB |", "| --- | --- | --- |"]
    for title in ROWS:
        record = json.loads((runs / f"table_offline/noise/{slug(title)}/baseline.json").read_text(encoding="utf-8"))
        launches = [launch for launch in record["launches"] if launch["pictures"]]
        seconds = sum(launch["seconds"] for launch in launches) / sum(launch["pictures"] for launch in launches)
        name = SIZES.get(max((start for start in SIZES if title.startswith(start)), key=len, default=""))
        size = "-"
        if name is not None:
            folder = CHECKPOINTS / name if (CHECKPOINTS / name).is_dir() else catalogue.folder(name)
            files = [file for file in folder.rglob("*") if file.suffix in (".safetensors", ".bin", ".pth")]
            size = f"{sum(file.stat().st_size for file in files) / 1e6:.1f}"
        lines.append(f"| {title} | {seconds:.2f} | {size} |")
    return "\n".join(lines)


PAGE = """# Real networks on packaged photos

Networks whose trained weights come in packages, on photos that come in packages: a table that needs no model hub and no
GPU. `python scripts/offline_table.py docs=docs` makes the images, runs the rows and writes this page;
`python scripts/eval.py table=offline` prints the table from its runs. Six photos with people (four scenes of
@vladmandic/face-api, MIT; two portraits of the US government), of each the middle {side} x {side} pixels after a
reduction. Brackets are 95 % bootstrap intervals over the images, which of six hold the true mean in 87 %: smaller
differences say nothing.

The rows are the input itself; FFDNet for colour, told the true noise level, and told the level that each image is
estimated to have (Haar coefficients); Real-ESRGAN x4plus and general x4v3, which at the same size work on the image
reduced to a quarter, as their author advises; this project's tiny weights, of the paper's method at a small size, with
the null tokens, with those of the whole image and its restoration by null tokens (`pipeline.fallback=blind`), and with
those of the face pair (Stage I is Real-ESRGAN's face, without references; where no face is found, the null tokens); and
the weights that `face2scene restore` uses. None of them is a row of the paper.

{table}
## Cost

Of one 192 x 192 image, without loading; the seconds are of a core that had other work besides.

{costs}

## Pictures

{strips}
Measured on one CPU core.
"""


if __name__ == "__main__":
    main(sys.argv[1:])
