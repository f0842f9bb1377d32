"""Values and features of finished images with the hashes of their files, so that the same call again goes on.

Every process of a distributed run keeps its own part; process 0 merges them.
"""

import logging
import math
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from face2scene.common.files import atomic_write, read_json, write_json
from face2scene.eval.metrics.registry import METRICS
from face2scene.eval.scoring.pairing import UNCERTAIN, ScoreRow

log = logging.getLogger(__name__)
STATE = "scores.state.json"
SAVE_EVERY = 16  # fewest images of one folder between two writes


def recall(row: ScoreRow) -> None:
    """Read the values that earlier runs computed for exactly these files, boxes, protocols and weights."""
    for path in [row.out / STATE, *sorted(row.out.glob("scores.state.*.json"))]:
        if path.is_file():
            _read(row, path)


def save(row: ScoreRow, rank: int | None) -> None:
    """Write the row's values; `rank` names the part of one process."""
    path = row.out / (STATE if rank is None else f"scores.state.{rank}.json")
    names = row.values.keys() | row.shifts.keys() | {name for found in row.undefined.values() for name in found}
    images = {
        name: {
            "sha256": list(row.hashes[name]),
            "box": _box(row, name),
            "values": row.values.get(name, {}),
            "undefined": {key: found[name] for key, found in row.undefined.items() if name in found},
            **({"offset": _stored(shift)} if (shift := row.shifts.get(name)) else {}),
        }
        for name in row.paths
        if name in names and name not in row.flagged
    }
    features = {key: tensor.contiguous() for key, tensor in row.features.items()}
    if features:
        with atomic_write(path.with_suffix(".safetensors")) as partial:
            save_file(features, partial)
    held = {key for found in row.values.values() for key in found} | {key.split("/", 1)[0] for key in row.features}
    protocol = {key: METRICS[key].identity for key in METRICS if key in held or row.undefined.get(key)}
    flagged = {name: {"sha256": list(row.hashes[name]), "why": why} for name, why in row.flagged.items()}
    write_json(path, {"protocol": protocol, "pictures": images, "flagged": flagged})
    row.unsaved = 0


def gather(row: ScoreRow, processes: int) -> None:
    """Merge the parts of all processes into one file and remove them.

    Flags are taken from this run's processes alone: parts of earlier runs may be of other metrics.
    """
    parts = {path: int(path.stem.rpartition(".")[2]) for path in row.out.glob("scores.state.*.json")}
    recall(row)
    for part, rank in parts.items():
        for name, flag in read_json(part)["flagged"].items() if rank < processes else ():
            if name in row.hashes and tuple(flag["sha256"]) == row.hashes[name]:
                row.flagged[name] = flag["why"]
    for name in row.flagged:
        row.values.pop(name, None)
    save(row, None)
    for part in parts:
        part.unlink()
        part.with_suffix(".safetensors").unlink(missing_ok=True)


def _read(row: ScoreRow, path: Path) -> None:
    try:
        stored = read_json(path)
        # Values of other metrics than those of this call are kept too.
        known = [key for key, of in stored["protocol"].items() if key in METRICS and METRICS[key].identity == of]
        current = set()
        for name, entry in stored["pictures"].items():
            if name not in row.paths or tuple(entry["sha256"]) != row.hashes[name]:
                continue
            moved = entry.get("box") != _box(row, name)
            if moved and row.region != "whole":
                continue
            current.add(name)
            usable = [key for key in known if not moved or METRICS[key].compares != "faces"]
            values = {key: float(entry["values"][key]) for key in usable if key in entry["values"]}
            row.values.setdefault(name, {}).update({k: v for k, v in values.items() if math.isfinite(v)})
            for key, why in entry.get("undefined", {}).items():
                if key in usable:
                    row.undefined.setdefault(key, {})[name] = why
            if "offset" in entry:  # `shift` of earlier versions was told of blurred images too
                kept = entry["offset"]
                named = {None: (math.nan, math.nan), "uncertain": UNCERTAIN}
                row.shifts[name] = (float(kept[0]), float(kept[1])) if isinstance(kept, list) else named[kept]
        features = path.with_suffix(".safetensors")
        for key, tensor in (load_file(features) if features.is_file() else {}).items():
            metric, _, name = key.split("/", 2)
            if metric in known and name in current:
                row.features[key] = tensor
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, SafetensorError) as error:
        row.values.clear(), row.undefined.clear(), row.shifts.clear(), row.features.clear()
        log.warning("%s cannot be read and is written anew (%s)", path, error)


def _stored(shift: tuple[float, float]) -> list[float] | str | None:
    return list(shift) if math.isfinite(shift[0]) else None if math.isnan(shift[0]) else "uncertain"


def _box(row: ScoreRow, name: str) -> list[float] | None:
    return [round(float(value), 3) for value in row.boxes[name]] if name in row.boxes else None
