"""Names in a set's files lead inside its folder: everything else is refused, by every reader."""

import dataclasses
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from drawn_sets import SMALL, build_drawn, drawn_source
from fake_ref_fr import Negative
from PIL import Image
from png_files import png_claiming

from face2scene.cli.main import main
from face2scene.common.reproducibility import REPOSITORY
from face2scene.data.building.build import build, rejected_rows
from face2scene.data.face_pair_batches import FacePairBatches
from face2scene.data.paths import FolderPaths, OutsideFolder
from face2scene.data.precompute import faces_of
from face2scene.data.records import ManifestError, Records, read_manifest, stream_manifest, write_manifest, write_sums
from face2scene.data.redegrade import redegrade
from face2scene.data.scene_batches import SceneBatches, held_out
from face2scene.data.shards import pack
from face2scene.data.verify import verify


@pytest.fixture
def dataset(tmp_path) -> Path:
    build_drawn(tmp_path / "set", [drawn_source(side=32, val_people=1)])
    (tmp_path / "secret.png").write_bytes((tmp_path / "set" / read_manifest(tmp_path / "set")[0].image).read_bytes())
    return tmp_path / "set"


def rename(folder: Path, split: str, **changes) -> None:
    """Give the first record of a split other names."""
    records = read_manifest(folder)
    first = next(n for n, record in enumerate(records) if record.split == split)
    records[first] = dataclasses.replace(records[first], **changes)
    write_manifest(folder, records)


BATCHES = {"crop": 16, "batch": 1, "negative_prob": 0, "token_dropout": 0, "seed": 0}
READERS = {
    "Records": lambda folder, out: Records(folder),
    "stream_manifest": lambda folder, out: list(stream_manifest(folder)),
    "verify": lambda folder, out: list(verify(folder)),
    "pack": lambda folder, out: pack(folder, out),
    "redegrade": lambda folder, out: redegrade(folder, out, SMALL, settings={}),
    "precompute": lambda folder, out: faces_of(folder, SMALL, size=32, recipes=1, splits=("train", "val")),
    "scene batches": lambda folder, out: SceneBatches(folder, SMALL, Negative(), **BATCHES),
    "held out": lambda folder, out: held_out(folder, Negative(), count=1, seed=0),
    "face pairs": lambda folder, out: FacePairBatches.from_manifest(
        folder, "val", SMALL, operators=2, images=1, crop=16, seed=0
    ),
}
NAMES = ["../secret.png", "images/../../secret.png", "/etc/hostname", "images\\..\\x.png", "", "a\0b", "x.tar/../../b"]


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_foreign_names(dataset, tmp_path, reader):
    for field, value in (("image", "../secret.png"), ("lq", "/etc/hostname"), ("references", ("../secret.png",))):
        shutil.copytree(dataset, tmp_path / field)
        rename(tmp_path / field, "val", **{field: value})
        with pytest.raises(ManifestError, match=r"refused.*not lead to a place inside"):
            READERS[reader](tmp_path / field, tmp_path / "out" / field)
        assert not (tmp_path / "out" / field).exists() or not list((tmp_path / "out" / field).rglob("*.png"))


def test_one_module_reads_metadata():
    package = REPOSITORY / "face2scene"
    users = {path.name for path in package.rglob("*.py") if "import pyarrow" in path.read_text(encoding="utf-8")}
    assert users == {"records.py"}  # whose readers are all in READERS, and check every name


@pytest.mark.parametrize("name", NAMES)
def test_foreign_names_are_refused(dataset, name):
    with pytest.raises(OutsideFolder):
        FolderPaths(dataset)(name)


def test_links_out_of_the_folder_are_refused(dataset, tmp_path):
    image = read_manifest(dataset)[0].image
    moved = (dataset / image).rename(tmp_path / "moved.png")
    os.symlink(moved, dataset / image)
    with pytest.raises(ManifestError, match="refused"):
        read_manifest(dataset)
    (dataset / image).unlink()
    moved.rename(dataset / image)
    (dataset / "images").rename(tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", dataset / "images")
    with pytest.raises(ManifestError, match="refused"):
        read_manifest(dataset)


def test_links_inside_and_to_the_folder_are_kept(dataset, tmp_path):
    image = dataset / read_manifest(dataset)[0].image
    image.rename(image.with_name("target.png"))
    os.symlink("target.png", image)
    os.symlink(dataset, tmp_path / "link")
    assert len(read_manifest(tmp_path / "link")) == len(read_manifest(dataset)) == 6


def test_link_is_followed_before_it_is_linked(dataset, tmp_path):
    image = dataset / read_manifest(dataset, "val")[0].image
    image.rename(image.with_name("target.png"))
    os.symlink(image.with_name("target.png"), image)
    redegrade(dataset, tmp_path / "again", SMALL, settings={})
    assert list(verify(tmp_path / "again")) == []


def test_checksums_outside_the_folder_are_named(dataset, capsys):
    write_sums(dataset, [("../secret.png", "0" * 64)])
    assert any("'../secret.png' does not lead to a place inside" in problem for problem in verify(dataset))
    rename(dataset, "train", image="../secret.png")
    assert main(["data", "verify", str(dataset)]) == 1
    assert "refused" in capsys.readouterr().err


def test_published_paths_outside_source_are_rejected(tmp_path):
    import datasets

    from face2scene.data.sources.released import Released

    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    (tmp_path / "private.png").write_bytes(buffer.getvalue())
    rows = [
        {"image": {"bytes": buffer.getvalue(), "path": None}, "who": "ann"},
        {"image": {"bytes": None, "path": str(tmp_path / "private.png")}, "who": "ben"},
        {"image": {"bytes": b"", "path": None}, "who": "cat"},
        {"image": {"bytes": png_claiming(60_000, 60_000), "path": None}, "who": "dan"},
        {"image": {"bytes": buffer.getvalue(), "path": None}, "who": "../private"},
    ]
    features = datasets.Features({"image": datasets.Image(), "who": datasets.Value("string")})
    (tmp_path / "release").mkdir()
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "release/train-00000-of-00001.parquet")
    options = {"fields": {"image": "image", "identity": "who"}, "splits": {"train": "train"}, "licence": "none"}
    (tmp_path / "private").mkdir(), (tmp_path / "celebs").mkdir()
    shutil.copy(tmp_path / "private.png", tmp_path / "private")
    source = Released(tmp_path / "release", **options, references=tmp_path / "celebs")
    build(tmp_path / "set", [source], settings={}, space=None)
    assert [record.identity for record in read_manifest(tmp_path / "set")] == ["ann"]
    reasons = [row["reason"] for row in rejected_rows(tmp_path / "set")]
    for reason, words in zip(reasons, ("to a place inside", "empty", "unreadable", "to a place inside"), strict=True):
        assert words in reason
