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

# Stored recipes hold these names, so a name stays when its class is renamed.
OPERATORS: dict[str, type[Operator]] = {
    "Blur": Blur,
    "Sinc": Sinc,
    "Resize": Resize,
    "RestoreSize": RestoreSize,
    "GaussianNoise": GaussianNoise,
    "PoissonNoise": PoissonNoise,
    "Jpeg": Jpeg,
    "SpatialBlur": SpatiallyVaryingBlur,
    "MotionBlur": MotionBlur,
    "SensorNoise": SensorNoise,
    "Webp": Webp,
}
STORED_NAMES = {kind: name for name, kind in OPERATORS.items()}
