"""What the pipeline gives back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from face2scene.images import to_array, to_bytes
from face2scene.measure import Measurement
from face2scene.photos import Photo, write_photo
from face2scene.records import Face


@dataclass(frozen=True, eq=False)
class Restoration:
    """A restored picture and how it came about."""

    image: Tensor  # (3, H, W) in [0, 1], on the CPU; its size is `images.output_size` of the input's
    measurement: Measurement
    notes: dict[str, Any]  # one line of the why-log, without the file names
    photo: Photo | None = None  # the input: its transparency, depth, profile and EXIF go with what is saved

    @property
    def faces(self) -> tuple[Face, ...]:
        """The faces found, largest first; `notes["faces"]` says whose they are."""
        return self.measurement.faces

    @property
    def token_source(self) -> str:
        """`pair` (of faces), `burst`, `blind` or `null`; the reason is among `notes["warnings"]`."""
        return self.measurement.tokens.source

    @property
    def seconds(self) -> dict[str, float]:
        """By stage: faces, ref_fr, tokens, restore."""
        return {key.removeprefix("seconds_"): v for key, v in self.notes.items() if key.startswith("seconds_")}

    @property
    def pil(self) -> Image.Image:
        """The picture in 8 bits, without what its file knew."""
        return Image.fromarray(to_bytes(self.image))

    def save(self, path: str | Path) -> None:
        """Write PNG, JPEG, TIFF or WebP by the path's suffix, see `photos.write_photo`."""
        write_photo(path, to_array(self.image), like=self.photo)
