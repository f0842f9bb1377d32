"""Invented people as a source of InScene images: several images of each, accepted if they look alike."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np

from face2scene.common.types import Box
from face2scene.data.building.build import BuildResult, RecordCandidate, Rejection, largest
from face2scene.data.building.photo_filtering import resized
from face2scene.data.building.prompts import plain_prompt, shot_of
from face2scene.data.generators.base import DrawnPeople, GenerationRequest, Generator
from face2scene.data.generators.facegen import facegen
from face2scene.faces.detect import Detector

__all__ = ["DrawnPeople", "GeneratedPeople", "facegen"]  # configurations name all three here

# Where the face lies in an image of the packaged generator, as a share of the side: mean of YuNet's boxes
# over 120 images, which differ by about 0.04.
FACEGEN_BOX: Box = (0.22, 0.18, 0.78, 0.94)


class GeneratedPeople:
    """So many people with so many images each, as a build source. One item is one person.

    The first image with a face is the person's anchor. Another is accepted when its largest face has at
    least `threshold` identity cosine to the anchor's; otherwise the next number is tried.

    Args:
        generator: returns the generator; called when the first image is needed.
        detector: finds and describes faces; None takes every image and puts `face_box` on it.
        name: of the source; images are called `name_PERSON_SHOT`.
        train_people, val_people: people are numbered from `first_person`, training first.
        train_shots, val_shots: accepted images per person.
        size: side of the images in pixels.
        reference_size: side of the images as references of others; None takes the images themselves.
        threshold: lowest identity cosine to the anchor; None is the detector's `same_threshold`.
        tries: images drawn per shot at most (the public generator's 10).
        face_box: as a share of the side, where no detector runs.
        licence: recorded with every image.
        settings: recorded with every image beside the two numbers.
    """

    def __init__(
        self,
        generator: Callable[[], Generator],
        detector: Detector | None,
        *,
        name: str = "generated",
        first_person: int = 0,
        train_people: int,
        train_shots: int,
        val_people: int = 0,
        val_shots: int = 0,
        size: int,
        reference_size: int | None = None,
        threshold: float | None = None,
        tries: int = 10,
        face_box: Box = FACEGEN_BOX,
        licence: str,
        settings: dict[str, Any] | None = None,
    ):
        self.make_generator = generator
        self.detector = detector
        self.name = name
        self.first_person = first_person
        self.people = [("train", train_shots)] * train_people + [("val", val_shots)] * val_people
        self.size = size
        self.reference_size = reference_size
        self.threshold = threshold if threshold is not None or detector is None else detector.same_threshold
        self.tries = tries
        self.face_box = tuple(face_box)
        self.licence = licence
        self.settings = dict(settings or {})

    @cached_property
    def generator(self) -> Generator:
        return self.make_generator()

    @cached_property
    def _worker(self) -> ThreadPoolExecutor:
        # One thread draws the next image while this one looks at the last: most generators leave a core
        # idle.
        return ThreadPoolExecutor(max_workers=1)

    def _draw(self, person: int, number: int) -> np.ndarray:
        return self.generator.draw(GenerationRequest(person, number))

    def listing(self) -> None:
        """Nothing beside the settings: every image follows from its numbers."""

    def items(self) -> Sequence[int]:
        return range(len(self.people))

    def key(self, item: int) -> str:
        return f"{self.name}_{self.first_person + item:05d}"

    def make(self, item: int) -> BuildResult:
        split, shots = self.people[item]
        person = self.first_person + item
        drafts: list[RecordCandidate] = []
        rejected: list[Rejection] = []
        ahead = {number: self._worker.submit(self._draw, person, number) for number in range(shots)}
        for shot in range(shots):
            for number in range(shot, shot + self.tries * shots, shots):  # every shot has numbers of its own
                drawn = ahead.pop(number, None) or self._worker.submit(self._draw, person, number)
                full = drawn.result()
                draft, reason = self._judge(full, split, person, number, drafts[0] if drafts else None)
                if draft is not None:
                    drafts.append(draft)
                    break
                rejected.append(Rejection(f"{self.key(item)}_{number}", reason))
        return BuildResult(drafts, rejected)

    def _judge(
        self, full: np.ndarray, split: str, person: int, number: int, anchor: RecordCandidate | None
    ) -> tuple[RecordCandidate | None, str]:
        image = resized(full, self.size)
        box = tuple(v * self.size for v in self.face_box)
        points = vector = None
        if self.detector is not None:
            face = largest(self.detector.find(image.astype(np.float32) / 255))
            if face is None:
                return None, "no face found"
            box, points, vector = face.box, face.landmarks_68, face.identity
            if vector is None:
                return None, "the face has no usable landmarks"
            if anchor is not None and float(vector @ anchor.vector) < self.threshold:
                near = float(vector @ anchor.vector)
                return None, f"looks like somebody else: cosine {near:.3f} is under {self.threshold}"
        shot = shot_of(box, self.size)
        key = f"{self.name}_{person:05d}"
        return (
            RecordCandidate(
                name=f"{key}_{number}",
                image=image,
                reference=resized(full, self.reference_size) if self.reference_size else None,
                split=split,
                identity=key,
                prompt=plain_prompt(shot),
                shot=shot,
                face_box=box,
                landmarks_68=points,
                vector=vector,
                source=self.name,
                licence=self.licence,
                generator={**self.settings, "identity": person, "shot": number},
            ),
            "",
        )
