"""Reference photos of a person: face detection, quality, and selection."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol, TypeAlias

import numpy as np
from torch import Tensor

from face2scene.assets import catalogue
from face2scene.common.optional import import_optional
from face2scene.faces.backends.insightface_packs import pack_folder
from face2scene.image_io.arrays import ImageError, read_image, to_bytes
from face2scene.ref_fr.base import FaceRestorationError
from face2scene.ref_fr.faceme.id_encoder import clip_pixels


@dataclass(frozen=True, eq=False)
class ReferenceFace:
    """The face of one reference image."""

    box: tuple[float, float, float, float]  # may reach beyond the image
    points: np.ndarray  # (5, 2), see `types.Face`
    identity: np.ndarray  # (D,) unit length


@dataclass(frozen=True, eq=False)
class Reference:
    """One usable reference photo."""

    path: Path
    identity: np.ndarray  # (D,) unit length
    appearance: Tensor  # (D',) of `IDEncoder`
    quality: float  # 0 to 1, see `quality`


Described: TypeAlias = Reference | ImageError | None
"""A usable reference, the error of an unreadable file, or None where there is no face."""


class ReferenceEncoder(Protocol):
    """Detects the face of a reference and computes its identity vector."""

    @property
    def version(self) -> str:
        """Changes with its weights."""
        ...

    def ready(self) -> None:
        """Load the networks."""
        ...

    def detect(self, image: np.ndarray) -> ReferenceFace | None:
        """The face of a uint8 RGB image (H, W, 3); None where there is none."""
        ...


class Antelope:
    """InsightFace's antelopev2, on the CPU, with FaceMe's channel order: RGB where the networks expect BGR.

    The released code has this order in preprocessing, training and inference, so its weights require it. The largest
    face is taken, as in its preprocessing. The detector runs at 512, then from 640 to 256 pixels in steps of 64, until
    it finds a face.

    Args:
        folder: with scrfd_10g_bnkps.onnx and glintr100.onnx; None is the asset `antelopev2`.

    Raises:
        MissingWeights: at first use, when the asset is not fetched.
    """

    sizes = (512, *range(640, 256, -64), 256)

    def __init__(self, folder: str | Path | None = None):
        self.folder = folder

    @property
    def version(self) -> str:
        weights = catalogue.catalogue()["antelopev2"].fingerprint if self.folder is None else self.folder
        return f"antelopev2 rgb {weights}"

    def files(self) -> list[Path]:
        """The two files.

        Raises:
            FileNotFoundError, ValueError: one is not there.
        """
        place = Path(self.folder) if self.folder is not None else pack_folder("antelopev2")
        files = [place / "scrfd_10g_bnkps.onnx", place / "glintr100.onnx"]
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(f"There is no {file}: ref_fr.antelope has to name antelopev2's own folder.")
        return files

    def ready(self) -> None:
        """Load the networks now."""
        _ = self._networks

    def detect(self, image: np.ndarray) -> ReferenceFace | None:
        """The largest face of a uint8 RGB image (H, W, 3)."""
        detector, recogniser = self._networks
        for size in self.sizes:
            boxes, points = detector.detect(image, input_size=(size, size))
            if len(boxes):
                largest = int(np.argmax((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])))
                face = SimpleNamespace(kps=points[largest], embedding=None)
                identity = np.asarray(recogniser.get(image, face), dtype=np.float32)
                x0, y0, x1, y1 = (float(v) for v in boxes[largest, :4])
                return ReferenceFace((x0, y0, x1, y1), np.asarray(points[largest]), identity / np.linalg.norm(identity))
        return None

    @cached_property
    def _networks(self):
        files, networks = self.files(), []
        zoo = import_optional("insightface.model_zoo", "faces", why="FaceMe's identity of a reference")
        for file in files:
            try:
                networks.append(zoo.get_model(str(file), providers=["CPUExecutionProvider"]))
            except Exception as error:  # onnxruntime's errors have no common base class
                reason = str(error).strip().splitlines()[0][:200]
                raise ValueError(f"{file} is not a whole network ({reason}): fetch antelopev2 again.") from error
        networks[0].prepare(-1)  # on the CPU
        return networks


def quality(face: ReferenceFace, pixels: Tensor) -> float:
    """Quality of a reference, 0 to 1: the product of size, frontality and sharpness (ours).

    Size saturates at CLIP's 224 pixels. Frontality is the nose's position between the eyes: 1 in the middle, 0 at one
    of them. Sharpness is from the mean absolute Laplacian of the crop's grey values.
    """
    side = max(face.box[2] - face.box[0], face.box[3] - face.box[1])
    left, right, nose = (face.points[n] for n in range(3))
    eyes = right - left
    along = float((nose - left) @ eyes / max(float(eyes @ eyes), 1e-9))
    frontal = max(0.0, 1 - abs(2 * along - 1))
    grey = pixels.mean(0)
    laplacian = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    edges = float(laplacian.abs().mean())
    return min(1.0, side / 224) * frontal * edges / (edges + 0.1)


def describe(path: Path, encoder: ReferenceEncoder, embed: Callable[[Tensor], Tensor]) -> Described:
    """Read and describe one reference.

    Args:
        embed: from the pixels of `id_encoder.clip_pixels` to `Reference.appearance`.
    """
    try:
        image = to_bytes(read_image(path))
    except ImageError as error:
        return error
    face = encoder.detect(image)
    if face is None:
        return None
    pixels = clip_pixels(image, face.box)
    return Reference(path, face.identity, embed(pixels), quality(face, pixels))


class ReferenceCache:
    """The described references, least recently used dropped first; keyed by path, modification time and size.

    Args:
        size: maximum number of entries, of about 12 KB each.
    """

    def __init__(self, size: int = 10_000):
        self.size = size
        self._entries: OrderedDict[tuple, Described] = OrderedDict()

    def missing(self, paths: Sequence[Path]) -> list[Path]:
        """Those without an entry, each once.

        Raises:
            FaceRestorationError: a file does not exist.
        """
        return list({key: path for path in paths if (key := self._key(path)) not in self._entries}.values())

    def write(self, path: Path, described: Described) -> None:
        """Store an entry."""
        self._entries[self._key(path)] = described

    def read(self, paths: Sequence[Path]) -> list[Described]:
        """The entries of paths that all have one."""
        keys = [self._key(path) for path in paths]
        for key in keys:
            self._entries.move_to_end(key)
        found = [self._entries[key] for key in keys]
        while len(self._entries) > self.size:
            self._entries.popitem(last=False)
        return found

    @staticmethod
    def _key(path: Path) -> tuple:
        try:
            status = Path(path).stat()
        except OSError as error:
            raise FaceRestorationError(f"the reference {path} is not there") from error
        return (str(path), status.st_mtime_ns, status.st_size)


def choose(
    paths: Sequence[Path], described: Sequence[Described], *, max_references: int, same_person: float
) -> tuple[list[Reference], tuple[str, ...]]:
    """The references to use, and notes for the restoration log.

    The `max_references` best by `quality` of the largest group of one person (of equal groups the one of higher
    quality), in the given order.

    Args:
        described: of every path.
        same_person: minimum cosine of two identities of one person.

    Raises:
        FaceRestorationError: there is no reference, or none shows a face.
    """
    if not paths:
        raise FaceRestorationError("ref_fr=faceme needs photos of the person and got none (references=FOLDER)")
    usable = [one for one in described if isinstance(one, Reference)]
    names = [p.name for p, one in zip(paths, described, strict=True) if not isinstance(one, Reference)]
    if not usable:
        raise FaceRestorationError(
            f"none of the {len(paths)} reference images shows a face ({_listed(names)}): give photos that show the "
            "face (references=FOLDER)"
        )
    notes = [f"References without a face, or unreadable, were left out: {_listed(names)}."] if names else []
    identities = np.stack([one.identity for one in usable])
    same = identities @ identities.T >= same_person
    qualities = np.array([one.quality for one in usable])
    seed = max(range(len(usable)), key=lambda n: (same[n].sum(), qualities[same[n]].max(), -n))
    group = [n for n in range(len(usable)) if same[seed, n] or n == seed]
    others = [usable[n].path.name for n in range(len(usable)) if n not in group]
    if others:
        notes.append(
            f"The references show several people; {len(group)} of {len(usable)} were used, and these left out: "
            f"{_listed(others)}."
        )
    best = sorted(sorted(group, key=lambda n: -qualities[n])[:max_references])
    if len(best) < len(group):
        notes.append(f"The best {len(best)} of {len(group)} references were used, by size, pose and sharpness.")
    return [usable[n] for n in best], tuple(notes)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
