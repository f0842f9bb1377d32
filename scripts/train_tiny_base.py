"""Pretrain the tiny base: first the VAE, then the one-step denoiser with its text encoder."""

import logging
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from hydra.utils import instantiate
from omegaconf import DictConfig
from transformers import AutoTokenizer

from face2scene.command_line import script
from face2scene.images import list_images
from face2scene.restorer.losses import Perceptual
from face2scene.runs import open_run
from face2scene.train import tiny_base
from face2scene.train.loop import Schedule, train


@script("train_tiny_base", level=logging.INFO)
def main(cfg: DictConfig) -> None:
    torch.manual_seed(cfg.seed)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    run = open_run(cfg, main=accelerator.is_main_process)
    pictures, space = list_images(cfg.pictures), instantiate(cfg.degradation)
    held_out, pictures = pictures[: cfg.held_out], pictures[cfg.held_out :]

    def crops(part: DictConfig) -> tuple[tiny_base.Crops, tiny_base.Crops]:
        settings = {"crop": part.crop, "space": space, "damaged": part.damaged}
        training = tiny_base.Crops(pictures, batch=part.batch, seed=cfg.seed, **settings)
        return training, tiny_base.Crops(held_out, batch=cfg.held_out, seed=cfg.seed + 1, **settings)

    base = run.folder / "base"
    if not (base / "vae" / "config.json").exists():
        vae = tiny_base.tiny_vae(channels=cfg.vae.channels, latent_channels=cfg.latent_channels)
        perceptual = Perceptual("alex").to(accelerator.device)
        task = tiny_base.VaeTask(vae, perceptual, *crops(cfg.vae), lr=cfg.vae.lr)
        with run.timed("vae"):
            train(
                task,
                accelerator,
                Schedule(**cfg.vae.schedule),
                run.part("vae"),
                seed=cfg.seed,
                workers=cfg.workers,
            )
        accelerator.free_memory()
    if not (base / "unet" / "config.json").exists():
        accelerator = Accelerator(cpu=not torch.cuda.is_available())  # its list of prepared models starts empty
        vae = AutoencoderKL.from_pretrained(base / "vae").to(accelerator.device)
        unet = tiny_base.tiny_unet(
            channels=cfg.denoiser.channels,
            latent_channels=cfg.latent_channels,
            text_width=cfg.denoiser.text_width,
            heads=cfg.denoiser.heads,
        )
        text_encoder = tiny_base.tiny_text_encoder(text_width=cfg.denoiser.text_width)
        tokenizer = AutoTokenizer.from_pretrained(Path(cfg.tokenizer))
        task = tiny_base.DenoiserTask(
            vae,
            unet,
            text_encoder,
            tokenizer,
            *crops(cfg.denoiser),
            prompts=tuple(cfg.prompts),
            lr=cfg.denoiser.lr,
        )
        with run.timed("denoiser"):
            train(
                task,
                accelerator,
                Schedule(**cfg.denoiser.schedule),
                run.part("denoiser"),
                seed=cfg.seed,
                workers=cfg.workers,
            )


if __name__ == "__main__":
    main()
