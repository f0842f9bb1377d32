"""Training in the process of a test, and in two processes of `torch.distributed` on the CPU."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState

LAUNCH_TWO = """
import importlib
import sys
from pathlib import Path
from accelerate import debug_launcher
sys.path.insert(0, sys.argv[1])
work = getattr(importlib.import_module(sys.argv[2]), sys.argv[3])
debug_launcher(work, tuple(map(Path, sys.argv[4:])), num_processes=2)
"""


def forget_processes() -> None:
    """accelerate remembers its processes for the life of a Python; the next training starts without that memory."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def run_in_two_processes(work: Callable[..., None], *paths: Path) -> None:
    """Call `work(*paths)` in two processes; `work` stands in a module of tests/support, which they import.

    Its interpreter is a new one: a fork of this one would wait for the OpenMP threads that this one has started.
    """
    command = [sys.executable, "-c", LAUNCH_TWO, str(Path(__file__).parent), work.__module__, work.__name__]
    command += map(str, paths)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:]
