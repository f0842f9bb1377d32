"""Gradients of one step of the restorer's training, on several batches or processes."""

import itertools
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate_processes import forget_processes
from restorer_training import restorer_task, tiny_discriminator
from tiny_restorer import randomise_loras, tiny_restorer

from face2scene.models.scene_estimator import SceneEstimator
from face2scene.train.loop import prepare, step
from face2scene.train.restorer_task import RestorerTask

ORDERS = ("one_forward", "published", "distillation")
IMAGES = 8
UNEQUAL = 5  # negatives for two processes: all positive images are the second's


def still_task(base: Path, order: str) -> RestorerTask:
    """Its steps change nothing; the discriminator keeps its spectral norms, whose iteration counts forward passes.

    `distillation` is an order of the estimator alone, whose batch norms keep their statistics.
    """
    restorer = randomise_loras(tiny_restorer(base))
    if order == "distillation":
        torch.manual_seed(0)
        estimator = SceneEstimator(widths=[8, 8], strides=[2, 1], width=32).eval()
        return restorer_task(restorer, None, [], estimator=estimator, lr=0.0, estimator_lr=1e-12, posterior="mean")
    discriminator = tiny_discriminator(augment=False)
    task = restorer_task(restorer, None, [], discriminator=discriminator, order=order, lr=1e-12, posterior="mean")
    discriminator.eval()
    return task


def make_batch(negatives: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    image, gt, restored, degraded = torch.rand(4, IMAGES, 3, 16, 16, generator=generator)
    negative = torch.arange(IMAGES) < negatives
    return {
        "image": image,
        "gt": gt,
        "target": torch.where(negative.view(-1, 1, 1, 1), image, gt),
        "restored": restored,
        "degraded": degraded,
        "negative": negative,
        "drop": torch.zeros(IMAGES, dtype=torch.bool),
        "seed": torch.arange(IMAGES),
    }


def step_gradients(base: Path, order: str, negatives: int, accumulate: int) -> list[torch.Tensor]:
    """Gradients of every optimizer step, in the order of the phases."""
    forget_processes()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    task = still_task(base, order)
    _, optimizers = prepare(task.phases, accelerator)
    gradients: list[torch.Tensor] = []

    def keep(optimizer, *_):
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        gradients.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in weights]))

    for optimizer in optimizers:
        optimizer.optimizer.register_step_pre_hook(keep)
    parts = accelerator.num_processes * accumulate
    own = slice(accelerator.process_index * accumulate, (accelerator.process_index + 1) * accumulate)
    batches = [
        {name: part for name, part in zip(make_batch(negatives), parts_of_one, strict=True)}
        for parts_of_one in zip(*(value.chunk(parts) for value in make_batch(negatives).values()), strict=True)
    ]
    step(task, batches[own], accelerator, 1e9)
    return gradients


def save_gradients(base: Path, folder: Path) -> None:
    for order, accumulate in itertools.product(ORDERS, (1, 4)):
        gradients = step_gradients(base, order, UNEQUAL, accumulate)
        if Accelerator(cpu=True).is_main_process:
            torch.save(gradients, folder / f"{order}_{accumulate}.pt")
