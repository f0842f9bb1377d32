"""The first half of the pipeline: degradation tokens of a scene, from the faces in it.

    scene -> faces -> identities -> each face restored (Stage I) -> FaDeX -> MapNet's tokens -> one set, or one per face

Without a usable face, null tokens or a blind estimate are used: see `PipelineOptions.fallback`. The reason of every
decision is in the notes, which become the image's line of the restoration log.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from face2scene.common.choices import one_of
from face2scene.common.reproducibility import seed_from
from face2scene.common.types import Box, DegradationTokens, Face, FacePair, Progress, Scene
from face2scene.faces.align import MAX_FACE_SIZE, AlignmentError, crop, face_crop_box, square_crop_box
from face2scene.faces.detect import Detector
from face2scene.faces.identity import cosine
from face2scene.faces.matching import FaceMatch, ReferenceGallery, known_faces
from face2scene.image_io.arrays import COLOURS, to_array
from face2scene.inference.results import DegradationEstimate, FaceEstimate
from face2scene.models.fadex.encoder import MINIMUM_SIZE, FaDeX
from face2scene.models.restorer.one_step import OneStepRestorer
from face2scene.models.s3diff.model import S3Diff
from face2scene.models.scene_estimator import FILE as ESTIMATOR_FILE
from face2scene.models.scene_estimator import SceneEstimator
from face2scene.ref_fr import FaceRestorationError, RefFR, face_pair
from face2scene.ref_fr.base import RestorerUnavailableError, upright_points

TOKEN_AGGREGATIONS = ("largest", "mean", "nearest")
ESTIMATED_SIDE = 128  # pixels, of the squares read without a face pair: at 256, MapNet took a third of the time (ours)
FALLBACKS = ("auto", "estimated", "null", "blind")


def no_progress(stage: str, done: int, total: int) -> None:
    """The progress callback that does nothing."""


@dataclass(frozen=True)
class PipelineOptions:
    """Options of the pipeline; `save_pretrained` stores them beside the weights.

    Raises:
        ValueError: unknown token_aggregation, fallback or colour, or a number out of range.
    """

    # Whose tokens (ours): of the `largest` usable face, the `mean` of all faces weighted by area, or for every tile
    # those of the `nearest` face, so that the restoration varies over the image.
    token_aggregation: str = "largest"
    # Without a usable face: tokens `estimated` from the image by the weights' estimator, learned `null` tokens, or a
    # `blind` estimate (`_estimate_blind`). `auto`: estimated where the weights have an estimator, else null.
    fallback: str = "auto"
    # Share of the input in the result (ours), 0 to 1. `auto`: from the tokens; 0 where the weights have no estimator,
    # and with null tokens or none, which say nothing of the image.
    fidelity: float | str = "auto"
    colour: str = "wavelet"  # alignment with the input (`arrays.align_colour`): S3Diff's default, or `none`, `adain`
    tile: int | str | None = 512  # pixels; larger images go in tiles. `auto`: by the free memory; None: never
    overlap: int = 64  # of the tiles, pixels
    statistics: str = "shared"  # of normalisation over tiles, `shared` or `tile`; see `models.restorer.tiling`
    max_face_size: int = MAX_FACE_SIZE  # pixels; of a larger face the centre is used, see `align.face_crop_box`
    max_faces: int = 8  # of one scene, the largest first (ours)
    max_tokens: int | None = None  # the first so many tokens, coarse to fine (an ablation of ours); None keeps all
    # How far below the detector's threshold the similarity of a degraded or restored face to its person may lie (ours).
    identity_tolerance: float = 0.05

    def __post_init__(self) -> None:
        one_of("pipeline.token_aggregation", self.token_aggregation, TOKEN_AGGREGATIONS)
        one_of("pipeline.fallback", self.fallback, FALLBACKS)
        one_of("pipeline.colour", self.colour, COLOURS)
        for name, least in (("max_faces", 1), ("max_face_size", MINIMUM_SIZE), ("max_tokens", 1), ("overlap", 0)):
            value = getattr(self, name)
            if not (value is None and name == "max_tokens") and not (isinstance(value, int) and value >= least):
                raise ValueError(f"{name} is {value!r}: give a whole number from {least} on (option pipeline.{name}).")
        if self.fidelity != "auto" and not (isinstance(self.fidelity, int | float) and 0 <= self.fidelity <= 1):
            raise ValueError(f"fidelity is {self.fidelity!r}: give auto or a number from 0 to 1 (pipeline.fidelity).")


class DegradationEstimator:
    """Estimates the degradation of scenes.

    Args:
        restorer: Stage II, whose MapNet turns FaDeX's features into tokens; an S3Diff has none.
        fadex: the degradation encoder.
        ref_fr: Stage I; without one no face is used.
        detector: finds faces; without one only a given box is used.
        options: of the whole pipeline.
        estimator: gives tokens and fidelity from the degraded image; trained with the restorer.
    """

    def __init__(
        self,
        restorer: OneStepRestorer | S3Diff,
        fadex: FaDeX,
        ref_fr: RefFR | None,
        detector: Detector | None,
        options: PipelineOptions,
        estimator: SceneEstimator | None = None,
    ):
        if estimator is None and options.fallback == "estimated":
            raise ValueError(
                f"fallback=estimated needs {ESTIMATOR_FILE} beside the restorer's weights (estimator_weights=FILE); "
                "train_restorer writes it with train.restorer.estimator. Or set pipeline.fallback=null."
            )
        mapnet = getattr(restorer, "mapnet", None)
        read, given = mapnet and mapnet.config["in_channels"], getattr(fadex, "channels", None)
        if read and given and read != given:
            raise ValueError(
                f"This FaDeX gives maps of {given} channels and the restorer reads {read}: it was trained with another "
                "FaDeX, name that one (fadex_weights)."
            )
        if estimator is not None and (mapnet is None or not estimator.fits(mapnet)):
            raise ValueError("The estimator is of another restorer: name the file that was trained with this one.")
        self.estimator = estimator
        self.restorer, self.fadex, self.ref_fr, self.detector = restorer, fadex, ref_fr, detector
        self.options = options
        self._photos: dict[tuple[Path, int], Face | str] = {}  # reference photos, each read once
        self.warnings: tuple[str, ...] = ()  # about defaults that do not work here; in every image's notes

    def restore_patch(self, image: Tensor, tokens: Tensor) -> Tensor:
        """Restore (1, 3, h, w) in [0, 1] with tokens (1, N, D); the blind estimate needs it."""
        raise NotImplementedError

    def ready(self, *, boxes: bool = False, gts: bool = False) -> None:
        """Load the detector and Stage I now, so that a part that was chosen and is missing fails before any image.

        Args:
            boxes: the faces of all images are known, so that no detector is needed.
            gts: the ground truths of all images are there.

        Raises:
            ValueError, OSError, RuntimeError, ModuleNotFoundError: a part does not work; the message says why.
        """
        if self.ref_fr is not None:
            self._check_inputs(boxes, gts)
        for part in (self.ref_fr, None if boxes else self.detector):
            getattr(part, "ready", lambda: None)()

    def _check_inputs(self, box: bool, gt: bool) -> None:
        name = getattr(self.ref_fr, "name", "")
        if self.ref_fr is not None and self.ref_fr.needs_gt and not gt:
            raise ValueError(f"ref_fr={name} is made from the ground truth and none was given (gt=FOLDER).")
        if not box and getattr(self.detector, "backend", self.detector) is None:  # faces=none has no backend
            raise ValueError(f"ref_fr={name} restores faces, and there is no face detector: choose one (faces=open).")

    @torch.inference_mode()
    def estimate(
        self,
        scene: Scene,
        *,
        gt: Tensor | None = None,
        box: Box | None = None,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> DegradationEstimate:
        """Faces, Stage I, FaDeX and MapNet.

        Args:
            gt: (3, H, W), the ground truth, only for stand-ins of Stage I that are made from it.
            box: the face, where it is known; the detector is not used then.
            seed: with the scene's name, of Stage I's randomness.

        Raises:
            ValueError: Stage I needs the ground truth or a detector and there is none, or it does not work at all
                (`RestorerUnavailableError`). A face that it refuses, or no face, gives the fallback instead.
        """
        faces, people, named, notes = self._detect_faces(scene, search=box is None, progress=progress)

        reason = ""
        if self.ref_fr is None:
            reason = "there is no Stage I (ref_fr=none)"
        else:
            self._check_inputs(box is not None or bool(scene.faces), gt is not None)
        if not faces and box is None:
            reason = reason or "no face was found"
        if reason:
            return self._without_face(scene, reason, faces, notes)

        start = perf_counter()
        rng = np.random.default_rng(seed_from(seed, scene.name))
        places: list[tuple[Face | None, str | None]] = [(None, people.only)]
        if box is None:
            by_face = [(face, one.person) for face, one in zip(faces, named, strict=True)]
            # People of the references first; a face without references is as degraded as theirs.
            places = sorted(by_face[: self.options.max_faces], key=lambda place: place[1] is None)
        face_estimates: list[FaceEstimate] = []
        refused: list[str] = []
        for number, (face, person) in enumerate(places):
            progress("stage one", number, len(places))
            try:
                face_estimates.append(self._estimate_face(scene, face, box, person, people, gt, rng, notes))
            except RestorerUnavailableError:  # it was asked for, and works for no face
                raise
            except (FaceRestorationError, AlignmentError) as error:
                refused.append(str(error).rstrip("."))
                continue
            if self.options.token_aggregation == "largest":
                break
        notes["seconds_ref_fr"] = round(perf_counter() - start - notes.get("seconds_tokens", 0.0), 3)
        if not face_estimates:
            return self._without_face(scene, "; ".join(dict.fromkeys(refused)), faces, notes)
        notes["warnings"] += [f"A face was not used, because {reason}." for reason in dict.fromkeys(refused)]
        notes["token_faces"] = [[int(v) for v in one.pair.box] for one in face_estimates]
        return DegradationEstimate(self._aggregate(face_estimates), tuple(faces), tuple(face_estimates), notes)

    @torch.inference_mode()
    def find_faces(self, scene: Scene) -> DegradationEstimate:
        """Faces and identities alone: null tokens, and the notes of `estimate` up to there."""
        faces, _, _, notes = self._detect_faces(scene, search=True, progress=no_progress)
        return DegradationEstimate(DegradationTokens(self._tokens(None), "null"), tuple(faces), (), notes)

    def _detect_faces(
        self, scene: Scene, *, search: bool, progress: Progress
    ) -> tuple[list[Face], ReferenceGallery, list[FaceMatch], dict[str, Any]]:
        """Faces, the people of the references, the match of each face, and the notes so far."""
        start = perf_counter()
        faces = list(scene.faces)
        if not faces and search and self.detector is not None:
            progress("faces", 0, 1)
            faces = self.detector.find(to_array(scene.image))
        people = known_faces(scene.people, self.detector if faces else None, self._photos)
        matches, warnings = people.match(faces, self.options.identity_tolerance)
        notes: dict[str, Any] = scene.notes | {"warnings": [*self.warnings, *people.warnings, *warnings]}
        notes["faces"] = [_log_entry(face, one) for face, one in zip(faces, matches, strict=True)]
        notes["seconds_faces"] = round(perf_counter() - start, 3)
        return faces, people, matches, notes

    def _estimate_face(
        self,
        scene: Scene,
        face: Face | None,
        box: Box | None,
        person: str | None,
        people: ReferenceGallery,
        gt: Tensor | None,
        rng: np.random.Generator,
        notes: dict[str, Any],
    ) -> FaceEstimate:
        known = box if face is None else face.box
        assert known is not None and self.ref_fr is not None  # `estimate` checks both
        size = (scene.image.shape[-2], scene.image.shape[-1])
        points = face.landmarks_5 if face is not None else upright_points(square_crop_box(known, size))
        pair = face_pair(
            self.ref_fr,
            scene.image,
            face_crop_box(known, size, self.options.max_face_size),
            references=people.files(person),
            gt=gt,
            landmarks=points,
            rng=rng,
        )
        notes["warnings"] += pair.notes
        if face is not None and not self.ref_fr.needs_gt:  # the ground truth shows the same person
            self._check_identity(scene, face, person, pair, people)
        start = perf_counter()
        estimate = self._estimate_pair(pair, face, person)
        notes["seconds_tokens"] = round(notes.get("seconds_tokens", 0.0) + perf_counter() - start, 3)
        return estimate

    def _estimate_pair(self, pair: FacePair, face: Face | None = None, person: str | None = None) -> FaceEstimate:
        device = next(self.fadex.parameters()).device
        features = self.fadex(pair.restored[None].to(device), pair.degraded[None].to(device))
        tokens = self._tokens(features.to(self.restorer.text.device))
        return FaceEstimate(pair, features.cpu(), tokens, face, person)

    def _tokens(self, features: Tensor | None) -> Tensor:
        batch = 1 if features is None else len(features)
        return self.restorer.tokens(features, batch)[:, : self.options.max_tokens]

    def _check_identity(
        self, scene: Scene, face: Face, person: str | None, pair: FacePair, people: ReferenceGallery
    ) -> None:
        # Stage I may hallucinate: a face that no longer looks like its person gives an imagined degradation.
        references = people.faces(person)
        detector: Any = self.detector
        if not references or not getattr(detector, "identities", False):
            return
        x0, y0, x1, y1 = (int(v) for v in pair.box)
        pasted = scene.image.clone()
        pasted[:, y0:y1, x0:x1] = pair.restored
        detection = Face(face.box, face.score, face.landmarks_5)
        (restored,) = detector.backend.describe(to_array(pasted), [detection], identities=True)
        if restored.identity is None:
            return
        similarity = max(cosine(restored, reference) for reference in references)
        needed = detector.same_threshold - self.options.identity_tolerance
        if similarity < needed:
            raise FaceRestorationError(
                f"what Stage I made of it resembles {person or 'the references'} by {similarity:.3f} only, and "
                f"{needed:.3f} are needed (pipeline.identity_tolerance)"
            )

    def _aggregate(self, face_estimates: Sequence[FaceEstimate]) -> DegradationTokens:
        tokens = torch.cat([one.tokens for one in face_estimates])
        boxes = [one.pair.box for one in face_estimates]
        if self.options.token_aggregation == "nearest":
            centres = tuple(((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in boxes)
            return DegradationTokens(tokens, "pair", centres)
        area = tokens.new_tensor([(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes])
        return DegradationTokens((tokens * (area / area.sum()).view(-1, 1, 1)).sum(0, keepdim=True), "pair")

    def _without_face(
        self, scene: Scene, reason: str, faces: Sequence[Face], notes: dict[str, Any]
    ) -> DegradationEstimate:
        notes["no_pair"], start = reason, perf_counter()
        source, tokens = "null", self._tokens(None)
        patches: tuple[FaceEstimate, ...] = ()
        how = "The learned null tokens stand in for the face's"
        if self.estimator is not None and self.options.fallback in ("auto", "estimated"):
            if (squares := self._textured_patches(scene.image)) is not None:
                features = self.estimator.features(squares.to(self.restorer.text.device))
                source, tokens = "estimated", self._tokens(features).mean(0, keepdim=True)
                how = f"The degradation was estimated from {len(squares)} square(s) of the image alone"
        elif self.options.fallback == "blind" and min(scene.image.shape[-2:]) >= MINIMUM_SIZE:
            patches = self._estimate_blind(scene.image, faces)
            source, tokens = "blind", torch.cat([one.tokens for one in patches]).mean(0, keepdim=True)
            how = f"The degradation was estimated from {len(patches)} square(s) of the image and their own restoration"
        if source != "null":
            notes["seconds_tokens"] = round(perf_counter() - start, 3)
        notes["warnings"].append(f"{how}, because {reason}.")
        return DegradationEstimate(DegradationTokens(tokens, source), tuple(faces), patches, notes)

    def _textured_patches(self, image: Tensor) -> Tensor | None:
        # (P, 3, s, s); None for an image that is too small
        side = min(self.options.max_face_size, ESTIMATED_SIDE, *image.shape[-2:])
        if side < MINIMUM_SIZE:
            return None
        return torch.stack([crop(image, box) for box in select_textured_patches(image, side, 4)])

    def _estimate_blind(self, image: Tensor, faces: Sequence[Face]) -> tuple[FaceEstimate, ...]:
        # Ours, where Stage I is missing: the restorer's own output under null tokens takes the place of Stage I's, on
        # the faces, or without faces on the patches with the most texture. With the tiny weights it gains nothing: on
        # six held-out images of the quickstart 26.15 dB and LPIPS 0.211, the null tokens 26.18 and 0.205, the face
        # pair 26.22 and 0.204. So it is an option and not the default.
        height, width = image.shape[-2:]
        limit = self.options.max_face_size
        boxes = [face_crop_box(face.box, (height, width), limit) for face in faces[:4]]
        estimates = []
        for box in boxes or select_textured_patches(image, min(limit, height, width), 4):
            degraded = crop(image, box)
            null = self._tokens(None)
            restored = self.restore_patch(degraded[None].to(null.device), null)[0].cpu()
            estimates.append(self._estimate_pair(FacePair(restored, degraded, box)))
        return tuple(estimates)


def _log_entry(face: Face, match: FaceMatch) -> dict[str, Any]:
    """A face in the restoration log."""
    row: dict[str, Any] = {
        "box": [round(float(v), 1) for v in face.box],
        "score": round(float(face.score), 3),
        "size": round(float(face.size), 1),
    }
    if match.similarity is not None:
        row |= {"reference": match.reference, "similarity": round(match.similarity, 4), "person": match.person}
    return row


def select_textured_patches(image: Tensor, side: int, count: int) -> list[Box]:
    """Up to `count` squares of `side` pixels that do not overlap, those with the largest gradient energy first.

    Edges show blur, sharpening and compression; flat areas show noise alone, and clipped ones nothing.

    Args:
        image: (3, H, W) in [0, 1], both sides at least `side`.
    """
    grey = image.mean(0, keepdim=True)[None]
    steps = (grey[..., 1:, :-1] - grey[..., :-1, :-1]).square() + (grey[..., :-1, 1:] - grey[..., :-1, :-1]).square()
    steps = F.pad(steps, (0, 1, 0, 1))
    energy = F.avg_pool2d(steps, side, stride=side)[0, 0]  # one value for each square of the grid
    order = torch.argsort(energy.flatten(), descending=True, stable=True)[:count].tolist()
    columns = energy.shape[1]
    return [
        (x * side, y * side, (x + 1) * side, (y + 1) * side) for y, x in (divmod(place, columns) for place in order)
    ]
