"""Fixtures of tests/inference."""

from pathlib import Path

import pytest
from inverting_pipeline import make_image


@pytest.fixture
def photo_folder(tmp_path) -> Path:
    """Three plain images, one of them in a folder below."""
    for name in ("a", "b", "sub/c"):
        make_image(tmp_path / f"in/{name}.png")
    return tmp_path / "in"
