"""Datasets are built, resumed, verified and read back; bad photos are listed."""

import dataclasses
import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from colour_identities import MiddleFaces
from drawn_sets import SMALL, build_drawn, drawn_source, folder_bytes
from PIL import Image

from face2scene.common.types import Face
from face2scene.data.building.build import BuildError
from face2scene.data.building.photo_filtering import CropSpec
from face2scene.data.building.prompts import Prompts
from face2scene.data.generators.base import GenerationRequest
from face2scene.data.records import ManifestError, Record, read_manifest, write_manifest
from face2scene.data.redegrade import redegrade
from face2scene.data.sources.generated import DrawnPeople
from face2scene.data.sources.photo_folder import Photos
from face2scene.data.verify import verify


def test_built_dataset_verifies(tmp_path):
    summary = build_drawn(tmp_path / "set", jsonl=True)
    assert list(verify(tmp_path / "set")) == []
    assert summary.images == {"train": 4, "val": 4} and summary.people == {"train": 2, "val": 2}
    train, val = (read_manifest(tmp_path / "set", split) for split in ("train", "val"))
    assert all(record.lq is None for record in train) and all(record.lq and record.recipe for record in val)
    assert {r.identity for r in train}.isdisjoint(r.identity for r in val)
    assert all(len(record.references) == 1 and record.image not in record.references for record in train + val)
    lines = (tmp_path / "set" / "metadata.jsonl").read_text().splitlines()
    assert set(json.loads(lines[0])) == {field.name for field in dataclasses.fields(Record)}


def test_val_degradations_are_distinct(tmp_path):
    build_drawn(tmp_path / "set")
    recipes = [json.dumps(r.recipe["operators"]) for r in read_manifest(tmp_path / "set", "val")]
    assert len(set(recipes)) == len(recipes) == 4


def test_finished_build_is_not_overwritten(tmp_path):
    build_drawn(tmp_path / "set")
    before = folder_bytes(tmp_path / "set")
    assert not build_drawn(tmp_path / "set").built
    with pytest.raises(BuildError, match=r"different: a.*data\.overwrite=true"):
        build_drawn(tmp_path / "set", settings={"a": 2})
    assert folder_bytes(tmp_path / "set") == before
    assert build_drawn(tmp_path / "set", settings={"a": 2}, overwrite=True).built


def test_redegraded_set_refuses_other_settings(tmp_path):
    build_drawn(tmp_path / "set")
    draw = functools.partial(redegrade, tmp_path / "set", tmp_path / "again", SMALL, settings={"a": 1})
    assert draw() == draw() == 4
    before = folder_bytes(tmp_path / "again")
    with pytest.raises(BuildError, match="from other images or another degradation"):
        draw(seed=1)
    (tmp_path / "set" / "SHA256SUMS").write_text("0  rebuilt\n")  # the same records, other files
    with pytest.raises(BuildError, match="from other images or another degradation"):
        draw()
    assert folder_bytes(tmp_path / "again") == before
    (tmp_path / "again/build.json").unlink()
    with pytest.raises(BuildError, match="not written here"):
        draw()


def test_foreign_folder_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(BuildError, match="no build wrote"):
        build_drawn(tmp_path, overwrite=True)
    assert (tmp_path / "letter.txt").read_text() == "dear"


class Stopped(Exception):
    pass


def test_stopped_build_resumes_to_same_bytes(tmp_path):
    build_drawn(tmp_path / "whole")
    source, made = drawn_source(), []
    make = source.make

    def stop_at_third(item):
        if len(made) == 2:
            raise Stopped
        made.append(item)
        return make(item)

    source.make = stop_at_third
    with pytest.raises(Stopped):
        build_drawn(tmp_path / "halves", [source])
    (tmp_path / "halves" / "images" / ".left.7.partial.png").write_bytes(b"cut")
    with pytest.raises(FileNotFoundError, match="no finished dataset"):
        read_manifest(tmp_path / "halves")
    source.make = lambda item: made.append(item) or make(item)
    build_drawn(tmp_path / "halves", [source])
    assert made == [0, 1, 2, 3]
    assert folder_bytes(tmp_path / "halves") == folder_bytes(tmp_path / "whole")


class _BarrierReached(Exception):
    pass


def _rank_one_wait():
    """Rank 1 in the same thread: it passes the first barrier and raises at the second."""
    meetings = iter([None, _BarrierReached])

    def wait():
        if (reason := next(meetings)) is not None:
            raise reason

    return wait


def test_two_ranks_equal_one(tmp_path):
    build_drawn(tmp_path / "one")

    def join_after_both():  # what rank 0 waits for before it joins the parts
        if waits.pop(0) == "items done":
            with pytest.raises(_BarrierReached):
                build_drawn(tmp_path / "two", rank=1, processes=2, wait=_rank_one_wait())

    waits = ["settings written", "items done", "joined"]
    build_drawn(tmp_path / "two", rank=0, processes=2, wait=join_after_both)
    assert folder_bytes(tmp_path / "two") == folder_bytes(tmp_path / "one")


def test_verify_lists_all_problems(tmp_path):
    folder = tmp_path / "set"
    build_drawn(folder)
    records = read_manifest(folder)
    flipped, gone = folder / records[0].image, folder / records[1].image
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"?")
    gone.unlink()
    (folder / "images" / "stray.png").write_bytes(b"")
    moved = dataclasses.replace(records[2], face_box=(0, 0, 99, 99), split="val")
    write_manifest(folder, [*records[:2], moved, *records[3:], records[-1]])
    problems = "\n".join(verify(folder))
    for words in (
        f"{records[0].image} is not the recorded file",
        f"{records[1].image} is missing",
        "images/stray.png belongs to no record",
        "is not inside 32 x 32",
        f"Identity {moved.identity} is in the splits train, val",
        f"{records[-1].image} has the same path as",
    ):
        assert words in problems


def test_records_round_trip(tmp_path):
    record = Record(
        image="a.png",
        split="val",
        identity="ann",
        prompt="A photo.",
        shot="mid-up",
        face_box=(1.0, 2.0, 3.5, 4.0),
        landmarks_68=None,
        references=("b.png", "c.png"),
        similarity=None,
        width=8,
        height=9,
        sha256="00",
        source="photos",
        licence="CC0",
        generator={"name": "photo", "crop": [1, 2]},
        lq="lq.png",
        recipe={"operators": [{"sigma": 0.1}]},
    )
    other = dataclasses.replace(record, landmarks_68=((1.0, 2.0),) * 68, similarity=0.5, lq=None, recipe=None)
    write_manifest(tmp_path, [record, other])
    assert read_manifest(tmp_path) == [record, other]


def test_missing_dataset_or_split_message(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"build-inscene data=quickstart"):
        read_manifest(tmp_path / "quickstart")
    build_drawn(tmp_path / "set", [drawn_source(val_people=0)])
    with pytest.raises(ManifestError, match=r"'val'; it has \['train'\]"):
        read_manifest(tmp_path / "set", "val")
    (tmp_path / "set" / "metadata.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(ManifestError, match=r"data\.overwrite=true"):
        read_manifest(tmp_path / "set")


def write_photo(path: Path, size=(90, 60), mode="RGB", seed=0, **save):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **save)


def test_every_photo_is_used_or_rejected(tmp_path):
    photos = tmp_path / "photos"
    write_photo(photos / "Jo Ann" / "grey.png", mode="L", seed=1)
    write_photo(photos / "Jo Ann" / "clear.png", mode="RGBA", seed=2)
    write_photo(photos / "Ömer" / "a.jpg", seed=3)
    turned = Image.Exif()
    turned[0x0112] = 6
    write_photo(photos / "turned.jpg", seed=4, exif=turned)
    Image.fromarray(np.random.default_rng(5).integers(0, 65535, (60, 90), dtype=np.uint16)).save(photos / "deep.png")
    write_photo(photos / "twin.png", seed=6), write_photo(photos / "twin2.png", seed=6)
    write_photo(photos / "small.png", size=(20, 60))
    Image.new("RGB", (80, 80), "grey").save(photos / "nobody.png")
    (photos / "cut.jpg").write_bytes((photos / "Ömer" / "a.jpg").read_bytes()[:900])
    (photos / "not.jpg").write_text("no image")
    (photos / "notes.txt").write_text("no image")
    source = Photos(photos, MiddleFaces(), name="photos", size=32, min_face=8, licence="mine")
    build_drawn(tmp_path / "set", [source])
    assert list(verify(tmp_path / "set")) == []
    records = read_manifest(tmp_path / "set")
    used = {record.generator["file"] for record in records}
    assert used == {"Jo Ann/grey.png", "Jo Ann/clear.png", "Ömer/a.jpg", "turned.jpg", "deep.png", "twin.png"}
    rejected = [json.loads(line) for line in (tmp_path / "set" / "rejected.jsonl").read_text().splitlines()]
    reasons = {row["name"].split("/")[-1]: row["reason"].split(":")[0] for row in rejected}
    assert len(reasons) == 6
    assert reasons["small.png"] == "too small" and reasons["nobody.png"] == "no face found"
    assert reasons["cut.jpg"] == reasons["not.jpg"] == "unreadable"
    assert reasons["notes.txt"] == "not an image file"
    by_file = {record.generator["file"]: record for record in records}
    assert by_file["turned.jpg"].generator["photo_size"] == [60, 90]
    ann = by_file["Jo Ann/grey.png"]
    assert ann.references == (by_file["Jo Ann/clear.png"].image,) or len(ann.references) == 1
    assert by_file["Ömer/a.jpg"].references == ()


def test_face_crop_stays_inside_photo():
    def crop(*box):
        return CropSpec(64, face_share=1 / 3).box(Face(box, 0.9, np.zeros((5, 2))), (300, 400))

    assert crop(100, 100, 130, 140) == (55, 60, 175, 180)
    assert crop(0, 0, 30, 40) == (0, 0, 120, 120)
    assert crop(10, 10, 290, 290) == (0, 0, 300, 300)


def test_wrong_identity_is_rejected(tmp_path):
    class Odd(DrawnPeople):
        def draw(self, request):
            shot, image = request.number, super().draw(GenerationRequest(request.person, 0))
            return image if shot in (0, 3) else image // 8 if shot == 1 else np.full_like(image, 90)

    source = drawn_source(train_people=1, val_people=0, threshold=0.99, tries=3)
    source.generator, source.detector = lambda: Odd(side=64), MiddleFaces()
    made = source.make(0)
    assert [one.generator["shot"] for one in made.candidates] == [0, 3]
    assert [one.reason.split(":")[0] for one in made.rejected] == ["another person"]


def test_empty_build_is_an_error(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    with pytest.raises(BuildError, match=r"rejected\.jsonl"):
        build_drawn(tmp_path / "set", [Photos(tmp_path / "photos", MiddleFaces(), name="p", size=32, licence="mine")])


def test_prompts_are_deterministic():
    prompts = Prompts()
    assert prompts(7) == Prompts()(7) != prompts(8)
    assert Prompts(seed=1)(7) != prompts(7)
    texts = [prompts(n, subject="woman").text for n in range(200)]
    assert len(set(texts)) == 200
    assert all(text.count(".") == 4 and "woman" in text for text in texts)
    shots = [prompts(n).shot for n in range(200)]
    assert 70 < shots.count("mid-up") < 130


def test_drawn_people_are_deterministic():
    people = DrawnPeople(side=32)
    assert (people.draw(GenerationRequest(1, 0)) == people.draw(GenerationRequest(1, 0))).all()
    assert (people.draw(GenerationRequest(1, 0)) != people.draw(GenerationRequest(1, 1))).any()
    assert (people.draw(GenerationRequest(1, 0)) != people.draw(GenerationRequest(2, 0))).any()


def test_facegen_output_is_stable():
    from face2scene.data.generators.facegen import FaceGenerator

    image = FaceGenerator().draw(GenerationRequest(10000, 1))
    assert image.shape == (1024, 1024, 3)
    blocks = image.reshape(4, 256, 4, 256, 3).mean((1, 3, 4)).round(1)
    expected = [
        [50.3, 93.4, 87.0, 114.6],
        [59.8, 144.7, 169.7, 98.6],
        [60.4, 139.4, 169.6, 93.9],
        [128.4, 115.7, 144.7, 111.3],
    ]
    assert np.abs(blocks - np.array(expected)).max() < 0.2  # float32 on every processor; values are rounded to 0.1


def test_data_imports_without_optional():
    import subprocess

    code = (
        "import sys\n"
        "for name in ('cv2', 'dlib', 'openvino', 'matplotlib'): sys.modules[name] = None\n"
        "import face2scene.data.sources.generated, face2scene.data.sources.photo_folder, face2scene.faces.identity\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
