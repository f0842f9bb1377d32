"""Batches of the restorer's training."""

import numpy as np
import pytest
import torch
from inscene_records import record

from face2scene.data.records import write_manifest
from face2scene.data.scene_batches import SceneBatches
from face2scene.degradation import Space
from face2scene.image_io.arrays import write_png


class GreyStageOne:
    """A Stage I whose result differs clearly from the ground truth."""

    name, needs_gt = "grey", False

    def restore(self, degraded, references, *, gt, rng):
        return torch.full_like(degraded, 0.5)


@pytest.fixture
def dataset(tmp_path):
    rows = []
    for number in range(4):
        image = np.random.default_rng(number).random((48, 48, 3)).astype(np.float32)
        write_png(tmp_path / f"{number}.png", image)
        references = ("0.png",) if number % 2 else ()
        rows.append(record(tmp_path / f"{number}.png", (8.0, 8.0, 40.0, 40.0), references=references, sha256=""))
    write_manifest(tmp_path, rows)
    return tmp_path


def batches(dataset, **options) -> SceneBatches:
    options = {
        "negative_prob": 0.0,
        "token_dropout": 0.0,
        "seed": 0,
        "crop": 32,
        "face_window": (16, 16),
        "batch": 40,
    } | options
    return SceneBatches(dataset, Space(scale=1), GreyStageOne(), **options)


def share_of_gt(batch) -> float:
    return (batch["restored"] != 0.5).flatten(1).any(1).float().mean().item()


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.3, 0.1, 0.5), (1.0, 1, 1)])
def test_gt_share_is_respected(dataset, share, low, high):
    assert low <= share_of_gt(batches(dataset, gt_share=share)[0]) <= high


def test_images_without_references_use_gt(dataset):
    assert share_of_gt(batches(dataset)[0]) == 0
    assert 0.3 < share_of_gt(batches(dataset, gt_without_references=True)[0]) < 0.7  # half have no references


def test_image_seeds_are_unique_and_stable(dataset):
    data = batches(dataset, batch=8)
    seeds = [data[index]["seed"] for index in range(3)]
    assert len(torch.cat(seeds).unique()) == 24
    assert torch.equal(seeds[1], batches(dataset, batch=8)[1]["seed"])


def test_negative_target_is_degraded_image(dataset):
    batch = batches(dataset, negative_prob=0.5)[0]
    bad = batch["negative"]
    assert 5 < bad.sum() < 35
    assert torch.equal(batch["target"][bad], batch["image"][bad])
    assert torch.equal(batch["target"][~bad], batch["gt"][~bad])
    assert (batch["gt"] - batch["image"]).flatten(1).abs().amax(1).gt(0).float().mean() > 0.9


def test_small_crop_is_the_one_before_enlargement(dataset):
    space = Space(scale=4, no_degradation_prob=0.0)
    options = {"negative_prob": 0.0, "token_dropout": 0.0, "crop": 32, "face_window": (16, 16), "batch": 12}
    batch = SceneBatches(dataset, space, GreyStageOne(), seed=0, small=4, **options)[0]
    assert batch["small"].shape == (12, 3, 8, 8)
    again = torch.nn.functional.interpolate(batch["small"], scale_factor=4, mode="bicubic")
    inner = (slice(None), slice(None), slice(8, -8), slice(8, -8))  # the crop ends within the kernel elsewhere
    torch.testing.assert_close(again[inner], batch["image"][inner], atol=1e-5, rtol=0)
