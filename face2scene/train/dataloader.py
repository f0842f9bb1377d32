"""An endless, numbered stream of batches that can start at any number, one share per process."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from face2scene.common.processes import end_with_parent


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
        data,
        batch_size=None,  # `data` returns whole batches
        sampler=itertools.count(first * ranks + rank, ranks),
        num_workers=workers,
        pin_memory=accelerator.device.type == "cuda",
        collate_fn=partial(_packed, names) if names else None,
        worker_init_fn=_start_worker,
    )
    for number, batch in enumerate(loader, start=first):
        batch = send_to_device(batch, accelerator.device, non_blocking=True)
        for name in names:
            batch[name] = _each(batch[name], lambda image: image / 255)
        yield number, batch


def _packed(names: Sequence[str], batch: dict[str, Any]) -> dict[str, Any]:
    # With the images `names`, which have 256 values, as bytes.
    return batch | {n: _each(batch[n], lambda image: (image * 255).round().to(torch.uint8)) for n in names}


def _each(images: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return change(images) if isinstance(images, Tensor) else [change(image) for image in images]


def _start_worker(_: int) -> None:
    end_with_parent()
    torch.set_num_threads(1)
