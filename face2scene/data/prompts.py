"""Prompts by structure: four sentences, drawn by number, so that prompt N is always prompt N.

The structure follows the paper's data generator (shot and place; view, focus and scene; background, air and
clarity; surface and realism); the wording is ours. Only positive words are used: there is no negative prompt.
"""

from dataclasses import dataclass

import numpy as np

from face2scene.records import Box
from face2scene.runs import seed_from

SHOTS = ("mid-up", "full-body")  # drawn evenly

_SHOT_WORDS = {"mid-up": "A photo from the waist up", "full-body": "A full-length photo"}
_PLACES = (
    "on a riverside path",
    "in a covered market hall",
    "beside a stone bridge",
    "at the edge of a pine forest",
    "in a museum foyer",
    "on a rooftop terrace",
    "in front of a brick bakery",
    "on a wide beach",
    "in a botanical garden",
    "at a tram stop",
)
_FOCUS = (
    "the whole frame is in focus",
    "edges are crisp from front to back",
    "near and far are equally sharp",
    "every leaf and brick is distinct",
    "the background is as clear as the face",
    "fine lines are cleanly drawn",
    "depth of field is very deep",
)
_SCENE = (
    "hills rise behind",
    "water glitters nearby",
    "trees frame the view",
    "clouds drift over the roofs",
)
_OBJECTS = (
    "a row of bicycles",
    "a wooden bench",
    "a tall lamp post",
    "painted shop signs",
    "flower boxes",
    "a parked van",
    "an iron fence",
    "stacked crates",
)
_AIR = (
    "soft morning light",
    "clear air after rain",
    "warm evening sun",
    "an even bright sky",
    "cool shade under trees",
)
_CLARITY = (
    "with clean contrast",
    "with natural colours",
    "without any haze",
    "with well-lit shadows",
    "with plain white balance",
)
_SURFACES = (
    "Cloth, skin and stone keep their grain",
    "Hair and fabric show single threads",
    "Wood, metal and skin look as they feel",
    "Pores, seams and bark can be made out",
)
_REALISM = (
    "an unedited camera picture",
    "true proportions",
    "real lens and real light",
    "ordinary, believable detail",
)


@dataclass(frozen=True)
class Prompt:
    """A prompt and the shot it asks for."""

    text: str
    shot: str  # "mid-up" or "full-body"


def prompt(number: int, *, seed: int = 0, subject: str = "person") -> Prompt:
    """Prompt `number` of the series `seed`, about a `subject` such as man, woman or person."""
    rng = np.random.default_rng(seed_from("prompt", seed, number))

    def some(words: tuple[str, ...], count: int = 1) -> str:
        return ", ".join(words[n] for n in rng.choice(len(words), size=count, replace=False))

    shot = SHOTS[rng.integers(len(SHOTS))]
    return Prompt(
        f"{_SHOT_WORDS[shot]} of a {subject} {some(_PLACES)}. "
        f"Upright frame, straight view, slightly wide lens, {some(_FOCUS, 3)}, and {some(_SCENE)}. "
        f"Behind, {some(_OBJECTS)} in {some(_AIR)}, {some(_CLARITY, 2)}. "
        f"{some(_SURFACES)}: {some(_REALISM, 2)}.",
        shot,
    )


def shot_of(face_box: Box, height: int) -> str:
    """The shot of a picture that no prompt asked for, by the face's share of its height (ours)."""
    share = (face_box[3] - face_box[1]) / height
    return "close-up" if share > 0.45 else "mid-up" if share > 0.15 else "full-body"


def plain_prompt(shot: str) -> str:
    """What can be said of such a picture without inventing anything."""
    words = {"close-up": "A close-up photo", **_SHOT_WORDS}
    return f"{words[shot]} of a person."
