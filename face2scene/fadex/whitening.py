"""The last layer of a trained head, turned so that the embedding uses its width (ours; the map stays as it is).

A short contrastive training leaves an embedding that lives on a few directions: damages that it tells apart well still
have large cosines, of either sign. What differs between two pictures under one operator is noise to a cosine, what
differs between operators is not: the first is divided out (within-class covariance normalisation, Hatch et al. 2006),
and of what is left the strong directions are weakened. Both are linear, so the head's last layer takes them over.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from face2scene.fadex.encoder import FaDeX


def raw_embeddings(encoder: FaDeX, restored: Tensor, degraded: Tensor) -> Tensor:
    """(B, D) what `FaDeX.embed` makes a unit vector of, in evaluation mode's statistics."""
    return encoder.head(encoder(restored, degraded).mean((-2, -1)))


@torch.no_grad()
def whitened(
    encoder: FaDeX, first: Tensor, second: Tensor, *, power: float = 0.5, floor: float = 0.01, signal: float = 0.5
) -> FaDeX:
    """A copy of the encoder with another last layer.

    Args:
        encoder: a trained one.
        first, second: (N, D) raw embeddings; row n of both are two pictures under one operator, rows differ in it.
        signal: exponent of the share of a direction's variance that is the operators'; the direction is weighted by it,
            and at 0 none is.
        power: how far the directions are evened out, from 0 (not) to 1 (all alike).
        floor: added to every variance within an operator, relative to their mean, so that a direction in which hardly
            anything was seen is not blown up.

    Raises:
        ValueError: not two rows, or settings outside their range.
    """
    if not 0 <= power <= 1 or floor <= 0 or signal < 0:
        raise ValueError(
            "train.fadex.whiten has a power from 0 to 1, a floor above 0 and a signal from 0 on, not "
            f"{power}, {floor} and {signal}."
        )
    if first.shape != second.shape or len(first) < 2:
        raise ValueError(
            f"Whitening compares pairs of embeddings, got {tuple(first.shape)} and {tuple(second.shape)}: raise "
            "train.fadex.whiten.batches."
        )
    first, second = first.double().cpu(), second.double().cpu()
    everything = torch.cat([first, second])
    mean = everything.mean(0)
    within = (first - second).T @ (first - second) / (2 * len(first))
    within += floor * within.diagonal().mean() * torch.eye(len(mean), dtype=within.dtype)
    values, vectors = torch.linalg.eigh(within)
    turn = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    values, vectors = torch.linalg.eigh(turn @ torch.cov(everything.T) @ turn)
    values = values.clamp_min(1e-6)  # total over within: 1 where an operator says nothing
    weights = (values + 1) ** (-power / 2) * ((values - 1) / values).clamp_min(0) ** signal
    turn = torch.diag(weights) @ vectors.T @ turn  # (D, D)

    made = copy.deepcopy(encoder)
    last: nn.Linear = made.head[-1]
    last.bias.copy_((turn @ (last.bias.double().cpu() - mean)).to(last.bias))
    last.weight.copy_((turn @ last.weight.double().cpu()).to(last.weight))
    return made


@torch.no_grad()
def spread(embeddings: Tensor) -> float:
    """Over how many directions (N, D) embeddings spread: the participation ratio of their covariance, 1 to D."""
    values = torch.linalg.eigvalsh(torch.cov(F.normalize(embeddings.double().cpu(), dim=1).T)).clamp_min(0)
    return float(values.sum().square() / values.square().sum())
