"""Photos of people with one hue each, a detector that identifies them by it, and sets built from them."""

from pathlib import Path

import numpy as np
from PIL import Image

from face2scene.common.types import Face
from face2scene.data.building.build import build, rejected_rows
from face2scene.data.building.finalize import FinalizePlan
from face2scene.data.generators.base import DrawnPeople, GenerationRequest
from face2scene.degradation import Space
from face2scene.faces.detect import Detector

SMALL = Space(scale=1, kernel_sizes=(7, 7), resize_probs=(0, 0, 1), resize_probs2=(0, 0, 1), final_sinc_prob=0)


class MiddleFaces(Detector):
    """Finds a face in the middle of every image that is not uniform; its identity follows from the brightness."""

    model, share = "mean", 0.2  # of the identity; side of the face in the image's

    def __init__(self):
        super().__init__(None)

    def find(self, image):
        height, width = image.shape[:2]
        if image.std() < 0.01:
            return []
        low, high = 0.5 - self.share / 2, 0.5 + self.share / 2
        box = (width * low, height * low, width * high, height * high)
        vector = self.identity(image)
        return [Face(box, 0.9, np.zeros((5, 2)), np.full((68, 2), 5.0), vector / np.linalg.norm(vector), self.model)]

    def identity(self, image):
        return np.array([image.mean(), 1.0])


class ColourFaces(MiddleFaces):
    """The same with a larger face, whose identity vector follows from the hue."""

    model, share = "hue", 0.3

    def identity(self, image):
        return image.mean((0, 1)) - image.mean()


def colour_faces(backend: None) -> ColourFaces:
    """`ColourFaces` as a target in place of `faces=none`."""
    return ColourFaces()


HUES = {"ann": (0.8, 0.2, 0.2), "ben": (0.2, 0.8, 0.2), "cat": (0.2, 0.2, 0.8)}


def pixels(person="ann", seed=0, size=(90, 60)) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 0.1, (size[1], size[0], 3))
    return ((np.array(HUES[person]) + noise).clip(0, 1) * 255).astype(np.uint8)


def photo(path: Path, person="ann", seed=0, size=(90, 60), **save) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(person, seed, size)).save(path, **save)
    return path


def built(folder, *sources, plan=None, **options):
    options = {"settings": {}, "space": SMALL, "plan": plan or FinalizePlan(), **options}
    return build(folder, sources, **options)


OPTIONS = {"name": "photos", "size": 32, "min_face": 8, "licence": "mine"}


def reasons(folder: Path) -> dict[str, tuple[str, str]]:
    return {row["name"].split("/", 1)[1]: (row["stage"], row["reason"]) for row in rejected_rows(folder)}


def drawn_people(**_: object) -> DrawnPeople:
    """Stands for the packaged generator of people, whatever its settings."""
    return DrawnPeople(side=64)


class SamePerson:
    """Stands for a generator of prompted scenes, whatever its settings: every image is the photo of the reference."""

    def __init__(self, **_: object):
        pass

    def about(self) -> dict[str, str]:
        return {"name": "same person"}

    def draw(self, job: GenerationRequest) -> np.ndarray:
        with Image.open(job.reference, formats=["PNG"]) as image:
            return np.asarray(image.convert("RGB"))
