"""A round trip through JPEG: the real codec, and a differentiable formula of it.

The real one is Pillow's libjpeg-turbo with its defaults: integer DCT, colour at half resolution (4:2:0), the tables of
the standard scaled by the quality. The formula is the one of Shin and Song (2017) as DiffJPEG and basicsr have it:
colour averaged over 2 x 2 pixels and repeated, tables scaled but not rounded, and a rounding whose slope is not zero.
"""

import io
import math
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from face2scene.degradation.functional.banded import empty_aligned

STRIP = 2**16  # pixels converted at a time; they fit a core's cache
CODECS = ("libjpeg", "differentiable", "diffjpeg")
# Steps of the standard (ITU-T T.81, annex K), rows are vertical frequencies. basicsr has them transposed.
LUMA_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA_STEPS = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99))  # the rest is 99
TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def codec(image: Tensor, quality: int) -> Tensor:
    """(3, h, w) in [0, 1], rounded to 8 bits, through libjpeg; on the CPU whatever the device, no gradient."""
    image = image.detach()
    height, width = image.shape[-2:]
    steps = range(0, height, max(1, STRIP // width))  # a large image is copied as bytes, not as floats
    # Pillow reads a row's three channels one after the other, which is faster than pixel by pixel.
    lines = np.empty((height, 3, width), dtype=np.uint8)
    for start in steps:
        part = slice(start, start + steps.step)
        # NumPy truncates in a seventh of torch's time.
        lines[part] = image[:, part].mul(255).add_(0.5).transpose(0, 1).cpu().numpy()
    file = io.BytesIO()
    encoded = Image.frombytes("RGB", (width, height), lines, "raw", "RGB;L")
    del lines
    encoded.save(file, format="JPEG", quality=quality, subsampling="4:2:0")
    del encoded
    result = empty_aligned(3, height, width, device=image.device)
    file.seek(0)
    with Image.open(file, formats=("JPEG",)) as stored:
        stored.load()
        for start in steps:
            strip = stored.crop((0, start, width, min(start + steps.step, height)))
            degraded = torch.from_numpy(np.array(strip)).to(image.device)
            result[:, start : start + steps.step].copy_(degraded.permute(2, 0, 1)).div_(255)
    return result


def differentiable(image: Tensor, quality: float, *, published: bool = False) -> Tensor:
    """(3, h, w) in [0, 1] through the formula, on the image's device; the result is not rounded to 8 bits.

    Args:
        published: as in basicsr's DiffJPEG(differentiable=False), with which Real-ESRGAN and S3Diff were trained:
            a black border, transposed tables whose steps may be below 1, and a rounding without gradient.
    """
    height, width = image.shape[-2:]
    padded = F.pad(image[None], (0, -width % 16, 0, -height % 16), mode="constant" if published else "replicate")[0]
    ycbcr = torch.einsum("dc,chw->dhw", torch.tensor(TO_YCBCR).to(image), padded * 255)
    factor = 50 / quality if quality < 50 else 2 - quality / 50
    luma, chroma = (table.T if published else table for table in _steps(str(image.device)))
    min_step = 0 if published else 1
    colour = _quantise(F.avg_pool2d(ycbcr[1:], 2), (chroma * factor).clamp(min=min_step), slope=not published)
    colour = colour.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)
    # The codec centres all three channels; chroma is centred already.
    bright = _quantise(ycbcr[:1] - 128, (luma * factor).clamp(min=min_step), slope=not published) + 128
    rgb = torch.einsum("dc,chw->dhw", torch.tensor(TO_RGB).to(image), torch.cat((bright, colour)))
    return (rgb[:, :height, :width] / 255).clamp(0, 1)


def _quantise(planes: Tensor, steps: Tensor, *, slope: bool) -> Tensor:
    """Round the DCT of 8 x 8 blocks of (n, h, w) to multiples of `steps` (8, 8), and back; with `slope` by a cubic."""
    count, height, width = planes.shape
    transform = _cosines(str(planes.device))
    blocks = planes.reshape(count, height // 8, 8, width // 8, 8).transpose(2, 3)
    spectrum = transform @ blocks @ transform.T / steps
    whole = spectrum.round().detach()
    spectrum = (whole + (spectrum - whole) ** 3 if slope else whole) * steps
    return (transform.T @ spectrum @ transform).transpose(2, 3).reshape(planes.shape)


@lru_cache(maxsize=8)
def _cosines(device: str) -> Tensor:
    """The orthogonal DCT matrix of eight values."""
    place = torch.arange(8, dtype=torch.float64)
    matrix = torch.cos((2 * place + 1) * place[:, None] * math.pi / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix.float().to(device)


@lru_cache(maxsize=8)
def _steps(device: str) -> tuple[Tensor, Tensor]:
    chroma = torch.full((8, 8), 99.0)
    chroma[:4, :4] = torch.tensor(CHROMA_STEPS)
    return torch.tensor(LUMA_STEPS, dtype=torch.float32).to(device), chroma.to(device)
