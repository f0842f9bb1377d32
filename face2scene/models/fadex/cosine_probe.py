"""The cosine experiment: does the embedding depend on the degradation and not on the face? (supplement 2.4)"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from face2scene.models.fadex.encoder import FaDeX


@torch.no_grad()
def embed_all(encoder: FaDeX, restored: Tensor, degraded: Tensor) -> Tensor:
    """(O, P, D) embeddings of (O, P, 3, H, W) pairs in [0, 1], where [o, p] is image p under operator o.

    In evaluation mode; restores the encoder's mode.
    """
    training = encoder.training
    encoder.eval()
    try:
        return torch.stack([encoder.embed(encoder(r, d)) for r, d in zip(restored, degraded, strict=True)])
    finally:
        encoder.train(training)


def compare(embeddings: Tensor, labels: Sequence[str]) -> dict[str, Any]:
    """Cosines between operators and between images.

    Args:
        embeddings: (O, P, D) unit vectors, at least two operators and two images.
        labels: O names.

    Returns:
        matrix: O x O; on the diagonal the mean cosine of different images under one operator, elsewhere of
            the same image under two operators (the supplement's two cases).
        same, same_spread: by label, mean and standard deviation of the diagonal case.
        cross, cross_spread: by `a-b`, likewise of the other.
        same_mean, different_mean: means over operators and over pairs of operators.
        retrieval_top1: how often the nearest embedding of another image has the same operator.
        labels, and the number of images as `pictures`.

    Raises:
        ValueError: fewer than two operators or images.
    """
    operators, images = embeddings.shape[:2]
    if operators < 2 or images < 2 or len(labels) != operators:
        raise ValueError(
            f"The probe compares at least two operators and two images, got {operators} and {images} "
            f"with labels {list(labels)}: see train.fadex.probe_operators and train.fadex.probe_images."
        )
    embeddings = embeddings.detach().cpu().double()
    cosines = torch.einsum("apd,bqd->abpq", embeddings, embeddings)  # (O, O, P, P)
    other_image = ~torch.eye(images, dtype=torch.bool)
    same_values = [cosines[o, o][other_image] for o in range(operators)]
    pairs = list(combinations(range(operators), 2))
    cross_values = [cosines[a, b].diagonal() for a, b in pairs]

    matrix = torch.zeros(operators, operators)
    for o, values in enumerate(same_values):
        matrix[o, o] = values.mean()
    for (a, b), values in zip(pairs, cross_values, strict=True):
        matrix[a, b] = matrix[b, a] = values.mean()

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
        "retrieval_top1": retrieval(embeddings)["retrieval_top1"],
        "pictures": images,
    }


def retrieval(embeddings: Tensor) -> dict[str, float]:
    """Retrieval of images degraded by the same operator, among all operators and all other images.

    Args:
        embeddings: (O, P, D) unit vectors, at least two operators and two images.

    Returns:
        retrieval_top1: how often the nearest of the O (P - 1) embeddings of other images has the same operator.
        map: mean average precision of the same ranking, in which P - 1 are correct.
        one_picture_top1: as the first, among the O embeddings of one other image; mean over pairs of images.
        chance: of the first and the last, 1 / O.
    """
    operators, images = embeddings.shape[:2]
    flat = embeddings.detach().cpu().double().flatten(0, 1)  # (O P, D)
    operator = torch.arange(operators).repeat_interleave(images)
    image = torch.arange(images).repeat(operators)
    cosines = flat @ flat.T
    other = image[:, None] != image[None, :]
    order = cosines.masked_fill(~other, -2).argsort(1, descending=True)[:, : operators * (images - 1)]
    correct = operator[order] == operator[:, None]  # (O P, O (P - 1))
    precision_at = correct.cumsum(1) / torch.arange(1, correct.shape[1] + 1)
    precision = (precision_at * correct).sum(1) / correct.sum(1)
    nearest = cosines.view(operators * images, operators, images).argmax(1)  # (O P, P): operator, by image
    hits = (nearest == operator[:, None])[image[:, None] != torch.arange(images)]
    return {
        "retrieval_top1": float(correct[:, 0].double().mean()),
        "map": float(precision.mean()),
        "one_picture_top1": float(hits.double().mean()),
        "chance": 1 / operators,
    }


def nuisance_retrieval(embeddings: Tensor, identities: Sequence[str]) -> dict[str, float | None]:
    """Retrieval of the nuisance factors, image and identity, each with its chance level.

    Args:
        embeddings: (O, P, D) unit vectors, at least two operators and two images.
        identities: of the P images.

    Returns:
        picture: how often the nearest embedding of another operator is of the same image; its chance is 1 / P.
        picture_centred: the same after subtracting each operator's mean.
        identity: how often the nearest embedding of another image under the same operator has the same identity, over
            the images whose identity has several; None where none has. Chance is identity_chance.
    """
    images = embeddings.shape[1]
    vectors = embeddings.detach().cpu().double()
    itself = torch.eye(images, dtype=torch.bool)
    same_person = torch.tensor([[a == b for b in identities] for a in identities]) & ~itself
    partnered = same_person.any(1)
    within = torch.einsum("opd,oqd->opq", vectors, vectors).masked_fill(itself, -2)
    hits = same_person[torch.arange(images), within.argmax(2)][:, partnered]  # (O, partnered)
    share = same_person[partnered].double().sum(1) / (images - 1)
    centred = torch.nn.functional.normalize(vectors - vectors.mean(1, keepdim=True), dim=2)
    return {
        "picture": _same_image(vectors),
        "picture_centred": _same_image(centred),
        "picture_chance": 1 / images,
        "identity": float(hits.double().mean()) if bool(partnered.any()) else None,
        "identity_chance": float(share.mean()) if bool(partnered.any()) else None,
    }


def _same_image(vectors: Tensor) -> float:
    operators, images = vectors.shape[:2]
    cosines = torch.einsum("apd,bqd->apbq", vectors, vectors)
    own = torch.eye(operators, dtype=torch.bool)[:, None, :, None]
    nearest = cosines.masked_fill(own, -2).flatten(2).argmax(2) % images  # (O, P)
    return float((nearest == torch.arange(images)).double().mean())


def _by(names: Sequence[str], values: Sequence[Tensor], reduce: Any) -> dict[str, float]:
    return {name: float(reduce(v)) for name, v in zip(names, values, strict=True)}
