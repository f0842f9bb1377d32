"""Head pose from the landmarks of one image, and the crop in which a head is upright.

Yaw, pitch and roll in degrees; all zero is a face that looks into the camera. Yaw is positive when the nose points to
the image's right, pitch when it points up, roll when the head leans clockwise. Yaw and pitch of a tilted or upside-down
head are those of the head held upright: R = roll after pitch after yaw.
"""

from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation

from face2scene.common.types import Box, Face
from face2scene.faces.align import Similarity

# A head in millimetres, rounded from averages of adults: x to the image's right, y down, z away from the camera,
# from the middle between the pupils. Frontal, its five points have the shape of the ArcFace template.
POINTS_5 = np.array([[-31.5, 0, -4], [31.5, 0, -4], [0, 36, -38], [-26, 73, -12], [26, 73, -12]], dtype=np.float64)
# Those of the 68 that do not move when a face speaks or blinks, and the corners of the mouth.
INDICES_68 = (36, 39, 42, 45, 27, 30, 31, 33, 35, 48, 54)
POINTS_68 = np.array(
    [
        *([-44.5, 0, 0], [-16, 1, -6], [16, 1, -6], [44.5, 0, 0]),  # corners of the eyes
        *([0, -3, -22], [0, 34, -39], [-15, 43, -20], [0, 48, -28], [15, 43, -20]),  # nose: root, tip, base
        *([-26, 73, -12], [26, 73, -12]),  # corners of the mouth
    ],
    dtype=np.float64,
)


def with_pose(face: Face) -> Face:
    """The face with its pose from the 68 landmarks, else from the five."""
    if face.landmarks_68 is not None:
        return replace(face, pose=head_pose(face.landmarks_68[list(INDICES_68)], POINTS_68))
    return replace(face, pose=head_pose(face.landmarks_5, POINTS_5))


def head_pose(seen: np.ndarray, model: np.ndarray) -> tuple[float, float, float] | None:
    """Yaw, pitch and roll of `model` that fit the points seen best, in least squares.

    The camera model is scaled orthography, whose error is some degrees for a face photographed from an arm's length.

    Args:
        seen: (N, 2) pixels, N at least 4.
        model: (N, 3), see `POINTS_5`.

    Returns:
        Degrees, or None for points that have no such pose: not finite, on one line or one point.
    """
    seen = np.asarray(seen, dtype=np.float64)
    if not np.isfinite(seen).all():
        return None
    flat, solid = seen - seen.mean(0), model - model.mean(0)
    wide, narrow = np.linalg.svd(flat, compute_uv=False)
    if narrow < 0.02 * wide or wide < 1e-6:
        return None
    # The affine camera, projected to a rotation.
    left, singular, right = np.linalg.svd(np.linalg.lstsq(solid, flat, rcond=None)[0].T, full_matrices=False)
    rows = left @ right
    rotation, scale = np.vstack([rows, np.cross(rows[0], rows[1])]), float(singular.mean())
    best = np.inf
    for _ in range(20):  # Gauss-Newton over three angles and the scale
        turned = solid @ rotation.T
        error = flat - scale * turned[:, :2]
        cost = (error**2).sum()
        if cost > best * (1 - 1e-10):
            break
        best, answer = cost, rotation
        x, y, z = turned.T
        zero = np.zeros_like(x)
        # of (x, y) by rotation about x, y, z and by scale
        slope_x = np.stack([zero, scale * z, -scale * y, x], axis=1)
        slope_y = np.stack([-scale * z, zero, scale * x, y], axis=1)
        step = np.linalg.lstsq(np.concatenate([slope_x, slope_y]), error.T.ravel(), rcond=None)[0]
        rotation, scale = Rotation.from_rotvec(step[:3]).as_matrix() @ rotation, scale + step[3]
    yaw = np.arcsin(np.clip(answer[2, 0], -1, 1))
    pitch = -np.arctan2(answer[2, 1], answer[2, 2])
    roll = np.arctan2(answer[1, 0], answer[0, 0])
    return tuple(float(v) for v in np.degrees([yaw, pitch, roll]))


def upright_view(box: Box, landmarks_5: np.ndarray, size: int, margin: float) -> Similarity:
    """From an image to the `size` x `size` square around a face box, turned so that the head is upright.

    Args:
        landmarks_5: (5, 2), see `types.Face`; degenerate ones turn nothing.
        margin: side of the square over the longer side of the box.
    """
    left, right, _, *mouth = np.asarray(landmarks_5, dtype=np.float64)
    across, down = right - left, np.mean(mouth, axis=0) - (left + right) / 2
    # Seen from the side the line of the eyes is short, from above the line from eyes to mouth; their sum never is.
    x, y = across[0] + down[1], across[1] - down[0]
    roll = np.arctan2(y, x) if np.isfinite([x, y]).all() and np.hypot(x, y) > 1e-6 else 0.0
    return turned_view(box, size, size / (margin * max(box[2] - box[0], box[3] - box[1])), roll)


def turned_view(box: Box, size: int, scale: float, roll: float) -> Similarity:
    """From an image to the `size` x `size` square centred on a box, `scale` times as large and turned by -`roll`."""
    cos, sin = scale * np.cos(roll), scale * np.sin(roll)
    linear = np.array([[cos, sin], [-sin, cos]])
    middle = np.array([box[0] + box[2], box[1] + box[3]]) / 2 - 0.5  # pixel edges to centres
    return Similarity(np.column_stack([linear, (size - 1) / 2 - linear @ middle]))
