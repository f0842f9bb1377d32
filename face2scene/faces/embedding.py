"""Identity networks: unit vectors of aligned faces, all faces of an image in one batch."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from face2scene.assets import catalogue
from face2scene.common.optional import import_optional
from face2scene.common.types import Face
from face2scene.faces.align import AlignmentError, align_face, five_points
from face2scene.faces.detect import Backend
from face2scene.image_io.arrays import to_tensor

CPU = ("CPUExecutionProvider",)
# Lowest cosine of one person for ArcFace, by scripts/calibrate_faces.py: with w600k_mbf 39 pairs of one person have
# 0.290 and above, 720 pairs of two people 0.228 and below (benchmarks/README.md). The larger networks (w600k_r50,
# glintr100, IR-SE50) were not measured, as their weights are on no package index.
ARCFACE_SAME = 0.28


class IdentityNet(Protocol):
    """An identity network for faces aligned to the ArcFace template. Loaded at first use and kept."""

    name: str  # of the space of its vectors
    same_threshold: float  # lowest cosine of two vectors of one person

    def embed(self, crops: Sequence[Tensor]) -> np.ndarray:
        """Faces (3, 112, 112), RGB in [0, 1], to unit vectors (N, D), float32."""
        ...


# Mean and standard deviation of the input, and the lowest cosine of one person, by file name.
_ARCFACE = (127.5, 127.5, ARCFACE_SAME)
_KNOWN = {
    # The threshold of its makers. Same pairs 0.173 to 0.891, median 0.754; different ones -0.200 to 0.405.
    "face_recognition_sface_2021dec_int8bq": (0.0, 1.0, 0.363),
}


@dataclass(eq=False)
class OnnxIdentity:
    """ArcFace and its kin as ONNX files.

    Args:
        source: an asset of the catalogue (`w600k_mbf`, `sface`) or an ONNX file.
        mean, std: the input is (pixel - mean) / std for pixels of 0 to 255; None is what the network was trained with.
        providers: of ONNX Runtime, in order of preference.
    """

    source: str | Path = "w600k_mbf"
    _: KW_ONLY
    mean: float | None = None
    std: float | None = None
    providers: Sequence[str] = CPU

    def __post_init__(self) -> None:
        asset = catalogue.catalogue().get(str(self.source))
        onnx = [name for name in (asset.ready_files if asset else [str(self.source)]) if name.endswith(".onnx")]
        if len(onnx) != 1:
            raise ValueError(
                f"{self.source} is neither an ONNX file nor an asset of one: choose w600k_mbf, sface or a file."
            )
        self.name = Path(onnx[0]).stem
        self._file = onnx[0] if asset else None
        mean, std, self.same_threshold = _KNOWN.get(self.name, _ARCFACE)
        self.mean = mean if self.mean is None else self.mean
        self.std = std if self.std is None else self.std

    def embed(self, crops: Sequence[Tensor]) -> np.ndarray:
        path = catalogue.folder(str(self.source)) / self._file if self._file else Path(self.source)
        session = onnx_session(path, self.providers)
        pixels = np.stack([crop.numpy() for crop in crops]).astype(np.float32) * 255
        vectors = run_batch(session, (pixels - self.mean) / self.std).reshape(len(crops), -1)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@dataclass(eq=False)
class WithIdentityNet:
    """A backend whose identities come from another network.

    Faces are aligned by the 68 landmarks, where the backend has them: they are more precise than the five points of a
    small detector.
    """

    backend: Backend
    identity: IdentityNet

    def __post_init__(self) -> None:
        self.identity_model = self.identity.name
        self.same_threshold = self.identity.same_threshold

    def search(self, image: np.ndarray) -> list[Face]:
        return self.backend.search(image)

    def describe(self, image: np.ndarray, found: Sequence[Face], *, identities: bool) -> list[Face]:
        faces = self.backend.describe(image, found, identities=False)
        if not identities:
            return faces
        points = [f.landmarks_5 if f.landmarks_68 is None else five_points(f.landmarks_68) for f in faces]
        return with_identities(image, faces, self.identity, points)


def with_identities(
    image: np.ndarray, faces: Sequence[Face], net: IdentityNet, landmarks_5: Sequence[np.ndarray] | None = None
) -> list[Face]:
    """The faces with identities from one run of the network; those with degenerate landmarks have none.

    Args:
        image: float RGB (H, W, 3) in [0, 1].
        landmarks_5: (5, 2) for each face, by which it is aligned; None is its own.
    """
    tensor = to_tensor(image)
    crops: dict[int, Tensor] = {}
    for number, points in enumerate([f.landmarks_5 for f in faces] if landmarks_5 is None else landmarks_5):
        try:
            crops[number] = align_face(tensor, points, 112, "arcface")[0]
        except AlignmentError:
            continue
    if not crops:
        return list(faces)
    vectors = dict(zip(crops, net.embed(list(crops.values())), strict=True))
    return [
        replace(face, identity=vectors[n], identity_model=net.name) if n in vectors else face
        for n, face in enumerate(faces)
    ]


def onnx_session(path: Path, providers: Sequence[str] = CPU) -> Any:
    """The ONNX Runtime session of a file, one per process for a file and its providers.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for a corrupt file or a provider that this ONNX Runtime does not have.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no network at {path}.")
    return _session(str(path.resolve()), tuple(providers), *file_stamp(path))


def file_stamp(path: Path) -> tuple[int, int]:
    """Time of the last change in ns and size in bytes: part of a cache's key, so that a replaced file is read again."""
    facts = path.stat()
    return facts.st_mtime_ns, facts.st_size


@lru_cache(maxsize=32)
def _session(path: str, providers: tuple[str, ...], *_stamp: int) -> Any:
    runtime = import_optional("onnxruntime", "faces", why="Reading ONNX networks")
    offered = runtime.get_available_providers()
    if missing := [name for name in providers if name not in offered]:
        raise ValueError(f"ONNX Runtime has no {', '.join(missing)} here: choose faces providers from {offered}.")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # its warnings are about how the files were exported
    try:
        session = runtime.InferenceSession(path, options, providers=list(providers))
        if len(session.get_inputs()) > 1:
            session = runtime.InferenceSession(_one_input(path), options, providers=list(providers))
    except ModuleNotFoundError:
        raise
    except Exception as error:  # its errors have no common class below this
        raise unreadable(Path(path), error) from error
    return session


def _one_input(path: str) -> bytes:
    # SFace's quantiser left unused weight names among the inputs, which ONNX Runtime still requires.
    onnx = import_optional("onnx", "faces", why=f"Reading {path}")
    model = onnx.load(path)
    known = {weight.name for weight in model.graph.initializer}
    read = {name for node in model.graph.node for name in node.input}
    for value in [value for value in model.graph.input if value.name in known or value.name not in read]:
        model.graph.input.remove(value)
    return model.SerializeToString()


def unreadable(path: Path, error: Exception, asset: str = "") -> ValueError:
    """The error of a corrupt or unexpected file of `asset`; left out, that of its folder's name."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
    asset = asset or (path.parent.name if path.parent.name in catalogue.catalogue() else "")
    remedy = f"remove {path.parent} and run `face2scene fetch {asset}`" if asset else "replace it with a whole copy"
    return ValueError(f"{path} is not a readable network ({reason}): {remedy}.")


def run_batch(session: Any, batch: np.ndarray) -> np.ndarray:
    """First output for (N, 3, H, W), in one run, or one by one where the file fixes the batch at 1."""
    data = session.get_inputs()[0]
    output = session.get_outputs()[0].name
    step = 1 if data.shape[0] == 1 else len(batch)
    runs = [session.run([output], {data.name: batch[n : n + step]})[0] for n in range(0, len(batch), step)]
    return np.concatenate(runs)
