"""Photos in webdataset archives as a source of InScene images, read in order and never listed.

Members with the same path up to the first dot of the file name are one sample: an image, and perhaps a `.json` with
metadata and a `.txt` with a caption.
"""

import errno
import json
import lzma
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from face2scene.data.building.build import BAD_INPUT, BuildError, BuildResult, RecordCandidate, Rejection
from face2scene.data.building.names import distinct, printable, safe
from face2scene.data.sources.photo_source import PhotoInfo, PhotoSource
from face2scene.faces.detect import Detector
from face2scene.image_io.arrays import SUFFIXES

_TEXTS = (".json", ".txt")
_MAX_TEXT = 1_000_000  # bytes of a sample's JSON or caption


class TruncatedArchive(Exception):
    """An archive that ends too early or is none; the message says where."""


@dataclass
class Sample:
    """One sample of an archive."""

    key: str
    image: str = ""  # member name
    too_large: bool = False
    texts: dict[str, bytes] = field(default_factory=dict)  # by suffix


class PhotoArchives(PhotoSource):
    """The photos of tar archives (webdataset shards). One item is one archive, done in chunks.

    Args:
        archives: files, or patterns such as `/data/cc12m/*.tar`, sorted by name.
        chunk_size: samples per side-car, the most that a crash loses.
        identity_field: field of a sample's JSON with the identity. Without it, each image is a person of its own unless
            `data.grouping` finds people.
        split: of all samples; None is by seed.
        caption: take a sample's `.txt` as its prompt.
        max_bytes: larger members are quarantined unread.
        options: see `PhotoSource`.
    """

    def __init__(
        self,
        archives: str | Path | Sequence[str | Path] | None,
        detector: Detector,
        *,
        name: str,
        chunk_size: int = 256,
        identity_field: str | None = None,
        split: str | None = "train",
        caption: bool = True,
        max_bytes: int = 200_000_000,
        **options: Any,
    ):
        super().__init__(detector, name=name, **options)
        self.patterns = [archives] if isinstance(archives, str | Path) else list(archives or ())
        self.chunk_size, self.split, self.caption, self.max_bytes = chunk_size, split, caption, max_bytes
        self.identity_field = identity_field

    @cached_property
    def files(self) -> list[Path]:
        """The archives, sorted within every pattern."""
        found: list[Path] = []
        if not self.patterns:
            raise BuildError("No archives were named: data.archives is not set.")
        for pattern in self.patterns:
            path = Path(pattern)
            here = [path] if path.is_file() else sorted(path.parent.glob(path.name)) if path.parent.is_dir() else []
            if not here:
                raise BuildError(f"There is no archive at {pattern} (data.archives).")
            found += here
        return found

    def listing(self) -> Any:
        """Archives and their sizes."""
        return [[printable(path.name), path.stat().st_size] for path in self.files]

    def items(self) -> Sequence[int]:
        self.prepare()
        return range(len(self.files))

    def key(self, item: int) -> str:
        return f"{self.name}_{item:05d}_{safe(self.files[item].stem)}"

    def chunks(self, item: int, start: int) -> Iterator[BuildResult]:
        """The archive's samples, `chunk_size` at a time, from chunk `start` on."""
        archive, results = self.files[item], []
        with tempfile.TemporaryDirectory() as place:
            try:
                for number, sample, file in samples(archive, Path(place), start * self.chunk_size, self.max_bytes):
                    results.append(self._result(item, number, sample, file))
                    if len(results) == self.chunk_size:
                        yield BuildResult.of(results)
                        results = []
            except TruncatedArchive as error:
                name = f"{self.name}/{printable(archive.name)}"
                results.append(Rejection(name, f"archive cut: {error}", BAD_INPUT))
        if results:
            yield BuildResult.of(results)

    def _result(self, item: int, number: int, sample: Sample, file: Path | None) -> RecordCandidate | Rejection:
        shown = f"{printable(self.files[item].name)}/{printable(sample.image or sample.key)}"

        def bad(reason: str) -> Rejection:
            return Rejection(f"{self.name}/{shown}", reason, BAD_INPUT)

        if sample.too_large:
            return bad(f"too many bytes: more than {self.max_bytes / 1e6:g} million")
        if file is None:
            return bad("not what the metadata say: there is no image of this key")
        if printable(sample.image) != sample.image:
            return bad("the name is not UTF-8: rename the member")
        try:
            known = json.loads(sample.texts.get(".json", b"{}"))
            caption = sample.texts.get(".txt", b"").decode("utf-8").strip()
        except (ValueError, RecursionError) as error:
            return bad(f"bad metadata: {error}")
        if not isinstance(known, dict):
            return bad("bad metadata: the JSON is no object")
        person = known.get(self.identity_field) if self.identity_field else None
        identity = f"{self.name}_{distinct(str(person))}" if person else None
        info = PhotoInfo(shown, identity, self.split, caption if self.caption else None)
        return self.process(file, f"{self.key(item)}_{number:06d}", info)


def samples(archive: Path, place: Path, first: int, max_bytes: int) -> Iterator[tuple[int, Sample, Path | None]]:
    """The samples of an archive from number `first` on: number, sample, and its image as a file in `place`.

    A file is valid until the next sample is read.

    Raises:
        TruncatedArchive: the archive is corrupt from here on; the samples before are good.
    """
    number, sample, file = -1, None, None
    try:
        with tarfile.open(archive) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # else it keeps every member in memory
                path = PurePosixPath(member.name)
                stem, dot, suffix = path.name.partition(".")
                if not member.isfile() or not dot or path.name.startswith("."):
                    continue
                key, suffix = str(path.parent / stem), f".{suffix.lower()}"
                if sample is None or key != sample.key:
                    if sample is not None and number >= first:
                        yield number, sample, file
                    number, sample, file = number + 1, Sample(key), None
                if number < first:
                    continue
                if suffix in _TEXTS and member.size <= _MAX_TEXT:
                    sample.texts[suffix] = tar.extractfile(member).read()
                elif f".{suffix.rsplit('.', 1)[-1]}" in SUFFIXES and not sample.image:
                    sample.image = member.name
                    if member.size > max_bytes:
                        sample.too_large = True
                        continue
                    file = place / f"image.{suffix.rsplit('.', 1)[-1]}"
                    content = tar.extractfile(member).read()
                    if len(content) != member.size:
                        raise tarfile.ReadError(f"{member.name} has {len(content)} of {member.size} bytes")
                    file.write_bytes(content)
            end = tar.offset
            if archive.suffix == ".tar" and archive.stat().st_size < end + tarfile.BLOCKSIZE:
                raise tarfile.ReadError("the end of the archive is missing")
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # of the folder `place`
        raise TruncatedArchive(f"after {max(number, 0)} samples ({error})") from error
    if sample is not None and number >= first:
        yield number, sample, file
