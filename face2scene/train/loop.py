"""The one training loop: contrastive, adversarial or plain, on one process or many.

A *phase* is one backward pass and one optimiser step on one set of weights: FaDeX trains in one phase, the
restorer in two (generator, discriminator), or in S3Diff's four, two on each set of weights. Time is counted in
optimiser steps. The data are an endless stream that can be entered at any position, and all randomness follows from
that position, so a run that was stopped and resumed ends with bit for bit the weights of one that was not.
"""

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
from tqdm import tqdm

from face2scene.common.memory import explained
from face2scene.common.reproducibility import seed_from
from face2scene.train.checkpoint import keep_trained_only, load_trained, resume, save
from face2scene.train.dataloader import batches
from face2scene.train.fsdp import full_tensor, shard
from face2scene.train.run import Run
from face2scene.train.schedule import Progress, Schedule

log = logging.getLogger(__name__)


@dataclass
class Phase:
    """One backward pass and one optimiser step on one set of weights.

    Args:
        name: prefix of its losses in the logs.
        model: holds the weights; after preparation it is the wrapped one, and `losses` must call that.
        optimizer: over the weights of `model` that require gradients.
        losses: batch to weighted terms (scalars); their sum is minimised.
        shards: its model is worth spreading over the processes where that is asked for (FSDP); others are copied.
    """

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    losses: Callable[[Any], dict[str, Tensor]]
    shards: bool = False
    weights: list[nn.Parameter] = field(init=False)  # a list: it is read on every step

    def __post_init__(self) -> None:
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        if not self.weights:
            raise ValueError(f"Phase {self.name!r} has nothing to train.")


class Task(Protocol):
    """What a training has to say for itself.

    `data[index]` is a whole batch of one process, and everything random in it follows from `index`. A task may also
    have `stateful`, a list of objects with state_dict and load_state_dict that are saved and resumed with the rest;
    `memory_advice`, the options that lower its memory; `eval_weights()`, a context that every process enters and in
    which the weights are those to validate and to share; `images()`, uint8 (H, W, 3) by name, to be kept with every
    validation; and `count(batch)`, the images of a batch, for the bar's throughput.
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
    """Train to `schedule.steps`, going on from the newest state of the run's folder.

    Args:
        shard_from: spread the models of phases that ask for it over the processes, modules of this many weights each
            as one (see `sharded`); None copies every model to every process.

    Raises:
        FloatingPointError: a loss or gradient is not finite; nothing was updated by that step.
        ValueError: `schedule.best` names no validation number, or one process was told to shard.
    """
    progress = Progress()
    rates = [[group["lr"] for group in phase.optimizer.param_groups] for phase in task.phases]
    prepared: dict[int, tuple[nn.Module, Any]] = {}  # phases may share a model and its optimiser
    for phase in task.phases:
        key = id(phase.model)
        if key not in prepared:
            spread = shard_from is not None and phase.shards
            prepared[key] = (
                shard(accelerator, phase.model, phase.optimizer, least=shard_from)
                if spread
                else accelerator.prepare(phase.model, phase.optimizer)
            )
        phase.model, phase.optimizer = prepared[key]
        phase.weights = [p for p in phase.model.parameters() if p.requires_grad]  # sharding replaces them
    eval_weights = getattr(task, "eval_weights", nullcontext)
    accelerator.register_for_checkpointing(progress, *getattr(task, "stateful", ()))
    accelerator.register_save_state_pre_hook(keep_trained_only)
    accelerator.register_load_state_pre_hook(load_trained)
    resume(accelerator, run)
    run.forget_after(progress.step)
    log.info("Training from step %d to %d.", progress.step, schedule.steps)

    bar = tqdm(total=schedule.steps, initial=progress.step, unit="step", disable=not accelerator.is_main_process)
    count, seen, since = getattr(task, "count", None), 0, perf_counter()
    for number, batch in batches(task.data, accelerator, progress.batch, workers):
        if progress.step >= schedule.steps:
            break
        for phase, base in zip(task.phases, rates, strict=True):
            for group, rate in zip(phase.optimizer.param_groups, base, strict=True):
                group["lr"] = rate * schedule.rate(progress.step)
        torch.manual_seed(seed_from(seed, accelerator.process_index, number))
        with explained(getattr(task, "memory_advice", "")):
            report = step(task, batch, accelerator, schedule.max_norm)
        progress.batch = number + 1
        seen += count(batch) * accelerator.num_processes if count else 0
        if not accelerator.sync_gradients:
            continue
        progress.step += 1
        task.after_step()
        bar.update()

        if progress.due(schedule.log_every) or progress.step == schedule.steps:
            values = {name: value.item() for name, value in report.items()}
            run.log(values, progress.step)
            postfix = {name.split("/")[-1]: f"{value:.3g}" for name, value in values.items()}
            if count:  # not in the metrics, which are the same for a run that was stopped and one that was not
                postfix["images/s"] = f"{seen / (perf_counter() - since):.3g}"
                seen, since = 0, perf_counter()
            bar.set_postfix(postfix)
        if progress.due(schedule.validate_every) or progress.step == schedule.steps:
            with eval_weights():
                with preserve_rng_state():
                    values = task.validate()
                    images = task.images() if hasattr(task, "images") else {}
                run.log(values, progress.step)
                run.show(images, progress.step)
                if schedule.improves(values, progress.best):
                    progress.best = values[schedule.best]
                    if accelerator.is_main_process:
                        task.export(run.folder / "weights/best", progress.step)
        if progress.due(schedule.save_every) or progress.step == schedule.steps:
            save(accelerator, run, progress.step, schedule.keep_states)
    bar.close()

    with eval_weights():
        if accelerator.is_main_process:
            task.export(run.folder / "weights", progress.step)
    accelerator.wait_for_everyone()


def step(task: Task, batch: Any, accelerator: Accelerator, max_norm: float) -> dict[str, Tensor]:
    """One pass over every phase; moves the weights when gradients are complete."""
    report = {}
    with accelerator.accumulate(*{id(phase.model): phase.model for phase in task.phases}.values()):
        for phase in task.phases:
            with freeze_other_phases(phase, task.phases):
                terms = phase.losses(batch)
                total = torch.stack(list(terms.values())).sum()
                accelerator.backward(total)
            if accelerator.sync_gradients:
                norm = full_tensor(torch.as_tensor(accelerator.clip_grad_norm_(phase.weights, max_norm)))
                check_finite(phase.name, total, norm, terms)
                report[f"{phase.name}/grad_norm"] = norm
            phase.optimizer.step()
            phase.optimizer.zero_grad()
            report |= {f"{phase.name}/{name}": value.detach() for name, value in terms.items()}
    return report


@contextmanager
def freeze_other_phases(phase: Phase, phases: Sequence[Phase]) -> Iterator[None]:
    """Gradients reach this phase's weights and no other phase's."""
    own = {id(weight) for weight in phase.weights}
    others = [w for other in phases for w in other.weights if id(w) not in own]
    for weight in others:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in others:
            weight.requires_grad_(True)


def check_finite(phase: str, total: Tensor, norm: Tensor, terms: dict[str, Tensor]) -> None:
    """Raise before the optimiser moves when the loss or the gradient norm is not finite."""
    if torch.isfinite(total.detach()) and torch.isfinite(norm):
        return
    listed = ", ".join(f"{name}={value.item():.4g}" for name, value in terms.items())
    raise FloatingPointError(
        f"Phase {phase!r} is not finite (gradient norm {norm.item():.4g}; {listed}). The weights are unchanged by "
        "this step; the same command goes on from the last state. Lower the learning rate or train in float32."
    )


@contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Validation draws from a forked generator, so that it cannot change the training."""
    with torch.random.fork_rng(), torch.no_grad():
        yield
