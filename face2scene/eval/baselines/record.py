"""The record of a method's predictions, `baseline.json`: how they were made, and which of them are still valid.

All images of a folder are of one method, one set of weights and one checkout; others are refused. Each belongs to the
input and the references whose digests are in the record; an image of another input is made again.
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from face2scene.common.files import read_json, sha256_of, write_json
from face2scene.common.ledger import content, differences, plain
from face2scene.common.memory import peak_memory
from face2scene.common.provenance import versions
from face2scene.common.reproducibility import REPOSITORY, commit
from face2scene.eval.baselines.adapter import Adapter
from face2scene.eval.baselines.staging import SHRINK
from face2scene.inference.tasks import RestorationTask

log = logging.getLogger(__name__)
RECORD = "baseline.json"
# Fields of an adapter that decide its images; weights and checkout are compared by content.
_DECIDES = ("kind", "sizes", "folder", "command", "options", "files", "output", "multiple", "other_sizes", "layout")
_DECIDES += ("per_identity", "references", "variables", "method", "pipeline")


class PredictionRecord:
    """The record of a folder, written before any image is made.

    Images of another input, of other references or of an imported file that has changed are removed.

    Args:
        images: name -> digests of what it depends on, see `inputs_of`.
        weights: name -> file or folder; their digests are compared.
        facts: scale, seed and whatever else decides the images.

    Raises:
        ValueError: the folder holds images that were made otherwise, or that are in no record.
    """

    def __init__(
        self,
        folder: Path,
        adapter: Adapter,
        images: Mapping[str, Mapping[str, Any]],
        *,
        weights: Mapping[str, Path],
        checkout: Mapping[str, Any] | None = None,
        **facts: Any,
    ):
        self.folder = folder
        same_size = facts.get("scale", 1) == 1
        wanted = plain(
            {
                "adapter": _as_dict(adapter),
                **facts,
                "size_mode": "face" if adapter.sizes == "face" else "same size" if same_size else "x4",
                "shrunk_by": SHRINK if adapter.sizes == "x4" and same_size and "imported" not in facts else None,
                "checkout": checkout,
                "weights_sha256": {name: content(path) for name, path in weights.items()},
            }
        )
        before = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
        known = before.get("pictures", {})
        if changed := differences(_deciding(before, wanted), _deciding(wanted, wanted)) if before else []:
            if any((folder / "images").rglob("*.png")):
                raise ValueError(
                    f"{folder} holds predictions that were made otherwise (different: {', '.join(changed)}). Choose "
                    "another name=..., or remove the folder."
                )
            before, known = {}, {}  # it has no images
        there = [name for name in images if self.target(name).is_file()]
        if foreign := [name for name in there if name not in known]:
            raise ValueError(
                f"{folder} holds {len(foreign)} images whose input is not in {RECORD}, such as {foreign[0]}. "
                "Choose another name=..., or remove the folder."
            )
        images = plain(images)
        stale = [name for name in there if known[name] != images[name]]
        if stale:
            log.warning("%d earlier images are of another input and are removed, such as %s.", len(stale), stale[0])
        for name in stale:
            self.target(name).unlink()
        launches = {"launches": before.get("launches", [])}
        notes = {name: note for name, note in before.get("notes", {}).items() if name not in stale}
        self.values = wanted | {"pictures": known | images, "notes": notes} | launches
        self.write(complete=False, missing={})

    def target(self, name: str) -> Path:
        """The file of a prediction."""
        return self.folder / "images" / f"{name}.png"

    def is_done(self, name: str) -> bool:
        return self.target(name).is_file()

    def add_launch(self, launch: Mapping[str, Any]) -> None:
        self.values["launches"].append(dict(launch))

    def write(self, *, complete: bool, missing: Mapping[str, str], notes: Mapping[str, str] | None = None) -> None:
        """Write baseline.json; `missing` and `notes` are as in `BaselineResult`."""
        self.values["notes"] |= dict(notes or {})
        state = {"complete": complete, "missing": dict(missing), "face2scene": commit(), "versions": versions()}
        write_json(self.folder / RECORD, self.values | state)


def inputs_of(adapter: Adapter, tasks: Sequence[RestorationTask]) -> dict[str, dict[str, Any]]:
    """Name -> digests of the files that an image is made from."""
    found: dict[str, dict[str, Any]] = {}
    for task in tasks:
        found[task.name] = {"input_sha256": content(task.path)}
        if adapter.kind == "pipeline":
            found[task.name] |= task.contents
        elif adapter.uses_references:
            found[task.name]["references_sha256"] = [content(path) for path in task.references]
    return found


def checkout_of(adapter: Adapter) -> dict[str, Any] | None:
    """Commit of a program's checkout and its changed files; unknown where it is no clone."""
    if adapter.kind != "command" or adapter.place is None:
        return None
    git = ["git", "-C", str(adapter.place)]
    top = _output([*git, "rev-parse", "--show-toplevel"])
    if top is None or Path(top.strip()).resolve() == REPOSITORY:  # unpacked below this repository
        return {"commit": "unknown", "changed_files": None, "changes_sha256": None}
    head, changed = _output([*git, "rev-parse", "HEAD"]), _output([*git, "status", "--porcelain", "-uno"])
    changes = _output([*git, "diff", "HEAD"]) or ""
    return {
        "commit": (head or "unknown").strip(),
        "changed_files": (changed or "").splitlines(),
        "changes_sha256": hashlib.sha256(changes.encode()).hexdigest() if changes else None,
    }


def compat_warnings(adapter: Adapter) -> list[str]:
    """Differences between this machine and what the adapter was written for, one sentence each, without a full stop."""
    found = []
    there = adapter.place is not None and adapter.place.is_dir()
    at = (checkout_of(adapter) or {}).get("commit") if there else None
    if adapter.commit and at is not None and not at.startswith(adapter.commit):
        where = "no clone" if at == "unknown" else f"at {at}"
        found.append(
            f"the checkout {adapter.checkout} is {where}, and the options were read at {adapter.commit} "
            f"(git -C {adapter.checkout} checkout {adapter.commit}, or baseline.commit=COMMIT if it is meant)"
        )
    weights = adapter.found()
    for need in adapter.weights:
        path = weights.get(need.path)
        if need.sha256 and path and path.is_file() and sha256_of(path) != need.sha256:
            found.append(f"{path} is another file than {need.source} (sha256 should be {need.sha256})")
    return found


def interpreter_of(adapter: Adapter) -> dict[str, str] | None:
    """Version of the program's Python and of the packages that decide its images."""
    if adapter.kind != "command" or shutil.which(adapter.python) is None:
        return None
    ask = (
        "import importlib.metadata as m, json, platform\n"
        "found = {'python': platform.python_version()}\n"
        "for name in ('torch', 'diffusers', 'transformers', 'xformers', 'peft', 'basicsr'):\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    answer = _output([adapter.python, "-c", ask], environment)
    return json.loads(answer.splitlines()[-1]) if answer else None


def gpu_model(gpu: str) -> str | None:
    """Name of a card as nvidia-smi numbers it."""
    return (_output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", f"--id={gpu}"]) or "").strip() or None


def here(device: torch.device | str) -> dict[str, Any]:
    """The device of this process, and its peak memory so far."""
    device = torch.device(device)
    on_card = device.type == "cuda"
    return {
        "device": str(device),
        "gpu_model": torch.cuda.get_device_name(device) if on_card else None,
        "peak_memory_mib": peak_memory() // 2**20,
        "peak_gpu_memory_mib": peak_memory(device) // 2**20 if on_card else None,
    }


def _deciding(values: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """The values of a record that decide the images, and the fields of its adapter that do."""
    adapter = values.get("adapter", {})
    return {key: values.get(key) for key in keys} | {"adapter": {key: adapter.get(key) for key in _DECIDES}}


def _output(words: Sequence[str], environment: Mapping[str, str] | None = None) -> str | None:
    """What a command prints; None where it cannot be run or fails."""
    options = {"capture_output": True, "text": True, "errors": "replace", "timeout": 60, "check": True}
    try:
        return subprocess.run(words, env=environment, **options).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _as_dict(adapter: Adapter) -> dict[str, Any]:
    """The adapter for the record, without the path of its interpreter."""
    kept = [one.name for one in fields(Adapter) if one.name not in ("python", "notes", "tried", "method")]
    made = {name: getattr(adapter, name) for name in kept} | {"weights": [asdict(need) for need in adapter.weights]}
    kind = type(adapter.method)
    return made | {"method": None if adapter.method is None else f"{kind.__module__}.{kind.__qualname__}"}
