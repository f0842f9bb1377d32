"""The device to use, its memory, keeping freed blocks, and errors that name the options which lower the use."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import torch


def best_device() -> torch.device:
    """Where work goes that no device was named for: CUDA, else the GPU of an Apple computer (MPS), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def named_device(name: str | torch.device | None, key: str = "device") -> torch.device:
    """A device by its name; None is `best_device`. Raises ValueError of the option `key` if there is none here."""
    try:
        device = torch.device(name or best_device())
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"{key}={name} cannot be used here ({reason}): choose {best_device()}.") from error
    return device


def free_memory(device: torch.device | str = "cpu") -> int:
    """Free bytes: of a CUDA device with what torch keeps for reuse, else of main memory (which MPS shares)."""
    device = torch.device(device)
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return psutil.virtual_memory().available


def peak_memory(device: torch.device | str = "cpu") -> int:
    """Peak bytes of this process: on a CUDA device as allocated by torch, else resident."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        memory = psutil.Process().memory_info()
        return getattr(memory, "peak_wset", memory.rss)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def keep_freed_memory() -> bool:
    """Let this process and its forks keep large freed blocks for the next tensor (Linux with glibc).

    By default glibc returns large blocks to the kernel, which clears every page of the next one: a third of the
    processor time of a CPU training. Blocks of 64 MiB and more, those of large images, are still returned where the
    version allows such a limit: kept, they left gaps that raised the peak. Called by programs, not by the library.

    Returns:
        Whether the C library accepted the options.
    """
    try:
        switch = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    mmap_threshold, mmap_max, trim_threshold = -3, -4, -1  # malloc.h
    limited = switch(mmap_threshold, 2**26) == 1 or switch(mmap_max, 0) == 1  # older versions: up to 32 MiB
    return limited and switch(trim_threshold, 2**31 - 1) == 1


def release_freed_memory() -> None:
    """Return kept blocks to the kernel, so that they do not count in a later peak."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def on_device(device: torch.device | str, *networks: torch.nn.Module) -> Iterator[None]:
    """Inside, the networks are on `device`; afterwards on the CPU."""
    try:
        for network in networks:
            torch.nn.Module.to(network, device)  # diffusers' own method warns without need
        yield
    finally:
        for network in networks:
            torch.nn.Module.to(network, "cpu")


# The CPU allocator's words, those on Windows, and MPS', which are plain RuntimeErrors.
_FULL = ("can't allocate memory", "not enough memory", "MPS backend out of memory")


@contextmanager
def explained(advice: str) -> Iterator[None]:
    """Add advice to an out-of-memory error of CUDA, MPS, Python or the CPU allocator.

    Args:
        advice: after "Out of memory: ", such as "lower train.restorer.batches.batch".

    Raises:
        torch.OutOfMemoryError: in place of the original.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        exhausted = isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in _FULL)
        if not exhausted or not advice:
            raise
        raise torch.OutOfMemoryError(f"Out of memory: {advice}. ({error})") from error
