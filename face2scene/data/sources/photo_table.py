"""Photos that a table names, as a build source: a CSV with a row per image."""

import csv
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from face2scene.common.files import sha256_of
from face2scene.data.building.build import BAD_INPUT, BuildError, BuildResult, RecordCandidate, Rejection
from face2scene.data.building.names import printable, safe
from face2scene.data.building.photo_filtering import Label
from face2scene.data.sources.photo_folder import PhotoSource
from face2scene.faces.detect import Detector

COLUMNS = ("file", "identity", "split", "prompt", "licence", "width", "height")


class PhotoTable(PhotoSource):
    """The photos that a CSV names. One item is a block of rows, so that a million rows are no million side-cars.

    The first row names the columns: `file` (relative to `folder`), and what is known of `identity`, `split`, `prompt`,
    `licence`, `width`, `height`; others are ignored. An empty identity is unknown (`data.grouping`), an empty split
    is drawn by seed.

    Args:
        table: the CSV, UTF-8.
        folder: where the files lie; None is the table's folder.
        block: rows per item.
        complete: quarantine files of the folder that no row names. It needs the folder's listing.
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
        self.block, self.complete = block, complete

    @cached_property
    def _columns(self) -> list[str]:
        if not self.table.is_file():
            said = f"there is no {self.table}" if self.table.name else "it is not set"
            raise BuildError(f"A table of photos is needed, and {said} (data.table=FILE.csv).")
        with open(self.table, "rb") as lines:
            first = lines.readline().decode("utf-8-sig", errors="replace")
        columns = [name.strip() for name in next(csv.reader([first]), [])]
        if "file" not in columns:
            raise BuildError(f"{self.table} has no column 'file', only {columns}; known are {', '.join(COLUMNS)}.")
        return columns

    @cached_property
    def _starts(self) -> list[int]:
        # Byte offsets of the blocks: what lies in memory is one number per hundred rows.
        starts, count = [], 0
        with open(self.table, "rb") as lines:
            lines.readline()
            while True:
                place = lines.tell()
                if not lines.readline().strip():
                    if lines.read(1) == b"":
                        break
                    lines.seek(-1, 1)
                    continue
                if count % self.block == 0:
                    starts.append(place)
                count += 1
        return starts

    def listing(self) -> Any:
        """The table's content."""
        return sha256_of(self.table) if self.table.is_file() else str(self._columns)

    def items(self) -> Sequence[int]:
        self.photographs.prepare()
        self._columns  # noqa: B018  a wrong table is said before any work
        return range(len(self._starts) + self.complete)

    def key(self, item: int) -> str:
        return f"{self.name}_{item:06d}"

    def make(self, item: int) -> BuildResult:
        if item == len(self._starts):
            return BuildResult(rejected=list(self._unnamed()))
        return self.made(self._rows(item))

    def _lines(self, item: int) -> Iterator[tuple[int, bytes]]:
        with open(self.table, "rb") as lines:
            lines.seek(self._starts[item])
            found = 0
            for line in lines:
                if not line.strip():
                    continue
                if found == self.block:
                    return
                yield item * self.block + found, line
                found += 1

    def _rows(self, item: int) -> Iterator[RecordCandidate | Rejection]:
        for number, line in self._lines(item):
            row, said = self._row(line)
            if said:
                yield Rejection(f"{self.name}/row {number + 1}", f"bad row: {said}", BAD_INPUT)
                continue
            file = row["file"]
            if not (self.folder / file).is_file():
                said = "not what the metadata say: the table names a file that is not there"
                yield Rejection(f"{self.name}/{file}", said, BAD_INPUT)
                continue
            size = None
            if row.get("width") and row.get("height"):
                size = int(row["width"]), int(row["height"])
            identity = f"{self.name}_{safe(row['identity'])}" if row.get("identity") else None
            label = Label(
                *(file, identity, row.get("split") or None, row.get("prompt") or None, row.get("licence") or None),
                size=size,
            )
            stem = safe(file.rsplit(".", 1)[0])
            yield self.photographs.draft(self.folder / file, f"{self.name}_{stem}_{number:06d}", label)

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
        if not row["file"] or Path(row["file"]).is_absolute() or ".." in Path(row["file"]).parts:
            return {}, f"the file {row['file']!r} is not inside the folder"
        if row.get("split") and row["split"] not in ("train", "val", "test"):
            return {}, f"unknown split {row['split']!r}"
        if any(row.get(side) and not row[side].isdigit() for side in ("width", "height")):
            return {}, "width and height must be whole numbers"
        return row, ""

    def _unnamed(self) -> Iterator[Rejection]:
        named = {self._row(line)[0].get("file") for item in range(len(self._starts)) for _, line in self._lines(item)}
        for path in sorted(self.folder.rglob("*")):
            file = path.relative_to(self.folder).as_posix()
            if path.is_file() and path != self.table and file not in named and not path.name.startswith("."):
                said = "not what the metadata say: no row of the table names this file"
                yield Rejection(f"{self.name}/{printable(file)}", said, BAD_INPUT)
