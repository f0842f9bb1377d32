"""Records of an InScene set, for the tests that lay one out by hand."""

from pathlib import Path
from typing import Any

from PIL import Image

from face2scene.common.files import sha256_of
from face2scene.common.types import Box
from face2scene.data.records import Record


def record(image: Path, face_box: Box, /, **known: Any) -> Record:
    """A training image's record; what a test does not give is empty, or what the file says."""
    with Image.open(image) as file:
        width, height = file.size
    plain = {
        "image": image.name,
        "split": "train",
        "identity": image.stem,
        "prompt": "",
        "shot": "close-up",
        "face_box": face_box,
        "landmarks_68": None,
        "references": (),
        "similarity": None,
        "width": width,
        "height": height,
        "sha256": sha256_of(image),
        "source": "test",
        "licence": "",
        "generator": {},
    }
    return Record(**plain | known)
