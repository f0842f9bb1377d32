"""What the pipeline gives back."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from face2scene.common.types import DegradationTokens, Face, FacePair
from face2scene.image_io.arrays import to_array, to_bytes
from face2scene.image_io.photos import Photo, write_photo


@dataclass(frozen=True, eq=False)
class FaceEstimate:
    """What one face, or one square of the image in its place, says."""

    pair: FacePair
    features: Tensor  # (1, C, h, w) FaDeX's map, on the CPU
    tokens: Tensor  # (1, N, D)
    face: Face | None = None  # None where only the box was known, and for a square
    person: str | None = None


@dataclass(frozen=True, eq=False)
class DegradationEstimate:
    """What a scene says about its degradation."""

    tokens: DegradationTokens
    faces: tuple[Face, ...] = ()
    face_estimates: tuple[FaceEstimate, ...] = ()  # the tokens were made of these
    notes: dict[str, Any] = field(default_factory=dict)  # for the restoration log

    @property
    def pair(self) -> FacePair | None:
        """Of the first face that was read; squares of the image are no face pairs."""
        return self.face_estimates[0].pair if self.face_estimates and self.tokens.source == "pair" else None


def averaged(estimates: Sequence[DegradationEstimate], of: DegradationEstimate) -> DegradationEstimate:
    """The measurement of an image without a usable face, with the mean tokens of its burst's siblings.

    Raises:
        ValueError: no sibling was measured by a face.
    """
    tokens = [one.tokens.tokens.mean(0, keepdim=True) for one in estimates if one.tokens.source == "pair"]
    if not tokens:
        raise ValueError("No image of the burst shows a face that could be used.")
    notes = of.notes | {"warnings": list(of.notes.get("warnings", []))}
    mean = torch.cat(tokens).mean(0, keepdim=True)
    return DegradationEstimate(DegradationTokens(mean, "burst"), of.faces, of.face_estimates, notes)


@dataclass(frozen=True, eq=False)
class Restoration:
    """A restored image and how it came about."""

    image: Tensor  # (3, H, W) in [0, 1], on the CPU; its size is `images.output_size` of the input's
    estimate: DegradationEstimate
    notes: dict[str, Any]  # one line of the restoration log, without the file names
    photo: Photo | None = None  # the input: its transparency, depth, profile and EXIF go with what is saved

    @property
    def faces(self) -> tuple[Face, ...]:
        """The faces found, largest first; `notes["faces"]` says whose they are."""
        return self.estimate.faces

    @property
    def token_source(self) -> str:
        """`pair` (of faces), `burst`, `blind` or `null`; the reason is among `notes["warnings"]`."""
        return self.estimate.tokens.source

    @property
    def seconds(self) -> dict[str, float]:
        """By stage: faces, ref_fr, tokens, restore."""
        return {key.removeprefix("seconds_"): v for key, v in self.notes.items() if key.startswith("seconds_")}

    @property
    def pil(self) -> Image.Image:
        """The image in 8 bits, without what its file knew."""
        return Image.fromarray(to_bytes(self.image))

    def save(self, path: str | Path) -> None:
        """Write PNG, JPEG, TIFF or WebP by the path's suffix, see `photos.write_photo`."""
        write_photo(path, to_array(self.image), like=self.photo)
