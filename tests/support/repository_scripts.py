"""The modules of the commands, in this process."""

import importlib
from types import ModuleType


def load_script(name: str) -> ModuleType:
    """face2scene.cli.commands.<name>, without running its `main`."""
    return importlib.import_module(f"face2scene.cli.commands.{name}")
