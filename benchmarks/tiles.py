"""Tiles against the whole image: ten images whose content lies anywhere on an even ground.

    python benchmarks/tiles.py [checkpoints/tiny checkpoints/photo ...] [--size 192] [--tile 80] [--overlap 32]

A photo of a quarter of the side lies in the middle, at borders and corners of white, near black, blue and grey. For
each folder of weights it prints how near the photo and the ground come to what went in: restored whole (untiled), in
tiles, in tiles with statistics of their own (`--ways`), and the photo by itself. Null tokens, colours aligned with the
input; photo: scikit-image's Chelsea (CC0).
"""

import argparse
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import Tensor

from face2scene.common.memory import keep_freed_memory
from face2scene.image_io.arrays import align_colour, to_tensor
from face2scene.models.loading import load_restorer
from face2scene.models.restorer.one_step import OneStepRestorer
from face2scene.models.restorer.tiling import TilePlan

PLACES = ((3, 3), (0, 0), (6, 0), (0, 6), (3, 6), (6, 3), (2, 4), (5, 2), (1, 1), (6, 5))  # of the photo, in eighths
GROUNDS = ((1.0, 1.0, 1.0), (0.02, 0.02, 0.03), (0.35, 0.6, 0.95), (0.5, 0.5, 0.5))
WAYS = ("whole", "tiles", "own")


def restored(restorer: OneStepRestorer, image: Tensor, tile: int | None, overlap: int = 0, own: bool = False) -> Tensor:
    """(1, 3, H, W) with null tokens."""
    size, tokens = (image.shape[-2], image.shape[-1]), restorer.tokens(None, 1)
    plan = TilePlan.of(size, restorer, tile=tile, overlap=overlap, statistics="tile" if own else "shared")
    with torch.inference_mode():
        (output,) = restorer.restore_tiled(
            image, lambda box: tokens, plan, [restorer.guidance], progress=lambda *_: None
        )
    return align_colour(output, image, "wavelet").clamp(0, 1)


def psnr(image: Tensor, reference: Tensor) -> float:
    """In dB."""
    return float(-10 * (image - reference).square().mean().log10())


def on_a_ground(photo: Tensor, number: int) -> tuple[Tensor, tuple[int, int], Tensor]:
    """An image with the photo on it, the photo's corner (y, x), and a mask of the ground that is not near it."""
    side = photo.shape[-1]
    y, x = (place * side // 2 for place in PLACES[number])
    image = torch.tensor(GROUNDS[number % len(GROUNDS)]).view(1, 3, 1, 1).repeat(1, 1, 4 * side, 4 * side)
    image[..., y : y + side, x : x + side] = photo
    near, ground = side // 3, torch.ones(image.shape[-2:], dtype=torch.bool)
    ground[max(y - near, 0) : y + side + near, max(x - near, 0) : x + side + near] = False
    return image, (y, x), ground


def main() -> None:
    """Print a row for each image and the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("checkpoints/photo"), Path("checkpoints/tiny")])
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--tile", type=int, default=80)
    parser.add_argument("--overlap", type=int, default=32)
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=["whole", "tiles"])
    options = parser.parse_args()
    keep_freed_memory()
    side = options.size // 4
    crop = Image.fromarray(skimage.data.chelsea()[:300, 60:360]).resize((side, side))
    photo = to_tensor(np.asarray(crop))[None]
    for folder in options.folders:
        restorer = load_restorer(folder / "restorer.safetensors")
        print(f"{folder.name}: the photo by itself {psnr(restored(restorer, photo, None), photo):.2f} dB", flush=True)
        rows = []
        for number in range(len(PLACES)):
            image, (y, x), ground = on_a_ground(photo, number)
            row = []
            for way in options.ways:
                tile = None if way == "whole" else options.tile
                output = restored(restorer, image, tile, options.overlap, way == "own")
                off = float((output - image).abs()[..., ground].max()) * 255
                row += [psnr(output[..., y : y + side, x : x + side], photo), psnr(output, image), off]
            rows.append(row)
            for way, (near_photo, everywhere, off) in zip(options.ways, np.reshape(row, (-1, 3)), strict=True):
                print(
                    f"{folder.name} {number} {way}: photo {near_photo:.2f} dB, image {everywhere:.2f} dB, "
                    f"ground off by up to {off:.2f} levels",
                    flush=True,
                )
        print(f"{folder.name} means: {np.round(np.mean(rows, 0), 2).tolist()}", flush=True)


if __name__ == "__main__":
    main()
