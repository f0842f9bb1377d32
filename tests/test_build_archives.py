"""Photos in webdataset archives: read in portions, and named where they are bad."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from hued_photos import HUES, OPTIONS, ColourFaces, built, pixels, reasons
from PIL import Image

from face2scene.data.records import read_manifest
from face2scene.data.sources.photo_archives import PhotoArchives
from face2scene.data.verify import verify


def tar_of(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def png(person: str, seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(person, seed)).save(buffer, "PNG")
    return buffer.getvalue()


def samples_of(count: int, first: int = 0) -> list[tuple[str, bytes]]:
    members = []
    for number in range(first, first + count):
        person = list(HUES)[number % 3]
        members += [
            (f"{number:06d}.png", png(person, number)),
            (f"{number:06d}.json", json.dumps({"who": person}).encode()),
            (f"{number:06d}.txt", f"Number {number}.".encode()),
        ]
    return members


def archives(folder: Path, **changes) -> PhotoArchives:
    options = OPTIONS | {"portion": 2, "identity_field": "who"} | changes
    return PhotoArchives([folder / "*.tar"], ColourFaces(), **options)


def test_archives_are_read_in_portions_and_a_started_one_is_not_done_twice(tmp_path):
    tar_of(tmp_path / "a.tar", samples_of(5))
    tar_of(tmp_path / "b.tar", samples_of(3, first=5))
    built(tmp_path / "whole", archives(tmp_path))
    records = read_manifest(tmp_path / "whole")
    assert [r.prompt for r in records] == [f"Number {n}." for n in range(8)]
    assert {r.identity for r in records} == {"photos_ann", "photos_ben", "photos_cat"}
    assert verify(tmp_path / "whole") == []

    source, judged = archives(tmp_path), []
    draft = source.photographs.draft

    def stop_at_the_fourth(path, name, label):
        judged.append(name)
        if len(judged) == 4:
            raise KeyboardInterrupt
        return draft(path, name, label)

    source.photographs.draft = stop_at_the_fourth
    with pytest.raises(KeyboardInterrupt):
        built(tmp_path / "halves", source)
    source.photographs.draft = lambda path, name, label: judged.append(name) or draft(path, name, label)
    built(tmp_path / "halves", source)
    assert len(judged) == 4 + 6 and len(set(judged[:2] + judged[4:])) == 8  # only the open portion comes again
    assert read_manifest(tmp_path / "halves") == records


def test_an_archive_cut_in_the_middle_gives_what_came_before_the_cut(tmp_path):
    whole = tar_of(tmp_path / "a.tar", samples_of(6)).read_bytes()
    tar_of(tmp_path / "b.tar", samples_of(2, first=6))
    for size in (len(whole) // 2, len(whole) // 2 + 300, 100):
        (tmp_path / "a.tar").write_bytes(whole[:size])
        folder = tmp_path / f"set{size}"
        summary = built(folder, archives(tmp_path))
        left = reasons(folder)
        assert summary.quarantined == 1 and left["a.tar"][1].startswith("archive cut: after "), left
        assert sum(summary.images.values()) >= (4 if size > 100 else 2)
        assert {"Number 6.", "Number 7."} <= {r.prompt for r in read_manifest(folder)}


def test_an_archive_without_its_end_is_named(tmp_path):
    whole = tar_of(tmp_path / "a.tar", samples_of(2)).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole.rstrip(b"\0") + bytes(-len(whole.rstrip(b"\0")) % 512))
    built(tmp_path / "set", archives(tmp_path))
    assert "end of the archive is missing" in reasons(tmp_path / "set")["a.tar"][1]
    assert len(read_manifest(tmp_path / "set")) >= 1


def test_bad_samples_of_an_archive_are_named(tmp_path):
    members = [
        *samples_of(1),
        ("lonely.json", b"{}"),
        ("broken.jpg", b"no picture"),
        ("odd.png", png("ben", 9)),
        ("odd.json", b"{cut"),
        ("list.png", png("ben", 10)),
        ("list.json", b"[1]"),
        ("huge.png", png("cat", 11) + bytes(200_000)),
    ]
    tar_of(tmp_path / "a.tar", members)
    with tarfile.open(tmp_path / "a.tar", "a", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("caf\udce9.png")
        info.size = len(content := png("cat", 12))
        tar.addfile(info, io.BytesIO(content))
    summary = built(tmp_path / "set", archives(tmp_path, max_bytes=100_000))
    left = {
        name.removeprefix("a.tar/"): reason.split(":")[0] for name, (_, reason) in reasons(tmp_path / "set").items()
    }
    assert left == {
        "lonely": "not what the metadata say",
        "broken.jpg": "unreadable",
        "odd.png": "bad metadata",
        "list.png": "bad metadata",
        "huge.png": "too many bytes",
        "caf\\xe9.png": "the name is not UTF-8",
    }
    assert summary.quarantined == 6 and sum(summary.images.values()) == 1
