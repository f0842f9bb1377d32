"""Degradations as values: draw a Recipe from a Space once, apply it to any number of images.

    >>> import numpy as np
    >>> from face2scene.degradation import PRESETS, Recipe, Space, apply_batch
    >>> recipe = Space(scale=1, no_degradation_prob=0).draw(np.random.default_rng(0))
    >>> photo = np.random.default_rng(1).random((96, 80, 3), dtype=np.float32)  # RGB in [0, 1], or uint8
    >>> worse = recipe.apply_array(photo)  # the loader's home; `recipe.apply` takes a tensor (3, H, W) on any device
    >>> Recipe.from_json(recipe.to_json()) == recipe  # a line of JSON keeps it for years
    True
    >>> other_grain = recipe.with_noise_seed(7)  # the same operator on another image, with noise of its own
    >>> other_grain == recipe, PRESETS["d1"] == recipe
    (True, False)

What there is:

- `Space` has the ranges and probabilities of the two-stage pipeline and of what a camera adds; those of
  configs/degradation have the published numbers. `Space.draw` gives a `Recipe`, all numbers in it.
- `Recipe` is an ordered tuple of operators, a schema version and a noise seed. Equality, hash and `key` leave the seed
  out.
- `apply` takes a tensor, `apply_array` a NumPy image, `apply_batch` a batch with a recipe for every image. They are
  one code: on one platform a recipe and an image give the same bytes in any process, order, batch and number of
  threads. On a GPU an operator is within 1e-4 of that.
- `PRESETS` are d1 to d4 of the paper's supplement; `python -m face2scene.degradation.visualize` draws any recipe's
effect.

A value outside its physical range, an image that is none and a recipe that was cut are refused with a `ValueError`
that names the field and what is allowed.
"""

from face2scene.degradation.operators.basic import (
    Blur,
    GaussianNoise,
    Jpeg,
    Operator,
    PoissonNoise,
    Resize,
    RestoreSize,
    Sinc,
)
from face2scene.degradation.operators.camera import MotionBlur, SensorNoise, Webp
from face2scene.degradation.operators.spatial_blur import SpatiallyVaryingBlur
from face2scene.degradation.presets import PRESETS
from face2scene.degradation.recipe import OPERATORS, Recipe, apply_batch
from face2scene.degradation.space import Mixture, Space

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
    "SpatiallyVaryingBlur",
    "Webp",
    "apply_batch",
]
