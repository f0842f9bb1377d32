"""Inputs that several test files of tests/degradation share."""

import functools

import hydra.utils
import numpy as np
import torch
from omegaconf import OmegaConf

from face2scene.common.reproducibility import REPOSITORY
from face2scene.degradation import (
    Blur,
    GaussianNoise,
    Jpeg,
    Mixture,
    PoissonNoise,
    Recipe,
    Resize,
    Sinc,
    Space,
)

CONFIGS = REPOSITORY / "configs" / "degradation"


OPERATORS = [
    Blur("iso", 13, sigma_x=1.2),
    Blur("aniso", 15, sigma_x=2.0, sigma_y=0.6, theta_rad=0.7),
    Blur("plateau_iso", 21, sigma_x=2.0, beta=1.3),
    Sinc(1.4, 13),
    Resize(0.43, "area"),
    Resize(0.6, "bilinear", antialias=False),
    Resize(1.3, "bicubic", antialias=False),
    Resize(0.5, "bicubic"),
    GaussianNoise(9.0),
    GaussianNoise(9.0, grey=True),
    PoissonNoise(1.2),
    PoissonNoise(1.2, grey=True),
    Jpeg(60, "differentiable"),
]


def make_image(height: int = 96, width: int = 80, seed: int = 0) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


@functools.cache
def load_space(name: str) -> Space | Mixture:
    return hydra.utils.instantiate(OmegaConf.load(CONFIGS / f"{name}.yaml"))


def draw_recipes(name: str, count: int, seed: int = 0) -> list[Recipe]:
    space, rng = load_space(name), np.random.default_rng(seed)
    return [space.draw(rng) for _ in range(count)]


def operator_id(operator: object) -> str:
    return repr(operator)
