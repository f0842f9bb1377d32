"""The operators of recipes, and the names they have in JSON."""

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

# By the names of stored recipes: a name stays when its class is renamed.
OPERATORS: dict[str, type[Operator]] = {
    **{kind.__name__: kind for kind in (Blur, Sinc, Resize, RestoreSize, GaussianNoise, PoissonNoise, Jpeg)},
    "SpatialBlur": SpatiallyVaryingBlur,
    **{kind.__name__: kind for kind in (MotionBlur, SensorNoise, Webp)},
}
STORED_NAMES = {kind: name for name, kind in OPERATORS.items()}
