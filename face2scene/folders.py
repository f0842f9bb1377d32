"""A folder of photos through the pipeline: finished work is skipped, a broken file stops nothing else.

Three things go on at once: the next pictures are read, one is in the models, the last ones are written. The why-log
(see `why_log`) has one line a picture and is also the list of finished work, so the same command again goes on where it
was stopped, whatever stopped it. Nothing that the log does not know is overwritten without being told.
"""

import errno
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from time import perf_counter
from typing import Any

from tqdm import tqdm

from face2scene.bursts import Bursts
from face2scene.files import atomic_write, fitting_name
from face2scene.images import output_size, read_tensor, resize, to_array, to_tensor, write_png
from face2scene.inputs import enlarged
from face2scene.jobs import Job
from face2scene.jobs import find_jobs as find_jobs
from face2scene.measure import Measurement
from face2scene.photos import FORMATS, MAX_PIXELS, Photo, read_photo, write_photo
from face2scene.pipeline import Face2ScenePipeline
from face2scene.records import DegradationTokens, FacePair, Scene
from face2scene.restoration import Restoration
from face2scene.why_log import WhyLog, facts_of, unchanged

log = logging.getLogger(__name__)
_AHEAD = 2  # pictures that are read ahead, and that wait to be written
_LARGE = 50_000_000  # pixels; beside such a picture none is read ahead, for the memory's sake
# Nothing can be written any more: going on would only spend time.
_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


class OutputError(OSError):
    """The output folder takes nothing; the sentence says why and what to do."""


@dataclass
class Outcome:
    """What became of a folder."""

    restored: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # file to sentence
    seconds_models: float = 0.0  # in faces, Stage I, FaDeX and the restorer
    seconds: float = 0.0  # from the first picture to the last
    stopped: str = ""  # why not all were tried

    def add(self, other: "Outcome") -> None:
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
    guidance: float | None = None
    scale: float = 1.0
    file_format: str = "png"
    burst_seconds: float = 0.0
    max_pixels: int = MAX_PIXELS

    def __post_init__(self):
        if self.tokens_from not in ("own", "other", "null"):
            raise ValueError(f"tokens_from must be own, other or null, not {self.tokens_from!r}.")
        if self.file_format not in (*FORMATS, "same"):
            raise ValueError(f"format is {self.file_format!r}: choose one of {', '.join(FORMATS)} or same.")
        output_size((1, 1), self.scale)

    def digest(self, pipeline: Face2ScenePipeline, job: Job) -> str:
        """Of everything that decides what becomes of a picture, its own file apart."""
        people = {name: [path.name for path in paths] for name, paths in job.people.items()}
        stages = [getattr(pipeline.ref_fr, "name", "none"), type(pipeline.detector).__name__]
        parts = [vars(self), vars(pipeline.options), pipeline.fingerprint, stages, people, str(job.truth), job.box]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def restore_folder(
    pipeline: Face2ScenePipeline,
    jobs: Sequence[Job],
    output: str | Path,
    *,
    tokens_from: str = "own",
    seed: int = 0,
    guidance: float | None = None,
    scale: float = 1.0,
    file_format: str = "png",
    burst_seconds: float = 0.0,
    max_pixels: int = MAX_PIXELS,
    overwrite: bool = False,
    rank: int = 0,
    processes: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> Outcome:
    """Restore pictures into `output`/images, at their places in the input; face pairs go to `output`/faces.

    A picture's size is `images.output_size` of its input's, and it has the input's transparency, depth, greyness,
    colour profile and metadata as far as its format holds them.

    Args:
        tokens_from: `own` is the method; `other` takes the tokens of another picture of the list and `null` the
            learned null tokens, to see what the tokens are worth.
        scale: enlarge before restoring (bicubic); 1 keeps the size.
        file_format: one of `photos.FORMATS`, or `same` for the input's own where it can be written, else PNG.
        burst_seconds: a picture without a usable face takes the mean tokens of those that the same camera took within
            so many seconds and that have one; 0 looks for none.
        max_pixels: a larger picture is refused before it is unpacked.
        overwrite: replace what is there from other settings, of another input, or from somebody else.
        rank, processes: this process's number, and how many there are; each takes its share.
        wait: returns when every process has called it.

    Returns:
        What became of this process's share.

    Raises:
        ValueError: an option out of range, or an output that would overwrite an input.
        OutputError: the output folder cannot be written to.
    """
    settings = Settings(tokens_from, seed, guidance, scale, file_format, burst_seconds, max_pixels)
    output = Path(output)
    _check_output(output, jobs, settings)
    if rank == 0:
        WhyLog(output).gather()
    wait()
    run = _Run(pipeline, jobs, output, settings, overwrite, WhyLog(output, rank).read())
    try:
        return run.all(range(rank, len(jobs), processes))
    finally:
        wait()
        if rank == 0:
            WhyLog(output).gather(at_end=True)


class _Run:
    def __init__(
        self,
        pipeline: Face2ScenePipeline,
        jobs: Sequence[Job],
        output: Path,
        settings: Settings,
        overwrite: bool,
        why_log: WhyLog,
    ):
        self.pipeline, self.jobs, self.output, self.settings = pipeline, jobs, output, settings
        self.overwrite, self.why_log = overwrite, why_log
        self.outcome = Outcome()
        self.bursts = Bursts(jobs, settings.burst_seconds)

    def all(self, share: Sequence[int]) -> Outcome:
        open_jobs = [number for number in share if self._is_open(self.jobs[number])]
        bar = tqdm(total=len(open_jobs), desc="restoring", unit="picture", disable=len(open_jobs) < 2)
        start, written = perf_counter(), []
        with ThreadPoolExecutor(_AHEAD) as readers, ThreadPoolExecutor(1) as writer:
            try:
                for number, photo in self._read_ahead(open_jobs, readers):
                    written.append(self._restore(number, photo, writer))
                    while len([one for one in written if not one.done()]) > _AHEAD:  # memory: they wait to be written
                        next(one for one in written if not one.done()).result()
                    bar.update()
                    if self.outcome.stopped:
                        break
            finally:
                readers.shutdown(wait=False, cancel_futures=True)
        bar.close()
        self.outcome.seconds = perf_counter() - start
        return self.outcome

    def _is_open(self, job: Job) -> bool:
        target, line = self._target(job), self.why_log.lines.get(job.file)
        if not target.exists() or (line is not None and line.get("unfinished")):
            return True
        if line is not None:
            same = line.get("settings") in (None, self.settings.digest(self.pipeline, job))
            whole = line.get("output_bytes") in (None, target.stat().st_size)
            if same and whole and unchanged(job.path, line.get("input")):
                self.outcome.skipped += 1
                return False
            why = "other settings or weights" if not same else "another file of that name" if whole else ""
            why = f"it was restored from {why}" if why else "it was changed after it was written"
        else:
            why = "the why-log does not know it"
        if self.overwrite:
            return True
        self._failed(job, f"{target} is already there, and {why}: say overwrite=true, or choose another output folder.")
        return False

    def _read_ahead(self, numbers: Sequence[int], readers: ThreadPoolExecutor) -> Iterator[tuple[int, Photo]]:
        todo, ahead = iter(numbers), []
        pixels = 0
        while True:
            while len(ahead) < (1 if pixels > _LARGE else _AHEAD + 1) and (number := next(todo, None)) is not None:
                ahead.append((number, readers.submit(self._read, self.jobs[number])))
            if not ahead:
                return
            number, future = ahead.pop(0)
            try:
                photo = future.result()
            except Exception as error:  # whatever is wrong with one file, the next may be fine
                self._failed(self.jobs[number], error)
                continue
            pixels = photo.image.size // 3
            yield number, photo

    def _read(self, job: Job) -> Photo:
        return enlarged(read_photo(job.path, max_pixels=self.settings.max_pixels), self.settings.scale)

    def _restore(self, number: int, photo: Photo, writer: ThreadPoolExecutor) -> Future:
        job, start = self.jobs[number], perf_counter()
        try:
            scene = Scene(job.name, to_tensor(photo.image), people=job.people)
            donor, measurement = self._measure(number, scene)
            result = self.pipeline.restore(scene, measurement, guidance=self.settings.guidance, seed=self.settings.seed)
        except Exception as error:
            self._failed(job, error)
            done: Future = Future()
            done.set_result(None)
            return done
        finally:
            self.outcome.seconds_models += perf_counter() - start
        return writer.submit(self._write, job, donor, photo, result)

    def _measure(self, number: int, scene: Scene) -> tuple[Job, Measurement]:
        job = self.jobs[number]
        if self.settings.tokens_from == "null":
            return job, Measurement(DegradationTokens(self.pipeline.restorer.tokens(None, 1), "null"))
        if self.settings.tokens_from == "other":
            job = self.jobs[(number + max(1, len(self.jobs) // 2)) % len(self.jobs)]
            scene = None
        measurement = self._measured(job, scene)
        if self.settings.burst_seconds and measurement.tokens.source != "pair":
            measurement = self.bursts.averaged(job, measurement, self._measured)
        return job, measurement

    def _measured(self, job: Job, scene: Scene | None = None) -> Measurement:
        if scene is None:
            scene = Scene(job.name, to_tensor(self._read(job).image), people=job.people)
        scale = self.settings.scale
        truth = read_tensor(job.truth) if job.truth else None
        if truth is not None and scale != 1:
            truth = resize(truth, output_size(tuple(truth.shape[-2:]), scale))
        box = None if job.box is None else tuple(v * scale for v in job.box)
        return self.pipeline.measure(scene, truth=truth, box=box, seed=self.settings.seed)

    def _write(self, job: Job, donor: Job, photo: Photo, result: Restoration) -> None:
        target = self._target(job)
        line: dict[str, Any] = {
            "name": job.file,
            "output": target.relative_to(self.output).as_posix(),
            "tokens_from": donor.file,
        }
        line |= result.notes
        line["warnings"] = [*photo.warnings, *result.notes.get("warnings", [])]
        try:
            if donor is job and result.token_source == "pair":
                for number, reading in enumerate(result.measurement.readings):
                    self._write_pair(job, number, reading.pair)
            with atomic_write(target) as partial:
                write_photo(partial, to_array(result.image), like=photo)
                line |= {"settings": self.settings.digest(self.pipeline, job), "input": facts_of(job.path)}
                # The line is on the disk before the picture has its name: a kill in between is seen at the next start.
                self.why_log.append(line | {"output_bytes": partial.stat().st_size})
        except Exception as error:
            self._failed(job, error)
            if isinstance(error, OSError) and error.errno in _FATAL:
                self.outcome.stopped = (
                    f"Stopped: {self.output} takes nothing more ({error.strerror}). What is there is whole; make room "
                    "or choose another output, and start the same command again."
                )
            return
        for warning in line["warnings"]:
            log.info("%s: %s", job.file, warning)
        self.outcome.restored += 1

    def _write_pair(self, job: Job, number: int, pair: FacePair) -> None:
        folder, stem = self.output / "faces" / job.inside, job.stem + (f"_{number + 1}" if number else "")
        for kind, image in (("degraded", pair.degraded), ("restored", pair.restored)):
            write_png(folder / fitting_name(stem, f"_{kind}.png"), image)

    def _target(self, job: Job) -> Path:
        return _target(self.output, job, self.settings.file_format)

    def _failed(self, job: Job, reason: Exception | str) -> None:
        sentence = reason if isinstance(reason, str) else f"{type(reason).__name__}: {reason}"
        self.outcome.failed[job.file] = sentence
        log.warning("%s was not restored. %s", job.file, sentence)


def _target(output: Path, job: Job, file_format: str) -> Path:
    suffix = job.path.suffix.lower()
    if file_format != "same" or suffix not in (*FORMATS.values(), ".jpeg", ".tiff"):
        suffix = FORMATS["png" if file_format == "same" else file_format]
    return output / "images" / job.inside / fitting_name(job.stem, suffix)


def _check_output(output: Path, jobs: Sequence[Job], settings: Settings) -> None:
    inputs = {job.path.resolve() for job in jobs} | {job.truth.resolve() for job in jobs if job.truth}
    inputs |= {path.resolve() for job in jobs for paths in job.people.values() for path in paths}
    for job in jobs:
        target = _target(output, job, settings.file_format)
        if target.resolve() in inputs or (target.exists() and target.samefile(job.path)):
            raise ValueError(
                f"output={output} would overwrite the pictures it reads ({target}). Choose another folder."
            )
    try:
        (output / "images").mkdir(parents=True, exist_ok=True)
        for folder in (output, output / "images"):
            with TemporaryFile(dir=folder):
                pass
    except OSError as error:
        sentence = f"Nothing can be written to output={output} ({error.strerror}). Choose another folder."
        raise OutputError(sentence) from error
