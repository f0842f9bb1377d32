"""Sharpness measures of a face that do not depend on its size in pixels.

The variance of the Laplacian is the usual measure and falls with any loss of detail. The blur of the sharpest edges is
a length, which separates defocus from a smooth face; its change with direction shows motion blur.
"""

import numpy as np
from PIL import Image
from scipy import ndimage

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
_REBLUR = 1.5  # pixels
_EDGES = 0.05  # share of the pixels, those of the steepest gradients, that count as edges


def laplacian_variance(face: np.ndarray, side: int = 160) -> float:
    """Variance of the Laplacian of a face (H, W, 3) in [0, 1], reduced to `side` pixels if it is larger.

    Smaller faces are not enlarged: interpolation would look like blur.
    """
    height, width = face.shape[:2]
    grey = face @ _LUMA * 255
    factor = side / max(height, width)
    if factor < 1:
        size = max(3, round(width * factor)), max(3, round(height * factor))
        grey = np.asarray(Image.fromarray(grey).resize(size, Image.BOX))
    return float(ndimage.laplace(grey, mode="nearest").var())


def edge_blur(image: np.ndarray) -> float:
    """Standard deviation in pixels of the blur at the sharpest edges (Zhuo and Sim, Pattern Recognition 2011).

    An edge is blurred again by a known amount; the ratio of both gradients gives its original blur. The result is the
    median over the steepest pixels, and infinity for an image without edges.
    """
    return _blur_at(*_gradients(image))


def directional_blur(image: np.ndarray, directions: int = 8) -> tuple[float, float, float]:
    """The anisotropy of the blur, a sign of motion.

    Returns:
        Largest over smallest blur across edges of `directions` directions, the largest in pixels, and its direction in
        degrees (0 is horizontal motion). (1, blur, 0) where too few directions have edges.
    """
    first, second = _gradients(image)
    angle = np.degrees(np.arctan2(first[0], first[1])) % 180
    steep = np.hypot(*first)
    found = []
    for number in range(directions):
        centre = number * 180 / directions
        near = np.abs((angle - centre + 90) % 180 - 90) <= 90 / directions
        if near.sum() >= 200 and steep[near].max() > 2:
            found.append((_blur_at([g * near for g in first], [g * near for g in second]), centre))
    found = [pair for pair in found if np.isfinite(pair[0])]
    if len(found) < directions / 2:
        return 1.0, edge_blur(image), 0.0
    (low, _), (high, direction) = min(found), max(found)
    return max(high, 0.3) / max(low, 0.3), high, direction


def _gradients(pixels: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    grey = pixels @ _LUMA * 255
    reblurred = ndimage.gaussian_filter(grey, _REBLUR, mode="nearest")
    return [
        [ndimage.gaussian_filter(image, 0.5, order=o, mode="nearest") for o in ((1, 0), (0, 1))]
        for image in (grey, reblurred)
    ]


def _blur_at(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    steep, smoothed = np.hypot(*first), np.hypot(*second)
    positive = steep[steep > 0]
    if not positive.size:
        return float("inf")
    edges = steep >= max(np.quantile(positive, 1 - _EDGES), 1.0)
    # The formula holds at the edge itself only, where the gradient is a local maximum.
    edges &= steep >= 0.95 * ndimage.maximum_filter(steep, 3)
    if not edges.any():
        return float("inf")
    ratio = steep[edges] / np.maximum(smoothed[edges], 1e-6)
    blur = _REBLUR / np.sqrt(np.maximum(ratio**2 - 1, 1e-6))
    return float(np.sqrt(max(np.median(blur) ** 2 - 0.5**2, 0.0)))  # 0.5: the blur of the derivative filter
