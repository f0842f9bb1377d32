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

- `Space` has the ranges and probabilities of the two-stage pipeline and of a camera's own degradations; those of
  configs/degradation have the published numbers. `Space.draw` gives a `Recipe`.
- `Recipe` is an ordered tuple of operators, a schema version and a noise seed. Equality, hash and
  `key` ignore the seed.
- `apply` takes a tensor, `apply_array` a NumPy image, `apply_batch` a batch with a recipe for every image.
- `PRESETS` are d1 to d4 of the paper's supplement; `python -m face2scene.degradation.visualize` draws what any recipe
  does.

A value outside its physical range, an invalid image and an incomplete recipe are refused with a `ValueError` that names
the field and what is allowed.
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
from face2scene.degradation.space import Mixture, Space

__all__ = [
    "OPERATORS", "PRESETS", "Blur", "GaussianNoise", "Jpeg", "Mixture", "MotionBlur", "Operator", "PoissonNoise",
    "Recipe", "Resize", "RestoreSize", "SensorNoise", "Sinc", "Space", "SpatiallyVaryingBlur", "Webp", "apply_batch",
]  # fmt: skip
