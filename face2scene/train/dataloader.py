"""An endless, numbered stream of batches that can start at any number, one share per process."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


def batches(data: Dataset, accelerator: Accelerator, first: int, workers: int) -> Iterator[tuple[int, Any]]:
    """Numbered batches of this process, from number `first` on; batch n of rank r is `data[n * ranks + r]`.

    Images that `data.in_bytes` names leave the workers as bytes, a quarter of the memory and of the transfers, and are
    in [0, 1] again on the device. A cache of `data` is divided over the workers and processes of this machine by its
    `divide_memory(parts)`.
    """
    ranks, rank = accelerator.num_processes, accelerator.process_index
    names = getattr(data, "in_bytes", ())
    if hasattr(data, "divide_memory"):
        data.divide_memory(max(workers, 1) * int(os.environ.get("LOCAL_WORLD_SIZE", ranks)))
    loader: DataLoader = DataLoader(
        _Packed(data, names),
        batch_size=None,  # `data` returns whole batches
        sampler=itertools.count(first * ranks + rank, ranks),
        num_workers=workers,
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=_use_one_thread,
    )
    for number, packed in enumerate(loader, start=first):
        batch = send_to_device(packed, accelerator.device, non_blocking=True)
        yield (
            number,
            batch | {name: _each(batch[name], lambda image: image / 255) for name in names} if names else batch,
        )


class _Packed(Dataset):
    # Batches of `data` with the images `names`, which have 256 values, as bytes.
    def __init__(self, data: Dataset, names: Sequence[str]):
        self.data, self.names = data, names

    def __getitem__(self, index: int) -> Any:
        batch = self.data[index]
        packed = {name: _each(batch[name], lambda image: (image * 255).round().to(torch.uint8)) for name in self.names}
        return batch | packed if packed else batch


def _each(images: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return change(images) if isinstance(images, Tensor) else [change(image) for image in images]


def _use_one_thread(_: int) -> None:
    torch.set_num_threads(1)
