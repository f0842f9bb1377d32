"""Real photos as sources of InScene images: a folder, a table, or webdataset archives.

Every file is used or left out by name with the reason; nothing stops a build.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from face2scene.assets import catalogue
from face2scene.common.optional import import_optional
from face2scene.data.building.build import BuildResult, RecordCandidate
from face2scene.data.building.filters import FaceSize, HasFace, Resolution
from face2scene.data.building.names import printable, safe
from face2scene.data.building.photo_filtering import CropSpec, FilterStage, Label, Photographs, StageContext, face_crop
from face2scene.faces.detect import Detector

__all__ = ["Photos", "face_crop", "photo_folder"]

# Photos that come with an installed package: its extra, and where it keeps its data.
_PACKAGES = {
    "matplotlib": ("report", lambda package: package.get_data_path()),
    "skimage": ("dev", lambda package: Path(package.__file__).parent),
}


def photo_folder(where: str | Path | None) -> Path:
    """The folder behind a name: a folder, `matplotlib/sample_data`, `skimage/data`, or a photo set of the catalogue.

    Raises:
        FileNotFoundError: when it is none of these, or the set was not fetched.
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
        f"data.photos: {where} is neither a folder nor one of the photo sets {sets} of `face2scene fetch`."
    )


class PhotoSource:
    """What all sources of photos have in common.

    Args:
        detector: finds and describes faces.
        name: of the source; images are called `name_FILE`.
        size: side of the images in pixels; smaller photos are left out. None keeps whole photos.
        max_side: whole photos are reduced to it.
        reference_size: longest side of the images as references of others; None takes the images
            themselves.
        stages: the filter, in order; None is the smallest sensible one: large enough, a face, a face large enough.
        face_share: side of the face over side of the image, where the photo allows it (our setting: 1/3).
        min_face: smallest face in the finished image, in pixels (our setting), where `stages` is None.
        licence: recorded with every image.
        strict_suffix: quarantine files whose content is another format than their suffix says.
        metric, device: see `photographs.StageContext`.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        name: str,
        size: int | None,
        licence: str,
        max_side: int | None = None,
        reference_size: int | None = None,
        stages: Sequence[FilterStage] | None = None,
        face_share: float = 1 / 3,
        min_face: int = 32,
        strict_suffix: bool = False,
        metric: Any = None,
        device: Any = "cpu",
    ):
        self.name = safe(name)
        if stages is None:
            stages = [Resolution(size or 1), HasFace(), FaceSize(min_face)]
        self.photographs = self._photographs(
            StageContext(detector, metric, device),
            stages,
            CropSpec(size, face_share, max_side),
            name=self.name,
            reference_size=reference_size,
            licence=licence,
            strict_suffix=strict_suffix,
        )

    _photographs: Any = Photographs

    @property
    def stages(self) -> list[FilterStage]:
        return self.photographs.stages

    def made(self, photos: Iterator[RecordCandidate | Any]) -> BuildResult:
        """Drafts and rejections, apart."""
        both = list(photos)
        return BuildResult(
            [one for one in both if isinstance(one, RecordCandidate)],
            [one for one in both if not isinstance(one, RecordCandidate)],
        )


class Photos(PhotoSource):
    """The photos of a folder, as a build source. One item is one file.

    Args:
        where: see `photo_folder`.
        people: file name to person. Then only these files are used. Without it every file is looked at, and a
            photo's person is the name of its sub-folder; photos that lie in no sub-folder have a person each.
        split: `train`, `val` or `test`, for all, or by person; None is by seed. People known to be one must not be in
            both, and photos of unknown people should all be in one.
        identity: `folder` as said, or `unknown`: people are found by `data.grouping`.
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
        self.where = where
        self.people = dict(people) if people else None
        self.split, self.identity = split, identity

    @cached_property
    def folder(self) -> Path:
        return photo_folder(self.where)

    @cached_property
    def _files(self) -> list[str]:
        # Links are followed to files only, so that a link to a parent folder is no endless tree.
        found = [path for path in self.folder.rglob("*") if path.is_file()]
        names = (path.relative_to(self.folder) for path in found)
        return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {file: number for number, file in enumerate(self._files)}

    def listing(self) -> Any:
        """Files and sizes; only the names where they are given, so that a finished set needs no photos."""
        if self.people is not None:
            return sorted(self.people)
        return [[printable(name), (self.folder / name).stat().st_size] for name in self._files]

    def items(self) -> Sequence[str]:
        self.photographs.prepare()
        return list(self.people) if self.people is not None else self._files

    def key(self, item: str) -> str:
        name = f"{self.name}_{safe(item.rsplit('.', 1)[0])}"
        if self.people is None:
            name += f"_{self._numbers[item]:04d}"  # a.jpg and a.png, or names that differ in odd letters
        return name

    def make(self, item: str) -> BuildResult:
        return self.made(iter([self.photographs.draft(self.folder / item, self.key(item), self.label(item))]))

    def label(self, item: str) -> Label:
        """What the folder says of a file."""
        person = self._person(item)
        split = self.split if not isinstance(self.split, Mapping) else self.split[person]
        known = self.identity == "folder" or self.people is not None
        return Label(item, f"{self.name}_{safe(person)}" if known else None, split)

    def _person(self, item: str) -> str:
        if self.people is not None:
            return self.people[item]
        return item.split("/")[0] if "/" in item else self.key(item).removeprefix(f"{self.name}_")
