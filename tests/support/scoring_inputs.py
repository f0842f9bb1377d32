"""Inputs that several test files of tests/eval share."""

from pathlib import Path

import numpy as np
import torch

from face2scene.image_io.arrays import write_png


def mean_abs_error(images, gts):
    """A metric for tests: the mean absolute difference."""
    return (images - gts).abs().mean((1, 2, 3))


SCORERS = {
    "psnr": lambda x, y: -10 * torch.log10(((x - y) ** 2).mean((1, 2, 3)) + 1e-8),
    "lpips": mean_abs_error,
    "dists": mean_abs_error,
}


def write_images(path: Path, names, noise: float = 0.0, size=(32, 32), seed: int = 0) -> Path:
    for number, name in enumerate(names):
        base = np.random.default_rng([number]).random((*size, 3), dtype=np.float32)
        change = np.random.default_rng([seed, number, 1]).normal(0, noise, base.shape) if noise else 0
        write_png(path / f"{name}.png", np.clip(base + change, 0, 1).astype(np.float32))
    return path
