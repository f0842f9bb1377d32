"""The cosine experiment: does the embedding know the damage and not the face? (supplement 2.4)"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from face2scene.fadex.encoder import FaDeX


@torch.no_grad()
def probe(encoder: FaDeX, restored: Tensor, degraded: Tensor, labels: Sequence[str]) -> dict[str, Any]:
    """Embed O operators x P pictures and compare.

    Args:
        restored, degraded: (O, P, 3, H, W) in [0, 1]; [o, p] is picture p under operator o.
        labels: O names.

    Returns:
        what `compare` returns.
    """
    training = encoder.training
    encoder.eval()
    try:
        rows = [encoder.embed(encoder(r, d)) for r, d in zip(restored, degraded, strict=True)]
    finally:
        encoder.train(training)
    return compare(torch.stack(rows), labels)


def compare(embeddings: Tensor, labels: Sequence[str]) -> dict[str, Any]:
    """Cosines between operators and between pictures.

    Args:
        embeddings: (O, P, D) unit vectors, two operators and two pictures at least.
        labels: O names.

    Returns:
        matrix: O x O; on the diagonal the mean cosine of different pictures under one operator, elsewhere of
            the same picture under two operators (the supplement's two cases).
        same, same_spread: by label, mean and standard deviation of the diagonal case.
        cross, cross_spread: by `a-b`, likewise of the other.
        same_mean, different_mean: means over operators and over pairs of operators.
        retrieval_top1: how often the nearest embedding of another picture has the same operator.
        labels, pictures.

    Raises:
        ValueError: fewer than two operators or pictures.
    """
    operators, pictures = embeddings.shape[:2]
    if operators < 2 or pictures < 2 or len(labels) != operators:
        raise ValueError(
            f"The probe compares at least two operators and two pictures, got {operators} and {pictures} "
            f"with labels {list(labels)}: see train.fadex.probe_operators and train.fadex.probe_pictures."
        )
    embeddings = embeddings.detach().double().cpu()
    cosines = torch.einsum("apd,bqd->abpq", embeddings, embeddings)  # (O, O, P, P)
    other_picture = ~torch.eye(pictures, dtype=torch.bool)
    same_values = [cosines[o, o][other_picture] for o in range(operators)]
    pairs = list(combinations(range(operators), 2))
    cross_values = [cosines[a, b].diagonal() for a, b in pairs]

    matrix = torch.zeros(operators, operators)
    for o, values in enumerate(same_values):
        matrix[o, o] = values.mean()
    for (a, b), values in zip(pairs, cross_values, strict=True):
        matrix[a, b] = matrix[b, a] = values.mean()

    # For each (operator, picture): the best among all operators on all other pictures.
    ranked = cosines.masked_fill(~other_picture, -2).permute(0, 2, 1, 3).flatten(2).argmax(2) // pictures
    hits = ranked == torch.arange(operators)[:, None]
    crosses = [f"{labels[a]}-{labels[b]}" for a, b in pairs]
    return {
        "labels": list(labels),
        "matrix": [[round(float(v), 6) for v in row] for row in matrix],
        "same": _by(labels, same_values, torch.mean),
        "same_spread": _by(labels, same_values, torch.std),
        "cross": _by(crosses, cross_values, torch.mean),
        "cross_spread": _by(crosses, cross_values, torch.std),
        "same_mean": float(torch.stack([v.mean() for v in same_values]).mean()),
        "different_mean": float(torch.stack([v.mean() for v in cross_values]).mean()),
        "retrieval_top1": float(hits.double().mean()),
        "pictures": pictures,
    }


def _by(names: Sequence[str], values: Sequence[Tensor], reduce: Any) -> dict[str, float]:
    return {name: float(reduce(v)) for name, v in zip(names, values, strict=True)}
