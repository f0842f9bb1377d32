"""The records of an InScene dataset, one per image: written and read.

A dataset is a folder with `metadata.parquet` (and `metadata.jsonl` on request), the images that it names, and reports
of the build. Every path in a record is relative to the folder and leads inside it. `verify.py` checks a dataset.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from face2scene.common.files import atomic_write, sha256_of
from face2scene.common.ledger import content, digest
from face2scene.common.types import Box
from face2scene.data.paths import FolderPaths, OutsideFolder

METADATA = "metadata.parquet"
SUMS = "SHA256SUMS"
SETTINGS = "build.json"  # settings that the set was made with
SPLITS = ("train", "val", "test")
_ROWS = 1000  # records in memory at once while writing and checking


class ManifestError(ValueError):
    """Metadata that cannot be used; the message names the file and what to do."""


@dataclass(frozen=True)
class Record:
    """One image of an InScene dataset."""

    image: str
    split: str
    identity: str
    prompt: str
    shot: str  # mid-up, full-body or close-up
    face_box: Box
    landmarks_68: tuple[tuple[float, float], ...] | None  # None where no landmark network ran
    references: tuple[str, ...]  # other images of the same person
    similarity: float | None  # identity cosine to the first reference
    width: int
    height: int
    sha256: str  # of the file at `image`
    source: str
    licence: str
    generator: dict[str, Any]  # how the image was generated or cropped, with every setting and seed
    lq: str | None = None  # the fixed degraded image of a validation pair
    recipe: dict[str, Any] | None = None  # degradation recipe of `lq`


_TYPES = {  # of the columns; others are strings, `generator` and `recipe` in JSON
    "face_box": pa.list_(pa.float64()),
    "landmarks_68": pa.list_(pa.list_(pa.float64())),
    "references": pa.list_(pa.string()),
    "similarity": pa.float64(),
    "width": pa.int32(),
    "height": pa.int32(),
}
_OPTIONAL = {"landmarks_68", "similarity", "lq", "recipe"}
_SCHEMA = pa.schema([(field.name, _TYPES.get(field.name, pa.string())) for field in dataclasses.fields(Record)])


def write_manifest(folder: str | Path, records: Iterable[Record], *, jsonl: bool = False) -> int:
    """Write `metadata.parquet` and, with `jsonl`, `metadata.jsonl`, whole or not at all. Returns the count."""
    folder = Path(folder)
    count = 0
    if not jsonl:
        (folder / "metadata.jsonl").unlink(missing_ok=True)  # of an earlier table
    with ExitStack() as stack:
        # Entered first, so renamed last: the table marks the set as finished.
        table = stack.enter_context(atomic_write(folder / METADATA))
        lines = stack.enter_context(atomic_write(folder / "metadata.jsonl")) if jsonl else None
        with (
            pq.ParquetWriter(table, _SCHEMA, write_page_checksum=True) as writer,
            open(lines or os.devnull, "w", encoding="utf-8", newline="\n") as text,
        ):
            all_rows = map(_to_row, records)
            while rows := list(islice(all_rows, _ROWS)):
                writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))
                count += len(rows)
                for row in rows if jsonl else ():
                    parsed = {key: json.loads(row[key] or "null") for key in ("generator", "recipe")}
                    text.write(json.dumps({**row, **parsed}, ensure_ascii=False) + "\n")
        if (folder / SUMS).is_file():
            new = {METADATA: sha256_of(table)} | ({"metadata.jsonl": sha256_of(lines)} if lines else {})
            others = ((name, digest) for name, digest in read_sums(folder) if name not in (METADATA, "metadata.jsonl"))
            write_sums(folder, (*others, *new.items()))
    return count


class Records(Sequence[Record]):
    """The records of a dataset, or of one split, kept as columns and converted to `Record` on access.

    A hundred thousand records with landmarks take 150 MB as columns and 1.5 GB as objects.

    Args:
        folder: an InScene dataset.
        split: `train`, `val` or `test`; None takes all.

    Raises:
        FileNotFoundError: when there is no dataset; the message has the command that builds one.
        ManifestError: for metadata that cannot be read, lack fields, name files outside the folder, or have no image
            in `split`.
    """

    def __init__(self, folder: str | Path, split: str | None = None):
        folder = Path(folder)
        with _opened(folder) as file, _readable(folder):
            table = _checked(FolderPaths(folder), file.read(columns=_SCHEMA.names))
        if split is not None:
            chosen = table.filter(pc.equal(table["split"], split))
            if not chosen.num_rows:
                known = sorted(set(table["split"].to_pylist()))
                raise ManifestError(f"{folder} has no image in the split {split!r}; it has {known} (option split).")
            table = chosen
        self.table, self._folder = table.combine_chunks(), folder

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, number: int) -> Record:
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return next(_to_records(self._folder, self.table.slice(number % len(self), 1)))

    def __iter__(self) -> Iterator[Record]:
        for batch in self.table.to_batches(max_chunksize=_ROWS):
            yield from _to_records(self._folder, batch)

    def column(self, name: str) -> list[Any]:
        """One field of all records."""
        return self.table[name].to_pylist()


def read_manifest(folder: str | Path, split: str | None = None) -> list[Record]:
    """All records, or those of one split, in the order they were written; raises what `Records` does."""
    return list(Records(folder, split))


def stream_manifest(folder: str | Path) -> Iterator[Record]:
    """All records one after the other, a thousand in memory at once; raises what `Records` does."""
    folder = Path(folder)
    paths = FolderPaths(folder)
    with _opened(folder) as file, _readable(folder):
        for batch in file.iter_batches(_ROWS, columns=_SCHEMA.names):
            yield from _to_records(folder, _checked(paths, batch))


def read_sums(folder: str | Path) -> Iterator[tuple[str, str]]:
    """(name, sha256) of every line of `SHA256SUMS`."""
    with open(Path(folder) / SUMS, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            digest, _, name = line.rstrip("\n").partition("  ")
            yield name, digest


def write_sums(folder: str | Path, sums: Iterable[tuple[str, str]]) -> None:
    """Write `SHA256SUMS` from (name, sha256) of every file; `write_manifest` adds those of the metadata."""
    with atomic_write(Path(folder) / SUMS) as partial, open(partial, "w", encoding="utf-8", newline="\n") as lines:
        lines.writelines(f"{digest}  {name}\n" for name, digest in sums)


def _opened(folder: Path) -> pq.ParquetFile:
    if not (folder / METADATA).is_file():
        what = "holds no finished dataset" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"{folder} {what}. Build it with `face2scene build-inscene data={folder.name}`, or point data.root at one."
        )
    with _readable(folder):
        file = pq.ParquetFile(folder / METADATA, page_checksum_verification=True)
    missing = sorted(set(_SCHEMA.names) - set(file.schema_arrow.names))
    if missing:
        file.close()
        raise ManifestError(f"{folder / METADATA} lacks the fields {missing}: build it again with data.overwrite=true.")
    return file


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except (ManifestError, FileNotFoundError):
        raise
    except (pa.ArrowException, ArithmeticError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
        path = folder / METADATA
        raise ManifestError(
            f"{path} cannot be read ({error}). Build the set again with data.overwrite=true."
        ) from error


def _checked(paths: FolderPaths, table: pa.Table | pa.RecordBatch) -> pa.Table:
    """The table in the types of `Record`; every name in it leads into the folder, and what must be there is."""
    table = (table if isinstance(table, pa.Table) else pa.Table.from_batches([table])).cast(_SCHEMA)
    empty = [name for name in _SCHEMA.names if name not in _OPTIONAL and table[name].null_count]
    empty += ["references"] * bool(pc.list_flatten(table["references"]).null_count)
    if empty:
        raise ManifestError(
            f"{paths.folder / METADATA} has rows without {empty}: build it again with data.overwrite=true."
        )
    lists = [table["image"], table["lq"], pc.list_flatten(table["references"])]
    for name in sorted({name for names in lists for name in pc.unique(names).to_pylist()} - {None}):
        try:
            paths(name)
        except OutsideFolder as error:
            raise ManifestError(f"{paths.folder / METADATA} is refused. {error}") from error
    return table


def _to_records(folder: Path, table: pa.Table | pa.RecordBatch) -> Iterator[Record]:
    for row in table.to_pylist():
        with _readable(folder):
            record = _to_record(row)
        yield record


def _to_row(record: Record) -> dict[str, Any]:
    row = dict(vars(record))
    row["generator"] = json.dumps(record.generator, sort_keys=True)
    row["recipe"] = json.dumps(record.recipe) if record.recipe is not None else None
    return row


def _to_record(row: dict[str, Any]) -> Record:
    points = row["landmarks_68"]
    return Record(
        **{
            **row,
            "face_box": _box(row["face_box"]),
            "landmarks_68": tuple((x, y) for x, y in points) if points else None,
            "references": tuple(row["references"]),
            "generator": _mapping(row["generator"]),
            "recipe": _mapping(row["recipe"]) if row["recipe"] else None,
        }
    )


def _mapping(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise TypeError(f"{text[:40]!r} is no JSON object")
    return value


def _box(numbers: Sequence[float]) -> Box:
    x0, y0, x1, y1 = map(float, numbers)  # raises for another count, or without a value
    return x0, y0, x1, y1


def version_of(folder: str | Path) -> str:
    """Digest of a set's records and checksums; 16 hex digits."""
    return digest([content(Path(folder) / name) for name in (METADATA, SUMS) if (Path(folder) / name).is_file()])
