"""Parts of an image that are scored apart: the face, and everything else."""

import math
from typing import Literal

from torch import Tensor

from face2scene.common.types import Box

Region = Literal["whole", "face", "background"]
REGIONS: dict[str, str] = {
    "whole": "the whole image",
    "face": "the face box alone, cut out of both images",
    # As in the paper's main text: every method gets the ground truth's face, so that the rest of the image decides.
    "background": "the whole image, with the ground truth's face box pasted into the prediction",
}


def cut(region: Region, image: Tensor, gt: Tensor, box: Box | None) -> tuple[Tensor, Tensor]:
    """The parts of a prediction and its ground truth that are compared; all (3, H, W).

    Raises:
        ValueError: a region that needs a box without one, or with one outside the image.
    """
    if region == "whole":
        return image, gt
    place = _place(region, box, *gt.shape[-2:])
    if region == "face":
        return image[place], gt[place]
    pasted = image.clone()
    pasted[place] = gt[place]
    return pasted, gt


def size_of(region: Region, size: tuple[int, int], box: Box | None) -> tuple[int, int]:
    """(H, W) of what `cut` gives; raises as it does."""
    if region != "face":
        return size
    _, rows, columns = _place(region, box, *size)
    return rows.stop - rows.start, columns.stop - columns.start


def _place(region: Region, box: Box | None, height: int, width: int) -> tuple[slice, slice, slice]:
    if box is None:
        raise ValueError(f"The region {region} needs a face box.")
    x0, y0, x1, y1 = math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])
    rows, columns = slice(max(0, y0), min(height, y1)), slice(max(0, x0), min(width, x1))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        raise ValueError(f"The face box {tuple(round(v, 1) for v in box)} is outside the {width} x {height} image.")
    return slice(None), rows, columns
