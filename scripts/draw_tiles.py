"""The pictures of docs/tiles.md, from what ships: `python scripts/draw_tiles.py [--out docs/images]`.

    tiles_page.jpg      a photo on a white page in 25 tiles: input, by area and without margins, as it is now
    tiles_portrait.jpg  a sharp subject before soft ground, the same

It prints the figures that the page states. Photos: scikit-image's Chelsea, coffee and astronaut (CC0, public domain).
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from face2scene.common.reproducibility import REPOSITORY
from face2scene.image_io.arrays import align_colour, to_array, to_tensor
from face2scene.models.restorer import strata
from face2scene.models.restorer.one_step import OneStepRestorer
from face2scene.models.restorer.tiling import TilePlan

SIZE, PHOTO, SUBJECT = 640, 160, 208  # pixels
TILE, OVERLAP = 192, 64
NEAR = 40  # pixels around the photo that are not counted as ground


def page() -> np.ndarray:
    """A photo in the middle of a white page, (SIZE, SIZE, 3)."""
    image, start = np.full((SIZE, SIZE, 3), 255, np.uint8), (SIZE - PHOTO) // 2
    photo = Image.fromarray(skimage.data.chelsea()[:300, 60:360]).resize((PHOTO, PHOTO))
    image[start : start + PHOTO, start : start + PHOTO] = np.asarray(photo)
    return image


def portrait() -> np.ndarray:
    """A sharp disc in the middle of a blurred ground, (SIZE, SIZE, 3)."""
    ground = Image.fromarray(skimage.data.coffee()).resize((SIZE, SIZE)).filter(ImageFilter.GaussianBlur(SIZE / 19))
    subject = Image.fromarray(skimage.data.astronaut()[:248, 96:344]).resize((SUBJECT, SUBJECT))
    ground.paste(subject, ((SIZE - SUBJECT) // 2,) * 2, disc())
    return np.asarray(ground)


def disc() -> Image.Image:
    """A disc with a soft edge, (SUBJECT, SUBJECT)."""
    y, x = np.mgrid[-1 : 1 : SUBJECT * 1j, -1 : 1 : SUBJECT * 1j]
    return Image.fromarray((((1 - np.hypot(x, y) / 0.95) * 12).clip(0, 1) * 255).astype(np.uint8))


@contextmanager
def by_area() -> Iterator[None]:
    """Inside, cells count by their area alone."""
    covered, strata.COVERED = strata.COVERED, 0.0
    try:
        yield
    finally:
        strata.COVERED = covered


def restored(restorer: OneStepRestorer, image: Tensor, margins: bool) -> Tensor:
    """(1, 3, H, W) in tiles, with null tokens, its colours aligned as by default."""
    plan = TilePlan.of((SIZE, SIZE), restorer, tile=TILE, overlap=OVERLAP)
    plan = plan if margins else replace(plan, height=SIZE, width=SIZE, margins=(0, 0))
    tokens = restorer.tokens(None, 1)
    with torch.inference_mode():
        (output,) = restorer.restore_tiled(image, lambda box: tokens, plan, [restorer.guidance])
    return align_colour(output, image, "wavelet").clamp(0, 1)


def main() -> None:
    """Draw both pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs/images")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    restorer = OneStepRestorer.from_file(REPOSITORY / "checkpoints/tiny/restorer.safetensors").merged()
    for name, levels, side in (("page", page(), PHOTO), ("portrait", portrait(), SUBJECT)):
        image = to_tensor(levels.astype(np.float32) / 255)[None]
        with by_area():
            before = restored(restorer, image, margins=False)
        panels = [image, before, restored(restorer, image, margins=True)]
        start = (SIZE - side) // 2
        content = np.zeros((SIZE, SIZE), bool)
        content[start : start + side, start : start + side] = True if name == "page" else np.asarray(disc()) == 255
        ground = np.ones((SIZE, SIZE), bool)
        ground[start - NEAR : start + side + NEAR, start - NEAR : start + side + NEAR] = False
        for when, panel in zip(("by area", "now"), panels[1:], strict=True):
            error = to_array(panel[0]) - levels / 255
            decibels = -10 * np.log10(np.square(error[content]).mean())
            print(
                f"{name}, {when}: content {decibels:.1f} dB, ground off by up to {abs(error[ground]).max() * 255:.0f}"
            )
        crop = slice(0, SIZE * 2 // 3) if name == "page" else slice(start - 24, start + side + 24)
        shown = [np.pad((to_array(one[0])[crop, crop] * 255).round(), ((0, 0), (0, 8), (0, 0))) for one in panels]
        sheet = Image.fromarray(np.concatenate(shown, 1)[:, :-8].astype(np.uint8))
        sheet.save(out / f"tiles_{name}.jpg", quality=90, subsampling=0, optimize=True)


if __name__ == "__main__":
    main()
