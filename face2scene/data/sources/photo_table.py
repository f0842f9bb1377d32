"""The photos of a CSV table, one row per image, as a source of InScene images."""

import csv
import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from face2scene.common.files import sha256_of
from face2scene.data.building.build import BAD_INPUT, BuildError, BuildResult, RecordCandidate, Rejection
from face2scene.data.building.names import distinct, printable, safe
from face2scene.data.paths import FolderPaths, OutsideFolder
from face2scene.data.sources.photo_source import PhotoInfo, PhotoSource
from face2scene.faces.detect import Detector
from face2scene.image_io.arrays import list_files

COLUMNS = ("file", "identity", "split", "prompt", "licence", "width", "height")


class PhotoTable(PhotoSource):
    """The photos of a CSV table. One item is a block of rows.

    The first row names the columns: `file` (relative to `folder`), and any of `identity`, `split`, `prompt`, `licence`,
    `width`, `height`; others are ignored. An empty identity is unknown (`data.grouping`), an empty split is drawn by
    seed.

    Args:
        table: the CSV, UTF-8.
        folder: of the files; None is the table's folder.
        block: rows per item and side-car.
        complete: quarantine files of the folder that no row names, which needs the folder's listing.
        options: see `PhotoSource`.
    """

    def __init__(
        self,
        table: str | Path | None,
        detector: Detector,
        *,
        name: str,
        folder: str | Path | None = None,
        block: int = 100,
        complete: bool = False,
        **options: Any,
    ):
        super().__init__(detector, name=name, **options)
        self.table = Path(table or "")
        self.folder = Path(folder) if folder else self.table.parent
        self.block, self.complete, self._paths = block, complete, FolderPaths(self.folder)

    @cached_property
    def _columns(self) -> list[str]:
        if not self.table.is_file():
            problem = f"there is no {self.table}" if self.table.name else "it is not set"
            raise BuildError(f"A table of photos is needed, and {problem} (data.table=FILE.csv).")
        with open(self.table, "rb") as lines:
            first = lines.readline().decode("utf-8-sig", errors="replace")
        try:
            columns = [name.strip() for name in next(csv.reader([first.rstrip("\r\n")]), [])]
        except csv.Error as error:
            raise BuildError(f"The first line of {self.table} is no list of columns ({error}).") from error
        if "file" not in columns:
            raise BuildError(f"{self.table} has no column 'file', only {columns}; known are {', '.join(COLUMNS)}.")
        return columns

    @cached_property
    def _starts(self) -> list[int]:
        # Byte offsets of the blocks.
        starts, count = [], 0
        with open(self.table, "rb") as lines:
            lines.readline()
            place = lines.tell()
            for line in iter(lines.readline, b""):
                if line.strip():
                    if count % self.block == 0:
                        starts.append(place)
                    count += 1
                place += len(line)
        return starts

    def listing(self) -> Any:
        """The table's checksum."""
        return sha256_of(self.table) if self.table.is_file() else str(self._columns)

    def items(self) -> Sequence[int]:
        self.prepare()
        self._columns  # noqa: B018  raises for a wrong table before any work
        return range(len(self._starts) + self.complete)

    def key(self, item: int) -> str:
        return f"{self.name}_{item:06d}"

    def make(self, item: int) -> BuildResult:
        if item == len(self._starts):
            return BuildResult(rejected=list(self._unnamed()))
        return BuildResult.of(self._rows(item))

    def _lines(self, item: int) -> Iterator[tuple[int, bytes]]:
        with open(self.table, "rb") as lines:
            lines.seek(self._starts[item])
            rows = islice((line for line in lines if line.strip()), self.block)
            yield from enumerate(rows, item * self.block)

    def _rows(self, item: int) -> Iterator[RecordCandidate | Rejection]:
        for number, line in self._lines(item):
            row, problem = self._row(line)
            if problem:
                yield Rejection(f"{self.name}/row {number + 1}", f"bad row: {problem}", BAD_INPUT)
                continue
            file, known = row["file"], {name: row.get(name) or None for name in COLUMNS}
            if not os.path.isfile(self.folder / file):  # False for names that no file can have, too
                reason = "not what the metadata say: the table names a file that is not there"
                yield Rejection(f"{self.name}/{file}", reason, BAD_INPUT)
                continue
            size = (int(known["width"]), int(known["height"])) if known["width"] and known["height"] else None
            identity = f"{self.name}_{distinct(known['identity'])}" if known["identity"] else None
            info = PhotoInfo(file, identity, known["split"], known["prompt"], known["licence"], size)
            yield self.process(self.folder / file, f"{self.name}_{safe(file.rsplit('.', 1)[0])}_{number:06d}", info)

    def _row(self, line: bytes) -> tuple[dict[str, str], str]:
        try:
            values = next(csv.reader([line.decode("utf-8")], strict=True))
        except UnicodeDecodeError:
            return {}, "it is not UTF-8"
        except csv.Error as error:
            return {}, f"{error}"
        if len(values) != len(self._columns):
            return {}, f"{len(values)} fields, the table has {len(self._columns)} columns"
        row = dict(zip(self._columns, (value.strip() for value in values), strict=True))
        try:
            self._paths(row["file"])
        except OutsideFolder:
            return {}, f"the file {row['file']!r} is not inside the folder"
        if row.get("split") and row["split"] not in ("train", "val", "test"):
            return {}, f"unknown split {row['split']!r}"
        if any(row.get(side) and not re.fullmatch("[0-9]{1,9}", row[side]) for side in ("width", "height")):
            return {}, "width and height must be whole numbers"
        return row, ""

    def _unnamed(self) -> Iterator[Rejection]:
        named = {self._row(line)[0].get("file") for item in range(len(self._starts)) for _, line in self._lines(item)}
        for path in list_files(self.folder):
            file = path.relative_to(self.folder).as_posix()
            if path != self.table and file not in named:
                reason = "not what the metadata say: no row of the table names this file"
                yield Rejection(f"{self.name}/{printable(file)}", reason, BAD_INPUT)
