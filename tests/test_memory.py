"""Memory of the process."""

import subprocess
import sys

import pytest

from face2scene.memory import keep_freed_memory

CHURN = """
import resource, sys
import torch
from face2scene.memory import keep_freed_memory

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
    if kept == "no switch":
        pytest.skip("this C library has no mallopt")
    assert int(kept) * 10 < int(pages("as it is"))
    assert keep_freed_memory()  # a second time changes nothing
