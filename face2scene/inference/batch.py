"""A folder of photos through the pipeline: finished work is skipped, a broken file stops nothing else.

Three things go on at once: the next images are read, one is in the models, the last ones are written. The restoration
log (see `restoration_log`) has one line an image and is also the list of finished work, so the same command again goes
on where it was stopped, whatever stopped it. Nothing that the log does not know is overwritten without being told.
"""

import errno
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryFile
from time import perf_counter
from typing import Any

from tqdm import tqdm

from face2scene.common.files import atomic_write, fitting_name, write_json
from face2scene.common.ledger import Ledger, content, digest, facts_of, unchanged
from face2scene.common.types import DegradationTokens, FacePair, Scene
from face2scene.image_io.arrays import output_size, read_tensor, resize, to_array, to_tensor, write_png
from face2scene.image_io.photos import FORMATS, MAX_PIXELS, Photo, read_photo, write_photo
from face2scene.inference.bursts import Bursts
from face2scene.inference.inputs import enlarged
from face2scene.inference.log import RESTORATION_LOG
from face2scene.inference.pipeline import Face2ScenePipeline
from face2scene.inference.results import DegradationEstimate, Restoration
from face2scene.inference.tasks import RestorationTask, variant_folder

log = logging.getLogger(__name__)
_AHEAD = 2  # images that are read ahead, and that wait to be written
_LARGE = 50_000_000  # pixels; beside such an image none is read ahead, for the memory's sake
# Nothing can be written any more: going on would only spend time.
_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


class OutputError(OSError):
    """The output folder takes nothing; the sentence says why and what to do."""


@dataclass
class BatchResult:
    """What became of a folder."""

    restored: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # file to sentence
    seconds_models: float = 0.0  # in faces, Stage I, FaDeX and the restorer
    seconds: float = 0.0  # from the first image to the last
    stopped: str = ""  # why not all were tried

    def add(self, other: "BatchResult") -> None:
        """Take in what became of another process's share."""
        self.restored += other.restored
        self.skipped += other.skipped
        self.failed |= other.failed
        self.seconds_models += other.seconds_models
        self.seconds = max(self.seconds, other.seconds)
        self.stopped = self.stopped or other.stopped


@dataclass(frozen=True)
class Settings:
    """What the restorations of a folder have in common; see `restore_folder`."""

    tokens_from: str = "own"
    seed: int = 0
    guidance: float | tuple[float, ...] | None = None
    token_counts: tuple[int, ...] = ()
    scale: float = 1.0
    file_format: str = "png"
    burst_seconds: float = 0.0
    max_pixels: int = MAX_PIXELS

    def __post_init__(self):
        if self.tokens_from not in ("own", "other", "null"):
            raise ValueError(f"tokens_from must be own, other or null, not {self.tokens_from!r}.")
        if self.file_format not in (*FORMATS, "same"):
            raise ValueError(f"format is {self.file_format!r}: choose one of {', '.join(FORMATS)} or same.")
        if self.token_counts and isinstance(self.guidance, tuple):
            raise ValueError("Several values are restored of guidance or of pipeline.max_tokens, not of both.")
        if not self.folders or len(set(self.folders)) < len(self.folders):
            raise ValueError("Of guidance or pipeline.max_tokens give at least one value, and none twice (to 0.01).")
        output_size((1, 1), self.scale)

    @property
    def folders(self) -> list[str]:
        """Of the output, one for each of several values."""
        if self.token_counts:
            return [variant_folder("tokens", count) for count in self.token_counts]
        several = isinstance(self.guidance, tuple)
        return [variant_folder("guidance", value) for value in self.guidance] if several else [""]


def restore_folder(
    pipeline: Face2ScenePipeline,
    tasks: Sequence[RestorationTask],
    output: str | Path,
    *,
    tokens_from: str = "own",
    seed: int = 0,
    guidance: float | Sequence[float] | None = None,
    token_counts: Sequence[int] = (),
    scale: float = 1.0,
    file_format: str = "png",
    burst_seconds: float = 0.0,
    max_pixels: int = MAX_PIXELS,
    overwrite: bool = False,
    rank: int = 0,
    processes: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> BatchResult:
    """Restore images into `output`/images, at their places in the input; face pairs go to `output`/faces.

    An image's size is `images.output_size` of its input's, and it has the input's transparency, depth, greyness,
    colour profile and metadata as far as its format holds them.

    At several values what they share is done once, and each has a folder of its own (`variant_folder`) with `images`
    in it. What that saves goes to `output`/sharing.json: median seconds of an image at all values and at one.

    Args:
        tokens_from: `own` is the method; `other` takes the tokens of another image of the list and `null` the
            learned null tokens, to see what the tokens are worth.
        guidance: of classifier-free guidance, or several, which share all but the VAE's decoder; None: the restorer's.
        token_counts: several numbers of tokens, the first so many of each image's own; they share Stage I and FaDeX.
        scale: enlarge before restoring (bicubic); 1 keeps the size.
        file_format: one of `photos.FORMATS`, or `same` for the input's own where it can be written, else PNG.
        burst_seconds: an image without a usable face takes the mean tokens of those that the same camera took within
            so many seconds and that have one; 0 looks for none.
        max_pixels: a larger image is refused before it is unpacked.
        overwrite: replace what is there from other settings, of another input, or from somebody else.
        rank, processes: this process's number, and how many there are; each takes its share.
        wait: returns when every process has called it.

    Returns:
        What became of this process's share.

    Raises:
        ValueError: an option out of range, or an output that would overwrite an input.
        OutputError: the output folder cannot be written to.
    """
    guidance = tuple(guidance) if isinstance(guidance, Sequence) else guidance
    counts = tuple(token_counts)
    settings = Settings(tokens_from, seed, guidance, counts, scale, file_format, burst_seconds, max_pixels)
    output = Path(output)
    _check_output(output, tasks, settings)
    if rank == 0:
        Ledger(output / RESTORATION_LOG).gather()
    wait()
    run = _Run(pipeline, tasks, output, settings, overwrite, Ledger(output / RESTORATION_LOG, rank).read())
    finished = False
    try:
        outcome = run.all(range(rank, len(tasks), processes))
        finished = not outcome.stopped
        return outcome
    finally:
        wait()
        if rank == 0:
            Ledger(output / RESTORATION_LOG).gather(at_end=finished)


class _Run:
    def __init__(
        self,
        pipeline: Face2ScenePipeline,
        tasks: Sequence[RestorationTask],
        output: Path,
        settings: Settings,
        overwrite: bool,
        ledger: Ledger,
    ):
        self.pipeline, self.tasks, self.output, self.settings = pipeline, tasks, output, settings
        self.overwrite, self.ledger = overwrite, ledger
        self.outcome = BatchResult()
        self.bursts = Bursts(tasks, settings.burst_seconds)
        self.seconds: list[tuple[float, float]] = []  # of each image: at one value, at all of several
        # The limit decides whether an image is read and not what becomes of it.
        options = {name: value for name, value in vars(settings).items() if name != "max_pixels"}
        parts = [pipeline.options, pipeline.fingerprint, getattr(pipeline, "dtype", None)]
        self.digest = digest([options, *parts, pipeline.ref_fr, pipeline.detector])

    def all(self, share: Sequence[int]) -> BatchResult:
        open_tasks = [number for number in share if self._is_open(number)]
        bar = tqdm(total=len(open_tasks), desc="restoring", unit="image", disable=len(open_tasks) < 2)
        start, written = perf_counter(), []
        with ThreadPoolExecutor(_AHEAD) as readers, ThreadPoolExecutor(1) as writer:
            try:
                for number, photo, facts in self._read_ahead(open_tasks, readers):
                    written.append(self._restore(number, photo, facts, writer))
                    while len([one for one in written if not one.done()]) > _AHEAD:  # memory: they wait to be written
                        next(one for one in written if not one.done()).result()
                    bar.update()
                    if self.outcome.stopped:
                        break
            finally:
                readers.shutdown(wait=False, cancel_futures=True)
        bar.close()
        self.outcome.seconds = perf_counter() - start
        if self.seconds and 0 in share:
            one, together = map(median, zip(*self.seconds, strict=True))
            sharing = {"values": len(self.settings.folders), "together": together, "one": one, "ratio": together / one}
            write_json(self.output / "sharing.json", {key: round(value, 4) for key, value in sharing.items()})
        return self.outcome

    def _is_open(self, number: int) -> bool:
        task = self.tasks[number]
        targets, line = self._targets(task), self.ledger.lines.get(task.file)
        there = [target for target in targets if target.exists()]
        if not there or (self.ledger.corrupt if line is None else line.get("unfinished")):
            return True
        if line is None:
            why = "the restoration log does not know it"
        elif line.get("settings") != self._settings_of(number):
            why = "it was restored from other settings or weights, references or ground truth"
        elif not unchanged(task.path, line.get("input")):
            why = "it was restored from another file of that name"
        elif len(there) < len(targets):
            return True
        elif not all(map(unchanged, targets, line.get("written") or [None])):
            why = "it was changed after it was written"
        else:
            self.outcome.skipped += 1
            return False
        if self.overwrite:
            return True
        sentence = f"{there[0]} is already there, and {why}: say overwrite=true, or choose another output folder."
        self._failed(task, sentence)
        return False

    def _settings_of(self, number: int) -> str:
        """Digest of everything that decides what becomes of an image, its own file apart."""
        task = self.tasks[number]
        donor = self._donor(number)
        others = self.bursts.siblings(task) if donor is task else [donor, *self.bursts.siblings(donor)]
        return digest([self.digest, task.name, task.contents, [[content(one.path), one.contents] for one in others]])

    def _donor(self, number: int) -> RestorationTask:
        """Whose tokens an image gets."""
        if self.settings.tokens_from == "other":
            return self.tasks[(number + max(1, len(self.tasks) // 2)) % len(self.tasks)]
        return self.tasks[number]

    def _read_ahead(
        self, numbers: Sequence[int], readers: ThreadPoolExecutor
    ) -> Iterator[tuple[int, Photo, dict[str, Any]]]:
        todo, ahead = iter(numbers), []
        pixels = 0
        while True:
            while len(ahead) < (1 if pixels > _LARGE else _AHEAD + 1) and (number := next(todo, None)) is not None:
                ahead.append((number, readers.submit(self._read_with_facts, number)))
            if not ahead:
                return
            number, future = ahead.pop(0)
            try:
                photo, facts = future.result()
            except Exception as error:  # whatever is wrong with one file, the next may be fine
                self._failed(self.tasks[number], error)
                continue
            pixels = photo.image.size // 3
            yield number, photo, facts

    def _read_with_facts(self, number: int) -> tuple[Photo, dict[str, Any]]:
        # Facts first: where a file is replaced meanwhile, they are of the older one, and the next start sees it.
        task = self.tasks[number]
        facts = {"settings": self._settings_of(number), "input": facts_of(task.path)}
        return self._read(task), facts

    def _read(self, task: RestorationTask) -> Photo:
        return enlarged(read_photo(task.path, max_pixels=self.settings.max_pixels), self.settings.scale)

    def _restore(self, number: int, photo: Photo, facts: dict[str, Any], writer: ThreadPoolExecutor) -> Future:
        task, start = self.tasks[number], perf_counter()
        try:
            scene = Scene(task.name, to_tensor(photo.image), people=task.people)
            donor, estimate = self._measure(number, scene)
            made = self._at_each_value(scene, estimate)
            results = [next(made)]
            one = perf_counter() - start
            results += made
            if self.settings.folders != [""]:
                self.seconds.append((one, perf_counter() - start))
        except Exception as error:
            self._failed(task, error)
            done: Future = Future()
            done.set_result(None)
            return done
        finally:
            self.outcome.seconds_models += perf_counter() - start
        return writer.submit(self._write, task, donor, photo, facts, results)

    def _at_each_value(self, scene: Scene, estimate: DegradationEstimate) -> Iterator[Restoration]:
        guidance, seed = self.settings.guidance, self.settings.seed
        if isinstance(guidance, tuple):
            yield from self.pipeline.restore_at(scene, estimate, guidance, seed=seed)
            return
        parts = [estimate.tokens.tokens[:, :count] for count in self.settings.token_counts]
        cut = [replace(estimate, tokens=replace(estimate.tokens, tokens=part)) for part in parts]
        for one in cut or [estimate]:
            yield self.pipeline.restore(scene, one, guidance=guidance, seed=seed)

    def _measure(self, number: int, scene: Scene) -> tuple[RestorationTask, DegradationEstimate]:
        task = self._donor(number)
        if self.settings.tokens_from == "null":
            return task, DegradationEstimate(DegradationTokens(self.pipeline.restorer.tokens(None, 1), "null"))
        estimate = self._measured(task, scene if self.settings.tokens_from == "own" else None)
        if self.settings.burst_seconds and estimate.tokens.source != "pair":
            estimate = self.bursts.averaged(task, estimate, self._measured)
        return task, estimate

    def _measured(self, task: RestorationTask, scene: Scene | None = None) -> DegradationEstimate:
        if scene is None:
            scene = Scene(task.name, to_tensor(self._read(task).image), people=task.people)
        scale = self.settings.scale
        gt = read_tensor(task.gt) if task.gt else None
        if gt is not None and scale != 1:
            gt = resize(gt, output_size(tuple(gt.shape[-2:]), scale))
        box = None if task.box is None else tuple(v * scale for v in task.box)
        return self.pipeline.estimate(scene, gt=gt, box=box, seed=self.settings.seed)

    def _write(
        self,
        task: RestorationTask,
        donor: RestorationTask,
        photo: Photo,
        facts: dict[str, Any],
        results: Sequence[Restoration],
    ) -> None:
        targets, result = self._targets(task), results[0]
        outputs = [target.relative_to(self.output).as_posix() for target in targets]
        line: dict[str, Any] = {"name": task.file, "output": outputs[0] if self.settings.folders == [""] else outputs}
        line |= {"tokens_from": donor.file} | result.notes
        if isinstance(self.settings.guidance, tuple):
            line["guidance"] = self.settings.guidance
        line["warnings"] = [*photo.warnings, *result.notes.get("warnings", [])]
        try:
            if donor is task and result.token_source == "pair":
                for number, face_estimate in enumerate(result.estimate.face_estimates):
                    self._write_pair(task, number, face_estimate.pair)
            with ExitStack() as files:
                partials = [files.enter_context(atomic_write(target)) for target in targets]
                for partial, one in zip(partials, results, strict=True):
                    write_photo(partial, to_array(one.image), like=photo)
                    with open(partial, "rb") as file:
                        os.fsync(file.fileno())
                written = list(map(facts_of, partials))
                line |= facts | {"output_bytes": sum(one["bytes"] for one in written), "written": written}
                # The line is on the disk before the image has its name: a kill in between is seen at the next start.
                self.ledger.append(line)
        except Exception as error:
            self._failed(task, error)
            if isinstance(error, OSError) and error.errno in _FATAL:
                self.outcome.stopped = (
                    f"Stopped: {self.output} takes nothing more ({error.strerror}). What is there is whole; make room "
                    "or choose another output, and start the same command again."
                )
            return
        for warning in line["warnings"]:
            log.info("%s: %s", task.file, warning)
        self.outcome.restored += 1

    def _write_pair(self, task: RestorationTask, number: int, pair: FacePair) -> None:
        folder, stem = self.output / "faces" / task.relative_dir, task.stem + (f"_{number + 1}" if number else "")
        for kind, image in (("degraded", pair.degraded), ("restored", pair.restored)):
            write_png(folder / fitting_name(stem, f"_{kind}.png"), image)

    def _targets(self, task: RestorationTask) -> list[Path]:
        return _targets(self.output, task, self.settings)

    def _failed(self, task: RestorationTask, reason: Exception | str) -> None:
        sentence = reason if isinstance(reason, str) else f"{type(reason).__name__}: {reason}"
        self.outcome.failed[task.file] = sentence
        log.warning("%s was not restored. %s", task.file, sentence)


def _targets(output: Path, task: RestorationTask, settings: Settings) -> list[Path]:
    suffix = task.path.suffix.lower()
    if settings.file_format != "same" or suffix not in (*FORMATS.values(), ".jpeg", ".tiff"):
        suffix = FORMATS["png" if settings.file_format == "same" else settings.file_format]
    name = fitting_name(task.stem, suffix)
    return [output / folder / "images" / task.relative_dir / name for folder in settings.folders]


def _check_output(output: Path, tasks: Sequence[RestorationTask], settings: Settings) -> None:
    inputs = {task.path.resolve() for task in tasks} | {task.gt.resolve() for task in tasks if task.gt}
    inputs |= {path.resolve() for task in tasks for paths in task.people.values() for path in paths}
    for task in tasks:
        for target in _targets(output, task, settings):
            if target.resolve() in inputs or (target.exists() and target.samefile(task.path)):
                raise ValueError(
                    f"output={output} would overwrite the images it reads ({target}). Choose another folder."
                )
    places = [output, *(output / folder / "images" for folder in settings.folders)]
    try:
        for folder in places:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=folder):
                pass
    except OSError as error:
        sentence = f"Nothing can be written to output={output} ({error.strerror}). Choose another folder."
        raise OutputError(sentence) from error
