"""How a dataset folder comes to be: items made one by one, each with a side-car, joined at the end.

An item is done when its side-car in `parts/` is there; everything is written whole or not at all, and an
item's images depend on nothing but its settings. So a build may be stopped at any moment and started
again, and any number of processes write the same set. `finalize.py` makes one set of the side-cars.
"""

import base64
import errno
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from face2scene.common.files import sha256_of, write_json
from face2scene.common.ledger import claim
from face2scene.common.types import Box, Face
from face2scene.data.building.finalize import PARTS, BuildError, FinalizePlan, RecipeSource, degrade, finalize
from face2scene.data.building.names import safe
from face2scene.data.records import METADATA, SETTINGS, SUMS, stream_manifest
from face2scene.image_io.arrays import write_png

# In the order of removal: what says that a set is finished goes first, what says that it is ours last.
_OURS = (
    *(METADATA, "metadata.jsonl", SUMS, "rejected.jsonl", "funnel.html", "identities.html"),
    *("images", "references", "lq", "candidates", PARTS, SETTINGS),
)
BAD_INPUT = "input"  # the stage that quarantines what cannot be read


@dataclass(frozen=True)
class RecordCandidate:
    """An image on its way into the set, before the other images of its person are known."""

    name: str  # unique in the set, without suffix
    image: np.ndarray  # (H, W, 3) uint8 or float [0, 1]
    reference: np.ndarray | None  # how it looks as a reference of others; None: like `image`
    split: str | None  # None: drawn by identity when all are known
    identity: str | None  # None: found by comparing faces when all are known
    prompt: str
    shot: str
    face_box: Box
    landmarks_68: np.ndarray | None
    vector: np.ndarray | None  # identity, to check references with
    source: str
    licence: str
    generator: dict[str, Any]
    measured: Mapping[str, float] = field(default_factory=dict)  # what stages measured, for selection and report
    references: Sequence[tuple[str, np.ndarray]] = ()  # photos of the person from outside the set: name, image
    similarity: float | None = None  # to the first of these
    lq: np.ndarray | None = None  # a degraded image that came with it
    recipe: dict[str, Any] | None = None  # and what is known of how


class Rejection(NamedTuple):
    """An image that was left out."""

    name: str
    reason: str  # what kind, then a colon and the particulars
    stage: str = "acceptance"  # `input` is for what cannot be read: it is quarantined, and the exit code says so
    measured: Mapping[str, float] = {}
    thumbnail: bytes | None = None  # JPEG, for the report


@dataclass(frozen=True)
class BuildResult:
    """What came of one item, or of a portion of one."""

    drafts: Sequence[RecordCandidate] = ()
    rejected: Sequence[Rejection] = ()


class ImageSource(Protocol):
    """Where images come from: generated people, photos.

    A source whose items are long (an archive) also has `chunks(item, start)`: it yields a `BuildResult` for every
    portion from number `start` on, and the same portion always has the same images. `make` is then not called.
    """

    def listing(self) -> Any:
        """What the items depend on beside the settings (files and their sizes), for JSON."""

    def items(self) -> Sequence[Any]:
        """The items, always in the same order; cheap."""

    def key(self, item: Any) -> str:
        """A file name for the item, unique over all sources."""

    def make(self, item: Any) -> BuildResult:
        """Do one item; the same item gives the same bytes."""


@dataclass
class BuildSummary:
    """What a set holds, for printing."""

    folder: Path
    images: Counter = field(default_factory=Counter)  # by split
    people: Counter = field(default_factory=Counter)
    sources: Counter = field(default_factory=Counter)
    rejected: Counter = field(default_factory=Counter)  # by reason
    quarantined: int = 0  # of the rejected: unreadable
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
    space: RecipeSource | None,
    seed: int = 0,
    plan: FinalizePlan | None = None,
    jsonl: bool = False,
    overwrite: bool = False,
    rank: int = 0,
    processes: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> BuildSummary:
    """Build a dataset, go on with one, or find it finished.

    Args:
        folder: where; must be new, empty, or written by this function with equal `settings`.
        sources: in the order of the records.
        settings: everything that the images depend on, for JSON; compared with those of an earlier start.
        space: of the fixed degradations of validation images; None makes no pairs.
        seed: of the degradations, and of the splits that no source fixes.
        plan: what is decided when all images are known; None decides nothing.
        jsonl: write `metadata.jsonl` too.
        overwrite: throw away what an earlier build wrote here.
        rank, processes: this process does every item whose number is `rank` modulo `processes`.
        wait: returns when all processes have called it.

    Raises:
        BuildError: for a folder with other settings or with somebody else's files, and for a full disk: free some
            space and start again, nothing half-written was left.
    """
    folder = Path(folder)
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
    with _disk_full_said(folder):
        numbered = ((source, number, item) for source in sources for number, item in enumerate(source.items()))
        total = sum(len(source.items()) for source in sources)
        bar = tqdm(
            total=len(range(rank, total, processes)), desc=f"building {folder.name}", disable=rank > 0, unit="item"
        )
        for position, (source, number, item) in enumerate(numbered):
            if position % processes == rank:
                _do(folder, source, number, item, space, seed)
                bar.update()
        bar.close()
        wait()
        if rank == 0:
            keys = (source.key(item) for source in sources for item in source.items())
            finalize(folder, keys, plan or FinalizePlan(), space=space, seed=seed, jsonl=jsonl)
    wait()
    return summarise(folder)


def _do(folder: Path, source: ImageSource, number: int, item: Any, space: RecipeSource | None, seed: int) -> None:
    key = source.key(item)
    part = folder / PARTS / f"{key}.json"
    if part.is_file():
        return
    if not hasattr(source, "chunks"):
        write_json(part, _stored(folder, source.make(item), f"{number // 1000:03d}", space, seed))
        return
    start = 0
    while (folder / PARTS / key / f"{start:06d}.json").is_file():
        start += 1
    for portion, made in enumerate(source.chunks(item, start), start):
        shard = f"{number:05d}-{portion // 4:03d}"
        write_json(folder / PARTS / key / f"{portion:06d}.json", _stored(folder, made, shard, space, seed))
        start = portion + 1
    write_json(part, {"chunks": start})


def _open_folder(folder: Path, settings: dict, overwrite: bool) -> None:
    if overwrite and (folder / SETTINGS).is_file():
        for name in _OURS:
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink(missing_ok=True)
    try:
        changed = claim(folder / SETTINGS, settings)
    except FileExistsError as error:
        sentence = f"{folder} holds files that no build wrote. Choose an empty folder as data.root."
        raise BuildError(sentence) from error
    if changed:
        raise BuildError(
            f"{folder} was built with other settings (different: {', '.join(changed)}). "
            "Choose another data.root, or say data.overwrite=true to build it anew."
        )


def _stored(folder: Path, made: BuildResult, shard: str, space: RecipeSource | None, seed: int) -> dict[str, Any]:
    # Write the images of an item; returns its side-car.
    return {
        "rows": [_store(folder, draft, shard, space, seed) for draft in made.drafts],
        "rejected": [
            {
                "name": name,
                "reason": reason,
                "stage": stage,
                "measured": dict(measured),
                "thumbnail": base64.b64encode(thumbnail).decode() if thumbnail else None,
            }
            for name, reason, stage, measured, thumbnail in made.rejected
        ],
    }


def _store(folder: Path, draft: RecordCandidate, shard: str, space: RecipeSource | None, seed: int) -> dict[str, Any]:
    # Write one image and what belongs to it; returns the record's fields plus what joining needs. An image whose
    # split is not known yet waits among the candidates.
    def where(kind: str) -> str:
        place = f"{kind}/{draft.split}" if draft.split else f"candidates/{kind}"
        return f"{place}/{shard}/{draft.name}.png"

    image = where("images")
    write_png(folder / image, _as_float(draft.image))
    sums = {image: sha256_of(folder / image)}
    reference = image
    if draft.reference is not None:
        reference = where("references")
        write_png(folder / reference, _as_float(draft.reference))
        sums[reference] = sha256_of(folder / reference)
    given = []
    for name, reference_image in draft.references:
        given.append(f"references/people/{safe(draft.identity)}/{name}.png")
        if not (folder / given[-1]).is_file():  # whole, and the same: images of one person share them
            write_png(folder / given[-1], _as_float(reference_image))
        sums[given[-1]] = sha256_of(folder / given[-1])
    lq = recipe = None
    if draft.lq is not None:
        lq, recipe = where("lq"), draft.recipe or {"operators": [], "origin": "came with the image"}
        write_png(folder / lq, _as_float(draft.lq))
        sums[lq] = sha256_of(folder / lq)
    elif draft.split == "val" and space is not None:
        lq = where("lq")
        recipe = degrade(folder / image, folder / lq, draft.name, space, seed)
        sums[lq] = sha256_of(folder / lq)
    points = draft.landmarks_68
    return {
        "name": draft.name,
        "record": {
            "image": image,
            "split": draft.split,
            "identity": draft.identity,
            "prompt": draft.prompt,
            "shot": draft.shot,
            "face_box": [round(float(v), 2) for v in draft.face_box],
            "landmarks_68": None if points is None else np.round(points, 2).tolist(),
            "width": draft.image.shape[1],
            "height": draft.image.shape[0],
            "sha256": sums[image],
            "source": draft.source,
            "licence": draft.licence,
            "generator": draft.generator,
            "lq": lq,
            "recipe": recipe,
        },
        "reference": reference,
        "given": given,
        "similarity": None if draft.similarity is None else round(float(draft.similarity), 4),
        "vector": None if draft.vector is None else [round(float(v), 6) for v in draft.vector],
        "measured": {name: float(value) for name, value in draft.measured.items()},
        "sums": sums,
    }


def _as_float(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) / 255 if image.dtype == np.uint8 else image


@contextmanager
def _disk_full_said(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        full = "disk is full" in str(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if not full:
            raise
        raise BuildError(
            f"The disk of {folder} is full ({error}). What is finished stays: free some space and start the same "
            "command again."
        ) from error


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
