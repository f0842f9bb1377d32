"""Who is who: cosines of identity vectors, and naming the faces of a scene by reference photos."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from face2scene.records import Face


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
