"""The training loop of all models: contrastive, adversarial or plain, on one process or many.

A *phase* is one backward pass and one optimizer step on one set of weights: FaDeX trains in one phase, the restorer in
two (generator, discriminator), or in S3Diff's four, two on each set of weights. Time is counted in optimizer steps; a
step takes `gradient_accumulation_steps` batches. The data are an endless stream that can start at any position, and all
randomness follows from the position, so a resumed run ends with the same weights, bit for bit, as an uninterrupted one.
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from face2scene.common.memory import explained
from face2scene.common.reproducibility import seed_from
from face2scene.train.checkpoint import TrainingState
from face2scene.train.dataloader import batches
from face2scene.train.fsdp import full_tensor, shard
from face2scene.train.run import Run
from face2scene.train.schedule import Progress, Schedule

log = logging.getLogger(__name__)
_MIN_SCALE = 1.0  # of the loss scaler: overflows below are no matter of the scale
_MAX_OVERFLOWS = 30  # in a row


@dataclass
class Phase:
    """One backward pass and one optimizer step on one set of weights.

    Raises:
        ValueError: no weight requires gradients.
    """

    name: str  # prefix of its losses in the logs
    model: nn.Module  # holds the weights; after preparation it is the wrapped one, and `losses` must call that
    optimizer: torch.optim.Optimizer  # over the weights of `model` that require gradients
    losses: Callable[[Any], dict[str, Tensor]]  # batch to weighted terms (scalars); their sum is minimised
    shards: bool = False  # its model is sharded over the processes under FSDP; other models are replicated
    weights: list[nn.Parameter] = field(init=False)
    overflows: int = field(init=False, default=0)  # fp16 steps skipped in a row

    def __post_init__(self) -> None:
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        if not self.weights:
            raise ValueError(f"Phase {self.name!r} has nothing to train.")


class Task(Protocol):
    """The model-specific part of a training.

    `data[index]` is a whole batch of one process, and everything random in it follows from `index`. Optional members:
    `stateful`, a list of objects with state_dict and load_state_dict that are saved with the rest; `memory_advice`, the
    options that lower its memory; `before_step(batches, accelerator)`, called with the batches of each optimizer step;
    `eval_weights()`, a context that every process enters and in which the weights are those to validate and export;
    `images()`, uint8 (H, W, 3) by name, saved at every validation; `count(batch)`, its images, for the throughput.
    """

    phases: Sequence[Phase]
    data: Any

    def after_step(self) -> None: ...
    def validate(self) -> dict[str, float]: ...
    def export(self, folder: Path, step: int) -> None: ...


def train(
    task: Task,
    accelerator: Accelerator,
    schedule: Schedule,
    run: Run,
    *,
    seed: int,
    workers: int = 0,
    shard_from: int | None = None,
) -> None:
    """Train to `schedule.steps`, resuming from the newest state in the run's folder.

    Args:
        shard_from: shard the models of phases that allow it, modules of at least so many weights as one unit (see
            `fsdp`); None replicates every model.

    Raises:
        FloatingPointError: a loss or gradient is not finite (see `step`); that step changed no weight. Or the weights
            are not, at a step that validates or saves: nothing of them is written.
        ValueError: `schedule.best` is not a validation metric, a single process was asked to shard, none of the run's
            states is whole, the disk has no room for them, or the card none for weights and optimizer.
    """
    if shard_from is None:
        check_card(accelerator.device, task.phases, getattr(task, "memory_advice", ""))
    progress = Progress()
    rates = [[group["lr"] for group in phase.optimizer.param_groups] for phase in task.phases]
    models, optimizers = prepare(task.phases, accelerator, shard_from)
    eval_weights = getattr(task, "eval_weights", nullcontext)
    state = TrainingState(accelerator, run, models, optimizers, [progress, *getattr(task, "stateful", ())])
    state.resume()
    state.check_room(schedule.keep_states)
    run.forget_after(progress.step)
    log.info("Training from step %d to %d.", progress.step, schedule.steps)

    bar = tqdm(total=schedule.steps, initial=progress.step, unit="step", disable=not accelerator.is_main_process)
    count, seen, since = getattr(task, "count", None), 0, perf_counter()
    stream = batches(task.data, accelerator, progress.batch, workers)
    while progress.step < schedule.steps:
        for phase, base in zip(task.phases, rates, strict=True):
            for group, rate in zip(phase.optimizer.param_groups, base, strict=True):
                group["lr"] = rate * schedule.rate(progress.step)
        numbers, window = zip(*itertools.islice(stream, accelerator.gradient_accumulation_steps), strict=True)
        seeds = [seed_from(seed, accelerator.process_index, number) for number in numbers]
        with explained(getattr(task, "memory_advice", "")):
            report = step(task, window, accelerator, schedule.max_norm, seeds)
        progress.batch = numbers[-1] + 1
        progress.step += 1
        seen += sum(map(count, window)) * accelerator.num_processes if count else 0
        task.after_step()
        bar.update()

        if progress.due(schedule.log_every) or progress.step == schedule.steps:
            values = {name: value.item() for name, value in report.items()}
            run.log(values, progress.step)
            postfix = {name.split("/")[-1]: f"{value:.3g}" for name, value in values.items()}
            if count:  # not in the metrics, which are equal for resumed and uninterrupted runs
                postfix["images/s"] = f"{seen / (perf_counter() - since):.3g}"
                seen, since = 0, perf_counter()
            bar.set_postfix(postfix)
        validating, saving = (
            progress.due(every) or progress.step == schedule.steps
            for every in (schedule.validate_every, schedule.save_every)
        )
        if validating or saving:
            state.check_finite(progress.step)
        if validating:
            with eval_weights():
                with torch.no_grad():  # it may draw: every batch of a step has a seed of its own
                    values = task.validate()
                    images = task.images() if hasattr(task, "images") else {}
                run.log(values, progress.step)
                run.show(images, progress.step)
                if schedule.improves(values, progress.best):
                    progress.best = float(values[schedule.best])
                    if accelerator.is_main_process:
                        task.export(run.folder / "weights/best", progress.step)
        if saving:
            state.save(progress.step, schedule.keep_states)
    bar.close()

    with eval_weights():
        if accelerator.is_main_process:
            task.export(run.folder / "weights", progress.step)
            run.share()
    accelerator.wait_for_everyone()


def prepare(
    phases: Sequence[Phase], accelerator: Accelerator, shard_from: int | None = None
) -> tuple[list[nn.Module], list[Any]]:
    """Move, wrap or shard the models of phases, and their optimizers; returns each once."""
    prepared: dict[int, tuple[nn.Module, Any]] = {}  # phases may share a model and its optimizer
    for phase in phases:
        key = id(phase.model)
        if key not in prepared and shard_from is not None and phase.shards:
            prepared[key] = shard(accelerator, phase.model, phase.optimizer, min_params=shard_from)
        elif key not in prepared:
            prepared[key] = accelerator.prepare(phase.model, phase.optimizer)
        phase.model, phase.optimizer = prepared[key]
        phase.weights = [p for p in phase.model.parameters() if p.requires_grad]  # sharding replaces them
    return [model for model, _ in prepared.values()], [optimizer for _, optimizer in prepared.values()]


def step(
    task: Task, batches: Sequence[Any], accelerator: Accelerator, max_norm: float, seeds: Sequence[int] = ()
) -> dict[str, Tensor]:
    """One optimizer step of every phase on the mean loss of some batches.

    A phase sees all batches before the next one starts, as if they were one: phases that share weights do not mix their
    gradients. In float16 a step whose gradients overflow is skipped and the loss scale lowered.

    Args:
        batches: `gradient_accumulation_steps` of them.
        max_norm: gradients of a phase are clipped to this norm.
        seeds: of torch's generator, one per batch; a phase's randomness in a batch depends on it alone.

    Returns:
        mean terms and gradient norm by phase; with a loss scaler also its scale.

    Raises:
        FloatingPointError: see `check_finite`.
    """
    report: dict[str, Tensor] = {}
    if hasattr(task, "before_step"):
        task.before_step(batches, accelerator)
    for phase in task.phases:
        means: dict[str, Tensor] = {}
        with freeze_other_phases(phase, task.phases):
            for number, batch in enumerate(batches, start=1):
                if seeds:
                    torch.manual_seed(seed_from(seeds[number - 1], phase.name))
                with nullcontext() if number == len(batches) else accelerator.no_sync(phase.model):
                    terms = phase.losses(batch)
                    accelerator.backward(torch.stack(list(terms.values())).sum())  # divided by their number there
                for name, value in terms.items():
                    means[name] = means.get(name, 0) + value.detach() / len(batches)
        norm = full_tensor(torch.as_tensor(accelerator.clip_grad_norm_(phase.weights, max_norm)))
        report |= {f"{phase.name}/{name}": value for name, value in means.items()}
        if check_finite(phase, means, norm, accelerator.scaler):
            report[f"{phase.name}/grad_norm"] = norm
        if accelerator.scaler is not None:
            report[f"{phase.name}/loss_scale"] = torch.tensor(accelerator.scaler.get_scale())
        phase.optimizer.step()
        phase.optimizer.zero_grad()
    return report


def check_card(device: torch.device, phases: Sequence[Phase], advice: str) -> None:
    """Refuse a GPU that is too small for weights, gradients and Adam's moments alone, before anything is moved to it.

    What is kept for backward comes on top: `face2scene rehearse` says how much.

    Raises:
        ValueError: with the sizes and the option to change.
    """
    if device.type != "cuda":
        return
    weights = {id(p): p for phase in phases for p in phase.model.parameters()}.values()
    need = sum(p.numel() * p.element_size() * (4 if p.requires_grad else 1) for p in weights)
    there = torch.cuda.get_device_properties(device).total_memory
    if need > there:
        raise ValueError(
            f"Weights, gradients and optimizer need {need / 2**30:.1f} GiB and the card has {there / 2**30:.1f}: "
            f"{advice or 'use a larger card'}. `face2scene rehearse` says what a training needs."
        )


@contextmanager
def freeze_other_phases(phase: Phase, phases: Sequence[Phase]) -> Iterator[None]:
    """Inside, only this phase's weights require gradients, and no other phase's."""
    own = {id(weight) for weight in phase.weights}
    others = [w for other in phases for w in other.weights if id(w) not in own]
    for weight in others:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in others:
            weight.requires_grad_(True)


def check_finite(phase: Phase, terms: dict[str, Tensor], norm: Tensor, scaler: Any = None) -> bool:
    """Whether the gradient norm is finite; called before the optimizer step.

    Args:
        scaler: the loss scaler of float16 training, which skips steps whose gradients overflow and lowers its scale.

    Raises:
        FloatingPointError: a loss is not finite; or the norm, without a scaler, at its smallest scale, or too often in
            a row.
    """
    values = torch.stack([*terms.values(), norm.to(next(iter(terms.values())))])
    if torch.isfinite(values).all():  # one synchronisation with the device
        phase.overflows = 0
        return True
    phase.overflows += 1
    skippable = scaler is not None and scaler.get_scale() > _MIN_SCALE and phase.overflows < _MAX_OVERFLOWS
    if skippable and torch.isfinite(values[:-1]).all():
        return False
    listed = ", ".join(f"{name}={value.item():.4g}" for name, value in terms.items())
    raise FloatingPointError(
        f"Phase {phase.name!r} is not finite (gradient norm {norm.item():.4g}; {listed}). The weights are unchanged by "
        "this step; the same command resumes from the last state. Lower the learning rate or train in float32."
    )
