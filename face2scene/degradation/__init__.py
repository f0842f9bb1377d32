"""Degradations as values: draw a Recipe from a Space once, apply it to any number of pictures."""

from face2scene.degradation.operators import (
    OPERATORS,
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
from face2scene.degradation.recipe import Recipe
from face2scene.degradation.space import Space

__all__ = [
    "OPERATORS",
    "PRESETS",
    "Blur",
    "GaussianNoise",
    "Jpeg",
    "Operator",
    "PoissonNoise",
    "Recipe",
    "Resize",
    "RestoreSize",
    "Sinc",
    "Space",
]
