"""A run's folder: what was asked for, by which code, what came of it, and where to go on.

    runs/<name>/  config.yaml  commit.txt  log.txt  metrics.jsonl  state/<step>/  weights/*.safetensors
                  validation/<step>/*.png  images/

The folder's name is the run's name and never a timestamp, so the same command again finds its own folder
and goes on; every process works out the same path.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from face2scene.common.files import atomic_write, read_json, write_json
from face2scene.common.memory import keep_freed_memory
from face2scene.common.renamed_keys import keys_of, refuse_renamed
from face2scene.common.reproducibility import commit

log = logging.getLogger(__name__)


# Settings that change how a run is carried out or looked at, not what comes of it.
_FREE = ("allow_config_change", "tracker", "paths", "hydra")


class Run:
    """One run's folder, opened by every process; only the main process writes to it.

    Args:
        folder: `runs/<name>`.
        config: the resolved configuration as plain containers; a folder with another one is refused.
        main: whether this process writes.
        trackers: extra receivers, each with `log(values, step)` and, for images, `image(name, image, step)`.
        allow_config_change: continue a folder although its configuration differs; the new one is written.

    Raises:
        ValueError: the folder belongs to another configuration; the message lists what differs.
        RenamedKey: its configuration has keys of an earlier version.
    """

    def __init__(
        self,
        folder: str | Path,
        config: Mapping[str, Any],
        *,
        main: bool = True,
        trackers: tuple = (),
        allow_config_change: bool = False,
    ):
        self.folder = Path(folder)
        self.config = dict(config)
        self.main = main
        self.trackers = trackers
        stored = self.folder / "config.yaml"
        if stored.exists() and not allow_config_change:
            before = OmegaConf.to_container(OmegaConf.load(stored))
            refuse_renamed(keys_of(before), source=str(stored))
            changed = _differences(_kept(before), _kept(self.config))
            if changed:
                raise ValueError(
                    f"{self.folder} holds a run with another configuration: {'; '.join(changed[:8])}. "
                    "Choose another name=..., remove the folder, or say allow_config_change=true to go on with it."
                )
        if main:
            with atomic_write(stored) as partial:
                OmegaConf.save(OmegaConf.create(self.config), partial)
            with atomic_write(self.folder / "commit.txt") as partial:
                partial.write_text(commit() + "\n")
            _log_to(self.folder / "log.txt")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Append one line of numbers to metrics.jsonl and hand them to the trackers."""
        if not self.main:
            return
        line = {"step": step} | {key: float(value) for key, value in values.items()}
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for tracker in self.trackers:
            tracker.log(values, step)

    def show(self, images: Mapping[str, np.ndarray], step: int) -> None:
        """Write images by name, uint8 (H, W, 3), to validation/STEP/NAME.png, and to trackers that show them."""
        from face2scene.image_io.arrays import write_png  # here, because torch comes with it

        if not self.main or not images:
            return
        for name, image in images.items():
            write_png(self.folder / f"validation/{step:06d}/{name}.png", image.astype(np.float32) / 255)
        for tracker in self.trackers:
            if hasattr(tracker, "show"):
                tracker.show(images, step)

    def part(self, name: str) -> "Run":
        """A run inside this one, for a training that is one of several: its own folder, state and metrics."""
        return Run(self.folder / name, self.config, main=self.main, trackers=self.trackers, allow_config_change=True)

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps later than `step`: they belong to work that was lost and is done again."""
        path = self.folder / "metrics.jsonl"
        if not (self.main and path.exists()):
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except json.JSONDecodeError:
                continue  # the line the kill cut through
        with atomic_write(path) as partial:
            partial.write_text("".join(kept), encoding="utf-8")

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the seconds this block takes to seconds.json; a resumed run's parts sum up."""
        start = perf_counter()
        yield
        if self.main:
            path = self.folder / "seconds.json"
            seconds = read_json(path) if path.exists() else {}
            seconds[what] = round(seconds.get(what, 0.0) + perf_counter() - start, 2)
            write_json(path, seconds)


def open_run(cfg: DictConfig, *, main: bool = True) -> Run:
    """Open `paths.runs`/`name` for a script's configuration; the process keeps freed memory from here on."""
    keep_freed_memory()
    config = OmegaConf.to_container(cfg, resolve=True)
    return Run(
        Path(cfg.paths.runs) / cfg.name,
        config,
        main=main,
        trackers=tuple(_trackers(config) if main else ()),
        allow_config_change=cfg.allow_config_change,
    )


def _trackers(config: dict) -> Iterator[Any]:
    from hydra.utils import get_object  # hydra.instantiate has an argument `config` of its own

    options = dict(config.get("tracker") or {})
    if options:
        folder = Path(config["paths"]["runs"]) / config["name"]
        yield get_object(options.pop("_target_"))(name=config["name"], config=config, folder=folder, **options)


def _kept(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _FREE}


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = [*before, *(key for key in now if key not in before)]
        return [
            line
            for key in keys
            for line in _differences(before.get(key), now.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if before == now else [f"{path} was {before!r}, is {now!r}"]


def _log_to(path: Path) -> None:
    root = logging.getLogger()
    if any(getattr(handler, "baseFilename", None) == str(path.resolve()) for handler in root.handlers):
        return
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root.addHandler(handler)
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # four lines for every saved state otherwise
    root.setLevel(min(root.level or logging.INFO, logging.INFO))
