"""Pretrain the tiny base as a restorer; the same command goes on from the newest state."""

import logging

import torch
from accelerate import Accelerator
from hydra.utils import instantiate
from omegaconf import DictConfig

from face2scene.assets import catalogue
from face2scene.cli.command_line import script
from face2scene.common.memory import best_device
from face2scene.image_io.arrays import list_images
from face2scene.models.fadex.encoder import FaDeX
from face2scene.models.restorer.base_model import load_base
from face2scene.models.restorer.perceptual import Perceptual
from face2scene.train import tiny_base
from face2scene.train.loop import Schedule, train
from face2scene.train.run import open_run


@script("train_tiny_base", level=logging.INFO)
def main(cfg: DictConfig) -> None:
    torch.manual_seed(cfg.seed)
    accelerator = Accelerator(cpu=best_device().type == "cpu", mixed_precision=cfg.mixed_precision)
    run = open_run(cfg, main=accelerator.is_main_process)

    def pairs(held_out: bool, batch: int, seed: int) -> tiny_base.Pairs:
        kinds = []
        for kind in cfg.images.values():
            folders = [kind.folder] if "folder" in kind else [catalogue.folder(name) for name in kind.assets]
            files = [file for folder in folders for file in list_images(folder)]
            part = slice(-kind.held_out, None) if held_out else slice(-kind.held_out)
            kinds.append((files[part], kind.share))
        return tiny_base.Pairs(
            kinds,
            crop=cfg.crop,
            batch=batch,
            space=instantiate(cfg.degradation, _convert_="all"),
            seed=seed,
            pairs=bool(cfg.fadex_weights),
        )

    base = load_base(cfg.init_from or cfg.text)
    if cfg.init_from is None:
        base = tiny_base.untrained(base, **cfg.shape)
    task = tiny_base.RestoringTask(
        base,
        instantiate(cfg.mapnet),
        FaDeX.from_file(cfg.fadex_weights).to(accelerator.device) if cfg.fadex_weights else None,
        Perceptual("alex").to(accelerator.device),
        pairs(False, cfg.batch, cfg.seed),
        pairs(True, cfg.validation_crops, cfg.seed + 1),
        source=str(run.folder / "weights/base"),
        **cfg.loss,
    )
    if cfg.channels_last:
        task.restorer.vae.to(memory_format=torch.channels_last)
        task.restorer.unet.to(memory_format=torch.channels_last)
    with run.timed("restoring"):
        train(task, accelerator, Schedule(**cfg.schedule), run, seed=cfg.seed, workers=cfg.workers)


if __name__ == "__main__":
    main()
