"""Atomic writes, full disks, JSON files, hashes and Debian packages."""

import errno
import hashlib
import io
import json
import logging
import os
import re
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any


@contextmanager
def atomic_write(path: str | Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a path beside `path`, with its suffix, to write to; move it to `path` on success, remove it on an error.

    With `durable` the content is on the disk before the file gets its name, so that a power cut cannot leave it empty.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = f".{os.getpid()}.partial{path.suffix}"
    partial = path.with_name(fitting_name(f".{path.stem}", suffix))
    try:
        yield partial
        if durable:
            sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_partials(folder: str | Path, *inside: str, seconds: float = 0) -> None:
    """Delete what killed processes left of `atomic_write` in a folder, and below its folders `inside`.

    Where other processes may work, files younger than `seconds` are kept.
    """
    pattern = ".*.[0-9]*.partial*"
    for path in chain(Path(folder).glob(pattern), *(Path(folder, name).rglob(pattern) for name in inside)):
        with suppress(FileNotFoundError):  # finished meanwhile
            if path.is_file() and (not seconds or path.stat().st_mtime < time.time() - seconds):
                path.unlink()


def sync(path: str | Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    if os.name == "nt" and Path(path).is_dir():
        return  # Windows opens no folder
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_SAID = re.compile("|".join(map(os.strerror, _NO_ROOM)) + "|database or disk is full|readonly database", re.IGNORECASE)


def disk_error(error: BaseException | None) -> str:
    """A sentence if an error, or what caused it, is of a disk that is full or can only be read; else empty.

    Libraries of other languages (safetensors, SQLite) give the system's words in errors of their own.
    """
    while error is not None:
        said = _SAID.search(str(error))
        if said or getattr(error, "errno", None) in _NO_ROOM:
            path = getattr(error, "filename2", None) or getattr(error, "filename", None)
            return (
                f"Nothing more can be written{f' to {path}' if path else ''}: {said[0] if said else error}. What is "
                "finished stays; make room, or choose another folder, and start the same command again."
            )
        error = error.__cause__ or error.__context__
    return ""


def size_text(count: float) -> str:
    """A number of bytes in the largest unit of which it is at least one."""
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    return next((f"{count / unit:.1f} {name}" for unit, name in units if count >= unit), f"{count:.0f} bytes")


class OutputError(OSError):
    """Nothing can be written to a folder; the message has the reason and the remedy."""


def ready_to_write(folder: Path, option: str) -> None:
    """Make a folder if it is not there, and try to write to it, before work whose result it is to take.

    Args:
        option: what decides the folder, for the message.

    Raises:
        OutputError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"Nothing can be written to {folder} ({error.strerror}): choose another {option}.") from error


def fitting_name(stem: str, suffix: str, most: int = 255) -> str:
    """`stem` + `suffix`; if longer than `most` bytes, a digest replaces the end of the stem."""
    if len(os.fsencode(stem + suffix)) <= most:
        return stem + suffix
    digest = "-" + hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]
    room = most - len(os.fsencode(digest + suffix))
    while len(os.fsencode(stem)) > room:
        stem = stem[:-1]
    return stem + digest + suffix


def sha256_of(path: str | Path, start: int = 0) -> str:
    """Hex digest of a file's bytes from `start` on, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(start)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN is refused, since readers disagree about it.

    Bytes of file names that are no text become escapes of JSON, which are read back as they were.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n", errors="backslashreplace")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: it is truncated or malformed; the message names the file.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a whole JSON file ({error}). Write it again or remove it.") from error


def read_seconds(path: Path) -> dict[str, float]:
    """The seconds of a run by part; a damaged file counts as none, with a warning, since no result depends on it."""
    try:
        seconds = read_json(path)
        if isinstance(seconds, dict) and all(isinstance(one, int | float) for one in seconds.values()):
            return seconds
    except FileNotFoundError:
        return {}
    except ValueError:
        pass
    logging.getLogger(__name__).warning("%s is damaged: its seconds are counted from here on.", path)
    return {}


def debian_data(package: Path) -> io.BytesIO:
    """The tar of a Debian package's files, a member of an ar archive.

    Raises:
        tarfile.ReadError: there is none.
    """
    with open(package, "rb") as file:
        whole = file.read(8) == b"!<arch>\n"
        while whole and len(header := file.read(60)) == 60 and header[48:58].strip().isdigit():
            size = int(header[48:58])
            if header.startswith(b"data.tar"):
                return io.BytesIO(file.read(size))
            file.seek(size + size % 2, io.SEEK_CUR)
    raise tarfile.ReadError("no data.tar in it")
