"""An endless, numbered stream of batches that can be entered anywhere, one share per process."""

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler


class InfiniteSampler(Sampler):
    """Positions first, first + stride, ... without end."""

    def __init__(self, first: int, stride: int):
        self.first, self.stride = first, stride

    def __iter__(self) -> Iterator[int]:
        position = self.first
        while True:
            yield position
            position += self.stride


def batches(data: Dataset, accelerator: Accelerator, first: int, workers: int) -> Iterator[tuple[int, Any]]:
    """Numbered batches of this process, from number `first` on; batch n of rank r is `data[n * ranks + r]`."""
    ranks, rank = accelerator.num_processes, accelerator.process_index
    loader = DataLoader(
        data,
        batch_size=None,  # `data` makes whole batches
        sampler=InfiniteSampler(first * ranks + rank, ranks),
        num_workers=workers,
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=_one_thread,
    )
    for number, batch in enumerate(loader, start=first):
        yield number, _to(batch, accelerator.device)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: _to(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to(item, device) for item in value)
    return value
