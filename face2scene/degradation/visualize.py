"""A contact sheet of recipes: what every step does to a photo, with its values.

    python -m face2scene.degradation.visualize PHOTO --recipe d1 d2 d3 d4 --out sheet.png
    python -m face2scene.degradation.visualize PHOTO --recipe recipe.json paper --seed 3

A recipe is one of the presets d1 to d4, a JSON file, or a space of configs/degradation, which is drawn from with the
seed. Each cell has the whole image, a detail enlarged pixel by pixel, and the step's fields by their names in the
JSON.
"""

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from face2scene.common.reproducibility import REPOSITORY
from face2scene.degradation.operators.basic import Operator, RestoreSize
from face2scene.degradation.presets import PRESETS
from face2scene.degradation.recipe import Recipe
from face2scene.degradation.space import Space
from face2scene.image_io.arrays import read_tensor, resize, to_bytes, write_png

SPACES = REPOSITORY / "configs" / "degradation"
CELL = 320  # pixels of a cell's width
GAP = 16
INSET = 148
DETAIL = 0.13  # of the shorter side
INK, SOFT, PAPER, MARK = (15, 15, 15), (70, 70, 70), (255, 255, 255), (255, 214, 0)


def find_recipe(name: str, rng: np.random.Generator) -> Recipe:
    """A preset, a JSON file or a draw from a shipped space, in this order.

    Raises:
        ValueError: no such thing, or a file that is no recipe.
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
        values = OmegaConf.to_container(OmegaConf.load(SPACES / f"{name}.yaml"))
        return Space(**{key: value for key, value in values.items() if key != "_target_"}).draw(rng)
    raise ValueError(
        f"There is no recipe {name!r}: give one of {', '.join(PRESETS)}, a JSON file that exists, "
        f"or one of the spaces {', '.join(spaces)}."
    )


def stages(recipe: Recipe, image: Tensor) -> list[Tensor]:
    """The image (3, h, w) after each of the recipe's operators."""
    return [
        # Each from the start: the result of a shorter recipe, so nothing here can differ from what `apply` does.
        Recipe(recipe.operators[:count], recipe.noise_seed).apply(
            image, keep_size=isinstance(recipe.operators[count - 1], RestoreSize)
        )
        for count in range(1, len(recipe.operators) + 1)
    ]


def sheet(image: Tensor, recipes: Sequence[tuple[str, Recipe]], *, title: str, columns: int = 6) -> Image.Image:
    """The contact sheet of a photo (3, H, W) in [0, 1]: named recipes one below the other.

    Args:
        title: the sheet's first line. columns: at most so many steps stand in a line.
    """
    box = _busiest(image)
    blocks = [_recipe_block(name, recipe, image, box, columns) for name, recipe in recipes]
    width = max(block.width for block in blocks) + 2 * GAP
    drawn = Image.new("RGB", (width, 3 * GAP + 24 + sum(block.height + GAP for block in blocks)), PAPER)
    ImageDraw.Draw(drawn).text((GAP, GAP), title, INK, _font(22))
    top = 2 * GAP + 24
    for block in blocks:
        ImageDraw.Draw(drawn).line((GAP, top - 1, width - GAP, top - 1), SOFT, 1)
        drawn.paste(block, (GAP, top))
        top += block.height + GAP
    return drawn


def _recipe_block(name: str, recipe: Recipe, image: Tensor, box: tuple[float, ...], columns: int) -> Image.Image:
    cells = [_cell("The photo", [f"{image.shape[-1]} x {image.shape[-2]} px"], image, box)]
    for number, (operator, degraded) in enumerate(zip(recipe.operators, stages(recipe, image), strict=True), start=1):
        size = f"{degraded.shape[-1]} x {degraded.shape[-2]} px"
        if degraded.shape == image.shape:
            error = (degraded - image).square().mean().item()
            size += f", {-10 * math.log10(error):.1f} dB PSNR to the photo" if error else ", the photo bit for bit"
        cells.append(_cell(f"{number}  {_title(operator)}", [*_values(operator), size], degraded, box))
    columns = math.ceil(len(cells) / math.ceil(len(cells) / columns))  # lines of about the same length
    lines = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in line) for line in lines]
    width = columns * (CELL + GAP) - GAP
    block = Image.new("RGB", (width, 44 + sum(heights) + GAP * len(lines)), PAPER)
    draw = ImageDraw.Draw(block)
    heading = f"{name}   {len(recipe.operators)} steps, key {recipe.key}, noise seed {recipe.noise_seed}"
    draw.text((0, 10), heading, INK, _font(20))
    top = 44
    for line, height in zip(lines, heights, strict=True):
        for column, cell in enumerate(line):
            block.paste(cell, (column * (CELL + GAP), top))
        top += height + GAP
    return block


def _cell(title: str, notes: Sequence[str], image: Tensor, box: tuple[float, ...]) -> Image.Image:
    rendered = Image.fromarray(to_bytes(image))
    shown_height = round(CELL * rendered.height / rendered.width)
    grown = rendered.width < CELL
    shown = rendered.resize((CELL, shown_height), Image.Resampling.NEAREST if grown else Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(shown)
    place = [box[0] * CELL, box[1] * shown_height, box[2] * CELL, box[3] * shown_height]
    draw.rectangle(place, outline=MARK, width=2)
    inset = rendered.resize(
        (INSET, INSET),
        Image.Resampling.NEAREST,
        box=(box[0] * rendered.width, box[1] * rendered.height, box[2] * rendered.width, box[3] * rendered.height),
    )
    left = 0 if box[0] + box[2] > 1 else CELL - INSET  # beside what it enlarges, not on it
    draw.rectangle((left - 2, shown_height - INSET - 2, left + INSET + 1, shown_height), fill=MARK)
    shown.paste(inset, (left, shown_height - INSET))

    lines = [line for note in notes for line in _wrapped(note, _font(16))]
    cell = Image.new("RGB", (CELL, shown_height + 34 + 20 * len(lines)), PAPER)
    cell.paste(shown, (0, 0))
    draw = ImageDraw.Draw(cell)
    draw.text((0, shown_height + 6), title, INK, _font(18))
    for number, line in enumerate(lines):
        draw.text((0, shown_height + 32 + 20 * number), line, SOFT, _font(16))
    return cell


def _title(operator: Operator) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(operator).__name__)


def _values(operator: Operator) -> list[str]:
    values = {entry.name: getattr(operator, entry.name) for entry in fields(operator)}
    texts = [f"{name} {_value(value)}" for name, value in values.items() if value is not None]
    return [", ".join(texts)] if texts else []


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _wrapped(text: str, font: ImageFont.FreeTypeFont) -> list[str]:
    lines = [""]
    for word in text.split(", "):
        longer = f"{lines[-1]}, {word}" if lines[-1] else word
        if font.getlength(longer + ",") > CELL and lines[-1]:
            lines[-1] += ","
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _busiest(image: Tensor) -> tuple[float, ...]:
    """The square with the most detail, as shares: left, top, right, bottom."""
    height, width = image.shape[-2:]
    side = max(4, round(DETAIL * min(height, width)))
    if side >= min(height, width):
        return 0.0, 0.0, 1.0, 1.0
    grey = image.mean(dim=0)
    busy = F.pad(grey.diff(dim=1).abs(), (0, 1)) + F.pad(grey.diff(dim=0).abs(), (0, 0, 0, 1))
    sums = F.avg_pool2d(busy[None, None], side, stride=1)[0, 0]
    row, column = divmod(int(torch.argmax(sums)), sums.shape[1])
    return column / width, row / height, (column + side) / width, (row + side) / height


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m face2scene.degradation.visualize", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("photo", type=Path)
    parser.add_argument("--recipe", nargs="+", required=True, metavar="NAME", help="d1 to d4, a JSON file, or a space")
    parser.add_argument("--seed", type=int, default=0, help="of the draws from spaces (default 0)")
    parser.add_argument("--out", type=Path, default=Path("sheet.png"), help="the PNG to write (default sheet.png)")
    parser.add_argument("--columns", type=int, default=6, help="at most so many steps in a line (default 6)")
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
        shrink = options.side / max(photo.shape[-2:])
        if shrink < 1:
            photo = resize(photo, tuple(max(1, round(side * shrink)) for side in photo.shape[-2:]))
        size = f"{photo.shape[-1]} x {photo.shape[-2]} px"
        title = f"{options.photo.name}, {size}" + (
            f", {1 / shrink:.2f} times smaller than the file" if shrink < 1 else ""
        )
        drawn = sheet(photo, recipes, title=title, columns=options.columns)
        write_png(options.out, np.asarray(drawn, dtype=np.float32) / 255)
    except (ValueError, OSError, RuntimeError) as error:
        parser.error(str(error))
    print(f"{options.out}: {', '.join(options.recipe)} on {title}")


if __name__ == "__main__":
    main()
