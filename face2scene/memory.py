"""Out of memory, said so that one knows what to change."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
