"""Which commit the code is at, and seeds that are the same in every process."""

import hashlib
import subprocess

from face2scene.common.shipped import INSTALLED, PACKAGE

REPOSITORY = PACKAGE.parent  # the checkout, where the package is not installed from a wheel


def seed_from(*parts: object) -> int:
    """A seed in [0, 2**63) from any values, also names of files that are no text; the same in every process."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def commit() -> str:
    """The commit of the checkout this code runs from, `-dirty` when files differ; `unknown` outside git."""
    if INSTALLED:  # a repository around it is another project's
        return "unknown"
    try:
        done = subprocess.run(
            ["git", "-C", str(REPOSITORY), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
