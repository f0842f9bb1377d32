"""Scoring command."""

import numpy as np
import pytest
import torch
from composed_configs import compose_config
from repository_scripts import load_script
from scored_folders import (
    BATCH,
    KEYS,
    SCORERS,
    SIZE,
    mean_abs_error,
    score_images,
    score_in_two_processes,
    write_images,
)

from face2scene.eval.scoring.pairing import ScoreError
from face2scene.eval.scoring.results import read_scores
from face2scene.eval.scoring.score import score_folder, score_folders
from face2scene.image_io.arrays import read_tensor, write_png


def run_eval_script(*overrides: str) -> None:
    """`scripts/eval.py` in this process."""
    load_script("eval").main(compose_config("eval", *overrides))


def test_edited_csv_is_refused(tmp_path):
    score_images(tmp_path, "one")
    place = tmp_path / "out_one"
    text = (place / "scores.csv").read_text()
    (place / "scores.csv").write_text(text.replace("a,0.", "a,9.", 1))
    with pytest.raises(ScoreError, match="was changed"):
        read_scores(place)
    score_images(tmp_path, "one")
    assert (place / "scores.csv").read_text() == text and read_scores(place)[1]["a"]


def test_missing_prediction_has_no_interval(tmp_path):
    gt, made = write_images(tmp_path / "truth", "abc"), write_images(tmp_path / "made", "ab", 0.1)
    scores = score_folder(made, gt, KEYS, tmp_path / "out", scorers=SCORERS)
    assert not scores["complete"] and scores["means"] == scores["intervals"] == scores["sets"] == {}
    assert set(scores["means_of_scored_only"]) == {"dists", "psnr"}


@pytest.mark.parametrize("lacking", ["missing", "black", "nothing"])
def test_incomplete_scoring_exits_with_one(lacking, tmp_path, capsys):
    gt, made = write_images(tmp_path / "truth", "abc"), write_images(tmp_path / "made", "abc", 0.1)
    if lacking == "missing":
        (made / "b.png").unlink()
    elif lacking == "black":
        write_png(made / "b.png", np.zeros((*SIZE, 3), np.float32))
    given = (f"predictions={made}", f"gt={gt}", f"paths.runs={tmp_path}", "name=it", "metrics=[ssim_y]")
    if lacking == "nothing":
        run_eval_script(*given)
    else:
        with pytest.raises(SystemExit) as ended:
            run_eval_script(*given)
        assert ended.value.code == 1
    assert read_scores(tmp_path / "it")[0]["complete"] == (lacking == "nothing")
    assert "per image: " in capsys.readouterr().out


@pytest.mark.numerics
def test_two_processes_equal_one(tmp_path):
    alone = score_images(tmp_path, "one", "abcdefg", batch_pixels=BATCH)
    write_png(tmp_path / "one/d.png", np.zeros((*SIZE, 3), np.float32))  # flagged by the process that reads it
    gt, rows = tmp_path / "truth", {"one": (tmp_path / "one", tmp_path / "shared")}
    found = score_in_two_processes(rows, gt)
    assert found[1] == {} and found[0]["one"]["pictures"]["flagged"].keys() == {"d"}
    write_images(tmp_path / "one", "abcdefg", 0.1)  # whole again
    found = score_in_two_processes(rows, gt)
    assert {**found[0]["one"], "predictions": ""} == {**alone, "predictions": ""}
    left = sorted(path.name for path in (tmp_path / "shared").iterdir())
    assert left == ["scores.csv", "scores.json", "scores.state.json", "scores.state.safetensors"]
    assert (tmp_path / "shared/scores.csv").read_text() == (tmp_path / "out_one/scores.csv").read_text()


@pytest.mark.numerics
def test_new_flag_in_two_processes_equals_one(tmp_path):
    gt, made = write_images(tmp_path / "truth", "abcdefg"), write_images(tmp_path / "made", "abcdefg", 0.1)
    bad = mean_abs_error(*(read_tensor(tmp_path / side / "d.png")[None] for side in ("made", "truth")))

    def nan_of_d(images, gts):
        found = mean_abs_error(images, gts)
        return torch.where(found == bad, torch.nan, found)

    scorers = {**SCORERS, "psnr": nan_of_d, "niqe": lambda images: pytest.fail("the images are too small")}
    rows = {name: {"it": (made, tmp_path / name)} for name in ("one", "two")}
    for keys in (["dists", "niqe"], ["dists", "niqe", "psnr"], ["dists", "niqe"]):
        alone = score_folders(rows["one"], gt, keys, scorers=scorers, batch_pixels=BATCH)
        assert score_in_two_processes(rows["two"], gt, keys, scorers)[0] == alone
        assert list(alone["it"]["pictures"]["flagged"]) == (["d"] if "psnr" in keys else [])
        assert ("d" in alone["it"]["undefined"]["niqe"]) == ("psnr" not in keys)
        assert (tmp_path / "two/scores.json").read_bytes() == (tmp_path / "one/scores.json").read_bytes()
