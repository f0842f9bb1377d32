"""The resolver of all names that come from a file: metadata, checksums, tables, published sets."""

import os
from pathlib import Path


class OutsideFolder(ValueError):
    """A name in a file that does not lead to a place inside the folder it belongs to."""


class FolderPaths:
    """Paths of names inside a folder, such as a set of unknown origin.

    Refused are absolute names, names with `..`, backslashes or NUL, and links that lead out of the folder. The folder
    itself may be reached through a link.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._root = os.path.realpath(folder)
        self._parents: dict[str, bool] = {}  # whether a parent folder lies inside

    def __call__(self, name: str) -> Path:
        """The path of `name`, which need not exist.

        Raises:
            OutsideFolder: see above.
        """
        parts = name.split("/")
        plain = name and parts[0] and ".." not in parts and not any(c in name for c in "\\\0")
        path = self.folder / name if plain else self.folder
        if not plain or not self._is_inside(path):
            raise OutsideFolder(f"The name {name!r} does not lead to a place inside {self.folder}.")
        return path

    def _is_inside(self, path: Path) -> bool:
        parent = str(path.parent)
        if parent not in self._parents:
            self._parents[parent] = self._contains(os.path.realpath(parent))
        return self._parents[parent] and (not os.path.islink(path) or self._contains(os.path.realpath(path)))

    def _contains(self, real: str) -> bool:
        return os.path.commonpath([real, self._root]) == self._root
