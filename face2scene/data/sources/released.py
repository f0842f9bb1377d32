"""The released InScene, or any published set of images with faces, read through `datasets`.

Field names, box convention and split names of the release are not public; the configuration maps them to ours.
"""

import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from face2scene.common.choices import one_of
from face2scene.common.optional import import_optional
from face2scene.data.building.build import BAD_INPUT, BuildError, BuildResult, RecordCandidate, Rejection
from face2scene.data.building.names import printable, safe
from face2scene.data.building.photo_filtering import copies
from face2scene.data.building.prompts import plain_prompt, shot_of
from face2scene.data.paths import FolderPaths
from face2scene.image_io.arrays import ImageError, list_images
from face2scene.image_io.metadata import OPENED
from face2scene.image_io.photos import MAX_PIXELS

FIELDS = ("image", "lq", "name", "identity", "prompt", "shot", "face_box", "landmarks_68", "similarity")


@dataclass(eq=False)
class Released:
    """A published set. One item is one of its files (a shard of a split), done in chunks."""

    source: str | Path  # hub id, or a local folder that `datasets` can load (parquet, imagefolder, webdataset)
    _: KW_ONLY
    name: str = "inscene"  # of the source
    fields: Mapping[str, str | None]  # our field to theirs; a dot leads into a nested field. Only `image` is required
    splits: Mapping[str, str]  # their split to ours
    box: str = "xyxy"  # or `xywh`
    units: str = "pixels"  # of box and landmarks; or `relative` to width and height
    identity_pattern: str | None = None  # its first group is the identity in the image's name, if no field holds it
    references: str | Path | None = None  # a sub-folder of photos per identity; None takes the set's own images
    max_references: int = 4  # photos per image
    reference_size: int | None = None  # longest side of the photos
    licence: str
    chunk_size: int = 100  # images per side-car
    revision: str | None = None  # of the hub repository
    options: Mapping[str, Any] = field(default_factory=dict)  # more arguments of `datasets.load_dataset`
    size: int | None = None  # not used, images and boxes are those of the set; every source is given these two
    detector: Any = None

    def __post_init__(self) -> None:
        if unknown := sorted(self.fields.keys() - set(FIELDS)):
            raise ValueError(f"fields has unknown names {unknown}: choose from {', '.join(FIELDS)}.")
        if not self.fields.get("image"):
            raise ValueError("fields.image must name the field that holds the image.")
        one_of("data.sources.released.box", self.box, ("xyxy", "xywh"))
        one_of("data.sources.released.units", self.units, ("pixels", "relative"))
        self.source, self.name = str(self.source), safe(self.name)
        self.fields = {ours: theirs for ours, theirs in self.fields.items() if theirs}

    @cached_property
    def _sets(self) -> dict[str, Any]:
        datasets = import_optional("datasets", "data", why="Reading a published set")
        given = {"revision": self.revision} if self.revision else {}
        try:
            found = datasets.load_dataset(self.source, streaming=True, trust_remote_code=False, **given, **self.options)
        except Exception as error:  # the hub's, the file system's and the readers' own errors
            reason = f"{type(error).__name__}: {error}"
            raise BuildError(f"data.source={self.source} cannot be read as a published set ({reason}).") from error
        if missing := sorted(self.splits.keys() - found.keys()):
            raise BuildError(f"{self.source} has the splits {sorted(found)}, not {missing} (option splits).")
        sets = {}
        for split in self.splits:
            rows = found[split]
            if rows.features is None:  # resolved from the first row
                rows = rows._resolve_features()
            if absent := sorted({f.split(".")[0] for f in self.fields.values()} - rows.features.keys()):
                raise BuildError(
                    f"{self.source} ({split}) has the fields {sorted(rows.features)}, not {absent} (option fields)."
                )
            for ours in ("image", "lq"):
                if ours in self.fields and isinstance(rows.features[self.fields[ours]], datasets.Image):
                    rows = rows.cast_column(self.fields[ours], datasets.Image(decode=False))
            sets[split] = rows
        return sets

    def listing(self) -> Any:
        """Source and revision; the files of the hub are not listed."""
        return [self.source, self.revision]

    def items(self) -> Sequence[tuple[str, int, int]]:
        return [(split, n, rows.num_shards) for split, rows in self._sets.items() for n in range(rows.num_shards)]

    def key(self, item: tuple[str, int, int]) -> str:
        return f"{self.name}_{safe(item[0])}_{item[1]:05d}"

    def chunks(self, item: tuple[str, int, int], start: int) -> Iterator[BuildResult]:
        """The rows of one file, `chunk_size` at a time, from chunk `start` on."""
        split, number, count = item
        first = start * self.chunk_size
        rows = self._sets[split].shard(num_shards=count, index=number).skip(first)
        results = self._results(enumerate(rows, first), split, self.key(item))
        while chunk := list(islice(results, self.chunk_size)):
            yield BuildResult.of(chunk)

    def _results(self, rows: Iterator[tuple[int, Any]], split: str, key: str) -> Iterator[RecordCandidate | Rejection]:
        # Of a hub's file an OSError is the network's: the build stops and resumes there.
        corrupt = (ValueError, OSError) if os.path.isdir(self.source) else ValueError
        try:
            for n, row in rows:
                yield self._result(row, split, f"{key}_{n:06d}")
        except corrupt as error:
            yield Rejection(f"{self.name}/{key}", f"file cut: {type(error).__name__}: {error}", BAD_INPUT)

    def _result(self, row: Mapping[str, Any], split: str, key: str) -> RecordCandidate | Rejection:
        theirs = {ours: _at(row, field) for ours, field in self.fields.items()}
        image = theirs["image"]
        file = theirs.get("name") or (Path(image["path"]).name if isinstance(image, dict) and image.get("path") else "")
        shown = f"{self.name}/{printable(str(file or key))}"
        try:
            pixels = self._decoded(image)
            lq = self._decoded(theirs["lq"]) if theirs.get("lq") is not None else None
        except (ImageError, OSError, ValueError, Image.DecompressionBombError) as error:
            return Rejection(shown, f"unreadable: {error}", BAD_INPUT)
        height, width = pixels.shape[:2]
        if lq is not None and lq.shape != pixels.shape:
            lq = np.asarray(Image.fromarray(lq).resize((width, height), Image.BICUBIC))
        identity = theirs.get("identity")
        if identity is None and self.identity_pattern and (found := re.search(self.identity_pattern, str(file))):
            identity = found.group(1)
        if identity is None:
            return Rejection(shown, "bad metadata: no identity (options fields.identity, identity_pattern)", BAD_INPUT)
        try:
            box, points = self._geometry(theirs, width, height)
            similarity = theirs.get("similarity")
            similarity = None if similarity is None else float(similarity)
            references = self._photos(str(identity))
        except (TypeError, ValueError) as error:
            return Rejection(shown, f"bad metadata: {error}", BAD_INPUT)
        shot = str(theirs.get("shot") or shot_of(box, height))
        plain = plain_prompt(shot if shot in ("mid-up", "full-body") else "close-up")
        return RecordCandidate(
            name=key,
            image=pixels,
            split=self.splits[split],
            identity=str(identity),
            prompt=str(theirs.get("prompt") or plain),
            shot=shot,
            face_box=box,
            landmarks_68=points,
            source=self.name,
            licence=self.licence,
            generator={"name": "released", "from": self.source, "revision": self.revision, "file": str(file or key)},
            references=references,
            similarity=similarity,
            lq=lq,
            recipe=None if lq is None else {"operators": [], "origin": f"came with {self.source}"},
        )

    def _decoded(self, value: Any) -> np.ndarray:
        """uint8 (H, W, 3) of an undecoded image of `datasets`: bytes, or a mapping with `bytes` or `path`.

        A path must lead inside the source's folder.
        """
        content = value.get("bytes") if isinstance(value, Mapping) else value
        if content is None and isinstance(value, Mapping) and value.get("path"):
            root = os.path.realpath(self.source)
            content = FolderPaths(root)(os.path.relpath(os.path.realpath(value["path"]), root)).read_bytes()
        if not content:
            raise ImageError("the image is empty")
        with Image.open(io.BytesIO(content), formats=OPENED) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"{image.width} x {image.height} pixels are more than the limit")
            return np.asarray(image.convert("RGB"))

    def _geometry(self, theirs: Mapping[str, Any], width: int, height: int) -> tuple[tuple, np.ndarray | None]:
        box = np.array(theirs["face_box"] if theirs.get("face_box") is not None else (0, 0, width, height), float)
        if box.shape != (4,) or not np.isfinite(box).all():
            raise ValueError(f"the face box is {box.tolist()}, four numbers are needed")
        if self.box == "xywh":
            box[2:] += box[:2]
        scale = np.array([width, height], float) if self.units == "relative" else np.ones(2)
        if theirs.get("face_box") is not None:
            box *= np.tile(scale, 2)
        box = box.reshape(2, 2).clip(0, [width, height]).reshape(4)
        if not (box[2] > box[0] and box[3] > box[1]):
            raise ValueError(f"the face box {box.tolist()} is empty or outside {width} x {height}")
        points = theirs.get("landmarks_68")
        if points is None:
            return tuple(box), None
        points = np.array(points, float).reshape(-1, 2)
        if points.shape != (68, 2):
            raise ValueError(f"{len(points)} landmarks, 68 are needed")
        return tuple(box), points * scale

    @lru_cache(maxsize=1)  # noqa: B019  most sets are sorted by person
    def _photos(self, identity: str) -> list[tuple[str, np.ndarray]]:
        folder = FolderPaths(self.references)(identity) if self.references else ""
        return copies(list_images(folder)[: self.max_references], self.reference_size) if os.path.isdir(folder) else []


def _at(row: Mapping[str, Any], field: str) -> Any:
    value: Any = row
    for name in field.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
