"""Input types of the pipeline.

An image is a path, a PIL image, an array, a tensor, or a `Scene`. References are photos of one person (paths or images,
or a folder of them) or of several (a dict from names to these, or a folder of folders).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from face2scene.faces.matching import people_of, photos_in
from face2scene.image_io.arrays import output_size, resize, resize_with_alpha, to_array, to_tensor, write_png
from face2scene.image_io.deep import Samples
from face2scene.image_io.metadata import Metadata
from face2scene.image_io.photos import MAX_PIXELS, ImageError, Photo, from_samples, photo_of, read_photo
from face2scene.image_io.raw import Development

ImageInput = str | Path | Image.Image | np.ndarray | Tensor


def as_photo(image: ImageInput, *, max_pixels: int = MAX_PIXELS, development: Development | None = None) -> Photo:
    """Read or wrap one image.

    Args:
        image: a path; a PIL image; an array (H, W), (H, W, 3) or (H, W, 4) of bytes, of 16-bit levels, or of floats
            in [0, 1]; a tensor (3, H, W) of floats in [0, 1].
        development: of a file of camera RAW, see `read_photo`.

    Raises:
        ImageError: another shape, dtype or range; a file that cannot be read.
        FileNotFoundError: no such file.
        TypeError: another type.
    """
    if isinstance(image, str | Path):
        return read_photo(image, max_pixels=max_pixels, development=development)
    if isinstance(image, Image.Image):
        return photo_of(image, max_pixels=max_pixels)
    if isinstance(image, Tensor):
        if image.dim() != 3 or image.shape[0] != 3 or not image.is_floating_point():
            raise ImageError(f"A tensor must be (3, H, W) of floats in [0, 1], not {tuple(image.shape)}.")
        image = to_array(image)
    if isinstance(image, np.ndarray):
        return _from_array(image)
    raise TypeError(
        f"An image is a path, a PIL image, an array, a tensor or a Scene, not {type(image).__name__}. "
        "Several go in one list."
    )


def _from_array(array: np.ndarray) -> Photo:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape:
        raise ImageError(f"An array must be (H, W), (H, W, 3) or (H, W, 4), not {array.shape}.")
    top = {"uint8": 255, "uint16": 65535}.get(array.dtype.name, 1)
    if top == 1 and not np.issubdtype(array.dtype, np.floating):
        raise ImageError(f"An array must hold uint8, uint16 or floats in [0, 1], not {array.dtype}.")
    values = array.astype(np.float32) / top
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise ImageError("An array of floats must lie in [0, 1]: divide bytes by 255.")
    values = values.reshape(*values.shape[:2], channels)
    alpha = values[..., 3] if channels == 4 else None
    return from_samples(Samples(values[..., :3], alpha, 16 if top == 65535 else 8), None, 1, Metadata(), [])


def name_of(image: ImageInput, photo: Photo) -> str:
    """A path's stem, else a digest of the pixels, so that the position in a list does not affect the seed."""
    if isinstance(image, str | Path):
        return Path(image).stem
    return hashlib.sha256(np.ascontiguousarray(photo.image).tobytes()).hexdigest()[:16]


def enlarged(photo: Photo, scale: float) -> Photo:
    """The photo and its transparency at `image_io.arrays.output_size`; bicubic."""
    size = output_size(photo.image.shape[:2], scale)
    if size == photo.image.shape[:2]:
        return photo
    if photo.alpha is None:
        return replace(photo, image=to_array(resize(to_tensor(photo.image), size)))
    image, alpha = resize_with_alpha(photo.image, photo.alpha, size)
    return replace(photo, image=image, alpha=alpha)


class References:
    """Turns references into files by person; images without a file are written to a temporary folder of this object."""

    def __init__(self):
        self._folder: TemporaryDirectory | None = None

    def __call__(self, given: Any) -> dict[str, tuple[Path, ...]]:
        """Photos by person.

        Args:
            given: None; a photo or a folder; a sequence of photos; a mapping from names to any of these. A folder of
                folders has one person in each.

        Raises:
            FileNotFoundError: no such file or folder, or a folder without images.
            TypeError, ImageError: see `as_photo`.
        """
        if given is None:
            return {}
        if isinstance(given, Mapping):
            return {str(name): self._files(one) for name, one in given.items()}
        if isinstance(given, str | Path):
            return people_of(given)
        files = self._files(given)
        return {files[0].resolve().parent.name: files} if files else {}

    def _files(self, given: Any) -> tuple[Path, ...]:
        if isinstance(given, str | Path):
            return photos_in(given)
        if isinstance(given, Image.Image | np.ndarray | Tensor):
            given = [given]
        return tuple(path for one in given for path in self._file(one))

    def _file(self, image: ImageInput) -> tuple[Path, ...]:
        if isinstance(image, str | Path):
            return photos_in(image)
        photo = as_photo(image)
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="face2scene-references-")
        path = Path(self._folder.name) / f"{name_of(image, photo)}.png"
        if not path.exists():
            write_png(path, photo.on_white())
        return (path,)
