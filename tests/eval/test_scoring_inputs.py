"""Unusable folders and images; regions, shifts, distributed scoring and comparisons."""

import importlib.util
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from face2scene.common.files import read_json, sha256_of, write_json
from face2scene.common.reproducibility import REPOSITORY
from face2scene.eval.scoring.pairing import ScoreError, boxes_of, global_shift
from face2scene.eval.scoring.regions import cut
from face2scene.eval.scoring.results import interval, read_scores
from face2scene.eval.scoring.score import score_folder, score_folders
from face2scene.eval.scoring.significance import Difference, compare, corrected, table
from face2scene.image_io.arrays import read_tensor, write_png

SIZE = (40, 48)


def mean_abs_error(images, gts):
    """(B,) mean absolute differences. Sums of whole numbers below 2^24 are the same in any order, so in any batch."""
    return (images - gts).mul(255).round().abs().sum((1, 2, 3)) / (255 * images[0].numel())


class MeanColourDistance:
    def features(self, images):
        return images.mul(255).round().sum((2, 3)) / (255 * images[0, 0].numel())

    def distance(self, ours, theirs):
        return float((ours.mean(0) - theirs.mean(0)).abs().sum())


SCORERS = {
    "dists": mean_abs_error,
    "psnr": lambda x, y: -10 * torch.log10(mean_abs_error(x, y) ** 2 + 1e-8),
    "fid": MeanColourDistance(),
}
KEYS = ("dists", "psnr", "fid")


def write_images(path: Path, names, noise=0.0, seed=0, size=SIZE) -> Path:
    for number, name in enumerate(names):
        base = np.random.default_rng([number]).random((*size, 3))
        change = np.random.default_rng([seed, number, 1]).normal(0, noise, base.shape) if noise else 0
        write_png(path / f"{name}.png", np.clip(base + change, 0, 1).astype(np.float32))
    return path


def score_images(tmp_path, name, names="abcdef", noise=0.1, seed=0, keys=KEYS, **options):
    gt = write_images(tmp_path / "truth", names)
    made = write_images(tmp_path / name, names, noise, seed)
    return score_folder(made, gt, keys, tmp_path / f"out_{name}", scorers=SCORERS, **options)


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "reason"),
    [("L", "a.png is L"), ("RGBA", "a.png is RGBA"), ("P", "a.png is P"), ("I;16", "a.png is I;16")],
)
@pytest.mark.parametrize("side", ["made", "truth"])
def test_non_rgb_image_is_refused(side, mode, reason, tmp_path):
    gt, made = write_images(tmp_path / "truth", "ab"), write_images(tmp_path / "made", "ab")
    path = tmp_path / side / "a.png"
    if mode == "I;16":
        Image.fromarray(np.full(SIZE, 9000, np.uint16)).save(path)
    else:
        Image.open(path).convert(mode).save(path)
    with pytest.raises(ScoreError, match=f"no 8-bit RGB.*{'truth ' * (side == 'truth')}{reason}.*Write them as RGB"):
        score_folder(made, gt, KEYS, tmp_path / "out", scorers=SCORERS)


def test_jpeg_named_png_is_refused(tmp_path):
    gt, made = write_images(tmp_path / "truth", "ab"), write_images(tmp_path / "made", "ab")
    Image.open(made / "a.png").save(made / "a.png", format="JPEG")
    with pytest.raises(ScoreError, match=r"no PNG but by name.*predictions/a\.png is a JPEG file"):
        score_folder(made, gt, KEYS, tmp_path / "out", scorers=SCORERS)


def test_name_mismatch_is_refused(tmp_path):
    gt, made = write_images(tmp_path / "truth", "ab"), write_images(tmp_path / "made", ["a_x4", "b_x4"])
    with pytest.raises(
        ScoreError, match=r"no PNG in .* has the name of a ground truth.*a_x4, b_x4; ground truth: a, b"
    ):
        score_folder(made, gt, KEYS, tmp_path / "out", scorers=SCORERS)


def test_edited_csv_is_refused(tmp_path):
    score_images(tmp_path, "one")
    place = tmp_path / "out_one"
    text = (place / "scores.csv").read_text()
    (place / "scores.csv").write_text(text.replace("a,0.", "a,9.", 1))
    with pytest.raises(ScoreError, match="was changed"):
        read_scores(place)
    score_images(tmp_path, "one")
    assert (place / "scores.csv").read_text() == text and read_scores(place)[1]["a"]


def test_duplicate_images_are_reported(tmp_path, caplog):
    gt, made = write_images(tmp_path / "truth", "abc"), write_images(tmp_path / "made", "abc", 0.1)
    (made / "c.png").write_bytes((made / "a.png").read_bytes())
    scores = score_folder(made, gt, KEYS, tmp_path / "out", scorers=SCORERS)
    assert scores["copies"] == {"a": ["c"]} and "same image under several names: a = c" in caplog.text


def test_missing_prediction_has_no_interval(tmp_path):
    gt, made = write_images(tmp_path / "truth", "abc"), write_images(tmp_path / "made", "ab", 0.1)
    scores = score_folder(made, gt, KEYS, tmp_path / "out", scorers=SCORERS)
    assert not scores["complete"] and scores["means"] == scores["intervals"] == scores["sets"] == {}
    assert set(scores["means_of_scored_only"]) == {"dists", "psnr"}


def test_niqe_is_undefined_for_small_images(tmp_path):
    wide = {**SCORERS, "niqe": lambda images: pytest.fail("the image is too small for it")}
    gt, made = write_images(tmp_path / "truth", "ab"), write_images(tmp_path / "made", "ab", 0.1)
    scores = score_folder(made, gt, ["psnr", "niqe"], tmp_path / "out", scorers=wide)
    assert scores["complete"] and "niqe" not in scores["means"] and "psnr" in scores["means"]
    assert scores["undefined"]["niqe"]["a"] == "48 x 40, and NIQE takes 192 pixels a side"


def test_identity_score_skips_faceless_gt(tmp_path):
    values = iter([[0.5, float("nan")], [0.7]])
    faces = {"id": lambda x, y, boxes: torch.tensor(next(values), dtype=torch.float64)}
    gt, made = write_images(tmp_path / "truth", "abc"), write_images(tmp_path / "made", "abc", 0.1)
    options = {"scorers": faces, "batch_pixels": 2 * SIZE[0] * SIZE[1]}
    scores = score_folder(made, gt, ["id"], tmp_path / "out", **options)
    assert scores["means"] == {"id": pytest.approx(0.6)} and scores["complete"]
    assert scores["undefined"] == {"id": {"b": "the ground truth shows no face there"}}
    assert read_scores(tmp_path / "out")[1]["b"] == {}
    assert score_folder(made, gt, ["id"], tmp_path / "out", **options) == scores  # nothing is asked again


# --- shifts -------------------------------------------------------------------------------------------------


def shifted_pair(right: float, down: float, size=(96, 128), seed=0) -> tuple[torch.Tensor, torch.Tensor]:
    """An image with structure at every scale, as photos have, and the same one moved, both drawn exactly."""
    rng = np.random.default_rng(seed)
    rates, turns, starts = np.exp(rng.uniform(-3.5, 0.9, 250)), rng.uniform(0, 2 * np.pi, 250), rng.uniform(0, 6, 250)
    y, x = np.mgrid[: size[0], : size[1]].astype(float)

    def drawn(dx, dy):
        value = sum(
            np.sin(rate * (np.cos(turn) * (x - dx) + np.sin(turn) * (y - dy)) + start) / rate**0.7
            for rate, turn, start in zip(rates, turns, starts, strict=True)
        )
        return torch.from_numpy(0.5 + value / 250).float().clamp(0, 1).expand(3, -1, -1)

    return drawn(right, down), drawn(0, 0)


@pytest.mark.parametrize("move", [(0, 0), (0.5, 0), (1.3, -0.7), (-6, 4), (0.2, 3.6)])
def test_global_shift_accuracy(move):
    assert global_shift(*shifted_pair(*move)) == pytest.approx(move, abs=0.1)


def test_noise_and_blur_cause_no_shift():
    image, gt = shifted_pair(0, 0)
    generator = torch.Generator().manual_seed(0)
    soft = torch.nn.functional.avg_pool2d(image, 3, 1, 1, count_include_pad=False)
    noisy = soft + 0.05 * torch.randn(soft.shape, generator=generator)
    assert np.hypot(*global_shift(noisy, gt)) < 0.1
    assert global_shift(torch.rand(gt.shape, generator=generator), gt) is None


def test_shifted_predictions_warn(tmp_path, caplog):
    for name, move in (("a", (1, 0)), ("b", (1, 0)), ("c", (1, 0.2))):
        image, gt = shifted_pair(*move)
        write_png(tmp_path / "made" / f"{name}.png", image)
        write_png(tmp_path / "truth" / f"{name}.png", gt)
    scores = score_folder(tmp_path / "made", tmp_path / "truth", ["dists"], tmp_path / "out", scorers=SCORERS)
    assert scores["alignment"]["median_shift"] == pytest.approx([1, 0], abs=0.1)
    assert list(scores["alignment"]["pictures"]) == ["a", "b", "c"] and "+1.0" in caplog.text


def test_swapped_names_warn(tmp_path, caplog):
    names = "abcd"
    for number, name in enumerate(names):
        _, image = shifted_pair(0, 0, seed=number)
        write_png(tmp_path / "truth" / f"{name}.png", image)
        write_png(tmp_path / "right" / f"{name}.png", 0.9 * image)
        write_png(tmp_path / "mixed" / f"{names[(number + 1) % 4]}.png", 0.9 * image)
    gt = tmp_path / "truth"
    scores = score_folder(tmp_path / "right", gt, ["dists"], tmp_path / "out", scorers=SCORERS)
    assert scores["alignment"]["unlike"] == [] and "mixed up" not in caplog.text
    scores = score_folder(tmp_path / "mixed", gt, ["dists"], tmp_path / "out_mixed", scorers=SCORERS)
    assert scores["alignment"]["unlike"] == list(names) and scores["alignment"]["estimated"] == 0
    assert "4 of 4 images have too little in common with the ground truth of their name" in caplog.text
    caplog.clear()
    score_images(tmp_path, "noise")  # too small for a shift, so without a warning
    assert "mixed up" not in caplog.text


# --- regions ------------------------------------------------------------------------------------------------


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


# --- without a ground truth ----------------------------------------------------------------------------------------


def test_scoring_without_gt(tmp_path):
    brightness = {"musiq": lambda images: images.mean((1, 2, 3)).double(), "psnr": SCORERS["psnr"]}
    made, fewer = (
        write_images(tmp_path / "made", "abc", 0.1, size=(64, 64)),
        write_images(tmp_path / "fewer", "ab", size=(64, 64)),
    )
    write_png(made / "c.png", np.zeros((64, 64, 3), np.float32))
    rows = {"made": (made, tmp_path / "one"), "fewer": (fewer, tmp_path / "two")}
    for _ in range(2):  # measured, and recalled
        scores = score_folders(rows, None, ["musiq"], scorers=brightness)
        assert list(scores["made"]["pictures"]["flagged"]) == ["c"] and scores["fewer"]["pictures"]["missing"] == ["c"]
        assert scores["fewer"]["means_of_scored_only"]["musiq"] == pytest.approx(0.5, abs=0.01)
        assert scores["made"]["alignment"] == {"median_shift": None, "pictures": {}, "estimated": 0, "unlike": []}
        brightness["musiq"] = lambda images: 9 * images.mean((1, 2, 3)).double()  # only the black one is due
    write_images(tmp_path / "made", "abc", 0.1, size=(64, 64))
    both = {"one": (made, tmp_path / "three")}
    shared = score_in_two_processes(both, None, ["musiq"], brightness)[0]["one"]
    assert shared["complete"] and shared["truth"]["pictures"] == 3
    refused = (({"metrics": ["musiq", "psnr", "id"]}, "psnr, id"), ({"regions": ("whole", "face")}, "face"))
    for options, metrics in refused:
        with pytest.raises(ScoreError, match=f"nothing to compare with for {metrics}: give .*option gt.*of musiq"):
            score_folders(both, None, **{"metrics": ["musiq"], "scorers": brightness} | options)


def test_no_gt_scores_are_not_compared(tmp_path):
    musiq = {"musiq": lambda images: images.mean((1, 2, 3)).double()}
    gt, made = write_images(tmp_path / "truth", "abc"), write_images(tmp_path / "made", "abc", 0.1)
    for name, against in (("with", gt), ("without", None), ("truth", None)):
        given = gt if name == "truth" else made
        score_folder(given, against, ["musiq"], tmp_path / f"out_{name}", scorers=musiq)
    assert compare(tmp_path / "out_without", tmp_path / "out_truth")[0].images == 3
    with pytest.raises(ScoreError, match="scored against other ground truths"):
        compare(tmp_path / "out_with", tmp_path / "out_without")


# --- the command -----------------------------------------------------------------------------------------------


def run_eval_script(*overrides: str) -> None:
    """`scripts/eval.py` in this process."""
    found = importlib.util.spec_from_file_location("script_eval", REPOSITORY / "scripts/eval.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        cfg = compose("eval", list(overrides))
    module.main(cfg)


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


# --- distributed, and compared -------------------------------------------------------------------------------


BATCH = 2 * SIZE[0] * SIZE[1]


def score_in_two_processes(rows, gt, keys=KEYS, scorers=SCORERS, **options) -> dict[int, dict]:
    """`score_folders` by two processes, here threads."""
    barrier, found = threading.Barrier(2, timeout=600), {}

    def share(rank):
        places = {"rank": rank, "processes": 2, "wait": barrier.wait, "batch_pixels": BATCH}
        found[rank] = score_folders(rows, gt, keys, scorers=scorers, **places, **options)

    threads = [threading.Thread(target=share, args=(rank,)) for rank in range(2)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    return found


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


def test_comparison_finds_true_differences(tmp_path):
    names = [f"{n:02d}" for n in range(24)]
    for name, noise, seed in (("good", 0.05, 0), ("bad", 0.1, 1), ("alike", 0.05, 2)):
        score_images(tmp_path, name, names, noise, seed, keys=("dists", "psnr"))
    bad, alike = (compare(tmp_path / "out_good", tmp_path / f"out_{name}") for name in ("bad", "alike"))
    assert [d.verdict for d in bad] == ["first", "first"] and all(d.better == 0 and d.p_holm < 1e-4 for d in bad)
    assert bad[0].interval[0] > 0 > bad[1].interval[1]
    assert alike[0].interval[0] < 0.002 and "good is better" in table(bad, "good", "bad")
    same = compare(tmp_path / "out_good", tmp_path / "out_good")
    assert [d.verdict for d in same] == ["no difference found"] * 2 and same[0].better == 0.5


def test_holm_correction_by_hand():
    def tests(*ps):
        return [Difference("psnr", (0, 1), (0, 1), 1, p, p, 1, 9) for p in ps]

    # 0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1, which may not fall below the one before
    (one,) = corrected([tests(0.01, 0.04, 0.03, 0.005)])
    assert [d.p_holm for d in one] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    two = corrected([tests(0.01, 0.04), tests(0.03, 0.005)])
    assert [d.p_holm for group in two for d in group] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [d.p_holm for d in corrected([tests(0.6, 0.5)])[0]] == [1, 1]


def write_scores(place: Path, values, key="psnr") -> Path:
    """A scored folder of these values."""
    place.mkdir(parents=True)
    lines = [f"name,{key}", *(f"{n:02d},{value}" for n, value in enumerate(values))]
    (place / "scores.csv").write_text("\n".join(lines) + "\n")
    protocol = {key: {"protocol": "", "weights_sha256": {}}}
    scores = {"protocol": protocol, "truth": {"pictures": 20}, "csv_sha256": sha256_of(place / "scores.csv")}
    write_json(place / "scores.json", scores)
    return place


DIRECTIONS = [("psnr", 2, "second"), ("psnr", 99, "mixed"), ("dists", 2, "first")]


@pytest.mark.parametrize(("key", "fall", "verdict"), DIRECTIONS)
def test_verdict_follows_signed_ranks(key, fall, verdict, tmp_path):
    a = write_scores(tmp_path / "a", [20.0] * 20, key)
    b = write_scores(tmp_path / "b", [20 - fall, *(20 + (1 + n) / 20 for n in range(19))], key)
    (found,) = compare(a, b)
    assert found.p_holm < 0.05 and found.ranks == pytest.approx((190 - 20) / 210) and found.verdict == verdict
    assert ("means and signed ranks disagree" in table([found], "a", "b")) == (verdict == "mixed")


def test_unlike_scores_are_not_compared(tmp_path):
    score_images(tmp_path, "one", "abcd", keys=("dists",))
    score_images(tmp_path / "x", "two", "abce", keys=("dists",))
    with pytest.raises(ScoreError, match="only the first has d, only the second e"):
        compare(tmp_path / "out_one", tmp_path / "x/out_two")
    write_images(tmp_path / "y/truth", "abcd", 0.01, seed=5)  # another ground truth under the same names
    for made in (tmp_path / "one", tmp_path / "y/one"):
        score_folder(tmp_path / "one", made.parent / "truth", ["dists"], made / "out", scorers=SCORERS)
    with pytest.raises(ScoreError, match=r"scored against other ground truths, of 4 and 4 images.*option gt"):
        compare(tmp_path / "one/out", tmp_path / "y/one/out")
    score_images(tmp_path, "two", "abcd", keys=("dists",))
    changed = read_json(tmp_path / "out_two/scores.json")
    changed["protocol"]["dists"]["weights_sha256"] = {"other": "net"}
    (tmp_path / "out_two/scores.json").write_text(json.dumps(changed))
    with pytest.raises(ScoreError, match="another protocol"):
        compare(tmp_path / "out_one", tmp_path / "out_two")
    del changed["truth"]
    write_json(tmp_path / "out_two/scores.json", changed)
    with pytest.raises(ScoreError, match=r"out_two does not say what it was scored against: score it again"):
        compare(tmp_path / "out_one", tmp_path / "out_two")


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


def test_interval_narrows_with_more_images():
    values = np.random.default_rng(0).normal(size=400)
    few, many = interval(values[:40]), interval(values)
    assert few[0] < values[:40].mean() < few[1] and many[1] - many[0] < few[1] - few[0]
    assert many[1] - many[0] == pytest.approx(2 * 1.96 / 20, rel=0.15) and interval(values) == many
