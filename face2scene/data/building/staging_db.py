"""The side-cars of a build as a database on disk, so that rows are compared without holding them in memory."""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from face2scene.common.files import read_json

PARTS = "parts"


class StagingDB:
    """SQLite tables: `rows` of images, `left_out` of rejections, `sums` of files, `needed` references."""

    def __init__(self, path: Path):
        path.unlink(missing_ok=True)  # of a crashed run; it is filled again
        path.parent.mkdir(parents=True, exist_ok=True)
        # No other process uses it, and some network file systems cannot lock.
        self.db = sqlite3.connect(f"{path.absolute().as_uri()}?nolock=1", uri=True)
        self.db.executescript(
            "pragma synchronous = off; pragma journal_mode = off; pragma cache_size = -20000;"
            "create table rows (n integer primary key, name text, source text, identity text, split text, sha text,"
            " image text, reference text, lq text, vector blob, measured text, stage text, reason text,"
            " record text, given text, similarity real);"
            "create table left_out (n integer, name text, reason text, stage text, measured text, thumbnail text);"
            "create table sums (name text primary key, sha text) without rowid;"
            "create table needed (name text primary key) without rowid;"
        )

    def fill(self, folder: Path, keys: Iterable[str]) -> None:
        """Read the side-cars of the items `keys`."""
        n = 0
        for part in _parts(folder, keys):
            for row in part["rejected"]:
                values = (n, row["name"], row["reason"], row["stage"], json.dumps(row["measured"]), row["thumbnail"])
                self.db.execute("insert into left_out values (?, ?, ?, ?, ?, ?)", values)
            for row in part["rows"]:
                record = row["record"]
                vector = None if row["vector"] is None else np.array(row["vector"]).tobytes()
                self.db.execute(
                    f"insert into rows values ({', '.join('?' * 16)})",
                    (
                        *(n, row["name"], record["source"], record["identity"], record["split"], record["sha256"]),
                        *(record["image"], row["reference"], record["lq"], vector, json.dumps(row["measured"])),
                        *(None, None, json.dumps(record), json.dumps(row["given"]), row["similarity"]),
                    ),
                )
                self.db.executemany("insert or replace into sums values (?, ?)", row["sums"].items())
                n += 1
        self.db.execute("create index by_sha on rows (sha)")
        self.db.execute("create index by_identity on rows (identity)")

    def reject(self, n: int, stage: str, reason: str) -> None:
        """Take row `n` out of the set."""
        self.db.execute("update rows set stage = ?, reason = ? where n = ?", (stage, reason, n))

    def move(self, n: int, moved: Mapping[str, str]) -> None:
        """Record new names of the files of row `n`: old to new."""
        for old, new in moved.items():
            for column in ("image", "reference", "lq"):
                self.db.execute(f"update rows set {column} = ? where n = ? and {column} = ?", (new, n, old))
            self.db.execute("update sums set name = ? where name = ?", (new, old))

    def add_pair(self, n: int, lq: str, recipe: dict[str, Any], digest: str) -> None:
        """Record the LQ image of row `n`."""
        record = json.loads(self.db.execute("select record from rows where n = ?", (n,)).fetchone()[0])
        record["recipe"] = recipe
        self.db.execute("update rows set lq = ?, record = ? where n = ?", (lq, json.dumps(record), n))
        self.db.execute("insert or replace into sums values (?, ?)", (lq, digest))

    # Queries, all in the order of the sources.

    def count_kept(self) -> int:
        return self.db.execute("select count(*) from rows where stage is null").fetchone()[0]

    def measured(self) -> Iterator[tuple[int, dict[str, float]]]:
        for n, measured in self._walk("select n, measured from rows {} and stage is null"):
            yield n, json.loads(measured)

    def files(self) -> Iterator[tuple]:
        return self._walk("select n, name, image, reference, lq, stage, split from rows {}")

    def kept_rows(self) -> Iterator[tuple[int, dict[str, Any], np.ndarray | None, list[str], float | None]]:
        query = "select n, record, image, lq, identity, split, vector, given, similarity from rows {} and stage is null"
        for n, record, image, lq, identity, split, vector, given, similarity in self._walk(query):
            fields = json.loads(record) | {"image": image, "lq": lq, "identity": identity, "split": split}
            yield n, fields, _vector(vector), json.loads(given), similarity

    def rows_of(self, identity: str, split: str) -> Iterator[tuple[int, str, np.ndarray | None]]:
        query = "select n, reference, vector from rows where identity = ? and split = ? and stage is null order by n"
        for n, reference, vector in self.db.execute(query, (identity, split)):
            yield n, reference, _vector(vector)

    def groups(self) -> Iterator[tuple[str, list[tuple[str, str, np.ndarray | None]]]]:
        people = "select identity from rows where stage is null group by identity order by min(n)"
        query = "select name, image, vector from rows where identity = ? and stage is null order by n"
        for (identity,) in self.db.execute(people).fetchall():
            yield identity, [(name, image, _vector(v)) for name, image, v in self.db.execute(query, (identity,))]

    def rejected(self) -> Iterator[dict[str, Any]]:
        """Everything left out, in order: rejections of the sources, and rows dropped here under their file's name."""
        query = (
            "select n, 0 as dropped, rowid, name, reason, stage, measured, thumbnail from left_out union all "
            "select n, 1, n, coalesce(source || '/' || (record ->> '$.generator.file'), record ->> '$.image'), reason,"
            " stage, measured, null from rows where stage is not null order by 1, 2, 3"
        )
        for row in self.db.execute(query):
            yield dict(zip(("name", "reason", "stage", "measured", "thumbnail"), row[3:], strict=True))

    def unneeded_references(self) -> list[str]:
        query = "select name from sums where name like 'references/%' and name not in (select name from needed)"
        return [name for (name,) in self.db.execute(query)]

    def sums(self) -> Iterator[tuple[str, str]]:
        gone = "select image from rows where stage is not null union select lq from rows where stage is not null"
        yield from self.db.execute(
            f"select name, sha from sums where name not in ({gone} and lq is not null) and "
            "(name not like 'references/%' or name in (select name from needed)) order by name"
        )

    def _walk(self, query: str) -> Iterator[tuple]:
        # In chunks, so that rows can be changed during the iteration.
        last = -1
        while rows := self.db.execute(query.format("where n > ?") + " order by n limit 1000", (last,)).fetchall():
            yield from rows
            last = rows[-1][0]


def _vector(blob: bytes | None) -> np.ndarray | None:
    return None if blob is None else np.frombuffer(blob)


def _parts(folder: Path, keys: Iterable[str]) -> Iterator[dict[str, Any]]:
    for key in keys:
        part = read_json(folder / PARTS / f"{key}.json")
        if "chunks" not in part:
            yield part
        for chunk in range(part.get("chunks", 0)):
            yield read_json(folder / PARTS / key / f"{chunk:06d}.json")
