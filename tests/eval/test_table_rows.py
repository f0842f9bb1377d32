"""Table rows."""

import pytest

from face2scene.common.files import write_json
from face2scene.common.reproducibility import REPOSITORY
from face2scene.eval.reports.table_page import paper_table
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
