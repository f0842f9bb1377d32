"""A run's folder: its configuration, commit, metrics, training states and weights.

    runs/<name>/  config.yaml  commit.txt  log.txt  metrics.jsonl  state/<step>/  weights/*.safetensors
                  validation/<step>/*.png  images/

The folder's name is the run's name and never a timestamp, so the same command resumes in its own folder, and every
process computes the same path.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os.path import isfile  # unlike Path's, it takes text of any length
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from face2scene.common.files import atomic_write, read_json, read_seconds, remove_partials, write_json
from face2scene.common.ledger import differences, digest
from face2scene.common.locks import lock_until_exit
from face2scene.common.memory import keep_freed_memory
from face2scene.common.model_files import values_of
from face2scene.common.renamed_keys import keys_of, refuse_renamed
from face2scene.common.reproducibility import commit
from face2scene.common.shipped import portable
from face2scene.data.records import METADATA, version_of

log = logging.getLogger(__name__)
_INPUTS = "inputs"  # key of the stored configuration: contents of the sets and files that its values name
# Settings that do not change the result of a run.
_FREE = ("allow_config_change", "tracker", "paths", "hydra", _INPUTS)


class Run:
    """One run's folder, opened by every process; only the main process writes to it.

    Args:
        folder: `runs/<name>`.
        config: the resolved configuration as plain containers.
        main: whether this process writes.
        trackers: further receivers, each with `log(values, step)` and, where it takes them, `show(images, step)` and
            `share(folders)`.
        allow_config_change: resume a folder with another configuration; the new one is written.

    Raises:
        ValueError: the folder has another configuration or other content of what it names; the message says what.
        RenamedKey: its configuration has keys of an earlier version.
        FolderInUse: another process trains there.
    """

    def __init__(
        self,
        folder: str | Path,
        config: Mapping[str, Any],
        *,
        main: bool = True,
        trackers: tuple[Any, ...] = (),
        allow_config_change: bool = False,
    ):
        self.folder = Path(folder)
        self.config = dict(config)
        self.main = main
        self.trackers = trackers
        self._allow_config_change = allow_config_change
        stored = self.folder / "config.yaml"
        if main:
            lock_until_exit(self.folder, "choose another name=...")
        if stored.exists() and self.trained and not allow_config_change:
            before = _stored_config(stored)
            refuse_renamed(keys_of(before), source=str(stored))
            changed = _changes(_kept(before), _kept(self.config))
            now, then = self.config.get(_INPUTS) or {}, before.get(_INPUTS) or {}
            changed += [f"{key} leads to other content" for key in then if now.get(key, then[key]) != then[key]]
            if changed:
                raise ValueError(
                    f"{self.folder} holds a run with another configuration: {'; '.join(changed[:8])}. "
                    "Choose another name=..., remove the folder, or resume it with allow_config_change=true."
                )
        if main:
            remove_partials(self.folder, "weights", "validation")
            with atomic_write(stored, durable=True) as partial:
                OmegaConf.save(OmegaConf.create(self.config), partial)
            with atomic_write(self.folder / "commit.txt") as partial:
                partial.write_text(commit() + "\n", encoding="utf-8", newline="\n")
            _log_to(self.folder / "log.txt")

    @property
    def trained(self) -> bool:
        """Whether the folder holds anything of a training yet, not only a start that failed before its first step."""
        return any((self.folder / name).exists() for name in ("metrics.jsonl", "state", "weights"))

    def check_base(self, origin: Mapping[str, str]) -> None:
        """Refuse to go on from another base model; its first start keeps `base.json`.

        Args:
            origin: `models.restorer.base_model.origin_of` the base; empty for a random one, which is not checked.

        Raises:
            ValueError: the base's content or precision is another than at the first start.
        """
        path = self.folder / "base.json"
        before = read_json(path) if path.exists() and self.trained else origin
        if changed := _changes(before, dict(origin)) if origin and not self._allow_config_change else []:
            raise ValueError(
                f"{self.folder} was trained on another base model: {'; '.join(changed)}. Set restorer.base.source to "
                "that one, choose another name=..., or go on with this one by allow_config_change=true."
            )
        if self.main and origin:
            write_json(path, dict(origin))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Append a line to metrics.jsonl, and log to the trackers."""
        if not self.main:
            return
        line = {"step": step} | {key: float(value) for key, value in values.items()}
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(line) + "\n")
        for tracker in self.trackers:
            tracker.log(values, step)

    def show(self, images: Mapping[str, np.ndarray], step: int) -> None:
        """Write images by name, uint8 (H, W, 3), to validation/STEP/NAME.png, and to trackers of images."""
        from face2scene.image_io.arrays import write_png  # imports torch

        if not self.main or not images:
            return
        for name, image in images.items():
            write_png(self.folder / f"validation/{step:06d}/{name}.png", image.astype(np.float32) / 255)
        for tracker in self.trackers:
            if hasattr(tracker, "show"):
                tracker.show(images, step)

    def share(self) -> None:
        """Give the weights and the images of a finished training to trackers of files."""
        folders = {"model": self.folder / "weights", "predictions": self.folder / "validation"}
        for tracker in self.trackers:
            if hasattr(tracker, "share"):
                tracker.share({kind: folder for kind, folder in folders.items() if folder.is_dir()})

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps after `step`, which are repeated after a resume."""
        path = self.folder / "metrics.jsonl"
        if not (self.main and path.exists()):
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except json.JSONDecodeError:
                continue  # a line truncated by a kill
        with atomic_write(path) as partial:
            partial.write_text("".join(kept), encoding="utf-8", newline="\n")

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add this block's seconds to seconds.json; those of resumed runs sum up."""
        start = perf_counter()
        yield
        if self.main:
            path = self.folder / "seconds.json"
            seconds = read_seconds(path)
            seconds[what] = round(seconds.get(what, 0.0) + perf_counter() - start, 2)
            write_json(path, seconds)


def open_run(cfg: DictConfig, *, main: bool = True) -> Run:
    """Open `paths.runs`/`name` for a script's configuration; the process keeps freed memory from here on."""
    from hydra.utils import get_object  # hydra.instantiate has an argument `config` of its own

    if not cfg.name:
        raise ValueError(f"name is {cfg.name!r}: give the run one, which is its folder in {cfg.paths.runs}.")
    keep_freed_memory()
    config = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    if main:
        config[_INPUTS] = dict(_inputs(_kept(config)))
    config = portable(config)
    folder = Path(cfg.paths.runs) / cfg.name
    tracker = dict(config.get("tracker") or {})
    trackers: tuple[Any, ...] = ()
    if main and tracker:
        trackers = (get_object(tracker.pop("_target_"))(name=cfg.name, config=config, folder=folder, **tracker),)
    return Run(folder, config, main=main, trackers=trackers, allow_config_change=cfg.allow_config_change)


def _stored_config(path: Path) -> dict[str, Any]:
    try:
        config = OmegaConf.to_container(OmegaConf.load(path))
    except (AttributeError, OSError, RecursionError, ValueError, YAMLError, OmegaConfBaseException) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is damaged ({reason}): remove it if the run is yours and unchanged.") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no configuration: remove it if the run is yours and unchanged.")
    return cast(dict[str, Any], config)


def trained_with(cfg: DictConfig) -> dict[str, Any]:
    """For the header of the weights: digest of a script's configuration, and versions of its data sets."""
    config = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    folders = [part["folder"] for part in config["data"].get("mix") or ()] or [config["data"]["root"]]
    plain = cast(dict[str, Any], OmegaConf.to_container(cfg))  # unresolved: the folder of the runs decides nothing
    return {"config": digest(_kept(plain)), "data_sha256": list(map(version_of, folders))}


def _inputs(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Key and digest of every set and file that a value of a configuration names."""
    if isinstance(value, Mapping | list):
        for name, one in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _inputs(one, f"{key}.{name}" if key else str(name))
    elif isinstance(value, str) and isfile(value):
        yield key, values_of(value)
    elif isinstance(value, str) and isfile(os.path.join(value, METADATA)):
        yield key, version_of(value)


def _kept(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _FREE}


def _changes(before: Any, now: Mapping[str, Any]) -> list[str]:
    changed = differences(before if isinstance(before, Mapping) else {}, now)  # a damaged file may hold anything
    return [f"{key} was {was!r}, is {wanted!r}" for key, (was, wanted) in changed.items()]


class _RunLog(logging.FileHandler):
    """A log that ends with one sentence when it cannot be written any more, for example on a full disk."""

    def handleError(self, record: logging.LogRecord) -> None:
        logging.getLogger().removeHandler(self)
        log.warning("%s ends here: it cannot be written (%s).", self.baseFilename, sys.exc_info()[1])


def _log_to(path: Path) -> None:
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one, _RunLog)]:
        if handler.baseFilename == str(path.resolve()):
            return
        root.removeHandler(handler)  # of the run before this one in the process
        handler.close()
    handler = _RunLog(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root.addHandler(handler)
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # four lines for every saved state otherwise
    root.setLevel(min(root.level or logging.INFO, logging.INFO))
