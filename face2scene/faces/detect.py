"""Who is where: face boxes, five and 68 landmarks, and an identity vector for every face of a picture.

The backend `open` needs no model hub: YuNet finds faces and five points, the 68-point predictor and the
identity network of dlib describe them. Both of these see every face upright at one size, so a tilted head is
no harder.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np

from face2scene import weights
from face2scene.extras import need
from face2scene.faces.align import AlignmentError, face_transform, warp
from face2scene.images import to_bytes, to_tensor
from face2scene.records import Face

BACKENDS = ("open", "none")

_FRAME = 384  # side of the upright face that the dlib networks see; five-point FFHQ alignment
# Where dlib's own detector puts its box in that frame, median over 28 photos and generated faces: the
# landmark predictor was trained from such boxes and drifts when it is started elsewhere.
_FRAME_BOX = (0.25, 0.31, 0.78, 0.84)
_PADDING = 0.25  # of a face that fills its picture; YuNet wants some background


class Detector:
    """Finds and describes faces. Networks are loaded at first use and kept.

    Args:
        backend: `open`, or `none`, which finds no face in anything.
        max_side: longer side in pixels of the largest picture that the detector sees; smaller faces need
            more.
        score_threshold: lowest detector score, 0 to 1.
        min_face: smallest longer side of a face in pixels of the picture (our setting: FaDeX needs 16).
        landmarks: also find 68 landmarks (needed for identities).
        identities: also compute identity vectors.
        same_threshold: cosine from which two identity vectors are taken for one person. The default belongs
            to `dlib_resnet_v1`: Obama, three photos: 0.957 to 0.971; Obama, Biden, Hopper against each
            other: at most 0.847. Sixty generated people (truncation 0.7): 97 percent of same pairs pass, 4
                percent of
            different ones do too, since generated faces are more alike than people are.

    Raises:
        ValueError: for an unknown backend.
    """

    def __init__(
        self,
        backend: str = "open",
        *,
        max_side: int = 1024,
        score_threshold: float = 0.7,
        min_face: int = 16,
        landmarks: bool = True,
        identities: bool = True,
        same_threshold: float = 0.93,
    ):
        if backend not in BACKENDS:
            raise ValueError(f"Unknown face detector {backend!r}: choose one of {', '.join(BACKENDS)} (option faces).")
        if max_side < 64:
            raise ValueError(f"faces.max_side is {max_side}; the detector needs pictures of at least 64 pixels.")
        self.backend = backend
        self.max_side = max_side
        self.score_threshold = score_threshold
        self.min_face = min_face
        self.landmarks = landmarks or identities
        self.identities = identities
        self.same_threshold = same_threshold

    identity_model = "dlib_resnet_v1"

    def find(self, image: np.ndarray) -> list[Face]:
        """All faces of a picture, largest first.

        Args:
            image: float (H, W, 3) in [0, 1].

        Raises:
            ValueError: for another shape or range.
            MissingWeights: when a network is not there; the message names the fetch command.
        """
        if image.ndim != 3 or image.shape[2] != 3 or not np.issubdtype(image.dtype, np.floating):
            raise ValueError(f"A float picture (H, W, 3) in [0, 1] is needed, got {image.dtype} {image.shape}.")
        if not np.isfinite(image).all() or image.max() > 1.001 or image.min() < -0.001:
            raise ValueError("The picture holds values outside [0, 1] (or NaN); faces.Detector wants float RGB.")
        if self.backend == "none" or min(image.shape[:2]) < self.min_face:
            return []
        found = self._search(image)
        if not found:
            found = self._search_padded(image)
        return [self._describe(image, row) for row in sorted(found, key=lambda r: -max(r[2:4]))]

    # -- where

    @cached_property
    def _cv2(self):
        return need("cv2", "faces", why="Face detection")

    @cached_property
    def _yunet(self):
        path = _only_file(weights.folder("yunet"), "*.onnx")
        with _quiet(self._cv2):
            try:
                return self._cv2.FaceDetectorYN.create(str(path), "", (320, 320), self.score_threshold, 0.3, 5000)
            except self._cv2.error as error:
                raise ValueError(
                    f"{path} is not a readable YuNet network ({error}). "
                    "Remove it and run `face2scene fetch yunet` again."
                ) from error

    def _search(self, image: np.ndarray) -> list[np.ndarray]:
        # Rows (x, y, width, height, five points, score) in picture pixels. YuNet sees faces of about 10 to
        # 300 pixels, so the picture is shown at halving sizes and the best row of every face is kept.
        rows = []
        height, width = image.shape[:2]
        side = min(self.max_side, max(height, width))
        while True:
            factor = side / max(height, width)
            size = max(1, round(width * factor)), max(1, round(height * factor))
            shown = self._cv2.resize(image, size, interpolation=self._cv2.INTER_AREA) if factor < 1 else image
            bgr = np.ascontiguousarray(to_bytes(shown)[..., ::-1])
            with _quiet(self._cv2):
                self._yunet.setInputSize(size)
                result = self._yunet.detect(bgr)[1]
            if result is not None:
                scale = np.array([width / size[0], height / size[1]] * 7)
                rows += [np.append(row[:14] * scale, row[14]) for row in result.astype(np.float64)]
            side //= 2
            if side < 160:
                break
        return [
            row for row in _best_of_overlapping(rows) if max(row[2:4]) >= self.min_face and _inside(row, width, height)
        ]

    def _search_padded(self, image: np.ndarray) -> list[np.ndarray]:
        height, width = image.shape[:2]
        pad = round(_PADDING * max(height, width))
        rows = self._search(np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="edge"))
        for row in rows:
            row[[0, 1]] -= pad
            row[4:14] -= pad
        return [row for row in rows if _inside(row, width, height)]

    # -- who

    @cached_property
    def _dlib(self):
        return need("dlib", "faces", why="Finding 68 landmarks")

    @cached_property
    def _predictor(self):
        return self._open_dlib(self._dlib.shape_predictor, "shape_predictor_68_face_landmarks.dat")

    @cached_property
    def _embedder(self):
        return self._open_dlib(self._dlib.face_recognition_model_v1, "dlib_face_recognition_resnet_model_v1.dat")

    def _open_dlib(self, kind, name: str):
        path = _only_file(weights.folder("dlib"), name)
        try:
            return kind(str(path))
        except RuntimeError as error:
            raise ValueError(
                f"{path} cannot be read ({error}). Remove it and run `face2scene fetch dlib` again."
            ) from error

    def _describe(self, image: np.ndarray, row: np.ndarray) -> Face:
        height, width = image.shape[:2]
        x, y, w, h = row[:4]
        box = (max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height)))
        points = row[4:14].reshape(5, 2)
        face = Face(box=tuple(float(v) for v in box), score=float(min(row[14], 1)), landmarks_5=points)
        if not self.landmarks:
            return face
        try:
            transform = face_transform(points, _FRAME)
        except AlignmentError:
            return face  # a face with nonsense for eyes is still a face in that place; it has no identity
        upright = np.ascontiguousarray(to_bytes(warp(to_tensor(image), transform, (_FRAME, _FRAME))))
        box = self._dlib.rectangle(*(round(v * _FRAME) for v in _FRAME_BOX))
        shape = self._predictor(upright, box)
        in_frame = np.array([(p.x, p.y) for p in shape.parts()], dtype=np.float64)
        identity = None
        if self.identities:
            identity = np.array(self._embedder.compute_face_descriptor(upright, shape), dtype=np.float32)
            identity /= np.linalg.norm(identity)
        return Face(
            box=face.box,
            score=face.score,
            landmarks_5=points,
            landmarks_68=transform.inverse()(in_frame),
            identity=identity,
            identity_model=self.identity_model if self.identities else "",
        )


def _only_file(folder: Path, pattern: str) -> Path:
    files = sorted(Path(folder).glob(pattern))
    if not files:
        raise FileNotFoundError(f"{folder} holds no {pattern}: run `face2scene fetch {Path(folder).name}` again.")
    return files[0]


def _inside(row: np.ndarray, width: int, height: int) -> bool:
    # At least half of the box is in the picture; padding can invent faces beside it.
    x, y, w, h = row[:4]
    seen = max(0.0, min(x + w, width) - max(x, 0)) * max(0.0, min(y + h, height) - max(y, 0))
    return seen >= 0.5 * w * h


def _best_of_overlapping(rows: list[np.ndarray], limit: float = 0.4) -> list[np.ndarray]:
    # Greedy non-maximum suppression over the pyramid's levels, by score.
    kept: list[np.ndarray] = []
    for row in sorted(rows, key=lambda r: -r[14]):
        if all(_overlap(row, other) < limit for other in kept):
            kept.append(row)
    return kept


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    # Shared area over the smaller box, so that a part of a face does not count as another face.
    x = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    y = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(x, 0) * max(y, 0) / max(min(a[2] * a[3], b[2] * b[3]), 1e-9)


@contextmanager
def _quiet(cv2) -> Iterator[None]:
    # OpenCV 5 warns on every network that its new graph engine takes no target, which nobody here sets.
    logging = getattr(cv2.utils, "logging", None)
    if logging is None:
        yield
        return
    before = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_ERROR)
    try:
        yield
    finally:
        logging.setLogLevel(before)
