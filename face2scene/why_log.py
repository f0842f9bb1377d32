"""The why-log `restore.jsonl`: one line a picture, and the list of finished work.

Beside what became of a picture and why, a line holds what decides whether it has to be done again: the input's size,
time and digest, a digest of the settings, and the output's size. A process of several writes a file of its own,
`restore.rank3.jsonl`, which the end, or the next start, takes in.
"""

import json
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from face2scene.files import atomic_write, sha256_of

WHY_LOG = "restore.jsonl"
_NAME = re.compile(r'\{"name": ("(?:[^"\\]|\\.)*")')


class WhyLog:
    """The log of an output folder.

    Args:
        folder: of the output.
        rank: of this process; only rank 0 takes in the files of the others.
    """

    def __init__(self, folder: str | Path, rank: int = 0):
        self.folder, self.rank = Path(folder), rank
        self.path = self.folder / (WHY_LOG if rank == 0 else f"restore.rank{rank}.jsonl")
        self._lock = threading.Lock()
        self.lines: dict[str, dict[str, Any]] = {}

    def read(self) -> "WhyLog":
        """Take up what is written, the last line of every picture; one that was cut through keeps the name alone."""
        for path in [self.folder / WHY_LOG, *self._others()]:
            for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
                try:
                    line = json.loads(text)
                    self.lines[line["name"]] = line
                except (json.JSONDecodeError, KeyError, TypeError):
                    if cut := _NAME.match(text):
                        name = json.loads(cut[1])
                        self.lines[name] = {"name": name, "unfinished": True}
        return self

    def gather(self, *, at_end: bool = False) -> "WhyLog":
        """Make one whole file of all, by rank 0, while nobody writes; `at_end` without what was cut through."""
        self.read()
        if self.lines:
            kept = [line for line in self.lines.values() if not (at_end and line.get("unfinished"))]
            with atomic_write(self.folder / WHY_LOG) as partial:
                partial.write_text("".join(map(_text, kept)), encoding="utf-8")
        for path in self._others():
            path.unlink()
        return self

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line, on the disk when this returns."""
        with self._lock, open(self.path, "a", encoding="utf-8") as file:
            file.write(_text(line))
            file.flush()
            os.fsync(file.fileno())
        self.lines[line["name"]] = dict(line)

    def _others(self) -> list[Path]:
        return sorted(self.folder.glob("restore.rank*.jsonl"))


def facts_of(path: Path) -> dict[str, Any]:
    """What tells whether a file has changed."""
    stat = path.stat()
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256_of(path)}


def unchanged(path: Path, facts: Mapping[str, Any] | None) -> bool:
    """Whether a file is still what `facts_of` saw; the content is read only where the time differs."""
    if not facts:
        return True  # a line of before facts were kept
    stat = path.stat()
    if stat.st_size != facts["bytes"]:
        return False
    return stat.st_mtime_ns == facts["mtime_ns"] or sha256_of(path) == facts["sha256"]


def _text(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"
