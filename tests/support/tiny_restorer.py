"""The restorer at a size for tests, on a folder's base model."""

from pathlib import Path

import torch

from face2scene.models.mapnet import MapNet
from face2scene.models.restorer import lora
from face2scene.models.restorer.base_model import load_base
from face2scene.models.restorer.one_step import OneStepRestorer

LAYERS = lora.VAE_ENCODER[:6]  # the tiny VAE has no attention


def tiny_mapnet() -> MapNet:
    return MapNet(in_channels=8, channels=16, heads=2, width=32)


def tiny_restorer(base: Path, *, dtype: str = "fp32", **options) -> OneStepRestorer:
    """From seed 0. Its LoRAs start as the identity; `randomise_loras` makes them change what the base computes."""
    torch.manual_seed(0)
    settings = {"vae_rank": 2, "unet_rank": 2, "vae_layers": LAYERS, "source": str(base)} | options
    mapnet = tiny_mapnet()
    return OneStepRestorer(load_base(base, dtype=dtype), mapnet, **settings)


def randomise_loras(restorer: OneStepRestorer, std: float = 0.02) -> OneStepRestorer:
    with torch.no_grad():
        for name, parameter in restorer.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=std)
    return restorer
