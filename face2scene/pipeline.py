"""Face2Scene from end to end: a damaged photo and other photos of the person become a restored photo.

    scene -> faces -> the face restored (Stage I) -> FaDeX -> MapNet's tokens -> the scene restored (Stage II)

`measure` is the first half, `restore` the second, and calling the pipeline is both.
"""

import logging
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from face2scene.faces.align import square_crop_box
from face2scene.fadex.encoder import FaDeX
from face2scene.images import ImageError, align_colour, read_image, to_array
from face2scene.records import Box, DegradationTokens, Face, FacePair, Scene
from face2scene.ref_fr import RefFR, StageOneError, face_pair
from face2scene.ref_fr.base import upright_points
from face2scene.restorer.load import load_restorer
from face2scene.restorer.one_step import OneStepRestorer
from face2scene.restorer.s3diff import S3Diff
from face2scene.restorer.tiling import in_tiles, tile_starts
from face2scene.runs import seed_from

log = logging.getLogger(__name__)


class Finder(Protocol):
    """What finds faces; `faces.detect.Detector` is one."""

    def find(self, image: np.ndarray) -> list[Face]: ...


@dataclass(frozen=True, eq=False)
class Measurement:
    """What the faces of a scene say about its damage."""

    tokens: DegradationTokens
    faces: tuple[Face, ...] = ()
    pair: FacePair | None = None
    notes: dict[str, Any] = field(default_factory=dict)  # for the why-log


@dataclass(frozen=True, eq=False)
class Restoration:
    """A restored scene and how it came about."""

    image: Tensor  # (3, H, W) in [0, 1], the size of the scene
    measurement: Measurement
    notes: dict[str, Any]  # one line of the why-log, without the file names


class Face2ScenePipeline:
    """The method, for inference.

    Args:
        restorer: Stage II; its LoRAs are merged here. An S3Diff takes no tokens: it measures the picture itself.
        fadex: the degradation encoder.
        ref_fr: Stage I; None restores every scene with the null tokens.
        detector: finds faces; None also leads to the null tokens, unless a box is given.
        colour: `none`, `wavelet` or `adain`: alignment with the input (not public; see `images.align_colour`).
        tile, overlap: pixels; a larger picture is restored in tiles.
        largest_face: pixels; of a larger face the middle is measured, at its native scale (ours: attention over a
            whole close-up costs more than it tells).
        most_tokens: of a picture's tokens, coarse to fine, the first so many (an ablation of ours); None is all.
    """

    def __init__(
        self,
        restorer: OneStepRestorer | S3Diff,
        fadex: FaDeX,
        *,
        ref_fr: RefFR | None = None,
        detector: Finder | None = None,
        colour: str = "none",
        tile: int = 512,
        overlap: int = 64,
        largest_face: int = 256,
        most_tokens: int | None = None,
        device: str | torch.device = "cpu",
    ):
        self.device = torch.device(device)
        self.restorer = restorer.merged().to(self.device)
        self.fadex = fadex.eval().to(self.device)
        self.ref_fr, self.detector = ref_fr, detector
        self.colour, self.tile, self.overlap = colour, tile, overlap
        self.largest_face, self.most_tokens = largest_face, most_tokens
        self._reference_faces: dict[Path, Face | None] = {}

    @classmethod
    def from_files(
        cls, restorer: str | Path, fadex: str | Path, *, base: str | Path | None = None, **options: Any
    ) -> "Face2ScenePipeline":
        """Load the two weights files.

        Args:
            base: the base model, where it is not where the restorer's header says.
            options: of the constructor.
        """
        return cls(load_restorer(restorer, source=base), FaDeX.from_file(fadex), **options)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> "Face2ScenePipeline":
        """Load `restorer.safetensors` and `fadex.safetensors` of a folder, such as `checkpoints/tiny`."""
        return cls.from_files(Path(folder) / "restorer.safetensors", Path(folder) / "fadex.safetensors", **options)

    def __call__(
        self, scene: Scene, *, truth: Tensor | None = None, seed: int = 0, guidance: float | None = None
    ) -> Restoration:
        """Restore one scene; see `measure` and `restore`."""
        return self.restore(scene, self.measure(scene, truth=truth, seed=seed), guidance=guidance)

    @torch.inference_mode()
    def measure(
        self, scene: Scene, *, truth: Tensor | None = None, box: Box | None = None, seed: int = 0
    ) -> Measurement:
        """Faces, Stage I, FaDeX and MapNet.

        Args:
            truth: (3, H, W), the scene undamaged: only for stand-ins of Stage I that are made from it.
            box: the face, where it is known; the detector is then not asked.
            seed: with the scene's name, of Stage I's randomness.
        """
        start = perf_counter()
        notes: dict[str, Any] = {"warnings": []}
        faces = list(scene.faces)
        if not faces and box is None and self.detector is not None:
            faces = self.detector.find(to_array(scene.image))
        notes["faces"] = [self._describe(face, scene.references) for face in faces]
        notes["seconds_faces"] = round(perf_counter() - start, 3)

        reason = ""
        if self.ref_fr is None:
            reason = "there is no Stage I (ref_fr=none)"
        elif self.ref_fr.needs_truth and truth is None:
            reason = f"ref_fr={self.ref_fr.name} is made from the undamaged picture and none was given (truth=FOLDER)"
        elif not faces and box is None:
            reason = "no face was found" if self.detector else "no face detector is set (faces=none)"
        if reason:
            return self._without_pair(reason, faces, notes)

        start = perf_counter()
        whole = square_crop_box(box or faces[0].box, tuple(scene.image.shape[-2:]))
        square = _middle(whole, self.largest_face)
        points = upright_points(whole) if box else faces[0].landmarks_5
        rng = np.random.default_rng(seed_from(seed, scene.name))
        given = {"references": scene.references, "truth": truth, "landmarks": points, "rng": rng}
        try:
            pair = face_pair(self.ref_fr, scene.image, square, **given)
        except StageOneError as error:
            return self._without_pair(str(error).rstrip("."), faces, notes)
        notes["warnings"] += pair.notes
        notes["seconds_ref_fr"] = round(perf_counter() - start, 3)
        start = perf_counter()
        features = self.fadex(pair.restored[None].to(self.device), pair.degraded[None].to(self.device))
        tokens = self.restorer.tokens(features, 1)[:, : self.most_tokens]
        notes["seconds_tokens"] = round(perf_counter() - start, 3)
        return Measurement(DegradationTokens(tokens, "pair"), tuple(faces), pair, notes)

    def _without_pair(self, reason: str, faces: Sequence[Face], notes: dict[str, Any]) -> Measurement:
        notes["warnings"].append(f"The learned null tokens stand in for the face's, because {reason}.")
        return Measurement(DegradationTokens(self.restorer.tokens(None, 1), "null"), tuple(faces), None, notes)

    def restore(self, scene: Scene, measurement: Measurement, *, guidance: float | None = None) -> Restoration:
        """Stage II with given tokens, in tiles where the scene is larger than one.

        Args:
            guidance: lambda of classifier-free guidance; None is the restorer's own.
        """
        start = perf_counter()
        image = scene.image[None].to(self.device)
        tokens = measurement.tokens.tokens

        def one(part: Tensor) -> Tensor:
            return self.restorer.restore(part, tokens, guidance=guidance)

        output = in_tiles(one, image, tile=self.tile, overlap=self.overlap)
        output = align_colour(output, image, self.colour)[0].cpu()
        tiles = [len(tile_starts(side, self.tile, self.overlap)) for side in image.shape[-2:]]
        notes = measurement.notes | {
            "width": image.shape[-1],
            "height": image.shape[-2],
            "tokens": measurement.tokens.source,
            "ref_fr": getattr(self.ref_fr, "name", "none"),
            "guidance": self.restorer.guidance if guidance is None else guidance,
            "tiles": {"rows": tiles[0], "columns": tiles[1], "size": self.tile, "overlap": self.overlap},
            "colour": self.colour,
            "seconds_restore": round(perf_counter() - start, 3),
            "peak_memory_mib": self._peak_memory(),
        }
        return Restoration(output, measurement, notes)

    def _peak_memory(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) // 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    def _describe(self, face: Face, references: Sequence[Path]) -> dict[str, Any]:
        row: dict[str, Any] = {
            "box": [round(float(v), 1) for v in face.box],
            "score": round(float(face.score), 3),
        }
        row["size"] = round(float(face.size), 1)
        known = {p: other for p in references if (other := self._reference_face(p)) and other.identity is not None}
        if known and face.identity is not None:
            cosines = {path: float(other.identity @ face.identity) for path, other in known.items()}
            best = max(cosines, key=cosines.__getitem__)
            same = cosines[best] >= getattr(self.detector, "same_threshold", 1.0)
            row |= {"reference": best.name if same else None, "similarity": round(cosines[best], 4)}
        return row

    def _reference_face(self, path: Path) -> Face | None:
        if path not in self._reference_faces:
            try:
                faces = self.detector.find(read_image(path)) if self.detector else []
            except (FileNotFoundError, ImageError):
                faces = []  # a reference that cannot be read names nobody
            self._reference_faces[path] = faces[0] if faces else None
        return self._reference_faces[path]


def _middle(box: Box, largest: int) -> Box:
    x0, y0, x1, y1 = (int(v) for v in box)
    cut = max(0, (x1 - x0 - largest) // 2)
    return (x0 + cut, y0 + cut, x1 - cut, y1 - cut)
