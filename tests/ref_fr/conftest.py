"""Fixtures of tests/ref_fr."""

import copy
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from face2scene.image_io.arrays import write_png
from face2scene.ref_fr.base import in_bytes
from face2scene.ref_fr.faceme import tiny


@pytest.fixture(scope="module")
def faceme_parts_made_once():
    """Random networks of FaceMe cost more to make than to run; every model still gets its own."""
    made = functools.cache(tiny.tiny_parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "tiny_parts", lambda seed=0: copy.deepcopy(made(seed)))
        yield


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> dict[str, list[Path]]:
    """Two people of three photos each: WholeImage tells them apart by their colours."""
    folder = tmp_path_factory.mktemp("people")
    rng, photos = np.random.default_rng(0), {}
    for name, colour in {"ann": (0.9, 0.4, 0.2), "bob": (0.1, 0.3, 0.9)}.items():
        photos[name] = [folder / f"{name}{n}.png" for n in range(3)]
        for path in photos[name]:
            write_png(path, np.float32(colour) + rng.uniform(-0.05, 0.05, (80, 64, 3)).astype(np.float32))
    return photos


@pytest.fixture(scope="module")
def faces() -> torch.Tensor:
    """(3, 3, 64, 64), the same every time."""
    smooth = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return in_bytes(F.interpolate(smooth, size=(64, 64), mode="bicubic"))
