"""Photos in webdataset archives: read in chunks, and rejected by name where they are bad."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from colour_identities import HUES, OPTIONS, ColourFaces, built, pixels, reasons
from PIL import Image
from png_files import png_bytes

from face2scene.data.records import read_manifest
from face2scene.data.sources.photo_archives import PhotoArchives
from face2scene.data.verify import verify


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def portrait(person: str, seed: int) -> Image.Image:
    return Image.fromarray(pixels(person, seed))


def make_samples(count: int, first: int = 0) -> list[tuple[str, bytes]]:
    members = []
    for number in range(first, first + count):
        person = list(HUES)[number % 3]
        members += [
            (f"{number:06d}.png", png_bytes(portrait(person, number))),
            (f"{number:06d}.json", json.dumps({"who": person}).encode()),
            (f"{number:06d}.txt", f"Number {number}.".encode()),
        ]
    return members


def make_source(folder: Path, **changes) -> PhotoArchives:
    options = OPTIONS | {"chunk_size": 2, "identity_field": "who"} | changes
    return PhotoArchives([folder / "*.tar"], ColourFaces(), **options)


def test_stopped_archive_resumes_at_chunk(tmp_path):
    write_tar(tmp_path / "a.tar", make_samples(5))
    write_tar(tmp_path / "b.tar", make_samples(3, first=5))
    built(tmp_path / "whole", make_source(tmp_path))
    records = read_manifest(tmp_path / "whole")
    assert [r.prompt for r in records] == [f"Number {n}." for n in range(8)]
    assert {r.identity for r in records} == {"photos_ann", "photos_ben", "photos_cat"}
    assert list(verify(tmp_path / "whole")) == []

    source, judged = make_source(tmp_path), []
    process = source.process

    def stop_at_the_fourth(path, name, info):
        judged.append(name)
        if len(judged) == 4:
            raise KeyboardInterrupt
        return process(path, name, info)

    source.process = stop_at_the_fourth
    with pytest.raises(KeyboardInterrupt):
        built(tmp_path / "halves", source)
    source.process = lambda path, name, info: judged.append(name) or process(path, name, info)
    built(tmp_path / "halves", source)
    assert len(judged) == 4 + 6 and len(set(judged[:2] + judged[4:])) == 8  # only the unfinished chunk is repeated
    assert read_manifest(tmp_path / "halves") == records


def test_truncated_archive_keeps_its_start(tmp_path):
    whole = write_tar(tmp_path / "a.tar", make_samples(6)).read_bytes()
    write_tar(tmp_path / "b.tar", make_samples(2, first=6))
    for size in (len(whole) // 2, len(whole) // 2 + 300, 100):
        (tmp_path / "a.tar").write_bytes(whole[:size])
        folder = tmp_path / f"set{size}"
        summary = built(folder, make_source(tmp_path))
        left = reasons(folder)
        assert summary.quarantined == 1 and left["a.tar"][1].startswith("archive cut: after "), left
        assert sum(summary.images.values()) >= (4 if size > 100 else 2)
        assert {"Number 6.", "Number 7."} <= {r.prompt for r in read_manifest(folder)}


def test_missing_end_of_archive_is_reported(tmp_path):
    whole = write_tar(tmp_path / "a.tar", make_samples(2)).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole.rstrip(b"\0") + bytes(-len(whole.rstrip(b"\0")) % 512))
    built(tmp_path / "set", make_source(tmp_path))
    assert "end of the archive is missing" in reasons(tmp_path / "set")["a.tar"][1]
    assert len(read_manifest(tmp_path / "set")) >= 1


def test_bad_samples_are_quarantined(tmp_path):
    members = [
        *make_samples(1),
        ("lonely.json", b"{}"),
        ("broken.jpg", b"no picture"),
        ("odd.png", png_bytes(portrait("ben", 9))),
        ("odd.json", b"{cut"),
        ("list.png", png_bytes(portrait("ben", 10))),
        ("list.json", b"[1]"),
        ("huge.png", png_bytes(portrait("cat", 11)) + bytes(200_000)),
    ]
    write_tar(tmp_path / "a.tar", members)
    with tarfile.open(tmp_path / "a.tar", "a", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("caf\udce9.png")
        info.size = len(content := png_bytes(portrait("cat", 12)))
        tar.addfile(info, io.BytesIO(content))
    summary = built(tmp_path / "set", make_source(tmp_path, max_bytes=100_000))
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
