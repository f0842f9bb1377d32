"""FaDeX at a size for tests: its pairs, its momentum contrast and its training."""

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate_processes import forget_processes

from face2scene.data.face_pair_batches import FacePairBatches
from face2scene.degradation import Space
from face2scene.models.fadex import FaDeX, MoCo
from face2scene.train.fadex_task import FaDeXTask
from face2scene.train.loop import Schedule, train
from face2scene.train.run import Run

SMALL_ENCODER = {"widths": (4, 8), "strides": (1, 2), "embedding": 8}
SPACE = Space(scale=1, no_degradation_prob=0, kernel_sizes=(3, 5), poisson_scale=(0.05, 0.1))


def pairs(face_files: list[Path], **options) -> FacePairBatches:
    settings = {"operators": 3, "images": 2, "crop": 16, "seed": 0, "margin": 4} | options
    return FacePairBatches(face_files, [(8, 8, 36, 36)] * len(face_files), SPACE, **settings)


def small_moco(**options) -> MoCo:
    torch.manual_seed(0)
    return MoCo(FaDeX(**SMALL_ENCODER), **({"queue_size": 12} | options))


def train_plain(folder, face_files, steps, accumulate=1, queue_size=20, keep_group=False) -> FaDeXTask:
    """A training without options; with `keep_group` the process remains one of `torch.distributed`."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    task = FaDeXTask(
        small_moco(queue_size=queue_size, momentum=0.5),
        pairs(face_files),
        pairs(face_files, seed=9),
        accelerator,
        lr=1e-2,
        probe_on="space",
        probe_operators=2,
        probe_images=3,
    )
    run = Run(folder, {}, main=accelerator.is_main_process)
    train(task, accelerator, Schedule(steps=steps, validate_every=1), run, seed=0)
    if not keep_group:
        forget_processes()  # the next training of this process is another one
    return task


def train_on_rank(folder: Path, *face_files: Path) -> None:
    """Two steps on one process of several; its state goes to rank<r>.pt."""
    state = train_plain(folder, face_files, 2, queue_size=40, keep_group=True).moco.state_dict()
    torch.save(state, folder / f"rank{torch.distributed.get_rank()}.pt")
