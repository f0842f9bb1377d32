"""What the value of a configuration key may be, for words of the command line and for composed configurations.

The kind is that of the key's default in configs/, names to choose from are listed in its comment as `png | jpeg`, and
the tables below have what neither shows. What depends on images or weights is checked where it is used.
"""

import math
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from face2scene.cli.config_text import Key, in_group, options_of

_NUMBER = re.compile(r"[+-]?((\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?|nan|inf)", re.IGNORECASE)
# Patterns of keys, of those whose default is a positive whole number: 0 is allowed too
_FROM_ZERO = (
    *("*seed", "*workers", "*warmup", "*overlap", "*margin", "*retries", "*held_out", "*references"),
    *("*nuisance_images", "*_rank"),
    *("*first_person", "*_people", "*_shots", "*_every", "*timestep", "*_exit", "*weight", "*.min", "*.max", "port"),
    *("*.gpus_per_node", "*min_face", "*min_pixels", "*min_photo_pixels", "*min_variance", "*max_references"),
)
# a fraction is allowed although the default is whole
_FRACTIONS = (
    *("scale", "*.scale", "*timeout*", "*_timeout_s", "burst_seconds", "largest_mb", "*.megabytes", "*.mem_gb"),
    *("*.min", "*.max", "*min_variance", "*min_face", "*min_pixels", "*min_photo_pixels", "*weight", "*.files.*"),
    *("*lora_alpha", "*score_reduction", "*guidance", "*prob", "*prob2", "*share", "*.shares.*"),
)
# (lowest, highest); a lowest of None is above 0
_RANGES: dict[str, tuple[float | None, float]] = {
    **dict.fromkeys(("train.restorer.lr", "train.restorer.tokens_lr"), (0, math.inf)),  # 0 keeps those weights
    **dict.fromkeys(("*share", "*.shares.*", "*_prob", "*_prob2", "*dropout", "*.keep", "*.fidelity"), (0, 1)),
    **dict.fromkeys(("*.ema", "*momentum", "*score_threshold", "*min_score", "*retry_score", "*.drift"), (0, 1)),
    **dict.fromkeys(("*threshold", "*same_person"), (-1, 1)),
    "*tolerance": (0, 2),
    **dict.fromkeys(
        ("*lr", "*temperature", "*brightness", "scale", "largest_mb", "*timeout", "*timeout_s"), (None, math.inf)
    ),
    "*timestep": (0, 999),
    "port": (0, math.inf),  # what the system allows is said by it
    "*seed": (0, 2**32 - 1),  # as numpy allows
    "*workers": (0, 1024),  # each is a process
    "guidance": (0, math.inf),
}
_POSITIVE_LISTS = ("*sizes", "*grids", "*widths", "*strides", "*channels", "*blocks", "*levels")
# keys whose default is null in some file, and which are whole numbers from 1 on
_COUNTS = (
    *("limit", "*.max_tokens", "*.accumulate", "*.effective_batch", "*.probe_crop", "*.max_side", "data.size"),
    *("data.reference_size", "*.max_face_size", "*.crop", "*.batch"),
)


def problem(key: str, value: Any, entry: Key) -> str:
    """One sentence on a value that a key cannot have; empty if it can.

    Args:
        value: as the configuration holds it, a text as YAML reads it.
        entry: of the key.
    """
    default, comment = entry
    if (value == default and type(value) is type(default)) or _is_reference(default) or _is_reference(value):
        return ""
    text = _text(value)
    names = choices(comment)
    before_colon = "" if value is None else "(?=:| is )"  # such as `auto: by the memory`
    said = rf"(?<![\w-]){re.escape(text)}{before_colon}(?![\w-])"
    if (value == [] and "[]" in comment) or (isinstance(value, str | None) and not names and re.search(said, comment)):
        return ""
    kind = _kind(key, value, default, names)
    if not kind and not isinstance(default, str):
        return ""
    others = [
        other for other in in_group(key) if not _is_reference(other.default)
    ]  # what another file of the group has is no mistake
    names = names or next((found for other in others if (found := choices(other.comment))), [])
    kind = kind or _kind(key, value, default, names)
    if value is None:
        fits = any(other.default is None for other in others)
    else:
        fits = any(not _kind(key, value, other.default, names) for other in others if other.default is not None)
    return f"{key} is {kind}, and {text!r} was given." if kind and not fits else ""


def problems(values: Mapping[str, Any], known: Mapping[str, Key]) -> list[str]:
    """The sentences on a whole configuration.

    Args:
        values: nested, without interpolations resolved.
        known: its keys, dotted.
    """
    found = []
    for key, entry in known.items():
        value: Any = values
        for part in key.split("."):
            value = value.get(part, entry.default) if isinstance(value, Mapping) else entry.default
        if not isinstance(entry.default, Mapping) and (sentence := problem(key, value, entry)):
            found.append(sentence)
    return found


def parsed(text: str) -> Any:
    """A word's value: null, true or false, a number, or the text without its quotes."""
    plain = {"null": None, "true": True, "false": False}
    if text.lower() in plain:
        return plain[text.lower()]
    if not _NUMBER.fullmatch(text):
        return text.strip("'\"")
    return int(text) if re.fullmatch(r"[+-]?[\d_]+", text) else float(text)


def choices(comment: str) -> list[str]:
    """The names that a comment lists, as in `png | jpeg (smaller) | same`; empty where it lists none."""
    parts = re.sub(r"\(.*?\)", "", comment).partition(";")[0].split(" | ")
    words = [re.match(r"[\w.-]*", part.rpartition(": ")[2].strip()) for part in parts]
    return [word[0].rstrip(".") for word in words if word] if len(parts) > 1 else []


def nearest(word: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """The nearest of the known names, or an empty string."""
    return next(iter(get_close_matches(word, list(known), 1, likeness)), "")


def did_you_mean(name: str) -> str:
    """The end of a sentence that suggests a name; empty for an empty one."""
    return f" (did you mean {name}?)" if name else ""


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and (value == "???" or "${" in value)


def _kind(key: str, value: Any, default: Any, names: list[str]) -> str:
    """What the key is, where the value is something else."""
    if isinstance(default, Mapping):
        fits = options_of(key) or isinstance(value, Mapping) or (value is None and "." in key)
        return "" if fits else "a group of keys"
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, list):
        return _list_kind(key, value, default)
    if isinstance(value, Mapping | list):
        if value == [] and _any(key, _COUNTS):
            return "a value, or a list with an entry at least"
        return "one number" if isinstance(default, int | float) else ""
    if isinstance(default, int | float) or (_any(key, _COUNTS) and value is not None):
        return _number_kind(key, value, 1 if default is None else default)
    if isinstance(default, str | None) and isinstance(value, int | float) and _range(key):
        return _number_kind(key, value, 0.0)
    if not names and value is None and isinstance(default, str):
        return "a text"
    if not names or _text(value) in names:
        return ""
    return f"one of {', '.join(names)}{did_you_mean(nearest(_text(value), names))}"


def _list_kind(key: str, value: Any, default: list[Any]) -> str:
    if not isinstance(value, list):
        given = "null" if value is None else value
        return f"a list, such as {key}=[{given}]"
    kinds = {type(item) for item in default}
    if default and not value:
        return "a list with an entry at least"
    if kinds and kinds <= {int, float}:
        if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in value):
            return "a list of numbers"
        if _any(key, _POSITIVE_LISTS) and min(value) < 1:
            return "a list of whole numbers from 1 on"
    return "a list of whole numbers" if kinds == {int} and any(isinstance(v, float) and v % 1 for v in value) else ""


def _number_kind(key: str, value: Any, default: float) -> str:
    whole = isinstance(default, int) and not _any(key, _FRACTIONS)
    low, high = _range(key) or (
        (1 if isinstance(default, int) and default > 0 and not _any(key, _FROM_ZERO) else 0)
        if default >= 0
        else -math.inf,
        math.inf,
    )
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if number and (not whole or value == int(value)) and (value > 0 if low is None else value >= low) and value <= high:
        return ""
    kind = "a whole number" if whole else "a number"
    if high < math.inf:
        return f"{kind} {f'from {low}' if low is not None else 'above 0'} to {high}"
    return f"{kind} above 0" if low is None else f"{kind} from {low:g} on" if low > -math.inf else kind


def _any(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _range(key: str) -> tuple[float | None, float] | None:
    return next((found for pattern, found in _RANGES.items() if fnmatchcase(key, pattern)), None)
