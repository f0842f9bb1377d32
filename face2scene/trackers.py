"""Receivers of a run's metrics beside metrics.jsonl."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from face2scene.extras import need
from face2scene.images import to_bytes


class Wandb:
    """Weights & Biases; the run's name is its identity there, so that a resumed run goes on in the same one.

    Args:
        name, config: of the run.
        project: where the runs are collected.
        mode: `online`, `offline` (kept on disk for `wandb sync`) or `disabled`.

    Raises:
        ModuleNotFoundError: without wandb; the message names the extra.
    """

    def __init__(self, *, name: str, config: Mapping[str, Any], project: str = "face2scene", mode: str = "offline"):
        self.wandb = wandb = need("wandb", "log", why="tracker=wandb")
        identity = name.replace("/", "-")
        self.run = wandb.init(project=project, id=identity, name=name, config=dict(config), mode=mode, resume="allow")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log({key: float(value) for key, value in values.items()}, step=step)

    def show(self, pictures: Mapping[str, Tensor], step: int) -> None:
        """Pictures by name, (3, H, W) in [0, 1]."""
        images = {name: self.wandb.Image(to_bytes(picture)) for name, picture in pictures.items()}
        self.run.log(images, step=step)
