"""The cosine of two identities, and the identity score of a restored image."""

import numpy as np

from face2scene.common.types import Box, Face
from face2scene.faces.detect import Detector, area, intersection


def cosine(a: Face, b: Face) -> float:
    """Cosine of two identities, -1 to 1.

    Raises:
        ValueError: when one has no identity, or they come from different models.
    """
    if a.identity is None or b.identity is None:
        raise ValueError(
            "A face without an identity vector cannot be compared: faces.identities is off, or its landmarks "
            "were degenerate."
        )
    if a.identity_model != b.identity_model:
        raise ValueError(
            f"Identities of {a.identity_model!r} and {b.identity_model!r} live in different spaces: "
            "describe both faces with one detector (option faces)."
        )
    return float(np.dot(a.identity, b.identity) / (np.linalg.norm(a.identity) * np.linalg.norm(b.identity)))


def face_similarity(output: np.ndarray, gt: np.ndarray, detector: Detector, *, box: Box | None = None) -> float | None:
    """Cosine of the identities of a face in a restored image and in its ground truth.

    The face is detected in the ground truth alone and described at that place in both images, so that a face that a
    bad restoration made undetectable counts with its low cosine instead of being left out.

    Args:
        output, gt: float RGB (H, W, 3) in [0, 1], the same image.
        detector: must compute identities.
        box: of the face in question; None takes the largest.

    Returns:
        The cosine, -1 to 1, or None when the ground truth shows no face there.

    Raises:
        ValueError: when the images differ in size.
    """
    if output.shape != gt.shape:
        raise ValueError(
            f"The restored image is {output.shape[1]} x {output.shape[0]} and its ground truth {gt.shape[1]} x "
            f"{gt.shape[0]}: the identity score compares the same place in both."
        )
    faces = detector.find(gt)
    if box is not None:
        faces = sorted((f for f in faces if _iou(f.box, box) > 0), key=lambda f: -_iou(f.box, box))
    if not faces or faces[0].identity is None:
        return None
    place = Face(faces[0].box, faces[0].score, faces[0].landmarks_5)
    (restored,) = detector.backend.describe(output, [place], identities=True)
    return None if restored.identity is None else cosine(restored, faces[0])


def _iou(a: Box, b: Box) -> float:
    shared = intersection(a, b)
    return shared / (area(a) + area(b) - shared)
