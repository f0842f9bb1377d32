"""Scoring regions."""

import shutil

import numpy as np
import pytest
import torch
from scored_folders import BATCH, SCORERS, SIZE, score_in_two_processes, write_images

from face2scene.common.files import read_json, write_json
from face2scene.eval.scoring.pairing import ScoreError, boxes_of
from face2scene.eval.scoring.regions import cut
from face2scene.eval.scoring.results import read_scores
from face2scene.eval.scoring.score import score_folder, score_folders
from face2scene.eval.scoring.significance import compare
from face2scene.image_io.arrays import write_png


def test_face_and_background_add_up(tmp_path):
    gt, made = write_images(tmp_path / "truth", "abc"), write_images(tmp_path / "made", "abc", 0.1)
    boxes = {name: (10.0, 5.0, 30.0, 25.0) for name in "abc"}
    options = {"scorers": SCORERS, "boxes": boxes, "regions": ("whole", "face", "background")}
    scores = score_folder(made, gt, ["dists", "fid"], tmp_path / "out", **options)
    found = {region: scores["regions"][region]["means"]["dists"] for region in ("face", "background")}
    whole, share = scores["means"]["dists"], 400 / (SIZE[0] * SIZE[1])
    assert whole == pytest.approx(found["background"] + share * found["face"], abs=1e-6)
    assert read_json(tmp_path / "out/face/scores.json")["sets"]["fid"] > 0
    assert score_folder(made, gt, ["dists", "fid"], tmp_path / "out", **options) == scores


@pytest.mark.parametrize("processes", [1, 2])
def test_flagged_image_is_in_no_region(processes, tmp_path):
    gt, made = write_images(tmp_path / "truth", "abc"), write_images(tmp_path / "made", "abc", 0.1)
    write_png(made / "b.png", np.zeros((*SIZE, 3), np.float32))
    options = {"boxes": {name: (10.0, 5.0, 30.0, 25.0) for name in "abc"}, "regions": ("whole", "face", "background")}
    rows = {"it": (made, tmp_path / "out")}
    for _ in range(2):  # measured, and recalled
        if processes == 1:
            scores = score_folders(rows, gt, ["dists"], scorers=SCORERS, **options)["it"]
        else:
            scores = score_in_two_processes(rows, gt, ["dists"], **options)[0]["it"]
        for region in ("face", "background"):
            found = read_json(tmp_path / "out" / region / "scores.json")
            assert list(found["pictures"]["flagged"]) == ["b"] and found["means"] == {} and not found["complete"]
            assert scores["regions"][region]["counts"]["scored"] == 2
            assert read_scores(tmp_path / "out" / region)[1]["b"] == {}


def test_moved_box_is_rescored(tmp_path):
    gt, made = write_images(tmp_path / "truth", "a"), write_images(tmp_path / "made", "a", 0.1)
    options = {"scorers": SCORERS, "regions": ("whole", "face")}
    means = [
        score_folder(made, gt, ["dists"], tmp_path / "out", boxes={"a": box}, **options)["regions"]["face"]["means"]
        for box in ((0, 0, 10, 10), (20, 20, 40, 40))
    ]
    assert means[0] != means[1]


def test_moved_box_rescores_identity(tmp_path):
    def corner(images, gts, boxes):
        return torch.tensor([-1.0 if box is None else box[0] / 100 for box in boxes], dtype=torch.float64)

    gt, made = write_images(tmp_path / "truth", "ab"), write_images(tmp_path / "made", "ab", 0.1)
    scorers = {**SCORERS, "id": corner}
    face, other = (10, 0, 40, 40), (20, 0, 40, 40)
    for boxes, mean in (({}, -1), ({"a": face, "b": other}, 0.15), ({"a": face}, -0.45)):
        scores = score_folder(made, gt, ["id", "dists"], tmp_path / "out", scorers=scorers, boxes=boxes)
        assert scores["means"]["id"] == pytest.approx(mean)
    score_folder(made, gt, ["id"], tmp_path / "other", scorers=scorers, boxes={"a": other})
    with pytest.raises(ScoreError, match=r"id of .* follow another protocol"):
        compare(tmp_path / "out", tmp_path / "other")


def test_invalid_region_boxes_are_refused(tmp_path):
    gt, made = write_images(tmp_path / "truth", "ab"), write_images(tmp_path / "made", "ab")
    options = {"scorers": SCORERS, "regions": ("whole", "face")}
    with pytest.raises(ScoreError, match=r"1 images have no face box.*: b\. Give a JSON file"):
        score_folder(made, gt, ["dists"], tmp_path / "out", boxes={"a": (0, 0, 9, 9)}, **options)
    with pytest.raises(ValueError, match="outside the 48 x 40"):
        cut("face", torch.zeros(3, *SIZE), torch.zeros(3, *SIZE), (60, 0, 70, 9))
    write_json(tmp_path / "boxes.json", {"a": [0, 0, 9]})
    with pytest.raises(ScoreError, match="does not map names to boxes"):
        boxes_of(tmp_path, file=tmp_path / "boxes.json")


def test_gt_digest_covers_names_and_boxes(tmp_path):
    gt, made = write_images(tmp_path / "truth", "abc"), write_images(tmp_path / "made", "ab", 0.1)
    options = {"scorers": SCORERS, "regions": ("whole", "face"), "batch_pixels": BATCH}
    boxes = {"a": (0, 0, 9, 9), "b": (0, 0, 9, 9), "c": (0, 0, 9, 9)}

    def digests(boxes):
        score_folder(made, gt, ["dists"], tmp_path / "out", boxes=boxes, **options)
        return [read_json(tmp_path / "out" / place / "scores.json")["truth"] for place in ("", "face")]

    before, moved = digests(boxes), digests(boxes | {"c": (0, 0, 9, 8)})
    assert before[0] == moved[0] and before[0]["pictures"] == 3 and before[1] != moved[1]
    write_images(tmp_path / "other", "abc", 0.1)
    shutil.copy(tmp_path / "other/c.png", gt / "c.png")  # of which the row has no image
    assert digests(boxes)[0] != before[0]
