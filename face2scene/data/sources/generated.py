"""Generated people as a source of InScene images: several images of each, accepted if the faces are similar."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
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

__all__ = ["DrawnPeople", "GeneratedPeople", "facegen"]  # all three are targets of configurations

# Mean face box of the packaged generator, as a share of the side, by YuNet over 120 images; they vary by about 0.04.
FACEGEN_BOX: Box = (0.22, 0.18, 0.78, 0.94)


@dataclass(eq=False)
class GeneratedPeople:
    """Generated people with several images each. One item is one person.

    The first image with a face is the person's anchor. Another is accepted when its largest face has at least
    `threshold` identity cosine to the anchor; otherwise the next number is tried.
    """

    generator: Callable[[], Generator]  # called when the first image is needed
    detector: Detector | None  # None accepts every image and records `face_box`
    _: KW_ONLY
    name: str = "generated"  # of the source; images are called `name_PERSON_SHOT`
    first_person: int = 0  # number of the first person; training people come first
    train_people: int
    train_shots: int  # accepted images per person
    val_people: int = 0
    val_shots: int = 0
    size: int  # side of the images in pixels
    reference_size: int | None = None  # side of the images as references of others; None takes the images themselves
    threshold: float | None = None  # lowest identity cosine to the anchor; None is the detector's `same_threshold`
    tries: int = 10  # images drawn per shot at most; the public generator's
    face_box: Box = FACEGEN_BOX  # as a share of the side, where no detector runs
    licence: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # recorded with every image

    def __post_init__(self) -> None:
        if self.threshold is None and self.detector is not None:
            self.threshold = self.detector.same_threshold
        self.people = [("train", self.train_shots)] * self.train_people + [("val", self.val_shots)] * self.val_people

    @cached_property
    def _generator(self) -> Generator:
        return self.generator()

    @cached_property
    def _worker(self) -> ThreadPoolExecutor:
        # One thread draws the next image during the detection on the last: most generators leave a core idle.
        return ThreadPoolExecutor(max_workers=1)

    def _draw(self, person: int, number: int) -> np.ndarray:
        return self._generator.draw(GenerationRequest(person, number))

    def listing(self) -> None:
        """Nothing: every image follows from its numbers."""

    def items(self) -> Sequence[int]:
        return range(len(self.people))

    def key(self, item: int) -> str:
        return f"{self.name}_{self.first_person + item:05d}"

    def make(self, item: int) -> BuildResult:
        split, shots = self.people[item]
        person = self.first_person + item
        candidates: list[RecordCandidate] = []
        rejected: list[Rejection] = []
        ahead = {number: self._worker.submit(self._draw, person, number) for number in range(shots)}
        for shot in range(shots):
            for number in range(shot, shot + self.tries * shots, shots):  # every shot has numbers of its own
                drawn = ahead.pop(number, None) or self._worker.submit(self._draw, person, number)
                result = self._judge(drawn.result(), split, person, number, candidates[0] if candidates else None)
                if isinstance(result, RecordCandidate):
                    candidates.append(result)
                    break
                rejected.append(Rejection(f"{self.key(item)}_{number}", result))
        return BuildResult(candidates, rejected)

    def _judge(
        self, full: np.ndarray, split: str, person: int, number: int, anchor: RecordCandidate | None
    ) -> RecordCandidate | str:
        """The candidate, or why the image is rejected."""
        image = resized(full, self.size)
        box = tuple(v * self.size for v in self.face_box)
        points = vector = None
        if self.detector is not None:
            face = largest(self.detector.find(image.astype(np.float32) / 255))
            if face is None:
                return "no face found"
            box, points, vector = face.box, face.landmarks_68, face.identity
            if vector is None:
                return "the face has no usable landmarks"
            if anchor is not None and (similarity := float(vector @ anchor.vector)) < self.threshold:
                return f"another person: cosine {similarity:.3f} is under {self.threshold}"
        shot = shot_of(box, self.size)
        key = f"{self.name}_{person:05d}"
        return RecordCandidate(
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
        )
