"""A step on several batches, or on several processes, has the gradients of one whole batch."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate_state import forget_processes
from test_restorer_task import TINY_VIT, StubEncoder, StubPerceptualLoss

from face2scene.models.mapnet import MapNet
from face2scene.models.restorer import lora
from face2scene.models.restorer.base_model import load_base
from face2scene.models.restorer.discriminator import Discriminator, load_features
from face2scene.models.restorer.one_step import OneStepRestorer
from face2scene.train.loop import step
from face2scene.train.restorer_task import RestorerTask

pytestmark = [pytest.mark.usefixtures("no_accelerator_of_another_test"), pytest.mark.numerics]
ORDERS = ("one_forward", "published")
IMAGES = 8
TWO = 5  # negatives where two processes share the images: all positive ones are the second's


def make_task(base: Path, order: str) -> RestorerTask:
    torch.manual_seed(0)
    mapnet = MapNet(in_channels=8, channels=16, heads=2, width=32)
    restorer = OneStepRestorer(load_base(base), mapnet, vae_rank=2, unet_rank=2, vae_layers=lora.VAE_ENCODER[:6])
    with torch.no_grad():
        for name, parameter in restorer.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    discriminator = Discriminator(load_features(TINY_VIT), levels=(1, 2), width=4, augment=False)
    options = {"lr": 1e-12, "posterior": "mean", "device": torch.device("cpu"), "about": {}}  # steps change nothing
    task = RestorerTask(
        restorer, StubEncoder(), StubPerceptualLoss(), None, [], discriminator=discriminator, order=order, **options
    )
    discriminator.eval()  # keeps the spectral norms, whose power iteration counts forward passes
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
    task = make_task(base, order)
    prepared = {id(phase.model): accelerator.prepare(phase.model, phase.optimizer) for phase in task.phases[::-1]}
    for phase in task.phases:
        phase.model, phase.optimizer = prepared[id(phase.model)]
    gradients: list[torch.Tensor] = []

    def keep(optimizer, *_):
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        gradients.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in weights]))

    for optimizer in {id(phase.optimizer): phase.optimizer for phase in task.phases}.values():
        optimizer.optimizer.register_step_pre_hook(keep)
    parts = accelerator.num_processes * accumulate
    own = slice(accelerator.process_index * accumulate, (accelerator.process_index + 1) * accumulate)
    batches = [
        {name: part for name, part in zip(make_batch(negatives), parts_of_one, strict=True)}
        for parts_of_one in zip(*(value.chunk(parts) for value in make_batch(negatives).values()), strict=True)
    ]
    step(task, batches[own], accelerator, 1e9)
    return gradients


def assert_same(gradients: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(gradients) == len(expected)
    for gradient, whole in zip(gradients, expected, strict=True):
        # Sums over images in another order: float32 rounding, far below a gradient that is missing or mixed in.
        assert (gradient - whole).norm() <= 1e-3 * whole.norm() + 1e-7


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("negatives", [0, 3])
def test_accumulated_gradients_match_whole_batch(tiny_base, order, negatives):
    whole = step_gradients(tiny_base, order, negatives, 1)
    assert all(gradient.norm() > 1e-6 for gradient in whole)
    assert_same(step_gradients(tiny_base, order, negatives, IMAGES), whole)


def _save_gradients(base: Path, folder: Path) -> None:
    for order, accumulate in itertools.product(ORDERS, (1, 4)):
        gradients = step_gradients(base, order, TWO, accumulate)
        if Accelerator(cpu=True).is_main_process:
            torch.save(gradients, folder / f"{order}_{accumulate}.pt")


LAUNCH_TWO = """
import sys
from pathlib import Path
from accelerate import debug_launcher
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/../support"]
from test_accumulation import _save_gradients
debug_launcher(_save_gradients, (Path(sys.argv[2]), Path(sys.argv[3])), num_processes=2)
"""


def test_two_processes_match_whole_batch(tiny_base, tmp_path):
    """All positive images are on one process, so a mean per process would halve their weight."""
    command = [sys.executable, "-c", LAUNCH_TWO, str(Path(__file__).parent), str(tiny_base), str(tmp_path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:]
    for order in ORDERS:
        whole = step_gradients(tiny_base, order, TWO, 1)
        for accumulate in (1, 4):
            assert_same(torch.load(tmp_path / f"{order}_{accumulate}.pt"), whole)
