"""`face2scene data verify` finds every kind of problem of a set."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from drawn_sets import build_drawn, drawn_source
from PIL import Image

from face2scene.cli.main import main
from face2scene.data.records import SUMS, ManifestError, Record, read_manifest, write_manifest
from face2scene.data.shards import pack, read_stored
from face2scene.data.verify import verify


@pytest.fixture
def dataset(tmp_path) -> Path:
    build_drawn(tmp_path / "set", [drawn_source(train_shots=3, val_people=1, reference_size=48)])
    return tmp_path / "set"


def verify_problems(dataset: Path, capsys) -> list[str]:
    code = main(["data", "verify", str(dataset)])
    lines = capsys.readouterr().out.splitlines()
    assert (code == 0) == (lines[-1] == f"{dataset} is sound.")
    assert code == 0 or lines[-1] == f"{dataset}: {len(lines) - 1} problems."
    return lines[:-1]


def change_record(dataset: Path, number: int, **fields) -> Record:
    records = read_manifest(dataset)
    records[number] = dataclasses.replace(records[number], **fields)
    write_manifest(dataset, records)
    return records[number]


def test_valid_dataset_passes(dataset, capsys):
    assert verify_problems(dataset, capsys) == []


@pytest.mark.parametrize("kind", ["image", "lq", "reference"])
def test_corrupt_image_is_found(dataset, capsys, kind):
    record = read_manifest(dataset, "val")[0]
    name = {"image": record.image, "lq": record.lq, "reference": record.references[0]}[kind]
    content = bytearray((dataset / name).read_bytes())
    content[len(content) // 2] ^= 1
    (dataset / name).write_bytes(content)
    assert verify_problems(dataset, capsys) == [f"{name} is not the recorded file (wrong sha256)."]


def test_corrupt_metadata_is_found(dataset, capsys):
    path = dataset / "metadata.parquet"
    whole = path.read_bytes()
    for place in range(0, len(whole), len(whole) // 12):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        assert main(["data", "verify", str(dataset)]) == 1, place
        said = capsys.readouterr()
        assert "metadata.parquet" in said.out + said.err


@pytest.mark.parametrize("kind", ["image", "lq", "reference"])
def test_missing_image_is_found(dataset, capsys, kind):
    record = read_manifest(dataset, "val")[0]
    name = {"image": record.image, "lq": record.lq, "reference": record.references[0]}[kind]
    (dataset / name).unlink()
    assert any(name in problem and "is missing" in problem for problem in verify_problems(dataset, capsys))


def test_unlisted_file_is_found(dataset, capsys):
    (dataset / "images/train/000/stray.png").write_bytes((dataset / read_manifest(dataset)[0].image).read_bytes())
    assert verify_problems(dataset, capsys) == ["images/train/000/stray.png belongs to no record."]


def test_duplicate_path_or_content_is_found(dataset, capsys):
    first, second, *rest = read_manifest(dataset)
    write_manifest(dataset, [first, second, *rest, first])
    found = verify_problems(dataset, capsys)
    assert f"{first.image} has the same path as {first.image}." in found
    (dataset / second.image).write_bytes((dataset / first.image).read_bytes())
    write_manifest(dataset, [first, dataclasses.replace(second, sha256=first.sha256), *rest])
    assert verify_problems(dataset, capsys) == [f"{second.image} has the same content as {first.image}."]


def test_face_box_outside_image_is_found(dataset, capsys):
    record = change_record(dataset, 0, face_box=(20.0, 8.0, 33.0, 20.0))
    assert verify_problems(dataset, capsys) == [
        f"{record.image}: the face box (20.0, 8.0, 33.0, 20.0) is not inside 32 x 32."
    ]


def test_identity_in_two_splits_is_found(dataset, capsys):
    record = change_record(dataset, 0, split="val")
    said = f"Identity {record.identity} is in the splits train, val; splits must not share."
    assert verify_problems(dataset, capsys) == [said]


def test_repeated_degradation_is_found(dataset, capsys):
    first, second = (n for n, r in enumerate(read_manifest(dataset)) if r.recipe)
    change_record(dataset, second, recipe=read_manifest(dataset)[first].recipe)
    assert [p for p in verify_problems(dataset, capsys) if "same degradation operator" in p]


def test_wrong_size_split_recipe_are_found(dataset, capsys):
    change_record(dataset, 0, width=33)
    change_record(dataset, 1, split="middle")
    change_record(dataset, -1, recipe=None)
    found = "\n".join(verify_problems(dataset, capsys))
    assert "recorded as (33, 32)" in found and "unknown split 'middle'" in found and "without a recipe" in found


def test_missing_dataset_is_reported(tmp_path, capsys):
    assert main(["data", "verify", str(tmp_path / "nowhere")]) == 1
    assert "build-inscene" in capsys.readouterr().err


def test_dataset_without_checksums_passes(dataset, capsys):
    (dataset / SUMS).unlink()
    assert verify_problems(dataset, capsys) == []


# Packed into archives


def test_pack_keeps_records_and_pixels(dataset, tmp_path, capsys):
    assert main(["data", "pack", str(dataset), str(tmp_path / "packed"), "--per-shard", "4"]) == 0
    assert "2 archives" in capsys.readouterr().out
    loose, packed = read_manifest(dataset), read_manifest(tmp_path / "packed")
    for before, after in zip(loose, packed, strict=True):
        assert (before.sha256, before.identity, before.split) == (after.sha256, after.identity, after.split)
        assert np.array_equal(read_stored(dataset, before.image), read_stored(tmp_path / "packed", after.image))
        assert (".tar/" in after.image) == (after.split == "train")
    assert verify_problems(tmp_path / "packed", capsys) == []
    for shard in ("train-000000", "train-000001"):
        pack(dataset, tmp_path / "again", per_shard=4) if not (tmp_path / "again").exists() else None
        name = f"shards/{shard}.tar"
        assert (tmp_path / "packed" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    with pytest.raises(FileExistsError, match="finished set"):
        pack(dataset, tmp_path / "packed")


@pytest.mark.parametrize("change", ["per_shard", "set", "nothing tells"])
def test_stopped_packing_resumes_same_way_only(dataset, tmp_path, change):
    packed = tmp_path / "packed"
    pack(dataset, packed, per_shard=4)
    before = {path: path.read_bytes() for path in packed.rglob("*") if path.is_file()}
    (packed / "metadata.parquet").unlink()  # as it is before the end
    if change == "set":
        write_manifest(dataset, read_manifest(dataset)[1:])
    elif change == "nothing tells":
        (packed / "build.json").unlink()
    with pytest.raises(FileExistsError, match="not packed from this set in this way"):
        pack(dataset, packed, per_shard=3 if change == "per_shard" else 4)
    if change == "per_shard":
        (packed / "shards/train-000001.tar").unlink()
        pack(dataset, packed, per_shard=4)
        assert {path: path.read_bytes() for path in packed.rglob("*") if path.is_file()} == before


def test_packing_passes_no_damage_on(dataset, tmp_path):
    first = read_manifest(dataset, "val")[0]
    for name in (read_manifest(dataset, "train")[0].image, first.image, first.lq):
        whole = (dataset / name).read_bytes()
        (dataset / name).write_bytes(whole[:-1] + b"x")
        with pytest.raises(ManifestError, match=f"{name} is not the recorded file"):
            pack(dataset, tmp_path / "packed", per_shard=4)
        (dataset / name).write_bytes(whole)
    pack(dataset, tmp_path / "packed", per_shard=4)
    assert list(verify(tmp_path / "packed")) == []


def test_packed_set_is_packed_again(dataset, tmp_path):
    pack(dataset, tmp_path / "fours", per_shard=4)
    pack(tmp_path / "fours", tmp_path / "threes", per_shard=3)
    assert list(verify(tmp_path / "threes")) == []
    same = [[r.sha256 for r in read_manifest(tmp_path / name)] for name in ("fours", "threes")]
    assert same[0] == same[1]


def test_compressed_archive_is_refused(dataset, tmp_path):
    import gzip

    pack(dataset, tmp_path / "packed")
    (shard,) = (tmp_path / "packed").rglob("*.tar")
    shard.write_bytes(gzip.compress(shard.read_bytes()))
    assert any("train-000000.tar" in problem and "missing" in problem for problem in verify(tmp_path / "packed"))


def test_shards_follow_webdataset_keys(dataset, tmp_path):
    import tarfile

    pack(dataset, tmp_path / "packed", per_shard=4)
    with tarfile.open(tmp_path / "packed/shards/train-000001.tar") as tar:
        names = tar.getnames()
        assert names == ["000000004.png", "000000004.json", "000000005.png", "000000005.json"]
        record = json.load(tar.extractfile("000000005.json"))
    assert record["image"] == "shards/train-000001.tar/000000005.png"
    assert set(record) == {field.name for field in dataclasses.fields(Record)}


def test_corrupt_shard_is_found(dataset, tmp_path, capsys):
    pack(dataset, tmp_path / "packed", per_shard=4)
    packed = tmp_path / "packed"
    archive = packed / "shards/train-000000.tar"
    content = bytearray(archive.read_bytes())
    content[700] ^= 1  # inside the first image
    archive.write_bytes(content)
    found = verify_problems(packed, capsys)
    assert any("000000000.png is not the recorded file" in problem for problem in found)
    assert any(problem.startswith("shards/train-000000.tar is not the recorded file") for problem in found)


def test_verify_continues_past_bad_images(dataset):
    record = read_manifest(dataset)[0]
    Image.new("RGB", (9, 9)).save(dataset / record.image)
    (dataset / read_manifest(dataset)[1].image).write_bytes(b"")
    assert len(list(verify(dataset))) == 2
