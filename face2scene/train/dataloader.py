"""An endless, numbered stream of batches that can start at any number, one share per process."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, Dataset

from face2scene.common.processes import end_with_parent


def batches(data: Dataset, accelerator: Accelerator, first: int, workers: int) -> Iterator[tuple[int, Any]]:
    """Numbered batches of this process, from number `first` on; batch n of rank r is `data[n * ranks + r]`."""
    ranks, rank = accelerator.num_processes, accelerator.process_index
    loader: DataLoader = DataLoader(
        data,
        batch_size=None,  # `data` returns whole batches
        sampler=itertools.count(first * ranks + rank, ranks),
        num_workers=workers,
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=_start_worker,
    )
    for number, batch in enumerate(loader, start=first):
        yield number, send_to_device(batch, accelerator.device, non_blocking=True)


def _start_worker(_: int) -> None:
    end_with_parent()
    torch.set_num_threads(1)
