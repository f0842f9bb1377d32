"""What an InScene dataset holds: one record per image, written and read.

A dataset is a folder with `metadata.parquet` (and `metadata.jsonl` on request), the images that it names,
and what the build left beside it. Every path in a record is relative to the folder. `verify.py` checks one.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from face2scene.common.files import atomic_write, sha256_of
from face2scene.common.ledger import content, digest
from face2scene.common.types import Box

METADATA = "metadata.parquet"
SUMS = "SHA256SUMS"
SETTINGS = "build.json"  # what the set was made from
SPLITS = ("train", "val", "test")
_ROWS = 1000  # records held in memory at once while writing and checking


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
    generator: dict[str, Any]  # what made or cut the image, with every setting and seed
    lq: str | None = None  # the fixed degraded image of a validation pair
    recipe: dict[str, Any] | None = None  # how `lq` was made


_SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("split", pa.string()),
        ("identity", pa.string()),
        ("prompt", pa.string()),
        ("shot", pa.string()),
        ("face_box", pa.list_(pa.float64())),
        ("landmarks_68", pa.list_(pa.list_(pa.float64()))),
        ("references", pa.list_(pa.string())),
        ("similarity", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
        ("source", pa.string()),
        ("licence", pa.string()),
        ("generator", pa.string()),  # JSON: generators differ in their settings
        ("lq", pa.string()),
        ("recipe", pa.string()),  # JSON
    ]
)
assert _SCHEMA.names == [field.name for field in dataclasses.fields(Record)]


def write_manifest(folder: str | Path, records: Iterable[Record], *, jsonl: bool = False) -> int:
    """Write `metadata.parquet`, if asked `metadata.jsonl`, whole or not at all. Returns the count."""
    folder = Path(folder)
    count = 0
    if not jsonl:
        (folder / "metadata.jsonl").unlink(missing_ok=True)  # of an earlier table
    with ExitStack() as stack:
        # Entered first, so moved to its name last: the table says that the set is finished.
        table = stack.enter_context(atomic_write(folder / METADATA))
        lines = stack.enter_context(atomic_write(folder / "metadata.jsonl")) if jsonl else None
        with (
            pq.ParquetWriter(table, _SCHEMA, write_page_checksum=True) as writer,
            open(lines or os.devnull, "w", encoding="utf-8") as text,
        ):
            for rows in _portions(map(_to_row, records)):
                writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))
                count += len(rows)
                for row in rows if jsonl else ():
                    opened = {key: json.loads(row[key] or "null") for key in ("generator", "recipe")}
                    text.write(json.dumps({**row, **opened}, ensure_ascii=False) + "\n")
        _sum_up(folder, table, lines)
    return count


def _sum_up(folder: Path, table: Path, lines: Path | None) -> None:
    # The new metadata's sums replace those of the old before the metadata themselves do.
    if not (folder / SUMS).is_file():
        return
    with open(folder / SUMS, encoding="utf-8") as before:
        kept = (line.rstrip("\n").partition("  ") for line in before)
        others = ((name, digest) for digest, _, name in kept if name not in (METADATA, "metadata.jsonl"))
        new = [(METADATA, sha256_of(table)), *([("metadata.jsonl", sha256_of(lines))] if lines else [])]
        write_sums(folder, (*others, *new))


class Records(Sequence[Record]):
    """The records of a dataset, or of one split of it, kept as columns and made into objects when asked for.

    A hundred thousand records with landmarks are 150 MB as columns and 1.5 GB as objects.

    Args:
        folder: an InScene dataset.
        split: `train`, `val` or `test`; None takes all.

    Raises:
        FileNotFoundError: when there is no dataset; the message has the command that builds one.
        ManifestError: for metadata that cannot be read, lack fields, or have no image in `split`.
    """

    def __init__(self, folder: str | Path, split: str | None = None):
        folder = Path(folder)
        with _opened(folder) as file:
            try:
                table = file.read(columns=_SCHEMA.names)
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(folder, error) from error
        if split is not None:
            chosen = table.filter(pc.equal(table["split"], split))
            if not chosen.num_rows:
                there = sorted(set(table["split"].to_pylist()))
                raise ManifestError(f"{folder} has no image in the split {split!r}; it has {there} (option split).")
            table = chosen
        self.table = table.combine_chunks()

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, number: int) -> Record:
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return _to_record(self.table.slice(number % len(self), 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Record]:
        for batch in self.table.to_batches(max_chunksize=_ROWS):
            yield from map(_to_record, batch.to_pylist())

    def column(self, name: str) -> list[Any]:
        """One field of all records."""
        return self.table[name].to_pylist()


def read_manifest(folder: str | Path, split: str | None = None) -> list[Record]:
    """All records, or those of one split, in the order they were written; raises what `Records` does."""
    return list(Records(folder, split))


def stream_manifest(folder: str | Path) -> Iterator[Record]:
    """All records one after the other, a thousand in memory at once; raises what `Records` does."""
    folder = Path(folder)
    with _opened(folder) as file:
        try:
            for batch in file.iter_batches(_ROWS, columns=_SCHEMA.names):
                yield from map(_to_record, batch.to_pylist())
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(folder, error) from error


def write_sums(folder: str | Path, known: Iterable[tuple[str, str]]) -> None:
    """Write `SHA256SUMS`: (name, sha256) of every file; `write_manifest` adds those of the metadata."""
    with atomic_write(Path(folder) / SUMS) as partial, open(partial, "w", encoding="utf-8") as lines:
        lines.writelines(f"{digest}  {name}\n" for name, digest in known)


def _opened(folder: Path) -> pq.ParquetFile:
    if not (folder / METADATA).is_file():
        what = "holds no finished dataset" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"{folder} {what}. Build it with `accelerate launch scripts/build_inscene.py "
            f"data={folder.name}`, or point data.root at one."
        )
    try:
        file = pq.ParquetFile(folder / METADATA, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(folder, error) from error
    missing = sorted(set(_SCHEMA.names) - set(file.schema_arrow.names))
    if missing:
        file.close()
        raise ManifestError(f"{folder / METADATA} lacks the fields {missing}: build it again with data.overwrite=true.")
    return file


def _unreadable(folder: Path, error: Exception) -> ManifestError:
    return ManifestError(f"{folder / METADATA} cannot be read ({error}). Build the set again with data.overwrite=true.")


def _portions(rows: Iterable[dict]) -> Iterator[list[dict]]:
    portion: list[dict] = []
    for row in rows:
        portion.append(row)
        if len(portion) == _ROWS:
            yield portion
            portion = []
    if portion:
        yield portion


def _to_row(record: Record) -> dict[str, Any]:
    row = {field.name: getattr(record, field.name) for field in dataclasses.fields(Record)}
    row["generator"] = json.dumps(record.generator, sort_keys=True)
    row["recipe"] = json.dumps(record.recipe) if record.recipe is not None else None
    return row


def _to_record(row: dict[str, Any]) -> Record:
    points = row["landmarks_68"]
    return Record(
        **{
            **row,
            "face_box": tuple(row["face_box"]),
            "landmarks_68": tuple((x, y) for x, y in points) if points else None,
            "references": tuple(row["references"]),
            "generator": json.loads(row["generator"]),
            "recipe": json.loads(row["recipe"]) if row["recipe"] else None,
        }
    )


def version_of(folder: str | Path) -> str:
    """Digest of what a set consists of: its records, and its files' sums where they were written; 16 hex digits."""
    return digest([content(Path(folder) / name) for name in (METADATA, SUMS) if (Path(folder) / name).is_file()])
