"""Prompts of four sentences, drawn by number, so that prompt N is always the same.

The structure follows the paper's data generator (shot and place; view, focus and scene; background, air and
clarity; surface and realism); the wording is ours. Only positive words are used: there is no negative prompt.
The phrases are in scene packs, YAML files that users can add to.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from face2scene.common.files import sha256_of
from face2scene.common.reproducibility import seed_from
from face2scene.common.types import Box

SHOTS = ("mid-up", "full-body")  # drawn evenly
PACKS = Path(__file__).parent / "packs"

_SHOT_WORDS = {"mid-up": "A photo from the waist up", "full-body": "A full-length photo"}
# List of a pack to the number of its phrases in a prompt.
_DRAWN = {"places": 1, "focus": 4, "scenes": 1, "objects": 1, "air": 1, "clarity": 2, "surfaces": 1, "realism": 2}


class Prompt(NamedTuple):
    """A prompt and the shot it asks for."""

    text: str
    shot: str  # "mid-up" or "full-body"


class Prompts:
    """An endless series of prompts, given by its packs and seed.

    Phrases mix freely between packs, as in the paper's generator. A pack's `weight` is the relative frequency of its
    phrases.

    Args:
        packs: YAML files, or folders of them, besides those of the package. Another list gives another series.
        own: also take the packs of the package.
        seed: of the series.

    Raises:
        FileNotFoundError, ValueError: at the first prompt, for a pack that is missing or malformed.
    """

    def __init__(self, packs: Sequence[str | Path] = (), *, own: bool = True, seed: int = 0):
        self.packs = [*([PACKS] if own else []), *map(Path, packs)]
        self.seed = seed

    @cached_property
    def files(self) -> list[Path]:
        """The pack files, in order."""
        found: list[Path] = []
        for place in self.packs:
            here = sorted(place.glob("*.yaml")) if place.is_dir() else [place] if place.is_file() else []
            if not here:
                raise FileNotFoundError(f"There is no scene pack at {place} (option packs: YAML files or folders).")
            found += here
        return found

    def listing(self) -> list[list[str]]:
        """Names and checksums of the packs, for a build's settings."""
        return [[path.name, sha256_of(path)] for path in self.files]

    @cached_property
    def _words(self) -> dict[str, tuple[list[str], np.ndarray]]:
        pooled: dict[str, list[tuple[str, float]]] = {name: [] for name in _DRAWN}
        for path in self.files:
            pack = _read_pack(path)
            for name in _DRAWN:
                known = {phrase for phrase, _ in pooled[name]}
                pooled[name] += [(p, pack["weight"]) for p in dict.fromkeys(pack.get(name, ())) if p not in known]
        for name, count in _DRAWN.items():
            if len(pooled[name]) < count:
                raise ValueError(f"The scene packs hold {len(pooled[name])} phrases of {name!r}; {count} are needed.")
        return {
            name: ([phrase for phrase, _ in pairs], np.array([weight for _, weight in pairs], float))
            for name, pairs in pooled.items()
        }

    def __call__(self, number: int, *, subject: str = "person") -> Prompt:
        """Prompt `number`, about a `subject` such as man, woman or person."""
        rng = np.random.default_rng(seed_from("prompt", self.seed, number))
        shot = SHOTS[rng.integers(len(SHOTS))]
        some = {name: self._some(rng, name, count) for name, count in _DRAWN.items()}
        return Prompt(
            f"{_SHOT_WORDS[shot]} of a {subject} {some['places']}. "
            f"Upright frame, straight view, slightly wide lens, {some['focus']}, and {some['scenes']}. "
            f"Behind, {some['objects']} in {some['air']}, {some['clarity']}. "
            f"{some['surfaces']}: {some['realism']}.",
            shot,
        )

    def _some(self, rng: np.random.Generator, name: str, count: int) -> str:
        words, weights = self._words[name]
        chosen = rng.choice(len(words), size=count, replace=False, p=weights / weights.sum())
        return ", ".join(words[n] for n in chosen)


def _read_pack(path: Path) -> dict[str, Any]:
    try:
        pack = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"The scene pack {path} is not YAML ({error}).") from error
    if not isinstance(pack, dict) or (unknown := sorted(pack.keys() - {"weight", *_DRAWN})):
        what = f"has unknown lists {unknown}" if isinstance(pack, dict) else "is not a mapping"
        raise ValueError(f"The scene pack {path} {what}: it may hold a weight and {', '.join(_DRAWN)}.")
    pack.setdefault("weight", 1)
    if not isinstance(pack["weight"], int | float) or pack["weight"] <= 0:
        raise ValueError(f"The scene pack {path}: its weight must be a number above 0, not {pack['weight']!r}.")
    for name in _DRAWN:
        if not all(isinstance(phrase, str) and phrase.strip() for phrase in pack.get(name) or ()):
            raise ValueError(f"The scene pack {path}: {name} must be a list of phrases.")
    return pack


def subjects(path: str | Path | None) -> dict[str, str]:
    """Identity to man, woman or person, from a YAML or JSON map; nothing for None.

    Raises:
        ValueError: the file is not such a map.
    """
    if path is None:
        return {}
    known = yaml.safe_load(Path(path).read_text(encoding="utf-8"))  # JSON is YAML
    if not isinstance(known, dict):
        raise ValueError(f"{path} must map identities to man, woman or person (option gender_map).")
    # An identity such as 00012 is a number to YAML unless quoted, and 00012 would be octal.
    if numbers := [key for key in known if not isinstance(key, str)]:
        raise ValueError(f"{path}: quote the identities, {numbers[0]!r} was read as a number (option gender_map).")
    if wrong := sorted({str(v) for v in known.values()} - {"man", "woman", "person"}):
        raise ValueError(f"{path} holds {wrong}; allowed are man, woman and person (option gender_map).")
    return known


def shot_of(face_box: Box, height: int) -> str:
    """The shot of a photo, by the face's share of the image height (ours)."""
    share = (face_box[3] - face_box[1]) / height
    return "close-up" if share > 0.45 else "mid-up" if share > 0.15 else "full-body"


def plain_prompt(shot: str) -> str:
    """The prompt of a photo without a caption."""
    words = {"close-up": "A close-up photo", **_SHOT_WORDS}
    return f"{words[shot]} of a person."
