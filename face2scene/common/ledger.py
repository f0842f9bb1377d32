"""The ledger of finished work: an item's name, a digest of everything that decides its result, and its output.

A digest takes files by their content and objects by their class and settings, so that a replaced file or a changed
option changes it and a moved folder does not. `Ledger` keeps one line of JSON per item in a file that a crash at any
moment leaves readable.
"""

import hashlib
import inspect
import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from face2scene.common.files import atomic_write, read_json, sha256_of, write_json
from face2scene.common.locks import LOCK

_START = re.compile(r'\{"name": ("(?:[^"\\]|\\.)*")?')
# Line breaks of `str.splitlines` that JSON does not escape, and surrogates, which UTF-8 cannot encode.
_ESCAPED = re.compile("[\x85\u2028\u2029\ud800-\udfff]")
_WHERE = {"device", "providers"}  # where something is computed does not decide its result
_contents: dict[tuple, str] = {}


def content(path: str | Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files without hidden ones; 64 hex digits.

    A file is read again only if its size or times have changed since this process read it.

    Raises:
        OSError: it does not exist or cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted((f.relative_to(path) for f in path.rglob("*") if f.is_file()), key=lambda file: file.parts)
        files = [file for file in files if not any(part.startswith(".") for part in file.parts)]
        rows = [f"{file.as_posix()}\0{content(path / file)}\n" for file in files]
        return hashlib.sha256(b"".join(map(os.fsencode, rows))).hexdigest()
    stat = path.stat()
    key = (str(path.absolute()), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if key not in _contents:
        _contents[key] = sha256_of(path)
    return _contents[key]


def facts_of(path: str | Path, *, with_change: bool = False) -> dict[str, Any]:
    """Size, times and hash of a file, for `unchanged`; `with_change` adds the time that a new name changes, too."""
    stat = Path(path).stat()
    changed = {"ctime_ns": stat.st_ctime_ns} if with_change else {}
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, **changed, "sha256": content(path)}


def unchanged(path: str | Path, facts: Mapping[str, Any] | None) -> bool:
    """Whether a file still has these `facts_of`; its content is read only if a time differs.

    Damaged facts are those of no file.
    """
    if not isinstance(facts, Mapping) or not {"bytes", "mtime_ns", "sha256"} <= set(facts) or not Path(path).is_file():
        return False
    stat = Path(path).stat()
    if stat.st_size != facts["bytes"]:
        return False
    same_times = (stat.st_mtime_ns, facts.get("ctime_ns", stat.st_ctime_ns)) == (facts["mtime_ns"], stat.st_ctime_ns)
    return same_times or content(path) == facts["sha256"]


def digest(value: Any) -> str:
    """SHA-256 of `described(value)`; the first 16 hex digits."""
    return hashlib.sha256(json.dumps(described(value), sort_keys=True).encode()).hexdigest()[:16]


def described(value: Any) -> Any:
    """A value as plain JSON types, the same in every process.

    An object gives its class and its `fingerprint` if it has one, else the attributes named like its constructor's
    arguments, or all public ones if one of these is missing. Arrays, tensors and networks give hashes of their values.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): described(one) for key, one in value.items()}
    if isinstance(value, Sequence):
        return [described(one) for one in value]
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, torch.Tensor):
        values = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return [str(value.dtype), list(value.shape), hashlib.sha256(values.tobytes()).hexdigest()]
    if isinstance(value, Path | torch.dtype):
        return str(value)
    if isinstance(value, type) or inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}"
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, torch.nn.Module):
        return [kind, described(value.state_dict())]
    try:
        return [kind, described(value.fingerprint)]
    except (AttributeError, NotImplementedError, OSError):  # OSError: its weights do not exist
        return [kind, {name: described(one) for name, one in _settings(value).items()}]


def _settings(value: Any) -> dict[str, Any]:
    kept = getattr(value, "__dict__", {})
    parameters = inspect.signature(type(value).__init__).parameters.values()
    asked = [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)][1:]
    known = {name: kept.get(name, kept.get(f"_{name}")) for name in asked if name in kept or f"_{name}" in kept}
    if len(known) < len(asked):
        own = {name: one for name, one in kept.items() if not name.startswith("_")}
        late = {name for name in own if isinstance(getattr(type(value), name, None), cached_property)}
        known |= {name: one for name, one in own.items() if name not in late}
    return {name: one for name, one in known.items() if name not in _WHERE}


def plain(value: Any) -> Any:
    """A value as it is read back from a JSON file."""
    return json.loads(json.dumps(value))


def differences(before: Mapping[Any, Any], now: Mapping[Any, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys in which two sets of settings differ, both as plain JSON types, with both values."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted({**before, **now}, key=str):
        was, wanted = before.get(key), now.get(key)
        if isinstance(was, Mapping) and isinstance(wanted, Mapping):
            found |= {f"{key}.{name}": both for name, both in differences(was, wanted).items()}
        elif was != wanted:
            found[str(key)] = was, wanted
    return found


def claim(path: Path, settings: Mapping[str, Any]) -> list[str]:
    """Record the settings of a folder's results in its JSON file `path`, so that no others are mixed in.

    Returns:
        Keys in which the recorded settings differ; nothing was written then.

    Raises:
        FileExistsError: the folder holds files and no `path`.
    """
    settings = plain(settings)
    there = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
    others = [name for name in there if name not in (path.name, LOCK) and not name.startswith(f".{path.stem}.")]
    if others and not path.is_file():
        raise FileExistsError(path.parent)
    changed = list(differences(read_json(path), settings)) if path.is_file() else [path.name]
    if changed and not others:  # nothing was made yet
        write_json(path, settings)
    return changed if others else []


class Ledger:
    """A file of one line of JSON per item; the last line of a name counts.

    Each process but that of `rank` 0 writes its own file, `STEM.rank3.jsonl`, which rank 0 merges at the end or at the
    next start by `gather`.
    """

    def __init__(self, path: str | Path, rank: int = 0):
        self.whole = Path(path)
        self.path = self.whole if rank == 0 else self.whole.with_name(f"{self.whole.stem}.rank{rank}.jsonl")
        self._lock = threading.Lock()
        self.lines: dict[str, dict[str, Any]] = {}
        self.corrupt = False  # a line was lost with its name, so an unlisted output may be ours

    def read(self) -> "Ledger":
        """Read all files; of a truncated line only the name is kept, with `unfinished`.

        Raises:
            FileExistsError: a folder has the file's name.
        """
        if self.whole.is_dir():
            raise FileExistsError(f"{self.whole} is a folder, and a file is kept there: rename it, or write elsewhere.")
        for path in [self.whole, *self._others()]:
            for row in path.read_bytes().split(b"\n") if path.is_file() else ():
                self._read_row(row)
        return self

    def gather(self, *, at_end: bool = False) -> "Ledger":
        """Merge all files into one, by rank 0 while no process writes; `at_end` drops truncated lines."""
        self.read()
        kept = [line for line in self.lines.values() if not (at_end and line.get("unfinished"))]
        lost = [{"name": "", "unfinished": True}] if self.corrupt and not at_end else []
        if kept or lost or self.whole.is_file():
            with atomic_write(self.whole) as partial, open(partial, "w", encoding="utf-8", newline="\n") as file:
                file.writelines(map(_text, [*kept, *lost]))
                file.flush()
                os.fsync(file.fileno())
        for path in self._others():
            path.unlink()
        return self

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line, which is on the disk when this returns; its first key is `name`."""
        with self._lock, open(self.path, "a", encoding="utf-8", newline="\n") as file:
            file.write(_text(line))
            file.flush()
            os.fsync(file.fileno())
        self.lines[line["name"]] = dict(line)

    def _read_row(self, row: bytes) -> None:
        # After a crash, lines may be truncated and joined, and bytes may be NUL or half a character.
        text = row.decode("utf-8", "replace").strip("\0 \t\r")
        self.corrupt |= b"\0" in row
        place = 0
        while place < len(text):
            try:
                line, end = json.JSONDecoder().raw_decode(text, place)
                self._take(line)
                place = len(text) - len(text[end:].lstrip())
            except (ValueError, RecursionError):
                cut = _START.match(text, place)
                following = _START.search(text, place + 1)
                end = following.start() if following else len(text)
                place = end
                name = cut[1] if cut and cut[1] and cut.end() <= end and "\ufffd" not in cut[1] else "null"
                try:
                    self._take({"name": json.loads(name), "unfinished": True})
                except ValueError:  # an escape that JSON does not have
                    self.corrupt = True

    def _take(self, line: Any) -> None:
        name = line.get("name") if isinstance(line, Mapping) else None
        if isinstance(name, str) and name:
            self.lines[name] = line
        else:
            self.corrupt = True

    def _others(self) -> list[Path]:
        return sorted(self.whole.parent.glob(f"{self.whole.stem}.rank*.jsonl"))


def _text(line: Mapping[str, Any]) -> str:
    text = json.dumps(line, ensure_ascii=False)
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"
