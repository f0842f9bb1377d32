"""The validation images of a set under another degradation: same ground truth, same references, new LQ."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
from tqdm import tqdm

from face2scene.common.ledger import claim
from face2scene.common.reproducibility import seed_from
from face2scene.data.building.build import BuildError, RecipeSource
from face2scene.data.records import METADATA, SETTINGS, read_manifest, version_of, write_manifest
from face2scene.image_io.arrays import read_tensor, write_png


def redegrade(folder: str | Path, out: str | Path, space: RecipeSource, *, settings: dict, seed: int = 0) -> int:
    """Write the fixed pairs of `folder` to `out` with degradations drawn from `space`; returns how many there are.

    An image's draw follows from the seed and its name, as in `data.build`. Images are linked where the file system
    can, else copied. The same call again finds its work done.

    Args:
        settings: what `space` was made from, for JSON; compared with an earlier call's.

    Raises:
        BuildError: `out` holds something else.
    """
    folder, out = Path(folder), Path(out)
    records = [record for record in read_manifest(folder, "val") if record.lq]
    try:
        changed = claim(out / SETTINGS, {"again": version_of(folder), "seed": seed, **settings})
    except FileExistsError as error:
        raise BuildError(f"{out} holds files that were not written here. Choose an empty folder.") from error
    if changed:
        raise BuildError(f"{out} was made from other images or another degradation. Choose another folder.")
    if (out / METADATA).is_file():
        return len(records)
    made = []
    for record in tqdm(records, desc=f"degrading {folder.name} again", unit="image"):
        for name in {record.image, *record.references}:
            _link(folder / name, out / name)
        stem = Path(record.image).stem
        rng = np.random.default_rng(seed_from("validation", seed, stem))
        drawn = space.draw(rng)
        for _ in range(8):  # as in build: an image that stays as it is would measure nothing
            if drawn.operators:
                break
            drawn = space.draw(rng)
        drawn = drawn.with_noise_seed(seed_from("validation noise", seed, stem))
        write_png(out / str(record.lq), drawn.apply(read_tensor(folder / record.image)))
        made.append(dataclasses.replace(record, recipe=drawn.to_dict()))
    return write_manifest(out, made)  # last: this file says that the set is finished


def _link(source: Path, target: Path) -> None:
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system
        partial = target.with_name(f".{target.name}.partial")
        shutil.copyfile(source, partial)
        partial.replace(target)
