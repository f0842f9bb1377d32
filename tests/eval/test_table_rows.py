"""Table rows."""

import json

import pytest
from scored_folders import SCORERS, score_images, write_images

from face2scene.common.files import read_json, write_json
from face2scene.common.reproducibility import REPOSITORY
from face2scene.eval.reports.table_page import paper_table
from face2scene.eval.scoring.score import score_folder
from face2scene.eval.tables import paper_tables, render

CONFIGS = REPOSITORY / "configs/eval"


def test_table_marks_best_and_second():
    rows = [
        render.TableRow("one", {"psnr": "20.00", "lpips": "0.3000"}, "ours"),
        render.TableRow("two", {"psnr": "25.00", "lpips": "0.2000"}, "ours"),
        render.TableRow("three", {"psnr": "22.00", "lpips": "0.1000"}, "ours"),
        render.TableRow("partial", {"psnr": "99.00", "lpips": "0.0000"}, "ours", ranked=False),
    ]
    text = render.markdown(rows, ["psnr", "lpips"])
    line = {row.split("|")[1].strip(): row for row in text.splitlines()}
    assert "**25.00**" in line["two"] and "<u>0.2000</u>" in line["two"]
    assert "<u>22.00</u>" in line["three"] and "**0.1000**" in line["three"]
    assert "*" not in line["partial"] and "PSNR ↑" in text and "LPIPS ↓" in text
    assert render.csv_text(rows, ["psnr"]).splitlines()[2] == "two,ours,,25.00,,best,,"


def test_paper_table_keeps_digits_and_gaps(tmp_path):
    text = paper_table(CONFIGS, tmp_path, 5)
    for digits in ("22.8975", "0.6980", "**75.3739**", "4.8044", "16.9445"):
        assert digits in text
    assert text.count(render.NOT_MEASURED) == 6 * 10
    _, (part,) = paper_tables.load_table(CONFIGS / "table_synthetic.yaml")
    osediff = next(row for row in part.rows if row.name == "OSEDiff")
    assert osediff.cells["psnr"] == "24.2400" and osediff.values["dists"] == 0.1287
    with pytest.raises(FileNotFoundError, match=r"choose from 1, 2, .*9, main, offline, real, synthetic"):
        paper_table(CONFIGS, tmp_path, 77)


def test_our_row_shows_difference(tmp_path):
    place = tmp_path / "table_5/synthetic/face2scene/scores.json"
    means = {"dists": 0.0907, "psnr": 20.0, "psnr_y": 23.904}
    counts, gt = {"scored": 3, "expected": 3}, {"sha256": "1"}
    write_json(place, {"complete": True, "means": means, "sets": {}, "counts": counts, "truth": gt})
    text = paper_table(CONFIGS, tmp_path, 5, sets={"synthetic": "1"})
    assert "**0.0907** (-0.0100)" in text and "**23.90** (+1.00)" in text


def test_row_says_over_how_many_images(tmp_path):
    write_images(tmp_path / "truth", "abc")
    write_images(tmp_path / "mine", "abc", 0.1)
    write_images(tmp_path / "mine", "a")  # the ground truth itself, whose PSNR is infinite
    found = score_folder(tmp_path / "mine", tmp_path / "truth", ["psnr", "ssim"], tmp_path / "out")
    assert found["complete"] and set(found["undefined"]["psnr"]) == {"a"}
    assert render.row_from_scores("Mine", tmp_path / "out/scores.json", ["psnr"]).note == "3 images, PSNR over 2"
    assert render.row_from_scores("Mine", tmp_path / "out/scores.json", ["ssim"]).note == "3 images"
    score_folder(tmp_path / "mine", tmp_path / "truth", ["fid"], tmp_path / "sets", scorers=SCORERS)
    note = render.row_from_scores("Mine", tmp_path / "sets/scores.json", ["fid"]).note
    assert note == "3 images, FID of fewer images than features (2048), comparable at this number alone"


def test_value_that_is_no_number_is_scored_again(tmp_path):
    found = score_images(tmp_path, "mine", "ab", keys=("dists",))
    state = read_json(tmp_path / "out_mine/scores.state.json")
    state["pictures"]["a"]["values"]["dists"] = float("nan")
    (tmp_path / "out_mine/scores.state.json").write_text(json.dumps(state))
    assert score_images(tmp_path, "mine", "ab", keys=("dists",))["means"] == found["means"]


def test_signs_in_names_leave_tables_whole():
    rows = [render.TableRow(r"a|b\c~d_e", {"psnr": "20.0"}, "ours")]
    assert r"| a\|b\c~d_e " in render.markdown(rows, ["psnr"])
    assert r"a|b\char`\\{}c\char`\~{}d\_e &" in render.latex(rows, ["psnr"])
