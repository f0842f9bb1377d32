"""The identity score as a metric: ArcFace's cosine between a restored face and its ground truth."""

from collections.abc import Sequence

import torch
from torch import Tensor

from face2scene.common.optional import import_optional
from face2scene.common.types import Box
from face2scene.eval.metrics.pyiqa_backend import fetched
from face2scene.faces.backends.yunet_dlib import OpenBackend
from face2scene.faces.detect import Detector
from face2scene.faces.embedding import OnnxIdentity, WithIdentityNet
from face2scene.faces.identity import face_similarity
from face2scene.image_io.arrays import to_array

WEIGHTS = ("yunet", "dlib", "w600k_mbf")  # detector, landmarks, ArcFace
NO_FACE = "the ground truth shows no face there"


class IdScore:
    """ArcFace MobileFaceNet on the face that YuNet finds in the ground truth; see `faces.identity.face_similarity`.

    Raises:
        MissingWeights, MetricMissing: a network is not fetched; its file has changed. With the command that fetches it.
        ModuleNotFoundError: a package is not installed.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        for asset in WEIGHTS:
            fetched(asset)
        for package in ("cv2", "dlib", "onnxruntime"):
            import_optional(package, "faces", why="The identity score")
        self.detector = Detector(WithIdentityNet(OpenBackend(), OnnxIdentity("w600k_mbf")), identities=True)

    def __call__(self, images: Tensor, gts: Tensor, boxes: Sequence[Box | None]) -> Tensor:
        """Cosines (B,) in float64; NaN where the ground truth shows no face in its box (or at all, without a box)."""
        found = [
            face_similarity(to_array(image), to_array(gt), self.detector, box=box)
            for image, gt, box in zip(images, gts, boxes, strict=True)
        ]
        return torch.tensor([float("nan") if value is None else value for value in found], dtype=torch.float64)
