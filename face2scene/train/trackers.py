"""Receivers of a run's metrics and images beside metrics.jsonl and validation/. Each works without a network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from face2scene.common.optional import import_optional


class Wandb:
    """Weights & Biases; the run's name is its identity there, so that a resumed run goes on in the same one.

    Args:
        name, config: of the run.
        folder: of the run; wandb keeps its files in there.
        project: where the runs are collected.
        mode: `online`, `offline` (kept on disk for `wandb sync`) or `disabled`.

    Raises:
        ModuleNotFoundError: without wandb; the message names the extra.
    """

    def __init__(
        self,
        *,
        name: str,
        config: Mapping[str, Any],
        folder: str | Path | None = None,
        project: str = "face2scene",
        mode: str = "offline",
    ):
        self._wandb = import_optional("wandb", "log", why="tracker=wandb")
        identity = name.replace("/", "-")
        where = {"dir": str(folder)} if folder is not None else {}
        options = {"id": identity, "name": name, "config": dict(config), "mode": mode, "resume": "allow"}
        self.run = self._wandb.init(project=project, **options, **where)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log({key: float(value) for key, value in values.items()}, step=step)

    def show(self, images: Mapping[str, np.ndarray], step: int) -> None:
        """Images by name, uint8 (H, W, 3)."""
        self.run.log({name: self._wandb.Image(image) for name, image in images.items()}, step=step)


class Tensorboard:
    """TensorBoard's event files in the run's own folder; `tensorboard --logdir runs` shows all runs.

    A resumed run writes a further file there, which hides what the earlier one holds from the same step on.

    Args:
        name, config: of the run; the configuration is kept in config.yaml already.
        folder: of the run.

    Raises:
        ModuleNotFoundError: without tensorboard; the message names the extra.
    """

    def __init__(self, *, name: str, config: Mapping[str, Any], folder: str | Path):
        import_optional("tensorboard", "log", why="tracker=tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._make, self._folder, self._writer = SummaryWriter, Path(folder) / "tensorboard", None

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
        if self._writer is None:  # only now is it known where a resumed run goes on
            self._writer = self._make(str(self._folder), purge_step=step)
        return self._writer
