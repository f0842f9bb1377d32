"""Checks a dataset against its metadata: every file there, unchanged, in its place, and no other.

`SHA256SUMS`, in the format of `sha256sum -c`, covers references, degraded images, reports and metadata; the sums of
the images are in the records.
"""

import hashlib
import io
import json
import re
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from face2scene.common.files import sha256_of
from face2scene.common.locks import LOCK
from face2scene.data.paths import FolderPaths, OutsideFolder
from face2scene.data.records import METADATA, SPLITS, SUMS, Record, read_sums, stream_manifest
from face2scene.data.shards import is_stored, members_of, read_bytes, shard_of
from face2scene.image_io.metadata import OPENED

_KNOWN_FILES = {METADATA, SUMS, "metadata.jsonl", "rejected.jsonl", "build.json", "README.md", LOCK}
_KNOWN_FILES |= {"funnel.html", "identities.html"}


def verify(folder: str | Path) -> Iterator[str]:
    """The problems of a dataset, a sentence each; a scratch database keeps memory independent of the set's size."""
    folder = Path(folder)
    with tempfile.TemporaryDirectory() as place:
        seen = _Seen(Path(place) / "seen.sqlite")
        for record in stream_manifest(folder):
            yield from _problems_of(folder, record)
            unique = {"path": record.image, "content": record.sha256, "degradation operator": _operators(record)}
            for kind, value in unique.items():
                if value and (first := seen.first(kind, value, record.image)) is not None:
                    yield f"{record.image} has the same {kind} as {first}."
            seen.splits(record.identity, record.split)
            names = [record.image, *record.references, *([record.lq] if record.lq else [])]
            seen.used([*names, *(f"{shard}.tar" for name in names if (shard := shard_of(name)))])
        for identity, splits in seen.shared_identities():
            yield f"Identity {identity} is in the splits {', '.join(splits)}; splits must not share."
        yield from _problems_of_sums(folder, seen)
        for name in _files(folder):
            if name not in _KNOWN_FILES and not seen.is_used(name):
                yield f"{name} belongs to no record."
            elif (folder / SUMS).is_file() and (name == METADATA or seen.is_used(name)) and not seen.has_sum(name):
                yield f"{name} is not in {SUMS}."
            elif name.endswith(".tar"):
                inside = members_of(folder, name)
                yield from (f"{member} belongs to no record." for member in inside if not seen.is_used(member))
        seen.db.close()


def _problems_of_sums(folder: Path, seen: "_Seen") -> Iterator[str]:
    if not (folder / SUMS).is_file():
        return  # a set of another origin
    paths = FolderPaths(folder)
    for name, digest in read_sums(folder):
        if not re.fullmatch("[0-9a-f]{64}", digest):
            yield f"{SUMS} has a line that is no checksum ({digest[:20]!r})."
            continue
        seen.first("sum", name, name)
        if seen.is_image(name):
            continue  # compared with its record
        try:
            path = paths(name)
        except OutsideFolder as error:
            yield f"{SUMS}: {error}"
            continue
        if not path.is_file():
            if not seen.is_used(name):  # else reported with its record
                yield f"{name} is missing."
        elif sha256_of(path) != digest:
            yield f"{name} is not the recorded file (wrong sha256)."


def _problems_of(folder: Path, record: Record) -> Iterator[str]:
    if record.split not in SPLITS:
        yield f"{record.image} has the unknown split {record.split!r}."
    if not is_stored(folder, record.image):
        yield f"{record.image} is missing."
    elif (content := _content(folder, record.image)) is None or hashlib.sha256(content).hexdigest() != record.sha256:
        yield f"{record.image} is not the recorded file (wrong sha256)."
    else:
        try:
            with Image.open(io.BytesIO(content), formats=OPENED) as image:
                if image.size != (record.width, record.height):
                    yield f"{record.image} is {image.size}, recorded as {(record.width, record.height)}."
        except (OSError, Image.DecompressionBombError) as error:
            yield f"{record.image} is no image ({error})."
    x0, y0, x1, y1 = record.face_box
    if not (0 <= x0 < x1 <= record.width and 0 <= y0 < y1 <= record.height):
        size = f"{record.width} x {record.height}"
        yield f"{record.image}: the face box {record.face_box} is not inside {size}."
    for name in record.references:
        if not is_stored(folder, name):
            yield f"{record.image}: its reference {name} is missing."
        if name == record.image:
            yield f"{record.image} is its own reference."
    if (record.lq is None) != (record.recipe is None):
        yield f"{record.image} has an LQ image without a recipe, or a recipe without one."
    if record.lq and not (folder / record.lq).is_file():
        yield f"{record.image}: its LQ image {record.lq} is missing."


def _content(folder: Path, name: str) -> bytes | None:
    try:
        return read_bytes(folder, name)
    except OSError:
        return None


def _operators(record: Record) -> str:
    # Recipes that differ in the noise seed only are one operator, which must not occur twice.
    operators = (record.recipe or {}).get("operators")
    return json.dumps(operators, sort_keys=True) if operators else ""


def _files(folder: Path) -> Iterator[str]:
    # Folder by folder, so that memory does not grow with the set.
    todo = [folder]
    while todo:
        for path in sorted(todo.pop().iterdir()):
            if path.is_dir() and not path.is_symlink():
                todo.append(path)
            else:
                yield path.relative_to(folder).as_posix()


class _Seen:
    """The values, identities and file names so far, in a database on disk."""

    def __init__(self, path: Path):
        self.db = sqlite3.connect(path)
        self.db.executescript(
            "pragma synchronous = off; pragma journal_mode = off;"
            "create table firsts (kind text, value text, name text, primary key (kind, value)) without rowid;"
            "create table people (identity text, split text, primary key (identity, split)) without rowid;"
            "create table used (name text primary key) without rowid;"
        )

    def first(self, kind: str, value: str, name: str) -> str | None:
        found = self.db.execute("select name from firsts where kind = ? and value = ?", (kind, value)).fetchone()
        if found is None:
            self.db.execute("insert into firsts values (?, ?, ?)", (kind, value, name))
        return found and found[0]

    def splits(self, identity: str, split: str) -> None:
        self.db.execute("insert or ignore into people values (?, ?)", (identity, split))

    def shared_identities(self) -> list[tuple[str, list[str]]]:
        rows = self.db.execute(
            "select identity, group_concat(split) from people group by identity having count(*) > 1 order by identity"
        )
        return [(identity, sorted(splits.split(","))) for identity, splits in rows]

    def used(self, names: Iterable[str]) -> None:
        self.db.executemany("insert or ignore into used values (?)", ((name,) for name in names))

    def is_used(self, name: str) -> bool:
        return self.db.execute("select 1 from used where name = ?", (name,)).fetchone() is not None

    def is_image(self, name: str) -> bool:
        return self._knows("path", name)

    def has_sum(self, name: str) -> bool:
        return self._knows("sum", name) or self.is_image(name)  # an image's is in its record

    def _knows(self, kind: str, value: str) -> bool:
        query = "select 1 from firsts where kind = ? and value = ?"
        return self.db.execute(query, (kind, value)).fetchone() is not None
