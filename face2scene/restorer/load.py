"""Whichever restorer a weights file holds."""

from pathlib import Path
from typing import Any

from face2scene import checkpoints
from face2scene.restorer.one_step import OneStepRestorer
from face2scene.restorer.s3diff import S3Diff


def load_restorer(path: str | Path, **base: Any) -> OneStepRestorer | S3Diff:
    """Rebuild the restorer that the header of `path` names.

    Args:
        base: arguments of `from_file`: where the base model is (`source`), if not where the header says.

    Raises:
        FileNotFoundError: no such file, or no base model.
        ValueError: not restorer weights.
    """
    kind = S3Diff if checkpoints.kind_of(path) == "s3diff" else OneStepRestorer
    return kind.from_file(path, **base)
