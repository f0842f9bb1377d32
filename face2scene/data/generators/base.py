"""The interface of the generators of synthetic images, and one for tests.

`facegen.py` has the packaged network, `infiniteyou.py` the paper's generator, `ip_adapter.py` any text-to-image
pipeline of diffusers with IP-Adapter.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np


class GeneratorError(RuntimeError):
    """A generator that cannot work with its settings; the message names the option or the file."""


class JobFailed(RuntimeError):
    """One image that the generator could not make; others may succeed."""


@dataclass(frozen=True)
class GenerationRequest:
    """One image to generate, from the fields that the generator supports; equal requests give equal images."""

    person: int  # number of the person, for generators of people
    number: int  # of the image among those of the person or prompt
    seed: int = 0
    prompt: str = ""
    reference: Path | None = None  # a photo of the person


class Generator(Protocol):
    """Generates images of people.

    It may also have `check()`, called before any work, which raises GeneratorError if something is missing, and
    `about()`, the settings and versions for the records.
    """

    def draw(self, request: GenerationRequest) -> np.ndarray:
        """uint8 (H, W, 3).

        Raises:
            GeneratorError: it cannot work at all.
            JobFailed: this image cannot be made; the message says why.
        """
        ...


class DrawnPeople:
    """Faces drawn with ellipses over a gradient, for tests: no weights, no packages, a millisecond each."""

    def __init__(self, *, side: int = 128):
        self.side = side

    def draw(self, request: GenerationRequest) -> np.ndarray:
        """uint8 (side, side, 3), from `person` and `number` alone."""
        person = np.random.default_rng([request.person, 7])
        scene = np.random.default_rng([request.person, request.number, 8])
        y, x = np.mgrid[0 : self.side, 0 : self.side] / self.side
        skin, hair = person.uniform(0.4, 0.9, 3), person.uniform(0.0, 0.5, 3)
        slope = scene.uniform(-1, 1, (2, 3))
        image = 0.5 + 0.4 * ((x - 0.5)[..., None] * slope[0] + (y - 0.5)[..., None] * slope[1])
        image += 0.15 * np.sin(40 * (x + scene.uniform() * y))[..., None]
        middle = 0.5 + scene.uniform(-0.02, 0.02)

        def ellipse(dx: float, at: float, wide: float, high: float, colour: np.ndarray) -> None:
            image[((x - middle - dx) / wide) ** 2 + ((y - at) / high) ** 2 < 1] = colour

        ellipse(0, 0.48, 0.30, 0.40, hair)
        ellipse(0, 0.56, 0.25, 0.36, skin)
        apart, open_ = person.uniform(0.09, 0.13), scene.uniform(0.01, 0.04)
        for side in (-apart, apart):
            ellipse(side, 0.48, 0.05, 0.03, np.ones(3))
            ellipse(side, 0.48, 0.02, 0.025, hair)
        ellipse(0, 0.75, person.uniform(0.06, 0.12), open_, np.array([0.6, 0.1, 0.1]))
        return (image.clip(0, 1) * 255).round().astype(np.uint8)
