"""A pipeline without models for tests of folders, plain images for it, and what its log says."""

import json
import time
from pathlib import Path

import numpy as np
import torch

from face2scene.common.types import DegradationTokens
from face2scene.image_io.arrays import write_png
from face2scene.inference.log import RESTORATION_LOG
from face2scene.inference.results import DegradationEstimate, Restoration


class InvertingPipeline:
    """In the pipeline's place: inverts images, so that a test of files needs no models."""

    ref_fr = detector = None
    fingerprint = "weights"

    def __init__(self, **options):
        self.options = options
        self.seen: list[str] = []

    class restorer:
        @staticmethod
        def tokens(features, batch):
            return torch.zeros(1, 1, 1)

    def ready(self, **_):
        pass

    def estimate(self, scene, **_):
        source = "pair" if "face" in scene.name else "null"
        value = float(scene.name[-1]) if scene.name[-1].isdigit() else 0.0
        return DegradationEstimate(
            DegradationTokens(torch.full((1, 1, 1), value), source),
            notes={"warnings": ["The learned null tokens stand in."] * (source == "null"), "no_pair": "no face"},
        )

    def restore(self, scene, estimate, *, guidance=None, seed=0):
        self.seen.append(scene.name)
        notes = estimate.notes | {"tokens": estimate.tokens.source}
        return Restoration(1 - scene.image, estimate, notes)


class SlowPipeline(InvertingPipeline):
    """Takes 0.05 s for each image."""

    def restore(self, *args, **options):
        time.sleep(0.05)
        return super().restore(*args, **options)


def make_image(path: Path, value: float = 0.25, size=(6, 5)) -> Path:
    write_png(path, np.full((*size, 3), value, dtype=np.float32))
    return path


def log_entries(output: Path) -> dict[str, dict]:
    return {line["name"]: line for line in map(json.loads, (output / RESTORATION_LOG).read_text().splitlines())}
