"""Train the one-step restorer: `face2scene train-restorer experiment=quickstart`."""

import logging
import math

import torch
from accelerate import Accelerator
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from face2scene.cli import preflight
from face2scene.cli.command_line import script
from face2scene.common.memory import best_device
from face2scene.data.scene_batches import SceneBatches, held_out
from face2scene.models.fadex.encoder import FaDeX
from face2scene.models.loading import load_restorer
from face2scene.models.restorer.base_model import load_base
from face2scene.models.restorer.discriminator import Discriminator, load_features
from face2scene.models.restorer.one_step import OneStepRestorer
from face2scene.models.restorer.perceptual import Perceptual
from face2scene.models.s3diff.model import NoFaDeX, S3Diff
from face2scene.models.scene_estimator import SceneEstimator
from face2scene.train import fsdp
from face2scene.train.loop import train
from face2scene.train.restorer_task import RestorerTask
from face2scene.train.run import open_run, trained_with
from face2scene.train.schedule import Schedule, share_batch

log = logging.getLogger(__name__)


@script("train_restorer", level=logging.INFO)
def main(cfg: DictConfig) -> None:
    """Build the parts, then run the shared loop."""
    settings = cfg.train.restorer
    torch.manual_seed(cfg.seed)
    torch.backends.cuda.matmul.allow_tf32 = True  # for the float32 UNet, as cuDNN does by itself
    shard_from = fsdp.fsdp_min_params()
    accelerator = Accelerator(cpu=best_device().type == "cpu", mixed_precision=settings.mixed_precision)
    batches = OmegaConf.to_container(settings.batches, resolve=True)
    limits = {name: settings.get(name) for name in ("effective_batch", "accumulate")}
    batches["batch"], accelerator.gradient_accumulation_steps = share_batch(
        batches["batch"], accelerator.num_processes, **limits
    )
    preflight.refuse(cfg, "restorer", accelerator.num_processes)
    run = open_run(cfg, main=accelerator.is_main_process)
    counts = (batches["batch"], accelerator.gradient_accumulation_steps, accelerator.num_processes)
    log.info("%d images x %d accumulated x %d processes = %d images per step.", *counts, math.prod(counts))
    ref_fr = instantiate(cfg.ref_fr, _convert_="all")
    s3diff = "score_net" in cfg.restorer
    fadex = NoFaDeX() if s3diff else FaDeX.from_file(cfg.fadex_weights)
    adapters = OmegaConf.to_container(cfg.restorer.adapters, resolve=True)
    if cfg.init_from:
        start = {name: cfg.restorer.base.get(name) for name in ("source", "dtype", "unet_dtype")}
        restorer = load_restorer(cfg.init_from, expected=adapters, **start).unfreeze()
    else:
        kind, part = (S3Diff, cfg.restorer.score_net) if s3diff else (OneStepRestorer, cfg.mapnet)
        conditioning = instantiate(part, _convert_="all")
        # the base is not kept here: its text encoder is needed for the prompts alone
        restorer = kind(load_base(**cfg.restorer.base), conditioning, source=cfg.restorer.base.source, **adapters)
    stride = 2 ** (len(restorer.vae.config.block_out_channels) - 1)
    if settings.batches.crop < stride or settings.batches.crop % stride:
        raise ValueError(f"train.restorer.batches.crop is {settings.batches.crop}: it must be a multiple of {stride}.")
    run.check_base(restorer.base_origin)
    if settings.gradient_checkpointing:
        restorer.checkpoint_gradients()
    discriminator = OmegaConf.to_container(settings.discriminator, resolve=True) if settings.discriminator else None
    if settings.estimator and s3diff:
        raise ValueError("S3Diff has no degradation tokens to estimate: set train.restorer.estimator=null.")
    estimator = SceneEstimator(**settings.estimator, width=cfg.mapnet.width) if settings.estimator else None
    if s3diff and restorer.score_reduction == cfg.degradation.get("scale"):
        batches["small"] = restorer.score_reduction
    space = instantiate(cfg.degradation, _convert_="all")
    data = SceneBatches(preflight.training_set(cfg), space, ref_fr, seed=cfg.seed, **batches)
    task = RestorerTask(
        restorer,
        fadex,
        Perceptual(cfg.restorer.perceptual),
        data,
        held_out(cfg.data.root, ref_fr, count=settings.validation_images, seed=cfg.seed),
        discriminator=Discriminator(load_features(discriminator.pop("features")), **discriminator)
        if discriminator
        else None,
        **settings.loss,
        **{name: settings[name] for name in ("lr", "tokens_lr", "weight_decay")},
        **{name: settings[name] for name in ("order", "posterior", "ema")},
        estimator=estimator,
        estimator_lr=settings.estimator_lr,
        device=accelerator.device,
        about={"run": cfg.name, "data": cfg.data.name, "ref_fr": ref_fr.name, **trained_with(cfg)},
    )
    with run.timed("train"):
        schedule = Schedule(**settings.schedule)
        train(task, accelerator, schedule, run, seed=cfg.seed, workers=settings.workers, shard_from=shard_from)


if __name__ == "__main__":
    main()
