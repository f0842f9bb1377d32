"""Configuration keys that were renamed: an old key is answered with its new name, wherever it comes from."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

RENAMED = {  # old key -> new key; a key stands for all keys below it
    "shipped_probe": "shipped",
    "train.fadex.whiten": "train.fadex.head",
    "data.sources.archives.portion": "data.sources.archives.chunk_size",
    "data.sources.released.portion": "data.sources.released.chunk_size",
}


class RenamedKey(ValueError):
    """A configuration key of an earlier version; the message holds the new one."""


def refuse_renamed(
    overrides: Iterable[str], table: Mapping[str, str] = RENAMED, *, source: str = "the command line"
) -> None:
    """Refuse keys of an earlier version.

    Args:
        overrides: keys, or Hydra's overrides such as `+a.b=1`.
        source: where they come from, for the message.

    Raises:
        RenamedKey: there are some; all of them are listed.
    """
    found = []
    for word in overrides:
        key = word.partition("=")[0].lstrip("+~").partition("@")[0].replace("/", ".")
        found += [f"{old} is now {new}" for old, new in table.items() if f"{key}.".startswith(f"{old}.")]
    if found:
        raise RenamedKey(f"Keys of {source} have other names now: {'; '.join(dict.fromkeys(found))}.")


def keys_of(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys of nested mappings, for `refuse_renamed`."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from keys_of(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
