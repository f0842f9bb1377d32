"""Degradations as values: draw a Recipe from a Space once, apply it to any number of images.

    >>> import numpy as np
    >>> from face2scene.degradation import PRESETS, Recipe, Space, apply_batch
    >>> recipe = Space(scale=1, no_degradation_prob=0).draw(np.random.default_rng(0))
    >>> photo = np.random.default_rng(1).random((96, 80, 3), dtype=np.float32)  # RGB in [0, 1], or uint8
    >>> worse = recipe.apply_array(photo)  # for data loaders; `recipe.apply` takes a tensor (3, H, W) on any device
    >>> Recipe.from_json(recipe.to_json()) == recipe
    True
    >>> other_grain = recipe.with_noise_seed(7)  # the same operators on another image, with another noise
    >>> other_grain == recipe, PRESETS["d1"] == recipe
    (True, False)

The spaces of configs/degradation have the published numbers; `python -m face2scene.degradation.visualize` draws the
effect of recipes. A value outside its physical range, an invalid image and an incomplete recipe raise a `ValueError`
that names the field and what is allowed.
"""

from face2scene.degradation.operators import (
    OPERATORS,
    Blur,
    GaussianNoise,
    Jpeg,
    MotionBlur,
    Operator,
    PoissonNoise,
    Resize,
    RestoreSize,
    SensorNoise,
    Sinc,
    SpatiallyVaryingBlur,
    Webp,
)
from face2scene.degradation.presets import PRESETS
from face2scene.degradation.recipe import Recipe, apply_batch
from face2scene.degradation.space import Bank, Mixture, Space

__all__ = [
    "OPERATORS", "PRESETS", "Bank", "Blur", "GaussianNoise", "Jpeg", "Mixture", "MotionBlur", "Operator",
    "PoissonNoise", "Recipe", "Resize", "RestoreSize", "SensorNoise", "Sinc", "Space", "SpatiallyVaryingBlur", "Webp",
    "apply_batch",
]  # fmt: skip
