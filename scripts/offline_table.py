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
from face2scene.common.reproducibility import commit
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
SIDE = 192  # pixels of a crop, from the middle of a photo whose shorter side is reduced to 1.25 times this
TINY = [f"{name}_weights={CHECKPOINTS}/tiny/{name}.safetensors" for name in ("restorer", "fadex")]
ROWS = {  # the table's rows: a baseline and its options
    "Input": ["baseline=bicubic"],
    "FFDNet": ["baseline=ffdnet"],
    "Real-ESRGAN": ["baseline=real_esrgan"],
    "Real-ESRGAN general": ["baseline=real_esrgan_general"],
    "Face2Scene, tiny weights": ["baseline=face2scene", "faces=none", "ref_fr=none", *TINY],
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
            for title, row in ROWS.items():
                name = f"name=table_offline/{part}/{slug(title)}"
                places = [f"input={place}/{part}", f"gt={place}/gt", "metrics=[psnr,ssim_y,lpips,dists]"]
                cfg = compose("run_baseline", [*row, *places, name, *options])
                run_baseline.run(cfg, row[0].partition("=")[2])
    table = paper_table(CONFIGS / "eval", runs, "offline")
    print(table)
    if docs is not None:
        write_page(Path(docs), place, runs, table)


def make_images(place: Path) -> dict[str, list[Recipe]]:
    """Ground truths and their degraded images below `place`, with recipes.json; the same for everyone."""
    recipes: dict[str, list[Recipe]] = {"noise": [], "mixed": []}
    for number, (name, gt) in enumerate(crops()):
        write_png(place / "gt" / f"{name}.png", gt)
        gt, rng = read_tensor(place / "gt" / f"{name}.png"), np.random.default_rng(number)
        drawn = (Blur("iso", 15, sigma_x=rng.uniform(0.5, 2)), Resize(0.5, "bicubic"))
        drawn += (GaussianNoise(rng.uniform(2, 10)), Jpeg(int(rng.integers(50, 91))), RestoreSize())
        recipes["noise"].append(Recipe((GaussianNoise(25.0),), noise_seed=number))
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
        images = [read_tensor(runs / f"table_offline/{part}/{slug(title)}/images/{name}.png") for title in ROWS]
        images = [image[:, middle : middle + CROP, middle : middle + CROP] for image in images]
        images.append(read_tensor(place / f"gt/{name}.png")[:, middle : middle + CROP, middle : middle + CROP])
        pixels = torch.cat(images, dim=2).mul(255).round().byte().permute(1, 2, 0).numpy()
        target = docs / f"offline_table_{part}.jpg"
        with atomic_write(target) as partial:
            Image.fromarray(pixels).save(partial, format="JPEG", quality=88)
        strips.append(f"{titles[part]}: {', '.join([*ROWS, 'ground truth'])}.\n\n![{titles[part]}]({target.name})\n")
    text = PAGE.format(table=table.partition("\n\n")[2], strips="\n".join(strips), commit=commit(), side=SIDE)
    with atomic_write(docs / "offline_table.md") as partial:
        partial.write_text(text, encoding="utf-8")


PAGE = """# Real networks on packaged photos

Networks whose trained weights come in packages, on photos that come in packages: a table that needs no model hub and no
GPU. `python scripts/offline_table.py docs=docs` makes the images, runs the rows and writes this page;
`python scripts/eval.py table=offline` prints the table from its runs. Six photos with people (four scenes of
@vladmandic/face-api, MIT; two portraits of the US government), of each the middle {side} x {side} pixels after a
reduction. Brackets are 95 % bootstrap intervals over the six images: differences smaller than these say nothing.

The rows are the input itself; FFDNet for colour, told the noise level that each image
is estimated to have (Haar coefficients); Real-ESRGAN x4plus and general x4v3, which at the same size work on the image
reduced to a quarter, as their author advises; and this project's tiny weights without faces or Stage I, trained in
hours on two CPU cores. None of them is a row of the paper.

{table}
## Pictures

{strips}
Measured at commit {commit} on one CPU core.
"""


if __name__ == "__main__":
    main(sys.argv[1:])
