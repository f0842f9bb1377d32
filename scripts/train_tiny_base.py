"""Pretrain the tiny base as a blind restorer; the same command goes on from the newest state."""

import logging

import hydra
import torch
from accelerate import Accelerator
from hydra.utils import instantiate
from omegaconf import DictConfig

from face2scene import weights
from face2scene.images import list_images
from face2scene.restorer.backbone import load_base
from face2scene.restorer.losses import Perceptual
from face2scene.runs import open_run
from face2scene.train import tiny_base
from face2scene.train.loop import Schedule, train


@hydra.main(version_base="1.3", config_path="../configs", config_name="train_tiny_base")
def main(cfg: DictConfig) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(cfg.seed)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=cfg.mixed_precision)
    run = open_run(cfg, main=accelerator.is_main_process)

    def pairs(held_out: bool, batch: int, seed: int) -> tiny_base.Pairs:
        kinds = []
        for kind in cfg.pictures.values():
            folders = [kind.folder] if "folder" in kind else [weights.folder(name) for name in kind.assets]
            files = [file for folder in folders for file in list_images(folder)]
            part = slice(-kind.held_out, None) if held_out else slice(-kind.held_out)
            kinds.append(tiny_base.Pictures(files[part], kind.share))
        space = instantiate(cfg.degradation, _convert_="all")
        return tiny_base.Pairs(kinds, crop=cfg.crop, batch=batch, space=space, seed=seed)

    base = tiny_base.untrained(load_base(cfg.text), **cfg.shape)
    task = tiny_base.RestoringTask(
        base,
        instantiate(cfg.mapnet),
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
