"""Unusable folders and images; regions, shifts, distributed scoring and comparisons."""

import numpy as np
import pytest
import torch
from PIL import Image
from scored_folders import KEYS, SCORERS, SIZE, score_images, score_in_two_processes, write_images
from torchvision.transforms.functional import gaussian_blur

from face2scene.eval.scoring.pairing import UNCERTAIN, ScoreError, global_shift
from face2scene.eval.scoring.results import read_scores
from face2scene.eval.scoring.score import score_folder, score_folders
from face2scene.image_io.arrays import write_png


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


def test_duplicate_images_are_reported(tmp_path, caplog):
    gt, made = write_images(tmp_path / "truth", "abc"), write_images(tmp_path / "made", "abc", 0.1)
    (made / "c.png").write_bytes((made / "a.png").read_bytes())
    scores = score_folder(made, gt, KEYS, tmp_path / "out", scorers=SCORERS)
    assert scores["copies"] == {"a": ["c"]} and "same image under several names: a = c" in caplog.text


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


@pytest.mark.parametrize("sigma", [6, 12, 20])
def test_blurred_photo_tells_no_shift(photo, sigma):
    generator = torch.Generator().manual_seed(0)
    gt = torch.from_numpy(photo.copy()).permute(2, 0, 1)[:, 100:356, 100:356]
    for right in (0, 2):
        moved = torch.from_numpy(photo.copy()).permute(2, 0, 1)[:, 100:356, 100 - right : 356 - right]
        soft = gaussian_blur(moved, [8 * sigma + 1] * 2, [sigma] * 2)
        soft = (soft + 0.04 * torch.randn(soft.shape, generator=generator)).clamp(0, 1)
        found = global_shift(soft, gt)
        assert found == UNCERTAIN or np.hypot(*found) <= 0.5, "neither a shift nor another scene"
    other = gt.flip(-1)
    assert global_shift(other, gt) is None


def test_uncertain_shift_is_kept_apart(tmp_path, photo, caplog):
    gt = torch.from_numpy(photo.copy()).permute(2, 0, 1)[:, 100:228, 100:228]
    for name in "abc":
        write_png(tmp_path / "truth" / f"{name}.png", gt.roll(8 * ord(name), -1))
        write_png(tmp_path / "made" / f"{name}.png", gaussian_blur(gt.roll(8 * ord(name), -1), [81] * 2, [10.0] * 2))
    for _ in range(2):  # the second time from what was stored
        scores = score_folder(tmp_path / "made", tmp_path / "truth", ["dists"], tmp_path / "out", scorers=SCORERS)
        assert scores["alignment"]["uncertain"] and scores["alignment"]["unlike"] == []
        assert scores["alignment"]["pictures"] == {}
    assert "mixed up" not in caplog.text and "shifted" not in caplog.text


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
        nothing = {"median_shift": None, "pictures": {}, "estimated": 0, "unlike": [], "uncertain": []}
        assert scores["made"]["alignment"] == nothing
        brightness["musiq"] = lambda images: 9 * images.mean((1, 2, 3)).double()  # only the black one is due
    write_images(tmp_path / "made", "abc", 0.1, size=(64, 64))
    both = {"one": (made, tmp_path / "three")}
    shared = score_in_two_processes(both, None, ["musiq"], brightness)[0]["one"]
    assert shared["complete"] and shared["truth"]["pictures"] == 3
    refused = (({"metrics": ["musiq", "psnr", "id"]}, "psnr, id"), ({"regions": ("whole", "face")}, "face"))
    for options, metrics in refused:
        with pytest.raises(ScoreError, match=f"nothing to compare with for {metrics}: give .*option gt.*of musiq"):
            score_folders(both, None, **{"metrics": ["musiq"], "scorers": brightness} | options)
