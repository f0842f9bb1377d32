"""Restore a folder of photos: finished images are skipped, and a broken file fails alone.

Reading, restoring and writing overlap. The restoration log (see `log`) has one line per image and is also the list of
finished work, so the same command continues after any interruption. Other files are overwritten only with `overwrite`.
"""

import errno
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, cast

from tqdm.auto import tqdm

from face2scene.common.choices import one_of
from face2scene.common.files import atomic_write, fitting_name, ready_to_write, remove_partials, write_json
from face2scene.common.ledger import Ledger, content, digest, facts_of, unchanged
from face2scene.common.locks import locked
from face2scene.common.provenance import provenance
from face2scene.common.types import Box, DegradationTokens, Scene
from face2scene.data.building.names import printable
from face2scene.image_io.arrays import output_size, read_tensor, resize, to_array, to_tensor, write_png
from face2scene.image_io.photos import FORMATS, MAX_PIXELS, Photo, read_photo, write_photo
from face2scene.image_io.raw import Development
from face2scene.inference.bursts import Bursts
from face2scene.inference.inputs import enlarged
from face2scene.inference.log import RESTORATION_LOG
from face2scene.inference.pipeline import Face2ScenePipeline
from face2scene.inference.results import BatchResult, DegradationEstimate, Restoration
from face2scene.inference.tasks import RestorationTask, shared_contents, variant_folder

log = logging.getLogger(__name__)
_AHEAD = 2  # images that are read ahead, and images that wait to be written
_WITHOUT_PAIR = {  # source of the tokens -> what that means
    "estimated": "the degradation was estimated from the photo itself",
    "blind": "the degradation was estimated from the photo and its own restoration",
    "null": "no degradation was estimated",
}
_LARGE = 50_000_000  # pixels; with such an image none is read ahead, to save memory
# After these errors nothing more can be written, so the run stops.
_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@dataclass(frozen=True)
class Settings:
    """Options of `restore_folder` that determine its output.

    Raises:
        ValueError: an option out of range.
    """

    # `own` is the method; as ablations, `other` takes the tokens of another image of the list, `null` the null tokens.
    tokens_from: str = "own"
    seed: int = 0
    # Of classifier-free guidance; several share all but the VAE's decoder; None is the restorer's own.
    guidance: float | Sequence[float] | None = None
    token_counts: Sequence[int] = ()  # several numbers of tokens, the first so many; they share Stage I and FaDeX
    scale: float = 1.0  # enlarge before restoring (bicubic); 1 keeps the size
    file_format: str = "png"  # one of `photos.FORMATS`, or `same` as the input's where it can be written, else PNG
    # An image without a usable face takes the mean tokens of images with one that the same camera took within so many
    # seconds; 0 disables it.
    burst_seconds: float = 0.0
    max_pixels: int = MAX_PIXELS  # a larger image is rejected before it is decoded
    development: Development | None = None  # of camera RAW; None is the camera's own brightness and white balance

    def __post_init__(self) -> None:
        one_of("tokens_from", self.tokens_from, ("own", "other", "null"))
        one_of("format", self.file_format, (*FORMATS, "same"))
        if self.token_counts and isinstance(self.guidance, Sequence):
            raise ValueError("Give several values of guidance or of pipeline.max_tokens, not of both.")
        if not self.folders or len(set(self.folders)) < len(self.folders):
            raise ValueError("Of guidance or pipeline.max_tokens give at least one value, and none twice (to 0.01).")
        output_size((1, 1), self.scale)
        if not 0 <= self.burst_seconds < math.inf:
            raise ValueError(f"burst_seconds is {self.burst_seconds}: it must be a number from 0 on.")

    @property
    def folders(self) -> list[str]:
        """Sub-folders of the output: one per value, or the output itself."""
        if self.token_counts:
            return [variant_folder("tokens", count) for count in self.token_counts]
        if isinstance(self.guidance, Sequence):
            return [variant_folder("guidance", value) for value in self.guidance]
        return [""]

    def targets(self, output: Path, task: RestorationTask) -> list[Path]:
        """Files of an image's restoration, one per value."""
        suffix = task.path.suffix.lower()
        if self.file_format != "same" or suffix not in (*FORMATS.values(), ".jpeg", ".tiff"):
            suffix = FORMATS["png" if self.file_format == "same" else self.file_format]
        name = fitting_name(task.stem, suffix)
        return [output / folder / "images" / task.relative_dir / name for folder in self.folders]


def restore_folder(
    pipeline: Face2ScenePipeline,
    tasks: Sequence[RestorationTask],
    output: str | Path,
    *,
    overwrite: bool = False,
    rank: int = 0,
    processes: int = 1,
    wait: Callable[[], None] = lambda: None,
    **settings: Any,
) -> BatchResult:
    """Restore images into `output`/images, at their paths relative to the input; face pairs go to `output`/faces.

    The size is `image_io.arrays.output_size` of the input's. Transparency, bit depth, greyscale, colour profile and
    metadata are kept as far as the format allows.

    Several values of guidance or of token counts share their common work, and each has a folder of its own
    (`variant_folder`) that holds `images`. `output`/sharing.json then has the median seconds per image of all values
    together and of one.

    Args:
        overwrite: replace files of other settings, of another input, or that the log does not list.
        rank, processes: this process's number and their count; each process takes its share.
        wait: a barrier of all processes.
        settings: fields of `Settings`.

    Returns:
        The result of this process's share.

    Raises:
        ValueError: an option out of range, or an output that would overwrite an input.
        OutputError: the output folder cannot be written to.
        FolderInUse: another process restores into it.
    """
    chosen, output = Settings(**settings), Path(output)
    with locked(output, "choose another output", hold=rank == 0):
        _check_output(output, tasks, chosen)
        if rank == 0:
            remove_partials(output, "faces", *(f"{folder}/images".lstrip("/") for folder in chosen.folders))
            Ledger(output / RESTORATION_LOG).gather()
        wait()
        run = _Run(pipeline, tasks, output, chosen, overwrite, Ledger(output / RESTORATION_LOG, rank).read())
        finished = False
        try:
            result = run.restore_all(range(rank, len(tasks), processes))
            finished = not result.stopped
            return result
        finally:
            wait()
            if rank == 0:
                Ledger(output / RESTORATION_LOG).gather(at_end=finished)


@dataclass
class _Run:
    pipeline: Face2ScenePipeline
    tasks: Sequence[RestorationTask]
    output: Path
    settings: Settings
    overwrite: bool
    ledger: Ledger
    result: BatchResult = field(default_factory=BatchResult)
    seconds: list[tuple[float, float]] = field(default_factory=list)  # per image: for one value, for all values
    contents: Callable[[RestorationTask], dict[str, Any]] = field(default_factory=shared_contents)

    def __post_init__(self) -> None:
        self.names = {task.name for task in self.tasks}
        self.bursts = Bursts(self.tasks, self.settings.burst_seconds)
        # `max_pixels` rejects images and does not change the output of the others.
        options = {name: value for name, value in vars(self.settings).items() if name != "max_pixels"}
        model = self.pipeline
        parts = [model.options, model.fingerprint, getattr(model, "dtype", None), model.ref_fr, model.detector]
        self.digest = digest([options, *parts])
        weights = dict(zip(("restorer", "fadex"), getattr(model, "files", ()), strict=False))
        self.provenance = provenance(weights=weights, config=self.digest, device=getattr(model, "device", "cpu"))

    def restore_all(self, share: Sequence[int]) -> BatchResult:
        open_tasks = [number for number in share if self._is_open(number)]
        if open_tasks and self.settings.tokens_from != "null":
            chosen = [self._donor(number) for number in open_tasks]
            self.pipeline.ready(boxes=all(task.box for task in chosen), gts=all(task.gt for task in chosen))
        bar = tqdm(total=len(open_tasks), desc="restoring", unit="image", disable=len(open_tasks) < 2)
        start = perf_counter()
        writing: list[Future] = []
        with ThreadPoolExecutor(_AHEAD) as readers, ThreadPoolExecutor(1) as writer:
            try:
                for number, photo, facts in self._read_ahead(open_tasks, readers):
                    writing += self._restore(number, photo, facts, writer)
                    writing = [future for future in writing if not future.done()]
                    while len(writing) > _AHEAD:  # limits the memory of restored images
                        writing.pop(0).result()
                    bar.update()
                    if self.result.stopped:
                        break
            finally:
                readers.shutdown(wait=False, cancel_futures=True)
        bar.close()
        self.result.seconds = perf_counter() - start
        if self.seconds and 0 in share:
            one, together = map(median, zip(*self.seconds, strict=True))
            sharing = {"values": len(self.settings.folders), "together": together, "one": one, "ratio": together / one}
            write_json(self.output / "sharing.json", {key: round(value, 4) for key, value in sharing.items()})
        return self.result

    def _is_open(self, number: int) -> bool:
        task = self.tasks[number]
        targets, line = self.settings.targets(self.output, task), self.ledger.lines.get(task.file)
        line = None if line and "failed" in line else line
        existing = [target for target in targets if target.exists()]
        if not existing or (self.ledger.corrupt if line is None else line.get("unfinished")):
            return True
        if line is None:
            why = "the restoration log does not list it"
        elif line.get("settings") != self._settings_digest(number):
            why = "it was restored from other settings or weights, references or ground truth"
        elif not unchanged(task.path, line.get("input")):
            why = "it was restored from another file of that name"
        elif len(existing) < len(targets):
            return True
        elif not (
            isinstance(line.get("written"), list) and line["written"] and all(map(unchanged, targets, line["written"]))
        ):
            why = "it was changed after it was written"
        else:
            self.result.skipped += 1
            return False
        if self.overwrite:
            return True
        message = f"{existing[0]} is already there, and {why}: say overwrite=true, or choose another output folder."
        self._record_failure(task, message)
        return False

    def _settings_digest(self, number: int) -> str:
        """Digest of everything that determines an image's restoration, except its own file."""
        task = self.tasks[number]
        donor = self._donor(number)
        others = self.bursts.siblings(task) if donor is task else [donor, *self.bursts.siblings(donor)]
        siblings = [[content(one.path), self.contents(one)] for one in others]
        return digest([self.digest, task.name, self.contents(task), siblings])

    def _donor(self, number: int) -> RestorationTask:
        """The task whose tokens an image gets."""
        if self.settings.tokens_from == "other":
            return self.tasks[(number + max(1, len(self.tasks) // 2)) % len(self.tasks)]
        return self.tasks[number]

    def _read_ahead(
        self, numbers: Sequence[int], readers: ThreadPoolExecutor
    ) -> Iterator[tuple[int, Photo, dict[str, Any]]]:
        todo, pixels = iter(numbers), 0
        ahead: list[tuple[int, Future[tuple[Photo, dict[str, Any]]]]] = []
        while True:
            while len(ahead) < (1 if pixels > _LARGE else _AHEAD + 1) and (number := next(todo, None)) is not None:
                ahead.append((number, readers.submit(self._read_with_facts, number)))
            if not ahead:
                return
            number, future = ahead.pop(0)
            try:
                photo, facts = future.result()
            except Exception as error:  # one bad file must not stop the others
                self._record_failure(self.tasks[number], error)
                continue
            pixels = photo.image.size // 3
            yield number, photo, facts

    def _read_with_facts(self, number: int) -> tuple[Photo, dict[str, Any]]:
        # Facts first: if a file is replaced in between, they are the old one's, and the next start notices it.
        task = self.tasks[number]
        facts = {"settings": self._settings_digest(number), "input": facts_of(task.path, with_change=True)}
        return self._read(task), facts | {"provenance": self.provenance}

    def _read(self, task: RestorationTask) -> Photo:
        photo = read_photo(task.path, max_pixels=self.settings.max_pixels, development=self.settings.development)
        return enlarged(photo, self.settings.scale)

    def _restore(self, number: int, photo: Photo, facts: dict[str, Any], writer: ThreadPoolExecutor) -> list[Future]:
        task, start = self.tasks[number], perf_counter()
        try:
            scene = Scene(task.name, to_tensor(photo.image), people=task.people)
            donor, estimate = self._estimate(number, scene)
            variants = self._variants(scene, estimate)
            results = [next(variants)]
            one = perf_counter() - start
            results += variants
            if self.settings.folders != [""]:
                self.seconds.append((one, perf_counter() - start))
        except Exception as error:
            self._record_failure(task, error)
            return []
        finally:
            self.result.seconds_models += perf_counter() - start
        return [writer.submit(self._write, task, donor, photo, facts, results)]

    def _variants(self, scene: Scene, estimate: DegradationEstimate) -> Iterator[Restoration]:
        guidance, seed = self.settings.guidance, self.settings.seed
        if isinstance(guidance, Sequence):
            yield from self.pipeline.restore_at(scene, estimate, guidance, seed=seed)
            return
        counts: Sequence[int | None] = self.settings.token_counts or [None]
        for count in counts:
            tokens = replace(estimate.tokens, tokens=estimate.tokens.tokens[:, :count])
            yield self.pipeline.restore(scene, replace(estimate, tokens=tokens), guidance=guidance, seed=seed)

    def _estimate(self, number: int, scene: Scene) -> tuple[RestorationTask, DegradationEstimate]:
        task = self._donor(number)
        if self.settings.tokens_from == "null":
            return task, DegradationEstimate(DegradationTokens(self.pipeline.restorer.tokens(None, 1), "null"))
        estimate = self._estimate_task(task, scene if self.settings.tokens_from == "own" else None)
        if self.settings.burst_seconds and estimate.tokens.source != "pair":
            estimate = self.bursts.average(task, estimate, self._estimate_task)
        return task, estimate

    def _estimate_task(self, task: RestorationTask, scene: Scene | None = None) -> DegradationEstimate:
        if scene is None:
            scene = Scene(task.name, to_tensor(self._read(task).image), people=task.people)
        scale = self.settings.scale
        gt = read_tensor(task.gt) if task.gt else None
        if gt is not None and scale != 1:
            gt = resize(gt, output_size((gt.shape[-2], gt.shape[-1]), scale))
        box = cast(Box, tuple(v * scale for v in task.box)) if task.box else None
        return self.pipeline.estimate(scene, gt=gt, box=box, seed=self.settings.seed)

    def _write(
        self, task: RestorationTask, donor: RestorationTask, photo: Photo, facts: dict, results: Sequence[Restoration]
    ) -> None:
        targets, result = self.settings.targets(self.output, task), results[0]
        outputs = [target.relative_to(self.output).as_posix() for target in targets]
        line: dict[str, Any] = {"name": task.file, "output": outputs[0] if self.settings.folders == [""] else outputs}
        line |= {"tokens_from": donor.file} | result.of(photo).notes
        if isinstance(self.settings.guidance, Sequence):
            line["guidance"] = list(self.settings.guidance)
        try:
            faces = result.estimate.face_estimates if donor is task and result.token_source == "pair" else []
            pairs = [face.pair for face in faces]
            for number, pair in enumerate(pairs):
                for path, image in zip(self._face_files(task, number), (pair.degraded, pair.restored), strict=True):
                    write_png(path, image)
            for number in range(len(pairs), len(self.ledger.lines.get(task.file, {}).get("faces") or ())):
                for path in self._face_files(task, number):  # of an earlier image of this name
                    path.unlink(missing_ok=True)
            with ExitStack() as files:
                partials = [files.enter_context(atomic_write(target, durable=True)) for target in targets]
                for partial, one in zip(partials, results, strict=True):
                    lost = write_photo(partial, to_array(one.image), like=photo)
                written = list(map(facts_of, partials))
                line["warnings"] += lost
                line |= facts | {"output_bytes": sum(one["bytes"] for one in written), "written": written}
                # The line is on disk before the image gets its name, so the next start notices a kill in between.
                self.ledger.append(line)
        except Exception as error:
            self._record_failure(task, error)
            if isinstance(error, OSError) and error.errno in _FATAL:
                self.result.stopped = (
                    f"Stopped: nothing more can be written to {self.output} ({error.strerror}). Finished images are "
                    "kept; make room or choose another output, and start the same command again."
                )
            return
        for warning in line["warnings"]:
            log.info("%s: %s", printable(task.file), warning)
        self.result.restored += 1
        self.result.warned += bool(line["warnings"])
        if reason := result.notes.get("no_pair"):
            how = _WITHOUT_PAIR.get(result.token_source, f"{result.token_source} tokens")
            self.result.without_pair[f"{how}, because {reason}"] += 1

    def _face_files(self, task: RestorationTask, number: int) -> list[Path]:
        """Files of a face pair: degraded and restored."""
        stem = task.stem + (f"_{number + 1}" if number else "")
        while number and (task.relative_dir / stem).as_posix() in self.names:  # the first face of another image
            stem += "_"
        folder = self.output / "faces" / task.relative_dir
        return [folder / fitting_name(stem, f"_{kind}.png") for kind in ("degraded", "restored")]

    def _record_failure(self, task: RestorationTask, reason: Exception | str) -> None:
        message = str(reason)
        if isinstance(reason, OSError) and reason.filename:
            message = f"{reason.filename} cannot be used ({reason.strerror})."
        elif isinstance(reason, Exception) and not type(reason).__module__.startswith("face2scene."):
            message = f"{type(reason).__name__}: {reason}"
        self.result.failed[task.file] = message
        if "failed" in self.ledger.lines.get(task.file, {"failed": ""}):  # an earlier result keeps its line
            with suppress(OSError):  # no room
                self.ledger.append({"name": task.file, "failed": message})
        log.warning("%s was not restored. %s", printable(task.file), printable(message))


def _check_output(output: Path, tasks: Sequence[RestorationTask], settings: Settings) -> None:
    inputs = {task.path.resolve() for task in tasks} | {task.gt.resolve() for task in tasks if task.gt}
    shared = {id(task.people): task.people for task in tasks}.values()
    inputs |= {path.resolve() for people in shared for paths in people.values() for path in paths}
    for task in tasks:
        for target in settings.targets(output, task):
            if target.resolve() in inputs or (target.exists() and target.samefile(task.path)):
                raise ValueError(
                    f"output={output} would overwrite the images it reads ({target}). Choose another folder."
                )
    for folder in (output, *(output / folder / "images" for folder in settings.folders)):
        ready_to_write(folder, "output")
