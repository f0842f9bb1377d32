"""Reference photos by person, and the identification of a scene's faces with them."""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from face2scene.common.types import Face
from face2scene.faces.detect import Detector
from face2scene.faces.identity import cosine
from face2scene.image_io.arrays import ImageError, list_images, read_image

DOMINANCE = 2.5  # our setting: how many times as large as any other the face of a reference photo's person must be
MARGIN = 0.02  # our setting: lead of the most similar person's cosine over the second's


def people_of(place: str | Path) -> dict[str, tuple[Path, ...]]:
    """Photos by person: a photo, a folder of one person's photos, or a folder with a sub-folder for each person.

    A person has the name of the folder with the photos; photos beside sub-folders are ignored.

    Raises:
        FileNotFoundError: the place does not exist, or the folder has no image.
    """
    place = Path(place)
    photos = photos_in(place)
    if place.is_file():
        return {place.resolve().parent.name: photos}
    people: dict[str, tuple[Path, ...]] = {}
    for path in photos:
        name, *inside = path.relative_to(place).parts
        if inside:
            people[name] = (*people.get(name, ()), path)
    return people or {place.resolve().name: photos}


def photos_in(place: str | Path) -> tuple[Path, ...]:
    """A photo, or all those of a folder and its sub-folders.

    Raises:
        FileNotFoundError: the place does not exist, or the folder has no image.
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


@dataclass(frozen=True)
class FaceMatch:
    """The identification of one face of a scene."""

    person: str | None = None
    reference: str | None = None  # file name of the most similar photo of `person`
    similarity: float | None = None  # cosine to the most similar photo of any person


@dataclass(frozen=True)
class ReferenceGallery:
    """The people of a scene's reference photos."""

    photos: Mapping[str, tuple[Path, ...]]
    seen: Mapping[str, list[tuple[Path, Face]]]  # the usable photos, with their faces
    threshold: float  # lowest cosine of two photos of one person
    warnings: list[str] = field(default_factory=list)

    @property
    def only(self) -> str | None:
        """The person's name, if there is exactly one."""
        return next(iter(self.photos)) if len(self.photos) == 1 else None

    def files(self, person: str | None) -> tuple[Path, ...]:
        """All photos of a person, usable or not."""
        return self.photos.get(person or "", ())

    def faces(self, person: str | None) -> list[Face]:
        """The faces of a person's usable photos."""
        return [face for _, face in self.seen.get(person or "", [])]

    def match(self, faces: Sequence[Face], identity_tolerance: float) -> tuple[list[FaceMatch], list[str]]:
        """One match for each face of a scene, given the largest first, and warnings for the restoration log.

        If none reaches the threshold and the photos show one person, the most similar face within `identity_tolerance`
        below the threshold is that person, since degradation lowers similarity. Without identities to compare the one
        person is the largest face, since the photos were given for this scene.
        """
        if not faces or not self.photos:
            return [FaceMatch() for _ in faces], []
        if not any(self.seen.values()) or all(face.identity is None for face in faces):
            if self.only is None:
                sentence = "The references show several people and no identity can be compared: nobody was named."
                return [FaceMatch() for _ in faces], [sentence]
            return [FaceMatch(self.only), *[FaceMatch() for _ in faces[1:]]], []
        named = self.named(faces)
        if any(one.person for one in named):
            return named, []
        best = max(range(len(faces)), key=lambda n: -2.0 if named[n].similarity is None else named[n].similarity)
        near = named[best].similarity
        if self.only is not None and near >= self.threshold - identity_tolerance:
            named[best] = self._ranked(faces[best])[0]
            sentence = (
                f"The face at ({faces[best].box[0]:.0f}, {faces[best].box[1]:.0f}) resembles the references by "
                f"{near:.3f}, less than the {self.threshold:.3f} of two good photos of one person; it was taken for "
                "that person, as no other face is more similar."
            )
            return named, [sentence]
        sentence = f"The references show nobody in the image: the most similar face has a cosine of {near:.3f}, "
        return named, [sentence + f"{self.threshold:.3f} are needed."]

    def named(self, faces: Sequence[Face]) -> list[FaceMatch]:
        """Identify the faces that are similar enough; the others have their similarity alone.

        A face is a person when the cosine to the most similar of that person's photos is at least `threshold` and
        exceeds that of any other person by `MARGIN`. A person is in a scene once: the most similar face has the name.
        """
        rows = []
        for face in faces:
            ranked = self._ranked(face)
            first = ranked[0] if ranked else FaceMatch()
            second = next((one for one in ranked if one.person != first.person), None)
            sure = first.person is not None and first.similarity >= self.threshold
            sure = sure and (second is None or first.similarity - second.similarity >= MARGIN)
            rows.append(first if sure else FaceMatch(similarity=first.similarity))
        for person in self.seen:
            claims = [n for n, row in enumerate(rows) if row.person == person]
            for n in sorted(claims, key=lambda n: -rows[n].similarity)[1:]:
                rows[n] = FaceMatch(similarity=rows[n].similarity)
        return rows

    def _ranked(self, face: Face) -> list[FaceMatch]:
        """One for every photo, the most similar first; none for a face without identity."""
        if face.identity is None:
            return []
        near = [FaceMatch(name, path.name, cosine(face, one)) for name, seen in self.seen.items() for path, one in seen]
        return sorted(near, key=lambda one: -one.similarity)


def known_faces(
    photos: Mapping[str, Sequence[Path]], detector: Detector | None, cache: MutableMapping[tuple[Path, int], Face | str]
) -> ReferenceGallery:
    """The gallery of photos by person; the warnings name photos that do not show one face.

    Args:
        detector: of the faces in the photos; with None, or one without identities, no face is compared.
        cache: by path and time of writing, the face of a photo that was read before, or why it has none.
    """
    photos = {name: tuple(paths) for name, paths in photos.items() if paths}
    seen: dict[str, list[tuple[Path, Face]]] = {name: [] for name in photos}
    warnings: list[str] = []
    for name, paths in photos.items():
        for path in paths if getattr(detector, "identities", False) else ():
            key = path, path.stat().st_mtime_ns if path.exists() else 0
            if key not in cache:
                try:
                    cache[key] = reference_face(path, detector)
                except (UnusableReference, ImageError, OSError) as error:
                    cache[key] = str(error)
            if isinstance(found := cache[key], str):
                warnings.append(found)
            else:
                seen[name].append((path, found))
    return ReferenceGallery(photos, seen, getattr(detector, "same_threshold", 1.0), warnings)


class UnusableReference(ValueError):
    """A reference photo that does not show one person's face; the message names the file and what to do."""


def reference_face(path: str | Path, detector: Detector) -> Face:
    """The face of the one person that a reference photo shows, `DOMINANCE` times as large as any other.

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
