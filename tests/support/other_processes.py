"""Functions in processes of their own, which a test may race against each other or kill at any moment.

They are forked from a server that has imported the package and started no thread. A fork of the process that runs the
tests would inherit its locks as they are, and one that another thread holds at that moment is never given back there:
the child would wait for ever. A child that is killed inside a lock it shares with the tests would stop those.
"""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        *("face2scene.inference.batch", "face2scene.train.fadex_task", "face2scene.data.building.build"),
        *("face2scene.eval.sweeps.run", "face2scene.cli.command_line", "face2scene.assets.download", "pandas"),
    ]
)


def start(work: Callable[..., Any], *arguments: Any, output: Path | None = None) -> BaseProcess:
    """Start `work(*arguments)` with this process's environment variables.

    Args:
        work: importable by name from tests/support or the package; a test module is not.
        output: file that stdout and stderr are appended to.
    """
    told = str(output) if output else ""
    process = _SERVER.Process(target=_call, args=(told, dict(os.environ), work, arguments))
    process.start()
    return process


def finish(work: Callable[..., Any], *arguments: Any, within: float = 300) -> int | None:
    """The exit code of `work(*arguments)` in another process; None after `within` seconds."""
    process = start(work, *arguments)
    process.join(within)
    return process.exitcode


def _call(output: str, environment: dict[str, str], work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.clear()  # the server has that of the test that started it
    os.environ.update(environment)
    if output:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
    work(*arguments)
