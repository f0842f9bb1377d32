"""The ledger of finished work: an item's name, a digest of everything that decides its result, and what was written.

`digest` makes the digests. Files count by their content and objects by their class and settings, so that a replaced
file or a changed option is seen and a moved folder is not. `Ledger` keeps one line of JSON an item in a file that a
crash at any moment leaves usable. `differences` names the settings in which two runs differ, for a refusal.
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

_START = re.compile(r'\{"name": ("(?:[^"\\]|\\.)*")?')
# Where `str.splitlines` breaks a line although JSON does not escape it, and what UTF-8 does not hold.
_ESCAPED = re.compile("[\x85\u2028\u2029\ud800-\udfff]")
_WHERE = {"device", "providers"}  # where something is computed is no setting of its result
_contents: dict[tuple, str] = {}


def content(path: str | Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files, hidden ones apart; 64 hex digits.

    A file is read again only where its size or its times have changed since this process read it.

    Raises:
        OSError: it is not there or cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        places = [(file.relative_to(path), file) for file in files]
        rows = [
            f"{place.as_posix()}\0{content(file)}\n"
            for place, file in places
            if not any(part.startswith(".") for part in place.parts)
        ]
        return hashlib.sha256(b"".join(map(os.fsencode, rows))).hexdigest()
    stat = path.stat()
    key = (str(path.absolute()), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if key not in _contents:
        _contents[key] = sha256_of(path)
    return _contents[key]


def facts_of(path: str | Path) -> dict[str, Any]:
    """What tells whether a file has changed: bytes, time of its last change, content."""
    stat = Path(path).stat()
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": content(path)}


def unchanged(path: str | Path, facts: Mapping[str, Any] | None) -> bool:
    """Whether a file is still what `facts_of` saw; the content is read only where the time differs."""
    if not facts or not Path(path).is_file():
        return False
    stat = Path(path).stat()
    if stat.st_size != facts["bytes"]:
        return False
    return stat.st_mtime_ns == facts["mtime_ns"] or content(path) == facts["sha256"]


def digest(value: Any) -> str:
    """Of `described(value)`; 16 hex digits."""
    return hashlib.sha256(json.dumps(described(value), sort_keys=True).encode()).hexdigest()[:16]


def described(value: Any) -> Any:
    """A value as JSON holds it, the same in every process.

    An object is its `fingerprint` where it has one, else its class and the attributes that its constructor's arguments
    are kept in; where one of these is kept nowhere, all its public attributes. A tensor or a network is its values.
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
    except (AttributeError, NotImplementedError, OSError):  # OSError: of weights that are not there
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
    """A value as it comes back from a JSON file."""
    return json.loads(json.dumps(value))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys under which two sets of settings, as JSON holds them, differ; one level down with a dot."""
    found = []
    for key in sorted({**before, **now}):
        was, wanted = before.get(key), now.get(key)
        if isinstance(was, Mapping) and isinstance(wanted, Mapping):
            found += [f"{key}.{name}" for name in differences(was, wanted)]
        elif was != wanted:
            found.append(key)
    return found


def claim(path: Path, settings: Mapping[str, Any]) -> list[str]:
    """Let the JSON file `path` say what its folder is made from, which nothing else may then be written to.

    Returns:
        The keys in which the folder was made from something else; nothing was written then.

    Raises:
        FileExistsError: the folder holds files, and `path` is not there to say what they are made from.
    """
    settings = plain(settings)
    there = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
    others = [name for name in there if name != path.name and not name.startswith(f".{path.stem}.")]
    if others and not path.is_file():
        raise FileExistsError(path.parent)
    changed = differences(read_json(path), settings) if path.is_file() else [path.name]
    if changed and not others:  # nothing was made yet
        write_json(path, settings)
    return changed if others else []


class Ledger:
    """A file of one line of JSON an item, the last line of a name being the one that counts.

    A process of several writes a file of its own beside it, `STEM.rank3.jsonl`, which the end, or the next start,
    takes in.

    Args:
        path: of the file.
        rank: of this process; only rank 0 takes in the files of the others.
    """

    def __init__(self, path: str | Path, rank: int = 0):
        self.whole = Path(path)
        self.path = self.whole if rank == 0 else self.whole.with_name(f"{self.whole.stem}.rank{rank}.jsonl")
        self._lock = threading.Lock()
        self.lines: dict[str, dict[str, Any]] = {}
        self.degraded = False  # a line was lost with its name, so an unknown result may be one of ours

    def read(self) -> "Ledger":
        """Take up what is written; of a line that was cut through the name alone is kept, with `unfinished`."""
        for path in [self.whole, *self._others()]:
            for row in path.read_bytes().split(b"\n") if path.is_file() else ():
                self._read_row(row)
        return self

    def gather(self, *, at_end: bool = False) -> "Ledger":
        """Make one whole file of all, by rank 0, while nobody writes; `at_end` without what was cut through."""
        self.read()
        kept = [line for line in self.lines.values() if not (at_end and line.get("unfinished"))]
        lost = [{"name": "", "unfinished": True}] if self.degraded and not at_end else []  # the next start has to know
        if kept or lost or self.whole.is_file():
            with atomic_write(self.whole) as partial, open(partial, "w", encoding="utf-8") as file:
                file.writelines(map(_text, [*kept, *lost]))
                file.flush()
                os.fsync(file.fileno())
        for path in self._others():
            path.unlink()
        return self

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line, on the disk when this returns; `name` is its first key."""
        with self._lock, open(self.path, "a", encoding="utf-8") as file:
            file.write(_text(line))
            file.flush()
            os.fsync(file.fileno())
        self.lines[line["name"]] = dict(line)

    def _read_row(self, row: bytes) -> None:
        # Lines may be glued together, the first of them cut; bytes may be NUL, or the half of a letter.
        text = row.decode("utf-8", "replace").strip("\0 \t\r")
        self.degraded |= b"\0" in row
        place = 0
        while place < len(text):
            try:
                line, end = json.JSONDecoder().raw_decode(text, place)
                self._take(line)
                place = len(text) - len(text[end:].lstrip())
            except ValueError:
                cut = _START.match(text, place)
                following = _START.search(text, place + 1)
                end = following.start() if following else len(text)
                if cut and cut[1] and cut.end() <= end and "\ufffd" not in cut[1]:
                    self._take({"name": json.loads(cut[1]), "unfinished": True})
                else:
                    self.degraded = True
                place = end

    def _take(self, line: Any) -> None:
        name = line.get("name") if isinstance(line, Mapping) else None
        if isinstance(name, str) and name:
            self.lines[name] = line
        else:
            self.degraded = True

    def _others(self) -> list[Path]:
        return sorted(self.whole.parent.glob(f"{self.whole.stem}.rank*.jsonl"))


def _text(line: Mapping[str, Any]) -> str:
    text = json.dumps(line, ensure_ascii=False)
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"
