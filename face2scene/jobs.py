"""What there is to restore: the pictures of a file, a folder or a dataset, each with what belongs to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from face2scene.data.manifest import METADATA, read_manifest
from face2scene.images import list_images
from face2scene.inputs import people_of_folder
from face2scene.ledger import content
from face2scene.records import Box


@dataclass(frozen=True)
class Job:
    """One picture to restore, with what belongs to it."""

    path: Path
    people: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)  # photos of whom it shows, by name
    truth: Path | None = None  # the same picture undamaged
    box: Box | None = None  # of the face, where it is known
    inside: Path = Path()  # of the input folder: where the picture lies in it, and its restoration in the output

    @property
    def name(self) -> str:
        """Unique among the jobs; with the run's seed it decides the picture's randomness."""
        return (self.inside / self.path.stem).as_posix()

    @property
    def references(self) -> tuple[Path, ...]:
        """Everybody's photos together, for methods that know one person."""
        return tuple(path for photos in self.people.values() for path in photos)

    @property
    def contents(self) -> dict[str, Any]:
        """Of what belongs to it, by digests: references in their order by person, ground truth, and the box."""
        people = {name: list(map(content, paths)) for name, paths in self.people.items()}
        return {"people_sha256": people, "truth_sha256": content(self.truth) if self.truth else None, "box": self.box}

    @property
    def file(self) -> str:
        """The same with the suffix, as the why-log names it."""
        return (self.inside / self.path.name).as_posix()


def variant_folder(setting: str, value: float) -> str:
    """The folder of one of several values: `guidance_1.10`, `tokens_5`."""
    return f"guidance_{value:.2f}" if setting == "guidance" else f"tokens_{value:d}"


def find_jobs(
    source: str | Path,
    *,
    references: str | Path | None = None,
    truth: str | Path | None = None,
    output: str | Path | None = None,
) -> list[Job]:
    """The pictures of a file, a folder and its sub-folders, or an InScene dataset (its validation pairs).

    Args:
        references: a folder of photos of one person, or with a sub-folder for each of several; or a folder with a
            sub-folder for each picture, named like it, which holds either.
        truth: a folder of undamaged pictures at the same places, for stand-ins of Stage I.
        output: where the restorations go; what lies there is no input.

    Raises:
        FileNotFoundError: no picture, a picture without its truth, or a folder that is not there.
        ValueError: two pictures that would get one name.
    """
    source = Path(source)
    if (source / METADATA).is_file():
        jobs = [
            Job(source / r.lq, {r.identity: tuple(source / p for p in r.references)}, source / r.image, r.face_box)
            for r in read_manifest(source, "val")
            if r.lq
        ]
    else:
        jobs = _jobs_of_files(source, references, truth, output)
    if not jobs:
        raise FileNotFoundError(f"There is no picture in {source} (input).")
    seen: set[str] = set()
    twice = sorted({job.name for job in jobs if job.name in seen or seen.add(job.name)})
    if twice:
        raise ValueError(f"These names occur more than once and would overwrite each other: {twice[:5]}. Rename them.")
    return jobs


def _jobs_of_files(
    source: Path, references: str | Path | None, truth: str | Path | None, output: str | Path | None
) -> list[Job]:
    root = source.parent if source.is_file() else source
    paths = [source] if source.is_file() else _inputs(source, output)
    truths = None
    if truth is not None:
        truths = {path.relative_to(truth).with_suffix("").as_posix(): path for path in list_images(truth)}
    whose = _People(references, [path.relative_to(root) for path in paths])
    jobs = []
    for path in paths:
        place = path.relative_to(root)
        name = place.with_suffix("").as_posix()
        if truths is not None and name not in truths:
            raise FileNotFoundError(f"There is no picture named {name} in truth={truth}.")
        jobs.append(Job(path, whose(place), truths[name] if truths else None, inside=place.parent))
    return jobs


def _inputs(source: Path, output: str | Path | None) -> list[Path]:
    paths = list_images(source)
    if output is None:
        return paths
    ours = [(Path(output) / part).resolve() for part in ("images", "faces")]
    if source.resolve() in ours:  # said by `restore_folder`, better than by finding nothing
        return paths
    return [path for path in paths if not any(path.resolve().is_relative_to(folder) for folder in ours)]


class _People:
    """References for each picture, every folder read once."""

    def __init__(self, folder: str | Path | None, places: list[Path]):
        self.folder = None if folder is None else Path(folder)
        self.by_picture = self.folder is not None and any(self._own(place).is_dir() for place in places)
        self.all = {} if self.folder is None or self.by_picture else self._read(self.folder)

    def __call__(self, place: Path) -> dict[str, tuple[Path, ...]]:
        if not self.by_picture:
            return self.all
        own = self._own(place)
        return people_of_folder(own) if own.is_dir() else {}

    def _own(self, place: Path) -> Path:
        return self.folder / place.with_suffix("")

    def _read(self, folder: Path) -> dict[str, tuple[Path, ...]]:
        if folder.is_file():
            return {folder.parent.resolve().name: (folder,)}
        return people_of_folder(folder)
