"""One process at a time works in a folder; a second one is told which."""

import atexit
import errno
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
LOCK = ".lock"
_UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EEXIST)
_held: dict[Path, int] = {}  # files that this process holds, with their descriptors


class FolderInUse(OSError):
    """Another process works in the folder; the message says which, since when, and what to do."""


@contextmanager
def locked(folder: str | Path, instead: str, *, name: str = LOCK, hold: bool = True) -> Iterator[None]:
    """Hold `folder` for this process, which may enter it again; its file `name` says who holds it.

    The kernel releases it when the process ends in any way. A file that is left then is recognised and reported. A
    folder that is read-only or cannot be made is not held: the first write to it raises the reason.

    Args:
        instead: what else the user can do, such as `choose another name=...`.
        hold: False does nothing, for all processes of a job but one.

    Raises:
        FolderInUse: another process holds it. Nothing was changed.
        FileExistsError: a folder has the name of that file.
    """
    path = (Path(folder) / name).absolute()
    if not hold or path in _held:
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _held[path] = _acquire(path, instead)
    except OSError as error:
        if path.is_dir():
            raise FileExistsError(f"{path} is a folder, and a file is kept there: rename it, or {instead}.") from error
        if error.errno not in _UNWRITABLE:
            raise
    try:
        yield
    finally:
        if path in _held:
            try:
                path.unlink()  # while it is held, and `_acquire` of another process notices
            except PermissionError:  # Windows removes no open file: an empty one says that nobody was interrupted
                os.ftruncate(_held[path], 0)
            except OSError:
                pass  # the folder was removed
            os.close(_held.pop(path))


def lock_until_exit(folder: str | Path, instead: str) -> None:
    """`locked` for the rest of this process."""
    stack = ExitStack()
    stack.enter_context(locked(folder, instead))
    atexit.register(stack.close)


def _acquire(path: Path, instead: str) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor)
        except BlockingIOError as error:
            holder = _described(descriptor)
            os.close(descriptor)
            raise FolderInUse(
                f"{path.parent} is in use by {holder or 'another process'}. Wait until it has ended, or {instead}."
            ) from error
        except OSError as error:  # some network file systems have no locks
            log.warning("%s cannot be locked (%s): start nothing else in it.", path.parent, error.strerror)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                break
        os.close(descriptor)  # the holder removed the file meanwhile
    if holder := _described(descriptor):
        log.warning("%s was left by %s, which has ended; going on.", path.parent, holder)
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode())
    return descriptor


def _lock(descriptor: int) -> None:
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    import msvcrt

    os.lseek(descriptor, 2**20, os.SEEK_SET)  # a locked byte of the content could not be read by others
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except PermissionError as error:
        raise BlockingIOError(*error.args) from error


def _described(descriptor: int) -> str:
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        holder = json.loads(os.read(descriptor, 1000))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, TypeError, KeyError):  # empty, or cut by a crash
        return ""


def _release_in_child() -> None:
    # A forked worker that outlives this process must not keep the folders.
    while _held:
        os.close(_held.popitem()[1])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)
