"""Results of the pipeline: degradation estimates, restorations, and the outcome of a folder."""

from collections import Counter
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from face2scene.common.types import Brief, DegradationTokens, Face, FacePair
from face2scene.image_io.arrays import to_array, to_bytes
from face2scene.image_io.photos import Photo, write_photo


@dataclass(frozen=True, eq=False, repr=False)
class FaceEstimate(Brief):
    """The degradation estimated from one face pair, or from one image patch where there is no face."""

    pair: FacePair
    features: Tensor  # (1, C, h, w) of FaDeX, on the CPU
    tokens: Tensor  # (1, N, D)
    face: Face | None = None  # None for a given box and for a patch
    person: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class DegradationEstimate(Brief):
    """The degradation of a scene."""

    tokens: DegradationTokens
    faces: tuple[Face, ...] = ()
    face_estimates: tuple[FaceEstimate, ...] = ()  # the tokens are computed from these
    notes: dict[str, Any] = field(default_factory=dict)  # for the restoration log

    @property
    def pair(self) -> FacePair | None:
        """The first face pair; image patches are no face pairs."""
        return self.face_estimates[0].pair if self.face_estimates and self.tokens.source == "pair" else None


@dataclass(frozen=True, eq=False, repr=False)
class Restoration:
    """A restored image, with its degradation estimate and notes."""

    image: Tensor  # (3, H, W) in [0, 1], on the CPU; its size is `image_io.arrays.output_size` of the input's
    estimate: DegradationEstimate
    notes: dict[str, Any]  # its line of the restoration log, without the file names
    photo: Photo | None = None  # the input; `save` keeps its transparency, depth, profile and EXIF
    scene: Tensor | None = None  # (3, H, W), the input at the output's size
    full: Tensor | None = None  # (3, H, W), the image at fidelity 0

    def at_fidelity(self, fidelity: float) -> "Restoration":
        """The same restoration with another share of the input in it, from 0, none, to 1; no network runs again.

        Raises:
            ValueError: outside [0, 1], or a restoration without its input.
        """
        if not 0 <= fidelity <= 1 or self.scene is None:
            raise ValueError(f"The fidelity must be from 0 to 1, of a result of the pipeline; it is {fidelity}.")
        full = self.image if self.full is None else self.full
        image = torch.lerp(full, self.scene, fidelity) if 0 < fidelity < 1 else (self.scene if fidelity else full)
        return replace(self, image=image, full=full, notes=self.notes | {"fidelity": fidelity})

    @property
    def faces(self) -> tuple[Face, ...]:
        """The faces found, largest first; `notes["faces"]` has their identities."""
        return self.estimate.faces

    @property
    def token_source(self) -> str:
        """`pair` (of faces), `burst`, `estimated`, `blind` or `null`; the reason is among `notes["warnings"]`."""
        return self.estimate.tokens.source

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage: faces, ref_fr, tokens, restore."""
        return {key.removeprefix("seconds_"): v for key, v in self.notes.items() if key.startswith("seconds_")}

    @property
    def pil(self) -> Image.Image:
        """The image in 8 bits, without metadata."""
        return Image.fromarray(to_bytes(self.image))

    def __repr__(self) -> str:
        height, width = self.image.shape[-2:]
        counts = {"face": len(self.faces), "warning": len(self.notes.get("warnings", []))}
        counted = (f"{count} {what}{'s' * (count != 1)}" for what, count in counts.items())
        parts = [f"{width} x {height}", f"tokens={self.token_source}", *counted, f"{sum(self.seconds.values()):.1f} s"]
        return f"Restoration({', '.join(parts)})"

    def _repr_png_(self) -> bytes:
        """The picture that notebooks show, at most 1024 pixels wide and high."""
        picture, file = self.pil, BytesIO()
        picture.thumbnail((1024, 1024))
        picture.save(file, "PNG")
        return file.getvalue()

    def compare(self) -> Image.Image:
        """The input, at the output's size, and the restored image side by side.

        Raises:
            ValueError: a restoration without its input.
        """
        if self.scene is None:
            raise ValueError("There is no input to compare with: only results of the pipeline know theirs.")
        return Image.fromarray(to_bytes(torch.cat([self.scene, self.image], dim=-1)))

    def of(self, photo: Photo | None) -> "Restoration":
        """The same with its photo, whose warnings come first in the notes."""
        if photo is None:
            return self
        warnings = [*photo.warnings, *self.notes.get("warnings", [])]
        return replace(self, photo=photo, notes=self.notes | {"warnings": warnings})

    def save(self, path: str | Path) -> None:
        """Write PNG, JPEG, TIFF or WebP by the path's suffix, see `image_io.photos.write_photo`."""
        write_photo(path, to_array(self.image), like=self.photo)


@dataclass
class BatchResult:
    """Result of a folder."""

    restored: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # file to reason
    seconds_models: float = 0.0  # in faces, Stage I, FaDeX and the restorer
    seconds: float = 0.0  # from the first image to the last
    stopped: str = ""  # why not all images were tried
    without_pair: Counter[str] = field(
        default_factory=Counter
    )  # restored images without face pair, by tokens and reason
    warned: int = 0  # restored images whose log line has warnings

    def add(self, other: "BatchResult") -> None:
        """Add the result of another process's share."""
        self.restored += other.restored
        self.skipped += other.skipped
        self.failed |= other.failed
        self.seconds_models += other.seconds_models
        self.seconds = max(self.seconds, other.seconds)
        self.stopped = self.stopped or other.stopped
        self.without_pair += other.without_pair
        self.warned += other.warned
