"""Files that are written whole, and what is said of a disk that takes no more."""

import errno
import json
import os
import sqlite3

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors import SafetensorError

from face2scene.common.files import atomic_write, disk_error, read_json, remove_partials, write_json
from face2scene.common.ledger import content
from face2scene.common.reproducibility import seed_from


def write_text(path):
    with open(path, "w") as file:
        file.write("x")


WRITERS = {  # each meets a disk that has no room
    "text": write_text,
    "png": lambda path: Image.new("RGB", (9, 9)).save(path, format="PNG"),
    "parquet": lambda path: pq.write_table(pa.table({"a": [1]}), path),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_full_disk_is_recognised_in_every_library(tmp_path, kind):
    # A link: a library that renames a file of its own to this name must replace the link and never the device.
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        WRITERS[kind](tmp_path / "full")
    assert disk_error(caught.value).startswith("Nothing more can be written")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EROFS, os.strerror(errno.EROFS), "a"),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "a"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        sqlite3.OperationalError("database or disk is full"),
        sqlite3.OperationalError("attempt to write a readonly database"),
    ],
)
def test_disk_error_names_the_remedy(error):
    wrapped = RuntimeError("it did not work")
    wrapped.__cause__ = error
    assert "make room, or choose another folder, and start the same command again" in disk_error(wrapped)


def test_other_errors_are_no_matter_of_the_disk():
    for error in (None, ValueError("No such option"), OSError(errno.ENOENT, os.strerror(errno.ENOENT), "full.png")):
        assert disk_error(error) == ""


def test_failed_rename_leaves_no_partial_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "a.json", {"a": 1})
    assert not list(tmp_path.iterdir())


def left_by_a_kill(path):
    """The file that a process leaves when it is killed while it writes `path`."""
    with atomic_write(path) as partial:
        partial.write_bytes(b"half")
        left = partial.rename(partial.with_name(partial.name.replace(str(os.getpid()), "999999")))
        partial.touch()
    return left


def test_leftovers_of_kills_are_removed(tmp_path):
    left = [left_by_a_kill(tmp_path / name) for name in ("log.jsonl", "images/sub/a.png", "other/b.png")]
    kept = [tmp_path / name for name in (".hidden", "images/.a.partial.png", "images/sub/a.partial")]
    for path in kept:
        path.touch()
    remove_partials(tmp_path, "images", seconds=60)
    assert all(path.is_file() for path in left)
    remove_partials(tmp_path, "images")
    assert [path.is_file() for path in left] == [False, False, True]
    assert all(path.is_file() for path in kept)


def test_durable_file_is_on_disk_before_its_name(tmp_path, monkeypatch):
    seen, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda d: (seen.append((tmp_path / "a").exists()), real(d)))
    with atomic_write(tmp_path / "a", durable=True) as partial:
        partial.write_text("x")
    assert seen == [False] and (tmp_path / "a").read_text() == "x"


def test_names_that_are_no_text_survive(tmp_path):
    name = os.fsdecode(b"latin-\xe9.png")
    write_json(tmp_path / "a.json", {"name": name})
    assert read_json(tmp_path / "a.json") == {"name": name} == json.loads((tmp_path / "a.json").read_bytes())
    (tmp_path / name).write_bytes(b"x")
    assert len(content(tmp_path)) == 64
    assert seed_from(1, name) != seed_from(1, "latin-é.png")
    assert seed_from(0, "a") == 8517966169931683447  # as before: names that are text keep their seeds
