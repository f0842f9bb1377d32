"""`face2scene data verify` finds what is wrong with a set, whatever it is."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from face2scene.cli.main import main
from face2scene.data.building.build import build
from face2scene.data.records import SUMS, Record, read_manifest, write_manifest
from face2scene.data.shards import pack, read_stored
from face2scene.data.sources.generated import DrawnPeople, GeneratedPeople
from face2scene.data.verify import verify
from face2scene.degradation import Space

SMALL = Space(scale=1, kernel_sizes=(7, 7), resize_probs=(0, 0, 1), resize_probs2=(0, 0, 1), final_sinc_prob=0)


@pytest.fixture
def folder(tmp_path) -> Path:
    people = {"train_people": 2, "train_shots": 3, "val_people": 1, "val_shots": 2}
    options = {"name": "drawn", "size": 32, "reference_size": 48, "licence": "CC0-1.0"}
    source = GeneratedPeople(lambda: DrawnPeople(side=64), None, **people, **options)
    build(tmp_path / "set", [source], settings={}, space=SMALL)
    return tmp_path / "set"


def problems(folder: Path, capsys) -> list[str]:
    code = main(["data", "verify", str(folder)])
    lines = capsys.readouterr().out.splitlines()
    assert (code == 0) == (lines[-1] == f"{folder} is sound.")
    assert code == 0 or lines[-1] == f"{folder}: {len(lines) - 1} problems."
    return lines[:-1]


def changed(folder: Path, number: int, **fields) -> Record:
    records = read_manifest(folder)
    records[number] = dataclasses.replace(records[number], **fields)
    write_manifest(folder, records)
    return records[number]


def test_a_whole_set_is_sound(folder, capsys):
    assert problems(folder, capsys) == []


@pytest.mark.parametrize("kind", ["image", "lq", "reference"])
def test_a_flipped_byte_is_found_in_every_kind_of_picture(folder, capsys, kind):
    record = read_manifest(folder, "val")[0]
    name = {"image": record.image, "lq": record.lq, "reference": record.references[0]}[kind]
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    assert problems(folder, capsys) == [f"{name} is not the recorded file (wrong sha256)."]


def test_a_flipped_byte_in_the_metadata_is_found(folder, capsys):
    path = folder / "metadata.parquet"
    whole = path.read_bytes()
    for place in range(0, len(whole), len(whole) // 12):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        assert main(["data", "verify", str(folder)]) == 1, place
        said = capsys.readouterr()
        assert "metadata.parquet" in said.out + said.err


@pytest.mark.parametrize("kind", ["image", "lq", "reference"])
def test_a_missing_picture_is_found(folder, capsys, kind):
    record = read_manifest(folder, "val")[0]
    name = {"image": record.image, "lq": record.lq, "reference": record.references[0]}[kind]
    (folder / name).unlink()
    assert any(name in problem and "is missing" in problem for problem in problems(folder, capsys))


def test_an_orphan_is_found(folder, capsys):
    (folder / "images/train/000/stray.png").write_bytes((folder / read_manifest(folder)[0].image).read_bytes())
    assert problems(folder, capsys) == ["images/train/000/stray.png belongs to no record."]


def test_a_double_is_found_by_its_path_and_by_its_content(folder, capsys):
    first, second, *rest = read_manifest(folder)
    write_manifest(folder, [first, second, *rest, first])
    found = problems(folder, capsys)
    assert f"{first.image} has the same path as {first.image}." in found
    (folder / second.image).write_bytes((folder / first.image).read_bytes())
    write_manifest(folder, [first, dataclasses.replace(second, sha256=first.sha256), *rest])
    assert problems(folder, capsys) == [f"{second.image} has the same content as {first.image}."]


def test_a_box_outside_its_picture_is_found(folder, capsys):
    record = changed(folder, 0, face_box=(20.0, 8.0, 33.0, 20.0))
    assert problems(folder, capsys) == [f"{record.image}: the face box (20.0, 8.0, 33.0, 20.0) is not inside 32 x 32."]


def test_identities_shared_between_splits_are_found(folder, capsys):
    record = changed(folder, 0, split="val")
    said = f"Identity {record.identity} is in the splits train, val; splits must not share."
    assert problems(folder, capsys) == [said]


def test_the_same_damage_twice_is_found(folder, capsys):
    first, second = (n for n, r in enumerate(read_manifest(folder)) if r.recipe)
    changed(folder, second, recipe=read_manifest(folder)[first].recipe)
    assert [p for p in problems(folder, capsys) if "same degradation operator" in p]


def test_a_wrong_size_an_unknown_split_and_a_pair_without_its_recipe_are_found(folder, capsys):
    changed(folder, 0, width=33)
    changed(folder, 1, split="middle")
    changed(folder, -1, recipe=None)
    found = "\n".join(problems(folder, capsys))
    assert "recorded as (33, 32)" in found and "unknown split 'middle'" in found and "without a recipe" in found


def test_what_is_no_set_is_said(tmp_path, capsys):
    assert main(["data", "verify", str(tmp_path / "nowhere")]) == 1
    assert "build_inscene.py" in capsys.readouterr().err


def test_a_set_that_somebody_else_made_is_checked_without_sums(folder, capsys):
    (folder / SUMS).unlink()
    assert problems(folder, capsys) == []


# Packed into archives


def test_a_packed_set_holds_the_same_records_and_pictures(folder, tmp_path, capsys):
    assert main(["data", "pack", str(folder), str(tmp_path / "packed"), "--per-shard", "4"]) == 0
    assert "2 archives" in capsys.readouterr().out
    loose, packed = read_manifest(folder), read_manifest(tmp_path / "packed")
    for before, after in zip(loose, packed, strict=True):
        assert (before.sha256, before.identity, before.split) == (after.sha256, after.identity, after.split)
        assert np.array_equal(read_stored(folder, before.image), read_stored(tmp_path / "packed", after.image))
        assert (".tar/" in after.image) == (after.split == "train")
    assert problems(tmp_path / "packed", capsys) == []
    for shard in ("train-000000", "train-000001"):
        pack(folder, tmp_path / "again", per_shard=4) if not (tmp_path / "again").exists() else None
        name = f"shards/{shard}.tar"
        assert (tmp_path / "packed" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    with pytest.raises(FileExistsError, match="finished set"):
        pack(folder, tmp_path / "packed")


@pytest.mark.parametrize("change", ["per_shard", "set", "nothing tells"])
def test_a_stopped_packing_goes_on_in_the_same_way_only(folder, tmp_path, change):
    packed = tmp_path / "packed"
    pack(folder, packed, per_shard=4)
    before = {path: path.read_bytes() for path in packed.rglob("*") if path.is_file()}
    (packed / "metadata.parquet").unlink()  # as it is before the end
    if change == "set":
        write_manifest(folder, read_manifest(folder)[1:])
    elif change == "nothing tells":
        (packed / "build.json").unlink()
    with pytest.raises(FileExistsError, match="not packed from this set in this way"):
        pack(folder, packed, per_shard=3 if change == "per_shard" else 4)
    if change == "per_shard":
        (packed / "shards/train-000001.tar").unlink()
        pack(folder, packed, per_shard=4)
        assert {path: path.read_bytes() for path in packed.rglob("*") if path.is_file()} == before


def test_a_webdataset_reader_finds_a_picture_and_its_record_under_one_key(folder, tmp_path):
    import tarfile

    pack(folder, tmp_path / "packed", per_shard=4)
    with tarfile.open(tmp_path / "packed/shards/train-000001.tar") as tar:
        names = tar.getnames()
        assert names == ["000000004.png", "000000004.json", "000000005.png", "000000005.json"]
        record = json.load(tar.extractfile("000000005.json"))
    assert record["image"] == "shards/train-000001.tar/000000005.png"
    assert set(record) == {field.name for field in dataclasses.fields(Record)}


def test_damage_inside_an_archive_is_found(folder, tmp_path, capsys):
    pack(folder, tmp_path / "packed", per_shard=4)
    packed = tmp_path / "packed"
    archive = packed / "shards/train-000000.tar"
    content = bytearray(archive.read_bytes())
    content[700] ^= 1  # inside the first image
    archive.write_bytes(content)
    found = problems(packed, capsys)
    assert any("000000000.png is not the recorded file" in problem for problem in found)
    assert any(problem.startswith("shards/train-000000.tar is not the recorded file") for problem in found)


def test_files_that_are_no_pictures_any_more_do_not_stop_the_check(folder):
    record = read_manifest(folder)[0]
    Image.new("RGB", (9, 9)).save(folder / record.image)
    (folder / read_manifest(folder)[1].image).write_bytes(b"")
    assert len(verify(folder)) == 2
