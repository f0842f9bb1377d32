"""Whichever restorer a weights file holds."""

from pathlib import Path
from typing import Any

from face2scene import checkpoints
from face2scene.restorer.one_step import OneStepRestorer
from face2scene.restorer.s3diff import S3Diff


def load_restorer(path: str | Path, **base: Any) -> OneStepRestorer | S3Diff:
    """Rebuild the restorer that the header of `path` names.

    Args:
        base: arguments of `from_file`: where the base model is (`source`), if not where the header says. A merged
            restorer brings its own.

    Raises:
        FileNotFoundError: no such file, or no base model.
        ValueError: not restorer weights.
    """
    kind = checkpoints.kind_of(path)
    if kind == "merged_restorer":
        return OneStepRestorer.from_merged(path)
    return (S3Diff if kind == "s3diff" else OneStepRestorer).from_file(path, **base)
