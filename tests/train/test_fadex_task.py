"""Options of FaDeX's data and training: crop buckets, augmentation, EMA, mixtures, retrained head, images."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate_processes import forget_processes
from composed_configs import compose_config, unknown_arguments
from fadex_training import pairs, small_moco

from face2scene.degradation import Mixture, Recipe, RestoreSize
from face2scene.image_io.arrays import read_image
from face2scene.models.fadex import FaDeX, compare
from face2scene.models.fadex.projection_head import pooled, retrain_projection_head
from face2scene.models.fadex.visualize import cosine_map, neighbour_sheet
from face2scene.ref_fr import Copy, GroundTruth, Mixed
from face2scene.train.fadex_task import FaDeXTask
from face2scene.train.loop import Schedule, train
from face2scene.train.run import Run

pytestmark = pytest.mark.usefixtures("no_accelerator_of_another_test")


class IdentitySpace:
    """Every operator leaves the image as it is."""

    def draw(self, rng):
        return Recipe((RestoreSize(),) * int(rng.integers(1, 20)))  # different operators


def test_each_batch_uses_one_bucket(face_files):
    data = pairs(face_files, buckets={16: 3, 20: 1})
    sizes = Counter(tuple(data[n]["query_degraded"].shape) for n in range(12))
    assert set(sizes) == {(9, 3, 16, 16), (3, 3, 20, 20)} and min(sizes.values()) >= 2
    assert data.images == 3  # what a queue has to hold
    assert torch.equal(data[5]["key_degraded"], pairs(face_files, buckets={16: 3, 20: 1})[5]["key_degraded"])
    with pytest.raises(ValueError, match=r"train\.fadex\.crop \(or buckets\) must be at least 16"):
        pairs(face_files, buckets={12: 1})
    with pytest.raises(ValueError, match=r"2 x 4 different images.*\(or buckets\)"):
        pairs(face_files, buckets={16: 4})


def test_augmentation_precedes_degradation(face_files):
    plain, varied, again = pairs(face_files), pairs(face_files, augment=True), pairs(face_files, augment=True)
    plain.space = varied.space = again.space = IdentitySpace()
    batch = varied[0]
    assert torch.equal(batch["query_restored"], batch["query_degraded"])
    assert batch["query_restored"].min() >= 0 and batch["query_restored"].max() <= 1
    assert not torch.equal(batch["query_restored"], plain[0]["query_restored"])
    assert torch.equal(varied[3]["key_restored"], again[3]["key_restored"])


def make_task(face_files, accelerator, **options):
    settings = {"lr": 1e-2, "probe_on": "space", "probe_operators": 2, "probe_images": 3} | options
    data = pairs(face_files, buckets={16: 2, 20: 1}, augment=True)
    return FaDeXTask(small_moco(queue_size=20), data, pairs(face_files, seed=9), accelerator, **settings)


def train_to(folder, face_files, steps, **options):
    forget_processes()
    task = make_task(face_files, Accelerator(cpu=True), **options)
    train(task, task.accelerator, Schedule(steps=steps, validate_every=2), Run(folder, {}), seed=0)
    return task


@pytest.mark.numerics
def test_ema_is_exported_and_resumes_exactly(tmp_path, face_files):
    whole = train_to(tmp_path / "whole", face_files, 4, ema=0.5)
    train_to(tmp_path / "halves", face_files, 2, ema=0.5)
    halves = train_to(tmp_path / "halves", face_files, 4, ema=0.5)
    shared = [FaDeX.from_file(tmp_path / f"{name}/weights/fadex.safetensors") for name in ("whole", "halves")]
    states = [encoder.state_dict() for encoder in shared]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert all(torch.equal(t, halves.moco.state_dict()[name]) for name, t in whole.moco.state_dict().items())
    own = whole.encoder.state_dict()
    for name in ("body.0.weight", "body.1.running_mean"):  # the statistics follow, too
        assert not torch.equal(own[name], states[0][name])
        assert torch.equal(whole.stateful[0].values[name], states[0][name])


@pytest.mark.numerics
def test_ema_matches_recursion(face_files):
    task = make_task(face_files, Accelerator(cpu=True), ema=0.75)
    weight, average = task.encoder.head[0].weight, task.stateful[0]
    expected = weight.detach().clone()
    for step in range(1, 30):
        with torch.no_grad():
            weight.fill_(float(step))
        average.update()
        keep = min(0.75, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * step
    with task.eval_weights() as encoder:
        torch.testing.assert_close(encoder.head[0].weight.detach(), expected)
    assert weight.unique().tolist() == [29.0]


def test_validation_images_are_saved(tmp_path, face_files):
    task = train_to(tmp_path, face_files, 4)
    names = {path.relative_to(tmp_path / "validation").as_posix() for path in tmp_path.glob("validation/*/*")}
    assert names == {f"00000{step}/{what}.png" for what in ("pairs", "cosines", "neighbours") for step in (2, 4)}
    assert read_image(tmp_path / "validation/000002/pairs.png").shape == (2 * 16, 3 * 2 * 16, 3)
    assert read_image(tmp_path / "validation/000002/cosines.png").shape == (36, 36, 3)
    assert task.count(task.data[0]) == 2 * len(task.data[0]["labels"])


def test_cosine_map_and_neighbour_colours():
    a, b = torch.eye(2)
    codes = torch.stack([torch.stack([a, a]), torch.stack([b, -b])])
    image = cosine_map(codes)
    assert image.shape == (24, 24, 3)
    assert image[0, 0].tolist() == [178, 24, 43] and image[12, 0].tolist() == [255] * 3
    assert image[12, 18].tolist() == [33, 102, 172]
    crops = torch.stack([torch.full((2, 3, 16, 16), 0.2), torch.full((2, 3, 16, 16), 0.8)])
    sheet = neighbour_sheet(crops, codes, count=2)
    assert sheet.shape == (2 * 22, 3 * 22, 3)
    right, wrong = sheet[0, 22], sheet[0, 44]
    assert right.tolist() == [40, 160, 70] and wrong.tolist() == [200, 50, 40]
    assert sheet[10, 32].tolist() == [51] * 3 and sheet[10, 54].tolist() == [204] * 3


class NamedPart:
    needs_gt = False

    def __init__(self, name):
        self.name = name

    def draw(self, rng):
        return self.name

    def restore(self, degraded, references, *, gt, rng):
        return self.name


def test_mixtures_draw_by_shares():
    shares = {"a": 0.7, "b": 0.3, "c": 0.0}
    parts = {name: NamedPart(name) for name in shares}
    rng = np.random.default_rng(0)
    spaces, restorers = Mixture(parts, shares), Mixed(parts, shares)
    for draw in (spaces.draw, lambda r: restorers.restore(None, (), gt=None, rng=r)):
        drawn = Counter(draw(rng) for _ in range(2000))
        assert set(drawn) == {"a", "b"} and drawn["a"] / 2000 == pytest.approx(0.7, abs=0.04)
    for kind, option in ((Mixture, "degradation"), (Mixed, "ref_fr")):
        with pytest.raises(ValueError, match=rf"{option}\.shares must be at least 0 and sum to 1"):
            kind(parts, {"a": 0.7, "b": 0.7, "c": 0.0})
        with pytest.raises(ValueError, match=rf"{option}\.shares names \['a'\]"):
            kind(parts, {"a": 1.0})
    assert Mixed({"x": GroundTruth(), "y": Copy()}, {"x": 0.5, "y": 0.5}).needs_gt
    assert not Mixed({"y": Copy()}, {"y": 1.0}).needs_gt


@pytest.mark.numerics
def test_difference_input_ignores_offset():
    encoder = FaDeX((4, 8), (1, 2), embedding=8, inputs="difference").eval()
    restored, degraded = torch.rand(2, 1, 3, 16, 16) / 2
    torch.testing.assert_close(encoder(restored + 0.25, degraded + 0.25), encoder(restored, degraded))
    assert not torch.allclose(encoder(degraded, restored), encoder(restored, degraded))


def test_probe_config_names_real_arguments():
    assert unknown_arguments(compose_config("eval", "probe=fadex")) == []
    assert compose_config("eval").get("probe") is None


@pytest.mark.numerics
def test_channels_last_matches_contiguous(face_files):
    batch = pairs(face_files)[0]
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        encoder = small_moco().query.to(memory_format=layout)
        results.append(encoder.embed(encoder(batch["query_restored"], batch["query_degraded"])))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # the compiler
def test_compiled_training_matches_eager(face_files):
    batch = pairs(face_files)[0]
    losses = []
    for compiled in (False, True):
        one = small_moco()
        if compiled:
            one.query.body.compile()
        contrast = one(*((batch[f"{v}_restored"], batch[f"{v}_degraded"]) for v in ("query", "key")), batch["labels"])
        loss = one.loss(contrast)
        loss.backward()
        one.update(contrast.keys, contrast.labels)
        copied = copy.deepcopy(one.query)
        assert all(torch.equal(t, copied.state_dict()[name]) for name, t in one.query.state_dict().items())
        losses.append(loss.detach())
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


def degradations(count: int, seed: int) -> torch.Tensor:
    """(count, 4, 8) features of operators that share a few strong directions, far from zero."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([8.0, 4, 2, 1, 1, 1, 0.5, 0.5])
    operators = torch.randn(count, 1, 8, generator=generator) * scale + 5
    return operators + 0.1 * scale * torch.randn(count, 4, 8, generator=generator)


def spread(embeddings: torch.Tensor) -> float:
    """The effective dimension of unit vectors (N, D): the participation ratio of their covariance, 1 to D."""
    values = torch.linalg.eigvalsh(torch.cov(embeddings.double().T)).clamp_min(0)
    return float(values.sum().square() / values.square().sum())


@pytest.mark.numerics
@pytest.mark.parametrize("head_norm", [False, True])
def test_retrained_head_spreads_operators(head_norm):
    torch.manual_seed(0)
    encoder = FaDeX((4, 8), (1, 2), embedding=8, head_norm=head_norm).eval()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    settings = {"steps": 300, "operators": 32, "temperature": 0.2, "lr": 1e-2}
    made, again = (retrain_projection_head(encoder, degradations(300, 1), **settings) for _ in range(2))
    unseen = degradations(40, 2)
    spreads, answers = [], []
    for one in (encoder, made):
        vectors = torch.nn.functional.normalize(one.head(unseen.flatten(0, 1)), dim=1).detach()
        spreads.append(spread(vectors))
        answers.append(compare(vectors.view(40, 4, 8), [str(n) for n in range(40)]))
    assert spreads[1] > 4 > spreads[0]
    assert abs(answers[1]["different_mean"]) < 0.05 and answers[1]["same_mean"] > 0.9
    assert answers[1]["retrieval_top1"] > answers[0]["retrieval_top1"]
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in made.state_dict().items())  # its draws are seeded
    assert all(torch.equal(t, before[n]) for n, t in encoder.state_dict().items())
    changed = {
        name.split(".")[0] for name, tensor in made.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {"head"}


def test_head_retraining_rejects_bad_input():
    encoder = FaDeX((4, 8), (1, 2), embedding=8).eval()
    with pytest.raises(ValueError, match=r"raise train\.fadex\.head\.batches"):
        retrain_projection_head(encoder, degradations(3, 1), steps=1, operators=4)
    with pytest.raises(ValueError, match=r"at least two operators and two images"):
        retrain_projection_head(encoder, degradations(8, 1)[:, :1], steps=1, operators=4)
    with pytest.raises(ValueError, match=r"a temperature above 0"):
        retrain_projection_head(encoder, degradations(8, 1), steps=1, operators=4, temperature=0)


@pytest.mark.numerics
def test_head_reads_mean_of_map(face_files):
    encoder = small_moco().query.eval()
    batch = pairs(face_files)[0]
    pair = batch["query_restored"], batch["query_degraded"]
    vectors = torch.nn.functional.normalize(encoder.head(pooled(encoder, *pair)), dim=1)
    torch.testing.assert_close(vectors, encoder.embed(encoder(*pair)), atol=1e-6, rtol=0)


@pytest.mark.numerics
def test_only_exported_head_is_retrained(tmp_path, face_files):
    plain = train_to(tmp_path / "plain", face_files, 2)
    settings = {"batches": 2, "crop": 16, "images": 2, "steps": 3, "operators": 4}
    other = train_to(tmp_path / "retrained", face_files, 2, head=settings)
    assert all(torch.equal(t, other.moco.state_dict()[name]) for name, t in plain.moco.state_dict().items())
    states = [FaDeX.from_file(tmp_path / f"{n}/weights/fadex.safetensors").state_dict() for n in ("plain", "retrained")]
    changed = {name.split(".")[0] for name, tensor in states[0].items() if not torch.equal(tensor, states[1][name])}
    assert changed == {"head"}
