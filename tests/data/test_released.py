"""A published set with any field names is converted to records."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from png_files import png_bytes

from face2scene.data.building.build import BuildError, build, rejected_rows
from face2scene.data.records import read_manifest
from face2scene.data.sources.released import Released
from face2scene.data.verify import verify


def make_image(seed: int, size=(32, 40)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture
def parquet_folder(tmp_path) -> Path:
    """A set in parquet with other field names, relative xywh boxes, flat landmarks, and pairs in its val split."""
    import datasets

    folder = tmp_path / "release"
    folder.mkdir()
    points = (np.arange(136) / 136).tolist()
    for split, count in (("train", 5), ("validation", 3)):
        rows = [
            {
                "target": {"bytes": png_bytes(make_image(n if split == "train" else n + 10)), "path": None},
                "input": {"bytes": png_bytes(make_image(n + 100, (16, 20))), "path": None}
                if split != "train"
                else None,
                "caption": f"Scene {n}.",
                "file": f"iden_{n // 2:05d}_img_7_sample_{n}_repeat_1.png",
                "meta": {"bbox": [0.25, 0.25, 0.5, 0.5], "lmk": points},
            }
            for n in range(count)
        ]
        if split == "train":
            rows[3]["target"]["bytes"] = rows[3]["target"]["bytes"][:90]
            rows[4]["meta"]["bbox"] = [0.9, 0.9, 0.5]
        features = datasets.Features(
            {
                "target": datasets.Image(),
                "input": datasets.Image(),
                "caption": datasets.Value("string"),
                "file": datasets.Value("string"),
                "meta": {
                    "bbox": datasets.List(datasets.Value("float64")),
                    "lmk": datasets.List(datasets.Value("float64")),
                },
            }
        )
        made = datasets.Dataset.from_list(rows, features=features)
        made.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


MAPPING = {
    "fields": {
        **{"image": "target", "lq": "input", "name": "file", "prompt": "caption"},
        **{"face_box": "meta.bbox", "landmarks_68": "meta.lmk"},
    },
    "splits": {"train": "train", "validation": "val"},
    "box": "xywh",
    "units": "relative",
    "identity_pattern": r"iden_(\d+)_",
    "licence": "as published",
    "chunk_size": 2,
}


def test_field_mapping_of_parquet(parquet_folder, tmp_path):
    for person in ("00000", "00001"):
        (tmp_path / "celebs" / person).mkdir(parents=True)
        make_image(int(person) + 50).save(tmp_path / "celebs" / person / "7.png")
    source = Released(parquet_folder, **MAPPING, references=tmp_path / "celebs")
    summary = build(tmp_path / "set", [source], settings={}, space=None)
    assert dict(summary.images) == {"train": 3, "val": 3} and summary.pairs == 3 and summary.quarantined == 2
    first = read_manifest(tmp_path / "set", "val")[0]
    assert (first.identity, first.prompt, first.face_box) == ("00000", "Scene 0.", (8.0, 10.0, 24.0, 30.0))
    assert len(first.landmarks_68) == 68 and first.landmarks_68[1] == pytest.approx(
        (2 / 136 * 32, 3 / 136 * 40), abs=0.01
    )
    assert first.references == ("references/people/00000/7.png",)
    assert first.recipe == {"operators": [], "origin": f"came with {parquet_folder}"}
    with Image.open(tmp_path / "set" / first.image) as stored:
        assert np.array_equal(np.asarray(stored), np.asarray(make_image(10)))
    with Image.open(tmp_path / "set" / first.lq) as stored:
        assert stored.size == (32, 40)
    left = {row["name"].split("_sample_")[1][0]: row["reason"].split(":")[0] for row in rejected_rows(tmp_path / "set")}
    assert left == {"3": "unreadable", "4": "bad metadata"}


def test_imagefolder_is_read(tmp_path):
    folder = tmp_path / "release" / "train"
    folder.mkdir(parents=True)
    with open(folder / "metadata.jsonl", "w") as lines:
        for number in range(3):
            make_image(number).save(folder / f"{number}.png")
            lines.write(json.dumps({"file_name": f"{number}.png", "who": "ann", "text": f"Scene {number}."}) + "\n")
    source = Released(
        tmp_path / "release",
        **{"fields": {"image": "image", "identity": "who", "prompt": "text"}, "splits": {"train": "train"}},
        licence="as published",
    )
    build(tmp_path / "set", [source], settings={}, space=None)
    records = read_manifest(tmp_path / "set")
    assert [(r.identity, r.prompt, len(r.references)) for r in records] == [("ann", f"Scene {n}.", 2) for n in range(3)]
    assert list(verify(tmp_path / "set")) == []


def test_wrong_mapping_lists_fields(parquet_folder):
    wrong = MAPPING | {"fields": {"image": "photo"}}
    with pytest.raises(BuildError, match=r"has the fields \['caption', 'file'.*not \['photo'\]"):
        Released(parquet_folder, **wrong).items()
    with pytest.raises(BuildError, match=r"has the splits.*not \['test'\]"):
        Released(parquet_folder, **MAPPING | {"splits": {"test": "val"}}).items()
    with pytest.raises(ValueError, match="unknown names"):
        Released(parquet_folder, **MAPPING | {"fields": {"image": "target", "face": "x"}})
    with pytest.raises(BuildError, match="cannot be read as a published set"):
        Released(parquet_folder / "gone", **MAPPING).items()


def test_corrupt_file_keeps_its_start(parquet_folder):
    source, kept = Released(parquet_folder, **MAPPING), {"bytes": png_bytes(make_image(0)), "path": None}

    def rows(error):
        yield 0, {"target": kept, "file": "iden_00007_img_7.png"}
        raise error

    for error in (ValueError("bad page"), OSError("corrupt snappy data")):
        first, cut = source._results(rows(error), "train", "k")
        assert first.identity == "00007" and (cut.stage, cut.reason.split(":")[0]) == ("input", "file cut")
    source.source = "owner/name"  # of a hub
    with pytest.raises(ConnectionError):
        list(source._results(rows(ConnectionError("no network")), "train", "k"))
