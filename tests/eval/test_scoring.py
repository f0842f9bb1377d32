"""Scores, tables and the quickstart's page, on tiny images; the metrics against published values."""

import json
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from inscene_records import record
from omegaconf import OmegaConf
from PIL import Image

from face2scene.assets import catalogue
from face2scene.common.files import read_json, write_json
from face2scene.common.model_files import save_weights
from face2scene.common.reproducibility import REPOSITORY
from face2scene.data.records import read_manifest, write_manifest
from face2scene.degradation.recipe import OPERATORS
from face2scene.eval.metrics import pyiqa_backend
from face2scene.eval.metrics.psnr_ssim import ssim_y
from face2scene.eval.metrics.pyiqa_backend import Pyiqa
from face2scene.eval.metrics.registry import METRICS, build_all, choose
from face2scene.eval.reports import quickstart_page
from face2scene.eval.reports.quickstart import quickstart_report
from face2scene.eval.reports.quickstart_page import findings
from face2scene.eval.reports.table_page import paper_table
from face2scene.eval.scoring.pairing import ScoreError
from face2scene.eval.scoring.results import read_scores_csv
from face2scene.eval.scoring.score import score_folder, score_folders
from face2scene.eval.tables import paper_tables, render
from face2scene.image_io.arrays import read_tensor, write_png

CONFIGS = REPOSITORY / "configs/eval"
# Published with the calibration images (I03, I04, I06, I08, I19), four decimals.
PUBLISHED = {
    "lpips": [0.7237, 0.2572, 0.0508, 0.0521, 0.4253],
    "dists": [0.4742, 0.1424, 0.0682, 0.0287, 0.3123],
}


def mean_abs_error(images, gts):
    """A metric for tests: the mean absolute difference."""
    return (images - gts).abs().mean((1, 2, 3))


SCORERS = {
    "psnr": lambda x, y: -10 * torch.log10(((x - y) ** 2).mean((1, 2, 3)) + 1e-8),
    "lpips": mean_abs_error,
    "dists": mean_abs_error,
}


def write_images(path: Path, names, noise: float = 0.0, size=(32, 32), seed: int = 0) -> Path:
    for number, name in enumerate(names):
        base = np.random.default_rng([number]).random((*size, 3), dtype=np.float32)
        change = np.random.default_rng([seed, number, 1]).normal(0, noise, base.shape) if noise else 0
        write_png(path / f"{name}.png", np.clip(base + change, 0, 1).astype(np.float32))
    return path


@pytest.mark.numerics
def test_lpips_dists_published_values(weights):
    images = weights("photos_pyiqa_calibration")
    weights("lpips"), weights("dists")
    pair = [
        torch.stack([read_tensor(images / side / f"{n}.bmp") for n in ("I03", "I04", "I06", "I08", "I19")])
        for side in ("dist_dir", "ref_dir")
    ]
    for key, published in PUBLISHED.items():
        measured = METRICS[key].build()(*pair).tolist()
        # half of the fourth decimal, and 1e-5 for float32 sums in another order
        assert measured == pytest.approx(published, abs=6e-5), key
    crops = [side[:2, :, 100:196, 100:228] for side in pair]
    theirs = Pyiqa("ssim", options={"color_space": "ycbcr"}).build("cpu")(*crops)
    assert ssim_y(*crops).tolist() == pytest.approx(theirs.tolist(), abs=1e-6)


@pytest.mark.parametrize("key", ["psnr", "psnr_y"])
def test_psnr_of_known_error(key):
    gt = torch.full((1, 3, 8, 8), 100 / 255)
    luma = 219 / 255 if key == "psnr_y" else 1  # the range of Y is 16 to 235
    error = round(51 * luma)
    assert METRICS[key].build()(gt + 51 / 255, gt).item() == pytest.approx(20 * np.log10(255 / error), abs=1e-9)


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


def test_ssim_of_identical_images_is_one():
    image = torch.rand(2, 3, 16, 16)
    assert ssim_y(image, image).tolist() == pytest.approx([1, 1])
    with pytest.raises(ValueError, match="11 x 11"):
        ssim_y(image[..., :8], image[..., :8])


def test_metric_without_weights_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    ready, missing = build_all(choose(["psnr", "lpips", "musiq", "clipiqa"]))
    assert list(ready) == ["psnr"]
    assert "face2scene fetch lpips" in missing["lpips"]
    assert "face2scene fetch pyiqa" in missing["musiq"]
    assert "face2scene fetch clip_rn50" in missing["clipiqa"]


def test_unknown_metric_is_refused():
    with pytest.raises(ValueError, match=r"'lpipz'.*dists, lpips"):
        choose(["lpipz"])


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
    together = score_folders(rows, gt, ["lpips"], scorers=SCORERS, batch_pixels=3 * 1024)
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


def near_uniform_image(*colour):
    """A colour with noise of one step of 8 bits."""
    return (np.random.default_rng(0).integers(0, 2, (32, 32, 3)) + np.array(colour)).astype(np.float32) / 255


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (np.zeros((32, 32, 3), np.float32), "one colour"),
        (np.full((32, 32, 3), (0.9, 0.2, 0.5), np.float32), "one colour"),
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
    with pytest.raises(ScoreError, match=r"a\.png is 36 x 32, ground truth 32 x 32"):
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


class MeanColourDistance:
    """A metric of sets for tests: how far the mean colours lie apart; counts the images it sees."""

    def __init__(self):
        self.seen = 0

    def features(self, images):
        self.seen += len(images)
        return images.mean((2, 3))

    def distance(self, ours, theirs):
        return float((ours.mean(0) - theirs.mean(0)).abs().sum())


def test_set_metric_reads_each_image_once(tmp_path):
    gt = write_images(tmp_path / "truth", "ab")
    rows = {s: (write_images(tmp_path / s, "ab", noise=0.1, seed=n), tmp_path / f"o{s}") for n, s in enumerate("xy")}
    sets = MeanColourDistance()
    first = score_folders(rows, gt, ["fid"], scorers={"fid": sets})
    assert sets.seen == 2 + 2 * 2 and first["x"]["sets"]["fid"] > 0
    assert score_folders(rows, gt, ["fid"], scorers={"fid": sets}) == first and sets.seen == 6


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
    assert render.csv_text(rows, ["psnr"]).splitlines()[2] == "two,ours,,25.00,,best"


def test_paper_table_keeps_digits_and_gaps(tmp_path):
    text = paper_table(CONFIGS, tmp_path, 5)
    for digits in ("22.8975", "0.6980", "**75.3739**", "4.8044", "16.9445"):
        assert digits in text
    assert text.count(render.NOT_MEASURED) == 6 * 10
    _, (part,) = paper_tables.load_table(CONFIGS / "table_synthetic.yaml")
    osediff = next(row for row in part.rows if row.name == "OSEDiff")
    assert osediff.cells["psnr"] == "24.2400" and osediff.values["dists"] == 0.1287
    with pytest.raises(FileNotFoundError, match=r"choose from 1, 2, .*9, main, real, synthetic"):
        paper_table(CONFIGS, tmp_path, 77)


def test_our_row_shows_difference(tmp_path):
    place = tmp_path / "table_5/synthetic/face2scene/scores.json"
    means = {"dists": 0.0907, "psnr": 20.0, "psnr_y": 23.904}
    write_json(place, {"complete": True, "means": means, "sets": {}, "counts": {"scored": 3, "expected": 3}})
    text = paper_table(CONFIGS, tmp_path, 5)
    assert "**0.0907** (-0.0100)" in text and "**23.90** (+1.00)" in text


@pytest.fixture
def quickstart_run(tmp_path, monkeypatch):
    """A finished quickstart of two images as its steps leave it, and the metrics that a test can afford."""
    names = ["anna_0", "ben_0"]
    run, data, shipped = tmp_path / "runs/quickstart", tmp_path / "data", tmp_path / "checkpoints/tiny"
    gt = write_images(data / "images/val/000", names, size=(32, 32))
    write_images(data / "lq/val/000", names, noise=0.3, size=(32, 32))
    operators = [{"kind": "Blur", "sigma_x": 2.0}, {"kind": "Jpeg", "quality": 40}, {"kind": "RestoreSize"}]
    records = [
        record(
            gt / f"{n}.png",
            (4.0, 4.0, 20.0, 24.0),
            image=f"images/val/000/{n}.png",
            split="val",
            identity=n[:-2],
            source="drawn",
            licence="CC0",
            lq=f"lq/val/000/{n}.png",
            recipe={"operators": operators},
        )
        for n in names
    ]
    write_manifest(data, records)
    for row, noise in (("restored", 0.05), ("trained_here", 0.1), ("wrong_tokens", 0.2)):
        write_images(run / row / "images", names, noise=noise, size=(32, 32))
        write_images(run / row / "faces", [f"{n}_{side}" for n in names for side in ("degraded", "restored")])
        lines = [json.dumps({"name": f"{n}.png", "tokens": "pair", "ref_fr": "perturbed"}) for n in names]
        (run / row / "restore.jsonl").write_text("\n".join(lines) + "\n")
    for part, key in (("fadex", "fadex/contrast"), ("restorer", "generator/l2")):
        save_weights(run / part / f"weights/{part}.safetensors", {}, kind=part, config={}, about={"steps": 40})
        save_weights(shipped / f"{part}.safetensors", {}, kind=part, config={}, about={"steps": 4000})
        values = [{"step": step, key: 1 / (1 + step), "constant": 1.0} for step in range(0, 50, 10)]
        (run / part / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in values))
        (run / part / "config.yaml").write_text(f"name: quickstart/{part} # <b>\n")
    probe = {"same_mean": 0.8, "different_mean": 0.1, "matrix": [[1, 0.1], [0.1, 1]], "labels": ["g1", "g2"]}
    write_json(run / "fadex/weights/probe.json", probe)
    write_json(shipped / "probe.json", probe | {"same_mean": 0.9})
    write_json(run / "seconds.json", {"train FaDeX": 12.5, "restore, shipped weights": 70.0})
    monkeypatch.setattr(
        "face2scene.eval.scoring.score.build_all", lambda chosen, device: (SCORERS, {"ssim_y": "left out"})
    )
    return run, {"dataset": data, "shipped": shipped}


def test_report_is_self_contained(quickstart_run, capsys):
    run, places = quickstart_run
    scores = quickstart_report(run, **places)
    text = (run / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href|action|srcset)\s*=(?!["'](#|data:))""", text)
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttpRequest|WebSocket|sendBeacon|import\(", text)
    assert text.count('<figure class="card shot">') == 2 and text.count("data:image/jpeg;base64,") == 2 * (5 + 2)
    assert "blur 2 → JPEG 40<" in text and "&lt;b&gt;" in text and "SSIM is not measured: left out" in text
    assert text.count("<svg") == 4 and ">constant<" not in text
    assert "the ground-truth face with blur, a tint and grain" in text
    assert capsys.readouterr().out.count("[yes]") == 3
    block = scores["quickstart"]
    assert read_json(run / "scores.json")["quickstart"] == block
    assert set(block["restored"]) == {"psnr", "lpips", "dists"} and block["pictures"] == 2
    assert block["restored"]["psnr"] > block["trained_here"]["psnr"] > block["input"]["psnr"]
    assert block["seconds"] == {"train FaDeX": 12.5, "restore, shipped weights": 70.0}
    assert (run / "scores.csv").read_text() == (run / "restored/scores.csv").read_text()


def test_report_separates_trained_and_shipped(quickstart_run):
    run, places = quickstart_run
    block = quickstart_report(run, **places)["quickstart"]
    assert block["fadex"] == {"same": 0.8, "different": 0.1} and block["fadex_shipped"]["same"] == 0.9
    text = (run / "report.html").read_text(encoding="utf-8")
    assert '<th scope="row">restored, weights trained in this run (40 steps)</th>' in text
    assert '<th scope="row">restored, weights trained longer, shipped (4000 steps)</th>' in text
    assert "FaDeX, trained in this run (40 steps)" in text and "FaDeX, trained longer, shipped (4000 steps)" in text


def test_each_image_has_a_slider(quickstart_run):
    run, places = quickstart_run
    quickstart_report(run, **places)
    text = (run / "report.html").read_text(encoding="utf-8")
    style, script = (text.split(f"<{tag}>")[1].split(f"</{tag}>")[0] for tag in ("style", "script"))
    sliders = re.findall(r'<input type="range" min="0" max="100" value="50" aria-label="(\w+): share', text)
    assert sliders == ["anna_0", "ben_0"]  # a range input answers to dragging, touch and arrow keys by itself
    assert "document.addEventListener('input'" in script and "setProperty('--cut'" in script
    assert "var(--cut)" in style and ".compare:focus-within" in style and "touch-action:pan-y" in style


def test_failed_findings_are_reported(quickstart_run):
    run, places = quickstart_run
    shutil.copy(places["dataset"] / "lq/val/000/anna_0.png", run / "restored/images/anna_0.png")
    shutil.copy(places["dataset"] / "lq/val/000/ben_0.png", run / "restored/images/ben_0.png")
    write_png(run / "wrong_tokens/images/ben_0.png", np.zeros((32, 32, 3), np.float32))
    probe = read_json(run / "fadex/weights/probe.json")
    write_json(run / "fadex/weights/probe.json", probe | {"same_mean": 0.3})
    found = findings(quickstart_report(run, **places)["quickstart"])
    assert [finding.verdict for finding in found] == ["no", "no", "not measured"]
    assert found[0].note == "not in PSNR, LPIPS, DISTS"
    assert "incomplete: 1 of 2 images" in (run / "report.html").read_text(encoding="utf-8")


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
    assert text.count("motion blur ") == 2 and text.count("sensor noise ") == 2


def test_page_size_limit_drops_images(quickstart_run, monkeypatch):
    run, places = quickstart_run
    monkeypatch.setattr("face2scene.eval.reports.quickstart_page.MAX_BYTES", 9_000)
    quickstart_report(run, **places)
    text = (run / "report.html").read_text(encoding="utf-8")
    assert text.count('<figure class="card shot">') == 1 and "1 more images" in text


def test_noise_image_fits_page(quickstart_run):
    run, places = quickstart_run
    noise = np.random.default_rng(0).random((256, 256, 3), dtype=np.float32)  # hardly smaller as a JPEG
    write_png(run / "restored/faces/anna_0_degraded.png", noise)
    quickstart_report(run, **places)
    assert (run / "report.html").stat().st_size > 100_000


@pytest.mark.parametrize("step", ["restorer/weights/restorer.safetensors", "wrong_tokens/restore.jsonl"])
def test_unfinished_quickstart_is_refused(step, quickstart_run):
    run, places = quickstart_run
    (run / step).unlink()
    with pytest.raises(FileNotFoundError, match=f"{step} is not there yet: `make demo`"):
        quickstart_report(run, **places)


@pytest.mark.parametrize("key", ["musiq", "clipiqa", "liqe"])
def test_fetched_files_are_placed_for_pyiqa(key, tmp_path, monkeypatch):
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path))
    for name in ("pyiqa", "clip_rn50", "clip_vit_b32"):
        asset, write_images = catalogue.catalogue()[name], tmp_path / f"{name}.partial"
        write_images.mkdir()
        for file in asset.files:
            (write_images / file).write_text(file)
        catalogue.install(asset, write_images, tmp_path, "test")
    for file in METRICS[key].engine.files:
        assert pyiqa_backend.ready(file, pyiqa_backend.torch_home()).read_text() == Path(file).name


def test_placed_trunk_omits_classifier(weights, tmp_path):
    weights("lpips")
    assert pyiqa_backend.ready(pyiqa_backend.ALEXNET, tmp_path).stat().st_size < 11_000_000
    with pytest.raises(catalogue.MissingWeights, match="fetch pyiqa"):
        pyiqa_backend.ready("hub/pyiqa/never.pth", tmp_path)
