"""The restorer's training at tiny size: its phases, what each moves, and going on."""

import functools
import json
from unittest.mock import Mock

import pytest
import torch
from accelerate import Accelerator
from accelerate_processes import forget_processes
from host_reads import HostReads, without_optimizers
from restorer_training import SeededSceneBatches, tiny_restorer_task
from safetensors.torch import load_file
from torch.nn import functional as F

from face2scene.common.model_files import load_weights
from face2scene.common.reproducibility import REPOSITORY
from face2scene.image_io.arrays import read_tensor
from face2scene.models.mapnet import MapNet
from face2scene.models.restorer import lora
from face2scene.models.restorer.base_model import load_base
from face2scene.models.restorer.discriminator import multilevel_sigmoid
from face2scene.models.restorer.one_step import OneStepRestorer
from face2scene.models.scene_estimator import SceneEstimator
from face2scene.train.loop import Phase, Schedule, freeze_other_phases, step, train
from face2scene.train.restorer_task import RestorerTask
from face2scene.train.run import Run

pytestmark = pytest.mark.usefixtures("no_accelerator_of_another_test")


@pytest.fixture
def make_task(tiny_base):
    return functools.partial(tiny_restorer_task, tiny_base)


def marked(task: RestorerTask, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    task.before_step([batch], Accelerator(cpu=True))
    return batch


def steps(task: RestorerTask, count: int = 1) -> list[dict[str, torch.Tensor]]:
    accelerator = Accelerator(cpu=True)
    reports = []
    for index in range(count):
        torch.manual_seed(index)
        reports.append(step(task, [task.data[index]], accelerator, 1.0))
        task.after_step()
    return reports


def trained_tensors(task: RestorerTask) -> dict[str, torch.Tensor]:
    last = [phase for phase in task.phases if phase.name != "estimator"][-1]
    models = {"generator": task.phases[0].model, "discriminator": last.model}
    return {f"{m}.{n}": p.detach().clone() for m, x in models.items() for n, p in x.named_parameters()}


def changed_names(before, after) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_step_updates_only_trained_weights(make_task):
    task = make_task()
    before = trained_tensors(task)
    (report,) = steps(task)
    moved = changed_names(before, trained_tensors(task))
    assert {name.split("/")[0] for name in report} == {"generator", "discriminator"}
    assert {"generator/l2", "generator/lpips", "generator/gan", "discriminator/real", "discriminator/fake"} <= set(
        report
    )
    assert any(n.startswith("discriminator.maps") for n in moved) and any("lora_B" in n for n in moved)
    assert not any(n.startswith("discriminator.features") or "decoder" in n for n in moved)


def test_estimator_trains_beside_the_restorer(make_task, tmp_path):
    torch.manual_seed(1)
    estimator = SceneEstimator(widths=[8, 8], strides=[2, 1], width=32)
    plain, task = make_task(), make_task(estimator=estimator)
    before = {name: weight.clone() for name, weight in estimator.named_parameters()}
    reports = steps(task, 2)
    assert reports[1]["estimator/tokens"] > 0 and "estimator/fidelity" in reports[1]
    after = dict(estimator.named_parameters())
    assert "encoder.body.0.weight" in changed_names(before, after)
    assert any(name.startswith("head.") for name in changed_names(before, after))
    steps(plain, 2)
    kept, moved = trained_tensors(plain), trained_tensors(task)
    assert all(torch.equal(kept[name], moved[name]) for name in kept if name.startswith("generator."))
    task.export(tmp_path, 2)
    assert SceneEstimator.from_file(tmp_path / "estimator.safetensors").config == estimator.config


def test_rate_of_zero_trains_the_estimator_alone(make_task, tmp_path):
    estimator = SceneEstimator(widths=[8, 8], strides=[2, 1], width=32)
    trained = {name for name, p in make_task().restorer.named_parameters() if p.requires_grad}
    task = make_task(estimator=estimator, lr=0.0, estimator_lr=1e-3)
    restorer = {name: weight.clone() for name, weight in task.restorer.state_dict().items()}
    own = {name: weight.clone() for name, weight in estimator.state_dict().items()}
    (report,) = steps(task)
    assert {name.split("/")[0] for name in report} == {"estimator"}
    assert changed_names(restorer, task.restorer.state_dict()) == set()
    assert changed_names(own, estimator.state_dict())
    task.export(tmp_path, 1)
    stored, _, _ = load_weights(tmp_path / "restorer.safetensors", kind="restorer")
    assert stored.keys() == trained and trained
    with pytest.raises(ValueError, match="lr is 0, which trains the estimator alone"):
        make_task(lr=0.0)


def test_tokens_rate_of_zero_keeps_token_weights(make_task):
    task = make_task(tokens_lr=0.0)
    before = trained_tensors(task)
    steps(task, 2)
    changed = {name for name in changed_names(before, trained_tensors(task)) if name.startswith("generator.")}
    assert changed and not any(part in name for name in changed for part in ("mapnet.", "null_tokens", ".attn2."))


@pytest.mark.parametrize(("order", "calls", "moves"), [("one_forward", 1, 2), ("published", 2, 4)])
def test_order_sets_forward_and_step_counts(make_task, order, calls, moves):
    task = make_task(order=order)
    seen, stepped = [], []
    task.phases[0].model.register_forward_hook(lambda *_: seen.append(1))
    for optimizer in {id(p.optimizer): p.optimizer for p in task.phases}.values():
        optimizer.register_step_post_hook(lambda *_: stepped.append(1))
    (report,) = steps(task)
    assert (len(seen), len(stepped), len(task.phases)) == (calls, moves, moves)
    assert all(torch.isfinite(value) for value in report.values())


@pytest.mark.parametrize("order", ["one_forward", "published"])
def test_host_reads_one_value_per_phase(make_task, order):
    task = make_task(order=order)
    without_optimizers(task.phases)
    with HostReads() as reads:
        steps(task)
    assert reads.found == ["aten::_local_scalar_dense"] * len(task.phases)  # whether all is finite


@pytest.mark.numerics
def test_tokens_are_each_face_by_itself(make_task):
    task, batch = make_task(with_discriminator=False), SeededSceneBatches()[4]
    seen = []
    task.restorer.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    task.phases[0].losses(batch)
    faces = zip(batch["restored"], batch["degraded"], strict=True)
    alone = [task.restorer.tokens(task.fadex(restored[None], degraded[None]), 1) for restored, degraded in faces]
    alone[1] = task.restorer.null_tokens  # dropped
    torch.testing.assert_close(seen[0], torch.cat(alone))


@pytest.mark.numerics
def test_negatives_skip_adversarial_losses(make_task):
    task = make_task()
    batch = marked(task, task.data[0])
    torch.manual_seed(0)
    losses = task.phases[0].losses(batch)
    fake = batch["fake"].clone()
    torch.manual_seed(0)
    discriminator = task.phases[1].model
    discriminator.augment = False
    terms = task.phases[1].losses(batch)
    with torch.no_grad():
        logits = discriminator.eval()(torch.cat([batch["gt"][1:] * 2 - 1, fake[1:]]))
    expected = [0.5 * multilevel_sigmoid([x[n : n + 1] for x in logits], t).mean() for n, t in ((0, 0.8), (1, 0.0))]
    torch.testing.assert_close(terms["real"], expected[0], atol=1e-3, rtol=1e-2)  # spectral norms moved in between
    torch.testing.assert_close(terms["fake"], expected[1], atol=1e-3, rtol=1e-2)
    everything = marked(task, batch | {"negative": torch.tensor([True, True])})
    assert task.phases[1].losses(everything)["real"] == 0 and task.phases[0].losses(everything)["gan"] == 0
    assert losses["gan"] > 0


@pytest.mark.numerics
def test_generator_losses_spare_discriminator(make_task):
    task = make_task(order="published")
    with freeze_other_phases(task.phases[1], task.phases):
        sum(task.phases[1].losses(marked(task, task.data[0])).values()).backward()
    assert all(p.grad is None for p in task.phases[2].model.parameters())
    assert any(p.grad is not None for p in task.phases[1].weights)


def train_to(make_task, folder, count, **options):
    forget_processes()
    task = make_task(**options)
    schedule = Schedule(
        steps=count, log_every=1, validate_every=2, save_every=2, best="validation/psnr_own_tokens", best_is="highest"
    )
    train(task, Accelerator(cpu=True), schedule, Run(folder, {}), seed=3)
    return task


@pytest.mark.numerics
@pytest.mark.parametrize("order", ["one_forward", "published"])
def test_resume_is_bitwise_exact(make_task, tmp_path, order):
    options = {"order": order, "ema": 0.9}
    whole = train_to(make_task, tmp_path / "whole", 4, **options)
    train_to(make_task, tmp_path / "halves", 2, **options)
    halves = train_to(make_task, tmp_path / "halves", 4, **options)
    assert changed_names(trained_tensors(whole), trained_tensors(halves)) == set()
    state = [dict(task.phases[-1].model.named_buffers()) for task in (whole, halves)]
    assert all(torch.equal(tensor, state[1][name]) for name, tensor in state[0].items())  # spectral norms too
    assert all(torch.equal(v, halves.ema_weights.values[n]) for n, v in whole.ema_weights.values.items())
    files = [load_file(tmp_path / name / "weights/restorer.safetensors") for name in ("whole", "halves")]
    assert changed_names(*files) == set()
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "halves")]
    assert lines[0] == lines[1]


def test_best_and_last_weights_are_exported(make_task, tmp_path):
    task = make_task(with_discriminator=False)
    numbers = iter([5.0, 9.0, 7.0])
    task.validate = lambda: {"validation/psnr": next(numbers)}
    schedule = Schedule(steps=3, validate_every=1, best="validation/psnr", best_is="highest")
    train(task, Accelerator(cpu=True), schedule, Run(tmp_path, {}), seed=3)
    about = [
        load_weights(tmp_path / f"weights/{name}restorer.safetensors", kind="restorer")[2] for name in ("best/", "")
    ]
    assert [a["steps"] for a in about] == [2, 3]
    assert [json.loads(x)["step"] for x in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 3]


def test_validation_images_are_side_by_side(make_task, tmp_path):
    task = make_task(with_discriminator=False)
    tracker = Mock()
    train(task, Accelerator(cpu=True), Schedule(steps=1), Run(tmp_path, {}, trackers=(tracker,)), seed=0)
    (path,) = (tmp_path / "validation/000001").iterdir()
    image = read_tensor(path)
    assert path.name == "validation_0.png" and image.shape == (3, 16, 48)
    held = task.validation[0]
    torch.testing.assert_close(image[..., :16], held.image, atol=1 / 255, rtol=0)
    torch.testing.assert_close(image[..., 32:], held.gt, atol=1 / 255, rtol=0)
    assert not torch.allclose(image[..., 16:32], held.image, atol=0.1)
    assert tracker.show.call_args.args[1] == 1


def test_unknown_best_metric_raises():
    schedule = Schedule(steps=1, best="validation/psnr")
    with pytest.raises(ValueError, match=r"best=validation/psnr is not among.*validation/ssim"):
        schedule.improves({"validation/ssim": 1.0}, None)
    with pytest.raises(ValueError, match="best_is must be one of lowest, highest"):
        Schedule(steps=1, best_is="largest")


@pytest.mark.numerics
def test_ema_matches_recursion_and_is_exported(make_task, tmp_path):
    task = make_task(with_discriminator=False, ema=0.5)
    weight = task.restorer.null_tokens
    expected = weight.detach().clone()
    for count in range(1, 4):
        steps(task)
        keep = min(0.5, (1 + count) / (10 + count))
        expected = keep * expected + (1 - keep) * weight.detach()
    torch.testing.assert_close(task.ema_weights.values["null_tokens"], expected, atol=1e-7, rtol=1e-5)
    own = weight.detach().clone()
    with task.eval_weights():
        task.export(tmp_path, 3)
    tensors, _, _ = load_weights(tmp_path / "restorer.safetensors", kind="restorer")
    torch.testing.assert_close(tensors["null_tokens"].float(), expected, atol=1e-5, rtol=1e-2)
    assert torch.equal(weight, own) and not torch.allclose(own, expected)


@pytest.mark.numerics
def test_checkpointing_keeps_gradients(make_task):
    gradients = []
    for checkpointing in (False, True):
        task = make_task(with_discriminator=False, checkpointing=checkpointing)
        blocks = [m for m in task.restorer.unet.modules() if getattr(m, "gradient_checkpointing", False)]
        assert bool(blocks) == checkpointing
        for block in blocks:
            block._gradient_checkpointing_func = Mock(wraps=block._gradient_checkpointing_func)
        sum(task.phases[0].losses(task.data[0]).values()).backward()
        gradients.append({n: p.grad for n, p in task.restorer.named_parameters() if p.grad is not None})
        assert sum(block._gradient_checkpointing_func.called for block in blocks) >= len(blocks) - 2
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_out_of_memory_names_options(make_task, tmp_path):
    task = make_task(with_discriminator=False)

    def exhaust(batch):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    task.phases[0] = Phase("generator", task.phases[0].model, task.phases[0].optimizer, exhaust)
    with pytest.raises(torch.OutOfMemoryError, match=r"batches\.batch.*gradient_checkpointing=true.*base\.dtype=bf16"):
        train(task, Accelerator(cpu=True), Schedule(steps=1), Run(tmp_path, {}), seed=0)


@pytest.mark.parametrize("options", [{"order": "backwards"}, {"posterior": "median"}])
def test_unknown_setting_raises(make_task, options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=rf"train\.restorer\.{name} must be one of \w+, \w+, not '{value}'"):
        make_task(**options)


@pytest.mark.slow
def test_one_image_overfits_above_30_db(photo):
    """On the shipped tiny base, whose frozen decoder alone gives 26.6 dB; the degraded image has 28.4."""
    torch.manual_seed(0)
    gt = torch.from_numpy(photo[110:142, 200:232].copy()).permute(2, 0, 1)[None]
    half = F.interpolate(gt, scale_factor=0.5, mode="area")
    degraded = F.interpolate(half, scale_factor=2, mode="bicubic").clamp(0, 1)
    degraded = (degraded + 0.03 * torch.randn(degraded.shape)).clamp(0, 1)
    mapnet = MapNet(in_channels=64, channels=128, heads=4, width=32)
    ranks = {"vae_rank": 8, "unet_rank": 16, "lora_alpha": 16, "vae_layers": lora.VAE_ENCODER[:6]}
    restorer = OneStepRestorer(load_base(REPOSITORY / "checkpoints/tiny/base"), mapnet, **ranks)
    features, count = torch.randn(1, 64, 16, 16), 400
    optimizer = torch.optim.AdamW([p for p in restorer.parameters() if p.requires_grad], lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count)
    for _ in range(count):
        (restorer(degraded, restorer.tokens(features, 1)) - gt).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    output = restorer.eval().restore(degraded, restorer.tokens(features, 1), guidance=1.0)
    psnr = [-10 * (image - gt).square().mean().log10().item() for image in (degraded, output)]
    assert psnr[0] < 29 and psnr[1] > 30


@pytest.mark.slow
def test_tokens_matter_after_training():
    """Half of the images are dark and half bright in the ground truth, and only the tokens hold which.

    On the shipped tiny base, whose cross-attention has been trained; on a random one they came to nothing in 150 steps.
    """
    torch.manual_seed(0)
    mapnet = MapNet(in_channels=8, channels=16, heads=2, width=32)
    base = load_base(REPOSITORY / "checkpoints/tiny/base")
    restorer = OneStepRestorer(base, mapnet, vae_rank=4, unet_rank=8, vae_layers=lora.VAE_ENCODER[:6])
    optimizer = torch.optim.AdamW([p for p in restorer.parameters() if p.requires_grad], lr=1e-3)
    maps = torch.stack([torch.ones(8, 8, 8), -torch.ones(8, 8, 8)])

    def make_image(seed: int) -> torch.Tensor:
        coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
        return F.interpolate(coarse, size=(32, 32), mode="bicubic").clamp(0, 1).expand(2, -1, -1, -1)

    def brightness() -> float:
        """Of the second over the first; it is 0.5 in the ground truth."""
        with torch.no_grad():
            dark, bright = restorer.eval()(make_image(10**6), restorer.tokens(maps, 2))
        return (bright - dark).mean().item()

    before = brightness()
    for number in range(150):
        image = make_image(number)
        target = torch.stack([image[0] / 2, 1 - (1 - image[1]) / 2])
        (restorer.train()(image, restorer.tokens(maps, 2)) - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert abs(before) < 0.02 and 0.4 < brightness() < 0.6


def test_negatives_are_restored_to_themselves(make_task):
    task, batch = make_task(with_discriminator=False), SeededSceneBatches()[0]
    perfect = torch.stack([batch["image"][0], batch["gt"][1]]) * 2 - 1
    losses = task._reconstruction_loss(perfect, batch)
    assert losses["l2"] == 0 and losses["lpips"] == 0
    assert task._reconstruction_loss(batch["gt"] * 2 - 1, batch)["l2"] > 0.1
