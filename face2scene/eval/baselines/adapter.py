"""What is known of somebody else's program: how it is started, what it reads, what it leaves.

An adapter is data (configs/baseline/*.yaml); nothing of another project's code is here.
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

FIELDS = ("python", "input", "output", "references", "scale", "seed", "scratch", "checkout")
SIZES = ("any", "x4", "face")
KINDS = ("command", "method", "pipeline")


class AdapterError(ValueError):
    """An adapter that says something impossible; the message names the key."""


@dataclass(frozen=True)
class Need:
    """A file or folder that the program reads.

    Args:
        path: below the checkout, absolute, below ~, or with {options}; hub:OWNER/NAME is in the hub's cache, where the
            program looks for it by itself; asset:NAME is one of this project's (`face2scene fetch`).
        source: where it is had from, in words.
        licence: of it.
        sha256: of a file, where it is known; another is warned of.
    """

    path: str
    source: str
    licence: str = "unknown"
    sha256: str | None = None


@dataclass(frozen=True)
class Adapter:
    """One system of the comparison.

    Args:
        title: its row's name in the paper's tables.
        kind: `command` starts a program; `method` is a function of ours in this process (`method` names it);
            `pipeline` is scripts/restore.py in this process.
        sizes: `any` runs at scale 1 on images of full size and at 4 on quarters; `x4` only knows 4, so that a
            image of full size is shown to it shrunk by 4; `face` wants squares of 512 pixels that show one face.
        repository, licence, environment: in words.
        commit: where its options were read; None is not known. Another is recorded, and warned of.
        python: interpreter of its environment.
        checkout: its repository on this machine.
        folder: below the checkout, where it is started.
        command: template, split as a shell would but run without one; fields: those of `FIELDS` and of `options`.
        options: name -> value of further fields, such as the folder of a base model.
        files: name -> text, written to {scratch} before a launch; the same fields, doubled braces stand for one.
        output: where an image lies below {output}, with {stem}.
        multiple: staged sides are padded to multiples of this, and the result is cut back.
        other_sizes: `refuse` a result of another size than expected, or `resize` it (and say so).
        layout: `flat` {input}/NAME.png, or `identity` {input}/NAME/degraded.png with gt.png and conditioning/.
        per_identity: one launch for each person, whose references are staged in {references}; one at least is needed.
        references: so many are staged, again from the first when there are fewer; 0 stages what there are.
        variables: of the environment, beside CUDA_VISIBLE_DEVICES and the hub's offline switch.
        weights: what has to be there.
        seedable: whether {seed} fixes its result.
        trust_exit: whether a bad exit code means bad images; results are judged by the images either way.
        settings: steps, version, guidance and whatever else makes the number, for the record.
        notes: what bites, shown by a dry run.
        tried: what of this has been run.
    """

    title: str
    kind: str = "command"
    sizes: str = "any"
    repository: str = ""
    commit: str | None = None
    licence: str = "unknown"
    environment: str = ""
    python: str = "python"
    checkout: str | None = None
    folder: str = "."
    command: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    output: str = "{stem}.png"
    multiple: int = 1
    other_sizes: str = "refuse"
    layout: str = "flat"
    per_identity: bool = False
    references: int = 0
    variables: Mapping[str, str] = field(default_factory=dict)
    weights: Sequence[Need] = ()
    seedable: bool = True
    trust_exit: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    tried: str = "never run here"
    method: Any = None  # of kind `method`: the callable itself
    pipeline: Mapping[str, str] = field(default_factory=dict)  # of kind `pipeline`: overrides, for the listing

    def __post_init__(self) -> None:
        for key, value, allowed in (
            ("kind", self.kind, KINDS),
            ("sizes", self.sizes, SIZES),
            ("layout", self.layout, LAYOUTS),
            ("other_sizes", self.other_sizes, ("refuse", "resize")),
        ):
            if value not in allowed:
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
        """The command with its fields filled in.

        Raises:
            AdapterError: it needs a scale or references that are not there.
        """
        return [self._filled(word, values) for word in shlex.split(self.command)]

    def texts(self, **values: Any) -> dict[str, str]:
        """The files to write before a launch, filled in."""
        return {name: self._filled(text, values) for name, text in self.files.items()}

    def _filled(self, text: str, values: Mapping[str, Any]) -> str:
        interpreter = os.path.abspath(shutil.which(self.python) or self.python)  # it is started in another folder
        given = {"python": interpreter, "checkout": str(Path(self.checkout or ".").resolve())}
        given |= {name: _absolute(value) for name, value in self.options.items()} | dict(values)
        return text.format(**given)

    @property
    def uses_references(self) -> bool:
        """Whether photos of the person are shown to it."""
        return self.per_identity or self.layout == "identity" or self.references > 0

    @property
    def place(self) -> Path | None:
        """Where it is started."""
        return Path(self.checkout).resolve() / self.folder if self.checkout else None

    def missing(self) -> list[str]:
        """One sentence for everything that is not on this machine; none is good."""
        absent = self._missing_program() if self.kind == "command" else []
        for need in self.weights:
            path = self._path(need)
            if not path.exists():
                absent.append(f"weights: {path} from {need.source} ({need.licence})")
        return absent

    def _missing_program(self) -> list[str]:
        absent = []
        if self.checkout is not None and not self.place.is_dir():
            where = f"git clone {self.repository} {self.checkout}" if self.repository else self.checkout
            where += f" && git -C {self.checkout} checkout {self.commit}" if self.repository and self.commit else ""
            absent.append(f"checkout: there is no folder {self.place} ({where}; baseline.checkout=FOLDER)")
        if not _is_program(self.python):
            packages = self.environment or "its packages"
            absent.append(f"environment: {self.python} is no program here ({packages}; baseline.python=ENV/bin/python)")
        return absent

    def found(self) -> dict[str, Path]:
        """The weights that are there, by their path in the adapter."""
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
    # a path that is there stays right when the program is started elsewhere; other values stay as they are
    return str(Path(value).absolute()) if "/" in str(value) and Path(value).exists() else str(value)


def _in_hub_cache(name: str, variables: Mapping[str, str]) -> Path:
    """The revision of a hub repository that a program without a network gets; a path that is not there for none."""
    user = variables.get("XDG_CACHE_HOME") or "~/.cache"
    home = variables.get("HF_HOME") or f"{user}/huggingface"
    cache = Path(variables.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()
    folder = cache / f"models--{name.replace('/', '--')}"
    main = folder / "refs/main"
    return folder / "snapshots" / (main.read_text().strip() if main.is_file() else "main")


def _is_program(name: str) -> bool:
    return shutil.which(name) is not None


def stems(names: Sequence[str]) -> dict[str, str]:
    """Name -> a stem that every program bears: letters, digits and underscores, unique also without case.

    Programs tell images apart by what is before the first dot, flatten folders, or append an index.
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
