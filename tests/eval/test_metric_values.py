"""Metric values."""

from pathlib import Path

import numpy as np
import pytest
import torch

from face2scene.assets import catalogue
from face2scene.eval.metrics import pyiqa_backend
from face2scene.eval.metrics.psnr_ssim import ssim_y
from face2scene.eval.metrics.pyiqa_backend import Pyiqa
from face2scene.eval.metrics.registry import METRICS, build_all, choose
from face2scene.image_io.arrays import read_tensor

# Published with the calibration images (I03, I04, I06, I08, I19), four decimals.
PUBLISHED = {
    "lpips": [0.7237, 0.2572, 0.0508, 0.0521, 0.4253],
    "dists": [0.4742, 0.1424, 0.0682, 0.0287, 0.3123],
}


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


@pytest.mark.parametrize("key", ["musiq", "clipiqa", "liqe"])
def test_fetched_files_are_placed_for_pyiqa(key, tmp_path, monkeypatch):
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path))
    for name in ("pyiqa", "clip_rn50", "clip_vit_b32"):
        asset, partial = catalogue.catalogue()[name], tmp_path / f"{name}.partial"
        partial.mkdir()
        for file in asset.files:
            (partial / file).write_text(file)
        catalogue.install(asset, partial, tmp_path, "test")
    for file in METRICS[key].engine.files:
        assert pyiqa_backend.ready(file, pyiqa_backend.torch_home()).read_text() == Path(file).name


def test_placed_trunk_omits_classifier(weights, tmp_path):
    weights("lpips")
    assert pyiqa_backend.ready(pyiqa_backend.ALEXNET, tmp_path).stat().st_size < 11_000_000
    with pytest.raises(catalogue.MissingWeights, match="fetch pyiqa"):
        pyiqa_backend.ready("hub/pyiqa/never.pth", tmp_path)
