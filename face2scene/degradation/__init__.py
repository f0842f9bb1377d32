"""Degradations as values: draw a Recipe from a Space once, apply it to any number of pictures."""

from face2scene.degradation.camera import MotionBlur, SensorNoise, Webp
from face2scene.degradation.mixture import Mixture
from face2scene.degradation.operators import (
    Blur,
    GaussianNoise,
    Jpeg,
    Operator,
    PoissonNoise,
    Resize,
    RestoreSize,
    Sinc,
)
from face2scene.degradation.presets import PRESETS
from face2scene.degradation.psf import SpatialBlur
from face2scene.degradation.recipe import OPERATORS, Recipe, apply_batch
from face2scene.degradation.space import Space

__all__ = [
    "OPERATORS",
    "PRESETS",
    "Blur",
    "GaussianNoise",
    "Jpeg",
    "Mixture",
    "MotionBlur",
    "Operator",
    "PoissonNoise",
    "Recipe",
    "Resize",
    "RestoreSize",
    "SensorNoise",
    "Sinc",
    "Space",
    "SpatialBlur",
    "Webp",
    "apply_batch",
]
