"""Builds a dataset folder: items are made one by one, each with a side-car file, and finalized together.

An item is done when its side-car in `parts/` exists. Files are written whole or not at all, and an item's images depend
on its settings only, so a build can be stopped at any moment and started again, and any number of processes can share
it. `finalize.py` turns the side-cars into one set.
"""

import base64
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from tqdm.auto import tqdm

from face2scene.common.files import sha256_of, write_json
from face2scene.common.ledger import claim
from face2scene.common.locks import locked
from face2scene.common.types import Box, Face
from face2scene.data.building.finalize import PARTS, BuildError, Degradations, FinalizePlan, degrade, finalize
from face2scene.data.building.names import distinct
from face2scene.data.records import METADATA, SETTINGS, SUMS, stream_manifest
from face2scene.image_io.arrays import write_png

# In the order of removal: the metadata, which mark a set as finished, first; the settings, which mark it as ours, last.
_BUILD_FILES = (
    *(METADATA, "metadata.jsonl", SUMS, "rejected.jsonl", "funnel.html", "identities.html"),
    *("images", "references", "lq", "candidates", PARTS, SETTINGS),
)
BAD_INPUT = "input"  # stage of rejections of unreadable input


@dataclass(frozen=True, kw_only=True)
class RecordCandidate:
    """An image that its source has accepted, before the other images of the set are known."""

    name: str  # unique in the set, without suffix
    image: np.ndarray  # (H, W, 3) uint8 or float [0, 1]
    reference: np.ndarray | None = None  # the image as a reference of others; None: `image` itself
    split: str | None  # None: drawn by identity in `finalize`
    identity: str | None  # None: found by grouping in `finalize`
    prompt: str
    shot: str
    face_box: Box
    landmarks_68: np.ndarray | None = None
    vector: np.ndarray | None = None  # unit identity vector, to check references
    source: str
    licence: str
    generator: dict[str, Any]
    measured: Mapping[str, float] = field(default_factory=dict)  # by the filter stages, for selection and report
    references: Sequence[tuple[str, np.ndarray]] = ()  # photos of the person from outside the set: name, image
    similarity: float | None = None  # identity cosine to the first of these
    lq: np.ndarray | None = None  # a degraded image that came with it
    recipe: dict[str, Any] | None = None  # recipe of `lq`, where it is known


class Rejection(NamedTuple):
    """An image that was left out."""

    name: str
    reason: str  # `kind: details`
    stage: str = "acceptance"  # `input`: unreadable, counted as quarantined and shown in the exit code
    measured: Mapping[str, float] = {}
    thumbnail: bytes | None = None  # JPEG, for the report


@dataclass(frozen=True)
class BuildResult:
    """What one item, or one chunk of an item, gave."""

    candidates: Sequence[RecordCandidate] = ()
    rejected: Sequence[Rejection] = ()

    @classmethod
    def of(cls, results: Iterable[RecordCandidate | Rejection]) -> "BuildResult":
        """Candidates and rejections, separated."""
        both = list(results)
        return cls([r for r in both if not isinstance(r, Rejection)], [r for r in both if isinstance(r, Rejection)])


class ImageSource(Protocol):
    """Where images come from: generated people, photos.

    A source with long items (archives) has `chunks(item, start)` in place of `make`: it yields a `BuildResult` per
    chunk from chunk number `start` on; a chunk always holds the same images.
    """

    def listing(self) -> Any:
        """What the items depend on besides the settings (files and their sizes), as JSON."""

    def items(self) -> Sequence[Any]:
        """The items, always in the same order; cheap."""

    def key(self, item: Any) -> str:
        """A file name for the item, unique over all sources."""

    def make(self, item: Any) -> BuildResult:
        """Make one item; the same item gives the same bytes."""


@dataclass
class BuildSummary:
    """Counts of a set, for printing."""

    folder: Path
    images: Counter = field(default_factory=Counter)  # by split
    people: Counter = field(default_factory=Counter)  # by split
    sources: Counter = field(default_factory=Counter)
    rejected: Counter = field(default_factory=Counter)  # by reason
    quarantined: int = 0  # the unreadable ones of the rejected
    pairs: int = 0
    built: bool = True

    def __str__(self) -> str:
        lines = [f"{self.folder}: {sum(self.images.values())} images of {sum(self.people.values())} people"]
        lines += [f"  {s}: {self.images[s]} images of {self.people[s]} people" for s in sorted(self.images)]
        lines += [f"  from {source}: {count}" for source, count in sorted(self.sources.items())]
        lines.append(f"  fixed LQ pairs: {self.pairs}")
        lines += [f"  left out, {reason}: {count}" for reason, count in sorted(self.rejected.items())]
        if self.rejected:
            lines.append(f"  every file left out is named in {self.folder / 'rejected.jsonl'}")
        if self.quarantined:
            lines.append(f"  {self.quarantined} of them could not be read: they are quarantined there as bad input")
        return "\n".join(lines)


def build(
    folder: str | Path,
    sources: Sequence[ImageSource],
    *,
    settings: Mapping[str, Any],
    space: Degradations | None,
    seed: int = 0,
    plan: FinalizePlan | None = None,
    jsonl: bool = False,
    overwrite: bool = False,
    rank: int = 0,
    processes: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> BuildSummary:
    """Build a dataset, resume a build, or find it finished.

    Args:
        folder: new, empty, or written by this function with equal `settings`.
        sources: in the order of the records.
        settings: everything that the images depend on, as JSON; compared with those of an earlier start.
        space: of the fixed degradations of validation images; None makes no pairs.
        seed: of the degradations, and of the splits that no source fixes.
        plan: decisions that need all images; None takes the defaults.
        jsonl: write `metadata.jsonl` too.
        overwrite: remove what an earlier build wrote here.
        rank, processes: this process makes every item whose number is `rank` modulo `processes`.
        wait: returns when all processes have called it.

    Raises:
        BuildError: for a folder with other settings or with files of others.
        OSError, sqlite3.OperationalError: for a full disk (`common.files.disk_error`); what is finished then stays, and
            the same call resumes.
        FolderInUse: another process builds there.
    """
    folder = Path(folder)
    with locked(folder, "choose another data.root", hold=rank == 0):
        settings = {**settings, "listings": [source.listing() for source in sources]}
        if rank == 0:
            _open_folder(folder, settings, overwrite)
        wait()
        if (folder / METADATA).is_file():
            if rank == 0:
                shutil.rmtree(folder / PARTS, ignore_errors=True)
            summary = summarise(folder)
            summary.built = False
            return summary
        items = ((source, number, item) for source in sources for number, item in enumerate(source.items()))
        mine = islice(items, rank, None, processes)
        total = len(range(rank, sum(len(source.items()) for source in sources), processes))
        bar = tqdm(mine, desc=f"building {folder.name}", total=total, disable=rank > 0, unit="item")
        for source, number, item in bar:
            _make_item(folder, source, number, item, space, seed)
        wait()
        if rank == 0:
            keys = (source.key(item) for source in sources for item in source.items())
            finalize(folder, keys, plan or FinalizePlan(), space=space, seed=seed, jsonl=jsonl)
        wait()
        return summarise(folder)


def _make_item(
    folder: Path, source: ImageSource, number: int, item: Any, space: Degradations | None, seed: int
) -> None:
    key = source.key(item)
    part = folder / PARTS / f"{key}.json"
    if part.is_file():
        return
    if not hasattr(source, "chunks"):
        write_json(part, _write_result(folder, source.make(item), f"{number // 1000:03d}", space, seed))
        return
    count = 0
    while (folder / PARTS / key / f"{count:06d}.json").is_file():
        count += 1
    for result in source.chunks(item, count):
        shard = f"{number:05d}-{count // 4:03d}"
        write_json(folder / PARTS / key / f"{count:06d}.json", _write_result(folder, result, shard, space, seed))
        count += 1
    write_json(part, {"chunks": count})


def _open_folder(folder: Path, settings: dict, overwrite: bool) -> None:
    if overwrite and (folder / SETTINGS).is_file():
        for name in _BUILD_FILES:
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink(missing_ok=True)
    try:
        changed = claim(folder / SETTINGS, settings)
    except FileExistsError as error:
        raise BuildError(f"{folder} holds files that no build wrote. Choose an empty folder as data.root.") from error
    if changed:
        raise BuildError(
            f"{folder} was built with other settings (different: {', '.join(changed)}). "
            "Choose another data.root, or say data.overwrite=true to build it anew."
        )


def _write_result(
    folder: Path, result: BuildResult, shard: str, space: Degradations | None, seed: int
) -> dict[str, Any]:
    """Write the images of an item or chunk; returns its side-car."""
    rejected = [row._asdict() | {"measured": dict(row.measured)} for row in result.rejected]
    for row in rejected:
        row["thumbnail"] = base64.b64encode(row["thumbnail"]).decode() if row["thumbnail"] else None
    rows = [_write_candidate(folder, candidate, shard, space, seed) for candidate in result.candidates]
    return {"rows": rows, "rejected": rejected}


def _write_candidate(
    folder: Path, candidate: RecordCandidate, shard: str, space: Degradations | None, seed: int
) -> dict[str, Any]:
    """Write the images of a candidate; returns its row of the side-car: the record's fields and what finalizing needs.

    An image whose split is not known yet goes to `candidates/`.
    """
    sums: dict[str, str] = {}

    def place(kind: str) -> str:
        parent = f"{kind}/{candidate.split}" if candidate.split else f"candidates/{kind}"
        return f"{parent}/{shard}/{candidate.name}.png"

    def write(name: str, image: np.ndarray) -> str:
        write_png(folder / name, image.astype(np.float32) / 255 if image.dtype == np.uint8 else image)
        sums[name] = sha256_of(folder / name)
        return name

    image = write(place("images"), candidate.image)
    reference = image if candidate.reference is None else write(place("references"), candidate.reference)
    given = []
    for stem, photo in candidate.references:
        given.append(name := f"references/people/{distinct(candidate.identity)}/{stem}.png")
        if (folder / name).is_file():  # images of one person share the photos
            sums[name] = sha256_of(folder / name)
        else:
            write(name, photo)
    lq = recipe = None
    if candidate.lq is not None:
        recipe = candidate.recipe or {"operators": [], "origin": "came with the image"}
        lq = write(place("lq"), candidate.lq)
    elif candidate.split == "val" and space is not None:
        lq = place("lq")
        recipe = degrade(folder / image, folder / lq, candidate.name, space, seed)
        sums[lq] = sha256_of(folder / lq)
    points, vector, similarity = candidate.landmarks_68, candidate.vector, candidate.similarity
    same = ("split", "identity", "prompt", "shot", "source", "licence", "generator")
    return {
        "name": candidate.name,
        "record": {
            **{name: getattr(candidate, name) for name in same},
            "image": image,
            "face_box": [round(float(v), 2) for v in candidate.face_box],
            "landmarks_68": None if points is None else np.round(points, 2).tolist(),
            "width": candidate.image.shape[1],
            "height": candidate.image.shape[0],
            "sha256": sums[image],
            "lq": lq,
            "recipe": recipe,
        },
        "reference": reference,
        "given": given,
        "similarity": None if similarity is None else round(float(similarity), 4),
        "vector": None if vector is None else [round(float(v), 6) for v in vector],
        "measured": {name: float(value) for name, value in candidate.measured.items()},
        "sums": sums,
    }


def summarise(folder: str | Path) -> BuildSummary:
    """Count what a finished set holds."""
    folder = Path(folder)
    summary = BuildSummary(folder)
    people: set[tuple[str, str]] = set()
    for record in stream_manifest(folder):
        summary.images[record.split] += 1
        summary.sources[record.source] += 1
        summary.pairs += record.lq is not None
        people.add((record.split, record.identity))
    for split, _ in sorted(people):
        summary.people[split] += 1
    for row in rejected_rows(folder):
        summary.rejected[row["reason"].split(":")[0]] += 1
        summary.quarantined += row["stage"] == BAD_INPUT
    return summary


def rejected_rows(folder: str | Path) -> Iterable[dict[str, Any]]:
    """The lines of `rejected.jsonl`, one by one."""
    path = Path(folder) / "rejected.jsonl"
    if path.is_file():
        with open(path, encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def largest(faces: Sequence[Face]) -> Face | None:
    """The largest face, or None."""
    return max(faces, key=lambda face: face.size, default=None)
