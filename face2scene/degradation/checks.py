"""Checks of an operator's fields: each error names the field, the value and what is allowed.

Called from `__post_init__`; a value that passes is stored in its plain type, so that 1 and 1.0 are one value.
"""

MAX_KERNEL = 255  # our setting, like the operators' own limits: beyond them it is a typing error, not a camera


def refuse(owner: object, name: str, allowed: str) -> None:
    raise ValueError(f"{type(owner).__name__}.{name} is {getattr(owner, name)!r}: it must be {allowed}.")


def number(owner: object, name: str, low: float, high: float) -> None:
    allowed = f"a number from {low:g} to {high:g}"
    try:
        value = float(getattr(owner, name))
    except (TypeError, ValueError):
        refuse(owner, name, allowed)
    if not low <= value <= high:
        refuse(owner, name, allowed)
    object.__setattr__(owner, name, value)  # 1 and 1.0 are one value, in JSON too


def whole(owner: object, name: str, low: int, high: int) -> None:
    value = getattr(owner, name)
    try:
        count = int(value)
    except (TypeError, ValueError, OverflowError):
        count = None
    if count is None or isinstance(value, str | bool) or count != value or not low <= count <= high:
        refuse(owner, name, f"a whole number from {low} to {high}")
    object.__setattr__(owner, name, count)


def odd(owner: object, name: str) -> None:
    whole(owner, name, 1, MAX_KERNEL)
    if getattr(owner, name) % 2 == 0:
        refuse(owner, name, f"odd, from 1 to {MAX_KERNEL}")


def flag(owner: object, name: str) -> None:
    if getattr(owner, name) not in (True, False):
        refuse(owner, name, "true or false")
    object.__setattr__(owner, name, bool(getattr(owner, name)))


def one_of(owner: object, name: str, allowed: tuple[str, ...]) -> None:
    if getattr(owner, name) not in allowed:
        refuse(owner, name, f"one of {', '.join(allowed)}")


def absent(owner: object, *names: str) -> None:
    for name in names:
        if getattr(owner, name) is not None:
            refuse(owner, name, f"left out for the family {owner.family!r}")
