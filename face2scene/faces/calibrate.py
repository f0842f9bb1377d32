"""Calibration of the threshold of one person: cosines of same and different pairs on photos of known people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from face2scene.assets import catalogue
from face2scene.faces.detect import Detector
from face2scene.faces.identity import cosine
from face2scene.faces.matching import known_faces
from face2scene.image_io.arrays import list_images, read_image


@dataclass(frozen=True, eq=False)
class Pairs:
    """Cosines of all pairs of faces."""

    same: np.ndarray  # (N,), pairs of one person
    different: np.ndarray  # (M,), pairs of two people
    skipped: tuple[str, ...] = ()  # photos that could not be used, a sentence each

    def equal_error(self) -> tuple[float, float]:
        """The threshold at which as many same pairs fail as different ones pass (or amid the gap), and that share."""
        low, high = self.different.max(), self.same.min()
        if low < high:
            return float(low + high) / 2, 0.0
        levels = np.unique(np.concatenate([self.same, self.different]))
        missed, mistaken = zip(*(self.errors(level) for level in levels), strict=True)
        best = int(np.argmin(np.abs(np.subtract(missed, mistaken))))
        return float(levels[best]), (missed[best] + mistaken[best]) / 2

    def errors(self, threshold: float) -> tuple[float, float]:
        """Share of same pairs below the threshold, and of different pairs at or above it."""
        return float((self.same < threshold).mean()), float((self.different >= threshold).mean())


def pairs(people: Mapping[str, Sequence[Path]], others: Sequence[Path], detector: Detector) -> Pairs:
    """Cosines of the faces of known people with each other and with strangers.

    Args:
        people: name to photos of that person alone.
        others: photos of strangers, compared with `people` only, as two of them may be one person.

    Raises:
        ValueError: when `detector` computes no identities, or there is no same or no different pair.
    """
    if not detector.identities or detector.backend is None:
        raise ValueError("Reference photos need identities: choose a faces backend and set faces.identities=true.")
    known = known_faces(people, detector, {})
    strangers = [face for path in others for face in detector.find(read_image(path)) if face.identity is not None]
    named = [(name, face) for name in known.photos for face in known.faces(name)]
    same, different = [], []
    for (name, face), (other, other_face) in combinations(named, 2):
        (same if name == other else different).append(cosine(face, other_face))
    different += [cosine(face, stranger) for _, face in named for stranger in strangers]
    if not same or not different:
        sentence = "A threshold needs two photos of one person and photos of two people; give more photos."
        raise ValueError(" ".join([sentence, *known.warnings]))
    return Pairs(np.array(same), np.array(different), tuple(known.warnings))


def photos(places: Sequence[str]) -> list[Path]:
    """The files of `ASSET/PATH`: an image or a folder of images of a photo set of the catalogue."""
    found: list[Path] = []
    for place in places:
        asset, _, inside = place.partition("/")
        path = catalogue.folder(asset) / inside
        found += [path] if path.is_file() else list_images(path)
    return found


def table(backend: str, model: str, threshold: float, found: Pairs) -> str:
    """Markdown, one row: backend, identity model, and how the pairs lie about the threshold in use."""
    level, share = found.equal_error()
    missed, mistaken = found.errors(threshold)
    return (
        "| backend | identity | same: pairs, min / median / max | different: pairs, min / median / max | equal error "
        "| threshold: same missed, different passed |\n| --- | --- | --- | --- | --- | --- |\n"
        f"| {backend} | {model} | {_spread(found.same)} | {_spread(found.different)} | {share:.1%} at {level:.3f} "
        f"| {threshold:g}: {missed:.1%}, {mistaken:.1%} |"
    )


def _spread(values: np.ndarray) -> str:
    return f"{len(values)}, {values.min():.3f} / {np.median(values):.3f} / {values.max():.3f}"
