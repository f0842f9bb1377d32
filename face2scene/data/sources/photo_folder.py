"""The photos of a folder as a source of InScene images.

Every file is used, or left out by name with the reason; nothing stops a build.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from face2scene.assets import catalogue
from face2scene.common.optional import import_optional
from face2scene.data.building.build import BuildResult
from face2scene.data.building.names import distinct, printable, safe
from face2scene.data.sources.photo_source import PhotoInfo, PhotoSource
from face2scene.faces.detect import Detector
from face2scene.image_io.arrays import list_files

# Photos that come with an installed package: its extra, and where it keeps its data.
_PACKAGES = {
    "matplotlib": ("report", lambda package: package.get_data_path()),
    "skimage": ("quickstart", lambda package: Path(package.__file__).parent),
    "sklearn": ("quickstart", lambda package: Path(package.__file__).parent),
}


def photo_folder(where: str | Path | None) -> Path:
    """The folder of a folder's name, a photo set of the catalogue, or `PACKAGE/FOLDER` of a package that brings photos.

    Raises:
        FileNotFoundError: when it is none of these, or the set was not fetched.
        ModuleNotFoundError: without the package; the message names the extra.
    """
    if where is None:
        raise FileNotFoundError("No photos were named: data.collection (data.raws for a test set) is not set.")
    package, _, inside = str(where).partition("/")
    if inside and package in _PACKAGES:
        extra, root_of = _PACKAGES[package]
        return Path(root_of(import_optional(package, extra, why=f"The photos of {where}"))) / inside
    if Path(where).is_dir():
        return Path(where)
    if str(where) in catalogue.catalogue():
        return catalogue.folder(str(where))
    sets = sorted(name for name in catalogue.catalogue() if name.startswith("photos"))
    raise FileNotFoundError(
        f"{where} (data.photos, data.collection or data.raws) is neither a folder nor a set of `face2scene fetch`: "
        f"choose one of {', '.join(sets)}."
    )


class Photos(PhotoSource):
    """The photos of a folder. One item is one file.

    Args:
        where: see `photo_folder`.
        people: file name to person; only these files are used. Without it all files are, and a photo's person is the
            name of its sub-folder; photos in no sub-folder have a person each.
        split: `train`, `val` or `test`, for all, or by person; None is by seed. People known to be one must not be in
            both, and photos of unknown people should all be in one.
        identity: `folder`, as above, or `unknown`: people are found by `data.grouping`.
        options: see `PhotoSource`.
    """

    def __init__(
        self,
        where: str | Path | None,
        detector: Detector,
        *,
        name: str,
        people: Mapping[str, str] | None = None,
        split: str | Mapping[str, str] | None = "val",
        identity: str = "folder",
        **options: Any,
    ):
        super().__init__(detector, name=name, **options)
        if identity not in ("folder", "unknown"):
            raise ValueError(f"{name}: identity must be folder or unknown, not {identity!r}.")
        self.where, self.people = where, dict(people) if people else None
        self.split, self.identity = split, identity

    @cached_property
    def folder(self) -> Path:
        return photo_folder(self.where)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        names = sorted(path.relative_to(self.folder).as_posix() for path in list_files(self.folder))
        if not names:
            raise FileNotFoundError(f"There is no photo in {self.where} (data.photos, data.collection, data.raws).")
        return {name: number for number, name in enumerate(names)}

    def listing(self) -> Any:
        """Files and sizes; only the names where they are given, so that a finished set needs no photos."""
        if self.people is not None:
            return sorted(self.people)
        return [[printable(name), (self.folder / name).stat().st_size] for name in self._numbers]

    def items(self) -> Sequence[str]:
        self.prepare()
        return list(self._numbers if self.people is None else self.people)

    def key(self, item: str) -> str:
        name = f"{self.name}_{safe(item.rsplit('.', 1)[0])}"
        if self.people is None:
            name += f"_{self._numbers[item]:04d}"  # a.jpg and a.png, or names that `safe` makes equal
        return name

    def make(self, item: str) -> BuildResult:
        if self.people is not None:
            person = self.people[item]
        else:
            person = item.split("/")[0] if "/" in item else self.key(item).removeprefix(f"{self.name}_")
        split = self.split[person] if isinstance(self.split, Mapping) else self.split
        known = self.identity == "folder" or self.people is not None
        info = PhotoInfo(item, f"{self.name}_{distinct(person)}" if known else None, split)
        return BuildResult.of([self.process(self.folder / item, self.key(item), info)])
