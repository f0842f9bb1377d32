"""Memory of the process."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

from face2scene.common.memory import keep_freed_memory, release_freed_memory

GLIBC = platform.libc_ver()[0] == "glibc"
CHURN = """
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


def pages(how: str) -> str:
    """Pages that the kernel had to clear while 20 tensors came and went."""
    command = [sys.executable, "-c", CHURN, how]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_freed_memory_is_not_cleared_again_by_the_kernel():
    kept = pages("kept")
    if not GLIBC:
        assert kept == "no switch"
        return
    assert int(kept) * 10 < int(pages("as it is"))
    assert keep_freed_memory()  # a second time changes nothing


def test_what_was_kept_can_be_given_back():
    assert keep_freed_memory() == GLIBC
    if not GLIBC:
        release_freed_memory()  # and does nothing
        return
    size = 48 * 2**20
    large = [torch.ones(size // 4) for _ in range(4)]
    del large
    kept = resident()
    release_freed_memory()
    assert kept - resident() > 2 * size


def resident() -> int:
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
