"""Per-image results that others can send (results.schema.json): written from a scored run, and checked.

What cannot be compared is refused by name; what is comparable but lacks something is kept and marked incomplete.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from face2scene.common.files import read_json, sha256_of
from face2scene.common.reproducibility import commit
from face2scene.eval.metrics.registry import METRICS
from face2scene.eval.scoring.cache import STATE
from face2scene.eval.scoring.pairing import ScoreError, image_header, some
from face2scene.eval.scoring.results import read_scores
from face2scene.image_io.arrays import list_images

FILE = "results.json"
FORMAT = "face2scene-results-1"
_BEYOND = 0.1  # share of a learned metric's range by which single images may leave it, ours
_LARGEST = 1e9  # of a number
_EQUAL = {"ssim": 1, "ssim_y": 1, "lpips": 0, "lpips_vgg": 0, "dists": 0}  # of an image that is its ground truth
_TYPES: Any = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None)}


def results_of(run: str | Path) -> dict[str, Any]:
    """The contents of `results.json` for a scored run of `run_baseline` or of `eval predictions=`.

    Raises:
        FileNotFoundError, ScoreError: it is not scored, without a ground truth, with images of another set beside its
            own, or its images have changed or are gone.
    """
    run = Path(run)
    scores, values = read_scores(run)
    state = read_json(run / STATE)["pictures"] if (run / STATE).is_file() else {}
    hashes = {name: entry["sha256"][0] for name, entry in state.items()}
    if foreign := scores["pictures"]["without_truth"]:
        raise ScoreError(
            f"{scores['predictions']} holds {len(foreign)} images that have no ground truth, so two sets are mixed in "
            f"it: {some(foreign)}. Take them out and score it again (option predictions)."
        )
    record = read_json(run / "baseline.json") if (run / "baseline.json").is_file() else {}
    adapter, inputs = record.get("adapter", {}), record.get("pictures", {})
    files, images = {path.stem: path for path in list_images(scores["predictions"])}, {}
    for name in [name for name, found in values.items() if found]:
        images[name] = (_facts(files[name]) if name in files else {"sha256": ""}) | {"scores": values[name]}
    if other := [n for n, image in images.items() if image["sha256"] != hashes.get(n, image["sha256"] or None)]:
        raise ScoreError(f"{scores['predictions']} has changed since it was scored: {some(other)}. Score it again.")
    digests = [[name, inputs[name]["input_sha256"]] for name in sorted(images) if name in inputs]
    whole = hashlib.sha256(json.dumps(digests).encode()).hexdigest() if len(digests) == len(images) else None
    return {
        "format": FORMAT,
        "method": adapter.get("title", run.name),
        "set": {"name": run.parent.name, **scores["truth"], "inputs_sha256": whole},
        "code": {
            "repository": adapter.get("repository", "") if record.get("checkout") else "",  # else this project's
            "commit": (record.get("checkout") or record).get("commit") or record.get("face2scene") or "unknown",
            "scored_by": commit(),
        },
        "weights": [{"name": n, "sha256": digest} for n, digest in (record.get("weights_sha256") or {}).items()]
        or ([] if record else [{"name": "not recorded", "sha256": None}]),
        "protocol": {key: METRICS[key].identity for key in scores["protocol"] if METRICS[key].compares != "sets"},
        "images": images,
    }


def read_results(file: str | Path) -> tuple[dict[str, Any], list[str]]:
    """A results file that is fit for comparison, and why it is incomplete, one sentence each.

    Images beside it (`images/NAME.png` or `NAME.png`) are compared with what it says of them.

    Raises:
        ScoreError: not a file of the schema, images of two sets, or an image that is not the one that was scored.
    """
    file = Path(file)
    try:
        results = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ScoreError(f"{file} is no JSON ({error}).") from error
    schema = read_json(Path(__file__).with_name("results.schema.json"))
    if wrong := list(_violations(results, schema, "")):
        raise ScoreError(f"{file} is refused, {len(wrong)} values are not of results.schema.json: {some(wrong)}.")
    images, expected = results["images"], results["set"]["pictures"]
    if len(images) > expected:
        raise ScoreError(
            f"{file} is refused: it has {len(images)} images of a set of {expected}, so two sets are mixed in it."
        )
    folder = file.parent / "images" if (file.parent / "images").is_dir() else file.parent
    for name, said in images.items():
        path = folder / f"{name}.png"
        if path.is_file() and (found := _facts(path)) != {key: said[key] for key in found}:
            raise ScoreError(f"{file} is refused: {path} is not the image that was scored as {name}.")
    lacking = [f"{expected - len(images)} of {expected} images are missing"] if len(images) < expected else []
    lacking += [f"the weights {w['name']} have no hash" for w in results["weights"] if w["sha256"] is None]
    if not results["protocol"].keys() & METRICS.keys():
        lacking.append("no metric's protocol is stated")
    for key in results["protocol"]:
        low, high = METRICS[key].bounds if key in METRICS else (None, None)
        low, high = -math.inf if low is None else low - _BEYOND, math.inf if high is None else high * (1 + _BEYOND)
        found = {name: image["scores"].get(key) for name, image in images.items()}
        if wrong := [f"{name} ({v})" for name, v in found.items() if v is not None and not low <= v <= high]:
            raise ScoreError(f"{file} is refused: {key} cannot be what it says of {some(wrong)}.")
        if key in METRICS and METRICS[key].compares == "sets":
            raise ScoreError(f"{file} is refused: {key} is of whole sets and no image has it.")
        if without := [name for name, value in found.items() if value is None and not _may_lack(key, images[name])]:
            lacking.append(f"{key} is missing for {some(without)}")
    return results, lacking


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{some(key for key in found if keys.count(key) > 1)} twice in one object")
    return found


def _may_lack(key: str, image: Mapping[str, Any]) -> bool:
    """ID without a face, and PSNR where another metric says that the image equals its ground truth."""
    equal = any(image["scores"].get(other) == value for other, value in _EQUAL.items())
    return key == "id" or (key in ("psnr", "psnr_y") and equal)


def check_against(results: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> None:
    """Compare results with others on the same set.

    Raises:
        ScoreError: a set of another number of images, images that the others do not have, of another size, or made
            from other inputs.
    """
    for other in others:
        known, mine = other["images"], results["images"]
        if (count := other["set"]["pictures"]) != results["set"]["pictures"]:
            raise ScoreError(
                f"{results['method']} states another size of this set than {other['method']}: not {count}."
            )
        foreign = [name for name in mine if name not in known]
        if (names := len(known) + len(foreign)) > other["set"]["pictures"]:
            raise ScoreError(
                f"{results['method']} has images of another set than {other['method']}: {some(foreign)} "
                f"({names} names in both together, of a set of {other['set']['pictures']})."
            )
        sizes = {n: [(one["width"], one["height"]) for one in (mine[n], known[n])] for n in mine if n in known}
        if wrong := [f"{n} is {a[0]} x {a[1]}, not {b[0]} x {b[1]}" for n, (a, b) in sizes.items() if a != b]:
            raise ScoreError(f"{results['method']} has images of another size than {other['method']}: {some(wrong)}.")
        inputs = [one["set"].get("inputs_sha256") for one in (results, other)]
        if len(mine) == len(known) and None not in inputs and inputs[0] != inputs[1]:
            raise ScoreError(f"{results['method']} was made from other inputs than {other['method']} of the same set.")


def _facts(path: Path) -> dict[str, Any]:
    header = image_header(path)
    mode, _, bits = header.mode.partition(" of ")
    size = {"width": header.size[1], "height": header.size[0]}
    return {"sha256": sha256_of(path), **size, "mode": mode, "bits": int(bits.split()[0]) if bits else 8}


def _violations(value: Any, schema: Mapping[str, Any], place: str) -> Iterator[str]:
    """Of the part of JSON Schema that results.schema.json uses; each names its place."""
    here = place or "the file"
    if "const" in schema and (value != schema["const"] or isinstance(value, bool)):
        yield f"{here} is {json.dumps(value)[:40]} and has to be {json.dumps(schema['const'])}"
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and (isinstance(value, bool) or not any(isinstance(value, _TYPES[kind]) for kind in kinds)):
        yield f"{here} is no {' or '.join(kinds)}"
    elif isinstance(value, str) and not re.fullmatch(schema.get("pattern", r"[\s\S]*"), value):
        yield f"{here} is {value[:40]!r} and has to match {schema['pattern']}"
    elif isinstance(value, int | float) and not max(schema.get("minimum", -_LARGEST), -_LARGEST) <= value <= _LARGEST:
        yield f"{here} is {str(value)[:40]}"
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _violations(item, schema["items"], f"{place}[{number}]")
    elif isinstance(value, dict):
        yield from (f"{place}.{key} is missing".lstrip(".") for key in schema.get("required", ()) if key not in value)
        if len(value) < schema.get("minProperties", 0):
            yield f"{here} is empty"
        for key, item in value.items():
            yield from _violations(key, schema.get("propertyNames", {}), f"{place} name {key[:40]!r}".lstrip())
            part = schema.get("properties", {}).get(key, schema.get("additionalProperties", False))
            if part is False:
                yield f"{place}.{key} is unknown".lstrip(".")
            else:
                yield from _violations(item, part, f"{place}.{key}".lstrip("."))
