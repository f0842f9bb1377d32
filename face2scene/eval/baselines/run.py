"""Run other methods on our images: stage the inputs, start the program, check its images, record the run.

runs/<name>/  images/*.png  baseline.json (see `record`)  log.txt  scores.csv  scores.json
"""

import logging
import os
import shlex
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from face2scene.common.files import sha256_of
from face2scene.common.processes import ProcessResult, run_group
from face2scene.eval.baselines.adapter import Adapter, AdapterError
from face2scene.eval.baselines.methods import predict_folder
from face2scene.eval.baselines.record import (
    PredictionRecord,
    checkout_of,
    compat_warnings,
    gpu_model,
    here,
    inputs_of,
    interpreter_of,
)
from face2scene.eval.baselines.staging import Staged, StagingError, collect_output, lay_out, stage
from face2scene.eval.scoring.pairing import some
from face2scene.image_io.arrays import list_images, write_png
from face2scene.inference.tasks import RestorationTask
from face2scene.ref_fr.external_programs import stage_references

log = logging.getLogger(__name__)
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@dataclass
class BaselineResult:
    """The result of running a method: numbers of images, and what happened to single ones."""

    made: int = 0
    finished_before: int = 0
    missing: dict[str, str] = field(default_factory=dict)  # image -> reason
    notes: dict[str, str] = field(default_factory=dict)  # image -> what was done to its result

    @property
    def complete(self) -> bool:
        return not self.missing

    def add(self, name: str, image: Tensor | None, note: str, record: PredictionRecord) -> bool:
        """Write the image of `collect_output`, or note why there is none; returns whether it was written."""
        if image is None:
            self.missing[name] = note
            return False
        write_png(record.target(name), image)
        self.missing.pop(name, None)
        self.made += 1
        if note:
            self.notes[name] = note
        return True

    def write(self, record: PredictionRecord) -> None:
        record.write(complete=self.complete, missing=self.missing, notes=self.notes)

    def __str__(self) -> str:
        total = self.made + self.finished_before + len(self.missing)
        state = "complete" if self.complete else f"INCOMPLETE, {len(self.missing)} of {total} images are missing"
        return f"{self.made} images made, {self.finished_before} were there before; {state}."


def commands(adapter: Adapter, rows: Sequence[Staged], *, scale: int, seed: int) -> list[str]:
    """The commands of a dry run, one line per launch (one without images too), with the scratch folder as `SCRATCH`."""
    lines = []
    for group in _launches(adapter, rows) or [[]]:
        words = adapter.words(**_values(adapter, group, Path("SCRATCH"), scale=scale, seed=seed))
        place = f"cd {shlex.quote(str(adapter.place))} && " if adapter.place else ""
        variables = " ".join(f"{key}={shlex.quote(value)}" for key, value in _variables(adapter, "0").items())
        lines.append(f"{place}{variables} {shlex.join(words)}   # {len(group)} images")
    return lines


def run_command(
    adapter: Adapter,
    tasks: Sequence[RestorationTask],
    output: str | Path,
    *,
    scale: int = 1,
    seed: int = 0,
    gpu: str = "0",
    timeout: float | None = None,
    scratch: str | Path | None = None,
) -> BaselineResult:
    """Make the missing predictions with an external program.

    The program is judged by its images: each must exist, be readable, have the size that follows from its input, and
    not be of one colour. Images that fail are named in the record, and the row is incomplete. Images that were made
    before from these inputs are kept, and so are those of a launch that is interrupted.

    Args:
        gpu: the value of CUDA_VISIBLE_DEVICES: one, as some of these programs fail with several.
        timeout: seconds of one launch.
        scratch: where folders for the program are made; None is the system's temporary folder.

    Raises:
        AdapterError: something that it needs is not on this machine.
        StagingError: images that do not fit the method.
        ValueError: `output` holds predictions made otherwise.
    """
    output, rows = Path(output), lay_out(adapter, tasks, scale)
    if absent := adapter.missing():
        raise AdapterError(f"{adapter.title} cannot be started here:\n  " + "\n  ".join(absent))
    for warning in compat_warnings(adapter):
        log.warning("%s: %s.", adapter.title, warning)
    facts = {"weights": adapter.found(), "checkout": checkout_of(adapter), "scale": scale, "seed": seed}
    record = PredictionRecord(output, adapter, inputs_of(adapter, tasks), **facts)
    todo = [row for row in rows if not record.is_done(row.name)]
    missing = {row.name: "it was not tried" for row in todo}
    outcome = BaselineResult(finished_before=len(rows) - len(todo), missing=missing)
    where = {"gpu": gpu, "gpu_model": gpu_model(gpu), "interpreter": interpreter_of(adapter)} if todo else {}
    for group in _launches(adapter, todo):
        with tempfile.TemporaryDirectory(prefix="face2scene_", dir=scratch) as temporary:
            home = Path(temporary)
            words = _prepare(adapter, group, home, scale=scale, seed=seed)
            variables = {"PYTHONPATH": ""} | _variables(adapter, gpu)  # PYTHONPATH would put our packages before theirs
            place = {"folder": adapter.place, "environment": variables, "timeout": timeout}
            start, result = perf_counter(), ProcessResult(None, 0.0, None, None, "it was stopped before its end")
            try:
                result = run_group(words, log=output / "log.txt", **place)
            finally:  # after Ctrl-C too, so that finished images are kept
                seconds = perf_counter() - start
                times = _collect(adapter, group, home, record, outcome, result)
                launch = {"command": [word.replace(str(home), "SCRATCH") for word in words], **where}
                record.add_launch(launch | _described(result, seconds, times))
                outcome.write(record)
    outcome.write(record)
    return outcome


def run_in_process(
    adapter: Adapter,
    tasks: Sequence[RestorationTask],
    output: str | Path,
    predict: Callable[[], tuple[int, int, dict[str, str], float]],
    *,
    weights: Mapping[str, Path],
    device: torch.device | str = "cpu",
    base_dtype: Callable[[], str | None] = lambda: None,
    **facts: Any,
) -> BaselineResult:
    """The same record for a method of this process; raises as `PredictionRecord`.

    Args:
        predict: returns the numbers of images made now and before, the reasons of those that failed, and the method's
            seconds.
        weights: name -> file or folder that it reads.
        base_dtype: gives the precision of its diffusion base, if it has one, for the row's note.
        facts: scale, seed, options and whatever else decides its images.
    """
    record = PredictionRecord(Path(output), adapter, inputs_of(adapter, tasks), weights=weights, **facts)
    made, before, failed, seconds = predict()
    outcome = BaselineResult(made, before, failed)
    per_image = round(seconds / made, 3) if made else None
    if made or failed:
        launch = {"pictures": made, "seconds": round(seconds, 2), "seconds_per_picture": per_image}
        precise = {"base_dtype": found} if (found := base_dtype()) else {}
        record.add_launch(launch | {"seconds_are": "without loading the method", **precise, **here(device)})
    outcome.write(record)
    return outcome


def import_folder(
    folder: str | Path,
    tasks: Sequence[RestorationTask],
    output: str | Path,
    *,
    adapter: Adapter | None = None,
    scale: int = 1,
    said: str = "",
) -> BaselineResult:
    """Copy predictions that were made elsewhere, with their names and sizes checked.

    An image is looked for under the adapter's output pattern and under its plain name: at its own place below
    `folder`, and anywhere below it where no other input has its name. One that has changed is copied again, one that
    has been removed is removed here too.

    Args:
        said: how they were made, for the record.

    Raises:
        FileNotFoundError: no such folder.
        StagingError: two files could be the same image.
        ValueError: `output` holds predictions made otherwise.
    """
    folder = Path(folder)
    method = adapter or Adapter(title=folder.name, kind="method")
    found: dict[str, list[Path]] = {}
    for path in list_images(folder):
        found.setdefault(path.relative_to(folder).as_posix(), []).append(path)
        found.setdefault(path.name, []).append(path)
    plain = Adapter(title=method.title, kind="method", other_sizes=method.other_sizes)
    stems = Counter(task.path.stem for task in tasks)
    rows, images, outcome = lay_out(plain, tasks, scale), inputs_of(plain, tasks), BaselineResult()
    sources: dict[str, Path] = {}
    for row in rows:
        names = [method.output.format(stem=row.name), f"{row.name}.png"]
        if stems[row.path.stem] == 1:  # otherwise it could belong to another input
            names += [Path(name).name for name in names]
        files = next((found[name] for name in names if name in found), [])
        if len(set(files)) > 1:
            raise StagingError(
                f"{folder} holds {len(set(files))} images called {files[0].name}: give the folder of one."
            )
        if files:
            sources[row.name] = files[0]
        else:
            outcome.missing[row.name] = f"no {names[0]} or {names[1]} in {folder}"
        images[row.name]["source_sha256"] = sha256_of(files[0]) if files else None
    if unused := {path for paths in found.values() for path in paths} - set(sources.values()):
        log.warning("%d images of no input are left out: %s", len(unused), some(sorted(path.name for path in unused)))
    facts = {"weights": {}, "scale": scale, "imported": str(folder.resolve()), "said": said}
    record = PredictionRecord(Path(output), method, images, **facts)
    for row in rows:
        if record.is_done(row.name):
            outcome.finished_before += 1
        elif row.name in sources:
            outcome.add(row.name, *collect_output(plain, row, sources[row.name]), record)
    outcome.write(record)
    return outcome


def _launches(adapter: Adapter, rows: Sequence[Staged]) -> list[list[Staged]]:
    if adapter.per_image:
        return [[row] for row in rows]
    if not adapter.per_identity:
        return [list(rows)] if rows else []
    groups: dict[tuple[Path, ...], list[Staged]] = {}
    for row in rows:
        groups.setdefault(row.references, []).append(row)
    return list(groups.values())


def _values(adapter: Adapter, group: Sequence[Staged], home: Path, *, scale: int, seed: int) -> dict[str, Any]:
    factor = {"x4": 4, "same": 1, "face": 1}.get(adapter.sizes, scale)
    values = {name: home / name for name in ("input", "output", "references")}
    one = {"stem": group[0].stem, "side": min(group[0].expected)} if group else {"stem": "STEM", "side": "SIDE"}
    return {**values, **one, "scratch": home, "scale": factor, "seed": seed}


def _variables(adapter: Adapter, gpu: str) -> dict[str, str]:
    chosen = {"CUDA_VISIBLE_DEVICES": gpu, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # numbered as nvidia-smi does
    return {**chosen, **OFFLINE, **{key: str(value) for key, value in adapter.variables.items()}}


def _prepare(adapter: Adapter, group: Sequence[Staged], home: Path, *, scale: int, seed: int) -> list[str]:
    """Write everything that a launch reads; returns its command."""
    values = _values(adapter, group, home, scale=scale, seed=seed)
    for name in ("input", "output", "references"):
        values[name].mkdir(parents=True)
    for row in group:
        stage(adapter, row, values["input"])
    if adapter.layout == "flat" and (adapter.per_identity or (adapter.per_image and adapter.uses_references)):
        stage_references(group[0].references, values["references"], adapter.references)
    for name, text in adapter.texts(**values).items():
        for path in {home / name.format(stem=row.stem) for row in group}:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
    words = adapter.words(**values)
    log.info("%s: %d images, %s", adapter.title, len(group), shlex.join(words))
    return words


def _described(result: ProcessResult, seconds: float, times: Sequence[float]) -> dict[str, Any]:
    """The record's entry of a launch whose images were written at these times."""
    gaps = [after - before for before, after in pairwise(sorted(times))]
    return {
        "pictures": len(times),
        "exit_code": result.code,
        "seconds": round(seconds, 2),
        "seconds_per_picture": round(seconds / len(times), 3) if times else None,
        "seconds_are": "with starting and loading it",
        # without loading, of a program that writes each image as soon as it is made
        "seconds_between_pictures": round(median(gaps), 3) if len(gaps) > 1 else None,
        "peak_memory_mib": result.peak_memory_mib,
        "peak_gpu_memory_mib": result.peak_gpu_memory_mib,
        "last_line": result.last_line,
    }


def _collect(
    adapter: Adapter,
    group: Sequence[Staged],
    home: Path,
    record: PredictionRecord,
    outcome: BaselineResult,
    result: ProcessResult,
) -> list[float]:
    """Copy the usable images of a launch; returns when each was written by the program."""
    times = []
    for row in group:
        # A pattern may lead out of the output folder: one program writes beside its input.
        pattern = adapter.output.format(stem=row.stem)
        found = list((home / "output").glob(pattern)) if "*" in pattern else []
        path = found[0] if len(found) == 1 else Path(os.path.normpath(home / "output" / pattern))
        image, note = collect_output(adapter, row, path)
        if image is None:
            note = f"{note} ({result})"
        elif adapter.trust_exit and result.code:
            image, note = None, f"the program failed ({result})"
        if outcome.add(row.name, image, note, record):
            times.append(path.stat().st_mtime)
    return times


def by_method(
    adapter: Adapter, tasks: list[RestorationTask], output: Path, scale: int
) -> tuple[int, int, dict[str, str], float]:
    """Images by a method in this process; see `run_in_process`."""
    getattr(adapter.method, "network", None)  # loads it, so that loading does not count as an image's time
    inputs = {task.name: task.path for task in tasks}
    before = sum((output / "images" / f"{name}.png").is_file() for name in inputs)
    failed, seconds = predict_folder(adapter.method, inputs, output, scale=scale)
    return len(inputs) - before - len(failed), before, failed, seconds


def weights_of(adapter: Adapter) -> dict[str, Path]:
    """Weights of a method in this process: the folder or file in its options, else the assets of its adapter."""
    named = {name: getattr(adapter.method, name, None) for name in ("folder", "path")}
    return {name: Path(path) for name, path in named.items() if path} or adapter.found()


def base_dtype_of(network: Any) -> str | None:
    """Precision of a network's VAE and UNet, `float32` or `bfloat16 (VAE), float32 (UNet)`; None where it has none."""
    parts = {name: getattr(network, name.lower(), None) for name in ("VAE", "UNet")}
    if None in parts.values():
        return None
    kinds = {name: str(part.dtype).removeprefix("torch.") for name, part in parts.items()}
    return kinds["VAE"] if len({*kinds.values()}) == 1 else ", ".join(f"{kind} ({n})" for n, kind in kinds.items())
