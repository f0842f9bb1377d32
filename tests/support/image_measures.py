"""Measures of images in [0, 1], of numpy or torch."""

import math

import numpy as np
from torch import Tensor


def psnr(a: np.ndarray | Tensor, b: np.ndarray | Tensor) -> float:
    """In dB, over all values."""
    return -10 * math.log10(float(((a - b) ** 2).mean()))


def detail(image: Tensor) -> float:
    """Mean absolute difference of horizontal neighbours of (..., H, W)."""
    return float((image[..., 1:] - image[..., :-1]).abs().mean())
