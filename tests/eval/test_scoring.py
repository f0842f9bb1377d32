"""Scores, tables and the quickstart's page, on tiny images; the metrics against published values."""

import shutil
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from scored_folders import SCORERS, SIZE, MeanColourDistance, mean_abs_error, write_images

from face2scene.common.files import read_json
from face2scene.common.reproducibility import REPOSITORY
from face2scene.data.records import read_manifest, write_manifest
from face2scene.degradation.recipe import OPERATORS
from face2scene.eval.metrics import pyiqa_backend
from face2scene.eval.metrics.registry import METRICS
from face2scene.eval.reports import quickstart_page
from face2scene.eval.reports.quickstart import quickstart_report
from face2scene.eval.scoring.pairing import ScoreError
from face2scene.eval.scoring.results import read_scores_csv
from face2scene.eval.scoring.score import score_folder, score_folders
from face2scene.eval.tables import render
from face2scene.image_io.arrays import read_tensor, write_png


def near_uniform_image(*colour):
    """A colour with noise of one step of 8 bits."""
    return (np.random.default_rng(0).integers(0, 2, (*SIZE, 3)) + np.array(colour)).astype(np.float32) / 255


def test_psnr_has_no_ceiling():
    gt = torch.rand(1, 3, 256, 256).mul(255).round() / 255
    image = gt.clone()
    image[0, 0, 0, 0] = (gt[0, 0, 0, 0] * 255 + (1 if gt[0, 0, 0, 0] < 0.5 else -1)) / 255
    assert METRICS["psnr"].build()(image, gt).item() == pytest.approx(101.0668, abs=1e-4)  # one level in 196,608
    assert METRICS["psnr"].build()(gt, gt).item() == METRICS["psnr_y"].build()(gt, gt).item() == float("inf")


def test_equal_image_is_left_out_of_mean_psnr(tmp_path):
    gt, made = write_images(tmp_path / "truth", "abc"), write_images(tmp_path / "made", "abc", noise=0.1)
    shutil.copy(gt / "b.png", made / "b.png")
    for _ in range(2):  # measured, and recalled
        scores = score_folder(made, gt, ["psnr", "psnr_y", "ssim"], tmp_path / "out")
        rows = read_scores_csv(tmp_path / "out/scores.csv")
        assert scores["complete"] and scores["undefined"]["psnr"].keys() == {"b"} and rows["b"] == {"ssim": 1}
        assert scores["means"]["psnr"] == pytest.approx((rows["a"]["psnr"] + rows["c"]["psnr"]) / 2, abs=1e-6)
    scores = score_folder(gt, gt, ["psnr"], tmp_path / "same")
    assert scores["complete"] and scores["means"] == {} and len(scores["undefined"]["psnr"]) == 3


def test_scores_pair_by_name(tmp_path):
    gt = write_images(tmp_path / "truth", ["a", "b", "c"])
    made = write_images(tmp_path / "made", ["a", "b", "c"], noise=0.1)
    scores = score_folder(made, gt, ["psnr", "lpips"], tmp_path / "out", scorers=SCORERS)
    rows = read_scores_csv(tmp_path / "out/scores.csv")
    assert list(rows) == ["a", "b", "c"] and list(rows["a"]) == ["psnr", "lpips"]
    by_hand = mean_abs_error(read_tensor(made / "b.png")[None], read_tensor(gt / "b.png")[None]).item()
    assert rows["b"]["lpips"] == pytest.approx(by_hand, abs=1e-6)
    assert scores["complete"] and scores["counts"]["scored"] == 3
    assert scores["means"]["lpips"] == pytest.approx(np.mean([row["lpips"] for row in rows.values()]), abs=1e-6)
    assert scores["protocol"]["lpips"]["protocol"].startswith("v0.1, AlexNet") and scores["versions"]["torch"]
    assert read_json(tmp_path / "out/scores.json") == scores


def test_batching_changes_no_score(tmp_path):
    gt = write_images(tmp_path / "truth", "abcde")
    rows = {s: (write_images(tmp_path / s, "abcde", noise=0.1, seed=n), tmp_path / f"o{s}") for n, s in enumerate("xy")}
    together = score_folders(rows, gt, ["lpips"], scorers=SCORERS, batch_pixels=3 * SIZE[0] * SIZE[1])
    alone = score_folder(rows["y"][0], gt, ["lpips"], tmp_path / "alone", scorers=SCORERS, batch_pixels=1)
    assert together["y"]["means"]["lpips"] == pytest.approx(alone["means"]["lpips"], abs=1e-7)


def test_rescoring_computes_only_changes(tmp_path):
    gt, made = write_images(tmp_path / "truth", "abc"), write_images(tmp_path / "made", "abc", noise=0.1)
    seen = []

    def counting(images, gts):
        seen.append(len(images))
        return mean_abs_error(images, gts)

    score_folder(made, gt, ["lpips"], tmp_path / "out", scorers={"lpips": counting})
    first = (tmp_path / "out/scores.csv").read_text()
    (tmp_path / "out/scores.csv").write_text("name,lpips\na,0\n")  # edited by hand
    score_folder(made, gt, ["lpips"], tmp_path / "out", scorers={"lpips": counting})
    assert sum(seen) == 3 and (tmp_path / "out/scores.csv").read_text() == first
    shutil.copy(gt / "b.png", made / "b.png")
    again = score_folder(made, gt, ["lpips"], tmp_path / "out", scorers={"lpips": counting})
    assert sum(seen) == 4 and again["complete"]
    assert read_scores_csv(tmp_path / "out/scores.csv")["b"]["lpips"] == 0


def test_added_metric_is_computed_alone(tmp_path):
    gt, made = write_images(tmp_path / "truth", "abc"), write_images(tmp_path / "made", "abc", noise=0.1)
    seen, sets = [], MeanColourDistance()
    counting = {**SCORERS, "lpips": lambda x, y: (seen.append(len(x)), mean_abs_error(x, y))[1], "fid": sets}
    score_folder(made, gt, ["lpips", "fid"], tmp_path / "out", scorers=counting)
    first = read_scores_csv(tmp_path / "out/scores.csv")
    shutil.copy(gt / "b.png", made / "b.png")
    score_folder(made, gt, ["lpips", "fid", "psnr"], tmp_path / "out", scorers=counting)
    assert sum(seen) == 3 + 1 and sets.seen == 6 + 2
    after = read_scores_csv(tmp_path / "out/scores.csv")
    assert after["b"]["lpips"] == 0 and after["a"]["lpips"] == first["a"]["lpips"] and "psnr" in after["c"]


@pytest.mark.parametrize("what", ["pyiqa_version", "identity"])
def test_new_version_or_weights_rescore(what, tmp_path, monkeypatch):
    gt, made = write_images(tmp_path / "truth", "abc"), write_images(tmp_path / "made", "abc", noise=0.1)
    seen = []

    def counting(images, gts):
        seen.append(len(images))
        return mean_abs_error(images, gts)

    home = tmp_path / "weights/torch_home" / pyiqa_backend.LPIPS_ALEX
    home.parent.mkdir(parents=True)
    home.write_bytes(b"a network")
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path / "weights"))
    for changed, count in ((False, 3), (False, 3), (True, 6), (True, 6)):
        if changed:
            monkeypatch.setattr(pyiqa_backend, what, lambda *_: "another")
        score_folder(made, gt, ["lpips"], tmp_path / "out", scorers={"lpips": counting})
        assert sum(seen) == count


def test_missing_prediction_is_incomplete(tmp_path):
    gt, made = write_images(tmp_path / "truth", "abc"), write_images(tmp_path / "made", "abx", noise=0.1)
    scores = score_folder(made, gt, ["lpips"], tmp_path / "out", scorers=SCORERS)
    assert not scores["complete"] and scores["means"] == {} and "lpips" in scores["means_of_scored_only"]
    assert scores["pictures"]["missing"] == ["c"] and scores["pictures"]["without_truth"] == ["x"]
    row = render.row_from_scores("ours", tmp_path / "out/scores.json", ["lpips"])
    assert not row.ranked and row.cells["lpips"] == render.NOT_MEASURED and "2 of 3" in row.note


def test_two_mixed_sets_are_incomplete(tmp_path, caplog):
    gt, made = write_images(tmp_path / "truth", "ab"), write_images(tmp_path / "made", "abxy", noise=0.1)
    scores = score_folder(made, gt, ["lpips"], tmp_path / "out", scorers=SCORERS)
    assert not scores["complete"] and scores["means"] == {} and "lpips" in scores["means_of_scored_only"]
    assert "2 images have no ground truth, so two sets are mixed (options gt, split): x, y" in caplog.text
    row = render.row_from_scores("ours", tmp_path / "out/scores.json", ["lpips"])
    assert not row.ranked and row.note == "incomplete: 2 of 2 images, and 2 of another set"


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (np.zeros((*SIZE, 3), np.float32), "one colour"),
        (np.full((*SIZE, 3), (0.9, 0.2, 0.5), np.float32), "one colour"),
        (near_uniform_image(0, 0, 0), "one colour"),
        (near_uniform_image(200, 40, 90), "one colour"),
        (2 * near_uniform_image(0, 0, 0), "black"),
    ],
)
def test_uniform_prediction_is_flagged(image, why, tmp_path):
    gt, made = write_images(tmp_path / "truth", "ab"), write_images(tmp_path / "made", "ab", noise=0.1)
    write_png(made / "a.png", image)
    scores = score_folder(made, gt, ["lpips"], tmp_path / "out", scorers=SCORERS)
    assert why in scores["pictures"]["flagged"]["a"] and not scores["complete"]
    assert read_scores_csv(tmp_path / "out/scores.csv")["a"] == {}
    write_png(gt / "a.png", image)  # fine where the ground truth is of one colour too
    assert score_folder(made, gt, ["lpips"], tmp_path / "out", scorers=SCORERS)["complete"]


def test_nonfinite_score_is_flagged(tmp_path):
    gt, made = write_images(tmp_path / "truth", "ab"), write_images(tmp_path / "made", "ab", noise=0.1)
    nan = {"lpips": lambda x, y: torch.tensor([float("nan"), 1.0])[: len(x)]}
    scores = score_folder(made, gt, ["lpips"], tmp_path / "out", scorers=nan)
    assert "lpips is nan" in scores["pictures"]["flagged"]["a"] and scores["counts"]["scored"] == 1


def test_size_mismatch_is_refused(tmp_path):
    gt, made = write_images(tmp_path / "truth", "ab"), write_images(tmp_path / "made", "ab", size=(32, 36))
    with pytest.raises(ScoreError, match=r"a\.png is 36 x 32, ground truth 48 x 40"):
        score_folder(made, gt, ["lpips"], tmp_path / "out", scorers=SCORERS)


def test_jpeg_duplicate_or_empty_is_refused(tmp_path):
    gt = write_images(tmp_path / "truth", "ab")
    made = write_images(tmp_path / "made", "ab")
    Image.open(made / "a.png").save(made / "a.jpg")
    with pytest.raises(ScoreError, match=r"only PNG.*a\.jpg"):
        score_folder(made, gt, ["lpips"], scorers=SCORERS)
    (made / "a.jpg").unlink()
    write_images(made / "again", "a")
    with pytest.raises(ScoreError, match=r"two images have one name \(made/a\.png and again/a\.png\)"):
        score_folder(made, gt, ["lpips"], scorers=SCORERS)
    (tmp_path / "none").mkdir()
    with pytest.raises(ScoreError, match="no PNG in"):
        score_folder(tmp_path / "none", gt, ["lpips"], scorers=SCORERS)


def test_set_metric_reads_each_image_once(tmp_path):
    gt = write_images(tmp_path / "truth", "ab")
    rows = {s: (write_images(tmp_path / s, "ab", noise=0.1, seed=n), tmp_path / f"o{s}") for n, s in enumerate("xy")}
    sets = MeanColourDistance()
    first = score_folders(rows, gt, ["fid"], scorers={"fid": sets})
    assert sets.seen == 2 + 2 * 2 and first["x"]["sets"]["fid"] > 0
    assert score_folders(rows, gt, ["fid"], scorers={"fid": sets}) == first and sets.seen == 6


def test_page_names_every_operator(quickstart_run):
    run, places = quickstart_run
    assert quickstart_page.OPERATOR_WORDS.keys() == OPERATORS.keys() - {"RestoreSize"}
    for kind, (_, number) in quickstart_page.OPERATOR_WORDS.items():
        assert number in {one.name for one in fields(OPERATORS[kind])}
    phone = OmegaConf.to_container(OmegaConf.load(REPOSITORY / "configs/degradation/phone.yaml"))
    space, rng = instantiate(phone | {"motion_prob": 1.0}), np.random.default_rng(0)
    records = [replace(one, recipe=space.draw(rng).to_dict()) for one in read_manifest(places["dataset"], "val")]
    write_manifest(places["dataset"], records)
    quickstart_report(run, **places)
    text = (run / "report.html").read_text(encoding="utf-8")
    # on the card, and at the head of the page
    assert text.count("motion blur ") == 4 and text.count("sensor noise ") == 4
