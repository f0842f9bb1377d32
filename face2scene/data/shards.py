"""Images in tar archives (webdataset shards), for sets that are too large for loose files.

A packed set is an InScene dataset with image names such as `shards/train-000012.tar/000123.png`. The index of an
archive is read once, and members by random access.
"""

import hashlib
import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from face2scene.common.files import atomic_write, remove_partials, sha256_of
from face2scene.common.ledger import claim
from face2scene.common.locks import locked
from face2scene.data.records import (
    METADATA,
    SETTINGS,
    SUMS,
    ManifestError,
    Record,
    Records,
    read_sums,
    stream_manifest,
    version_of,
    write_manifest,
    write_sums,
)
from face2scene.image_io.arrays import read_image
from face2scene.image_io.metadata import OPENED

_INSIDE = ".tar/"
_EXTRACTED = 512  # members that one process keeps as files


def read_stored(folder: Path, name: str) -> np.ndarray:
    """An image of a set, loose or in an archive: float32 (H, W, 3) in [0, 1]."""
    if _INSIDE not in name:
        return read_image(folder / name)
    with Image.open(io.BytesIO(read_bytes(folder, name)), formats=OPENED) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float32) / 255


def read_bytes(folder: Path, name: str) -> bytes:
    """The bytes of an image of a set, loose or in an archive.

    Raises:
        FileNotFoundError: the file, the archive or the member is missing, or the archive is truncated.
    """
    if _INSIDE not in name:
        return (folder / name).read_bytes()
    archive, member = _archive_and_member(folder, name)
    if member not in _contents(archive):
        raise FileNotFoundError(f"{archive} is corrupt or has no member {member}.")
    offset, size = _contents(archive)[member]
    with open(archive, "rb") as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) != size:
        raise FileNotFoundError(f"{archive} ends inside its member {member}.")
    return content


def stored_path(folder: Path, name: str) -> Path:
    """The path of an image of a set, of a temporary copy where it is in an archive."""
    if _INSIDE not in name:
        return folder / name
    place = Path(_extracted().name)
    archive, member = _archive_and_member(folder, name)
    copy = place / f"{archive.stem}-{member.replace('/', '-')}"
    if not copy.is_file():
        files = sorted(place.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for old in files[: max(0, len(files) - _EXTRACTED + 1)]:
            old.unlink()
        copy.write_bytes(read_bytes(folder, name))
    return copy


def is_stored(folder: Path, name: str) -> bool:
    """Whether an image of a set exists."""
    if _INSIDE not in name:
        return (folder / name).is_file()
    archive, member = _archive_and_member(folder, name)
    return archive.is_file() and member in _contents(archive)


def _archive_and_member(folder: Path, name: str) -> tuple[Path, str]:
    archive, _, member = name.partition(_INSIDE)
    return folder / f"{archive}.tar", member


def shard_of(name: str) -> str:
    """The archive of an image without `.tar`; empty for a loose image."""
    return name.partition(_INSIDE)[0] if _INSIDE in name else ""


@lru_cache(maxsize=64)
def _contents(archive: Path) -> dict[str, tuple[int, int]]:
    # Offset and size of every member; none of a corrupt archive.
    try:
        with tarfile.open(archive, "r:") as tar:  # a compressed one has no places to read at
            return {member.name: (member.offset_data, member.size) for member in tar}
    except tarfile.TarError:
        return {}


@lru_cache(maxsize=1)
def _extracted() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="face2scene-")  # removed at the end of the process


def pack(folder: str | Path, packed: str | Path, *, split: str = "train", per_shard: int = 1000) -> int:
    """Copy a finished set with the images of one split in archives, each beside its record as JSON.

    Other splits and degraded images stay loose files. References that are images of the split are read from the
    archives too. The same set gives the same bytes; a stopped packing resumes at the last whole archive.

    Returns:
        The number of archives.

    Raises:
        FileExistsError: `packed` is a finished set, or holds files that were not packed from this set in this way.
        FolderInUse: another process packs there.
        ManifestError: a file differs from its checksum.
        ValueError: `per_shard` is none.
    """
    if per_shard < 1:
        raise ValueError(f"--per-shard is {per_shard}: an archive has an image at least.")
    with locked(packed, "choose another folder"):
        return _pack(Path(folder), Path(packed), split, per_shard)


def _pack(folder: Path, packed: Path, split: str, per_shard: int) -> int:
    if (packed / METADATA).is_file():
        raise FileExistsError(f"{packed} is a finished set. Choose another folder to pack to.")
    chosen = Records(folder, split)
    try:
        changed = claim(packed / SETTINGS, {"packed": version_of(folder), "split": split, "per_shard": per_shard})
    except FileExistsError:
        changed = [SETTINGS]
    if changed:
        raise FileExistsError(
            f"{packed} holds files that were not packed from this set in this way (different: {', '.join(changed)}). "
            "Choose another folder to pack to, or remove it."
        )
    remove_partials(packed, "")
    images = chosen.column("image")
    names = {
        image: f"shards/{split}-{number // per_shard:06d}.tar/{number:09d}.png" for number, image in enumerate(images)
    }

    def moved(record: Record) -> Record:
        references = tuple(names.get(name, name) for name in record.references)
        return replace(record, image=names.get(record.image, record.image), references=references)

    known = dict(read_sums(folder)) if (folder / SUMS).is_file() else {}
    known |= {record.image: record.sha256 for record in stream_manifest(folder)}

    def checked(name: str, found: str) -> str:
        if found != known.get(name, found):
            raise ManifestError(
                f"{folder / name} is not the recorded file: `face2scene data verify {folder}` says more."
            )
        return found

    count = -(-len(images) // per_shard)
    sums: dict[str, str] = {}
    for shard in range(count):
        name = f"shards/{split}-{shard:06d}.tar"
        if not (packed / name).is_file():
            with atomic_write(packed / name) as partial, tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
                for number in range(shard * per_shard, min((shard + 1) * per_shard, len(images))):
                    key, record = f"{number:09d}", moved(chosen[number])
                    image = read_bytes(folder, images[number])
                    checked(images[number], hashlib.sha256(image).hexdigest())
                    _add(tar, f"{key}.png", image)
                    _add(tar, f"{key}.json", json.dumps(asdict(record), sort_keys=True).encode())
        sums[name] = sha256_of(packed / name)
    for record in stream_manifest(folder):
        for name in {record.image, *record.references, record.lq} - {None} - names.keys():
            if name not in sums:
                with atomic_write(packed / name) as partial:
                    shutil.copyfile(folder / name, partial)
                sums[name] = checked(name, sha256_of(packed / name))
    write_sums(packed, sorted(sums.items()))
    write_manifest(packed, (moved(record) for record in stream_manifest(folder)))
    return count


def members_of(folder: Path, name: str) -> Iterator[str]:
    """Names of the images in an archive of a set, as in records; none of a corrupt archive."""
    return (f"{name}/{member}" for member in _contents(folder / name) if member.endswith(".png"))


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # without time and owner, so that archives are reproducible
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
