"""A folder of photos through the pipeline: finished work is skipped, a broken file stops nothing else.

The why-log `restore.jsonl` in the output folder has one line a picture and is also the list of finished work.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from face2scene.data.manifest import METADATA, read_manifest
from face2scene.files import atomic_write
from face2scene.images import list_images, read_tensor, resize, to_array, to_tensor, write_png
from face2scene.photos import FORMATS, Photo, read_photo, write_photo
from face2scene.pipeline import Face2ScenePipeline, Measurement
from face2scene.records import Box, DegradationTokens, Scene

log = logging.getLogger(__name__)
WHY_LOG = "restore.jsonl"


@dataclass(frozen=True)
class Outcome:
    """What became of a folder."""

    restored: int
    skipped: int
    failed: dict[str, str]  # file name to sentence


@dataclass(frozen=True)
class Job:
    """One picture to restore, with what belongs to it."""

    path: Path
    references: tuple[Path, ...] = ()
    truth: Path | None = None  # the same picture undamaged
    box: Box | None = None  # of the face, where it is known


def find_jobs(
    source: str | Path, *, references: str | Path | None = None, truth: str | Path | None = None
) -> list[Job]:
    """The pictures of a file, a folder, or an InScene dataset (its validation pairs).

    Args:
        references: a folder of photos of the person, or of folders named like the pictures.
        truth: a folder of undamaged pictures of the same names, for stand-ins of Stage I.

    Raises:
        FileNotFoundError: no picture, or a picture without its truth.
        ValueError: two pictures that would get one name.
    """
    source = Path(source)
    if (source / METADATA).is_file():
        jobs = [
            Job(source / r.lq, tuple(source / p for p in r.references), source / r.image, r.face_box)
            for r in read_manifest(source, "val")
            if r.lq
        ]
    else:
        truths = {p.stem: p for p in list_images(truth)} if truth is not None else None
        jobs = []
        for path in [source] if source.is_file() else list_images(source):
            if truths is not None and path.stem not in truths:
                raise FileNotFoundError(f"There is no picture named {path.stem} in truth={truth}.")
            jobs.append(Job(path, _references(references, path), truths[path.stem] if truths else None))
    if not jobs:
        raise FileNotFoundError(f"There is no picture in {source} (input).")
    names = [job.path.stem for job in jobs]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"These names occur more than once and would overwrite each other: {twice[:5]}. Rename them.")
    return jobs


def _references(folder: str | Path | None, path: Path) -> tuple[Path, ...]:
    if folder is None:
        return ()
    own = Path(folder) / path.stem
    return tuple(list_images(own if own.is_dir() else folder))


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
) -> Outcome:
    """Restore pictures into `output`/images/NAME.png; the face pairs that were measured go to `output`/faces.

    A restored picture has `scale` times the sides of its input seen upright, rounded to the nearest pixel, and the
    input's transparency, depth, greyness, colour profile and EXIF as far as its format holds them.

    Args:
        scale: enlarge before restoring (bicubic); 1 keeps the size.
        file_format: one of `photos.FORMATS`, or `same` for the input's own where it can be written, else PNG.
        tokens_from: `own` is the method; `other` takes the tokens of another picture of the list and `null` the
            learned null tokens, to see what the tokens are worth.

    Raises:
        ValueError: an unknown `tokens_from`, or an output folder that holds the input.
    """
    if tokens_from not in ("own", "other", "null"):
        raise ValueError(f"tokens_from must be own, other or null, not {tokens_from!r}.")
    if not 0 < scale <= 8:
        raise ValueError(f"scale is {scale}: it must be above 0 and at most 8.")
    if file_format not in (*FORMATS, "same"):
        raise ValueError(f"format is {file_format!r}: choose one of {', '.join(FORMATS)} or same.")
    output = Path(output)
    images = output / "images"
    if images.resolve() in {job.path.parent.resolve() for job in jobs}:
        raise ValueError(f"output={output} would overwrite the pictures it reads. Choose another folder.")
    images.mkdir(parents=True, exist_ok=True)

    finished = _finished(output)
    failed: dict[str, str] = {}
    restored = skipped = 0
    for number, job in enumerate(tqdm(jobs, desc="restoring", unit="picture", disable=len(jobs) < 2)):
        name, target = job.path.name, images / f"{job.path.stem}{_suffix(job.path, file_format)}"
        if name in finished and target.exists():
            skipped += 1
            continue
        donor = jobs[(number + max(1, len(jobs) // 2)) % len(jobs)] if tokens_from == "other" else job
        try:
            photo = _enlarged(read_photo(job.path), scale)
            scene = Scene(job.path.stem, to_tensor(photo.image), references=job.references)
            if tokens_from == "null":
                measurement = Measurement(DegradationTokens(pipeline.restorer.tokens(None, 1), "null"))
            else:
                truth, box = read_tensor(donor.truth) if donor.truth else None, donor.box
                if scale != 1:
                    truth = None if truth is None else resize(truth, _scaled(truth.shape[-2:], scale))
                    box = None if box is None else tuple(v * scale for v in box)
                measured = scene if donor is job else _scene(donor, scale)
                measurement = pipeline.measure(measured, truth=truth, box=box, seed=seed)
            result = pipeline.restore(scene, measurement, guidance=guidance)
            write_photo(target, to_array(result.image), like=photo)
            if measurement.pair is not None and donor is job:
                write_png(output / "faces" / f"{job.path.stem}_degraded.png", measurement.pair.degraded)
                write_png(output / "faces" / f"{job.path.stem}_restored.png", measurement.pair.restored)
        except Exception as error:  # whatever is wrong with one file, the next may be fine
            failed[name] = f"{type(error).__name__}: {error}"
            log.warning("%s was not restored. %s", name, error)
            continue
        line = {"name": name, "output": f"images/{target.name}", "tokens_from": donor.path.name} | result.notes
        line["warnings"] = [*photo.warnings, *result.notes.get("warnings", [])]
        for warning in line["warnings"]:
            log.info("%s: %s", name, warning)
        with open(output / WHY_LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        restored += 1
    return Outcome(restored, skipped, failed)


def _scene(job: Job, scale: float) -> Scene:
    image = to_tensor(_enlarged(read_photo(job.path), scale).image)
    return Scene(job.path.stem, image, references=job.references)


def _suffix(path: Path, file_format: str) -> str:
    if file_format != "same":
        return FORMATS[file_format]
    own = path.suffix.lower()
    return own if own in (*FORMATS.values(), ".jpeg", ".tiff") else FORMATS["png"]


def _scaled(size: Sequence[int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _enlarged(photo: Photo, scale: float) -> Photo:
    if scale == 1:
        return photo
    size = _scaled(photo.image.shape[:2], scale)
    alpha = photo.alpha
    if alpha is not None:
        alpha = resize(to_tensor(alpha[..., None].repeat(3, 2)), size)[0].numpy()
    return replace(photo, image=to_array(resize(to_tensor(photo.image), size)), alpha=alpha)


def _finished(output: Path) -> set[str]:
    path = output / WHY_LOG
    if not path.exists():
        return set()
    whole, names = [], set()
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            names.add(json.loads(line)["name"])
            whole.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            continue  # the line that a kill cut through; its picture is done again
    with atomic_write(path) as partial:
        partial.write_text("".join(whole), encoding="utf-8")
    return names
