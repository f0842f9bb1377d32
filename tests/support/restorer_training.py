"""The restorer's training at a size for tests: networks, seeded batches and the task."""

from pathlib import Path

import torch
from torch import Tensor, nn

from face2scene.common.types import FacePair
from face2scene.data.scene_batches import ValidationPair
from face2scene.models.mapnet import MapNet
from face2scene.models.restorer import lora
from face2scene.models.restorer.base_model import load_base
from face2scene.models.restorer.discriminator import Discriminator, load_features
from face2scene.models.restorer.one_step import OneStepRestorer
from face2scene.train.restorer_task import RestorerTask

TINY_VIT = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "intermediate_size": 8,
    "image_size": 16,
    "patch_size": 4,
}


class SeededSceneBatches:
    """Batch `index` is a function of `index` alone; the first image of two is a negative."""

    def __getitem__(self, index):
        rng = torch.Generator().manual_seed(index)
        image, gt = torch.rand(2, 2, 3, 16, 16, generator=rng)
        negative = torch.tensor([True, False])
        return {
            "image": image,
            "gt": gt,
            "target": torch.where(negative.view(2, 1, 1, 1), image, gt),
            "restored": torch.rand(2, 3, 16, 16, generator=rng),
            "degraded": torch.rand(2, 3, 16, 16, generator=rng),
            "negative": negative,
            "drop": torch.tensor([False, index % 2 == 0]),
            "seed": torch.tensor([index, index + 1000]),
        }


class StubEncoder(nn.Module):
    """In FaDeX's place."""

    def forward(self, restored, degraded):
        return torch.cat([restored, degraded, restored - degraded], 1)[:, :8, ::2, ::2]


class StubPerceptualLoss(nn.Module):
    """In LPIPS' place."""

    def forward(self, output, target):
        return (output - target).abs().mean()


def tiny_restorer(base: Path, **options) -> OneStepRestorer:
    """New LoRAs on the base model of a folder; a training moves them, for they start as the identity."""
    mapnet = MapNet(in_channels=8, channels=16, heads=2, width=32)
    settings = {"vae_rank": 2, "unet_rank": 2, "vae_layers": lora.VAE_ENCODER[:6]} | options
    return OneStepRestorer(load_base(base), mapnet, **settings)


def randomise_loras(restorer: OneStepRestorer) -> OneStepRestorer:
    """As after a training: the LoRAs change what the base model computes."""
    with torch.no_grad():
        for name, parameter in restorer.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return restorer


def tiny_discriminator(**options) -> Discriminator:
    return Discriminator(load_features(TINY_VIT), levels=(1, 2), width=4, **options)


def restorer_task(restorer: OneStepRestorer, data: object, held: list[ValidationPair], **options) -> RestorerTask:
    settings = {"lr": 1e-3, "device": torch.device("cpu"), "about": {}} | options
    return RestorerTask(restorer, StubEncoder(), StubPerceptualLoss(), data, held, **settings)


def tiny_restorer_task(base: Path, *, with_discriminator=True, checkpointing=False, **options) -> RestorerTask:
    """A training on `SeededSceneBatches` with one random image to validate on, from seed 0."""
    torch.manual_seed(0)
    restorer = tiny_restorer(base)
    if checkpointing:
        restorer.checkpoint_gradients()
    discriminator = tiny_discriminator() if with_discriminator else None
    image: Tensor = torch.rand(3, 16, 16)
    held = [ValidationPair(None, image, image, FacePair(restored=image, degraded=image, box=(0, 0, 16, 16)))]
    return restorer_task(restorer, SeededSceneBatches(), held, discriminator=discriminator, **options)
