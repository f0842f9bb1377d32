"""Options that take one of several names."""

from collections.abc import Iterable


def one_of(option: str, value: object, known: Iterable[str]) -> None:
    """Raise the ValueError of an option that is none of the known names.

    A test compares these names with those in the comment of the key `option` in configs/.
    """
    if value not in (names := list(known)):
        raise ValueError(f"{option} must be one of {', '.join(names)}, not {value!r}.")
