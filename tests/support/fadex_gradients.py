"""FaDeX's gradients on six faces, on one process and on two that hold unequal parts of them.

Batch norms are frozen: each process has the statistics of its own batch, as MoCo's and DASR's have.
"""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from face2scene.models.fadex import FaDeX, MoCo
from face2scene.train.fadex_task import FaDeXTask

SIZES = (4, 2)  # faces of the two processes


class NoPairs:
    """Data of two operators and two images; its batches are `face_batch`."""

    operators, images, people, paths, boxes = 2, 2, 6, (), ()

    class space:
        @staticmethod
        def draw(rng):
            return None


def frozen_task(accelerator: Accelerator) -> FaDeXTask:
    torch.manual_seed(0)
    moco = MoCo(FaDeX(widths=(4, 8), strides=(1, 2), embedding=8), queue_size=12, momentum=0.5).eval()
    task = FaDeXTask(moco, NoPairs(), NoPairs(), accelerator, lr=1e-2, probe_on="space", probe_operators=2)
    task.phases[0].model = accelerator.prepare(task.phases[0].model)
    return task


def face_batch(first: int, count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    faces = torch.rand(4, 6, 3, 16, 16, generator=generator)[:, first : first + count]
    labels = torch.tensor([1, 2, 1, 3, 4, 5])[first : first + count]
    names = ("query_restored", "query_degraded", "key_restored", "key_degraded")
    return dict(zip(names, faces, strict=True)) | {"labels": labels}


def gradients_of_batch(accelerator: Accelerator, batch: dict[str, Tensor], weight: float) -> dict[str, Tensor]:
    """Gradients of the weighted loss by the weight's name, and the queue after it."""
    task = frozen_task(accelerator)
    accelerator.backward(task.losses(batch)["contrast"] * weight)
    task.after_step()
    moco = task.moco
    state = {name: p.grad for name, p in moco.named_parameters() if p.grad is not None}
    return state | {"queue.keys": moco.queue.keys, "queue.labels": moco.queue.labels}


def save_gradients_of_rank(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    # The mean over processes of means over unequal batches, weighted back to the mean over all faces.
    batch = face_batch(sum(SIZES[:rank]), SIZES[rank])
    torch.save(gradients_of_batch(accelerator, batch, 2 * SIZES[rank] / sum(SIZES)), folder / f"rank{rank}.pt")
