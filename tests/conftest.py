"""What tests share: fetched assets by name, and one real photo."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from face2scene.weights import folder


@pytest.fixture(scope="session")
def weights() -> Callable[[str], Path]:
    """The ready folder of an asset by its catalogue name; a missing one fails, naming its command."""
    return folder


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """A real photo with one face: float32 (512, 512, 3) in [0, 1]; read-only, since all tests share it."""
    from skimage import data

    image = data.astronaut().astype(np.float32) / 255
    image.flags.writeable = False
    return image
