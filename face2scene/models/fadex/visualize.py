"""Images for the training log: face pairs, the cosine matrix, nearest neighbours; uint8 (H, W, 3)."""

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from face2scene.image_io.arrays import to_bytes

_CELL = 6  # pixels a side of one cosine
_FRAME = 3  # pixels
_RIGHT, _WRONG = (40, 160, 70), (200, 50, 40)


def pair_sheet(restored: Tensor, degraded: Tensor, *, columns: int = 4) -> np.ndarray:
    """One row per operator with its first images, each restored and degraded side by side.

    Args:
        restored, degraded: (O, P, 3, h, w) in [0, 1].
    """
    pairs = torch.stack([restored, degraded], dim=2)[:, :columns]  # (O, columns, 2, 3, h, w)
    return to_bytes(pairs.permute(3, 0, 4, 1, 2, 5).flatten(3).flatten(1, 2))


def cosine_map(embeddings: Tensor) -> np.ndarray:
    """The cosine matrix of all embeddings, ordered by operator: blue is -1, white 0, red 1.

    Args:
        embeddings: (O, P, D) unit vectors.
    """
    flat = embeddings.detach().float().cpu().flatten(0, 1)
    cosines = (flat @ flat.T).clamp(-1, 1).numpy()
    strength = np.abs(cosines)[..., None]
    colour = np.where(cosines[..., None] > 0, (178, 24, 43), (33, 102, 172))
    cells = (255 * (1 - strength) + colour * strength).round().astype(np.uint8)
    return cells.repeat(_CELL, axis=0).repeat(_CELL, axis=1)


def neighbour_sheet(degraded: Tensor, embeddings: Tensor, *, count: int = 4) -> np.ndarray:
    """One row per operator: its first image, then the nearest neighbours among other images.

    A green frame marks the same operator, a red one another.

    Args:
        degraded: (O, P, 3, h, w) in [0, 1].
        embeddings: (O, P, D) unit vectors.
    """
    operators, images = embeddings.shape[:2]
    flat = embeddings.detach().float().cpu().flatten(0, 1)
    crops = degraded.cpu().flatten(0, 1)
    other = torch.arange(operators * images) % images != 0
    rows = []
    for operator in range(operators):
        query = operator * images
        nearest = (flat @ flat[query]).masked_fill(~other, -2).argsort(descending=True)[:count].tolist()
        tiles = [_framed(to_bytes(crops[query]), (128, 128, 128))]
        tiles += [_framed(to_bytes(crops[n]), _RIGHT if n // images == operator else _WRONG) for n in nearest]
        rows.append(np.concatenate(tiles, axis=1))
    return np.concatenate(rows, axis=0)


def _framed(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.asarray(ImageOps.expand(Image.fromarray(image), _FRAME, colour))
