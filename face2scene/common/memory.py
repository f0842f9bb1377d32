"""How much memory there is, how it is kept, and its end, said so that one knows what to change."""

import ctypes
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


def keep_freed_memory() -> bool:
    """Let this process, and those it forks, keep large freed blocks for the next tensor (Linux with glibc).

    By default the C library returns every large block to the kernel and gets the next one cleared again, page by page:
    a third of the processor time of a CPU training, more of plain arithmetic. Programs call this, a library should not.

    Returns:
        whether the C library has such a switch and took it.
    """
    try:
        switch = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    no_separate_blocks, never_return = (-4, 0), (-1, 2**31 - 1)  # malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD
    return all(switch(*option) == 1 for option in (no_separate_blocks, never_return))


def release_freed_memory() -> None:
    """Give back to the kernel what was kept, so that the peak of what follows is that of its own work."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


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
