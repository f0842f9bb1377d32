"""Restoration tasks: the images of a file, a folder or a dataset, each with its references and ground truth."""

import itertools
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from face2scene.common.ledger import content
from face2scene.common.types import Box
from face2scene.data.records import METADATA, read_manifest
from face2scene.faces.matching import people_of
from face2scene.image_io.arrays import files_below, list_images
from face2scene.image_io.photos import SUFFIXES


@dataclass(frozen=True)
class RestorationTask:
    """One image to restore, with its references and ground truth."""

    path: Path
    people: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)  # reference photos by person
    gt: Path | None = None  # ground truth
    box: Box | None = None  # of the face, where it is known
    relative_dir: Path = Path()  # folder of the image in the input, and of its restoration in the output
    label: str = ""  # name of the restoration, without the suffix; empty: that of the image

    @property
    def stem(self) -> str:
        """Name of the restoration in its folder, without the suffix."""
        return self.label or self.path.stem

    @property
    def name(self) -> str:
        """Unique among the tasks; with the run's seed it determines the image's randomness."""
        return (self.relative_dir / self.stem).as_posix()

    @property
    def references(self) -> tuple[Path, ...]:
        """The photos of all people together, for methods that take one person."""
        return tuple(path for photos in self.people.values() for path in photos)

    @property
    def contents(self) -> dict[str, Any]:
        """Digests of the references by person, in their order, and of the ground truth, and the box."""
        return self.contents_with({name: list(map(content, paths)) for name, paths in self.people.items()})

    def contents_with(self, people: Mapping[str, list[str]]) -> dict[str, Any]:
        """`contents`, for which the references' digests are known."""
        return {"people_sha256": people, "truth_sha256": content(self.gt) if self.gt else None, "box": self.box}

    @property
    def file(self) -> str:
        """Relative path of the image, its name in the restoration log."""
        return (self.relative_dir / self.path.name).as_posix()


def shared_contents() -> Callable[[RestorationTask], dict[str, Any]]:
    """`RestorationTask.contents`, but references that tasks share, which may be thousands, are looked at once."""
    known: dict[int, Any] = {}

    def contents(task: RestorationTask) -> dict[str, Any]:
        if id(task.people) not in known:
            known[id(task.people)] = task.contents["people_sha256"]
        return task.contents_with(known[id(task.people)])

    return contents


def variant_folder(setting: str, value: float) -> str:
    """Output folder of one value of several: `guidance_1.10`, `tokens_5`."""
    return f"guidance_{value:.2f}" if setting == "guidance" else f"tokens_{value:d}"


def find_tasks(
    source: str | Path | Sequence[str | Path],
    *,
    references: str | Path | None = None,
    gt: str | Path | None = None,
    output: str | Path | None = None,
) -> list[RestorationTask]:
    """The images of a file, a folder and its sub-folders, or an InScene dataset (its validation pairs); or of several.

    Args:
        references: a folder of photos of one person, or with a sub-folder for each of several; or a folder with a
            sub-folder for each image, named like it, which holds either.
        gt: a folder of ground truths at the same relative paths, for stand-ins of Stage I.
        output: the folder of the restorations; images in it are no inputs.

    Raises:
        FileNotFoundError: no image, an image without its ground truth, or no such folder.
        ValueError: two images of one name.

    Images that differ in the suffix alone, such as a camera's IMG_1.DNG and IMG_1.JPG, are restored as IMG_1_dng and
    IMG_1_jpg; names that are equal but for their case, which many disks do not tell apart, are numbered besides.
    """
    sources = [Path(source)] if isinstance(source, str | Path) else list(map(Path, source))
    tasks = [task for one in sources for task in _tasks_of(one, references, gt, output)]
    count = Counter(task.file for task in tasks)
    twice = sorted(name for name, number in count.items() if number > 1)
    if twice:
        raise ValueError(f"These names occur more than once and would overwrite each other: {twice[:5]}. Rename them.")
    return _distinct(tasks)


def _distinct(tasks: list[RestorationTask]) -> list[RestorationTask]:
    """The tasks with labels where some disk takes their names for one, as case and composed letters do not count."""

    def folded(task: RestorationTask) -> str:
        return unicodedata.normalize("NFC", task.name).casefold()

    count = Counter(map(folded, tasks))
    taken = {name for name, number in count.items() if number == 1}
    named = []
    for task in tasks:
        numbers = itertools.count(2)
        label = wanted = f"{task.path.stem}_{task.path.suffix[1:].lower()}"
        if count[folded(task)] > 1:
            while folded(task := replace(task, label=label)) in taken:
                label = f"{wanted}_{next(numbers)}"
            taken.add(folded(task))
        named.append(task)
    return named


def _tasks_of(
    source: Path, references: str | Path | None, gt: str | Path | None, output: str | Path | None
) -> list[RestorationTask]:
    if (source / METADATA).is_file():
        tasks = [
            RestorationTask(
                source / r.lq, {r.identity: tuple(source / p for p in r.references)}, source / r.image, r.face_box
            )
            for r in read_manifest(source, "val")
            if r.lq
        ]
    else:
        tasks = _tasks_of_files(source, references, gt, output)
    if not tasks:
        others = passed_over(source)
        raise FileNotFoundError(f"There is no image in {source} (input){f'; {others}' if others else ''}.")
    return tasks


def first(tasks: list[RestorationTask], limit: int | None) -> list[RestorationTask]:
    """The first so many tasks; all of them for None. Raises ValueError if that is none."""
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit is {limit}: give a number of images from 1 on, or null for all.")
    return tasks[:limit]


def passed_over(source: str | Path) -> str:
    """The number of files in a folder that are no images, by suffix, and the folders, links and pipes that cannot be
    opened.

    Empty if there are none.
    """
    if not Path(source).is_dir():
        return ""
    files, closed = files_below(source)
    count = Counter(path.suffix.lower() for path in files if path.suffix.lower() not in SUFFIXES)
    listed = [f"{n} {suffix or 'without suffix'}" for suffix, n in count.items()]
    if closed:
        names = ", ".join([str(path) for path in sorted(closed)[:5]] + ["..."] * (len(closed) > 5))
        listed.append(f"{len(closed)} folder(s), link(s) or pipe(s) that cannot be opened ({names})")
    return f"passed over: {', '.join(listed)}" if listed else ""


def _tasks_of_files(
    source: Path, references: str | Path | None, gt: str | Path | None, output: str | Path | None
) -> list[RestorationTask]:
    root = source.parent if source.is_file() else source
    paths = [source] if source.is_file() else list_images(source)
    ours = [(Path(output) / part).resolve() for part in ("images", "faces")] if output is not None else []
    if source.resolve() not in ours:  # otherwise `restore_folder` raises, with a better message than "no image"
        paths = [path for path in paths if not any(path.resolve().is_relative_to(folder) for folder in ours)]
    gts = None
    if gt is not None:
        if not Path(gt).is_dir():
            raise NotADirectoryError(f"gt={gt} is no folder: name one of images at the same relative paths.")
        gts = {path.relative_to(gt).with_suffix("").as_posix(): path for path in list_images(gt)}
    places = [path.relative_to(root) for path in paths]
    tasks = []
    for path, place, people in zip(paths, places, _people(references, places), strict=True):
        name = place.with_suffix("").as_posix()
        if gts is not None and name not in gts:
            raise FileNotFoundError(f"There is no image named {name} in gt={gt}.")
        tasks.append(RestorationTask(path, people, gts[name] if gts else None, relative_dir=place.parent))
    return tasks


def _people(references: str | Path | None, places: list[Path]) -> list[dict[str, tuple[Path, ...]]]:
    """The references of each image."""
    if references is None:
        return [{}] * len(places)
    own = [Path(references) / place.with_suffix("") for place in places]
    if any(folder.is_dir() for folder in own):
        return [people_of(folder) if folder.is_dir() else {} for folder in own]
    return [people_of(references)] * len(places)
