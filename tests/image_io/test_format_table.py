"""The page about formats is what the code does."""

import subprocess
import sys

import numpy as np

from face2scene.common.reproducibility import REPOSITORY
from face2scene.image_io.deep import encode_tiff
from face2scene.image_io.metadata import Metadata
from face2scene.image_io.photos import read_photo


def test_format_table_follows_from_the_code(tmp_path):
    page = tmp_path / "formats.md"
    subprocess.run([sys.executable, REPOSITORY / "scripts/draw_formats.py", page], check=True, timeout=300)
    assert page.read_text() == (REPOSITORY / "docs/formats.md").read_text(), "run python scripts/draw_formats.py"


def test_resolution_of_a_deep_tiff_is_kept(tmp_path):
    content = encode_tiff(np.zeros((4, 5, 3), np.uint16), Metadata(dpi=(300, 150)), None)
    (tmp_path / "a.tif").write_bytes(content)
    assert read_photo(tmp_path / "a.tif").metadata.dpi == (300, 150)
