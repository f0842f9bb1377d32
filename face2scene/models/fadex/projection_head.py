"""Retraining the projection head of a trained encoder on frozen maps (ours; the map does not change).

After a short contrastive training of the whole encoder, embeddings spread over few directions: well-separated
degradations still have large cosines of either sign. On frozen maps a step costs a few small matrix products, so that
the head can be trained for a thousand steps on a hundred operators each, from larger crops.

Shapes: O operators, P images under each, C channels of the map, D width of the embedding.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from face2scene.models.fadex.encoder import FaDeX
from face2scene.models.fadex.moco import Contrast


@torch.no_grad()
def pooled(encoder: FaDeX, restored: Tensor, degraded: Tensor) -> Tensor:
    """The head's input: spatial means (B, C), float32, of the maps of pairs (B, 3, H, W) in [0, 1]."""
    return encoder(restored, degraded).mean((-2, -1)).float()


def retrain_projection_head(
    encoder: FaDeX,
    features: Tensor,
    *,
    steps: int,
    operators: int,
    temperature: float = 0.2,
    lr: float = 1e-3,
    weight_decay: float = 1e-3,
    seed: int = 0,
) -> FaDeX:
    """A copy of the encoder, in evaluation mode, with a head trained from scratch on these features.

    The loss is the encoder's, `Contrast.loss` with the factor 1/|P|, within the images of a step.

    Args:
        encoder: a trained one, on the device of `features`.
        features: (O, P, C) of `pooled`; every row is another operator on P different images.
        steps: of AdamW, with a cosine schedule of the learning rate.
        operators: rows per step.
        temperature: of the softmax. A low one weights nearest neighbours, a high one pulls all images of one operator
            together and keeps the mean cosine of different ones near zero.
        lr, weight_decay: of AdamW.
        seed: of the initialisation and of each step's rows.

    Raises:
        ValueError: too few operators or images, or settings outside their range.
    """
    rows, images = features.shape[:2]
    if images < 2 or operators < 2 or rows < operators:
        raise ValueError(
            f"The head is retrained on at least two operators and two images, got {rows} operators of {images} "
            f"images and steps of {operators}: raise train.fadex.head.batches or lower train.fadex.head.operators."
        )
    if steps < 1 or temperature <= 0:
        raise ValueError(f"train.fadex.head needs a step and a temperature above 0, not {steps} and {temperature}.")
    retrained = copy.deepcopy(encoder).eval()
    flat = features.flatten(0, 1)
    mean, scale = flat.mean(0), flat.std(0).clamp_min(1e-6)
    standard = (features - mean) / scale

    generator = torch.Generator().manual_seed(seed)
    head = retrained.head.train()
    _initialise(head, generator)
    with torch.enable_grad():
        weights = [p.requires_grad_() for p in head.parameters()]
        optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        labels = torch.arange(operators, device=features.device).repeat_interleave(images)
        same = labels[:, None] == labels[None, :]
        positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=features.device)
        for _ in range(steps):
            chosen = torch.randperm(rows, generator=generator)[:operators].to(features.device)
            vectors = F.normalize(head(standard[chosen].flatten(0, 1)), dim=1)
            contrast = Contrast(vectors @ vectors.T / temperature, positive, ~same, vectors, labels)
            optimizer.zero_grad()
            contrast.loss(mean_over_positives=True).backward()
            optimizer.step()
            schedule.step()

    with torch.no_grad():  # the standardisation moves into the first layer
        weight, bias = head.get_parameter("0.weight"), head.get_parameter("0.bias")
        weight.div_(scale)
        bias.sub_(weight @ mean)
    return retrained.requires_grad_(False).eval()


def _initialise(head: nn.Sequential, generator: torch.Generator) -> None:
    for layer in head:
        if isinstance(layer, nn.Linear):  # torch's default, from this generator
            for tensor in (layer.weight.data, layer.bias.data):
                bound = layer.in_features**-0.5
                tensor.copy_(torch.empty(tensor.shape).uniform_(-bound, bound, generator=generator))
        elif isinstance(layer, nn.BatchNorm1d):
            layer.reset_parameters()
