"""How much memory there is, and its end, said so that one knows what to change."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def free_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that can be had: on a CUDA device what is free there, else without swapping."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that this process had at most: on a CUDA device what torch had allocated there."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def explained(advice: str) -> Iterator[None]:
    """Whatever runs out of memory in here says which options lower it.

    Args:
        advice: goes on after "Out of memory: ", such as "lower train.restorer.batches.batch".

    Raises:
        torch.OutOfMemoryError: in place of CUDA's own, of Python's and of the CPU allocator's.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        exhausted = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        if not exhausted or not advice:
            raise
        raise torch.OutOfMemoryError(f"Out of memory: {advice}. ({error})") from error
