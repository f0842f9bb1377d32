"""The head of a trained encoder, trained once more on frozen maps (ours; the map stays as it is).

A short contrastive training of the whole encoder leaves an embedding that lives on a few directions: degradations that
it tells apart well still have large cosines, of either sign. On frozen maps a step costs a few small matrix products,
so that the head can be shown a hundred operators at once, from larger crops, a thousand times over.

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
    """(B, C) float32 averages over the maps of pairs (B, 3, H, W) in [0, 1], which is what the head sees."""
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
    """A copy of the encoder, in evaluation mode, whose head started anew on these features.

    The loss is the encoder's own, `Contrast.loss` with the factor 1/|P|, among the images of a step.

    Args:
        encoder: a trained one, in the mode and on the device that `features` were made with.
        features: (O, P, C) of `pooled`, every row another operator on P different images.
        steps: of AdamW, whose learning rate falls along a cosine.
        operators: rows of a step.
        temperature: of the softmax. A low one looks for the nearest others, a high one draws images of one operator
            together and holds the mean cosine of different ones near zero.
        lr, weight_decay: of AdamW.
        seed: of the start and of the rows of each step.

    Raises:
        ValueError: too few operators or images, or settings outside their range.
    """
    rows, images = features.shape[:2]
    if images < 2 or operators < 2 or rows < operators:
        raise ValueError(
            f"The head is refitted on two operators and two images at least, got {rows} operators of {images} "
            f"images and steps of {operators}: raise train.fadex.head.batches or lower train.fadex.head.operators."
        )
    if steps < 1 or temperature <= 0:
        raise ValueError(f"train.fadex.head needs a step and a temperature above 0, not {steps} and {temperature}.")
    made = copy.deepcopy(encoder).eval()
    flat = features.flatten(0, 1)
    mean, scale = flat.mean(0), flat.std(0).clamp_min(1e-6)
    standard = (features - mean) / scale

    generator = torch.Generator().manual_seed(seed)
    head = made.head.train()
    with torch.enable_grad():
        _start_anew(head, generator)
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

    with torch.no_grad():  # the first layer takes over what made the features standard
        first: nn.Linear = head[0]
        first.weight.div_(scale)
        first.bias.sub_(first.weight @ mean)
    made.requires_grad_(False)
    return made.eval()


def spread(embeddings: Tensor) -> float:
    """Over how many directions (N, D) embeddings spread: the participation ratio of their covariance, 1 to D."""
    values = torch.linalg.eigvalsh(torch.cov(F.normalize(embeddings.double().cpu(), dim=1).T)).clamp_min(0)
    return float(values.sum().square() / values.square().sum())


@torch.no_grad()
def _start_anew(head: nn.Sequential, generator: torch.Generator) -> None:
    # As torch starts a linear layer, but from this generator; norms as they are when new.
    for layer in head:
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            for tensor in (layer.weight, layer.bias):
                tensor.copy_((torch.rand(tensor.shape, generator=generator) * 2 - 1) * bound)
        elif isinstance(layer, nn.BatchNorm1d):
            layer.reset_parameters()
