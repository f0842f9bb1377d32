"""Face alignment and its inverse: templates, similarity transforms, warping, pasting, crops.

Points are (x, y) with the centre of the first pixel at (0, 0), as detectors give them; boxes are pixel edges,
so the first pixel is the box (0, 0, 1, 1).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F

from face2scene.common.types import Box

# Left eye, right eye, nose tip, left and right mouth corner, as seen in the image.
FFHQ_512 = np.array(  # the mean landmarks of FFHQ's alignment, as face restorers use them
    [[192.98138, 239.94708], [318.90277, 240.1936], [256.63416, 314.01935], [201.26117, 371.41043],
     [313.08905, 371.15118]]
)  # fmt: skip
ARCFACE_112 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
TEMPLATES = {"ffhq": (FFHQ_512, 512), "arcface": (ARCFACE_112, 112)}  # and the side in pixels they are made for
MAX_FACE_SIZE = 256  # pixels of a face crop (ours: the cost of MapNet's attention rises with the fourth power)


class AlignmentError(ValueError):
    """Landmarks, a box or an image from which no face can be aligned or cropped; the message gives the reason."""


@dataclass(frozen=True, eq=False)
class Similarity:
    """Rotation, uniform scale and shift: `matrix` is (2, 3) float64 and takes (x, y, 1) to (x, y)."""

    matrix: np.ndarray

    @property
    def scale(self) -> float:
        """Lengths in the result over lengths in the source."""
        return float(np.hypot(self.matrix[0, 0], self.matrix[1, 0]))

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Transform points (N, 2); float64."""
        return np.asarray(points, dtype=np.float64) @ self.matrix[:, :2].T + self.matrix[:, 2]

    def inverse(self) -> "Similarity":
        """The inverse transform."""
        linear = np.linalg.inv(self.matrix[:, :2])
        return Similarity(np.column_stack([linear, -linear @ self.matrix[:, 2]]))


def five_points(landmarks_68: ArrayLike) -> np.ndarray:
    """The five points of `types.Face` from 68 (iBUG order): eyes, nose tip, mouth corners; (5, 2)."""
    points = np.asarray(landmarks_68, dtype=np.float64)
    return np.stack([points[36:42].mean(0), points[42:48].mean(0), points[30], points[48], points[54]])


def similarity(source: np.ndarray, target: np.ndarray) -> Similarity:
    """The similarity transform from `source` to `target` in least squares, without reflections (Umeyama 1991).

    Args:
        source, target: (N, 2) finite float64 points, N at least 2.

    Raises:
        AlignmentError: when the points coincide, or have no shape in common.
    """
    from_mean, to_mean = source.mean(0), target.mean(0)
    moved, wanted = source - from_mean, target - to_mean
    spread = (moved**2).sum() / len(source)
    if spread < 1e-6 or (wanted**2).sum() / len(source) < 1e-6:
        raise AlignmentError("The landmarks coincide in one point, so their size and direction are undefined.")
    left, singular, right = np.linalg.svd(wanted.T @ moved / len(source))
    sign = np.array([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right)) or 1.0])
    scale = (singular * sign).sum() / spread
    if scale < 1e-6:
        raise AlignmentError("The landmarks have no common shape with the template (are they in the right order?).")
    linear = scale * (left * sign) @ right
    return Similarity(np.column_stack([linear, to_mean - linear @ from_mean]))


def face_transform(
    landmarks_5: np.ndarray, size: int = 512, template: str = "ffhq", *, image_size: tuple[int, int] | None = None
) -> Similarity:
    """From an image to the aligned face of `size` x `size` pixels.

    Args:
        landmarks_5: (5, 2), see `types.Face`.
        template: `ffhq` (head and shoulders) or `arcface` (the tight crop of identity networks).
        image_size: height and width; where given, the landmarks' mean must lie in the image.

    Raises:
        AlignmentError: for degenerate landmarks: collinear, on one point, not finite, or outside the image.
    """
    points = np.asarray(landmarks_5, dtype=np.float64)
    if points.shape != (5, 2):
        raise AlignmentError(f"Five landmarks (5, 2) are needed, got {points.shape}.")
    if not np.isfinite(points).all():
        raise AlignmentError("Landmarks hold NaN or infinite values.")
    wide, narrow = np.linalg.svd(points - points.mean(0), compute_uv=False)
    if narrow < 0.02 * wide:  # our setting: true profiles stay above 0.1
        raise AlignmentError("The five landmarks lie on one line, which those of a face never do.")
    if image_size is not None:
        (x, y), (height, width) = points.mean(0), image_size
        if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
            raise AlignmentError(
                f"The landmarks lie around ({x:.0f}, {y:.0f}), outside an image of {width} x {height}."
            )
    wanted, side = TEMPLATES[template]
    return similarity(points, (wanted + 0.5) * (size / side) - 0.5)  # pixel centres to edges and back


def warp(image: Tensor, transform: Similarity, size: tuple[int, int]) -> Tensor:
    """`image` (3, H, W) transformed to (3, *size): bilinear, averaged first where it shrinks, edges repeated."""
    height, width = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    points = transform.inverse()(np.stack([x.ravel(), y.ravel()], axis=1))
    return _sample(image, points, shrink=1 / transform.scale).reshape(-1, height, width)


def _sample(image: Tensor, points: np.ndarray, shrink: float) -> Tensor:
    # Values of (C, H, W) at points (N, 2): (C, N). Reads only the part of the image around them.
    height, width = image.shape[-2:]
    step = max(1, int(shrink))  # image pixels per result pixel
    corner = np.floor(points.min(0)).astype(int) - step - 1
    far = np.ceil(points.max(0)).astype(int) + step + 2
    x0, y0 = np.clip(corner, 0, [width - 1, height - 1])
    x1, y1 = np.clip(far, [x0 + 1, y0 + 1], [width, height])
    part = image[:, y0:y1, x0:x1]
    points = points - [x0, y0]
    step = min(step, *part.shape[-2:])
    if step > 1:
        part = F.avg_pool2d(part[None], step, ceil_mode=True, count_include_pad=False)[0]
        points = (points - (step - 1) / 2) / step
    reach = np.maximum(np.array(part.shape[:0:-1]) - 1, 1)
    grid = torch.from_numpy(points / reach * 2 - 1).to(part)
    values = F.grid_sample(part[None], grid[None, None], mode="bilinear", padding_mode="border", align_corners=True)
    return values[0, :, 0]


def align_face(
    image: Tensor, landmarks_5: np.ndarray, size: int = 512, template: str = "ffhq"
) -> tuple[Tensor, Similarity]:
    """Crop the aligned face from (3, H, W).

    Returns:
        The face (3, size, size) and the transform from the image to it, for `paste_back`.

    Raises:
        AlignmentError: see `face_transform`.
    """
    transform = face_transform(landmarks_5, size, template, image_size=tuple(image.shape[-2:]))
    return warp(image, transform, (size, size)), transform


def paste_back(scene: Tensor, face: Tensor, transform: Similarity, *, feather: float = 0.1) -> Tensor:
    """Paste an aligned face over the scene it was cropped from.

    A face aligned at its own scale or larger and pasted back unchanged differs from the scene by the two bilinear
    interpolations: on a detailed photo 34 to 39 dB inside the face (2 to 3 of 255 levels on average, up to 110 at edges
    one pixel wide). The transform itself is exact to 1e-9 pixels.

    Args:
        scene: (3, H, W). face: (3, h, w). transform: from the scene to the face.
        feather: width of the soft edge as a share of the face image's shorter side; 0 is a hard edge.

    Returns:
        A new (3, H, W), bitwise equal to `scene` outside the face image.
    """
    height, width = face.shape[-2:]
    edges = np.array([[-0.5, -0.5], [width - 0.5, -0.5], [-0.5, height - 0.5], [width - 0.5, height - 0.5]])
    corners = transform.inverse()(edges)
    limit = np.array(scene.shape[:0:-1])
    x0, y0 = np.clip(np.floor(corners.min(0)), 0, limit).astype(int)
    x1, y1 = np.clip(np.ceil(corners.max(0)) + 1, 0, limit).astype(int)
    if x0 >= x1 or y0 >= y1:
        return scene.clone()
    y, x = np.mgrid[y0:y1, x0:x1].astype(np.float64)
    points = transform(np.stack([x.ravel(), y.ravel()], axis=1))
    # Distance to the nearest edge of the face image, in its pixels.
    inside = np.minimum(points + 0.5, [width - 0.5, height - 0.5] - points).min(1)
    soft = feather * min(height, width)
    weight = (inside / soft).clip(0, 1) if soft > 0 else (inside >= 0).astype(np.float64)
    weight = torch.from_numpy(weight).to(scene).reshape(y1 - y0, x1 - x0)
    pasted = _sample(face, points, shrink=transform.scale).to(scene).reshape(-1, y1 - y0, x1 - x0)
    result = scene.clone()
    part = scene[:, y0:y1, x0:x1]
    result[:, y0:y1, x0:x1] = torch.where(weight > 0, part + weight * (pasted - part), part)
    return result


def square_crop_box(face_box: Box, image_size: tuple[int, int], margin: float = 0.2, minimum: int = 16) -> Box:
    """The square crop around a face, in whole pixels of the image.

    Args:
        face_box: (x0, y0, x1, y1), may extend beyond the image. image_size: height and width.
        margin: added on every side, as a share of the longer side of the box (ours).
        minimum: smallest side; FaDeX needs 16 (paper, supplement 4.3).

    Returns:
        Whole numbers (x0, y0, x1, y1), square, inside the image: shifted at the borders, smaller only where the image
        is.

    Raises:
        AlignmentError: when the box is empty or the image itself is smaller than `minimum`.
    """
    height, width = image_size
    x0, y0, x1, y1 = face_box
    if not (np.isfinite(face_box).all() and x1 > x0 and y1 > y0):
        raise AlignmentError(f"The face box {tuple(face_box)} is empty.")
    if min(height, width) < minimum:
        raise AlignmentError(f"The image is {width} x {height}; a face crop needs at least {minimum} pixels a side.")
    side = int(min(max(round(max(x1 - x0, y1 - y0) * (1 + 2 * margin)), minimum), height, width))
    left = int(np.clip(round((x0 + x1 - side) / 2), 0, width - side))
    top = int(np.clip(round((y0 + y1 - side) / 2), 0, height - side))
    return (left, top, left + side, top + side)


def face_crop_box(face_box: Box, image_size: tuple[int, int], max_size: int = MAX_FACE_SIZE) -> Box:
    """The face crop of FaDeX, in training and in use: `square_crop_box` at its native size in the photo.

    Args:
        max_size: of a larger face the centre is taken, at its native scale too.
    """
    x0, y0, x1, _ = (int(v) for v in square_crop_box(face_box, image_size))
    side = min(x1 - x0, max_size)
    cut = (x1 - x0 - side) // 2
    return (x0 + cut, y0 + cut, x0 + cut + side, y0 + cut + side)


def crop(image: Tensor, box: Box) -> Tensor:
    """The pixels of a whole-pixel box: (..., h, w), a view."""
    x0, y0, x1, y1 = (int(v) for v in box)
    return image[..., y0:y1, x0:x1]
