"""Downloads over HTTP that go on where an earlier one was cut, and take no more than was announced."""

import errno
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from face2scene.assets.catalogue import WeightsError

MAX_BYTES = 20 * 2**30  # of a file of unknown size (ours)
SLOWEST = 1000  # bytes per second during a minute; a slower server is given up
FULL = (errno.ENOSPC, errno.EDQUOT)
_TRIES = 5  # of a connection that breaks, as long as each brings more bytes


class UnfinishedDownload(WeightsError):
    """A download that was cut or not begun; what has come is kept for the next start."""


def download(
    url: str,
    target: Path,
    *,
    title: str,
    size: int | None = None,
    sha256: str | None = None,
    secrets: Mapping[str, str] | None = None,
) -> None:
    """Download a file, from the byte where an earlier call stopped if the server still has the same file.

    The server's validator (`ETag` or `Last-Modified`) is kept in TARGET.validator. Without one, a download goes on only
    if its `sha256` is known, which the caller compares.

    Args:
        title: of the source, for messages.
        size: expected bytes; another announcement is refused, and more bytes are cut off.
        secrets: headers that are not sent on to another address.

    Raises:
        UnfinishedDownload: cut, or the server cannot be reached.
        WeightsError: the server has another file, or answers oddly; what has come is of no use.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    most = _size(target)
    for _ in range(_TRIES):
        try:
            return _attempt(url, target, title, size, sha256 is not None, secrets or {})
        except UnfinishedDownload:
            arrived = _size(target)
            if arrived <= most:
                raise
            most = arrived
    raise UnfinishedDownload(f"{title}: cut {_TRIES} times; {most} bytes are kept, and the same command goes on there.")


def _attempt(url: str, target: Path, title: str, size: int | None, hashed: bool, secrets: Mapping[str, str]) -> None:
    note = target.with_name(f"{target.name}.validator")
    validator = note.read_text(encoding="latin-1") if note.is_file() else ""
    start = _size(target) if validator or hashed else 0
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "face2scene"})
        for name, value in secrets.items():
            request.add_unredirected_header(name, value)
        if start:
            request.add_header("Range", f"bytes={start}-")
            if validator:
                request.add_header("If-Range", validator)
        with urllib.request.urlopen(request, timeout=60) as reply:
            start, total = _announced(reply, start, title, size)
            tag = reply.headers.get("ETag") or ""
            note.write_text(
                tag if tag[:1] == '"' else reply.headers.get("Last-Modified") or "", encoding="latin-1", newline="\n"
            )
            total = size if total is None else total
            arrived = _copy(reply, target, start, total, title)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is left to send, or the server's file is shorter
            if error.headers.get("Content-Range", "").strip() == f"bytes */{start}":
                return
            target.unlink()
            return _attempt(url, target, title, size, hashed, secrets)
        raise UnfinishedDownload(f"{title}: the server answered {error.code} ({error.reason}).") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        reason = getattr(error, "reason", None) or f"{type(error).__name__}: {error}"
        kept = f"; {_size(target)} bytes are kept, and the same command goes on there" if _size(target) else ""
        raise UnfinishedDownload(f"{title}: cannot be reached or was cut ({reason}){kept}.") from error
    if total is not None and arrived < total:
        raise UnfinishedDownload(
            f"{title}: cut short, {arrived} of {total} bytes came; they are kept, and the same command goes on there."
        )


def _announced(reply: http.client.HTTPResponse, start: int, title: str, size: int | None) -> tuple[int, int | None]:
    """The byte at which the reply starts, and the bytes of the whole file where the server says it."""
    length, span = reply.headers.get("Content-Length") or "", reply.headers.get("Content-Range") or ""
    total = int(length) if length.isdecimal() else None
    if reply.status == 206:
        first, _, whole = span.removeprefix("bytes ").partition("/")
        if not start or first.partition("-")[0].strip() != str(start):
            raise WeightsError(f"{title}: the server sent the range {span!r} where bytes from {start} on were wanted.")
        total = int(whole) if whole.isdecimal() else None
    elif reply.status == 200:
        start = 0
    else:
        raise WeightsError(f"{title}: the server answered {reply.status} without a file.")
    if reply.headers.get_content_type() == "text/html":
        raise WeightsError(f"{title}: the server sent a web page in place of the file.")
    if None not in (size, total) and size != total:
        raise WeightsError(f"{title}: the server announces {total} bytes where the catalogue says {size}.")
    return start, total


def _copy(reply: http.client.HTTPResponse, target: Path, start: int, most: int | None, title: str) -> int:
    """Write the body behind the first `start` bytes; the bytes of the file then."""
    most = MAX_BYTES if most is None else most
    since, before = time.monotonic(), start
    with open(target, "ab" if start else "wb") as file:
        while block := reply.read1(1 << 20):
            start += len(block)
            if start > most:
                raise WeightsError(f"{title}: more than the {most} bytes expected came; stopped.")
            file.write(block)
            if (passed := time.monotonic() - since) > 60:
                if start - before < SLOWEST * passed:
                    raise TimeoutError(f"less than {SLOWEST} bytes per second came")
                since, before = time.monotonic(), start
    return start


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
