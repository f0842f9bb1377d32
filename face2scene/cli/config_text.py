"""The configuration's files as text: every key with its default and its comment, read without Hydra or torch."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from face2scene.common.shipped import CONFIGS

_KEY = re.compile(r"(?P<indent> *)(?P<key>[\w-]+):(?:\s(?P<rest>.*))?")
_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Key(NamedTuple):
    """A key of the configuration, as its file has it."""

    default: Any  # interpolations are not resolved
    comment: str


class Layer(NamedTuple):
    """A file of a configuration."""

    package: str  # the key that its keys lie below; empty for the root's own files
    path: Path


def key_of(word: str) -> str:
    """The key or group of an override such as `+faces@other=open`."""
    return word.lstrip("+~").partition("=")[0].partition("@")[0]


def options_of(group: str) -> list[str]:
    """The files of a group's folder; empty if there is no such group."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml")) if group else []


def variants(sweep: str) -> dict[str, Any]:
    """The variants of a file of configs/sweep: label -> row."""
    return _read(CONFIGS / "sweep" / f"{sweep}.yaml")["variants"]


def layers(root: str, words: Sequence[str] = ()) -> list[Layer]:
    """The files that a root's configuration is made of; of one key, the last file decides.

    Args:
        words: of the command line; `GROUP=OPTION` among them chooses another file of a group.
    """
    given = dict(word.split("=", 1) for word in words if "=" in word)
    roots = list(_chain(root))
    chosen = _choices(roots)
    experiment = f"{given.get('experiment', chosen.get('experiment'))}.yaml"
    extra = [CONFIGS / "experiment" / folder / experiment for folder in ("", root)]
    roots += (extra := [path for path in extra if path.is_file()])
    chosen |= _choices(extra) | {group: option for group, option in given.items() if options_of(group)}
    groups = (item for group, option in chosen.items() if group != "experiment" for item in _group(group, option))
    return [*groups, *(Layer("", path) for path in roots)]


def keys(root: str, words: Sequence[str] = ()) -> dict[str, Key]:
    """Every key of a root's configuration, dotted, and its groups; see `layers`."""
    found: dict[str, Key] = {}
    for package, path in layers(root, words):
        prefix = f"{package}." if package else ""
        for key, entry in _entries(path).items():
            found[prefix + key] = (
                entry if entry.comment else found.get(prefix + key, entry)._replace(default=entry.default)
            )
    return found | {group: Key(option, "") for group, option in _choices(_chain(root)).items()}


def in_group(key: str) -> list[Key]:
    """A key as each file of its group has it; empty for a key that lies in no group."""
    group, _, below = key.partition(".")
    files = [_entries(CONFIGS / group / f"{option}.yaml") for option in options_of(group)]
    return [entries[below] for entries in files if below in entries]


@cache
def _entries(path: Path) -> dict[str, Key]:
    comments = _comments(path.read_text(encoding="utf-8"))
    return {key: Key(value, comments.get(key, "")) for key, value in _flat(_read(path))}


def _read(path: Path) -> dict[str, Any]:
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=_SafeLoader) or {}
    return {key: value for key, value in content.items() if key not in ("hydra", "defaults")}


def _defaults(path: Path) -> list[Any]:
    return (yaml.load(path.read_text(encoding="utf-8"), Loader=_SafeLoader) or {}).get("defaults", [])


def _chain(root: str) -> Iterator[Path]:
    path = CONFIGS / f"{root}.yaml"
    for item in _defaults(path):
        if isinstance(item, str) and item != "_self_":
            yield from _chain(item)
    yield path


def _choices(paths: Iterable[Path]) -> dict[str, str]:
    pairs = [pair for path in paths for item in _defaults(path) if isinstance(item, Mapping) for pair in item.items()]
    plain = ((group.removeprefix("override ").lstrip("/"), option) for group, option in pairs)
    return {group: str(option or "null") for group, option in plain if options_of(group)}


def _group(group: str, option: str, package: str = "") -> Iterator[Layer]:
    path = CONFIGS / group / f"{option}.yaml"
    if not path.is_file():
        return
    package = package or group
    for item in _defaults(path):
        if isinstance(item, str) and item != "_self_":
            parent, _, below = item.partition("@")
            yield from _group(group, parent, f"{package}.{below}" if below else package)
    yield Layer(package, path)


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")


def _comments(text: str) -> dict[str, str]:
    """The comment behind each key's value, else the lines of comment above the key."""
    found: dict[str, str] = {}
    place: list[tuple[int, str]] = []
    above: list[str] = []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            above.append(line.lstrip(" #"))
            continue
        if match := _KEY.fullmatch(line):
            indent = len(match["indent"])
            place = [*(item for item in place if item[0] < indent), (indent, match["key"])]
            behind = (f" {match['rest'] or ''}").partition(" # ")[2]
            found[".".join(key for _, key in place)] = behind.strip() or " ".join(above)
        above = []
    return found
