"""What an InScene dataset holds: one record per picture, written, read and checked.

A dataset is a folder with `metadata.parquet` (and `metadata.jsonl` on request), the pictures that it names,
and what the build left beside it. Every path in a record is relative to the folder.
"""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from face2scene.files import atomic_write, sha256_of
from face2scene.records import Box

METADATA = "metadata.parquet"
SPLITS = ("train", "val", "test")
_KNOWN_FILES = {METADATA, "metadata.jsonl", "rejected.jsonl", "build.json", "README.md"}
_ROWS = 1000  # records held in memory at once while writing


class ManifestError(ValueError):
    """Metadata that cannot be used; the message names the file and what to do."""


@dataclass(frozen=True)
class Record:
    """One picture of an InScene dataset."""

    image: str
    split: str
    identity: str
    prompt: str
    shot: str  # mid-up, full-body or close-up
    face_box: Box
    landmarks_68: tuple[tuple[float, float], ...] | None  # None where no landmark network ran
    references: tuple[str, ...]  # other pictures of the same person
    similarity: float | None  # identity cosine to the first reference
    width: int
    height: int
    sha256: str  # of the file at `image`
    source: str
    licence: str
    generator: dict[str, Any]  # what made or cut the picture, with every setting and seed
    lq: str | None = None  # the fixed degraded picture of a validation pair
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
    with (
        atomic_write(folder / METADATA) as table,
        atomic_write(folder / "metadata.jsonl") as lines,
        pq.ParquetWriter(table, _SCHEMA) as writer,
        open(lines, "w", encoding="utf-8") as text,
    ):
        for rows in _portions(map(_to_row, records)):
            writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))
            count += len(rows)
            for row in rows if jsonl else ():
                opened = {key: json.loads(row[key] or "null") for key in ("generator", "recipe")}
                text.write(json.dumps({**row, **opened}, ensure_ascii=False) + "\n")
    if not jsonl:
        (folder / "metadata.jsonl").unlink()
    return count


def read_manifest(folder: str | Path, split: str | None = None) -> list[Record]:
    """All records, or those of one split, in the order they were written.

    Raises:
        FileNotFoundError: when there is no dataset; the message has the command that builds one.
        ManifestError: for metadata that cannot be read, lack fields, or have no picture in `split`.
    """
    folder = Path(folder)
    if not (folder / METADATA).is_file():
        what = "holds no finished dataset" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"{folder} {what}. Build it with `accelerate launch scripts/build_inscene.py "
            f"data={folder.name}`, or point data.root at one."
        )
    try:
        table = pq.read_table(folder / METADATA)
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(
            f"{folder / METADATA} cannot be read ({error}). Build the set again with data.overwrite=true."
        ) from error
    missing = sorted(set(_SCHEMA.names) - set(table.column_names))
    if missing:
        raise ManifestError(f"{folder / METADATA} lacks the fields {missing}: build it again with data.overwrite=true.")
    records = [_to_record(row) for row in table.select(_SCHEMA.names).to_pylist()]
    if split is None:
        return records
    chosen = [record for record in records if record.split == split]
    if not chosen:
        there = sorted({record.split for record in records})
        raise ManifestError(f"{folder} has no picture in the split {split!r}; it has {there} (option split).")
    return chosen


def verify(folder: str | Path) -> list[str]:
    """Compare a dataset with its metadata. Returns one sentence per problem; none is good."""
    folder = Path(folder)
    records = read_manifest(folder)
    problems: list[str] = []
    used: set[str] = set()
    splits_of: dict[str, set[str]] = defaultdict(set)
    first_with: dict[tuple[str, str], int] = {}
    for number, record in enumerate(records):
        splits_of[record.identity].add(record.split)
        used |= {record.image, *record.references} | ({record.lq} if record.lq else set())
        problems += _problems_of(folder, record)
        once = {"path": record.image, "content": record.sha256, "degradation operator": _operators(record)}
        for kind, value in once.items():
            first = first_with.setdefault((kind, value), number) if value else number
            if first != number:
                problems.append(f"{record.image} has the same {kind} as {records[first].image}.")
    for identity, splits in sorted(splits_of.items()):
        if len(splits) > 1:
            problems.append(f"Identity {identity} is in the splits {', '.join(sorted(splits))}; splits must not share.")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    problems += [f"{name} belongs to no record." for name in sorted(there - used - _KNOWN_FILES)]
    return problems


def _problems_of(folder: Path, record: Record) -> Iterator[str]:
    if record.split not in SPLITS:
        yield f"{record.image} has the unknown split {record.split!r}."
    image = folder / record.image
    if not image.is_file():
        yield f"{record.image} is missing."
    elif sha256_of(image) != record.sha256:
        yield f"{record.image} is not the recorded file (wrong sha256)."
    else:
        with Image.open(image) as picture:
            if picture.size != (record.width, record.height):
                yield f"{record.image} is {picture.size}, recorded as {(record.width, record.height)}."
    x0, y0, x1, y1 = record.face_box
    if not (0 <= x0 < x1 <= record.width and 0 <= y0 < y1 <= record.height):
        size = f"{record.width} x {record.height}"
        yield f"{record.image}: the face box {record.face_box} is not inside {size}."
    for name in record.references:
        if not (folder / name).is_file():
            yield f"{record.image}: its reference {name} is missing."
        if name == record.image:
            yield f"{record.image} is its own reference."
    if (record.lq is None) != (record.recipe is None):
        yield f"{record.image} has an LQ picture without a recipe, or a recipe without one."
    if record.lq and not (folder / record.lq).is_file():
        yield f"{record.image}: its LQ picture {record.lq} is missing."


def _operators(record: Record) -> str:
    # Recipes are the same operator if they are equal but for the noise seed; no degradation may come again.
    operators = (record.recipe or {}).get("operators")
    return json.dumps(operators, sort_keys=True) if operators else ""


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
