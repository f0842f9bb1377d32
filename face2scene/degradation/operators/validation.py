"""Validation of an operator's fields: each error names the field, the value and what is allowed.

A check is declared once, in the field's type: `sigma: Annotated[float, Number(0, 255)]`. A value that passes is stored
in its plain type, so that 1 and 1.0 are one value, in JSON too.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, NoReturn

from face2scene.degradation.functional.kernels import FAMILIES

Check = Callable[[object, str], None]  # of a field of an owner; raises ValueError


def refuse(owner: object, name: str, allowed: str) -> NoReturn:
    """Raise the ValueError of a field."""
    raise ValueError(f"{type(owner).__name__}.{name} is {getattr(owner, name)!r}: it must be {allowed}.")


@dataclass(frozen=True)
class Number:
    """A number in the closed interval [low, high], not a text or a bool; `whole` takes 2.0 but not 2.5."""

    low: float
    high: float
    whole: bool = False
    odd: bool = False

    def __str__(self) -> str:
        return f"{'whole ' * self.whole}number from {self.low:g} to {self.high:g}"

    def parse(self, value: Any) -> float | None:
        """The value as a plain int (where `whole`) or float; None where it is not allowed."""
        try:
            number = int(value) if self.whole else float(value)
            fits = not isinstance(value, str | bool) and self.low <= number <= self.high
            return number if fits and (not self.whole or number == value) else None
        except (TypeError, ValueError, OverflowError):
            return None

    def __call__(self, owner: object, name: str) -> None:
        number = self.parse(getattr(owner, name))
        if number is None:
            refuse(owner, name, f"a {self}")
        if self.odd and number % 2 == 0:
            refuse(owner, name, f"odd, from {self.low:g} to {self.high:g}")
        object.__setattr__(owner, name, number)


@dataclass(frozen=True)
class Pair:
    """Two numbers in order, both allowed by `each`."""

    each: Number

    def __call__(self, owner: object, name: str) -> None:
        pair = tuple(self.each.parse(value) for value in getattr(owner, name))
        if len(pair) != 2 or pair[0] is None or pair[1] is None or pair[0] > pair[1]:
            kind = f"{'whole ' * self.each.whole}numbers"
            refuse(owner, name, f"two {kind} in order, from {self.each.low:g} to {self.each.high:g}")
        object.__setattr__(owner, name, pair)


@dataclass(frozen=True)
class OneOf:
    """One of the allowed names."""

    allowed: tuple[str, ...]

    def __call__(self, owner: object, name: str) -> None:
        if getattr(owner, name) not in self.allowed:
            refuse(owner, name, f"one of {', '.join(self.allowed)}")


def flag(owner: object, name: str) -> None:
    """True or false; the check of every field whose type is bool."""
    if getattr(owner, name) not in (True, False):
        refuse(owner, name, "true or false")
    object.__setattr__(owner, name, bool(getattr(owner, name)))


@dataclass(frozen=True)
class Checked:
    """Base of dataclasses whose fields are checked as their types declare; a default of None allows None."""

    def __post_init__(self) -> None:
        kind: type = type(self)
        for name, default, check in declared_checks(kind):
            if default is not None or getattr(self, name) is not None:
                check(self, name)


@cache
def declared_checks(kind: Any) -> list[tuple[str, Any, Check]]:
    """Name, default and check of each field of a dataclass that has a check."""
    return [
        (entry.name, entry.default, check)
        for entry in fields(kind)
        for check in ((flag,) if entry.type is bool else getattr(entry.type, "__metadata__", ()))
    ]


def check_shares(option: str, shares: Mapping[str, float], parts_option: str, parts: Mapping[str, Any]) -> None:
    """Refuse shares of a mixture that have other names than its parts, are negative or do not sum to 1."""
    if set(parts) != set(shares):
        raise ValueError(
            f"{option} names {sorted(shares)} and {parts_option} {sorted(parts)}: each of them needs one share."
        )
    if any(share < 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"{option} must be at least 0 and sum to 1, got {dict(shares)}.")


# Our settings: values outside are typing errors, not cameras.
PROBABILITY = SHARE = Number(0, 1)
SIDE = Number(1, 255, whole=True)
ODD_SIDE = Number(1, 255, whole=True, odd=True)
SIGMA_PX = Number(0, 100)
ANGLE = Number(-math.pi, math.pi)
BETA = Number(0.1, 16)
POWER = Number(1, 8)
LENGTH_PX = Number(0, 200)
TREMOR_PX = Number(0, 50)
TURNS = Number(0, 20)
GREY_LEVELS = Number(0, 255)
SHOT_SCALE = Number(0, 20)
GAIN = Number(0.2, 5)
QUALITY = Number(1, 100, whole=True)
ISO = Number(25, 102400)
FAMILY = OneOf(FAMILIES)
