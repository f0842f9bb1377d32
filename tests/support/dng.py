"""RAW files whose content is known."""

from pathlib import Path

import numpy as np
import tifffile

WHITE_BALANCE = np.array([2.0, 1.0, 1.6])
BLACK, WHITE = 512, 16383


def write_dng(path: Path, rgb: np.ndarray, *, iso: int = 800, exposure=(1, 50), model="Camera", more=()) -> Path:
    """A Bayer DNG whose ground truth is `rgb`, float (H, W, 3) in [0, 1], even sides; `more` are further tags."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    camera, bayer = linear / WHITE_BALANCE, np.empty(rgb.shape[:2])
    for (y, x), channel in {(0, 0): 0, (0, 1): 1, (1, 0): 1, (1, 1): 2}.items():
        bayer[y::2, x::2] = camera[y::2, x::2, channel]
    raw = np.clip(np.round(bayer * (WHITE - BLACK) + BLACK), 0, WHITE).astype("u2")
    to_camera = [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]]

    def fractions(values) -> list[int]:
        return [part for value in np.ravel(values) for part in (round(value * 10000), 10000)]

    tags = [
        (50706, "B", 4, bytes([1, 4, 0, 0]), True),
        (50707, "B", 4, bytes([1, 1, 0, 0]), True),
        (50708, "s", 0, f"Synthetic {model}", True),
        (33421, "H", 2, (2, 2), True),
        (33422, "B", 4, bytes([0, 1, 1, 2]), True),
        (50710, "B", 3, bytes([0, 1, 2]), True),
        (50711, "H", 1, 1, True),
        (50714, "H", 1, BLACK, True),
        (50717, "H", 1, WHITE, True),
        (50721, "2i", 9, fractions(np.diag(1 / WHITE_BALANCE) @ np.array(to_camera)), True),
        (50778, "H", 1, 21, True),
        (50728, "2I", 3, fractions(1 / WHITE_BALANCE), True),
        (271, "s", 0, "Synthetic", True),
        (272, "s", 0, model, True),
        (33434, "2I", 1, exposure, True),
        (34855, "H", 1, iso, True),
        *more,
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, raw, photometric=32803, compression=None, extratags=tags, metadata=None)
    return path
