"""Files of a model hub's repository, large ones from where an earlier download was cut."""

import shutil
from pathlib import Path, PurePosixPath

from face2scene.assets.catalogue import Asset, Source, WeightsError
from face2scene.assets.http_download import FULL, UnfinishedDownload, download

LARGE_FILE = 50_000_000  # bytes; the hub's own client does not go on in the middle of a file


def from_hub(asset: Asset, source: Source, place: Path) -> None:
    """Fill `place` with the wanted files of a repository; what came before a cut is used.

    Raises:
        UnfinishedDownload: cut, or the hub cannot be reached; `place` is kept.
        WeightsError: nothing there matches, or a name leads out of its folder.
    """
    import huggingface_hub as hub

    begun = place.is_dir()
    place.mkdir(parents=True, exist_ok=True)
    listed, unlisted = [], ""
    try:
        try:
            info = hub.HfApi().model_info(source.repo, revision=source.revision, files_metadata=True, timeout=60)
            files = {one.rfilename: one for one in info.siblings or ()}
            patterns = list(source.patterns) or None
            listed = [files[name] for name in hub.utils.filter_repo_objects(files, allow_patterns=patterns)]
        except Exception as error:  # the hub's client asks once more and has the better message
            unlisted = f"{type(error).__name__}: {error}"
        for one in listed:
            name = PurePosixPath(one.rfilename)
            if name.is_absolute() or ".." in name.parts:
                raise WeightsError(f"{source.title}: the hub names the file {one.rfilename!r}, outside its folder.")
            if one.lfs and one.lfs.size > LARGE_FILE:
                url = hub.hf_hub_url(source.repo, one.rfilename, revision=info.sha)
                title, secrets = f"{source.title}, {name}", hub.utils.build_hf_headers()
                download(url, place / name, title=title, size=one.lfs.size, sha256=one.lfs.sha256, secrets=secrets)
        hub.snapshot_download(
            source.repo, revision=source.revision, allow_patterns=list(source.patterns) or None, local_dir=place
        )
    except WeightsError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        reason = (str(error).strip().splitlines() or ["no reason given"])[0][:300].rstrip(".")
        raise UnfinishedDownload(f"{source.title}: {type(error).__name__}: {reason}.") from error
    if unlisted and begun and not asset.files:  # the client takes what is there for the whole
        raise UnfinishedDownload(f"{source.title}: what has come cannot be compared with the hub's list ({unlisted}).")
    for path in place.rglob("*.validator"):
        path.unlink()
    shutil.rmtree(place / ".cache", ignore_errors=True)
    if not any(path.is_file() for path in place.rglob("*")):
        raise WeightsError(f"{source.title}: no file there matches {', '.join(source.patterns)}.")
