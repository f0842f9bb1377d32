"""The order of training images: once an epoch, mixed by weight, equal after a resume at any sample."""

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from face2scene.data.building.build import build
from face2scene.data.records import Records
from face2scene.data.sampler import MixtureSampler
from face2scene.data.scene_batches import SceneBatches
from face2scene.data.shards import pack, stored_path
from face2scene.data.sources.generated import DrawnPeople, GeneratedPeople
from face2scene.degradation import Space
from face2scene.train.loop import batches as loop_batches

SMALL = Space(scale=1, kernel_sizes=(7, 7), resize_probs=(0, 0, 1), resize_probs2=(0, 0, 1), final_sinc_prob=0)


def test_each_epoch_is_a_new_permutation():
    order = MixtureSampler([["x"] * 50], seed=3)
    first, second = ([order[n][1] for n in range(start, start + 50)] for start in (0, 50))
    assert sorted(first) == sorted(second) == list(range(50)) and first != second != list(range(50))
    assert first == [MixtureSampler([["x"] * 50], seed=3)[n][1] for n in range(50)]
    assert first != [MixtureSampler([["x"] * 50], seed=4)[n][1] for n in range(50)]


def test_paper_mixture_is_exact_per_epoch():
    counts = (11_266, 16_486, 29_697)
    order = MixtureSampler([[""] * n for n in counts])
    assert order.block == sum(counts) == 57_449
    drawn = Counter(order[n] for n in range(order.block))
    assert len(drawn) == 57_449 and set(drawn.values()) == {1}
    early = Counter(order[n][0] for n in range(4000))
    assert [early[k] / 4000 for k in range(3)] == pytest.approx([n / 57_449 for n in counts], abs=0.03)


def test_mixture_weights_are_respected():
    order = MixtureSampler([[""] * 10, [""] * 1000], weights=[0.25, 0.75])
    drawn = [order[n] for n in range(10_000)]
    assert Counter(part for part, _ in drawn) == {0: 2500, 1: 7500}
    small = Counter(number for part, number in drawn if part == 0)
    assert set(small.values()) == {250}  # a small set is gone through again and again, evenly
    with pytest.raises(ValueError, match="weight above 0"):
        MixtureSampler([[""], [""]], weights=[1, 0])


def test_shard_window_limits_open_shards():
    shards = [f"s{n // 10}" for n in range(200)]
    order = MixtureSampler([shards], window=3)
    drawn = [shards[order[n][1]] for n in range(200)]
    assert max(len(set(drawn[n : n + 30])) for n in range(0, 200, 30)) == 3
    assert len(set(drawn)) == 20


def test_sampler_pickles():
    order = MixtureSampler([["x"] * 9, ["y"] * 5], seed=1)
    before = [order[n] for n in range(30)]
    assert [pickle.loads(pickle.dumps(order))[n] for n in range(30)] == before


class GreyRestorer:
    """A Stage I without weights that reads its references."""

    name, needs_gt = "grey", False

    def restore(self, degraded, references, *, gt, rng):
        for path in references:
            assert Path(path).is_file(), path
        return torch.full_like(degraded, 0.5)


@pytest.fixture(scope="module")
def dataset_folders(tmp_path_factory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("sets")
    for name, people in (("a", 4), ("b", 5)):
        options = {"name": name, "first_person": 10 * people, "train_shots": 3, "size": 64, "licence": "CC0-1.0"}
        options |= {"face_box": (0.3, 0.3, 0.6, 0.6)}
        source = GeneratedPeople(lambda: DrawnPeople(side=64), None, train_people=people, **options)
        build(place / name, [source], settings={}, space=SMALL)
    pack(place / "b", place / "packed", per_shard=4)
    return place / "a", place / "packed"


def make_batches(dataset_folders, **changes) -> SceneBatches:
    mix = [{"folder": str(dataset_folders[0]), "weight": 1}, {"folder": str(dataset_folders[1]), "weight": 2}]
    options = {
        "crop": 48,
        "batch": 3,
        "negative_prob": 0.2,
        "token_dropout": 0.1,
        "seed": 5,
    } | changes
    return SceneBatches(mix, SMALL, GreyRestorer(), **options)


def test_loose_and_packed_sets_are_mixed(dataset_folders):
    data = make_batches(dataset_folders, batch=1)
    drawn = [data._chosen(n, 0, None) for n in range(300)]
    loose, packed = len(Records(dataset_folders[0])), len(Records(dataset_folders[1]))
    assert sum(n < loose for n in drawn) == 100 and set(drawn) == set(range(loose + packed))
    assert data[0]["image"].shape == (1, 3, 48, 48)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_resume_at_sample_for_any_workers(dataset_folders, workers):
    whole = {}
    for number, batch in loop_batches(make_batches(dataset_folders), Accelerator(cpu=True), 0, 0):
        if number == 12:  # more than an epoch of 27
            break
        whole[number] = batch
    assert not torch.equal(whole[0]["image"], whole[9]["image"])
    stream_again = loop_batches(make_batches(dataset_folders), Accelerator(cpu=True), 7, workers)
    for number, batch in stream_again:
        torch.testing.assert_close(batch, whole[number], rtol=0, atol=0)
        if number == 11:
            break
    del stream_again


def test_ranks_split_the_samples(dataset_folders):
    data = make_batches(dataset_folders, batch=2)
    one = [data._chosen(n, row, None) for n in range(12) for row in range(2)]
    ranks = [[data._chosen(n * 2 + rank, row, None) for n in range(6) for row in range(2)] for rank in (0, 1)]
    assert sorted(one) == sorted(ranks[0] + ranks[1])


def test_packed_image_is_extracted(dataset_folders):
    record = next(iter(Records(dataset_folders[1])))
    path = stored_path(dataset_folders[1], record.image)
    assert path.is_file() and path == stored_path(dataset_folders[1], record.image)
    assert all(stored_path(dataset_folders[1], name).is_file() for name in record.references)


def test_records_are_lazy(dataset_folders):
    records = Records(dataset_folders[0])
    assert len(records) == 12 and records[-1] == list(records)[11] and records[3].image == records.column("image")[3]
    with pytest.raises(IndexError):
        records[12]
    assert np.array_equal(Records(dataset_folders[0], "train").column("width"), [64] * 12)
