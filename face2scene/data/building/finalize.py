"""Turns the images of a build into one set: everything that is decided only when all images are known.

Duplicates, selection by quality, identities, splits, and references. Decisions follow from the side-cars alone, so they
can be made again after a crash. Rows are compared in a scratch database on disk; in memory are only the measures for
the selection, 8 bytes each, and the grouping of unknown people, which compares all faces with all.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from face2scene.common.files import atomic_write, remove_partials, sha256_of
from face2scene.common.reproducibility import seed_from
from face2scene.data.building.filter_report import write_filter_report
from face2scene.data.building.identity_clusters import Grouping, write_review
from face2scene.data.building.staging_db import PARTS, StagingDB
from face2scene.data.records import Record, write_manifest, write_sums
from face2scene.degradation import Mixture, Space
from face2scene.image_io.arrays import read_tensor, write_png

Degradations = Space | Mixture  # what the recipes of validation pairs are drawn from


class BuildError(RuntimeError):
    """A dataset that cannot be built as asked; the message names the option to change."""


@dataclass(frozen=True)
class Selection:
    """Keeps the best images by several measures, as HQ-ACF does (OSDHuman, ICML 2025; the shares are ours).

    Every measure is z-scored over the images that have all of them; an image's score is the mean of its z-scores.
    """

    measures: Mapping[
        str, str | bool
    ]  # name to the better direction, `higher` or `lower`; False removes an inherited one
    keep: float = 1 / 3  # share of the images that is kept, in (0, 1]

    def __post_init__(self) -> None:
        object.__setattr__(self, "measures", {name: way for name, way in self.measures.items() if way is not False})
        if not 0 < self.keep <= 1 or not self.measures:
            raise ValueError(f"data.selection needs measures and a share to keep in (0, 1]: {self}.")
        if wrong := [name for name, way in self.measures.items() if way not in ("higher", "lower")]:
            raise ValueError(f"data.selection.measures: {wrong} must say which is better, higher or lower.")


@dataclass(frozen=True)
class FinalizePlan:
    """Decisions that need all images."""

    max_references: int = 4  # per image
    reference_threshold: float | None = None  # lowest identity cosine of an image to its references; None takes all
    selection: Selection | None = None  # None keeps all images
    grouping: Grouping | None = None  # of images of unknown identity; None gives each an identity of its own
    min_photos: int = 1  # people with fewer images are left out
    val_share: float = 0.1  # of the people, by seed, in the validation split, where the source gives no split
    report: bool = False  # write the filter report, `funnel.html`
    thresholds: Mapping[str, Any] = field(default_factory=dict)  # by measure, shown in the report
    stages: tuple[str, ...] = ()  # names of the filter's stages in order, for the report


def degrade(image: Path, lq: Path, name: str, space: Degradations, seed: int) -> dict[str, Any]:
    """Write the fixed degraded image of a validation image; returns its recipe."""
    rng = np.random.default_rng(seed_from("validation", seed, name))
    drawn = space.draw(rng)
    for _ in range(8):  # a space may draw no operator at all; such a pair would measure nothing
        if drawn.operators:
            break
        drawn = space.draw(rng)
    drawn = drawn.with_noise_seed(seed_from("validation noise", seed, name))
    write_png(lq, drawn.apply(read_tensor(image)))
    return drawn.to_dict()


def finalize(
    folder: Path, keys: Iterable[str], plan: FinalizePlan, *, space: Degradations | None, seed: int, jsonl: bool
) -> None:
    """Make one set from the side-cars in `parts/`, and remove them.

    Raises:
        BuildError: no image was accepted.
    """
    table = StagingDB(folder / PARTS / "join.sqlite")
    table.fill(folder, keys)
    _drop_duplicates(table)
    if plan.selection:
        _select(table, plan.selection)
    _assign_identities(table, plan)
    _split(table, plan, seed)
    _move_files(folder, table, space, seed)
    with (
        atomic_write(folder / "rejected.jsonl") as partial,
        open(partial, "w", encoding="utf-8", newline="\n") as lines,
    ):
        for row in table.rejected():
            lines.write(json.dumps({k: row[k] for k in ("name", "reason", "stage")}, ensure_ascii=False) + "\n")
    if not table.count_kept():
        raise BuildError(f"No image was accepted; {folder / 'rejected.jsonl'} says why for each.")
    if plan.report:
        write_filter_report(folder / "funnel.html", table, plan.thresholds, plan.stages)
    if plan.grouping:
        write_review(folder / "identities.html", table.groups(), plan.grouping)
    for _ in _records(table, plan):  # a first pass only marks the references in use; the others are removed
        pass
    for name in table.unneeded_references():
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "candidates", ignore_errors=True)
    remove_partials(folder, "")
    beside = [name for name in ("rejected.jsonl", "funnel.html", "identities.html") if (folder / name).is_file()]
    write_sums(folder, (*table.sums(), *((name, sha256_of(folder / name)) for name in beside)))
    write_manifest(folder, _records(table, plan), jsonl=jsonl)  # last: this file marks the set as finished
    table.db.close()
    shutil.rmtree(folder / PARTS)


def _drop_duplicates(table: StagingDB) -> None:
    table.db.execute(
        "update rows set stage = 'duplicates', reason = 'same image as: ' || "
        "(select first.image from rows first where first.sha = rows.sha and first.stage is null order by n limit 1) "
        "where stage is null and n > (select min(first.n) from rows first where first.sha = rows.sha)"
    )


def _select(table: StagingDB, selection: Selection) -> None:
    names = list(selection.measures)
    rows = ((n, *(row[m] for m in names)) for n, row in table.measured() if all(m in row for m in names))
    columns = np.fromiter(chain.from_iterable(rows), float).reshape(-1, 1 + len(names))  # number, measures
    if not len(columns):
        return
    values = columns[:, 1:]
    signs = np.array([1.0 if selection.measures[name] == "higher" else -1.0 for name in names])
    z_scores = (values - values.mean(0)) / values.std(0).clip(1e-12)
    scores = (signs * z_scores).mean(1).round(9)
    order = np.argsort(-scores, kind="stable")
    keep = max(1, round(selection.keep * len(columns)))
    lowest = f"the best {selection.keep:g} have {scores[order[keep - 1]]:.3f}"
    for i in order[keep:]:
        table.reject(int(columns[i, 0]), "selection", f"not among the best: mean z-score {scores[i]:.3f}, {lowest}")


def _assign_identities(table: StagingDB, plan: FinalizePlan) -> None:
    unknown = table.db.execute("select count(*) from rows where stage is null and identity is null").fetchone()[0]
    if unknown and plan.grouping:
        rows = table.db.execute(
            "select n, source, name, vector from rows where stage is null and identity is null and vector is not null "
            "order by n"
        ).fetchall()
        vectors = np.array([np.frombuffer(vector) for *_, vector in rows])
        groups = plan.grouping.groups(vectors, [name for _, _, name, _ in rows])
        for (n, source, _, _), group in zip(rows, groups, strict=True):
            if group is None:
                table.reject(n, "identity", "left out by data.grouping.out")
            else:
                table.db.execute("update rows set identity = ? where n = ?", (f"{source}_p{group:05d}", n))
    table.db.execute("update rows set identity = name where identity is null")
    if plan.min_photos > 1:
        table.db.execute(
            "update rows set stage = 'identity', reason = 'too few photos of this person: ' || "
            "(select count(*) from rows other where other.identity = rows.identity and other.stage is null) || "
            f"', needed are {plan.min_photos}' where stage is null and identity in "
            "(select identity from rows where stage is null group by identity having count(*) < ?)",
            (plan.min_photos,),
        )


def _split(table: StagingDB, plan: FinalizePlan, seed: int) -> None:
    query = "select distinct identity from rows where split is null and stage is null order by identity"
    for (identity,) in table.db.execute(query).fetchall():
        split = "val" if seed_from("split", seed, identity) / 2**63 < plan.val_share else "train"
        table.db.execute("update rows set split = ? where split is null and identity = ?", (split, identity))


def _move_files(folder: Path, table: StagingDB, space: Degradations | None, seed: int) -> None:
    # Candidates move to their split, rejected ones are removed; any of it may have happened before a crash.
    table.db.commit()
    for n, name, image, reference, lq, stage, split in table.files():
        if stage is not None:
            for file in {image, reference, lq} - {None}:
                (folder / file).unlink(missing_ok=True)
            continue
        if not image.startswith("candidates/"):
            continue
        moved = {}
        for file in {image, reference, lq} - {None}:
            kind, rest = file.removeprefix("candidates/").split("/", 1)
            moved[file] = f"{kind}/{split}/{rest}"
            if (folder / file).is_file():
                (folder / moved[file]).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).replace(folder / moved[file])
        table.move(n, moved)
        if split == "val" and lq is None and space is not None:
            lq = moved[image].replace("images/", "lq/", 1)
            recipe = degrade(folder / moved[image], folder / lq, name, space, seed)
            table.add_pair(n, lq, recipe, sha256_of(folder / lq))
    table.db.commit()


def _records(table: StagingDB, plan: FinalizePlan) -> Iterator[Record]:
    threshold, limit = plan.reference_threshold, plan.max_references
    for n, fields, vector, given, similarity in table.kept_rows():
        chosen: list[tuple[str, float | None]] = [(name, similarity if not i else None) for i, name in enumerate(given)]
        if not given:
            for other, reference, towards in table.rows_of(fields["identity"], fields["split"]):
                near = None if vector is None or towards is None else float(vector @ towards)
                if other != n and (near is None or threshold is None or near >= threshold):
                    chosen.append((reference, near))
                if len(chosen) == limit:
                    break
        chosen = chosen[:limit]
        table.db.executemany("insert or ignore into needed values (?)", [(reference,) for reference, _ in chosen])
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
