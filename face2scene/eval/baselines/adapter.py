"""Descriptions of external programs: how each is started, the files it reads, the files it writes.

An adapter is data (configs/baseline/*.yaml); no code of another project is here.
"""

import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from string import Formatter
from typing import Any

from face2scene.assets.catalogue import weights_root
from face2scene.ref_fr.external_programs import LAYOUTS

FIELDS = ("python", "input", "output", "references", "scale", "seed", "scratch", "checkout", "stem", "side")
_CHOICES = {
    "kind": ("command", "method", "pipeline"),
    "sizes": ("any", "x4", "same", "face"),
    "layout": LAYOUTS,
    "other_sizes": ("refuse", "resize"),
}


class AdapterError(ValueError):
    """An adapter with an impossible value, or a program that is not installed; the message names the key."""


@dataclass(frozen=True)
class Need:
    """A file or folder that the program reads."""

    # Below the checkout, absolute, below ~, or with {options}; hub:OWNER/NAME is in the hub's cache, where the program
    # looks for it by itself; asset:NAME is an asset of this project (`face2scene fetch`).
    path: str
    source: str  # where to get it, in words
    licence: str = "unknown"
    sha256: str | None = None  # of a file, where it is known; a warning is given for another one


@dataclass(frozen=True)
class Adapter:
    """One system of the comparison."""

    title: str  # its row's name in the paper's tables
    # `command` starts a program; `method` is a callable, `pipeline` is scripts/restore.py, both in this process.
    kind: str = "command"
    # `any` runs at scale 1 on images of full size and at 4 on quarters; `x4` has scale 4 alone, so that images of full
    # size are reduced by 4 for it; `same` has scale 1 alone, so that quarters are enlarged for it; `face` needs squares
    # of 512 pixels that show one face.
    sizes: str = "any"
    repository: str = ""
    commit: str | None = None  # of the checkout from which its options were taken; another one gives a warning
    licence: str = "unknown"
    environment: str = ""  # in words
    python: str = "python"  # interpreter of its environment
    checkout: str | None = None  # its repository on this machine
    folder: str = "."  # below the checkout, where it is started
    command: str = ""  # split as a shell would but run without one; its fields are `FIELDS` and those of `options`
    options: Mapping[str, str] = field(default_factory=dict)  # further fields, such as the folder of a base model
    # Name -> text, written to {scratch} before a launch, once for each image where {stem} is in the name; with the same
    # fields, and braces doubled.
    files: Mapping[str, str] = field(default_factory=dict)
    output: str = "{stem}.png"  # path of an image below {output}; it may hold * where that names one file
    multiple: int = 1  # staged sides are padded to multiples of this, and the result is cropped
    other_sizes: str = "refuse"  # or `resize` with a note: results of another size than expected
    layout: str = "flat"  # {input}/NAME.png; `identity`: {input}/NAME/degraded.png with gt.png and conditioning/
    per_identity: bool = False  # one launch for each person, whose references (at least one) are in {references}
    per_image: bool = False  # one launch for each image, whose {stem} and {side} (the result's shorter) are known then
    references: int = 0  # so many are staged, repeated when there are fewer; 0 stages all
    # Of the environment, in addition to CUDA_VISIBLE_DEVICES and the hub's offline switch.
    variables: Mapping[str, str] = field(default_factory=dict)
    weights: Sequence[Need] = ()
    seedable: bool = True  # whether {seed} fixes its result
    trust_exit: bool = False  # whether a bad exit code makes all images of a launch bad
    settings: Mapping[str, Any] = field(default_factory=dict)  # that decide the numbers, such as steps, for the record
    notes: Sequence[str] = ()  # known problems, shown by a dry run
    tried: str = "never run here"  # which part of this has been run
    method: Any = None  # the callable of kind `method`
    pipeline: Mapping[str, str] = field(default_factory=dict)  # of kind `pipeline`: overrides of the configuration

    def __post_init__(self) -> None:
        for key, allowed in _CHOICES.items():
            if (value := getattr(self, key)) not in allowed:
                raise AdapterError(f"{self.title}: {key} is {value!r}; choose {', '.join(allowed)}.")
        if self.kind != "command":
            return
        allowed = {*FIELDS, *self.options}
        for what, text in (("command", self.command), *self.files.items(), *((n.path, n.path) for n in self.weights)):
            unknown = {name for _, name, _, _ in Formatter().parse(text) if name is not None} - allowed
            if unknown:
                raise AdapterError(f"{self.title}: {what} has the unknown fields {sorted(unknown)} (baseline.options).")
        if "{input}" not in self.command + "".join(self.files.values()):
            raise AdapterError(f"{self.title}: neither command nor files have {{input}} in them.")
        if "{stem}" not in self.output:
            raise AdapterError(f"{self.title}: output {self.output!r} has to hold {{stem}}.")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Adapter":
        """From a YAML file's plain containers.

        Raises:
            AdapterError: an unknown key or value.
        """
        unknown = set(data) - {f.name for f in fields(cls)}
        if unknown or "title" not in data:
            raise AdapterError(f"The baseline has unknown keys or no title: {sorted(unknown)}.")
        weights = tuple(Need(**need) for need in data.get("weights") or ())
        given = {key: value for key, value in data.items() if value is not None}
        return cls(**given | {"weights": weights})

    def words(self, **values: Any) -> list[str]:
        """The command with its fields filled in."""
        return [self._filled(word, values) for word in shlex.split(self.command)]

    def texts(self, **values: Any) -> dict[str, str]:
        """The files to write before a launch, with their fields filled in."""
        return {name: self._filled(text, values) for name, text in self.files.items()}

    def _filled(self, text: str, values: Mapping[str, Any]) -> str:
        interpreter = os.path.abspath(shutil.which(self.python) or self.python)  # since it is started in another folder
        given = {"python": interpreter, "checkout": str(Path(self.checkout or ".").resolve())}
        given |= {name: _absolute(value) for name, value in self.options.items()} | dict(values)
        return text.format(**given)

    @property
    def uses_references(self) -> bool:
        """Whether it reads photos of the person."""
        return self.per_identity or self.layout == "identity" or self.references > 0

    @property
    def place(self) -> Path | None:
        """The folder in which it is started."""
        return Path(self.checkout).resolve() / self.folder if self.checkout else None

    def missing(self) -> list[str]:
        """One sentence for everything that it needs and this machine has not."""
        absent = []
        if self.kind == "command" and self.checkout is not None and not self.place.is_dir():
            where = f"git clone {self.repository} {self.checkout}" if self.repository else self.checkout
            where += f" && git -C {self.checkout} checkout {self.commit}" if self.repository and self.commit else ""
            absent.append(f"checkout: there is no folder {self.place} ({where}; baseline.checkout=FOLDER)")
        if self.kind == "command" and shutil.which(self.python) is None:
            packages = self.environment or "its packages"
            absent.append(f"environment: {self.python} is no program here ({packages}; baseline.python=ENV/bin/python)")
        needs = [(self._path(need), need) for need in self.weights]
        return absent + [f"weights: {p} from {need.source} ({need.licence})" for p, need in needs if not p.exists()]

    def found(self) -> dict[str, Path]:
        """The weights on this machine, by their path in the adapter."""
        paths = {need.path: self._path(need) for need in self.weights}
        return {name: path for name, path in paths.items() if path.exists()}

    def _path(self, need: Need) -> Path:
        text = self._filled(need.path, {name: "" for name in FIELDS if name not in ("python", "checkout")})
        kind, _, name = text.partition(":")
        if kind == "hub":
            return _in_hub_cache(name, {**os.environ, **self.variables})
        if kind == "asset":
            return weights_root() / name
        path = Path(text).expanduser()
        return path if path.is_absolute() else (Path(self.checkout or ".").resolve() / path)


def _absolute(value: str) -> str:
    """An existing path made absolute, since the program is started in another folder; other values as they are."""
    return str(Path(value).absolute()) if "/" in str(value) and Path(value).exists() else str(value)


def _in_hub_cache(name: str, variables: Mapping[str, str]) -> Path:
    """The revision of a hub repository that a program gets offline; a path that does not exist where there is none."""
    user = variables.get("XDG_CACHE_HOME") or "~/.cache"
    home = variables.get("HF_HOME") or f"{user}/huggingface"
    cache = Path(variables.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()
    folder = cache / f"models--{name.replace('/', '--')}"
    main = folder / "refs/main"
    return folder / "snapshots" / (main.read_text().strip() if main.is_file() else "main")


def stems(names: Sequence[str]) -> dict[str, str]:
    """Name -> a stem that every program handles: letters, digits and underscores, unique also without case.

    Some programs cut names at the first dot, flatten folders, or append an index.
    """
    made: dict[str, str] = {}
    used: set[str] = set()
    for number, name in enumerate(names):
        stem = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_") or "image"
        if stem.lower() in used:
            stem = f"{stem}_n{number:05d}"
        used.add(stem.lower())
        made[name] = stem
    return made
