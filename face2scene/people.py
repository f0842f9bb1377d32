"""Whose face is whose: the people that a scene's references show, held against its faces."""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from face2scene.faces.identity import UnusableReference, cosine, match, reference_face
from face2scene.images import ImageError
from face2scene.records import Face, Scene


class Finder(Protocol):
    """What finds faces; `faces.detect.Detector` is one."""

    def find(self, image: np.ndarray) -> list[Face]: ...


@dataclass(frozen=True)
class Named:
    """What the references say about one face of a scene."""

    person: str | None = None
    reference: str | None = None  # file name of the nearest photo of `person`
    similarity: float | None = None  # cosine to the nearest photo of anybody


@dataclass(frozen=True)
class Matches:
    """One `Named` for each face, in order, and what the why-log should know."""

    of: list[Named]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Known:
    """The people whose photos came with a scene."""

    photos: Mapping[str, tuple[Path, ...]]
    seen: Mapping[str, list[tuple[Path, Face]]]  # the photos whose face has an identity
    threshold: float
    warnings: list[str] = field(default_factory=list)

    @property
    def only(self) -> str | None:
        """The one person there is."""
        return next(iter(self.photos)) if len(self.photos) == 1 else None

    def files(self, person: str | None) -> tuple[Path, ...]:
        """All photos of a person, as they were given; nobody has none."""
        return self.photos.get(person, ()) if person is not None else ()

    def faces(self, person: str | None) -> list[Face]:
        """The faces in them."""
        return [face for _, face in self.seen.get(person, [])] if person is not None else []

    def match(self, faces: Sequence[Face], slack: float) -> Matches:
        """Give the faces of a scene their names.

        Where nobody is near enough and the photos show one person, the nearest face within `slack` of the threshold
        is taken for that person, because damage takes likeness away; a person without any identity to compare gets
        the largest face, because somebody said that the photos belong to the scene.
        """
        if not faces or not self.photos:
            return Matches([Named() for _ in faces])
        comparable = {name: [face for _, face in seen] for name, seen in self.seen.items() if seen}
        if not comparable or all(face.identity is None for face in faces):
            if self.only is None:
                sentence = "The references show several people and no identity can be compared: nobody was named."
                return Matches([Named() for _ in faces], [sentence])
            return Matches([Named(self.only), *[Named() for _ in faces[1:]]])
        found = match(faces, comparable, threshold=self.threshold)
        named = [self._named(face, one.person, one.similarity) for face, one in zip(faces, found, strict=True)]
        if any(one.person for one in named):
            return Matches(named)
        best = max(range(len(faces)), key=lambda n: -2.0 if found[n].similarity is None else found[n].similarity)
        near = found[best].similarity
        if self.only is not None and near >= self.threshold - slack:
            named[best] = self._named(faces[best], self.only, near)
            sentence = (
                f"The face at {_place(faces[best])} resembles the references by {near:.3f}, less than the "
                f"{self.threshold:.3f} of two good photos of one person; it was taken for that person, as nobody else "
                "is nearer."
            )
            return Matches(named, [sentence])
        sentence = f"The references show nobody in the picture: the nearest face resembles them by {near:.3f}, "
        return Matches(named, [sentence + f"{self.threshold:.3f} are needed."])

    def _named(self, face: Face, person: str | None, similarity: float | None) -> Named:
        if person is None:
            return Named(similarity=similarity)
        nearest = max(self.seen[person], key=lambda photo: cosine(face, photo[1]))
        return Named(person, nearest[0].name, similarity)


def known_faces(scene: Scene, detector: Finder | None, cache: MutableMapping[Path, Face | str]) -> Known:
    """The people of a scene's references; a photo that does not show one face is named in the warnings.

    Args:
        detector: finds the faces in the photos; None, and one without identities, compares nobody.
        cache: of photos that were read before, by path, the face or why there is none.
    """
    photos = {name: tuple(paths) for name, paths in scene.people.items() if paths}
    if not photos and scene.references:
        photos = {scene.references[0].parent.name: scene.references}
    threshold = getattr(detector, "same_threshold", 1.0)
    seen: dict[str, list[tuple[Path, Face]]] = {name: [] for name in photos}
    warnings: list[str] = []
    for name, paths in photos.items():
        for path in paths if getattr(detector, "identities", False) else ():
            if path not in cache:
                cache[path] = _face_or_reason(path, detector)
            if isinstance(cache[path], str):
                warnings.append(cache[path])
            else:
                seen[name].append((path, cache[path]))
    return Known(photos, seen, threshold, warnings)


def _face_or_reason(path: Path, detector: Finder) -> Face | str:
    try:
        return reference_face(path, detector)
    except (UnusableReference, ImageError, OSError) as error:
        return str(error)


def _place(face: Face) -> str:
    return f"({face.box[0]:.0f}, {face.box[1]:.0f})"
