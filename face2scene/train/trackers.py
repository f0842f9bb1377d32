"""Trackers of a run's metrics and images, in addition to metrics.jsonl and validation/.

Those of Weights & Biases (offline by default) and TensorBoard need no network; `AccelerateTracker` brings accelerate's.
"""

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
        artifacts: at the end of a training, its weights and validation images as artifacts of the types `model` and
            `predictions`.

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
        artifacts: bool = True,
    ):
        self.artifacts = artifacts
        self._wandb = import_optional("wandb", "log", why="tracker=wandb")
        options = {"id": name.replace("/", "-"), "name": name, "config": dict(config), "dir": str(folder)}
        self.run = self._wandb.init(project=project, mode=mode, resume="allow", **options)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log({key: float(value) for key, value in values.items()}, step=step)

    def show(self, images: Mapping[str, np.ndarray], step: int) -> None:
        """Images by name, uint8 (H, W, 3)."""
        self.run.log({name: self._wandb.Image(image) for name, image in images.items()}, step=step)

    def share(self, folders: Mapping[str, Path]) -> None:
        """Folders of a finished training by their artifact's type."""
        for kind, folder in folders.items() if self.artifacts else ():
            artifact = self._wandb.Artifact(f"{self.run.id}-{folder.name}", type=kind)
            artifact.add_dir(str(folder))
            self.run.log_artifact(artifact)


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


class AccelerateTracker:
    """Any tracker that accelerate knows: mlflow, comet_ml, aim, clearml, dvclive, swanlab, trackio.

    A resumed run is a further one there, unless `options` name the first.

    Args:
        folder: of the run; trackers that keep files get it.
        kind: accelerate's name of the tracker.
        options: further arguments of accelerate's class, such as mlflow's `experiment_name`.

    Raises:
        ValueError: accelerate knows no such tracker.
        ModuleNotFoundError: its package is not installed.
    """

    def __init__(
        self,
        *,
        name: str,
        config: Mapping[str, Any],
        folder: str | Path,
        kind: str,
        options: Mapping[str, Any] | None = None,
    ):
        from accelerate import tracking

        known = tracking.LOGGER_TYPE_TO_CLASS
        if kind not in known:
            raise ValueError(f"tracker.kind={kind} is no tracker of accelerate: choose {', '.join(sorted(known))}.")
        if kind not in map(str, tracking.get_available_trackers()):
            raise ModuleNotFoundError(f"tracker.kind={kind} needs its package: pip install {kind.replace('_', '-')}")
        cls = known[kind]
        given: dict[str, Any] = {"run_name": name, **(options or {})}
        if cls.requires_logging_directory:
            given["logging_dir"] = str(folder)
        self._tracker = cls(**given)
        if hasattr(self._tracker, "start"):  # before accelerate 1.8 the constructor starts
            self._tracker.start()
        self._tracker.store_init_configuration(_flat(config))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._tracker.log({key: float(value) for key, value in values.items()}, step=step)

    def show(self, images: Mapping[str, np.ndarray], step: int) -> None:
        """Images by name, uint8 (H, W, 3), where the tracker takes images."""
        if not hasattr(self._tracker, "log_images"):
            return
        single = self._tracker.name in ("aim", "clearml")  # the others take a batch of images
        options = {"dataformats": "NHWC"} if self._tracker.name == "tensorboard" else {}
        shown = {name: image if single else image[None] for name, image in images.items()}
        self._tracker.log_images(shown, step=step, **options)
        if hasattr(self._tracker.tracker, "flush"):  # TensorBoard's writes images in a thread, accelerate does not wait
            self._tracker.tracker.flush()


def _flat(config: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        inner = f"{path}.{key}" if path else str(key)
        flat |= _flat(value, inner) if isinstance(value, Mapping) else {inner: value}
    return {key: v if isinstance(v, int | float | str) else str(v) for key, v in flat.items()}
