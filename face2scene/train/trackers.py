"""Trackers of a run's metrics and images, in addition to metrics.jsonl and validation/. None needs a network."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from face2scene.common.optional import import_optional


class Wandb:
    """Weights & Biases; the run's id is its name, so that a resumed run continues the same one.

    Args:
        folder: of the run; wandb's files go there.
        mode: `online`, `offline` (kept on disk for `wandb sync`) or `disabled`.

    Raises:
        ModuleNotFoundError: without wandb; the message names the extra.
    """

    def __init__(
        self,
        *,
        name: str,
        config: Mapping[str, Any],
        folder: str | Path,
        project: str = "face2scene",
        mode: str = "offline",
    ):
        self._wandb = import_optional("wandb", "log", why="tracker=wandb")
        options = {"id": name.replace("/", "-"), "name": name, "config": dict(config), "dir": str(folder)}
        self.run = self._wandb.init(project=project, mode=mode, resume="allow", **options)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log({key: float(value) for key, value in values.items()}, step=step)

    def show(self, images: Mapping[str, np.ndarray], step: int) -> None:
        """Images by name, uint8 (H, W, 3)."""
        self.run.log({name: self._wandb.Image(image) for name, image in images.items()}, step=step)


class Tensorboard:
    """TensorBoard's event files in the run's folder; `tensorboard --logdir runs` shows all runs.

    A resumed run writes a further file, which replaces the earlier ones from its first step on.

    Raises:
        ModuleNotFoundError: without tensorboard; the message names the extra.
    """

    def __init__(self, *, name: str, config: Mapping[str, Any], folder: str | Path):
        import_optional("tensorboard", "log", why="tracker=tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._open = partial(SummaryWriter, str(Path(folder) / "tensorboard"))
        self._writer: Any = None

    def log(self, values: Mapping[str, float], step: int) -> None:
        writer = self._at(step)
        for key, value in values.items():
            writer.add_scalar(key, float(value), step)
        writer.flush()

    def show(self, images: Mapping[str, np.ndarray], step: int) -> None:
        """Images by name, uint8 (H, W, 3)."""
        writer = self._at(step)
        for name, image in images.items():
            writer.add_image(name, image, step, dataformats="HWC")
        writer.flush()

    def _at(self, step: int) -> Any:
        if self._writer is None:  # the first step of a resumed run is known only now
            self._writer = self._open(purge_step=step)
        return self._writer
