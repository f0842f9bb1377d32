"""Checks of an operator's fields: each error names the field, the value and what is allowed.

A check is declared once, in the field's type: `sigma: Annotated[float, Number(0, 255)]`. A value that passes is stored
in its plain type, so that 1 and 1.0 are one value, in JSON too.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from face2scene.degradation.functional.kernels import FAMILIES

Check = Callable[[object, str], None]  # of a field of an owner; raises ValueError


def refuse(owner: object, name: str, allowed: str) -> None:
    """Raise the ValueError of a field."""
    raise ValueError(f"{type(owner).__name__}.{name} is {getattr(owner, name)!r}: it must be {allowed}.")


@dataclass(frozen=True)
class Number:
    """A number within closed limits; `whole` takes 2.0 and not 2.5, no text and no ground truth value."""

    low: float
    high: float
    whole: bool = False

    def __call__(self, owner: object, name: str) -> None:
        value = getattr(owner, name)
        try:
            number = int(value) if self.whole else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        fits = self.low <= number <= self.high
        if not fits or (self.whole and (isinstance(value, str | bool) or number != value)):
            refuse(owner, name, f"a {'whole ' * self.whole}number from {self.low:g} to {self.high:g}")
        object.__setattr__(owner, name, number)


@dataclass(frozen=True)
class Probability:
    """A number from 0 to 1, no text and no ground truth value."""

    def __call__(self, owner: object, name: str) -> None:
        value = getattr(owner, name)
        if isinstance(value, str | bool) or not 0 <= value <= 1:
            refuse(owner, name, "a number from 0 to 1")
        object.__setattr__(owner, name, float(value))


@dataclass(frozen=True)
class Pair:
    """Two numbers in order, both within the limits of one."""

    each: Number

    def __call__(self, owner: object, name: str) -> None:
        kind, low, high = int if self.each.whole else float, self.each.low, self.each.high
        pair = tuple(getattr(owner, name))
        object.__setattr__(owner, name, pair)  # configs give lists
        if len(pair) != 2 or not low <= pair[0] <= pair[1] <= high or any(kind(v) != v for v in pair):
            refuse(owner, name, f"two {'whole ' * self.each.whole}numbers in order, from {low:g} to {high:g}")
        object.__setattr__(owner, name, (kind(pair[0]), kind(pair[1])))


@dataclass(frozen=True)
class Odd:
    """A side of a kernel."""

    side: Number

    def __call__(self, owner: object, name: str) -> None:
        self.side(owner, name)
        if getattr(owner, name) % 2 == 0:
            refuse(owner, name, f"odd, from {self.side.low} to {self.side.high}")


@dataclass(frozen=True)
class OneOf:
    """One of some names."""

    allowed: tuple[str, ...]

    def __call__(self, owner: object, name: str) -> None:
        if getattr(owner, name) not in self.allowed:
            refuse(owner, name, f"one of {', '.join(self.allowed)}")


def flag(owner: object, name: str) -> None:
    """True or false; every field whose type is bool is checked so."""
    if getattr(owner, name) not in (True, False):
        refuse(owner, name, "true or false")
    object.__setattr__(owner, name, bool(getattr(owner, name)))


class Checked:
    """Base of dataclasses whose fields are checked as their types say; a field that is None by default may be None."""

    def __post_init__(self) -> None:
        for name, default, check in declared(type(self)):
            if default is not None or getattr(self, name) is not None:
                check(self, name)


@lru_cache
def declared(kind: type) -> list[tuple[str, Any, Check]]:
    """Name, default and check of each field that has a check."""
    found = []
    for entry in fields(kind):
        checks = (flag,) if entry.type is bool else getattr(entry.type, "__metadata__", ())
        found += [(entry.name, entry.default, check) for check in checks]
    return found


# Our settings: beyond them it is a typing error and no camera.
SIDE = Number(1, 255, whole=True)
ODD_SIDE = Odd(SIDE)
SIGMA_PX = Number(0, 100)
ANGLE = Number(-math.pi, math.pi)
BETA = Number(0.1, 16)
SHARE = Number(0, 1)
POWER = Number(1, 8)
LENGTH_PX = Number(0, 200)
TREMOR_PX = Number(0, 50)
TURNS = Number(0, 20)
GREY_LEVELS = Number(0, 255)
SHOT_SCALE = Number(0, 20)
GAIN = Number(0.2, 5)
QUALITY = Number(1, 100, whole=True)
FAMILY = OneOf(FAMILIES)
