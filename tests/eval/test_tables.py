"""The paper's numbers against independent sums; tables in every form; figures."""

import pytest

from face2scene.common.files import write_json
from face2scene.common.reproducibility import REPOSITORY
from face2scene.eval.reports.figures import draw_cosines, draw_figure, draw_sweep, draw_times
from face2scene.eval.reports.table_page import paper_table
from face2scene.eval.tables.paper_tables import load_table, read_texts

CONFIGS = REPOSITORY / "configs/eval"


# Of every printed part: cells, digits, sums of the columns, and a sum weighted by row and column, which notices an
# exchange. Computed from the supplement's own text and the project page's, apart from the files they are compared with.
PRINTED = {
    ("1", "test"): (45, 234, [629.1339, 5.0222, 3.9806, 37.3701, 5.5005], 4241.154),
    ("2", "synthetic"): (
        50,
        255,
        [0.6621, 1.5377, 117.885, 2.9332, 103.88, 347.6133, 3.3411, 1.9213, 21.411, 2.9488],
        9759.812,
    ),
    ("3", "synthetic"): (
        30,
        153,
        [0.3481, 0.8089, 70.2685, 1.7357, 56.68, 216.7035, 2.0719, 1.1781, 13.2119, 1.8277],
        3927.647,
    ),
    ("4", "synthetic"): (9, 45, [3.9696], 20.033),
    ("4", "real"): (9, 45, [3.9115], 19.71),
    ("5", "synthetic"): (
        30,
        153,
        [0.3177, 0.7464, 68.9985, 1.6872, 49.13, 221.5339, 2.2225, 1.2589, 13.8532, 1.9198],
        3922.849,
    ),
    ("5", "real"): (
        30,
        153,
        [0.5585, 1.272, 56.9859, 1.5793, 118.48, 223.8592, 2.0621, 1.3939, 14.2353, 2.0017],
        4625.041,
    ),
    ("6", "synthetic"): (40, 156, [0.419, 0.988, 92.37, 2.273, 66.18, 296.15, 2.994, 1.694, 18.6, 2.57], 6567.143),
    ("6", "faces"): (30, 117, [0.684, 1.23, 73.36, 1.955, 189.84, 223.07, 2.048, 1.684, 14.72, 2.04], 5438.677),
    ("7", "celeba_ref"): (28, 144, [0.6715, 1.1094, 97.6034, 2.7419, 94.46, 299.936, 19.3605], 6729.469),
    ("8", "varying_blur"): (
        20,
        102,
        [0.2412, 0.5393, 46.7714, 1.1494, 37.43, 144.8511, 1.4456, 0.8069, 8.927, 1.2548],
        1962.444,
    ),
    ("9", "synthetic"): (
        20,
        102,
        [0.2682, 0.6289, 47.634, 1.1864, 51.32, 141.7283, 1.2533, 0.7403, 7.8511, 1.1696],
        2052.203,
    ),
    ("synthetic", "synthetic"): (
        104,
        528,
        [1.5525, 3.4883, 238.8992, 5.759, 247.19, 771.5467, 6.6975, 3.9173, 38.892, 5.9836],
        41772.29,
    ),
    ("real", "test"): (45, 198, [629.13, 5.0222, 3.9806, 37.38, 5.5005], 4241.448),
}


@pytest.mark.parametrize(("table", "key"), PRINTED)
def test_paper_table_checksums(table, key):
    part = next(part for part in load_table(CONFIGS / f"table_{table}.yaml")[1] if part.key == key)
    cells, digits, columns, weighted = PRINTED[table, key]
    shown = [cell for row in part.rows for cell in row.cells.values() if cell != "-"]
    assert (len(shown), sum(c.isdigit() for cell in shown for c in cell)) == (cells, digits)
    assert [round(sum(row.values.get(c, 0) for row in part.rows), 4) for c in part.columns] == columns
    places = ((n, m, row.values.get(c, 0)) for n, row in enumerate(part.rows, 1) for m, c in enumerate(part.columns, 1))
    assert round(sum(n * m * value for n, m, value in places), 3) == weighted


def test_all_paper_tables_exist():
    parts = {path.stem.removeprefix("table_"): load_table(path)[1] for path in CONFIGS.glob("table_*.yaml")}
    offline = parts.pop("offline")
    assert not any(part.printed for part in offline)
    assert set(parts) == {*map(str, range(1, 10)), "main", "synthetic", "real"}
    assert [part.key for part in parts["main"]] == ["synthetic", "test"]
    assert {(t, part.key) for t, found in parts.items() for part in found if t != "main"} == set(PRINTED)


PAPERS = {"synthetic": "1"}  # the set that is taken for the paper's here


def write_our_scores(runs, table="4", part="synthetic", method="pasd", gt="1", intervals=None, **means):
    counts = {"scored": 3, "expected": 3}
    scores = {"complete": True, "means": means, "sets": {}, "counts": counts, "truth": {"sha256": gt}}
    scores["intervals"] = intervals or {}
    write_json(runs / f"table_{table}" / part / method / "scores.json", scores)


def test_trailing_zero_is_kept(tmp_path):
    assert "| 0.4030 " in paper_table(CONFIGS, tmp_path, 4)


def test_every_format_shows_ours_and_paper(tmp_path):
    write_our_scores(tmp_path, id=0.5, intervals={"id": [0.45, 0.56]})
    assert "PASD, ours (3 images)" in (text := paper_table(CONFIGS, tmp_path, 4, sets=PAPERS))
    assert "**0.5000** [0.4500, 0.5600] (+0.0970)" in text and "<u>0.4867</u>" in text
    text = paper_table(CONFIGS, tmp_path, 4, "latex", PAPERS)
    assert (
        r"\textbf{0.5000} [0.4500, 0.5600] (+0.0970) \\" in text
        and r"\underline{0.4867}" in text
        and r"ID $\uparrow$" in text
    )
    assert text.count("{tabular}") == 4 and text.startswith("% Identity similarity")
    text = paper_table(CONFIGS, tmp_path, 4, "csv", PAPERS)
    assert "method,source,note,id,id_difference,id_mark,id_low,id_high\n" in text
    assert "\nPASD,paper,,0.4030,,,,\nPASD,ours,3 images,0.5000,+0.0970,best,0.4500,0.5600\n" in text
    assert ",0.4867,,second,,\n" in text
    text = paper_table(CONFIGS, tmp_path, 4, "html", PAPERS)
    assert '<td class="best">0.5000 <span class="apart">[0.4500, 0.5600] (+0.0970)</span></td>' in text
    assert '<td class="second">0.4867</td>' in text and "PASD, ours<small>3 images</small>" in text
    with pytest.raises(ValueError, match="markdown, latex, csv, html"):
        paper_table(CONFIGS, tmp_path, 4, "word")


@pytest.mark.parametrize(("form", "comment"), [("markdown", ""), ("latex", "% "), ("csv", "# ")])
def test_rgb_psnr_is_not_compared(form, comment, tmp_path):
    write_our_scores(tmp_path, "5", method="face2scene", psnr=20.0, ssim_y=0.5)
    text = paper_table(CONFIGS, tmp_path, 5, form, PAPERS)
    assert "20.00" not in text and "PSNR was measured without psnr" in text
    lines = text.splitlines()
    assert f"{comment}PSNR and SSIM of ours are of the Y channel." in lines
    assert any(line.startswith(f"{comment}Nothing of ours is measured here.") for line in lines)  # the other part
    write_our_scores(tmp_path, "5", method="face2scene", psnr=20.0, psnr_y=23.0)
    text = paper_table(CONFIGS, tmp_path, 5, form)
    assert "23.00" in text and "was measured without" not in text


def test_row_with_other_gt_is_not_ranked(tmp_path):
    for method, gt, value in (("pasd", "1", 0.4), ("s3diff", "1", 0.5), ("face2scene", "2", 0.9)):
        write_our_scores(tmp_path, method=method, gt=gt, id=value)
    lines = paper_table(CONFIGS, tmp_path, 4, sets=PAPERS).splitlines()
    line = {line.split("|")[1].strip(): line for line in lines if "|" in line}
    assert "| 0.9000 " in line["Face2Scene, ours (3 images, another set than the paper's)"]
    assert "+" in line["S3Diff, ours (3 images)"]


def test_unknown_set_is_never_ranked_among_printed(tmp_path):
    write_our_scores(tmp_path, method="s3diff", gt="abc", id=0.9)
    text = paper_table(CONFIGS, tmp_path, 4)
    (line,) = [line for line in text.splitlines() if "S3Diff, ours" in line and "0.9000" in line]
    assert "| 0.9000 " in line and "not known to be the paper's set" in line and "+" not in line
    assert "S3Diff was scored on images that are not known to be the paper's" in text and "sets.synthetic=abc" in text
    printed = paper_table(CONFIGS, tmp_path / "none", 4)
    marked = [cell for cell in printed.split() if cell.startswith(("**", "<u>"))]
    assert marked == [cell for cell in text.split() if cell.startswith(("**", "<u>"))], "the marks are as without ours"
    assert 'class="best">0.9' not in paper_table(CONFIGS, tmp_path, 4, "html")


def test_row_states_base_precision(tmp_path):
    write_our_scores(tmp_path, method="s3diff", id=0.5)
    launches = [{"base_dtype": "float32"}, {"pictures": 3}]
    write_json(tmp_path / "table_4/synthetic/s3diff/baseline.json", {"launches": launches})
    assert "S3Diff, ours (3 images, base in float32)" in paper_table(CONFIGS, tmp_path, 4, sets=PAPERS)


def test_table_without_printed_rows_ranks_ours(tmp_path):
    for method, gt, value in (("input", "1", 20.0), ("bicubic", "1", 22.0), ("ffdnet", "2", 30.0)):
        write_our_scores(tmp_path, "offline", "noise", method, gt, {"psnr": [value - 1, value + 1]}, psnr=value)
    (tmp_path / "configs").mkdir()
    table = "title: t\nsource: s\nparts: {noise: {title: n, columns: [psnr], methods: [Input, Bicubic, FFDNet, Other]}}"
    (tmp_path / "configs/table_offline.yaml").write_text(table)
    text = paper_table(tmp_path / "configs", tmp_path, "offline")
    assert "**22.00** [21.00, 23.00]" in text and "<u>20.00</u>" in text and "paper" not in text
    assert "FFDNet (3 images, another ground truth than Input's)" in text and "| not measured" in text


def test_unprinted_value_is_not_ranked(tmp_path):
    text = paper_table(CONFIGS, tmp_path, "synthetic")
    line = next(line for line in text.splitlines() if line.startswith("| Face2Scene without") and "paper" in line)
    assert line.count("| - ") == 6 and "0.1293" in line


def test_figure_5_stacks_stages(tmp_path):
    printed = read_texts(CONFIGS / "figure_5.yaml")
    assert {name: float(seconds["total"]) for name, seconds in printed["methods"].items()} == {
        "OSEDiff": 1.3, "S3Diff": 1.4, "Face2Scene": 3.3, "PASD": 5.1, "SUPIR": 19.9, "DiffBIR": 34.6,
    }  # fmt: skip
    ours = printed["methods"]["Face2Scene"]
    assert float(ours["stage_1"]) + float(ours["stage_2"]) == float(ours["total"])
    methods = {"Face2Scene": {"stage_1": {"mean": 0.25}, "stage_2": {"mean": 0.5}, "total": {"mean": 0.75}}}
    measured = {"methods": methods, "protocol": "here", "machine": {"device": "cpu"}}
    png, svg = draw_times(printed, measured, tmp_path)
    text = svg.read_text()
    assert png.stat().st_size > 5000 and "0.75 s (0.25 + 0.50)" in text and "3.3 s (2.0 + 1.3)" in text


def test_figure_6_has_nine_plots(tmp_path):
    keys = read_texts(CONFIGS / "figure_6.yaml")["metrics"]
    means = [key for key in keys if key not in ("fid", "liqe")]
    rows = [
        {
            "label": label,
            "complete": True,
            "means": dict.fromkeys(means, s),
            "sets": {"fid": s},
        }
        for s, label in enumerate(("1.00", "1.10", "1.16"))
    ]
    _, svg = draw_sweep({"variants": rows}, keys, "1.10", tmp_path)
    text = svg.read_text()
    assert text.count('<g id="axes_') == 9 and "guidance scale" in text and "#e08214" in text
    with pytest.raises(ValueError, match="no complete variant"):
        draw_sweep({"variants": []}, keys, "1.10", tmp_path)


def test_cosine_figure_shows_poster_values(tmp_path):
    probe = {"same": {f"d{n}": 0.8 for n in range(1, 5)}, "cross": {"d1-d2": 0.1}, "same_spread": {"d1": 0.1}}
    _, svg = draw_cosines(probe, tmp_path)
    assert "poster" in svg.read_text()


def test_figure_without_data_names_command(tmp_path):
    with pytest.raises(ValueError, match=r"scripts/sweep\.py sweep=cfg"):
        draw_figure("6", CONFIGS, tmp_path, tmp_path)
    with pytest.raises(ValueError, match="one of 5, 6, fadex, tradeoff"):
        draw_figure("7", CONFIGS, tmp_path, tmp_path)
    assert [path.suffix for path in draw_figure("tradeoff", CONFIGS, tmp_path, tmp_path)] == [".png", ".svg"]
