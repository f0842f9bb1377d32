"""Photos in webdataset archives, as a build source: read as they come, never listed.

Members that share everything up to the first dot of their file name are one sample: an image, and perhaps a `.json`
with what is known of it and a `.txt` with its caption.
"""

import json
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from face2scene.data.building.build import BAD_INPUT, BuildError, BuildResult, RecordCandidate, Rejection
from face2scene.data.building.names import printable, safe
from face2scene.data.building.photo_filtering import Label
from face2scene.data.sources.photo_folder import PhotoSource
from face2scene.faces.detect import Detector
from face2scene.image_io.arrays import SUFFIXES

_BESIDE = (".json", ".txt")
_LARGEST_TEXT = 1_000_000  # bytes of a sample's JSON or caption


class TruncatedArchive(Exception):
    """An archive that ends too early or is none; the message says where."""


@dataclass
class Sample:
    """One sample of an archive, its files still in it."""

    key: str
    image: str = ""  # member name
    too_large: bool = False
    texts: dict[str, bytes] = field(default_factory=dict)


class PhotoArchives(PhotoSource):
    """The photos of tar archives (webdataset shards). One item is one archive, done in portions.

    Args:
        archives: files, or patterns such as `/data/cc12m/*.tar`, sorted by name.
        portion: samples per side-car; what is lost by a crash is at most this many.
        identity_field, split_field: fields of a sample's JSON; None, or a missing field, is unknown: everybody is a
            person of its own without `data.grouping`, and the split is `split`.
        split: of the samples without one; None is by seed.
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
        portion: int = 256,
        identity_field: str | None = None,
        split_field: str | None = None,
        split: str | None = "train",
        caption: bool = True,
        max_bytes: int = 200_000_000,
        **options: Any,
    ):
        super().__init__(detector, name=name, **options)
        self.patterns = [archives] if isinstance(archives, str | Path) else list(archives or ())
        self.portion, self.split, self.caption, self.max_bytes = portion, split, caption, max_bytes
        self.identity_field, self.split_field = identity_field, split_field

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
                raise BuildError(f"There is no archive at {pattern} (option archives).")
            found += here
        return found

    def listing(self) -> Any:
        """Archives and their sizes."""
        return [[printable(path.name), path.stat().st_size] for path in self.files]

    def items(self) -> Sequence[int]:
        self.photographs.prepare()
        return range(len(self.files))

    def key(self, item: int) -> str:
        return f"{self.name}_{item:05d}_{safe(self.files[item].stem)}"

    def make(self, item: int) -> BuildResult:
        """The whole archive at once; builds go by `chunks`."""
        parts = list(self.chunks(item, 0))
        return BuildResult([d for part in parts for d in part.drafts], [r for part in parts for r in part.rejected])

    def chunks(self, item: int, start: int) -> Iterator[BuildResult]:
        """The archive's samples, `portion` at a time, from portion `start` on; the samples before are passed over."""
        archive, collected, number = self.files[item], [], 0
        first = start * self.portion
        with tempfile.TemporaryDirectory() as place:
            try:
                for number, sample, file in samples(archive, Path(place), first, self.max_bytes):
                    collected.append(self._judged(item, number, sample, file))
                    if len(collected) == self.portion:
                        yield self.made(iter(collected))
                        collected = []
            except TruncatedArchive as error:
                collected.append(
                    Rejection(f"{self.name}/{printable(archive.name)}", f"archive cut: {error}", BAD_INPUT)
                )
        if collected:
            yield self.made(iter(collected))

    def _judged(self, item: int, number: int, sample: Sample, file: Path | None) -> RecordCandidate | Rejection:
        shown = f"{printable(self.files[item].name)}/{printable(sample.image or sample.key)}"
        if sample.too_large:
            said = f"too many bytes: more than {self.max_bytes / 1e6:g} million"
            return Rejection(f"{self.name}/{shown}", said, BAD_INPUT)
        if file is None:
            said = "not what the metadata say: there is no image of this key"
            return Rejection(f"{self.name}/{shown}", said, BAD_INPUT)
        if printable(sample.image) != sample.image:
            return Rejection(f"{self.name}/{shown}", "the name is not UTF-8: rename the member", BAD_INPUT)
        try:
            known = json.loads(sample.texts.get(".json", b"{}"))
            caption = sample.texts.get(".txt", b"").decode("utf-8").strip()
        except ValueError as error:
            return Rejection(f"{self.name}/{shown}", f"bad metadata: {error}", BAD_INPUT)
        if not isinstance(known, dict):
            return Rejection(f"{self.name}/{shown}", "bad metadata: the JSON is no object", BAD_INPUT)
        person = known.get(self.identity_field) if self.identity_field else None
        split = known.get(self.split_field, self.split) if self.split_field else self.split
        if split not in ("train", "val", "test", None):
            return Rejection(f"{self.name}/{shown}", f"bad metadata: unknown split {split!r}", BAD_INPUT)
        label = Label(
            shown, f"{self.name}_{safe(str(person))}" if person else None, split, caption if self.caption else None
        )
        return self.photographs.draft(file, f"{self.key(item)}_{number:06d}", label)


def samples(archive: Path, place: Path, first: int, max_bytes: int) -> Iterator[tuple[int, Sample, Path | None]]:
    """The samples of an archive from number `first` on, each with its image as a file in `place` until the next.

    Raises:
        Cut: the archive is corrupt from here on; what came before is good.
    """
    number, sample, file = -1, None, None
    try:
        with tarfile.open(archive) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # it would remember every member
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
                if suffix in _BESIDE and member.size <= _LARGEST_TEXT:
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
    except (tarfile.TarError, EOFError, OSError) as error:
        raise TruncatedArchive(f"after {max(number, 0)} samples ({error})") from error
    if sample is not None and number >= first:
        yield number, sample, file
