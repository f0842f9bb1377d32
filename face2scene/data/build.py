"""How a dataset folder comes to be: items made one by one, each with a side-car, joined at the end.

An item is done when its side-car in `parts/` is there; everything is written whole or not at all, and an
item's pictures depend on nothing but its settings. So a build may be stopped at any moment and started
again, and any number of processes write the same set.
"""

import json
import logging
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from face2scene.data.manifest import METADATA, Record, read_manifest, write_manifest
from face2scene.files import atomic_write, read_json, sha256_of, write_json
from face2scene.images import read_tensor, write_png
from face2scene.records import Box, Face
from face2scene.runs import seed_from

log = logging.getLogger(__name__)

PARTS = "parts"
SETTINGS = "build.json"
# In the order of removal: what says that a set is finished goes first, what says that it is ours last.
_OURS = (METADATA, "metadata.jsonl", "rejected.jsonl", "images", "references", "lq", PARTS, SETTINGS)


class BuildError(RuntimeError):
    """A dataset that cannot be built as asked; the message names the option to change."""


class Space(Protocol):
    """Where the recipes of validation pairs are drawn from: `face2scene.degradation.Space`."""

    def draw(self, rng: np.random.Generator) -> Any: ...


@dataclass(frozen=True)
class Draft:
    """A picture on its way into the set, before the other pictures of its person are known."""

    name: str  # unique in the set, without suffix
    picture: np.ndarray  # (size, size, 3) uint8 or float [0, 1]
    reference: np.ndarray | None  # how it looks as a reference of others; None: like `picture`
    split: str
    identity: str
    prompt: str
    shot: str
    face_box: Box
    landmarks_68: np.ndarray | None
    vector: np.ndarray | None  # identity, to check references with
    source: str
    licence: str
    generator: dict[str, Any]


@dataclass(frozen=True)
class Made:
    """What came of one item."""

    drafts: Sequence[Draft] = ()
    rejected: Sequence[tuple[str, str]] = ()  # name and reason


class Source(Protocol):
    """Where pictures come from: generated people, photos."""

    def listing(self) -> Any:
        """What the items depend on beside the settings (files and their sizes), for JSON."""

    def items(self) -> Sequence[Any]:
        """The items, always in the same order; cheap."""

    def key(self, item: Any) -> str:
        """A file name for the item, unique over all sources."""

    def make(self, item: Any) -> Made:
        """Do one item; the same item gives the same bytes."""


@dataclass
class Summary:
    """What a set holds, for printing."""

    folder: Path
    pictures: Counter = field(default_factory=Counter)  # by split
    people: Counter = field(default_factory=Counter)
    sources: Counter = field(default_factory=Counter)
    rejected: Counter = field(default_factory=Counter)  # by reason
    pairs: int = 0
    built: bool = True

    def __str__(self) -> str:
        lines = [f"{self.folder}: {sum(self.pictures.values())} pictures of {sum(self.people.values())} people"]
        lines += [f"  {s}: {self.pictures[s]} pictures of {self.people[s]} people" for s in sorted(self.pictures)]
        lines += [f"  from {source}: {count}" for source, count in sorted(self.sources.items())]
        lines.append(f"  fixed LQ pairs: {self.pairs}")
        lines += [f"  left out, {reason}: {count}" for reason, count in sorted(self.rejected.items())]
        if self.rejected:
            lines.append(f"  every file left out is named in {self.folder / 'rejected.jsonl'}")
        return "\n".join(lines)


def build(
    folder: str | Path,
    sources: Sequence[Source],
    *,
    settings: Mapping[str, Any],
    space: Space | None,
    size: int,
    seed: int = 0,
    max_references: int = 4,
    reference_threshold: float | None = None,
    jsonl: bool = False,
    overwrite: bool = False,
    rank: int = 0,
    processes: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> Summary:
    """Build a dataset, go on with one, or find it finished.

    Args:
        folder: where; must be new, empty, or written by this function with equal `settings`.
        sources: in the order of the records.
        settings: everything that the pictures depend on, for JSON; compared with those of an earlier start.
        space: of the fixed degradations of validation pictures; None makes no pairs.
        size: side of the pictures.
        seed: of the degradations.
        max_references: per picture.
        reference_threshold: lowest identity cosine of a picture to its references; None takes all of the
            identity.
        jsonl: write `metadata.jsonl` too.
        overwrite: throw away what an earlier build wrote here.
        rank, processes: this process does every item whose number is `rank` modulo `processes`.
        wait: returns when all processes have called it.

    Raises:
        BuildError: for a folder with other settings or with somebody else's files.
    """
    folder = Path(folder)
    settings = {**settings, "listings": [source.listing() for source in sources]}
    if rank == 0:
        _open_folder(folder, json.loads(json.dumps(settings)), overwrite)
    wait()
    if (folder / METADATA).is_file():
        if rank == 0:
            shutil.rmtree(folder / PARTS, ignore_errors=True)
        summary = summarise(folder)
        summary.built = False
        return summary
    items = [(source, number, item) for source in sources for number, item in enumerate(source.items())]
    mine = items[rank::processes]
    for source, number, item in tqdm(mine, desc=f"building {folder.name}", disable=rank > 0, unit="item"):
        part = folder / PARTS / f"{source.key(item)}.json"
        if not part.is_file():
            made = source.make(item)
            rows = [_store(folder, draft, number, size, space, seed) for draft in made.drafts]
            write_json(part, {"rows": rows, "rejected": [list(pair) for pair in made.rejected]})
    wait()
    if rank == 0:
        _join(
            folder,
            [source.key(item) for source, _, item in items],
            reference_threshold,
            max_references,
            jsonl,
        )
    wait()
    return summarise(folder)


def _open_folder(folder: Path, settings: dict, overwrite: bool) -> None:
    if overwrite and (folder / SETTINGS).is_file():
        for name in _OURS:
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink(missing_ok=True)
    if (folder / SETTINGS).is_file():
        before = read_json(folder / SETTINGS)
        changed = sorted(k for k in {*before, *settings} if before.get(k) != settings.get(k))
        if changed:
            raise BuildError(
                f"{folder} was built with other settings (different: {', '.join(changed)}). "
                "Choose another data.root, or say data.overwrite=true to build it anew."
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise BuildError(f"{folder} holds files that no build wrote. Choose an empty folder as data.root.")
    else:
        write_json(folder / SETTINGS, settings)


def _store(folder: Path, draft: Draft, number: int, size: int, space: Space | None, seed: int) -> dict[str, Any]:
    # Write one picture and what belongs to it; returns the record's fields plus what joining needs.
    shard = f"{number // 1000:03d}"  # no folder grows beyond what a listing can bear
    image = f"images/{draft.split}/{shard}/{draft.name}.png"
    write_png(folder / image, _as_float(draft.picture))
    reference = image
    if draft.reference is not None:
        reference = f"references/{draft.split}/{shard}/{draft.name}.png"
        write_png(folder / reference, _as_float(draft.reference))
    lq = recipe = None
    if draft.split == "val" and space is not None:
        lq = f"lq/{draft.split}/{shard}/{draft.name}.png"
        rng = np.random.default_rng(seed_from("validation", seed, draft.name))
        drawn = space.draw(rng)
        for _ in range(8):  # spaces leave some pictures as they are; such a pair would measure nothing
            if drawn.operators:
                break
            drawn = space.draw(rng)
        drawn = drawn.with_noise_seed(seed_from("validation noise", seed, draft.name))
        write_png(folder / lq, drawn.apply(read_tensor(folder / image)))
        recipe = drawn.to_dict()
    points = draft.landmarks_68
    return {
        "record": {
            "image": image,
            "split": draft.split,
            "identity": draft.identity,
            "prompt": draft.prompt,
            "shot": draft.shot,
            "face_box": [round(float(v), 2) for v in draft.face_box],
            "landmarks_68": None if points is None else np.round(points, 2).tolist(),
            "width": size,
            "height": size,
            "sha256": sha256_of(folder / image),
            "source": draft.source,
            "licence": draft.licence,
            "generator": draft.generator,
            "lq": lq,
            "recipe": recipe,
        },
        "reference": reference,
        "vector": None if draft.vector is None else [round(float(v), 6) for v in draft.vector],
    }


def _as_float(picture: np.ndarray) -> np.ndarray:
    return picture.astype(np.float32) / 255 if picture.dtype == np.uint8 else picture


def _join(folder: Path, keys: Sequence[str], threshold: float | None, max_references: int, jsonl: bool) -> None:
    # Two passes over the side-cars, so that memory holds identities and not records.
    people: dict[str, list[tuple[str, str, np.ndarray | None]]] = defaultdict(list)
    seen: dict[str, str] = {}
    rejected: list[dict[str, str]] = []
    twins: set[str] = set()
    for part in _parts(folder, keys):
        rejected += [{"name": name, "reason": reason} for name, reason in part["rejected"]]
        for row in part["rows"]:
            record = row["record"]
            first = seen.setdefault(record["sha256"], record["image"])
            if first != record["image"]:
                twins.add(record["image"])
                file = record["generator"].get("file")
                name = f"{record['source']}/{file}" if file else record["image"]
                rejected.append({"name": name, "reason": f"same picture as: {first}"})
                for name in {record["image"], row["reference"], record["lq"]} - {None}:
                    (folder / name).unlink(missing_ok=True)
                continue
            vector = None if row["vector"] is None else np.array(row["vector"])
            people[record["identity"]].append((record["image"], row["reference"], vector))

    needed: set[str] = set()

    def records() -> Iterator[Record]:
        for part in _parts(folder, keys):
            for row in part["rows"]:
                fields = row["record"]
                if fields["image"] in twins:
                    continue
                vector = None if row["vector"] is None else np.array(row["vector"])
                chosen = []
                for image, reference, other in people[fields["identity"]]:
                    near = None if vector is None or other is None else float(vector @ other)
                    if image != fields["image"] and (near is None or threshold is None or near >= threshold):
                        chosen.append((reference, near))
                chosen = chosen[:max_references]
                needed.update(reference for reference, _ in chosen)
                near = chosen[0][1] if chosen else None
                points = fields["landmarks_68"]
                yield Record(
                    **{
                        **fields,
                        "face_box": tuple(fields["face_box"]),
                        "landmarks_68": tuple(map(tuple, points)) if points else None,
                        "references": tuple(reference for reference, _ in chosen),
                        "similarity": None if near is None else round(near, 4),
                    }
                )

    with atomic_write(folder / "rejected.jsonl") as lines:
        lines.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rejected), encoding="utf-8")
    for _ in records():  # the first run only finds which references anybody needs; the others go
        pass
    for path in sorted((folder / "references").rglob("*.png")):
        if path.relative_to(folder).as_posix() not in needed:
            path.unlink()
    for path in folder.rglob("*.partial.*"):
        path.unlink()  # left by a killed process
    count = write_manifest(folder, records(), jsonl=jsonl)  # last: this file says that the set is finished
    if not count:
        (folder / METADATA).unlink()
        raise BuildError(f"No picture was accepted; {folder / 'rejected.jsonl'} says why for each.")
    shutil.rmtree(folder / PARTS)


def _parts(folder: Path, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    for key in keys:
        yield read_json(folder / PARTS / f"{key}.json")


def summarise(folder: str | Path) -> Summary:
    """Count what a finished set holds."""
    folder = Path(folder)
    summary = Summary(folder)
    records = read_manifest(folder)
    for record in records:
        summary.pictures[record.split] += 1
        summary.sources[record.source] += 1
        summary.pairs += record.lq is not None
    for split, _ in sorted({(record.split, record.identity) for record in records}):
        summary.people[split] += 1
    if (folder / "rejected.jsonl").is_file():
        for line in (folder / "rejected.jsonl").read_text(encoding="utf-8").splitlines():
            summary.rejected[json.loads(line)["reason"].split(":")[0]] += 1
    return summary


def largest(faces: Sequence[Face]) -> Face | None:
    """The largest face, or None."""
    return max(faces, key=lambda face: face.size, default=None)
