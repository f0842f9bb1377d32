"""Reference photos of a person: which face in them, how good it is, and which of them to use."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
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
class SeenFace:
    """The face of one reference, as the identity network saw it."""

    box: tuple[float, float, float, float]  # may reach out of the image
    points: np.ndarray  # (5, 2), see `records.Face`
    identity: np.ndarray  # (D,) unit length


@dataclass(frozen=True, eq=False)
class Reference:
    """One usable reference photo."""

    path: Path
    identity: np.ndarray  # (D,) unit length
    looks: Tensor  # (D',) of the identity encoder
    quality: float  # 0 to 1, see `quality`


Seen: TypeAlias = Reference | ImageError | None
"""Of one reference: what it tells, the error of a file that is no image, or None where there is no face."""


class Describer(Protocol):
    """Finds the face of a reference and names its identity; None where there is no face."""

    version: str  # changes with what it says

    def ready(self) -> None: ...

    def see(self, image: np.ndarray) -> SeenFace | None: ...


class Antelope:
    """InsightFace's antelopev2, fed as FaceMe's training fed it: with RGB where the networks expect BGR.

    The order is a slip of the released code, made in preprocessing, training and inference alike, so that the
    weights know embeddings of this kind only. The largest face is taken, as in its preprocessing. The detector sees
    the image at 512, then 640 down to 256 pixels in steps of 64, until it finds a face.

    Args:
        folder: with scrfd_10g_bnkps.onnx and glintr100.onnx; None is the asset `antelopev2`.

    Raises:
        MissingWeights: at first use, when the asset is not there; the message names the fetch command.
    """

    sizes = (512, *range(640, 256, -64), 256)

    def __init__(self, folder: str | Path | None = None, device: str = "cpu"):
        self.folder, self.device = folder, device

    @property
    def version(self) -> str:
        return (
            f"antelopev2 rgb {catalogue.catalogue()['antelopev2'].fingerprint if self.folder is None else self.folder}"
        )

    def ready(self) -> None:
        """Load the networks now."""
        _ = self._networks

    def see(self, image: np.ndarray) -> SeenFace | None:
        """The largest face of a uint8 RGB image (H, W, 3)."""
        detector, recogniser = self._networks
        for size in self.sizes:
            boxes, points = detector.detect(image, input_size=(size, size))
            if len(boxes):
                largest = int(np.argmax((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])))
                face = _KeyPoints(points[largest])
                identity = np.asarray(recogniser.get(image, face), dtype=np.float32)
                box = tuple(float(v) for v in boxes[largest, :4])
                return SeenFace(box, np.asarray(points[largest]), identity / np.linalg.norm(identity))
        return None

    @cached_property
    def _networks(self):
        place = Path(self.folder) if self.folder is not None else pack_folder("antelopev2")
        zoo = import_optional("insightface.model_zoo", "faces", why="FaceMe's identity of a reference")
        files = [place / "scrfd_10g_bnkps.onnx", place / "glintr100.onnx"]
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(f"There is no {file}: ref_fr.antelope has to name antelopev2's own folder.")
        providers = ["CPUExecutionProvider"]
        if self.device.startswith("cuda"):
            providers.insert(0, "CUDAExecutionProvider")
        networks = []
        for file in files:
            try:
                networks.append(zoo.get_model(str(file), providers=providers))
            except Exception as error:  # onnxruntime's errors have no base of their own
                reason = str(error).strip().splitlines()[0][:200]
                raise ValueError(f"{file} is not a whole network ({reason}): fetch antelopev2 again.") from error
        networks[0].prepare(0 if self.device.startswith("cuda") else -1)
        return networks


class _KeyPoints:
    """What insightface's recogniser asks of a face."""

    def __init__(self, points: np.ndarray):
        self.kps = points
        self.embedding: np.ndarray | None = None


def quality(face: SeenFace, pixels: Tensor) -> float:
    """How much a reference tells, 0 to 1: its size, how frontal it is, how sharp (all three ours).

    Size saturates at 224 pixels, what CLIP's tower sees. Frontal is the nose between the eyes: 1 in the middle, 0 at
    one of them. Sharp is the mean absolute Laplacian of the crop's grey values.
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


def describe(path: Path, describer: Describer, embed: Callable[[Tensor], Tensor]) -> Seen:
    """Read and describe one reference; None where it shows no face, the error where it is no image.

    Args:
        embed: makes `Reference.looks` of the face as `faceme_id.clip_pixels` gives it.
    """
    try:
        image = to_bytes(read_image(path))
    except ImageError as error:
        return error
    face = describer.see(image)
    if face is None:
        return None
    pixels = clip_pixels(image, face.box)
    return Reference(path, face.identity, embed(pixels), quality(face, pixels))


class ReferenceCache:
    """What was seen in the references so far, so that a photo is described once; a page is about 12 KB.

    A page is found by path, time of change and size. The pages read longest ago are torn out when there are too many.

    Args:
        pages: that are kept.
    """

    def __init__(self, pages: int = 10_000):
        self.pages = pages
        self._seen: OrderedDict[tuple, Seen] = OrderedDict()

    def unknown(self, paths: Sequence[Path]) -> list[Path]:
        """Those that have no page, each once.

        Raises:
            FaceRestorationError: one of them is not there.
        """
        return list({key: path for path in paths if (key := self._key(path)) not in self._seen}.values())

    def write(self, path: Path, seen: Seen) -> None:
        """Keep what was seen in an image."""
        self._seen[self._key(path)] = seen

    def read(self, paths: Sequence[Path]) -> list[Seen]:
        """What was seen in images that all have a page."""
        keys = [self._key(path) for path in paths]
        for key in keys:
            self._seen.move_to_end(key)
        found = [self._seen[key] for key in keys]
        while len(self._seen) > self.pages:
            self._seen.popitem(last=False)
        return found

    @staticmethod
    def _key(path: Path) -> tuple:
        try:
            facts = Path(path).stat()
        except OSError as error:
            raise FaceRestorationError(f"the reference {path} is not there") from error
        return (str(path), facts.st_mtime_ns, facts.st_size)


def choose(
    paths: Sequence[Path], described: Sequence[Seen], *, most: int, same_person: float
) -> tuple[list[Reference], tuple[str, ...]]:
    """The references to use, and what the restoration log should know.

    The largest group of images of one person is kept (of two equal ones the better), and of it the `most` best by
    `quality`, in the order they came.

    Args:
        described: for every path its reference, None without a face, or the error of a file that is no image.
        same_person: cosine of identities from which two faces are taken for one person.

    Raises:
        FaceRestorationError: there is no reference, or none shows a face.
    """
    if not paths:
        raise FaceRestorationError(
            "ref_fr=faceme restores a face after photos of the person and got none (references=FOLDER)"
        )
    usable = [one for one in described if isinstance(one, Reference)]
    names = [p.name for p, one in zip(paths, described, strict=True) if not isinstance(one, Reference)]
    if not usable:
        raise FaceRestorationError(
            f"none of the {len(paths)} reference images shows a face ({_listed(names)}): give photos in which the "
            "face is seen (references=FOLDER)"
        )
    notes = [f"References without a face, or unreadable, were left out: {_listed(names)}."] if names else []
    identities = np.stack([one.identity for one in usable])
    alike = identities @ identities.T >= same_person
    qualities = np.array([one.quality for one in usable])
    seed = max(range(len(usable)), key=lambda n: (alike[n].sum(), qualities[alike[n]].max(), -n))
    group = [n for n in range(len(usable)) if alike[seed, n] or n == seed]
    strangers = [usable[n].path.name for n in range(len(usable)) if n not in group]
    if strangers:
        notes.append(
            f"The references show several people; {len(group)} of {len(usable)} were used, and these left out: "
            f"{_listed(strangers)}."
        )
    best = sorted(sorted(group, key=lambda n: -qualities[n])[:most])
    if len(best) < len(group):
        notes.append(f"The best {len(best)} of {len(group)} references were used, by size, pose and sharpness.")
    return [usable[n] for n in best], tuple(notes)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
