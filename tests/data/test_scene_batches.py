"""Batches of the restorer's training."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from inscene_records import record

from face2scene.common.types import Scene
from face2scene.data.records import write_manifest
from face2scene.data.scene_batches import SceneBatches, held_out
from face2scene.degradation import Space
from face2scene.image_io.arrays import write_png
from face2scene.ref_fr import Copy, FaceRestorationError
from face2scene.train.dataloader import batches as loaded


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
        "batch": 40,
    } | options
    return SceneBatches(dataset, Space(scale=1), GreyStageOne(), **options)


def share_of_gt(batch) -> float:
    return float(np.mean([bool((face != 0.5).any()) for face in batch["restored"]]))


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.3, 0.1, 0.5), (1.0, 1, 1)])
def test_gt_share_is_respected(dataset, share, low, high):
    assert low <= share_of_gt(batches(dataset, gt_share=share)[0]) <= high


def test_images_without_references_use_gt(dataset):
    assert share_of_gt(batches(dataset)[0]) == 0
    assert 0.3 < share_of_gt(batches(dataset, gt_without_references=True)[0]) < 0.7  # half have no references


def test_image_seeds_are_unique_and_stable(dataset):
    data = batches(dataset, batch=8)
    seeds = [data[index]["seed"] for index in range(3)]
    assert len({seed for row in seeds for seed in row}) == 24
    assert seeds[1] == batches(dataset, batch=8)[1]["seed"]


def test_images_are_degraded(dataset):
    batch = batches(dataset)[0]
    assert (batch["gt"] - batch["image"]).flatten(1).abs().amax(1).gt(0).float().mean() > 0.9


def test_small_crop_is_the_one_before_enlargement(dataset):
    space = Space(scale=4, no_degradation_prob=0.0)
    options = {"negative_prob": 0.0, "token_dropout": 0.0, "crop": 32, "batch": 12}
    batch = SceneBatches(dataset, space, GreyStageOne(), seed=0, small=4, **options)[0]
    assert batch["small"].shape == (12, 3, 8, 8)
    again = torch.nn.functional.interpolate(batch["small"], scale_factor=4, mode="bicubic")
    inner = (slice(None), slice(None), slice(8, -8), slice(8, -8))  # the crop ends within the kernel elsewhere
    torch.testing.assert_close(again[inner], batch["image"][inner], atol=1e-5, rtol=0)
    assert "small" not in SceneBatches(dataset, Space(scale=1), GreyStageOne(), seed=0, small=1, **options)[0]


class Coordinates:
    """A degradation that only marks where a pixel lies, and a Stage I that shows what it was given."""

    name, needs_gt = "coordinates", False

    def draw(self, rng):
        return self

    def apply(self, image):
        rows = torch.linspace(0, 1, image.shape[-2])[:, None].expand(image.shape[-2:])
        return torch.stack([rows, torch.linspace(0, 1, image.shape[-1]).expand_as(rows), rows * 0])

    def restore(self, degraded, references, *, gt, rng):
        return 1 - degraded


def write_faces(folder, sides, width=512, people=None, split="train") -> None:
    rows = []
    for number, side in enumerate(sides):
        path = folder / f"{split}{number}.png"
        write_png(path, np.zeros((320, width, 3), np.float32))
        known = {"split": split, "identity": people[number] if people else f"p{number}", "sha256": str(number)}
        lq = {"lq": path.name, "recipe": {"operators": []}} if split == "val" else {}
        rows.append(record(path, (20.0, 30.0, 20.0 + side, 30.0 + side), **known, **lq))
    write_manifest(folder, rows)


@pytest.mark.parametrize("side", [8, 96, 130, 260])
def test_training_and_validation_crop_as_inference(tmp_path, make_pipeline, side):
    """From less than InScene's smallest face of 96 pixels to one beyond the largest crop."""
    marks, known = Coordinates(), {"negative_prob": 0, "token_dropout": 0, "seed": 0, "crop": 320, "batch": 4}
    write_faces(tmp_path / "train", [side])
    write_faces(tmp_path / "val", [side], split="val")
    image = marks.apply(torch.zeros(3, 320, 512))
    box = (20.0, 30.0, 20.0 + side, 30.0 + side)
    expected = make_pipeline(ref_fr=Copy()).estimate(Scene("x", image), box=box).pair.degraded
    assert expected.shape[-1] == {8: 16, 96: 134, 130: 182, 260: 256}[side]
    batch = SceneBatches(tmp_path / "train", marks, marks, **known)[0]
    mirrored = [bool(degraded[1, 0, 0] > 0.3) for degraded in batch["degraded"]]
    assert any(mirrored) and not all(mirrored)
    for degraded, restored, turned in zip(batch["degraded"], batch["restored"], mirrored, strict=True):
        columns = 1 - degraded[1].flip(-1) if turned else degraded[1]
        torch.testing.assert_close(torch.stack([degraded[0], columns]), expected[:2], atol=1e-6, rtol=0)
        torch.testing.assert_close(restored, 1 - degraded)  # all of it restored
    (pair,) = held_out(tmp_path / "val", marks, count=1, seed=0)
    assert pair.pair.degraded.shape == expected.shape


def test_validation_images_are_of_many_people(tmp_path):
    people = ["a"] * 9 + ["b"] * 2 + ["c"]
    write_faces(tmp_path, [40] * 12, people=people, split="val")

    def shown(count: int, seed: int = 0) -> list[str]:
        return [pair.record.identity for pair in held_out(tmp_path, Copy(), count=count, seed=seed)]

    assert sorted(shown(3)) == ["a", "b", "c"] and sorted(shown(5)) == ["a", "a", "b", "b", "c"]
    assert shown(5) == shown(5, seed=9) and shown(5)[:3] == shown(3)
    assert sorted(shown(20)) == sorted(people)


def test_validation_leaves_refused_faces_out(tmp_path, caplog):
    write_faces(tmp_path, [40] * 3, split="val")

    class Refusing(Coordinates):
        refusals = 0

        def restore(self, degraded, references, *, gt, rng):
            self.refusals += 1
            if self.refusals == 1:
                raise FaceRestorationError("the face is turned away.")
            return degraded

    assert len(held_out(tmp_path, Refusing(), count=2, seed=0)) == 2
    assert "because the face is turned away." in caplog.text


def test_image_memory_holds_for_the_machine(dataset, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    data = batches(dataset, cache_mib=1)
    _, batch = next(loaded(data, Accelerator(cpu=True), 0, 0))
    assert data._free_bytes + sum(image.nbytes for image in data._images.values()) == 2**20 // 4
    assert batch["image"].dtype == batch["restored"][0].dtype == torch.float32
    assert len((batch["image"] * 255).round().unique()) > 100
    torch.testing.assert_close(batch["gt"], data[0]["gt"], atol=1e-6, rtol=0)  # 8 bits already


def test_batches_hold_no_image_twice(dataset):
    batch = batches(dataset, negative_prob=0.5)[0]
    assert "target" not in batch and 5 < batch["negative"].sum() < 35
