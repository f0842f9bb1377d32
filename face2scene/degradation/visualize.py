"""A contact sheet of recipes: the effect of every step on a photo, with its parameters.

    python -m face2scene.degradation.visualize PHOTO --recipe d1 d2 d3 d4 --out sheet.png
    python -m face2scene.degradation.visualize PHOTO --recipe recipe.json paper --seed 3

A recipe is one of the presets d1 to d4, a JSON file, or a space of configs/degradation, from which one is drawn with
the seed. Each cell has the whole image, an enlarged detail, and the operator's fields by their names in the JSON.
"""

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from face2scene.common.shipped import CONFIGS
from face2scene.degradation.operators.basic import Operator, RestoreSize
from face2scene.degradation.presets import PRESETS
from face2scene.degradation.recipe import Recipe
from face2scene.image_io.arrays import read_tensor, resize, to_bytes, write_png

SPACES = CONFIGS / "degradation"
CELL = 320  # pixels of a cell's width
GAP = 16
INSET = 148
DETAIL = 0.13  # of the shorter side
HEADING = 44
INK, SOFT, PAPER, MARK = (15, 15, 15), (70, 70, 70), (255, 255, 255), (255, 214, 0)

Area = tuple[float, float, float, float]  # left, top, right, bottom


def find_recipe(name: str, rng: np.random.Generator) -> Recipe:
    """A preset, a JSON file or a draw from a shipped space, in this order.

    Raises:
        ValueError: an unknown name, or a file that is no recipe.
    """
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if path.is_file():
        try:
            return Recipe.from_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    spaces = sorted(file.stem for file in SPACES.glob("*.yaml"))
    if name in spaces:
        with initialize_config_dir(str(SPACES), version_base="1.3"):
            return instantiate(compose(name), _convert_="all").draw(rng)
    raise ValueError(
        f"There is no recipe {name!r}: give one of {', '.join(PRESETS)}, a JSON file that exists, "
        f"or one of the spaces {', '.join(spaces)}."
    )


def stages(recipe: Recipe, image: Tensor) -> list[Tensor]:
    """The image (3, h, w) after each of the recipe's operators."""
    return [
        # Each is the result of a shorter recipe, so it cannot differ from what `apply` does.
        Recipe(recipe.operators[:count], recipe.noise_seed).apply(
            image, keep_size=isinstance(recipe.operators[count - 1], RestoreSize)
        )
        for count in range(1, len(recipe.operators) + 1)
    ]


def sheet(image: Tensor, recipes: Sequence[tuple[str, Recipe]], *, title: str, columns: int = 6) -> Image.Image:
    """The contact sheet of a photo (3, H, W) in [0, 1]: named recipes one below the other.

    Args:
        title: the sheet's first line.
        columns: the most cells in a row.
    """
    area = _most_detailed(image)
    blocks = [_recipe_block(name, recipe, image, area, columns) for name, recipe in recipes]
    width = max(block.width for block in blocks) + 2 * GAP
    drawn = Image.new("RGB", (width, 3 * GAP + 24 + sum(block.height + GAP for block in blocks)), PAPER)
    draw = ImageDraw.Draw(drawn)
    draw.text((GAP, GAP), title, INK, _font(22))
    top = 2 * GAP + 24
    for block in blocks:
        draw.line((GAP, top - 1, width - GAP, top - 1), SOFT, 1)
        drawn.paste(block, (GAP, top))
        top += block.height + GAP
    return drawn


def _recipe_block(name: str, recipe: Recipe, image: Tensor, area: Area, columns: int) -> Image.Image:
    cells = [_cell("The photo", [f"{image.shape[-1]} x {image.shape[-2]} px"], image, area)]
    for number, (operator, degraded) in enumerate(zip(recipe.operators, stages(recipe, image), strict=True), start=1):
        size = f"{degraded.shape[-1]} x {degraded.shape[-2]} px"
        if degraded.shape == image.shape:
            error = (degraded - image).square().mean().item()
            size += f", {-10 * math.log10(error):.1f} dB PSNR to the photo" if error else ", the photo bit for bit"
        title = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(operator).__name__)
        cells.append(_cell(f"{number}  {title}", [_values(operator), size], degraded, area))
    columns = math.ceil(len(cells) / math.ceil(len(cells) / columns))  # rows of about the same length
    height = max(cell.height for cell in cells) + GAP
    rows = math.ceil(len(cells) / columns)
    block = Image.new("RGB", (columns * (CELL + GAP) - GAP, HEADING + height * rows), PAPER)
    heading = f"{name}   {len(recipe.operators)} steps, key {recipe.key}, noise seed {recipe.noise_seed}"
    ImageDraw.Draw(block).text((0, 10), heading, INK, _font(20))
    for place, cell in enumerate(cells):
        row, column = divmod(place, columns)
        block.paste(cell, (column * (CELL + GAP), HEADING + row * height))
    return block


def _cell(title: str, notes: Sequence[str], image: Tensor, area: Area) -> Image.Image:
    rendered = Image.fromarray(to_bytes(image))
    height = round(CELL * rendered.height / rendered.width)
    lines = [line for note in notes for line in _wrapped(note, _font(16))]
    cell = Image.new("RGB", (CELL, height + 34 + 20 * len(lines)), PAPER)
    enlarges = rendered.width < CELL
    cell.paste(rendered.resize((CELL, height), Image.Resampling.NEAREST if enlarges else Image.Resampling.LANCZOS))
    draw = ImageDraw.Draw(cell)
    left, top, right, bottom = area
    draw.rectangle((left * CELL, top * height, right * CELL, bottom * height), outline=MARK, width=2)
    source = (left * rendered.width, top * rendered.height, right * rendered.width, bottom * rendered.height)
    start = 0 if left + right > 1 else CELL - INSET  # beside what it enlarges, not over it
    draw.rectangle((start - 2, height - INSET - 2, start + INSET + 1, height - 1), fill=MARK)
    cell.paste(rendered.resize((INSET, INSET), Image.Resampling.NEAREST, box=source), (start, height - INSET))
    draw.text((0, height + 6), title, INK, _font(18))
    for number, line in enumerate(lines):
        draw.text((0, height + 32 + 20 * number), line, SOFT, _font(16))
    return cell


def _values(operator: Operator) -> str:
    values = {entry.name: getattr(operator, entry.name) for entry in fields(operator)}
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
        if value is not None
    )


def _wrapped(text: str, font: ImageFont.FreeTypeFont) -> list[str]:
    lines = [""]
    for word in filter(None, text.split(", ")):
        longer = f"{lines[-1]}, {word}" if lines[-1] else word
        if font.getlength(longer + ",") > CELL and lines[-1]:
            lines[-1] += ","
            lines.append(word)
        else:
            lines[-1] = longer
    return [line for line in lines if line]


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def _most_detailed(image: Tensor) -> Area:
    """The square with the largest gradients, as shares of the width and height."""
    height, width = image.shape[-2:]
    side = max(4, round(DETAIL * min(height, width)))
    if side >= min(height, width):
        return 0.0, 0.0, 1.0, 1.0
    grey = image.mean(dim=0)
    gradient = F.pad(grey.diff(dim=1).abs(), (0, 1)) + F.pad(grey.diff(dim=0).abs(), (0, 0, 0, 1))
    means = F.avg_pool2d(gradient[None, None], side, stride=1)[0, 0]
    row, column = divmod(int(torch.argmax(means)), means.shape[1])
    return column / width, row / height, (column + side) / width, (row + side) / height


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m face2scene.degradation.visualize", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("photo", type=Path)
    parser.add_argument("--recipe", nargs="+", required=True, metavar="NAME", help="d1 to d4, a JSON file, or a space")
    parser.add_argument("--seed", type=int, default=0, help="of the draws from spaces (default 0)")
    parser.add_argument("--out", type=Path, default=Path("sheet.png"), help="the PNG to write (default sheet.png)")
    parser.add_argument("--columns", type=int, default=6, help="the most steps in a row (default 6)")
    parser.add_argument("--side", type=int, default=768, help="a larger photo is shrunk to this side (default 768)")
    options = parser.parse_args(arguments)
    try:
        if options.seed < 0 or options.columns < 1 or options.side < 64:
            raise ValueError("--seed must be 0 or more, --columns 1 or more and --side 64 or more.")
        if options.out.suffix.lower() != ".png":
            raise ValueError(f"--out is {options.out}: the sheet is a PNG, so the name ends in .png.")
        rng = np.random.default_rng(options.seed)
        recipes = [(name, find_recipe(name, rng)) for name in options.recipe]
        photo = read_tensor(options.photo)
        height, width = photo.shape[-2:]
        shrink = min(1.0, options.side / max(height, width))
        if shrink < 1:
            photo = resize(photo, (max(1, round(height * shrink)), max(1, round(width * shrink))))
        title = f"{options.photo.name}, {photo.shape[-1]} x {photo.shape[-2]} px"
        title += f", {1 / shrink:.2f} times smaller than the file" if shrink < 1 else ""
        drawn = sheet(photo, recipes, title=title, columns=options.columns)
        write_png(options.out, np.asarray(drawn, dtype=np.float32) / 255)
    except (ValueError, OSError, RuntimeError) as error:
        parser.error(str(error))
    print(f"{options.out}: {', '.join(options.recipe)} on {title}")


if __name__ == "__main__":
    main()
