"""Batches of the restorer's training."""

import numpy as np
import pytest
import torch
from inscene import record

from face2scene.data.records import write_manifest
from face2scene.data.scene_batches import SceneBatches
from face2scene.degradation import Space
from face2scene.image_io.arrays import write_png


class Grey:
    """A Stage I that is easy to tell from the ground truth."""

    name, needs_gt = "grey", False

    def restore(self, degraded, references, *, gt, rng):
        return torch.full_like(degraded, 0.5)


@pytest.fixture
def folder(tmp_path):
    rows = []
    for number in range(4):
        image = np.random.default_rng(number).random((48, 48, 3)).astype(np.float32)
        write_png(tmp_path / f"{number}.png", image)
        references = ("0.png",) if number % 2 else ()
        rows.append(record(tmp_path / f"{number}.png", (8.0, 8.0, 40.0, 40.0), references=references, sha256=""))
    write_manifest(tmp_path, rows)
    return tmp_path


def batches(folder, **options) -> SceneBatches:
    options = {
        "negative_prob": 0.0,
        "token_dropout": 0.0,
        "seed": 0,
        "crop": 32,
        "face_window": (16, 16),
        "batch": 40,
    } | options
    return SceneBatches(folder, Space(scale=1), Grey(), **options)


def share_of_gt(batch) -> float:
    return (batch["restored"] != 0.5).flatten(1).any(1).float().mean().item()


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.3, 0.1, 0.5), (1.0, 1, 1)])
def test_the_restored_face_is_the_truth_as_often_as_asked(folder, share, low, high):
    assert low <= share_of_gt(batches(folder, gt_share=share)[0]) <= high


def test_pictures_without_references_take_the_truth_where_asked(folder):
    assert share_of_gt(batches(folder)[0]) == 0
    assert 0.3 < share_of_gt(batches(folder, gt_without_references=True)[0]) < 0.7  # half have no references


def test_every_picture_of_every_batch_has_a_seed_of_its_own_that_comes_again(folder):
    data = batches(folder, batch=8)
    seeds = [data[index]["seed"] for index in range(3)]
    assert len(torch.cat(seeds).unique()) == 24
    assert torch.equal(seeds[1], batches(folder, batch=8)[1]["seed"])


def test_a_negatives_target_is_what_was_damaged_and_its_truth_is_not(folder):
    batch = batches(folder, negative_prob=0.5)[0]
    bad = batch["negative"]
    assert 5 < bad.sum() < 35
    assert torch.equal(batch["target"][bad], batch["image"][bad])
    assert torch.equal(batch["target"][~bad], batch["gt"][~bad])
    assert (batch["gt"] - batch["image"]).flatten(1).abs().amax(1).gt(0).float().mean() > 0.9
