"""The restorer's training with sharded models, on one process of several."""

import json
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate_processes import forget_processes
from restorer_training import tiny_restorer_task
from torch.distributed.fsdp import FSDPModule

from face2scene.train.loop import Schedule, train
from face2scene.train.restorer_task import RestorerTask
from face2scene.train.run import Run

MIN_PARAMS = 5000  # weights of a unit; the tiny networks have several of that size


def train_sharded(base: Path, folder: Path, steps: int, shard_from: int | None) -> RestorerTask:
    forget_processes()
    accelerator = Accelerator(cpu=True)
    task = tiny_restorer_task(base, ema=0.9)
    schedule = Schedule(steps=steps, log_every=1, validate_every=1, save_every=1, best="validation/psnr_own_tokens")
    run = Run(folder, {}, main=accelerator.is_main_process)
    train(task, accelerator, schedule, run, seed=3, shard_from=shard_from)
    return task


def train_on_rank(base: Path, folder: Path) -> None:
    """Sharded in one go, in two halves, and from a replicated state on; units.json has what a process holds."""
    task = train_sharded(base, folder / "sharded", 2, MIN_PARAMS)
    units = [m for m in task.phases[0].model.modules() if isinstance(m, FSDPModule)]
    parts = sum(p.to_local().numel() for p in task.phases[0].model.parameters())
    total = sum(p.numel() for p in task.phases[0].model.parameters())
    train_sharded(base, folder / "halves", 1, MIN_PARAMS)
    train_sharded(base, folder / "halves", 2, MIN_PARAMS)
    train_sharded(base, folder / "mixed", 1, None)  # replicated, and sharded from its state on
    train_sharded(base, folder / "mixed", 2, MIN_PARAMS)
    if torch.distributed.get_rank() == 0:
        (folder / "units.json").write_text(json.dumps([len(units), parts / total]))
