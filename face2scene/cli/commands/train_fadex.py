"""Train FaDeX: `face2scene train-fadex [experiment=...] [key=value ...]`.

The same command again goes on where the run stopped. Writes weights/fadex.safetensors and weights/probe.json.
"""

import logging
from typing import Any

import torch
from accelerate import Accelerator
from hydra.utils import instantiate
from omegaconf import DictConfig

from face2scene.cli import preflight
from face2scene.cli.command_line import script
from face2scene.common.memory import best_device
from face2scene.data.face_crops import Stored
from face2scene.data.face_pair_batches import FacePairBatches, RestoredBy, ground_truth
from face2scene.degradation import PRESETS
from face2scene.models.fadex import MoCo
from face2scene.ref_fr import AlignedRefFR
from face2scene.train.fadex_task import FaDeXTask
from face2scene.train.loop import Schedule, train
from face2scene.train.run import open_run, trained_with


@script("train_fadex", level=logging.INFO)
def main(cfg: DictConfig) -> None:
    """Data, model, task and loop from the configuration."""
    settings = cfg.train.fadex
    accelerator = Accelerator(
        cpu=best_device().type == "cpu",
        gradient_accumulation_steps=settings.accumulate,
        mixed_precision=settings.mixed_precision,
    )
    if not accelerator.is_main_process:
        logging.getLogger().setLevel(logging.WARNING)
    torch.manual_seed(cfg.seed)
    preflight.refuse(cfg, "fadex", accelerator.num_processes)
    run = open_run(cfg, main=accelerator.is_main_process)

    restorer = instantiate(cfg.ref_fr, _convert_="all")
    aligned = isinstance(restorer, AlignedRefFR)
    in_workers = not aligned or getattr(restorer, "missing", "compute") == "refuse"  # networks stay in this process

    def keep(images: Any) -> Stored:
        stored = Stored(images, cfg.paths.face_crops)
        ranks = {"rank": accelerator.process_index, "processes": accelerator.num_processes}
        stored.fill(workers=settings.workers if in_workers else 0, **ranks)
        accelerator.wait_for_everyone()
        return stored

    options = {
        "space": instantiate(cfg.degradation, _convert_="all"),
        "restore": RestoredBy(restorer, settings.gt_share),
        "keep": keep,
        **{name: settings[name] for name in ("operators", "images", "margin")},
    }
    # The probe's operators are not the bank's, so it has no faces of a Stage I that takes seconds: clean ones.
    held_out = options | ({"restore": ground_truth} if aligned else {})
    crops = {"crop": settings.crop, "buckets": settings.buckets, "augment": settings.augment}
    moco = MoCo(instantiate(cfg.fadex.encoder, _convert_="all"), **cfg.fadex.contrast)
    if settings.channels_last:
        moco = moco.to(memory_format=torch.channels_last)
    if settings.compile:
        for encoder in (moco.query, moco.key):
            encoder.body.compile()
    task = FaDeXTask(
        moco,
        FacePairBatches.from_manifest(
            preflight.training_set(cfg), "train", seed=cfg.seed, recipes=settings.recipes, **options, **crops
        ),
        FacePairBatches.from_manifest(
            cfg.data.root, "val", seed=cfg.seed + 1, **held_out, crop=settings.probe_crop or settings.crop
        ),
        accelerator,
        **{name: settings[name] for name in ("lr", "weight_decay", "ema", "head")},
        **{name: settings[name] for name in ("probe_on", "probe_operators", "probe_images")},
        presets=PRESETS,
        seed=cfg.seed,
        about={"run": cfg.name, "data": cfg.data.name, **trained_with(cfg)},
    )
    with run.timed("train"):
        train(task, accelerator, Schedule(**settings.schedule), run, seed=cfg.seed, workers=settings.workers)


if __name__ == "__main__":
    main()
