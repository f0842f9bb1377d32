"""The backend of `faces=open`: permissive licences, all weights from a package index.

YuNet gives boxes and five points, dlib's 68-point predictor and identity network describe the face. The input of both
is an upright crop of one size, so a tilt of the head makes no difference.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from face2scene.assets import catalogue
from face2scene.common.optional import import_optional
from face2scene.common.types import Face
from face2scene.faces.align import AlignmentError, face_transform, warp
from face2scene.faces.embedding import unreadable
from face2scene.image_io.arrays import to_bytes, to_tensor

_FRAME = 384  # side in pixels of the crop for the dlib networks; five-point FFHQ alignment
# The box of dlib's own detector in that crop, median over 28 photos and generated faces: the landmark predictor was
# trained from such boxes and is less accurate from others.
_FRAME_BOX = (0.25, 0.31, 0.78, 0.84)


@dataclass(eq=False, kw_only=True)
class OpenBackend:
    """YuNet and dlib; see `faces.detect.Backend`.

    Args:
        score_threshold: lowest detector score, 0 to 1.
    """

    identity_model = "dlib_resnet_v1"
    # By scripts/calibrate_faces.py: of 720 pairs of two people none passes (0.924 at most), of 39 pairs of one person
    # 10 percent fail; the equal error is at 0.910. It is above that since a wrong name does more harm than none. Of
    # sixty generated people (truncation 0.7) 97 percent of same pairs pass and 4 percent of different ones, since
    # generated faces are more alike.
    same_threshold = 0.93
    min_score = 0.72  # the detector's, of the mean of both looks
    # With a second look at uncertain faces; benchmarks/README.md has the recall.
    score_threshold: float = 0.5

    def search(self, image: np.ndarray) -> list[Face]:
        size = image.shape[1], image.shape[0]
        with _quiet_cv2():
            self._yunet.setInputSize(size)
            rows = self._yunet.detect(np.ascontiguousarray(image[..., ::-1]))[1]
        found = []
        for row in () if rows is None else rows.astype(np.float64):
            x, y, width, height = row[:4]
            found.append(Face((x, y, x + width, y + height), min(float(row[14]), 1.0), row[4:14].reshape(5, 2)))
        return found

    def describe(self, image: np.ndarray, found: Sequence[Face], *, identities: bool) -> list[Face]:
        return [self._describe(image, face, identities) for face in found]

    def _describe(self, image: np.ndarray, face: Face, identities: bool) -> Face:
        try:
            transform = face_transform(face.landmarks_5, _FRAME, image_size=image.shape[:2])
        except AlignmentError:
            return face  # degenerate landmarks: a face without identity
        upright = np.ascontiguousarray(to_bytes(warp(to_tensor(image), transform, (_FRAME, _FRAME))))
        shape = self._predictor(upright, self._dlib.rectangle(*(round(v * _FRAME) for v in _FRAME_BOX)))
        in_frame = np.array([(p.x, p.y) for p in shape.parts()], dtype=np.float64)
        identity = None
        if identities:
            identity = np.array(self._embedder.compute_face_descriptor(upright, shape), dtype=np.float32)
            identity /= np.linalg.norm(identity)
        return replace(
            face,
            landmarks_68=transform.inverse()(in_frame),
            identity=identity,
            identity_model=self.identity_model if identities else "",
        )

    @cached_property
    def _yunet(self) -> Any:
        path = next(catalogue.folder("yunet").glob("*.onnx"))
        with _quiet_cv2() as cv2:
            try:
                return cv2.FaceDetectorYN.create(str(path), "", (320, 320), self.score_threshold, 0.3, 5000)
            except cv2.error as error:
                raise unreadable(path, error, "yunet") from error

    @cached_property
    def _dlib(self) -> Any:
        return import_optional("dlib", "faces", why="Finding 68 landmarks")

    @cached_property
    def _predictor(self) -> Any:
        return self._open_dlib(self._dlib.shape_predictor, "shape_predictor_68_face_landmarks.dat")

    @cached_property
    def _embedder(self) -> Any:
        return self._open_dlib(self._dlib.face_recognition_model_v1, "dlib_face_recognition_resnet_model_v1.dat")

    def _open_dlib(self, kind: Callable[[str], Any], name: str) -> Any:
        path = catalogue.folder("dlib") / name
        try:
            return kind(str(path))
        except RuntimeError as error:
            raise unreadable(path, error, "dlib") from error


@contextmanager
def _quiet_cv2() -> Iterator[Any]:
    # OpenCV 5 warns about every network that its new graph engine ignores the target, which is not set here.
    cv2 = import_optional("cv2", "faces", why="Face detection")
    logging = getattr(cv2.utils, "logging", None)
    if logging is None:
        yield cv2
        return
    before = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_ERROR)
    try:
        yield cv2
    finally:
        logging.setLogLevel(before)
