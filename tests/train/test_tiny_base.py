"""Pretraining of the tiny base as a restorer."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from face2scene.degradation import Space
from face2scene.image_io.arrays import write_png
from face2scene.models.fadex import FaDeX
from face2scene.models.loading import load_restorer
from face2scene.models.mapnet import MapNet
from face2scene.models.restorer.base_model import load_base
from face2scene.train import tiny_base
from face2scene.train.loop import Schedule, train
from face2scene.train.run import Run


@pytest.fixture
def pairs(tmp_path):
    def build(**options) -> tiny_base.Pairs:
        rng = np.random.default_rng(0)
        for number in range(2):
            write_png(tmp_path / f"photos/{number}.png", rng.random((40, 48, 3)).astype(np.float32))
        files = sorted((tmp_path / "photos").glob("*.png"))
        kinds = [(files[:1], 0.5), (files[1:], 0.5)]
        space = Space(scale=1, no_degradation_prob=0.0, kernel_sizes=(3, 5))
        return tiny_base.Pairs(kinds, **{"crop": 32, "batch": 2, "space": space, "seed": 0} | options)

    return build


@pytest.fixture
def task(pairs, tiny_base_shipped):
    fadex = FaDeX(widths=(8, 8), strides=(2, 1), embedding=8).eval()
    return build_task(tiny_base_shipped, pairs(), pairs(seed=1), fadex)


def build_task(shipped, data, validation, fadex, **changed) -> tiny_base.RestoringTask:
    torch.manual_seed(0)
    shape = {"vae_channels": [8, 16], "unet_channels": [8, 16, 16], "latent_channels": 4, "heads": 2}
    base = tiny_base.untrained(shipped, **shape)
    mapnet = MapNet(in_channels=8, channels=16, heads=2, width=32)
    options = {
        "l1_weight": 1.0,
        "psnr_weight": 0.0,
        "lpips_weight": 0.3,
        "lr": 1e-2,
        "weight_decay": 0.0,
        "ema": 0.5,
        "source": "nowhere",
    }
    return tiny_base.RestoringTask(base, mapnet, fadex, difference, data, validation, **options | changed)


@pytest.fixture
def tiny_base_shipped(request):
    return load_base(request.getfixturevalue("tiny_base"))


def difference(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """In the place of LPIPS."""
    return (output - target).square().mean()


def test_batches_follow_index_and_images_shrink(pairs, tmp_path):
    one, same, other = pairs()[3], pairs()[3], pairs()[4]
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["restored"], one["gt"]) and (one["degraded"] - one["restored"]).abs().mean() > 0.01
    assert not torch.equal(one["gt"], other["gt"])
    assert one["gt"].shape == (2, 3, 32, 32) and (one["image"] - one["gt"]).abs().mean() > 0.01
    (shrunk,) = tiny_base.load_images([tmp_path / "photos/0.png"], longest=24)
    assert shrunk.shape == (20, 24, 3)


def test_shares_must_sum_to_one(pairs):
    with pytest.raises(ValueError, match=r"must sum to 1, not \[0\.7\]"):
        tiny_base.Pairs([([], 0.7)], crop=8, batch=1, space=Space(), seed=0)


def test_untrained_base_starts_near_input(task):
    image = torch.rand(1, 3, 32, 32)
    restored = task.restorer.eval().restore(image, task.restorer.tokens(torch.randn(1, 8, 8, 8), 1))
    assert 0 < (restored - image).abs().mean() < 0.1
    assert all(conv.weight.abs().min() > 0 for conv in task.restorer.vae.skips.convs)


@pytest.mark.numerics
@pytest.mark.usefixtures("no_accelerator_of_another_test")
def test_export_holds_trained_weights(task, tmp_path):
    before = {name: p.detach().clone() for name, p in task.restorer.named_parameters() if p.requires_grad}
    run = Run(tmp_path / "run", {"name": "base"})
    train(task, Accelerator(cpu=True), Schedule(steps=3, validate_every=3), run, seed=0)
    still = [n for n, p in task.restorer.named_parameters() if n in before and torch.equal(p, before[n])]
    assert still == []
    folder = tmp_path / "run/weights"
    with task.eval_weights():
        restorer = task.restorer.eval()
        image = torch.rand(1, 3, 30, 34)
        expected = restorer.restore(image, restorer.tokens(None, 1))
    again = load_restorer(folder / "restorer.safetensors", source=folder / "base")
    assert again.skips and again.residual and again.guidance == 1.0
    assert (expected - image).abs().max() > 1e-3
    torch.testing.assert_close(
        again.restore(image, again.tokens(None, 1)), expected, atol=5e-3, rtol=0
    )  # half precision
    with_tokens = again.restore(image, again.tokens(torch.randn(1, 8, 8, 8), 1))
    assert (with_tokens - expected).abs().max() > 1e-5  # the base reads them
    assert {"validation/psnr", "validation/null_psnr", "validation/input_lpips"} <= task.validate().keys()


@pytest.mark.usefixtures("no_accelerator_of_another_test")
def test_blind_training_goes_on_from_its_export(pairs, tiny_base_shipped, tmp_path):
    options = {"l1_weight": 0.0, "psnr_weight": 0.01}
    blind = [pairs(pairs=False), pairs(pairs=False, seed=1), None]
    task = build_task(tiny_base_shipped, *blind, **options)
    assert set(task.data[0]) == {"image", "gt"}
    train(task, Accelerator(cpu=True), Schedule(steps=2, validate_every=2), Run(tmp_path, {"name": "base"}), seed=0)
    assert set(task.validate()) == {f"validation/{name}" for name in ("psnr", "lpips", "input_psnr", "input_lpips")}
    base = load_base(tmp_path / "weights/base")
    again = tiny_base.untrained_restorer(base, task.restorer.mapnet, "nowhere")
    with task.eval_weights():
        expected = task.restorer.vae.skips.state_dict()
        for name, weight in again.vae.skips.state_dict().items():
            torch.testing.assert_close(weight, expected[name], atol=1e-3, rtol=1e-3)  # exported in fp16


def test_psnr_weighs_decibels_alike(pairs, tiny_base_shipped):
    """Halving an error lowers the loss by 6 dB at errors well above 40 dB, and by less than 1 dB well below."""
    task = build_task(tiny_base_shipped, pairs(), pairs(), None, l1_weight=0.0, psnr_weight=1.0, lpips_weight=0.0)
    gt = torch.rand(1, 3, 8, 8)
    values = []
    for error in (0.4, 0.2, 0.2, 0.1, 0.004, 0.002):
        task._restore = lambda batch, error=error: gt + error
        values.append(task._losses({"gt": gt})["psnr"].item())
    assert values[0] - values[1] == pytest.approx(6.02, abs=0.05)
    assert values[2] - values[3] == pytest.approx(6.02, abs=0.1)
    assert 0 < values[4] - values[5] < 1
    assert values[3] == pytest.approx(-20 + 6.02, abs=0.1)  # images in [-1, 1]
