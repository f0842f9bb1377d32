"""Memory of the process."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from face2scene.common.memory import explained, free_memory, keep_freed_memory, release_freed_memory

GLIBC = platform.libc_ver()[0] == "glibc"
ALLOCATION_LOOP = """
import resource, sys
import torch
from face2scene.common.memory import keep_freed_memory

if sys.argv[1] == "kept" and not keep_freed_memory():
    print("no switch")
    raise SystemExit
first = torch.ones(12 * 2**20)  # 48 MiB; below 32 the C library learns by itself
for turn in range(30):
    if turn == 10:  # the heap has grown to what is needed
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    first * 2
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> str:
    """Pages that the kernel had to clear while 20 tensors came and went."""
    command = [sys.executable, "-c", ALLOCATION_LOOP, how]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_freed_memory_is_reused():
    kept = page_faults("kept")
    if not GLIBC:
        assert kept == "no switch"
        return
    assert int(kept) * 10 < int(page_faults("as it is"))
    assert keep_freed_memory()  # a second time changes nothing


def test_freed_memory_can_be_released():
    assert keep_freed_memory() == GLIBC
    if not GLIBC:
        release_freed_memory()  # and does nothing
        return
    size = 48 * 2**20
    large = [torch.ones(size // 4) for _ in range(4)]
    del large
    kept = resident_bytes()
    release_freed_memory()
    assert kept - resident_bytes() > 2 * size


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),  # on Windows
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
        MemoryError(),
    ],
)
def test_every_allocator_gets_the_advice(error):
    with pytest.raises(torch.OutOfMemoryError, match="Out of memory: lower the tile"), explained("lower the tile"):
        raise error
    with pytest.raises(RuntimeError, match="shapes differ"), explained("lower the tile"):
        raise RuntimeError("shapes differ")


def test_what_torch_keeps_for_reuse_is_free(monkeypatch):
    for name, value in {"mem_get_info": (3, 9), "memory_reserved": 5, "memory_allocated": 1}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free_memory("cuda") == 3 + 5 - 1


def resident_bytes() -> int:
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
