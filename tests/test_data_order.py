"""What a training is shown: every image once an epoch, mixed by weight, the same from wherever it goes on."""

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


def test_every_picture_comes_once_an_epoch_and_in_another_order_in_the_next():
    order = MixtureSampler([["x"] * 50], seed=3)
    first, second = ([order[n][1] for n in range(start, start + 50)] for start in (0, 50))
    assert sorted(first) == sorted(second) == list(range(50)) and first != second != list(range(50))
    assert first == [MixtureSampler([["x"] * 50], seed=3)[n][1] for n in range(50)]
    assert first != [MixtureSampler([["x"] * 50], seed=4)[n][1] for n in range(50)]


def test_the_papers_mix_holds_exactly_over_one_epoch():
    counts = (11_266, 16_486, 29_697)
    order = MixtureSampler([[""] * n for n in counts])
    assert order.block == sum(counts) == 57_449
    drawn = Counter(order[n] for n in range(order.block))
    assert len(drawn) == 57_449 and set(drawn.values()) == {1}
    early = Counter(order[n][0] for n in range(4000))
    assert [early[k] / 4000 for k in range(3)] == pytest.approx([n / 57_449 for n in counts], abs=0.03)


def test_weights_need_not_be_the_sets_sizes():
    order = MixtureSampler([[""] * 10, [""] * 1000], weights=[0.25, 0.75])
    drawn = [order[n] for n in range(10_000)]
    assert Counter(part for part, _ in drawn) == {0: 2500, 1: 7500}
    small = Counter(number for part, number in drawn if part == 0)
    assert set(small.values()) == {250}  # a small set is gone through again and again, evenly
    with pytest.raises(ValueError, match="weight above 0"):
        MixtureSampler([[""], [""]], weights=[1, 0])


def test_few_archives_are_open_at_a_time():
    shards = [f"s{n // 10}" for n in range(200)]
    order = MixtureSampler([shards], window=3)
    drawn = [shards[order[n][1]] for n in range(200)]
    assert max(len(set(drawn[n : n + 30])) for n in range(0, 200, 30)) == 3
    assert len(set(drawn)) == 20


def test_an_order_survives_the_way_into_a_worker():
    order = MixtureSampler([["x"] * 9, ["y"] * 5], seed=1)
    before = [order[n] for n in range(30)]
    assert [pickle.loads(pickle.dumps(order))[n] for n in range(30)] == before


class Grey:
    """A Stage I that needs nothing and reads its references."""

    name, needs_gt = "grey", False

    def restore(self, degraded, references, *, gt, rng):
        for path in references:
            assert Path(path).is_file(), path
        return torch.full_like(degraded, 0.5)


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("sets")
    for name, people in (("a", 4), ("b", 5)):
        options = {"name": name, "first_person": 10 * people, "train_shots": 3, "size": 64, "licence": "CC0-1.0"}
        options |= {"face_box": (0.3, 0.3, 0.6, 0.6)}
        source = GeneratedPeople(lambda: DrawnPeople(side=64), None, train_people=people, **options)
        build(place / name, [source], settings={}, space=SMALL)
    pack(place / "b", place / "packed", per_shard=4)
    return place / "a", place / "packed"


def stream(sets, **changes) -> SceneBatches:
    mix = [{"folder": str(sets[0]), "weight": 1}, {"folder": str(sets[1]), "weight": 2}]
    options = {
        "crop": 48,
        "face_window": (16, 16),
        "batch": 3,
        "negative_prob": 0.2,
        "token_dropout": 0.1,
        "seed": 5,
    } | changes
    return SceneBatches(mix, SMALL, Grey(), **options)


def test_a_mix_of_loose_and_packed_sets_is_drawn_by_weight(sets):
    data = stream(sets, batch=1)
    drawn = [data._chosen(n, 0, None) for n in range(300)]
    loose, packed = len(Records(sets[0])), len(Records(sets[1]))
    assert sum(n < loose for n in drawn) == 100 and set(drawn) == set(range(loose + packed))
    assert data[0]["image"].shape == (1, 3, 48, 48)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_training_goes_on_at_the_exact_sample_with_any_number_of_workers(sets, workers):
    whole = {}
    for number, batch in loop_batches(stream(sets), Accelerator(cpu=True), 0, 0):
        if number == 12:  # more than an epoch of 27
            break
        whole[number] = batch
    assert not torch.equal(whole[0]["image"], whole[9]["image"])
    stream_again = loop_batches(stream(sets), Accelerator(cpu=True), 7, workers)
    for number, batch in stream_again:
        assert all(torch.equal(batch[key], whole[number][key]) for key in batch), number
        if number == 11:
            break
    del stream_again


def test_two_processes_share_the_samples_of_one(sets):
    data = stream(sets, batch=2)
    one = [data._chosen(n, row, None) for n in range(12) for row in range(2)]
    ranks = [[data._chosen(n * 2 + rank, row, None) for n in range(6) for row in range(2)] for rank in (0, 1)]
    assert sorted(one) == sorted(ranks[0] + ranks[1])


def test_a_packed_picture_is_also_had_as_a_file(sets):
    record = next(iter(Records(sets[1])))
    path = stored_path(sets[1], record.image)
    assert path.is_file() and path == stored_path(sets[1], record.image)
    assert all(stored_path(sets[1], name).is_file() for name in record.references)


def test_small_faces_are_refused_or_shown_with_what_is_around_them(sets):
    with pytest.raises(ValueError, match=r"small_faces be surround"):
        stream(sets, face_window=(16, 64))
    batch = stream(sets, face_window=(64, 64), small_faces="surround", crop=64)[0]
    assert batch["degraded"].shape == (3, 3, 64, 64)


def test_records_are_made_when_they_are_asked_for(sets):
    records = Records(sets[0])
    assert len(records) == 12 and records[-1] == list(records)[11] and records[3].image == records.column("image")[3]
    with pytest.raises(IndexError):
        records[12]
    assert np.array_equal(Records(sets[0], "train").column("width"), [64] * 12)
