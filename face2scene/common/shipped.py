"""What ships with the package, found wherever the package is: its configurations and its trained weights.

In a wheel `configs` and `checkpoints` are folders of the package (setup.py puts them there), in a checkout they stand
beside it. No path here depends on the folder that a command is started in.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE if (PACKAGE / "configs").is_dir() else PACKAGE.parent
INSTALLED = ROOT == PACKAGE  # else in a checkout
CONFIGS, CHECKPOINTS = ROOT / "configs", ROOT / "checkpoints"


def shipped(path: str | Path) -> Path | None:
    """The place of `checkpoints/...` (as files' headers and run folders record it), or None if no such thing ships."""
    path = Path(path)
    there = ROOT / path
    return there if path.parts[:1] == ("checkpoints",) and there.exists() else None


def portable(value: Any) -> Any:
    """A value of plain containers in which paths of what ships read `checkpoints/...`, as on every machine."""
    if isinstance(value, Mapping):
        return {key: portable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [portable(one) for one in value]
    if isinstance(value, str | Path) and Path(value).is_relative_to(CHECKPOINTS):
        return Path(value).relative_to(ROOT).as_posix()
    return value
