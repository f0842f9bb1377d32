import copy
import json
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate_processes import run_in_two_processes
from fadex_training import SMALL_ENCODER, SPACE, pairs, small_moco, train_on_rank, train_plain
from host_reads import HostReads

from face2scene.common.model_files import save_weights
from face2scene.data.face_pair_batches import FacePairBatches, RestoredBy, degrade_each
from face2scene.degradation import Blur, GaussianNoise, Recipe, Space
from face2scene.models.fadex import Contrast, FaDeX, KeyQueue, compare
from face2scene.models.fadex.moco import EMPTY
from face2scene.ref_fr import Copy
from face2scene.train.fadex_task import FaDeXTask

pytestmark = pytest.mark.usefixtures("no_accelerator_of_another_test")


def contrast_of(module, batch):
    query, key = ((batch[f"{view}_restored"], batch[f"{view}_degraded"]) for view in ("query", "key"))
    return module(query, key, batch["labels"])


# Encoder


@pytest.mark.numerics
def test_equal_pair_zeroes_first_layer():
    face = torch.rand(2, 3, 20, 20)
    for order in ("restored_first", "degraded_first"):
        encoder = FaDeX(**SMALL_ENCODER, order=order)
        assert encoder.body[0](torch.cat([face, face], dim=1)).abs().max() < 1e-6
    plain = FaDeX(**SMALL_ENCODER, start="random")
    assert plain.body[0](torch.cat([face, face], dim=1)).abs().max() > 1e-2


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (48, 20)])
def test_map_has_half_the_input_size(size):
    encoder = FaDeX().eval()
    features = encoder(torch.rand(1, 3, *size), torch.rand(1, 3, *size))
    assert features.shape == (1, 256, math.ceil(size[0] / 2), math.ceil(size[1] / 2))
    assert encoder.embed(features).norm(dim=1).item() == pytest.approx(1, abs=1e-6)


def test_invalid_crops_and_options_raise():
    encoder = FaDeX(**SMALL_ENCODER)
    with pytest.raises(ValueError, match=r"15 x 40 pixels.*needs 16.*train\.fadex\.crop"):
        encoder(torch.rand(1, 3, 40, 15), torch.rand(1, 3, 40, 15))
    with pytest.raises(ValueError, match="one size"):
        encoder(torch.rand(1, 3, 20, 20), torch.rand(1, 3, 20, 24))
    with pytest.raises(ValueError, match=r"fadex\.encoder\.inputs must be one of pair, lq_only"):
        FaDeX(inputs="both")
    with pytest.raises(ValueError, match=r"fadex\.encoder\.strides"):
        FaDeX(widths=(4, 8), strides=(1,))


def test_lq_only_ignores_restored_face():
    encoder = FaDeX(**SMALL_ENCODER, inputs="lq_only").eval()
    degraded = torch.rand(1, 3, 16, 16)
    assert torch.equal(encoder(torch.rand_like(degraded), degraded), encoder(degraded, degraded))


@pytest.mark.numerics
def test_encoder_save_load_round_trip(tmp_path):
    encoder = FaDeX(**SMALL_ENCODER, head_norm=True, order="degraded_first")
    for _ in range(2):
        encoder.embed(encoder(torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16)))
    encoder.save(tmp_path / "fadex.safetensors")
    again = FaDeX.from_file(tmp_path / "fadex.safetensors")
    pair = torch.rand(2, 3, 3, 18, 18)
    assert again.config == encoder.config and not again.training
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in encoder.state_dict().items())
    # one is frozen and the other is not, for which there may be two kernels
    torch.testing.assert_close(again.embed(again(*pair)), encoder.eval().embed(encoder(*pair)), atol=1e-6, rtol=0)


def test_wrong_kind_or_width_raises(tmp_path):
    encoder = FaDeX(**SMALL_ENCODER)
    save_weights(tmp_path / "a.safetensors", encoder.state_dict(), kind="mapnet", config=encoder.config)
    with pytest.raises(ValueError, match="holds 'mapnet', not 'fadex'"):
        FaDeX.from_file(tmp_path / "a.safetensors")
    wider = {**encoder.config, "widths": [4, 16]}
    save_weights(tmp_path / "b.safetensors", encoder.state_dict(), kind="fadex", config=wider)
    with pytest.raises(ValueError, match="does not fit FaDeX"):
        FaDeX.from_file(tmp_path / "b.safetensors")


# Contrast


def test_queue_overwrites_oldest_keys():
    queue = KeyQueue(size=5, width=2)
    for value in range(4):
        queue.enqueue(torch.full((2, 2), float(value)), torch.full((2,), value))
    assert queue.keys[:, 0].tolist() == [2, 3, 3, 1, 2]
    assert queue.labels.tolist() == [2, 3, 3, 1, 2]
    queue.enqueue(torch.full((5, 2), 9.0), torch.full((5,), 9))
    assert queue.labels.tolist() == [9] * 5


def test_enqueue_beyond_queue_size_raises():
    with pytest.raises(ValueError, match=r"6 keys.*queue of 5: raise fadex\.contrast\.queue_size"):
        KeyQueue(5, 2).enqueue(torch.zeros(6, 2), torch.zeros(6, dtype=torch.int64))


def test_key_encoder_is_ema_of_query():
    module = small_moco(momentum=0.75)
    with torch.no_grad():
        module.query.body[0].weight.fill_(1.0)
        module.key.body[0].weight.fill_(0.0)
    for expected in (0.25, 0.4375):
        module.update(torch.zeros(2, 8), torch.zeros(2, dtype=torch.int64))
        assert module.key.body[0].weight.unique().tolist() == [expected]
    assert not any(p.requires_grad for p in module.key.parameters())


@pytest.mark.numerics
def test_forward_moves_running_statistics_only(face_files):
    module, batch = small_moco(), pairs(face_files)[0]
    before = copy.deepcopy(module.state_dict())
    first, second = contrast_of(module, batch), contrast_of(module, batch)
    assert torch.equal(first.logits, second.logits)
    moved = {name.rpartition(".")[2] for name, t in module.state_dict().items() if not torch.equal(t, before[name])}
    assert moved == {"running_mean", "running_var", "num_batches_tracked"}
    module.update(first.keys, first.labels)
    assert module.queue.labels[:6].tolist() == batch["labels"].tolist()


@pytest.mark.numerics
def test_contrast_loss_matches_by_hand():
    # Operators 0 0 1 1 against keys 0 0 1 1 and three slots of the queue: operator 0, another one, empty.
    labels, names = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1, 0, 7, -1])
    logits = torch.arange(28.0).reshape(4, 7).sin() * 3
    same = labels[:, None] == names
    batch = torch.arange(7) < 4
    contrast = Contrast(logits, same & batch, ~same & (names != -1), torch.zeros(4, 2), labels)
    partners = {0: ([0, 1], [2, 3, 5]), 1: ([2, 3], [0, 1, 4, 5])}  # positives, negatives
    sums = []
    for row, label in enumerate(labels.tolist()):
        positives, negatives = partners[label]
        whole = sum(math.exp(logits[row, a]) for a in positives + negatives)
        sums.append(sum(-math.log(math.exp(logits[row, p]) / whole) for p in positives))
    assert contrast.loss().item() == pytest.approx(sum(sums) / 4, rel=1e-6)
    assert contrast.loss(mean_over_positives=True).item() == pytest.approx(sum(sums) / 8, rel=1e-6)


def test_contrast_masks_follow_labels(face_files):
    module, batch = small_moco(), pairs(face_files)[0]
    module.queue.enqueue(torch.ones(2, 8), torch.tensor([int(batch["labels"][0]), 5]))
    contrast = contrast_of(module, batch)
    assert contrast.positive.sum(1).tolist() == [2] * 6  # the two keys of the operator, and none of the queue
    assert contrast.negative[0].sum() == 4 + 1 and contrast.negative[5].sum() == 4 + 2
    assert not contrast.negative[:, 8:].any()  # slots that were never filled


@pytest.mark.numerics
def test_loss_is_order_and_view_invariant():
    torch.manual_seed(0)
    q, k = (torch.nn.functional.normalize(torch.randn(6, 4), dim=1) for _ in range(2))
    labels = torch.tensor([3, 3, 5, 5, 8, 8])

    def loss(a, b, names):
        same = names[:, None] == labels[None]
        return Contrast(a @ b.T, same, ~same, b, names).loss()

    order = torch.tensor([4, 0, 2, 5, 1, 3])
    torch.testing.assert_close(loss(q[order], k, labels[order]), loss(q, k, labels))
    torch.testing.assert_close(loss(q, q, labels), loss(-q, -q, labels))
    same_views = loss(k, k, labels)
    torch.testing.assert_close(same_views, loss(k.clone(), k, labels))


def test_equal_codes_give_log_of_pair_count():
    labels = torch.tensor([0, 0, 1, 1])
    same = labels[:, None] == labels
    contrast = Contrast(torch.full((4, 4), 3.0), same, ~same, torch.zeros(4, 2), labels)
    assert contrast.loss(mean_over_positives=True).item() == pytest.approx(math.log(4))


class OneOperator:
    """A space of a single operator."""

    def draw(self, rng):
        return Recipe((Blur("iso", 3, 1.0),))


def test_single_operator_raises(face_files):
    with pytest.raises(ValueError, match=r"one operator.*train\.fadex\.operators"):
        FacePairBatches(face_files, [(8, 8, 36, 36)] * 6, OneOperator(), operators=3, images=2, crop=16, seed=0)[0]
    with pytest.raises(ValueError, match=r"raise train\.fadex\.operators"):
        pairs(face_files, operators=1)


def test_training_step_reads_nothing_back(face_files):
    accelerator = Accelerator(cpu=True)
    data, options = pairs(face_files), {"lr": 1e-3, "probe_on": "space"}
    task = FaDeXTask(small_moco(queue_size=20), data, data, accelerator, **options)
    task.moco.gather = task._gather  # as with several processes
    batch = data[0]
    with HostReads() as reads:
        task.losses(batch)["contrast"].backward()
        task.after_step()
    assert reads.found == []


def test_padded_keys_are_never_stored():
    queue = KeyQueue(size=6, width=2)
    for value in range(2):
        keys = torch.tensor([[value, 0.0], [9, 9], [value, 1], [9, 9]])
        queue.enqueue(keys, torch.tensor([value, EMPTY, value, EMPTY]))
    assert queue.labels.tolist() == [0, 0, 1, 1, EMPTY, EMPTY] and queue.cursor == 4
    assert queue.keys[:4].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_whole_multiple_of_the_crop_is_cut(face_files):
    data = FacePairBatches(
        [np.zeros((520, 520, 3), np.uint8)] * 8, [(60, 60, 460, 460)] * 8, SPACE, operators=2, images=4, crop=16, seed=0
    )
    assert data[0]["query_degraded"].shape == (8, 3, 16, 16)  # 400 pixels reduced by 25 leave one place, to rounding


# Pairs


def test_batch_depends_only_on_index(face_files):
    one, two = pairs(face_files), pairs(face_files)
    one[0]
    again, other = two[3], one[3]
    assert all(torch.equal(again[name], other[name]) for name in again)
    assert not torch.equal(one[4]["query_degraded"], other["query_degraded"])
    assert not torch.equal(pairs(face_files, seed=1)[3]["labels"], other["labels"])


def test_operator_faces_are_distinct(face_files):
    batch = pairs(face_files)[0]
    assert batch["query_restored"].shape == batch["key_degraded"].shape == (6, 3, 16, 16)
    assert len(batch["labels"].unique()) == 3 and torch.equal(batch["labels"][::2], batch["labels"][1::2])
    first = torch.cat([batch["query_restored"][:2], batch["key_restored"][:2]])
    assert len(first.flatten(1).unique(dim=0)) == 4
    assert not torch.equal(batch["query_restored"], batch["query_degraded"])


@pytest.mark.parametrize("seed", range(6))
def test_crops_do_not_leak_into_each_other(seed):
    """Every operator of the paper's space, noise and JPEG among them."""
    first, *others = torch.rand(5, 3, 48, 48, generator=torch.Generator().manual_seed(seed))
    recipe = Space().draw(np.random.default_rng(seed))
    beside_noise, beside_black = (degrade_each(recipe, [first, *rest])[0] for rest in (others, [first * 0] * 4))
    assert torch.equal(beside_noise, beside_black)  # the same computation, to the bit
    same = degrade_each(Recipe((GaussianNoise(10.0),)), [first, first])
    assert not torch.equal(*same), "noise differs between crops"


def test_restored_face_is_gt_or_stage_one(face_files):
    rng, face = np.random.default_rng(0), torch.rand(3, 20, 20)
    assert torch.equal(RestoredBy(Copy(), gt_share=0.0)(face, face / 2, rng), face / 2)
    assert torch.equal(RestoredBy(Copy(), gt_share=1.0)(face, face / 2, rng), face)
    batch = pairs(face_files, restore=RestoredBy(Copy()))[0]
    assert torch.equal(batch["query_restored"], batch["query_degraded"])


def test_too_few_or_too_small_faces_raise(face_files):
    with pytest.raises(ValueError, match=r"faces of 48 pixels, and 0 of 6 are so large.*train\.fadex\.crop"):
        pairs(face_files, crop=48)
    with pytest.raises(ValueError, match=r"2 x 4 different images.*train\.fadex\.images"):
        pairs(face_files, images=4)


# Probe and training


def test_cosine_probe_matches_by_hand():
    a, b, c = torch.eye(3)
    found = compare(torch.stack([torch.stack([a, a, a]), torch.stack([b, b, c])]), ["d1", "d2"])
    assert found["same"] == pytest.approx({"d1": 1, "d2": 1 / 3})
    assert found["cross"] == {"d1-d2": 0} and found["different_mean"] == 0
    assert found["same_mean"] == pytest.approx(2 / 3) and found["matrix"][0] == [1, 0]
    assert found["retrieval_top1"] == pytest.approx(5 / 6)  # c has no partner; of equals the first is d1's
    with pytest.raises(ValueError, match="two operators"):
        compare(torch.rand(1, 3, 4), ["d1"])


@pytest.mark.numerics
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_is_bitwise_exact(tmp_path, face_files, accumulate):
    whole = train_plain(tmp_path / "whole", face_files, 4, accumulate).moco.state_dict()
    train_plain(tmp_path / "halves", face_files, 2, accumulate)
    halves = train_plain(tmp_path / "halves", face_files, 4, accumulate).moco.state_dict()
    assert all(torch.equal(t, halves[name]) for name, t in whole.items())
    assert halves["queue.cursor"] == 4 * accumulate * 6 % 20  # the keys of every accumulated batch are there
    assert not torch.equal(whole["key.head.0.weight"], whole["query.head.0.weight"])


def test_training_exports_encoder_and_probe(tmp_path, face_files):
    task = train_plain(tmp_path, face_files, 2)
    again = FaDeX.from_file(tmp_path / "weights/fadex.safetensors")
    assert all(torch.equal(t, task.encoder.state_dict()[name]) for name, t in again.state_dict().items())
    found = json.loads((tmp_path / "weights/probe.json").read_text())
    assert found["labels"] == ["g1", "g2"] and found["people"] == 6 and found["pictures"] == 3
    assert {"same_mean", "different_mean", "matrix", "retrieval_top1"} <= found.keys()


def test_queue_overflow_raises_before_training(face_files):
    with pytest.raises(ValueError, match=r"enqueues 6 keys.*holds 5: raise fadex\.contrast\.queue_size"):
        FaDeXTask(small_moco(queue_size=5), pairs(face_files), pairs(face_files), Accelerator(cpu=True), lr=1e-3)


@pytest.mark.numerics
def test_two_processes_share_queue_and_encoder(tmp_path, face_files):
    run_in_two_processes(train_on_rank, tmp_path, *face_files)
    one, two = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, tensor in one.items():
        if "running" not in name:  # each keeps the statistics of its own batches until the next broadcast
            assert torch.equal(tensor, two[name]), name
    # Step 1 stored batches 0 and 1, step 2 batches 2 and 3, each in the order of the ranks.
    expected = torch.cat([pairs(face_files)[number]["labels"] for number in range(4)])
    assert one["queue.labels"].tolist() == expected.tolist() + [-1] * 16

    alone = train_plain(tmp_path, face_files, 3, queue_size=40).moco  # one process goes on from the state of two
    assert alone.queue.labels[:24].tolist() == expected.tolist() and alone.queue.cursor == 30
