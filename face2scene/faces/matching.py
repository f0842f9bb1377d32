"""People and their reference photos: the photos of a folder by person, and whose faces a scene shows."""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from face2scene.common.types import Face
from face2scene.faces.identity import cosine
from face2scene.image_io.arrays import ImageError, list_images, read_image

DOMINANCE = 2.5  # our setting: a face so much larger than all others is whom a photo shows
MARGIN = 0.02  # our setting: lead of the nearest person over the second


def people_of(place: str | Path) -> dict[str, tuple[Path, ...]]:
    """Photos by person: a photo, a folder of one person's photos, or a folder with a sub-folder for each person.

    A person has the name of the folder in which the photos are; photos beside sub-folders belong to nobody.

    Raises:
        FileNotFoundError: nothing is there, or no image is in the folder.
    """
    place = Path(place)
    photos = photos_in(place)
    if place.is_file():
        return {place.resolve().parent.name: photos}
    people: dict[str, tuple[Path, ...]] = {}
    for path in photos:
        inside = path.relative_to(place).parts
        name = inside[0] if len(inside) > 1 else ""
        people[name] = (*people.get(name, ()), path)
    loose = people.pop("", ())
    return people or {place.resolve().name: loose}


def photos_in(place: str | Path) -> tuple[Path, ...]:
    """A photo, or all those of a folder and its sub-folders.

    Raises:
        FileNotFoundError: nothing is there, or no image is in the folder.
    """
    place = Path(place)
    if place.is_file():
        return (place,)
    if not place.is_dir():
        raise FileNotFoundError(f"There is no reference photo at {place}.")
    photos = tuple(list_images(place))
    if not photos:
        raise FileNotFoundError(f"There is no image in the folder of references {place}.")
    return photos


class Finder(Protocol):
    """What finds faces; `faces.detect.Detector` is one."""

    min_face: int

    def find(self, image: np.ndarray) -> list[Face]: ...


@dataclass(frozen=True)
class FaceMatch:
    """What the references say about one face of a scene."""

    person: str | None = None
    reference: str | None = None  # file name of the nearest photo of `person`
    similarity: float | None = None  # cosine to the nearest photo of anybody


@dataclass(frozen=True)
class Matches:
    """One `FaceMatch` for each face, in order, and what the restoration log should know."""

    of: list[FaceMatch]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ReferenceGallery:
    """The people whose photos came with a scene."""

    photos: Mapping[str, tuple[Path, ...]]
    seen: Mapping[str, list[tuple[Path, Face]]]  # the photos whose face has an identity
    threshold: float  # lowest cosine of two photos of one person
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

    def match(self, faces: Sequence[Face], identity_tolerance: float) -> Matches:
        """Give the faces of a scene their names.

        Where nobody is near enough and the photos show one person, the nearest face within `identity_tolerance` of the
        threshold is taken for that person, because degradation takes likeness away; a person without any identity to
        compare gets the largest face, because somebody said that the photos belong to the scene.
        """
        if not faces or not self.photos:
            return Matches([FaceMatch() for _ in faces])
        if not any(self.seen.values()) or all(face.identity is None for face in faces):
            if self.only is None:
                sentence = "The references show several people and no identity can be compared: nobody was named."
                return Matches([FaceMatch() for _ in faces], [sentence])
            return Matches([FaceMatch(self.only), *[FaceMatch() for _ in faces[1:]]])
        named = self.named(faces)
        if any(one.person for one in named):
            return Matches(named)
        best = max(range(len(faces)), key=lambda n: -2.0 if named[n].similarity is None else named[n].similarity)
        near = named[best].similarity
        if self.only is not None and near >= self.threshold - identity_tolerance:
            named[best] = self._ranked(faces[best])[0]
            sentence = (
                f"The face at {_place(faces[best])} resembles the references by {near:.3f}, less than the "
                f"{self.threshold:.3f} of two good photos of one person; it was taken for that person, as nobody else "
                "is nearer."
            )
            return Matches(named, [sentence])
        sentence = f"The references show nobody in the image: the nearest face resembles them by {near:.3f}, "
        return Matches(named, [sentence + f"{self.threshold:.3f} are needed."])

    def named(self, faces: Sequence[Face], margin: float = MARGIN) -> list[FaceMatch]:
        """Name the faces that are near enough; the others have their similarity alone.

        A face is a person when the nearest of that person's photos is at least `threshold` near and nearer by
        `margin` than anybody else's. A person is in a scene once: of several faces the most similar one gets the name.
        """
        rows = []
        for face in faces:
            ranked = self._ranked(face)
            first = ranked[0] if ranked else FaceMatch()
            second = next((one for one in ranked if one.person != first.person), None)
            sure = first.person is not None and first.similarity >= self.threshold
            sure = sure and (second is None or first.similarity - second.similarity >= margin)
            rows.append(first if sure else FaceMatch(similarity=first.similarity))
        for person in self.seen:
            claims = [n for n, row in enumerate(rows) if row.person == person]
            for n in sorted(claims, key=lambda n: -rows[n].similarity)[1:]:
                rows[n] = FaceMatch(similarity=rows[n].similarity)
        return rows

    def _ranked(self, face: Face) -> list[FaceMatch]:
        """One for every photo, the nearest first; none for a face without identity."""
        if face.identity is None:
            return []
        near = [FaceMatch(name, path.name, cosine(face, one)) for name, seen in self.seen.items() for path, one in seen]
        return sorted(near, key=lambda one: -one.similarity)


def known_faces(
    photos: Mapping[str, Sequence[Path]], detector: Finder | None, cache: MutableMapping[Path, Face | str]
) -> ReferenceGallery:
    """The people of photos by name; a photo that does not show one face is named in the warnings.

    Args:
        detector: finds the faces in the photos; None, and one without identities, compares nobody.
        cache: of photos that were read before, by path, the face or why there is none.
    """
    photos = {name: tuple(paths) for name, paths in photos.items() if paths}
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
    return ReferenceGallery(photos, seen, threshold, warnings)


class UnusableReference(ValueError):
    """A reference photo that does not show one person's face; the message names the file and what to do."""


def reference_face(path: str | Path, detector: Finder) -> Face:
    """The face of the one person that a reference photo shows.

    Small faces in the background do not matter: the largest must be `DOMINANCE` times as large as the next.

    Raises:
        UnusableReference: for a photo with no face, or with several.
        ImageError, OSError: when the file cannot be read.
    """
    faces = detector.find(read_image(path))
    if not faces:
        raise UnusableReference(
            f"No face of {detector.min_face} pixels or more was found in the reference photo {path}: take one that "
            "shows the person's face, from the front if possible, or leave it out."
        )
    if len(faces) > 1 and faces[0].size < DOMINANCE * faces[1].size:
        raise UnusableReference(
            f"The reference photo {path} shows {len(faces)} faces: cut it to the one person, or leave it out."
        )
    if faces[0].identity is None:
        raise UnusableReference(
            f"The face in the reference photo {path} has no usable landmarks and so no identity: take another photo."
        )
    return faces[0]


def _face_or_reason(path: Path, detector: Finder) -> Face | str:
    try:
        return reference_face(path, detector)
    except (UnusableReference, ImageError, OSError) as error:
        return str(error)


def _place(face: Face) -> str:
    return f"({face.box[0]:.0f}, {face.box[1]:.0f})"
