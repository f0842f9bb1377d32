"""A content-addressed cache of restored faces on disk, so that training does not wait for Stage I.

    FOLDER/<fingerprint>/about.json      the restorer
    FOLDER/<fingerprint>/ab/<key>.png    one restored face; its notes and the digest of its pixels are in the header
    FOLDER/<fingerprint>/ab/<key>.json   one face that could not be restored, with the message

The fingerprint is the restorer's: weights, settings and code. The key is a digest of the reference files' bytes and of
the face's name, which says from which image and by which recipe it was made: degraded pixels have other last digits on
another processor. A face without a name, such as a photo's, is known by its pixels. So stale entries are never read,
and records of the same content share one entry.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from face2scene.common.choices import one_of
from face2scene.common.files import atomic_write, read_json, write_json
from face2scene.common.ledger import content
from face2scene.image_io.arrays import to_bytes, to_tensor
from face2scene.ref_fr.base import AlignedRefFR, FaceRestorationError, RestoredFace, RestorerUnavailableError, in_bytes


class Cached(AlignedRefFR):
    """A restorer whose results are cached on disk.

    Args:
        restorer: an `AlignedRefFR`; the results of others depend on more than face and references.
        folder: of the cache, for any number of restorers.
        missing: `compute` restores and stores a missing face; `refuse` raises, for training that must not wait
            (`scripts/precompute_ref_fr.py` fills the cache).

    Raises:
        ValueError: a restorer that cannot be cached, or an unknown `missing`.
        FileNotFoundError: with `refuse`, the cache has no faces of this fingerprint.
    """

    def __init__(self, restorer: AlignedRefFR, folder: str | Path, *, missing: str = "compute"):
        if not isinstance(restorer, AlignedRefFR):
            raise ValueError(
                f"ref_fr={getattr(restorer, 'name', 'none')} cannot be cached: it is cheap, or it is random."
            )
        one_of("ref_fr.missing", missing, ("compute", "refuse"))
        self.restorer, self.root, self.missing = restorer, Path(folder), missing
        self.name, self.size = restorer.name, restorer.size
        if missing == "refuse" and not self._about.is_file():
            others = [p.parent.name for p in sorted(self.root.glob("*/about.json"))]
            stale = f" It holds faces of other weights, settings or code ({', '.join(others[:3])})." if others else ""
            raise FileNotFoundError(
                f"The cache {self.root} holds no face of this ref_fr={self.name} ({self.fingerprint}).{stale} "
                "Run `face2scene precompute-ref-fr` with the same options, or set "
                "ref_fr.missing=compute."
            )

    @cached_property
    def fingerprint(self) -> str:
        return self.restorer.fingerprint

    @property
    def folder(self) -> Path:
        """Of this restorer's faces."""
        return self.root / self.fingerprint

    @property
    def _about(self) -> Path:
        return self.folder / "about.json"

    def ready(self) -> None:
        """See `AlignedRefFR`; with `refuse` nothing is loaded."""
        if self.missing == "compute":
            self.restorer.ready()

    def key(self, face: Tensor, references: Sequence[Path], name: str = "") -> str:
        """Hex digest of a face's name, else of its pixels (3, s, s) in [0, 1], and its references' bytes, in order."""
        digest = hashlib.sha256(f"name {name} ".encode() if name else to_bytes(face).tobytes())
        for path in references:
            try:
                digest.update(content(path).encode())
            except OSError as error:
                raise FaceRestorationError(f"the reference {path} is not there") from error
        return digest.hexdigest()[:40]

    def restore_aligned(self, faces: Tensor, references: Sequence[Sequence[Path]]) -> list[RestoredFace]:
        """See `AlignedRefFR`.

        Raises:
            FaceRestorationError: a face cannot be restored, now or when it was cached.
            FileNotFoundError: with `refuse`, a face is missing.
        """
        self.fill(faces, references)
        return [self.read(self.key(face, paths)) for face, paths in zip(faces, references, strict=True)]

    def restore_named(self, face: Tensor, references: Sequence[Path], name: str) -> RestoredFace:
        """See `AlignedRefFR`; raises what `restore_aligned` does."""
        self.fill(face[None], [references], [name])
        return self.read(self.key(face, references, name))

    def fill(self, faces: Tensor, references: Sequence[Sequence[Path]], names: Sequence[str] = ()) -> int:
        """Restore the faces that are missing, each content once; their number.

        Raises:
            FileNotFoundError: with `refuse`, a face is missing.
            RestorerUnavailableError: the restorer does not work; nothing of this batch is stored.
        """
        wanted = {}
        for number, (face, paths, name) in enumerate(zip(faces, references, names or [""] * len(faces), strict=True)):
            key = self.key(face, paths, name)
            if key not in wanted and not self._image(key).is_file() and not self._refusal(key).is_file():
                wanted[key] = number
        if wanted and self.missing == "refuse":
            raise FileNotFoundError(
                f"{len(wanted)} of {len(faces)} faces are not in the cache {self.folder}: run "
                "`face2scene precompute-ref-fr` for the same data, degradation and recipes "
                "(train.restorer.batches.recipes), or set ref_fr.missing=compute."
            )
        if wanted:
            self.restorer.ready()
            if not self._about.is_file():
                write_json(self._about, {"name": self.name, "size": self.size, "fingerprint": self.fingerprint})
            self._compute(wanted, faces, references)
        return len(wanted)

    def _compute(self, wanted: dict[str, int], faces: Tensor, references: Sequence[Sequence[Path]]) -> None:
        rows = list(wanted.values())
        try:
            restored = self.restorer.restore_aligned(in_bytes(faces[rows]), [references[n] for n in rows])
        except RestorerUnavailableError:
            raise  # may succeed in another run, so it is not stored
        except FaceRestorationError as error:
            if len(wanted) > 1:  # find the failing ones
                for key, number in wanted.items():
                    self._compute({key: number}, faces, references)
                return
            write_json(self._refusal(next(iter(wanted))), {"refused": str(error)})
            return
        for key, face in zip(wanted, restored, strict=True):
            pixels, info = to_bytes(face.image), PngInfo()
            info.add_text("pixels", hashlib.sha256(pixels.tobytes()).hexdigest())
            info.add_text("notes", json.dumps(face.notes))
            with atomic_write(self._image(key)) as partial:
                Image.fromarray(pixels).save(partial, format="PNG", compress_level=3, pnginfo=info)

    def read(self, key: str) -> RestoredFace:
        """One face of the cache.

        Raises:
            FaceRestorationError: it could not be restored when it was cached.
            ValueError: the file is corrupt.
        """
        if self._refusal(key).is_file():
            raise FaceRestorationError(read_json(self._refusal(key))["refused"])
        path = self._image(key)
        try:
            with Image.open(path, formats=["PNG"]) as file:
                pixels, info = np.array(file.convert("RGB")), file.info
            intact = info["pixels"] == hashlib.sha256(pixels.tobytes()).hexdigest()
        except (OSError, KeyError, SyntaxError) as error:
            raise ValueError(f"{path} is corrupt ({error}): remove it and precompute again.") from error
        if not intact:
            raise ValueError(f"{path} is corrupt (its pixels are not those written): remove it and precompute again.")
        return RestoredFace(to_tensor(pixels), tuple(json.loads(info["notes"])))

    def _image(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.png"

    def _refusal(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
