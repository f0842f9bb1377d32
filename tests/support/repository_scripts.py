"""The scripts of the repository as modules of this process."""

import importlib.util
from types import ModuleType

from face2scene.common.reproducibility import REPOSITORY


def load_script(name: str) -> ModuleType:
    """scripts/<name>.py, loaded without running its `main`."""
    found = importlib.util.spec_from_file_location(f"script_{name}", REPOSITORY / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module
