"""Whether FaDeX's embedding holds the degradation, all of it, and nothing else (supplement 2.4).

Five measurements, each compared with chance or with the paper: cosines between images of one degradation and of
several (the paper's experiment); retrieval of one operator among a hundred; linear probes of blur, noise, JPEG quality
and scale; retrieval of the image and of the person, which should fail; and the same for other restored faces.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from face2scene.common.files import write_json
from face2scene.common.reproducibility import seed_from
from face2scene.degradation import PRESETS, Recipe
from face2scene.eval.probe.faces import ProbeFace, faces_of_photos, faces_of_set
from face2scene.eval.probe.report import write_report
from face2scene.models.fadex import FaDeX, LinearProbe, compare, nuisance_retrieval, retrieval

log = logging.getLogger(__name__)
_BATCH = 12  # crops embedded together


@dataclass(frozen=True, kw_only=True)
class FaDeXProbe:
    """The probe with its settings; called with the folder to write to."""

    weights: str | Path  # of the encoder
    against: Mapping[str, str | Path | None] = field(default_factory=dict)  # other encoders by name; null is skipped
    data: str | Path  # a built set
    split: str = "val"  # the part of it that no encoder was trained on
    fit_split: str = "train"  # whose images the linear probes are fitted on; people of `split` are not in it
    photos: str | Path | None = None  # a folder of photos in place of the set, which count as clean
    detector: Any = None  # finds the faces of `photos`
    restorer: Any  # takes the part of Stage I in every measurement but the comparison of restorers
    restorers: Mapping[str, Any] = field(default_factory=dict)  # the compared restorers by name
    space: Any  # of the operators for retrieval and linear probes
    wide: Any  # that of the training; the linear probes fitted on it are written to readout.safetensors
    images: int = 10  # for the retrieval
    operators: int = 100  # for the retrieval
    wide_operators: int = 40  # of `wide` that its linear probes are tested on
    fit_operators: int = 400  # that linear probes are fitted on, none of them among those tested
    # Largest side of the crops that they are fitted on; small, so that many operators are affordable, without which
    # the linear probes are no better than the mean.
    fit_crop: int = 128
    restorer_operators: int = 24  # for the comparison of restorers, in addition to the presets
    nuisance_images: int = 24  # for the retrieval of image and person, several of one person among them
    crop: int = 192  # largest side of a face crop in pixels; smaller faces keep their size
    margin: int = 32  # pixels around it that are degraded too and cropped afterwards
    seed: int = 0  # of every draw

    def __call__(self, folder: Path) -> dict[str, Any]:
        """Measure, and write probe.json, probe.csv, images/probe.png and readout.safetensors into `folder`.

        Raises:
            FileNotFoundError: weights, set or photos are missing.
            ValueError: too few images or operators, or a file of another kind.
        """
        encoders = {"pair": FaDeX.from_file(self.weights)}
        encoders |= {name: FaDeX.from_file(path) for name, path in self.against.items() if path}
        faces, left_out = self._faces(max(self.images, self.nuisance_images))
        counts = {name: getattr(self, name) for name in ("operators", "wide_operators", "fit_operators")}
        if len(faces) < 2 or min(counts.values()) < 2:
            given = ", ".join(f"probe.{name}={count}" for name, count in counts.items())
            raise ValueError(
                f"The probe compares two images and two operators at least, got {len(faces)} images and {given}: "
                "see also probe.images and probe.data."
            )
        probed = faces[: self.images]
        presets, drawn = list(PRESETS.values()), self._draw(self.space, self.operators, "operators")

        main = {"main": self.restorer}
        embedded = self._embed(probed, presets + drawn, encoders, main)
        rest = self._embed(faces[len(probed) :], presets, encoders, main)
        fits = {name: self._fit(encoders, space, name) for name, space in (("paper", self.space), ("wide", self.wide))}
        wide = self._draw(self.wide, self.wide_operators, "wide operators")
        wide_embedded = self._embed(probed, wide, encoders, main)

        answers = {}
        for name in encoders:
            own = embedded[name, "main"]
            cosines = compare(own[: len(presets)], list(PRESETS))
            everybody = torch.cat([own[: len(presets)], rest[name, "main"]], dim=1)
            answers[name] = {
                **cosines,
                **retrieval(own[len(presets) :]),
                "linear": _linear(fits["paper"][name], own[len(presets) :], drawn),
                "linear_wide": _linear(fits["wide"][name], wide_embedded[name, "main"], wide),
                "leakage": nuisance_retrieval(everybody, [face.identity for face in faces]),
            }
        found = answers["pair"] | {
            "pictures": len(probed),
            "people": len({face.identity for face in probed}),
            "leak_pictures": len(faces),
            "leak_people": len({face.identity for face in faces}),
            "against": {name: answers[name] for name in encoders if name != "pair"},
            "restorers": self._restorers(encoders["pair"], probed, presets, drawn),
            "left_out": [{"name": name, "reason": reason} for name, reason in left_out],
            "names": [face.name for face in probed],
            "protocol": self._protocol(probed),
        }
        readout: LinearProbe = fits["wide"]["pair"]
        readout.save(folder / "readout.safetensors", about={"weights": Path(self.weights).name})
        write_json(folder / "probe.json", found)
        write_report(folder, found, embedded["pair", "main"][: len(presets)])
        return found

    def _faces(self, count: int) -> tuple[list[ProbeFace], list[tuple[str, str]]]:
        size = {"crop": self.crop, "margin": self.margin, "count": count}
        if self.photos is not None:
            return faces_of_photos(self.photos, self.detector, **size)
        return faces_of_set(self.data, self.split, **size), []

    def _draw(self, space: Any, count: int, what: str) -> list[Recipe]:
        rng = np.random.default_rng(seed_from(self.seed, "probe", what))
        return [space.draw(rng) for _ in range(count)]

    def _fit(self, encoders: Mapping[str, FaDeX], space: Any, what: str) -> dict[str, LinearProbe]:
        """Linear probes by encoder, fitted on other operators and images than they are tested on."""
        size = {"crop": min(self.fit_crop, self.crop), "margin": self.margin, "count": 64}
        # Of a folder of photos the same images are used, with other operators.
        own_photos = self.photos is not None
        faces = self._faces(self.images)[0] if own_photos else faces_of_set(self.data, self.fit_split, **size)
        drawn = self._draw(space, self.fit_operators, f"fit {what}")
        shares = [drawn[number :: len(faces)] for number in range(len(faces))]  # each operator on one image
        rows: dict[str, list[Tensor]] = {name: [] for name in encoders}
        for face, recipes in zip(faces, shares, strict=True):
            if recipes:
                for (name, _), values in self._embed([face], recipes, encoders, {"main": self.restorer}).items():
                    rows[name].append(values[:, 0])
        order = [recipe for recipes in shares for recipe in recipes]
        return {name: LinearProbe.fitted(torch.cat(parts), order) for name, parts in rows.items()}

    def _restorers(
        self, encoder: FaDeX, faces: Sequence[ProbeFace], presets: list[Recipe], drawn: list[Recipe]
    ) -> dict[str, dict[str, float]]:
        if not self.restorers:
            return {}
        recipes = presets + drawn[: self.restorer_operators]
        embedded = self._embed(faces, recipes, {"pair": encoder}, self.restorers)
        rows = {}
        for name in self.restorers:
            own = embedded["pair", name]
            cosines = compare(own[: len(presets)], list(PRESETS))
            means = {key: cosines[key] for key in ("same_mean", "different_mean")}
            rows[name] = means | retrieval(own[len(presets) :])
        return rows

    @torch.no_grad()
    def _embed(
        self,
        faces: Sequence[ProbeFace],
        recipes: Sequence[Recipe],
        encoders: Mapping[str, FaDeX],
        restorers: Mapping[str, Any],
    ) -> dict[tuple[str, str], Tensor]:
        """(O, P, D) for every encoder and restorer; [o, p] is face p under recipe o, with its own noise."""
        rows: dict[tuple[str, str], list[Tensor]] = {(e, r): [] for e in encoders for r in restorers}
        for face in tqdm(faces, desc=f"{len(recipes)} operators", unit="face", leave=False, disable=len(faces) < 2):
            column: dict[tuple[str, str], list[Tensor]] = {key: [] for key in rows}
            for first in range(0, len(recipes), _BATCH):
                made = [self._degraded(face, recipe, restorers) for recipe in recipes[first : first + _BATCH]]
                degraded = torch.stack([pair[0] for pair in made])
                for restorer in restorers:
                    restored = torch.stack([pair[1][restorer] for pair in made])
                    for name, encoder in encoders.items():
                        column[name, restorer].append(encoder.embed(encoder(restored, degraded)))
            for key, parts in column.items():
                rows[key].append(torch.cat(parts))
        width = {name: encoder.config["embedding"] for name, encoder in encoders.items()}
        return {
            key: torch.stack(parts, dim=1) if parts else torch.zeros(len(recipes), 0, width[key[0]])
            for key, parts in rows.items()
        }

    def _degraded(self, face: ProbeFace, recipe: Recipe, restorers: Mapping[str, Any]) -> tuple[Tensor, dict]:
        """A face crop under a recipe, and its restorations by name; all (3, side, side)."""
        noisy = recipe.with_noise_seed(seed_from(self.seed, "noise", face.name, recipe.key)).apply(face.gt)
        gt, degraded = (image[(slice(None), *face.inner)] for image in (face.gt, noisy))
        restored = {}
        for name, restorer in restorers.items():
            rng = np.random.default_rng(seed_from(self.seed, "restored", face.name, recipe.key, name))
            restored[name] = restorer.restore(degraded, (), gt=gt, rng=rng)
        return degraded, restored

    def _protocol(self, faces: Sequence[ProbeFace]) -> dict[str, Any]:
        sides = sorted(face.inner[0].stop - face.inner[0].start for face in faces)
        return {
            "weights": str(self.weights),
            "pictures_from": str(self.photos if self.photos is not None else f"{self.data} ({self.split})"),
            "restorer": getattr(self.restorer, "name", type(self.restorer).__name__),
            "crop_sides": [sides[0], sides[-1]],
            "operators": self.operators,
            "fit_operators": self.fit_operators,
            "fit_crop": min(self.fit_crop, self.crop),
            "restorer_operators": self.restorer_operators,
            "seed": self.seed,
        }


def _linear(readout: LinearProbe, embeddings: Tensor, recipes: Sequence[Recipe]) -> dict[str, float]:
    operators, images, width = embeddings.shape
    repeated = [recipe for recipe in recipes for _ in range(images)]
    return readout.r_squared(embeddings.reshape(operators * images, width), repeated)
