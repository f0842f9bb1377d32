"""Generated scenes with real identities: the paper's synthetic part, from photos of people and prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from face2scene.common.reproducibility import seed_from
from face2scene.common.types import Face
from face2scene.data.building.build import BAD_INPUT, BuildError, BuildResult, RecordCandidate, Rejection, largest
from face2scene.data.building.filter_report import thumbnail
from face2scene.data.building.photo_filtering import copies, resized
from face2scene.data.building.prompts import Prompts, subjects
from face2scene.data.generators.base import GenerationRequest, Generator, JobFailed
from face2scene.faces.detect import Detector
from face2scene.image_io.arrays import ImageError, list_images, read_image

CELEBREF_VALIDATION = Path(__file__).parent / "celebref_validation.txt"


def celebref_split() -> dict[str, str]:
    """The published split of CelebRef-HQ: its 100 validation identities; the others are for training."""
    return dict.fromkeys(CELEBREF_VALIDATION.read_text().split(), "val")


@dataclass(eq=False)
class PromptedPeople:
    """Every person of a photo folder in several scenes. One item is one prompt for one person.

    For each prompt up to `repeats` images are accepted within `tries` draws. An image is accepted when its largest
    face has at least `threshold` identity cosine to its reference photo, and kept from `strict_threshold`: the public
    generator stops at 0.45, the paper states 0.55. Both are for ArcFace (faces=antelopev2 or insightface).
    """

    folder: str | Path | None  # CelebRef-HQ's layout: a sub-folder of photos per person, named by the identity
    generator: Generator  # `check()` is called before any work
    detector: Detector
    _: KW_ONLY
    prompts: Prompts | None = None  # None is the package's, by `seed`
    name: str = "synthetic"  # of the source
    gender_map: str | Path | None = None  # file, see `subjects`; None makes everybody a person
    split: str | None = "celebref"  # the published list; or `train`, `val`; None is by seed, in `finalize`
    prompts_per_person: int = 4  # ours; the paper's set has about four
    repeats: int = 3  # accepted images per prompt at most (public)
    tries: int = 10  # draws per prompt at most (public)
    threshold: float = 0.45
    strict_threshold: float | None = 0.55
    size: tuple[int, int] | None = None  # of the images (width, height); None keeps the generator's
    reference_size: int | None = None  # longest side of the copied photos
    max_references: int = 4  # photos per image that are copied into the set, the one in use first
    people: int | None = None  # use the first people only; None takes all
    seed: int = 0  # of the choice of photos and prompts and of the generator's seeds
    licence: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # recorded with every image

    def __post_init__(self) -> None:
        if self.split not in ("celebref", "train", "val", None):
            raise ValueError(f"split must be celebref, train, val or null, not {self.split!r}.")
        if self.tries < self.repeats or self.repeats < 1:
            raise ValueError(f"tries ({self.tries}) must be at least repeats ({self.repeats}), and that at least 1.")
        self.prompts = self.prompts or Prompts(seed=self.seed)

    @cached_property
    def identities(self) -> list[str]:
        """The names of the sub-folders in use, sorted."""
        if not self.folder:
            raise BuildError("No photos of people were named: data.celebref is a folder with a sub-folder each.")
        folder = Path(self.folder)
        if not folder.is_dir():
            raise BuildError(f"There is no folder {folder} with a sub-folder of photos per person (data.celebref).")
        found = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not found:
            raise BuildError(f"{folder} has no sub-folder per person (data.celebref).")
        return found[: self.people]

    @cached_property
    def _subjects(self) -> dict[str, str]:
        return subjects(self.gender_map)

    @cached_property
    def _split_of(self) -> dict[str, str]:
        if self.split != "celebref":
            return dict.fromkeys(self.identities, self.split) if self.split else {}
        return {person: "train" for person in self.identities} | celebref_split()

    def listing(self) -> Any:
        """The people, and what the prompts follow from."""
        return {"people": self.identities, "packs": self.prompts.listing(), "subjects": self._subjects}

    def items(self) -> Sequence[tuple[str, int]]:
        if not hasattr(self, "_checked"):
            self._checked = True
            getattr(self.generator, "check", lambda: None)()
        return [(person, number) for person in self.identities for number in range(self.prompts_per_person)]

    def key(self, item: tuple[str, int]) -> str:
        return f"{self.name}_{item[0]}_{item[1]:04d}"

    def make(self, item: tuple[str, int]) -> BuildResult:
        person, number = item
        references, bad = self._photos(person)
        rejected = list(bad) if number == 0 else []  # once, with the person's first prompt
        if not references:
            reason = "no photo of this person is usable"
            return BuildResult(rejected=[*rejected, Rejection(self.key(item), reason, BAD_INPUT)])
        rng = np.random.default_rng(seed_from("reference", self.seed, person, number))
        chosen = int(rng.integers(len(references)))
        path, face = references[chosen]
        prompt_number = seed_from("prompt of", person, number) % 10**9
        prompt = self.prompts(prompt_number, subject=self._subjects.get(person, "person"))
        others = [other for other, _ in references[chosen + 1 :] + references[:chosen]]
        copied = copies([path, *others][: self.max_references], self.reference_size)
        candidates: list[RecordCandidate] = []
        accepted = 0
        stem, index = f"iden_{person}_img_{path.stem}_sample_{number}", self.identities.index(person)
        for attempt in range(self.tries):
            if accepted == self.repeats:
                break
            seed, tried = seed_from("draw", self.seed, person, number, attempt) % 2**32, f"{stem}_try_{attempt + 1}"
            try:
                drawn = self.generator.draw(GenerationRequest(index, attempt, seed, prompt.text, path))
            except JobFailed as error:
                rejected.append(Rejection(tried, f"the generator failed: {error}", "generation"))
                continue
            image = drawn if self.size is None else resized(drawn, tuple(self.size))
            pixels = image.astype(np.float32) / 255
            found = largest(self.detector.find(pixels))
            reason, measured = self._judge(found, face)
            if not reason:
                accepted += 1
                similarity = measured["similarity"]
                if self.strict_threshold is not None and similarity < self.strict_threshold:
                    reason = f"not similar enough to keep: cosine {similarity:.3f} is under {self.strict_threshold}"
            if reason:
                rejected.append(Rejection(tried, reason, measured=measured, thumbnail=thumbnail(pixels)))
                continue
            about = {"person": person, "photo": path.name, "prompt_number": prompt_number, "try": attempt + 1}
            candidates.append(
                RecordCandidate(
                    name=f"{stem}_repeat_{accepted}",
                    image=image,
                    split=self._split_of.get(person),
                    identity=person,
                    prompt=prompt.text,
                    shot=prompt.shot,
                    face_box=tuple(np.clip(found.box, 0, image.shape[1::-1] * 2).tolist()),
                    landmarks_68=found.landmarks_68,
                    vector=found.identity,
                    source=self.name,
                    licence=self.licence,
                    generator={**self.settings, **getattr(self.generator, "about", dict)(), **about, "seed": seed},
                    measured=measured,
                    references=copied,
                    similarity=similarity,
                )
            )
        return BuildResult(candidates, rejected)

    def _judge(self, found: Face | None, reference: Face) -> tuple[str, dict[str, float]]:
        if found is None:
            return "no face found", {}
        if found.identity is None:
            return "the face has no usable landmarks", {}
        cosine = float(found.identity @ reference.identity)
        different = cosine < self.threshold
        reason = f"another person: cosine {cosine:.3f} is under {self.threshold}" if different else ""
        return reason, {"similarity": cosine}

    @lru_cache(maxsize=1)  # noqa: B019  for the person's next prompt
    def _photos(self, person: str) -> tuple[list[tuple[Path, Face]], list[Rejection]]:
        """Photos of a person with their faces, and rejections of the others."""
        usable, bad = [], []
        for path in list_images(Path(self.folder) / person):
            shown = f"{person}/{path.name}"
            try:
                face = largest(self.detector.find(read_image(path)))
            except (ImageError, OSError) as error:
                reason = str(error).replace(f"{self.folder}/", "")
                bad.append(Rejection(shown, f"unreadable: {reason}", BAD_INPUT))
                continue
            if face is None or face.identity is None:
                bad.append(Rejection(shown, "no face found on this photo of a person", "reference"))
            else:
                usable.append((path, face))
        return usable, bad
