"""Faces cut once from the images of a set, so that a batch of faces does not decode whole scenes.

    FOLDER/ab/<digest>.safetensors   up to 64 faces; the digest is that of their keys

A key names what an item was made from: the image's content, the box, and with Stage I the operator, never degraded
pixels, whose last digits differ between processors. So an interrupted filling resumes, sets of the same images share
their faces, and nothing stale is read. The files are mapped into memory: all workers and processes share their pages.
"""

import hashlib
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from face2scene.common.files import atomic_write
from face2scene.data.mix import Mix
from face2scene.faces.align import square_crop_box

_CHUNK = 64  # items of a file


class FaceRegions:
    """The face of every image, uint8 (h, w, 3): its `align.square_crop_box` and the pixels around it.

    Attributes:
        boxes: the square crop in each of the arrays.

    Args:
        context: pixels around the square, as far as the image reaches.
    """

    def __init__(self, mix: Mix, context: int):
        self.mix = mix
        sizes = list(zip(mix.column("height"), mix.column("width"), strict=True))
        squares = [square_crop_box(box, size) for box, size in zip(mix.column("face_box"), sizes, strict=True)]
        low = np.maximum(np.array(squares, np.int64)[:, :2] - context, 0)
        high = np.minimum(np.array(squares, np.int64)[:, 2:] + context, np.array(sizes)[:, ::-1])
        self.regions = np.concatenate([low, high], axis=1)
        self.boxes = (np.array(squares, np.int64) - np.tile(low, 2)).tolist()
        regions = self.regions.tolist()
        self.keys = [f"{content} {region}" for content, region in zip(mix.column("sha256"), regions, strict=True)]

    def __getitem__(self, number: int) -> np.ndarray:
        x0, y0, x1, y1 = self.regions[number]
        return self.mix.image(number)[y0:y1, x0:x1]


class Stored:
    """Images that are kept in a folder once they are made; `fill` makes them.

    Args:
        images: `images[number]` is made on demand, and `images.keys[number]` says from what.

    Raises:
        FileNotFoundError, ValueError: on access, an image was not made, or its file is corrupt.
    """

    def __init__(self, images: Any, folder: str | Path):
        self.images, self.keys, self.folder = images, images.keys, Path(folder)
        chunks = [self.keys[start : start + _CHUNK] for start in range(0, len(self.keys), _CHUNK)]
        digests = [hashlib.sha256("\n".join(chunk).encode()).hexdigest()[:32] for chunk in chunks]
        self.files = [self.folder / digest[:2] / f"{digest}.safetensors" for digest in digests]

    def __getitem__(self, number: int) -> np.ndarray:
        path = self.files[number // _CHUNK]
        try:
            with safe_open(path, framework="np") as file:
                return file.get_tensor(str(number % _CHUNK))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path} is gone: the same command makes it again.") from error
        except SafetensorError as error:
            raise ValueError(f"{path} is corrupt ({error}): remove it, and the same command makes it again.") from error

    def sides(self) -> np.ndarray:
        """The second size of every image: of squares (n, side, side, 3) the side."""
        found = []
        for path in self.files:
            with safe_open(path, framework="np") as file:
                found += [file.get_slice(str(number)).get_shape()[1] for number in range(len(file.keys()))]
        return np.array(found)

    def fill(self, *, workers: int = 0, rank: int = 0, processes: int = 1) -> None:
        """Make what is missing of this process's share of the files, in so many workers; rank 0 shows the progress."""
        missing = [chunk for chunk in range(rank, len(self.files), processes) if not self.files[chunk].is_file()]
        options = {"batch_size": None, "num_workers": min(workers, len(missing)), "generator": torch.Generator()}
        loader: DataLoader = DataLoader(missing, collate_fn=self._make, **options)  # type: ignore[arg-type]
        deque(tqdm(loader, desc=f"Faces to {self.folder}", unit="file", disable=rank > 0 or not missing), maxlen=0)

    def _make(self, chunk: int) -> None:
        numbers = range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, len(self.keys)))
        made = {str(number % _CHUNK): np.ascontiguousarray(self.images[number]) for number in numbers}
        with atomic_write(self.files[chunk]) as partial:
            save_file(made, partial)
