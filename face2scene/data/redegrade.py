"""The validation images of a set under another degradation: same ground truth, same references, new LQ."""

import dataclasses
import os
import shutil
from pathlib import Path

from tqdm.auto import tqdm

from face2scene.common.files import atomic_write, remove_partials
from face2scene.common.ledger import claim
from face2scene.common.locks import locked
from face2scene.data.building.build import BuildError
from face2scene.data.building.finalize import Degradations, degrade
from face2scene.data.records import METADATA, SETTINGS, read_manifest, version_of, write_manifest


def redegrade(folder: str | Path, out: str | Path, space: Degradations, *, settings: dict, seed: int = 0) -> int:
    """Write the fixed pairs of `folder` to `out` with degradations drawn from `space`; returns their number.

    An image's draw follows from the seed and its name, as in `building.finalize`. Images are hard links where the file
    system allows, else copies. A repeated call with equal arguments changes nothing.

    Args:
        settings: what `space` was made from, as JSON; compared with an earlier call's.

    Raises:
        BuildError: `out` holds something else.
        FolderInUse: another process writes there.
    """
    folder, out = Path(folder), Path(out)
    with locked(out, "choose another output"):
        return _redegrade(folder, out, space, settings, seed)


def _redegrade(folder: Path, out: Path, space: Degradations, settings: dict, seed: int) -> int:
    records = [record for record in read_manifest(folder, "val") if record.lq]
    try:
        changed = claim(out / SETTINGS, {"again": version_of(folder), "seed": seed, **settings})
    except FileExistsError as error:
        raise BuildError(f"{out} holds files that were not written here. Choose an empty folder.") from error
    if changed:
        raise BuildError(f"{out} was made from other images or another degradation. Choose another folder.")
    if (out / METADATA).is_file():
        return len(records)
    remove_partials(out, "")
    made = []
    for record in tqdm(records, desc=f"degrading {folder.name} again", unit="image"):
        for name in {record.image, *record.references}:
            _link(folder / name, out / name)
        recipe = degrade(folder / record.image, out / record.lq, Path(record.image).stem, space, seed)
        made.append(dataclasses.replace(record, recipe=recipe))
    return write_manifest(out, made)  # last: this file marks the set as finished


def _link(source: Path, target: Path) -> None:
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)  # the file, where the set has a link to it
    except OSError:  # another file system
        with atomic_write(target) as partial:
            shutil.copyfile(source, partial)
