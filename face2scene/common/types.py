"""Types shared by all packages.

Images are float32 RGB in [0, 1]: tensors (3, H, W), arrays (H, W, 3). Boxes are (x0, y0, x1, y1) in the
image's own pixels, x1 and y1 exclusive. N tokens of width D.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from torch import Tensor

Box = tuple[float, float, float, float]
Progress = Callable[[str, int, int], None]  # stage, steps done, steps in all


class Brief:
    """A dataclass (of `repr=False`) that shows the shapes of its arrays, and the length of what is long."""

    def __repr__(self) -> str:
        values = {one.name: getattr(self, one.name) for one in fields(self)}  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{key}={_brief(value)}' for key, value in values.items())})"


def _brief(value: object) -> str:
    if hasattr(value, "shape"):
        return f"{type(value).__name__}{tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 100 or not hasattr(value, "__len__") else f"{type(value).__name__} of {len(value)}"


@dataclass(frozen=True, eq=False, repr=False)
class Face(Brief):
    """A detected face."""

    box: Box
    score: float  # of the detector, 0 to 1
    landmarks_5: np.ndarray  # (5, 2) x, y: left eye, right eye, nose, mouth corners, as seen in the image
    landmarks_68: np.ndarray | None = None  # (68, 2), iBUG order
    identity: np.ndarray | None = None  # (D,) unit length
    identity_model: str = ""  # network of `identity`; different networks are not compared
    pose: tuple[float, float, float] | None = None  # yaw, pitch, roll in degrees, see `faces.pose`

    @property
    def size(self) -> float:
        """Longer side of the box in pixels."""
        x0, y0, x1, y1 = self.box
        return max(x1 - x0, y1 - y0)


@dataclass(frozen=True, eq=False, repr=False)
class FacePair(Brief):
    """A degraded face and its reference-guided restoration, aligned pixel by pixel."""

    restored: Tensor  # (3, h, w)
    degraded: Tensor  # (3, h, w)
    box: Box  # of both in the scene, whole pixels
    notes: tuple[str, ...] = ()  # of the restorer, for the restoration log


@dataclass(frozen=True, eq=False, repr=False)
class DegradationTokens(Brief):
    """Degradation tokens of a face pair for cross-attention: one set for the scene, or one for each of P places."""

    tokens: Tensor  # (1, N, D), or (P, N, D) for P places
    source: str  # "pair", "null" or another fallback's name
    places: tuple[tuple[float, float], ...] = ()  # x, y in pixels of the scene, one for each set

    def near(self, box: Box) -> Tensor:
        """(1, N, D): the set of the place nearest to the centre of `box`."""
        if not self.places:
            return self.tokens
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        far = [(x - px) ** 2 + (y - py) ** 2 for px, py in self.places]
        nearest = far.index(min(far))
        return self.tokens[nearest : nearest + 1]


@dataclass(frozen=True, eq=False, repr=False)
class Scene(Brief):
    """An image to restore, with its faces and reference photos of the people."""

    name: str
    image: Tensor  # (3, H, W)
    faces: tuple[Face, ...] = ()
    people: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)  # name -> reference photos
    notes: dict[str, object] = field(default_factory=dict)  # goes into the restoration log
