"""Identities of an unlabelled collection: faces clustered by identity vectors, and a page to review the clusters."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from face2scene.common.pages import write_page

_SHOWN = 24  # images of a person on the page


@dataclass(frozen=True)
class Grouping:
    """Agglomerative clustering, average linkage, on the cosine of identity vectors; corrections by image name."""

    threshold: float  # mean cosine from which two clusters are one person
    max_faces: int = 20_000  # all faces are compared with all: 4 bytes times the square of their number
    together: Sequence[Sequence[str]] = ()  # each list shows one person
    apart: Sequence[Sequence[str]] = ()  # each list is a person of its own
    out: Sequence[str] = ()  # left out

    def groups(self, vectors: np.ndarray, names: Sequence[str]) -> list[int | None]:
        """The group of every face, numbered from 0 by first appearance; None for those in `out`.

        Args:
            vectors: (N, D), unit length.
            names: of the N images, as in the corrections.

        Raises:
            ValueError: more than `max_faces`, or a correction names an unknown image.
        """
        if len(vectors) > self.max_faces:
            raise ValueError(
                f"{len(vectors)} faces are to be grouped and data.grouping.max_faces is {self.max_faces}: raise it if "
                f"{len(vectors) ** 2 * 4 / 2**30:.0f} GiB are free, or build the collection in parts."
            )
        place = {name: number for number, name in enumerate(names)}
        listed = [*self.out, *(name for group in (*self.together, *self.apart) for name in group)]
        if unknown := sorted(set(listed) - place.keys()):
            raise ValueError(f"data.grouping corrects images that are not in the collection: {unknown[:5]}.")
        labels = [1] * len(vectors)
        if len(vectors) > 1:
            distances = 1 - (vectors @ vectors.T).clip(-1, 1)  # rounding would make some negative
            tree = linkage(squareform(distances, checks=False), "average")
            labels = fcluster(tree, 1 - self.threshold, "distance").tolist()
        for group in self.together:
            joined = {labels[place[name]] for name in group}
            labels = [min(joined) if label in joined else label for label in labels]
        for number, group in enumerate(self.apart, start=1):
            for name in group:
                labels[place[name]] = -number
        order: dict[int, int] = {}
        out = set(self.out)
        return [
            None if name in out else order.setdefault(label, len(order))
            for label, name in zip(labels, names, strict=True)
        ]


def write_review(
    path: Path, groups: Iterable[tuple[str, list[tuple[str, str, np.ndarray | None]]]], grouping: Grouping
) -> None:
    """Write a page with every person's images, their similarity to the mean, and others who may be the same person.

    Args:
        groups: identity, and (name, path relative to the page, identity vector) of its images.
    """
    people, centres, names = [], [], []
    for identity, members in groups:
        vectors = np.array([v for _, _, v in members if v is not None])
        if len(vectors):
            centre = vectors.mean(0)
            centres.append(centre / np.linalg.norm(centre))
            names.append(identity)
        images = [
            (name, image, float(vector @ centres[-1]) if vector is not None and len(vectors) > 1 else 1.0)
            for name, image, vector in members[:_SHOWN]
        ]
        people.append({"identity": identity, "count": len(members), "images": images})
    # Ours: two groups this far under the threshold may be one person. Some networks put all faces close together.
    lowest = grouping.threshold - min(0.1, (1 - grouping.threshold) / 2)
    maybe = _near_pairs(np.array(centres), names, lowest) if len(names) > 1 else {}
    values = {"people": people, "maybe": maybe, "threshold": grouping.threshold}
    write_page(path, "identities.html.j2", style="collection.css", title="Who is who", **values)


def _near_pairs(centres: np.ndarray, names: Sequence[str], threshold: float) -> dict[str, list[tuple[str, float]]]:
    found: dict[str, list[tuple[str, float]]] = {}
    for first in range(0, len(centres), 1000):
        near = centres[first : first + 1000] @ centres.T
        for i, j in zip(*np.nonzero(near >= threshold), strict=True):
            if i + first != j:
                found.setdefault(names[i + first], []).append((names[j], float(near[i, j])))
    return {name: sorted(others, key=lambda pair: -pair[1])[:5] for name, others in found.items()}
