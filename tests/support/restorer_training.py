"""The restorer's training at a size for tests: networks, seeded batches and the task."""

from pathlib import Path

import torch
from tiny_restorer import tiny_restorer
from torch import Tensor, nn

from face2scene.common.types import FacePair
from face2scene.data.scene_batches import ValidationPair
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
    """Batch `index` is a function of `index` alone; the first image of two is a negative, and faces differ in size."""

    def __getitem__(self, index):
        rng = torch.Generator().manual_seed(index)
        image, gt = torch.rand(2, 2, 3, 16, 16, generator=rng)
        negative = torch.tensor([True, False])
        return {
            "image": image,
            "gt": gt,
            "target": torch.where(negative.view(2, 1, 1, 1), image, gt),
            "restored": [torch.rand(3, side, side, generator=rng) for side in (16, 19 + index)],
            "degraded": [torch.rand(3, side, side, generator=rng) for side in (16, 19 + index)],
            "negative": negative,
            "drop": torch.tensor([False, index % 2 == 0]),
            "seed": [index, index + 1000],
        }


class StubEncoder(nn.Module):
    """In FaDeX's place."""

    def forward(self, restored, degraded):
        return torch.cat([restored, degraded, restored - degraded], 1)[:, :8, ::2, ::2]


class StubPerceptualLoss(nn.Module):
    """In LPIPS' place."""

    def forward(self, output, target):
        return self.each(output, target).mean()

    def each(self, output, target):
        return (output - target).abs().mean((1, 2, 3))


def tiny_discriminator(**options) -> Discriminator:
    return Discriminator(load_features(TINY_VIT), levels=(1, 2), width=4, **options)


def restorer_task(restorer: OneStepRestorer, data: object, held: list[ValidationPair], **options) -> RestorerTask:
    settings = {"lr": 1e-3, "order": "one_forward", "device": torch.device("cpu"), "about": {}} | options
    return RestorerTask(restorer, StubEncoder(), StubPerceptualLoss(), data, held, **settings)


def tiny_restorer_task(base: Path, *, with_discriminator=True, checkpointing=False, **options) -> RestorerTask:
    """A training on `SeededSceneBatches` with one random image to validate on, from seed 0."""
    restorer = tiny_restorer(base)
    if checkpointing:
        restorer.checkpoint_gradients()
    discriminator = tiny_discriminator() if with_discriminator else None
    image: Tensor = torch.rand(3, 16, 16)
    held = [ValidationPair(None, image, image, FacePair(restored=image, degraded=image, box=(0, 0, 16, 16)))]
    return restorer_task(restorer, SeededSceneBatches(), held, discriminator=discriminator, **options)
