"""Who is who: cosines of identity vectors, naming the faces of a scene by reference photos, and the identity score."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from face2scene.faces.detect import Detector, Found
from face2scene.images import ImageError, list_images, read_image
from face2scene.records import Box, Face

log = logging.getLogger(__name__)
DOMINANCE = 2.5  # our setting: a face so much larger than all others is whom a photo shows


@dataclass(frozen=True)
class Match:
    """What the references say about one face of a scene."""

    person: str | None  # None: unknown
    similarity: float | None  # cosine to the nearest reference of anybody
    runner_up: float | None  # cosine to the nearest other person


def cosine(a: Face, b: Face) -> float:
    """Cosine of two identities, -1 to 1.

    Raises:
        ValueError: when one has no identity, or they come from different models.
    """
    if a.identity is None or b.identity is None:
        raise ValueError(
            "A face without an identity vector cannot be compared: faces.identities is off, or its landmarks "
            "were degenerate."
        )
    if a.identity_model != b.identity_model:
        raise ValueError(
            f"Identities of {a.identity_model!r} and {b.identity_model!r} live in different spaces: "
            "describe both faces with one detector (option faces)."
        )
    return float(np.dot(a.identity, b.identity) / (np.linalg.norm(a.identity) * np.linalg.norm(b.identity)))


def match(
    faces: Sequence[Face],
    people: Mapping[str, Sequence[Face]],
    *,
    threshold: float,
    margin: float = 0.02,
) -> list[Match]:
    """Name the faces of one scene.

    A face is a person when the nearest of that person's references is at least `threshold` near and nearer by
    `margin` than anybody else's. A person is in a scene once: of several faces the most similar one gets the
    name.

    Args:
        faces: of the scene; those without identity stay unknown.
        people: name to reference faces; faces without identity are passed over.
        threshold: lowest cosine, `Detector.same_threshold`.
        margin: lead over the second person (our setting).

    Returns:
        One `Match` per face, in order.
    """
    known = {name: [face for face in refs if face.identity is not None] for name, refs in people.items()}
    names = [name for name, refs in known.items() if refs]
    matches: list[Match] = []
    for face in faces:
        if face.identity is None or not names:
            matches.append(Match(None, None, None))
            continue
        near = sorted(((max(cosine(face, ref) for ref in known[name]), name) for name in names), reverse=True)
        best, runner_up = near[0][0], near[1][0] if len(near) > 1 else None
        sure = best >= threshold and (runner_up is None or best - runner_up >= margin)
        matches.append(Match(near[0][1] if sure else None, best, runner_up))
    for name in names:
        claims = [n for n, found in enumerate(matches) if found.person == name]
        for n in sorted(claims, key=lambda n: -(matches[n].similarity or 0))[1:]:
            matches[n] = Match(None, matches[n].similarity, matches[n].runner_up)
    return matches


# --- reference photos ---------------------------------------------------------------------------------------


class UnusableReference(ValueError):
    """A reference photo that does not show one person's face; the message names the file and what to do."""


@dataclass(frozen=True)
class People:
    """Reference photos, read."""

    faces: dict[str, list[Face]] = field(default_factory=dict)  # by name, one for each usable photo
    files: dict[str, list[Path]] = field(default_factory=dict)  # of `faces`, in their order
    skipped: dict[Path, str] = field(default_factory=dict)  # photo to the sentence that says why


def reference_face(path: str | Path, detector: Detector) -> Face:
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


def load_people(folder: str | Path, detector: Detector) -> People:
    """Read a folder of reference photos: one sub-folder for each person, or the photos of one person.

    A photo that cannot be used is left out, named in `People.skipped` and logged; the others are used.

    Args:
        folder: the name of a sub-folder is the person's; without sub-folders it is the folder's own.
        detector: must compute identities.

    Raises:
        ValueError: when `detector` computes no identities, or no photo of anybody can be used.
        FileNotFoundError: for a folder that is not there or holds no picture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder of reference photos at {folder}.")
    groups = {path.name: list_images(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    loose = [path for path in list_images(folder) if path.parent == folder]
    groups = {name: paths for name, paths in groups.items() if paths and not name.startswith(".")}
    if not groups and not loose:
        raise FileNotFoundError(
            f"There is no picture in {folder}: put the photos of each person in a sub-folder with the person's name."
        )
    skipped: dict[Path, str] = {}
    if groups:
        for path in loose:
            skipped[path] = f"{path} lies beside the folders of people and belongs to nobody: move it into one."
    else:
        groups = {folder.resolve().name: loose}
    people = read_people(groups, detector)
    for sentence in skipped.values():
        log.warning("%s", sentence)
    return People(people.faces, people.files, skipped | people.skipped)


def read_people(photos: Mapping[str, Sequence[Path]], detector: Detector) -> People:
    """Read reference photos given by name; see `load_people`."""
    if not detector.identities or detector.backend is None:
        raise ValueError("Reference photos need identities: choose a faces backend and set faces.identities=true.")
    people = People()
    for name, paths in photos.items():
        for path in paths:
            try:
                face = reference_face(path, detector)
            except (UnusableReference, ImageError, OSError) as error:
                people.skipped[path] = str(error)
                log.warning("%s", error)
                continue
            people.faces.setdefault(name, []).append(face)
            people.files.setdefault(name, []).append(path)
    if not people.faces:
        raise UnusableReference("No reference photo can be used. " + " ".join(people.skipped.values()))
    return people


# --- the identity score -------------------------------------------------------------------------------------


def face_similarity(
    output: np.ndarray, truth: np.ndarray, detector: Detector, *, box: Box | None = None
) -> float | None:
    """How much the person in a restored picture looks like the person in its truth.

    The face is looked for in the truth alone and cut out of both pictures at that place, so that a face which a bad
    restoration made unrecognisable counts with its low cosine and is not passed over.

    Args:
        output, truth: float RGB (H, W, 3) in [0, 1], the same picture.
        detector: must compute identities.
        box: of the face in question; None takes the largest.

    Returns:
        The cosine, -1 to 1, or None when the truth shows no face there.

    Raises:
        ValueError: when the pictures differ in size.
    """
    if output.shape != truth.shape:
        raise ValueError(
            f"The restored picture is {output.shape[1]} x {output.shape[0]} and its truth {truth.shape[1]} x "
            f"{truth.shape[0]}: the identity score compares the same place in both."
        )
    faces = detector.find(truth)
    if box is not None:
        faces = sorted((f for f in faces if _overlap(f.box, box) > 0), key=lambda f: -_overlap(f.box, box))
    if not faces or faces[0].identity is None:
        return None
    place = Found(faces[0].box, faces[0].score, faces[0].landmarks_5)
    (restored,) = detector.backend.describe(output, [place], identities=True)
    return None if restored.identity is None else cosine(restored, faces[0])


def _overlap(a: Box, b: Box) -> float:
    # Shared area over the area of both.
    x = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    y = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - x * y
    return x * y / both
