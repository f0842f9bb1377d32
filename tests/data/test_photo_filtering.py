"""Real photos are filtered stage by stage, rejected by name, and grouped by their faces."""

import csv
from pathlib import Path

import numpy as np
import pytest
from colour_identities import HUES, OPTIONS, ColourFaces, built, photo, reasons
from PIL import Image
from png_files import png_claiming

from face2scene.common.types import Face
from face2scene.data.building.build import BuildError
from face2scene.data.building.filters import FaceSize, HasFace, InFocus, Persons, Quality, Resolution, Sharp, Tagged
from face2scene.data.building.finalize import FinalizePlan, Selection
from face2scene.data.building.identity_clusters import Grouping
from face2scene.data.records import read_manifest
from face2scene.data.sources.photo_folder import Photos
from face2scene.data.sources.photo_table import PhotoTable
from face2scene.data.verify import verify

# What is bad


def write_truncated_jpeg(folder: Path) -> None:
    whole = photo(folder / "bad.jpg", seed=7).read_bytes()
    (folder / "bad.jpg").write_bytes(whole[: len(whole) // 2])


BAD_FILES = {
    "unreadable": (lambda f: (f / "bad.jpg").write_text("no image"), "unreadable"),
    "truncated": (write_truncated_jpeg, "unreadable"),
    "empty": (lambda f: (f / "bad.png").write_bytes(b""), "unreadable"),
    "zip bomb": (lambda f: (f / "bad.png").write_bytes(png_claiming(60_000, 60_000)), "unreadable: .*3.*limit|pixels"),
    "mislabelled": (lambda f: photo(f / "bad.png", format="JPEG"), "mislabelled: a JPEG named .png"),
    "unknown camera": (lambda f: (f / "bad.nef").write_bytes(b"II*\0" + bytes(4000)), "cannot be developed"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_file_is_quarantined(tmp_path, kind):
    photos = tmp_path / "photos"
    photo(photos / "good.png")
    make, words = BAD_FILES[kind]
    make(photos)
    summary = built(tmp_path / "set", Photos(photos, ColourFaces(), strict_suffix=True, **OPTIONS))
    assert summary.quarantined == 1 and sum(summary.images.values()) == 1
    ((name, (stage, reason)),) = reasons(tmp_path / "set").items()
    assert name.startswith("bad.") and stage == "input"
    import re

    assert re.search(words, reason), reason
    assert list(verify(tmp_path / "set")) == []


def test_non_utf8_name_is_quarantined(tmp_path):
    import os

    photos = tmp_path / "photos"
    good = photo(photos / "good.png")
    with open(os.fsencode(photos) + b"/caf\xe9.png", "wb") as file:
        file.write(photo(tmp_path / "other.png", seed=3).read_bytes())
    summary = built(tmp_path / "set", Photos(photos, ColourFaces(), **OPTIONS))
    assert summary.quarantined == 1 and summary.images == {"val": 1}
    assert reasons(tmp_path / "set") == {"caf\\xe9.png": ("input", "the name is not UTF-8: rename the file")}
    assert read_manifest(tmp_path / "set")[0].generator["file"] == good.name


def test_stray_files_are_no_photos(tmp_path):
    photos = tmp_path / "photos"
    photo(photos / "good.png")
    for name in (
        "@eaDir/good.png/SYNOPHOTO_THUMB_M.png",
        "#recycle/old.png",
        "$RECYCLE.BIN/a.png",
        ".thumbnails/a.png",
    ):
        photo(photos / name, seed=3)
    (photos / "Thumbs.db").write_bytes(b"stray")
    summary = built(tmp_path / "set", Photos(photos, ColourFaces(), **OPTIONS))
    assert summary.images == {"val": 1} and summary.quarantined == 0


def test_min_photos_per_identity(tmp_path):
    photos = tmp_path / "photos"
    for number in range(3):
        photo(photos / "ann" / f"{number}.png", seed=number)
    photo(photos / "ben" / "only.png", "ben")
    built(tmp_path / "set", Photos(photos, ColourFaces(), **OPTIONS), plan=FinalizePlan(min_photos=2))
    assert {record.identity for record in read_manifest(tmp_path / "set")} == {"photos_ann"}
    said = "too few photos of this person: 1, needed are 2"
    assert reasons(tmp_path / "set") == {"ben/only.png": ("identity", said)}
    assert list(verify(tmp_path / "set")) == []


def write_csv_table(
    path: Path, rows: list[dict], columns=("file", "identity", "split", "prompt", "width", "height")
) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_photo_table_rows_and_errors(tmp_path):
    photos = tmp_path / "photos"
    for number in range(5):
        photo(photos / f"{number}.png", "ann" if number < 3 else "ben", seed=number)
    rows = [{"file": f"{n}.png", "identity": "ann" if n < 3 else "ben", "split": "train"} for n in range(4)]
    rows[0] |= {"prompt": "A photo, with a comma.", "width": 90, "height": 60}
    rows[1] |= {"width": 91, "height": 60}
    rows += [{"file": "gone.png"}, {"file": "../secret.png"}, {"file": "2.png", "split": "middle"}]
    rows += [{"file": f"{'a' * 300}.png"}, {"file": "2.png", "width": "²", "height": 1}]
    table = write_csv_table(photos / "table.csv", rows)
    with open(table, "ab") as file:
        file.write(b"caf\xe9.png,,,,,\nshort.png,ann\n")
    source = PhotoTable(table, ColourFaces(), block=2, complete=True, **OPTIONS)
    assert len(source.items()) == 7  # eleven rows in blocks of two, and what no row names
    summary = built(tmp_path / "set", source)
    records = {record.generator["file"]: record for record in read_manifest(tmp_path / "set")}
    assert set(records) == {"0.png", "2.png", "3.png"}
    assert records["0.png"].prompt == "A photo, with a comma." and records["0.png"].identity == "photos_ann"
    assert records["0.png"].references == (records["2.png"].image,)
    left = reasons(tmp_path / "set")
    assert left["1.png"][1] == "not what the metadata say: 90 x 60 pixels, not 91 x 60"
    assert left["gone.png"][1] == "not what the metadata say: the table names a file that is not there"
    assert left["4.png"][1] == "not what the metadata say: no row of the table names this file"
    assert [left[f"row {n}"][1] for n in (6, 7, 9, 10, 11)] == [
        "bad row: the file '../secret.png' is not inside the folder",
        "bad row: unknown split 'middle'",
        "bad row: width and height must be whole numbers",
        "bad row: it is not UTF-8",
        "bad row: 2 fields, the table has 6 columns",
    ]
    assert summary.quarantined == 9 and {stage for stage, _ in left.values()} == {"input"}


def test_broken_table_header_is_one_sentence(tmp_path):
    (tmp_path / "table.csv").write_bytes(b"file,who\rann.png,ann\rben.png,ben\n")
    with pytest.raises(BuildError, match=r"first line of .*table\.csv is no list of columns"):
        PhotoTable(tmp_path / "table.csv", ColourFaces(), **OPTIONS).items()


# Judged


def test_stages_run_in_order(tmp_path):
    class Vetoes:
        name, thresholds = "veto", {"green": 0.5}

        def __call__(self, candidate):
            candidate.measured["green"] = float(candidate.photo[..., 1].mean())
            return "too green" if candidate.measured["green"] > 0.5 else ""

    photos = tmp_path / "photos"
    photo(photos / "ann.png"), photo(photos / "ben.png", "ben")
    photo(photos / "small.png", size=(20, 20))
    Image.new("RGB", (80, 80), "grey").save(photos / "nobody.png")
    tags = Tagged(lambda image: ["a red wall", "noon"])
    persons = Persons(lambda image: [(0, 0, image.shape[1], image.shape[0] * 0.9)], min_share=0.5)
    stages = [Resolution(32), HasFace(), persons, Vetoes(), tags]
    source = Photos(photos, ColourFaces(), stages=stages, **OPTIONS)
    built(tmp_path / "set", source, plan=FinalizePlan(report=True, thresholds={"green": 0.5}, stages=("face", "veto")))
    assert {name: stage for name, (stage, _) in reasons(tmp_path / "set").items()} == {
        "small.png": "resolution",
        "nobody.png": "face",
        "ben.png": "veto",
    }
    (record,) = read_manifest(tmp_path / "set")
    assert record.prompt == "A photo of a person, a red wall, noon."
    page = (tmp_path / "set" / "funnel.html").read_text()
    assert "1 of 4 images stayed" in page and page.count("data:image/jpeg") == 3
    assert "too green: 1" in page and "threshold 0.5" in page and page.index("face: 1") < page.index("veto: 1")
    assert list(verify(tmp_path / "set")) == []


def test_missing_metric_stops_before_build(tmp_path):
    photo(tmp_path / "photos/ann.png")

    def metric(name):
        raise RuntimeError("needs its weights: face2scene fetch pyiqa")

    stages = [HasFace(), Quality({"musiq": {"min": 50}, "other": False})]
    source = Photos(tmp_path / "photos", ColourFaces(), stages=stages, metric=metric, **OPTIONS)
    with pytest.raises(BuildError, match=r"(?s)musiq: needs its weights: face2scene fetch.*stage's `metrics`"):
        built(tmp_path / "set", source)
    assert not (tmp_path / "set" / "parts").exists()


def test_quality_thresholds_and_selection(tmp_path):
    for number in range(12):
        photo(tmp_path / "photos" / f"{number:02d}.png", seed=number)
    scores = iter([(n, -n * 2.0) for n in (3, 9, 1, 7, 11, 5, 2, 8, 4, 10, 6)] + [(99.0, 0.0)])
    drawn = {}

    def metric(name):
        def score(image):
            if name == "first":
                drawn["now"] = next(scores)
            import torch

            return torch.tensor([drawn["now"][0] if name == "first" else drawn["now"][1]])

        return score

    stages = [HasFace(), Quality({"first": {"max": 50}, "second": None})]
    source = Photos(tmp_path / "photos", ColourFaces(), stages=stages, metric=metric, **OPTIONS)
    plan = FinalizePlan(selection=Selection({"first": "higher", "second": "lower"}, keep=0.4))
    built(tmp_path / "set", source, plan=plan)
    kept = [record.generator["file"] for record in read_manifest(tmp_path / "set")]
    assert kept == ["01.png", "04.png", "07.png", "09.png"]  # 9, 11, 8, 10: the four best of eleven
    left = reasons(tmp_path / "set")
    assert left["11.png"] == ("quality", "low quality by first: 99.000, wanted max 50")
    assert sum(stage == "selection" for stage, _ in left.values()) == 7
    assert list(verify(tmp_path / "set")) == []


def test_people_of_similar_names_stay_apart(tmp_path):
    for person in ("ann b", "ann-b", "ann_b.", "cat_d"):
        photo(tmp_path / "photos" / person / "1.png", seed=len(person) + ord(person[3]))
    built(tmp_path / "set", Photos(tmp_path / "photos", ColourFaces(), **OPTIONS))
    identities = {record.identity for record in read_manifest(tmp_path / "set")}
    assert len(identities) == 4 and {"photos_ann-b", "photos_cat-d"} < identities


def test_unmeasurable_image_is_named(tmp_path):
    import torch

    photo(tmp_path / "photos/small.png", seed=1)
    photo(tmp_path / "photos/good.png", seed=2, size=(120, 120))

    def metric(name):
        def score(image):
            windows = torch.nn.functional.unfold(image, 80)  # an error of torch for smaller images
            return windows.mean()[None]

        return score

    stages = [HasFace(), Quality({"niqe": {"max": 50}})]
    options = OPTIONS | {"size": None}
    built(tmp_path / "set", Photos(tmp_path / "photos", ColourFaces(), stages=stages, metric=metric, **options))
    assert [record.generator["file"] for record in read_manifest(tmp_path / "set")] == ["good.png"]
    ((stage, reason),) = [reasons(tmp_path / "set")["small.png"]]
    assert stage == "quality"
    assert reason.startswith("no quality: niqe cannot measure it (RuntimeError: ")


def test_blurred_faces_are_filtered(photo):
    from scipy import ndimage

    from face2scene.data.building.photo_filtering import Candidate, CropSpec

    def verdicts(image, size):
        face = Face((0, 0, size, size), 0.9, np.zeros((5, 2)))
        candidate = Candidate("x", image, CropSpec(64), face)
        return [stage(candidate).split(":")[0] for stage in (Sharp(60), InFocus(0.02))], candidate.measured

    head = photo[60:220, 140:300]  # the astronaut's, sharp
    enlarged = np.stack([ndimage.zoom(head[..., c], 2, order=1) for c in range(3)], -1).astype(np.float32)
    assert verdicts(head, 160)[0] == ["", ""]
    assert verdicts(head[::2, ::2].copy(), 80)[0] == ["", ""]
    assert verdicts(enlarged, 320)[0] == ["", ""]  # the same face at twice the size
    for sigma in (4, 8):
        blurred = np.stack([ndimage.gaussian_filter(head[..., c], sigma) for c in range(3)], -1)
        assert verdicts(blurred, 160)[0] == ["blurred face", "out of focus"]
        grainy = (blurred + np.random.default_rng(0).normal(0, 0.004, blurred.shape)).clip(0, 1).astype(np.float32)
        assert verdicts(grainy, 160)[0][1] == "out of focus" or sigma == 4


def test_edge_and_directional_blur_estimates():
    from scipy import ndimage

    from face2scene.data.building.sharpness import directional_blur, edge_blur

    y, x = np.mgrid[0:200, 0:200]
    disc = sum(((x - a) ** 2 + (y - b) ** 2 < r * r) for a, b, r in ((60, 60, 40), (140, 130, 45), (60, 150, 25)))
    disc = disc.astype(np.float32) * 0.8 + 0.1
    for sigma in (1.0, 2.0, 3.0):
        blurred = ndimage.gaussian_filter(disc, sigma)
        assert edge_blur(np.repeat(blurred[..., None], 3, 2)) == pytest.approx(sigma, rel=0.2)
    moved = ndimage.gaussian_filter(disc, 0.8)
    still = directional_blur(np.repeat(moved[..., None], 3, 2))
    moved = ndimage.uniform_filter1d(moved, 11, axis=1)
    moving = directional_blur(np.repeat(moved[..., None], 3, 2))
    assert still[0] < 1.5 < 2 < moving[0] and moving[2] in (0.0, 22.5, 157.5)


# Who is who


def test_identities_are_clustered_and_split(tmp_path):
    photos = tmp_path / "photos"
    for number in range(18):
        photo(photos / f"{number:02d}.png", list(HUES)[number % 3], seed=number)
    plan = FinalizePlan(grouping=Grouping(0.8), val_share=0.5)
    source = Photos(photos, ColourFaces(), identity="unknown", split=None, **OPTIONS)
    built(tmp_path / "set", source, plan=plan)
    records = read_manifest(tmp_path / "set")
    groups = {}
    for record in records:
        groups.setdefault(record.identity, set()).add(int(record.generator["file"][:2]) % 3)
    assert len(groups) == 3 and all(len(people) == 1 for people in groups.values())
    assert len({(r.identity, r.split) for r in records}) == 3
    assert all(r.image.startswith(f"images/{r.split}/") for r in records)
    assert all((r.lq is not None) == (r.split == "val") for r in records)
    assert not (tmp_path / "set" / "candidates").exists()
    assert list(verify(tmp_path / "set")) == []
    page = (tmp_path / "set" / "identities.html").read_text()
    assert page.count("<h2") == 3 and all(record.image in page for record in records)


def test_review_corrections_are_applied():
    vectors = np.array([[1, 0], [0.99, 0.14], [0, 1], [0.1, 0.99]])
    names = ["a", "b", "c", "d"]
    assert Grouping(0.8).groups(vectors, names) == [0, 0, 1, 1]
    assert Grouping(0.8, together=[["a", "c"]]).groups(vectors, names) == [0, 0, 0, 0]
    assert Grouping(0.8, apart=[["b"]], out=["d"]).groups(vectors, names) == [0, 1, 2, None]
    with pytest.raises(ValueError, match="not in the collection: \\['x'\\]"):
        Grouping(0.8, out=["x"]).groups(vectors, names)
    with pytest.raises(ValueError, match="max_faces"):
        Grouping(0.8, max_faces=3).groups(vectors, names)


def test_face_size_is_measured_after_resize(tmp_path):
    photo(tmp_path / "photos/ann.png", size=(320, 320))
    source = Photos(tmp_path / "photos", ColourFaces(), stages=[HasFace(), FaceSize(12)], **OPTIONS)
    with pytest.raises(BuildError, match="No image"):
        built(tmp_path / "set", source)  # a third of 32 pixels is 11
    assert reasons(tmp_path / "set")["ann.png"][1] == "face too small: 11 pixels, needed are 12"
