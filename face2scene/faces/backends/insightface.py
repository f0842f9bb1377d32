"""The backend `insightface`: a folder of InsightFace's ONNX networks (buffalo_l, antelopev2 and the like).

SCRFD gives boxes and five points, ArcFace identities, and the pack's 3D landmark network or, where it has none, its 106
landmarks give the 68 landmarks. The weights are for non-commercial research only.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from face2scene.common.types import Face
from face2scene.faces.align import warp
from face2scene.faces.backends.insightface_packs import Pack, open_pack
from face2scene.faces.embedding import ARCFACE_SAME, CPU, run_batch, with_identities
from face2scene.faces.pose import upright_view
from face2scene.image_io.arrays import to_tensor

_LANDMARK_MARGIN = 1.5  # side of a landmark network's crop over the face box, as InsightFace trains them


@dataclass(eq=False)
class InsightBackend:
    """Networks of one InsightFace pack; see `faces.detect.Backend`.

    Args:
        pack: an asset of the catalogue (`buffalo_l`, `antelopev2`, `insightface_small`) or a folder of ONNX files.
        det_size: side in pixels of the detector's square input. A larger image is shrunk to it, a smaller one padded.
            Explicit, since InsightFace 2 changed its own default from 640 to 128 and 640 together.
        score_threshold: lowest detector score, 0 to 1.
        providers: of ONNX Runtime, in order of preference.
    """

    same_threshold = ARCFACE_SAME
    pack: str | Path = "buffalo_l"
    _: KW_ONLY
    det_size: int = 1280
    score_threshold: float = 0.5
    providers: Sequence[str] = CPU

    def __post_init__(self) -> None:
        if self.det_size < 64 or self.det_size % 32:
            raise ValueError(f"faces.backend.det_size is {self.det_size}; SCRFD needs a multiple of 32, at least 64.")

    @property
    def identity_model(self) -> str:
        return self._networks.identity.name

    @property
    def _networks(self) -> Pack:
        return open_pack(self.pack, self.providers)

    def search(self, image: np.ndarray) -> list[Face]:
        height, width = image.shape[:2]
        side = min(self.det_size, -(-max(height, width) // 32) * 32)
        # SCRFD scales the longer side of its input to the square; padding prevents enlarging.
        shown = image
        if max(height, width) < side:
            shown = np.pad(image, ((0, side - height), (0, side - width), (0, 0)))
        rows, points = self._networks.detector.detect(
            np.ascontiguousarray(shown[..., ::-1]), input_size=(side, side), det_thresh=self.score_threshold
        )
        return [
            Face(tuple(float(v) for v in row[:4]), float(row[4]), np.asarray(five, dtype=np.float64))
            for row, five in zip(rows, points, strict=True)
        ]

    def describe(self, image: np.ndarray, found: Sequence[Face], *, identities: bool) -> list[Face]:
        if not found:
            return []
        points = self._landmarks(image, found)
        faces = [replace(face, landmarks_68=p) for face, p in zip(found, points, strict=True)]
        return with_identities(image, faces, self._networks.identity) if identities else faces

    def _landmarks(self, image: np.ndarray, found: Sequence[Face]) -> list[np.ndarray | None]:
        net = self._networks.landmarks
        if net is None:
            return [None] * len(found)
        tensor = to_tensor(image)
        side = net.input_size[0]
        views = [upright_view(face.box, face.landmarks_5, side, _LANDMARK_MARGIN) for face in found]
        crops = torch.stack([warp(tensor, view, (side, side)) for view in views]).numpy() * 255
        outputs = run_batch(net.session, ((crops - net.input_mean) / net.input_std).astype(np.float32))
        result: list[np.ndarray | None] = []
        for view, output in zip(views, outputs, strict=True):
            points = output.reshape(-1, net.lmk_dim)[-net.lmk_num :, :2].astype(np.float64)
            points = (points + 1) * (side / 2) - 0.5  # from -1 to 1 across the crop, edge to edge
            points = points if net.lmk_num == 68 else sixty_eight_of_106(points)
            result.append(view.inverse()(points))
        return result


# The outline of the 106 from the ear on the image's left over the chin (number 16 here) to the other ear.
_OUTLINE = [1, *range(9, 17), *range(2, 9), 0, *range(24, 17, -1), *range(32, 24, -1), 17]
# The others of the 68, from 17 (brows, nose, eyes, mouth), as points of the 106.
_INNER = [
    *(43, 48, 49, 51, 50, 102, 103, 104, 105, 101, 72, 73, 74, 86, 78, 79, 80, 85, 84),
    *(35, 41, 42, 39, 37, 36, 89, 95, 96, 93, 91, 90),
    *(52, 64, 63, 71, 67, 68, 61, 58, 59, 53, 56, 55, 65, 66, 62, 70, 69, 57, 60, 54),
]


def sixty_eight_of_106(points: np.ndarray) -> np.ndarray:
    """The 68 landmarks (68, 2) of InsightFace's 106 (106, 2).

    Inside the face these are points of both sets. The outline of the 106 begins half a step higher and has other
    intervals, so it is interpolated.
    """
    outline = points[_OUTLINE]
    left = 1 + np.arange(9) * 15 / 8
    places = np.concatenate([left, 32 - left[7::-1]])
    x, y = (np.interp(places, np.arange(33), outline[:, axis]) for axis in range(2))
    return np.concatenate([np.stack([x, y], axis=1), points[_INNER]])
