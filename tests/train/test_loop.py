import json
import types

import pytest
import torch
from accelerate import Accelerator
from accelerate_processes import forget_processes
from safetensors import safe_open
from torch import nn

from face2scene.train.checkpoint import states
from face2scene.train.loop import Phase, Schedule, check_card, freeze_other_phases, step, train
from face2scene.train.run import Run

pytestmark = pytest.mark.usefixtures("no_accelerator_of_another_test")


class SeededBatches:
    """Batch `index` is a function of `index` alone."""

    def __getitem__(self, index):
        return torch.randn(4, 3, generator=torch.Generator().manual_seed(index))


class TinyAdversarialTask:
    """A small generator and discriminator that use each other, the discriminator on a frozen base."""

    def __init__(self, poison_at=None):
        torch.manual_seed(0)
        self.generator = nn.Linear(3, 3)
        self.discriminator = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))
        self.discriminator[0].requires_grad_(False)
        self.data, self.poison_at, self.calls, self.validated = SeededBatches(), poison_at, 0, 0
        self.phases = [
            Phase("generator", self.generator, self._optimizer(self.generator), self.g_loss),
            Phase("discriminator", self.discriminator, self._optimizer(self.discriminator), self.d_loss),
        ]

    @staticmethod
    def _optimizer(model):
        return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)

    def g_loss(self, batch):
        self.calls += 1
        fake = self.phases[0].model(batch + 0.1 * torch.randn_like(batch))
        factor = float("nan") if self.calls == self.poison_at else 1.0
        l2 = (fake - batch).square().mean()
        return {"l2": factor * l2, "gan": -0.1 * self.phases[1].model(fake).mean()}

    def d_loss(self, batch):
        fake = self.phases[0].model(batch)
        return {"gan": self.phases[1].model(fake).mean() - self.phases[1].model(batch).tanh().mean()}

    def after_step(self):
        pass

    def validate(self):
        self.validated += 1
        return {"validation/noise": float(torch.randn(()))}  # must not disturb the training

    def export(self, folder, step):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "step.txt").write_text(str(step))


def train_to(folder, steps, accumulate=1, **settings):
    forget_processes()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    task = TinyAdversarialTask(**settings)
    schedule = Schedule(steps=steps, log_every=1, validate_every=2, save_every=2, warmup=3, keep_states=2)
    run = Run(folder, {"accumulate": accumulate})
    train(task, accelerator, schedule, run, seed=5)
    return task, run


def all_tensors(task):
    return {
        **task.generator.state_dict(),
        **{f"discriminator.{k}": v for k, v in task.discriminator.state_dict().items()},
    }


@pytest.mark.numerics
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_is_bitwise_exact(tmp_path, accumulate):
    whole, _ = train_to(tmp_path / "whole", 6, accumulate)
    train_to(tmp_path / "halves", 4, accumulate)
    halves, _ = train_to(tmp_path / "halves", 6, accumulate)
    assert halves.calls == 2 * accumulate  # it did go on and did not start again
    for name, tensor in all_tensors(whole).items():
        assert torch.equal(tensor, all_tensors(halves)[name]), name
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "halves")]
    assert [json.loads(x)["step"] for x in lines[0]] == [json.loads(x)["step"] for x in lines[1]]


@pytest.mark.numerics
def test_lost_steps_are_repeated_exactly(tmp_path):
    whole, _ = train_to(tmp_path / "whole", 6)
    with pytest.raises(FloatingPointError):
        train_to(tmp_path / "killed", 6, poison_at=6)  # dies in step 6; the newest state is of step 4
    again, _ = train_to(tmp_path / "killed", 6)
    assert all(torch.equal(t, all_tensors(again)[name]) for name, t in all_tensors(whole).items())
    steps = [json.loads(x)["step"] for x in (tmp_path / "killed/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 2, 3, 4, 4, 5, 6, 6]  # training and validation lines, none twice


def test_non_finite_loss_keeps_weights(tmp_path):
    before, _ = train_to(tmp_path / "before", 2)
    expected = {name: t.clone() for name, t in before.generator.state_dict().items()}
    forget_processes()
    task = TinyAdversarialTask(poison_at=3)
    with pytest.raises(FloatingPointError, match=r"'generator' is not finite.*l2=nan.*unchanged"):
        schedule = Schedule(steps=3, warmup=3, validate_every=2)
        train(task, Accelerator(cpu=True), schedule, Run(tmp_path / "poisoned", {}), seed=5)
    assert all(torch.equal(t, expected[name]) for name, t in task.generator.state_dict().items())


def test_other_phases_get_no_gradients():
    task = TinyAdversarialTask()
    generator, discriminator = task.phases
    with freeze_other_phases(generator, task.phases):
        sum(task.g_loss(torch.randn(4, 3)).values()).backward()
    assert all(p.grad is not None for p in generator.weights)
    assert all(p.grad is None and p.requires_grad for p in discriminator.weights)
    assert not task.discriminator[0].weight.requires_grad  # what was frozen stays so


def test_checkpoint_omits_frozen_weights(tmp_path):
    _, run = train_to(tmp_path / "run", 2)
    with safe_open(states(run)[-1] / "model_1.safetensors", "pt") as file:
        names = set(file.keys())
    assert not any(name.startswith("0.") for name in names)
    assert {"1.running_mean", "2.weight"} <= names


def test_only_newest_checkpoints_are_kept(tmp_path):
    _, run = train_to(tmp_path / "run", 8)
    assert [path.name for path in states(run)] == ["6", "8"]
    assert (run.folder / "weights/step.txt").read_text() == "8"


def test_schedule_warms_up_and_decays():
    schedule = Schedule(steps=100, warmup=10, decay="cosine")
    assert schedule.rate(0) == pytest.approx(0.1, rel=1e-3)
    assert schedule.rate(50) == pytest.approx(0.505)
    assert 0.01 <= schedule.rate(99) < 0.011
    with pytest.raises(ValueError, match="decay must be one of constant, cosine"):
        Schedule(steps=1, decay="linear")


def test_phases_can_share_model_and_optimizer(tmp_path):
    task = TinyAdversarialTask()
    generator, discriminator = task.phases
    again = Phase(
        "again",
        generator.model,
        generator.optimizer,
        lambda batch: {"far": 0.1 * generator.model(batch).square().mean()},
    )
    task.phases = [generator, discriminator, again]
    with freeze_other_phases(again, task.phases):
        assert all(w.requires_grad for w in generator.weights) and not any(
            w.requires_grad for w in discriminator.weights
        )
    train(task, Accelerator(cpu=True), Schedule(steps=2, log_every=1), Run(tmp_path, {}), seed=0)
    assert again.model is generator.model and again.optimizer is generator.optimizer
    assert generator.optimizer.optimizer.state[generator.weights[0]]["step"] == 4  # two phases of two steps
    names = [path.name for path in states(Run(tmp_path, {}))[-1].iterdir() if path.suffix == ".safetensors"]
    assert sorted(names) == ["model.safetensors", "model_1.safetensors", "training.safetensors"]


class HalfPrecisionGradient(torch.autograd.Function):
    """Gradients pass through float16, as in a float16 network."""

    @staticmethod
    def forward(ctx, value):
        return value

    @staticmethod
    def backward(ctx, gradient):
        return gradient.half().float()


def fp16_phase(losses_of, scale=2.0**16):
    """A phase under the loss scaler of float16 training, on the CPU."""
    accelerator = Accelerator(cpu=True)
    accelerator.state._mixed_precision = "fp16"
    accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu", init_scale=scale)
    model = nn.Linear(4, 4)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    optimizer.scaler = accelerator.scaler
    phase = Phase("fp16", model, optimizer, lambda batch: {"loss": losses_of(model(batch))})
    return types.SimpleNamespace(phases=[phase]), accelerator, model


def test_fp16_overflow_skips_steps_and_lowers_scale():
    task, accelerator, model = fp16_phase(lambda output: 20 * HalfPrecisionGradient.apply(output).square().mean())
    before, reports = model.weight.detach().clone(), []
    for _ in range(8):
        reports.append(step(task, [torch.ones(2, 4)], accelerator, 1.0))
        if "fp16/grad_norm" not in reports[-1]:
            assert torch.equal(model.weight, before)  # skipped
    skipped = sum("fp16/grad_norm" not in report for report in reports)
    assert 1 <= skipped < 8 and accelerator.scaler.get_scale() == 2.0 ** (16 - skipped)
    assert reports[-1]["fp16/loss_scale"] == accelerator.scaler.get_scale()
    assert not torch.equal(model.weight, before)


@pytest.mark.parametrize("scale", [2.0**16, 2.0**60])
def test_fp16_overflow_at_any_scale_raises(scale):
    infinite = torch.tensor(float("inf"))
    task, accelerator, model = fp16_phase(lambda output: Scaled.apply(output.square().mean(), infinite), scale)
    with pytest.raises(FloatingPointError, match=r"'fp16' is not finite \(gradient norm"):
        for _ in range(40):
            step(task, [torch.ones(2, 4)], accelerator, 1.0)
    assert torch.isfinite(model.weight).all()


class Scaled(torch.autograd.Function):
    """The value itself, with its gradient times a factor."""

    @staticmethod
    def forward(ctx, value, factor):
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


def test_small_card_is_refused_before_the_start(monkeypatch):
    model = torch.nn.Linear(1024, 1024, bias=False)
    phases = [Phase("net", model, None, None)]
    room = types.SimpleNamespace(total_memory=15 * 2**20)  # the weights are 4 MiB, with gradients and moments 16
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: room)
    with pytest.raises(ValueError, match=r"need 0\.0 GiB and the card has 0\.0: lower batch\. .*rehearse"):
        check_card(torch.device("cuda"), phases, "lower batch")
    check_card(torch.device("cpu"), phases, "")
    room.total_memory *= 2
    check_card(torch.device("cuda"), phases, "")
    model.requires_grad_(False)
    room.total_memory = 5 * 2**20
    check_card(torch.device("cuda"), phases, "")
