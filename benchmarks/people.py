"""Packaged photos with one person each, none of whom a shipped FaDeX was trained on, and where their faces are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from face2scene.assets import catalogue
from face2scene.cli.command_line import CONFIGS
from face2scene.common.types import Box
from face2scene.data.building.build import largest
from face2scene.eval.probe.faces import ProbeFace, cut
from face2scene.faces.align import square_crop_box
from face2scene.image_io.arrays import read_image, resize, to_array, to_tensor

# None is in `train` of configs/data/fadex.yaml. Barack Obama's two belong to its `val`, by which settings of that
# training were chosen; the tiny base, which nothing here uses, was trained on the others.
FILES = {
    "photos_argon": [
        *(f"team-{n}.jpg" for n in range(1, 5)),
        "bruce-mars.jpg",
        "ivana-square.jpg",
        "kal-visuals-square.jpg",
        "marie.jpg",
    ],
    "photos_argon_free": [*(f"team-{n}.jpg" for n in range(1, 5)), "profile-cover.jpg"],
    "photos_uikit": ["avatar.jpg"],
    "photos_face_recognition": ["obama.jpg", "obama2.jpg"],
}


@dataclass(frozen=True, eq=False)
class Person:
    """A photo (3, H, W) in [0, 1], and the square around its largest face in whole pixels."""

    name: str
    image: Tensor
    face: Box

    @property
    def inside(self) -> tuple[slice, slice]:
        """Rows and columns of the face."""
        x0, y0, x1, y1 = (int(v) for v in self.face)
        return slice(y0, y1), slice(x0, x1)


def _detector() -> Any:
    options = OmegaConf.merge(OmegaConf.load(CONFIGS / "faces/open.yaml"), {"landmarks": False, "identities": False})
    return instantiate(options, _convert_="all")


def _reduced(path: Path, longest: int) -> Tensor:
    image = to_tensor(read_image(path))
    share = min(1.0, longest / max(image.shape[-2:]))
    return resize(image, (round(image.shape[-2] * share), round(image.shape[-1] * share))) if share < 1 else image


def people(longest: int, *, quick: bool = False) -> list[Person]:
    """The photos, reduced to `longest` pixels; with `quick` every fourth.

    Raises:
        MissingWeights: photos or the detector are not fetched.
        ValueError: no face is found in a photo.
    """
    places = [(asset, catalogue.folder(asset) / file) for asset, files in FILES.items() for file in files]
    detector, found = _detector(), []
    for asset, path in places[:: 4 if quick else 1]:
        image = _reduced(path, longest)
        face = largest(detector.find(to_array(image)))
        if face is None:
            raise ValueError(f"No face is found in {path}.")
        size = (image.shape[-2], image.shape[-1])
        found.append(Person(f"{asset.removeprefix('photos_')}/{path.stem}", image, square_crop_box(face.box, size)))
    return found


def find_faces(asset: str, files: Sequence[str], *, crop: int, margin: int, longest: int = 1024) -> list[ProbeFace]:
    """Up to five faces of each photo at up to `longest` pixels, in crops as the probe's."""
    detector, found = _detector(), []
    for file in files:
        image = _reduced(catalogue.folder(asset) / file, longest)
        found += [cut(image, face.box, file, file, crop, margin) for face in detector.find(to_array(image))[:5]]
    return found
