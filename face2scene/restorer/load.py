"""Whichever restorer a weights file holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from face2scene import checkpoints
from face2scene.restorer.merged import load_merged
from face2scene.restorer.one_step import OneStepRestorer
from face2scene.restorer.s3diff import S3Diff

# Settings that a file's weights are made for, and what a header that does not name one was written with.
_SHAPES = ("vae_rank", "unet_rank", "lora_alpha", "full", "skips", "residual")
_OLDER = {"skips": False, "residual": False}


def load_restorer(
    path: str | Path, *, expected: Mapping[str, Any] | None = None, **base: Any
) -> OneStepRestorer | S3Diff:
    """Rebuild the restorer that the header of `path` names.

    Args:
        expected: settings of `restorer.adapters` that the file must have been written with, such as its LoRA ranks.
        base: arguments of `from_file`: where the base model is (`source`), if not where the header says. A merged
            restorer brings its own.

    Raises:
        FileNotFoundError: no such file, or no base model.
        ValueError: not restorer weights, or of another rank than expected.
    """
    named = checkpoints.kind_of(path)
    if named == "merged_restorer":
        return load_merged(path)
    kind = S3Diff if named == S3Diff.kind else OneStepRestorer
    if expected:
        config = _OLDER | checkpoints.load_weights(path, kind=kind.kind)[1]
        other = [k for k in _SHAPES if k in expected and k in config and config[k] != expected[k]]
        if other:
            told = ", ".join(f"{k}={config[k]} (asked for: {expected[k]})" for k in other)
            raise ValueError(
                f"{path} was written with {told}: set restorer.adapters.{other[0]}={config[other[0]]} to go on from "
                "it, or start from the bare base (init_from=null)."
            )
    return kind.from_file(path, **base)
