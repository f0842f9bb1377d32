"""What a training's configuration and set already show to be wrong, before anything is written."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from face2scene.data.records import METADATA, Records


def refuse(cfg: DictConfig, kind: str, processes: int) -> None:
    """Refuse what is missing or does not fit, before the run's folder is there.

    Raises:
        FileNotFoundError: a part of the training set is not there.
        ValueError: the first of `problems`.
    """
    for folder in parts_of(cfg):
        if not (folder / METADATA).is_file():
            build = f"face2scene build-inscene data={cfg.data.name if folder == Path(cfg.data.root) else folder.name}"
            raise FileNotFoundError(f"There is no InScene set in {folder} (data.root): build it first, `{build}`.")
    for sentence in problems(cfg, kind, processes):
        raise ValueError(sentence)


def problems(cfg: DictConfig, kind: str, processes: int) -> list[str]:
    """Sentences, each with the option to change.

    Args:
        cfg: of a training script.
        kind: `fadex` or `restorer`.
        processes: cards of the run.
    """
    return _fadex(cfg, processes) if kind == "fadex" else _restorer(cfg)


def parts_of(cfg: DictConfig) -> list[Path]:
    """The folders of a configuration's training set, or of its mix."""
    return [Path(part.folder) for part in cfg.data.get("mix") or []] or [Path(cfg.data.root)]


def training_set(cfg: DictConfig) -> Any:
    """The folder of a configuration's training set, or the parts of its mix."""
    return OmegaConf.to_container(cfg.data.mix, resolve=True) if cfg.data.get("mix") else cfg.data.root


def images_of(cfg: DictConfig) -> int | None:
    """The training images; those of the mix's weights where a part is not built, None where unknown."""
    folders = parts_of(cfg)
    if all((folder / METADATA).is_file() for folder in folders):
        return sum(len(Records(folder, "train")) for folder in folders)
    weights = [part.get("weight") for part in cfg.data.get("mix") or []]
    return int(sum(weights)) if weights and all(weights) else None


def most_images(settings: DictConfig) -> int:
    """P of FaDeX's largest batch, `train.fadex.images` or the most of its buckets."""
    return max(settings.buckets.values()) if settings.get("buckets") else int(settings.images)


def without_references(folder: Path) -> int | None:
    """Training images of a part that have none; None where it is not built."""
    if not (folder / METADATA).is_file():
        return None
    return sum(not names for names in Records(folder, "train").column("references"))


def _fadex(cfg: DictConfig, processes: int) -> list[str]:
    settings, queue, images = cfg.train.fadex, int(cfg.fadex.contrast.queue_size), images_of(cfg)
    most, found = most_images(settings), []
    keys = int(settings.operators) * most * int(settings.accumulate or 1) * processes
    if keys > queue:
        found.append(
            f"A step of FaDeX enqueues {keys} keys and the queue holds {queue}: raise fadex.contrast.queue_size, or "
            "lower train.fadex.operators, images or accumulate."
        )
    if images is not None and images < 2 * most:
        found.append(
            f"{cfg.data.root} has {images} images and a batch of FaDeX needs {2 * most}: lower train.fadex.images (or "
            "buckets), or give more images with data."
        )
    return found


def _restorer(cfg: DictConfig) -> list[str]:
    settings, found, images = cfg.train.restorer.batches, [], images_of(cfg)
    if int(settings.batch) < 1:
        found.append(f"train.restorer.batches.batch is {settings.batch}: a batch has an image at least.")
    if images is not None and images < int(settings.batch):
        found.append(
            f"{cfg.data.root} has {images} images and a batch of the restorer {settings.batch}: lower "
            "train.restorer.batches.batch, or give more images with data."
        )
    needs = "FaceMe" in str(cfg.ref_fr.get("_target_")) or "restorer" in cfg.ref_fr  # references for every face
    for folder in parts_of(cfg) if needs and not settings.get("gt_without_references") else []:
        if count := without_references(folder):
            found.append(
                f"{folder} has {count} images without references: set "
                "train.restorer.batches.gt_without_references=true, or leave it out of data.mix."
            )
    return found
