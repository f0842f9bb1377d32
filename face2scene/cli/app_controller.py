"""What the buttons of the web page do, apart from any page.

A downloaded image has the bytes that `scripts/restore.py` writes for the same photo, seed and settings.
"""

import json
import re
import shutil
import tempfile
import threading
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from face2scene.cli.visitors import VisitorLeft
from face2scene.image_io.arrays import to_array
from face2scene.image_io.photos import MAX_PIXELS, read_photo
from face2scene.inference.pipeline import Face2ScenePipeline
from face2scene.inference.results import DegradationEstimate, Restoration
from face2scene.models.fadex import Readout
from face2scene.models.fadex.linear_readout import FACTORS

MOST_REFERENCES = 20  # photos of the person in one request (ours)
MOST_PHOTOS = 20  # in one batch (ours)
KEPT_PIXELS = 25_000_000  # of finished restorations, for the fidelity slider: about 36 bytes of memory each
SHOWN = 1600  # pixels: longer sides are downscaled for the browser; the download is not
# Where the stages of a restoration begin in its one progress bar.
STAGES = {"faces": 0.0, "stage one": 0.05, "encoding": 0.4, "denoising": 0.55, "decoding": 0.75}
Report = Callable[[float, str], None]  # share done, stage


class AppController:
    """The actions behind the page's buttons.

    Args:
        readout: estimates degradation strengths from the face pair; None hides that table.
        seed: of everything random, together with the photo's name, as in `scripts/restore.py`.
        reading: `max_pixels`, of a photo after its enlargement and of a reference (a larger one is refused before it is
            decoded), and the `development` of camera RAW.
    """

    def __init__(
        self,
        pipeline: Face2ScenePipeline,
        readout: Readout | None = None,
        *,
        seed: int = 0,
        max_pixels: int = MAX_PIXELS,
        **reading: Any,
    ):
        self.pipeline, self.readout, self.seed, self.max_pixels = pipeline, readout, seed, max_pixels
        self.reading = reading
        self._files = tempfile.TemporaryDirectory(prefix="face2scene-app-", ignore_cleanup_errors=True)
        self.folder = Path(self._files.name)  # of uploads and results, mode 0700, removed with the page
        self.closed = threading.Event()
        self._results: OrderedDict[str, Restoration] = OrderedDict()  # by the download's path, the newest last

    def close(self) -> None:
        """Delete uploads and results; a restoration in work stops."""
        self.closed.set()
        self._files.cleanup()
        for _ in range(20):  # a request in work may write once more
            time.sleep(0.05)
            if not self.folder.exists():
                break
            shutil.rmtree(self.folder, ignore_errors=True)

    def find_faces(self, photo: str | None, references: Sequence[str] | None) -> tuple[Any, str]:
        """Find and identify the faces, before anything is restored.

        Returns:
            image and its labelled boxes; a sentence.
        """
        if not photo:
            return None, ""
        scene, _ = self.pipeline.scene(photo, self._named(references), max_pixels=self.max_pixels, **self.reading)
        estimate = self.pipeline.find_faces(scene)
        return _boxed(scene.image, estimate), self.clean(_faces_text(estimate))

    def previews(self, photos: Sequence[str] | None) -> list[np.ndarray]:
        """Thumbnails of uploaded photos, also of formats that a browser does not show."""
        read = (read_photo(path, max_pixels=self.max_pixels) for path in (photos or ())[:MOST_REFERENCES])
        return [_small(photo.image, 240) for photo in read]

    def restore(
        self, photo: str | None, references: Sequence[str] | None, guidance: float, scale: float, progress: Report
    ) -> tuple[Any, ...]:
        """Restore a photo.

        Returns:
            boxed faces, sentence, (before, after), face pair, read-out rows, restoration log, path of the download.

        Raises:
            ValueError: no photo was given, or one that cannot be used.
        """
        if not photo:
            raise ValueError("Drop a photo first.")
        result, before, path = self._restored(photo, references, guidance, scale, progress)
        self._keep(str(path), result)
        pair = result.estimate.face_estimates[0].pair if result.estimate.face_estimates else None
        gallery = [(_small(pair.degraded), "as it is"), (_small(pair.restored), "as restored")] if pair else []
        read = self.readout(pair.restored, pair.degraded) if self.readout and pair else {}
        rows = [[name.replace("_", " "), str(reading), FACTORS[name][0]] for name, reading in read.items()]
        why = json.loads(self.clean(json.dumps({"name": Path(photo).name} | result.notes, default=str)))
        boxed, sentence = _boxed(before, result.estimate), self.clean(_tokens_text(result))
        return boxed, sentence, (_small(before), _small(result.image)), gallery, rows, why, str(path)

    def restore_all(
        self, photos: Sequence[str] | None, references: Sequence[str] | None, guidance: float, progress: Report
    ) -> tuple[list[tuple[np.ndarray, str]], str, str]:
        """Restore several photos, each by itself; one that fails does not stop the others.

        Returns:
            (image, name) of those restored, a sentence for each of the others, path of a zip with all and the log.

        Raises:
            ValueError: none were given, too many, or none could be restored.
        """
        if not photos or len(photos) > MOST_PHOTOS:
            raise ValueError(f"Drop 1 to {MOST_PHOTOS} photos; {len(photos or ())} were given.")
        shown, failed, log = [], [], []
        archive = Path(tempfile.mkdtemp(dir=self.folder)) / "restored.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
            for number, photo in enumerate(photos):
                name = Path(photo).name

                def report(share: float, stage: str, number: int = number, name: str = name) -> None:
                    progress((number + share) / len(photos), f"{name}: {stage}")

                try:
                    result, _, path = self._restored(photo, references, guidance, 1, report)
                except (OSError, ValueError, FloatingPointError) as error:
                    failed.append(f"- {name}: {self.clean(str(error))}")
                    continue
                stored = path.name if path.name not in file.namelist() else f"{number + 1}_{path.name}"
                file.write(path, stored)
                path.unlink()
                shown.append((_small(result.image), stored))
                log.append(self.clean(json.dumps({"name": name} | result.notes, default=str)))
            file.writestr("restore.jsonl", "\n".join(log) + "\n")
        if not shown:
            raise ValueError("No photo could be restored.\n" + "\n".join(failed))
        return shown, "\n".join([f"{len(shown)} of {len(photos)} photos restored.", *failed]), str(archive)

    def at_fidelity(self, path: str | None, fidelity: float) -> tuple[tuple[np.ndarray, np.ndarray], str]:
        """A finished restoration with another share of the input in it; no network runs.

        Args:
            path: of the download, as `restore` returned it.

        Returns:
            (before, after), path of another download.

        Raises:
            ValueError: nothing was restored, or it is no longer kept.
        """
        result = self._results.get(path or "")
        if path is None or result is None or result.scene is None:
            raise ValueError("This restoration is no longer kept: restore the photo again, then move the slider.")
        result = result.at_fidelity(fidelity)
        assert result.scene is not None
        other = Path(tempfile.mkdtemp(dir=self.folder)) / Path(path).name
        result.save(other)
        return (_small(result.scene), _small(result.image)), str(other)

    def fidelity_of(self, path: str) -> float:
        """The share of the input in a finished restoration, 0 to 1."""
        return float(self._results[path].notes["fidelity"]) if path in self._results else 0.0

    def example(self, file: Path) -> str:
        """A copy of an example photo among the uploads, which are deleted after a while."""
        return str(shutil.copy(file, Path(tempfile.mkdtemp(dir=self.folder)) / file.name))

    def clean(self, text: str) -> str:
        """A message without folders of this machine: paths are reduced to the file's name."""
        text = text.replace(str(self.folder.resolve()), str(self.folder))
        text = re.sub(rf"{re.escape(str(self.folder))}(?:[\\/][\w-]+)*[\\/]", "", text)
        return re.sub(r"(?<![\w.:/])(?:[A-Za-z]:)?(?:[\\/][\w.@+-]+)+[\\/](?=[\w.@+-])", "", text)

    def _restored(
        self, photo: str, references: Sequence[str] | None, guidance: float, scale: float, progress: Report
    ) -> tuple[Restoration, torch.Tensor, Path]:
        starts = [*STAGES.values(), 1.0]
        reached = 0.0

        def report(stage: str, done: int, total: int) -> None:
            nonlocal reached
            if self.closed.is_set():
                raise VisitorLeft("The page is closed.")
            number = list(STAGES).index(stage) if stage in STAGES else 0
            share = starts[number] + (starts[number + 1] - starts[number]) * done / max(total, 1)
            reached = max(reached, share)  # one bar, which never goes back
            progress(reached, f"{stage} {done} of {total}" if total > 1 else stage)

        reading = {"max_pixels": int(self.max_pixels / scale**2)} | self.reading
        scene, file = self.pipeline.scene(photo, self._named(references), scale=scale, **reading)
        result = self.pipeline(scene, seed=self.seed, guidance=guidance, progress=report).of(file)
        path = Path(tempfile.mkdtemp(dir=self.folder)) / f"{Path(photo).stem}.png"
        result.save(path)
        return result, scene.image, path

    def _keep(self, path: str, result: Restoration) -> None:
        self._results[path] = result
        while len(self._results) > 1 and sum(one.image[0].numel() for one in self._results.values()) > KEPT_PIXELS:
            self._results.popitem(last=False)

    def _named(self, references: Sequence[str] | None) -> dict[str, list[str]] | None:
        if len(references or ()) > MOST_REFERENCES:
            raise ValueError(f"{len(references or ())} photos of the person were given: {MOST_REFERENCES} are enough.")
        for path in references or ():
            read_photo(path, max_pixels=self.max_pixels)
        return {"the person": list(references)} if references else None


def read_out(rows: Sequence[Sequence[str]]) -> str:
    """Degradation strengths as a Markdown table, which wraps in any window; empty without rows."""
    lines = ["| what FaDeX reads | value | unit |", "|:---|---:|:---|", *(f"| {n} | {v} | {u} |" for n, v, u in rows)]
    return "\n".join(lines) if rows else ""


def _small(image: Any, longest: int = SHOWN) -> np.ndarray:
    """uint8 (h, w, 3) for the browser, at most `longest` pixels long, whole pixels skipped."""
    array = image if isinstance(image, np.ndarray) else to_array(image)
    step = -(-max(array.shape[:2]) // longest)
    return (array[::step, ::step] * 255).round().astype(np.uint8)


def _boxed(image: Any, estimate: DegradationEstimate) -> tuple[np.ndarray, list[tuple[tuple[int, ...], str]]]:
    shown = _small(image)
    shrunk = shown.shape[1] / image.shape[-1]
    labels = []
    for number, note in enumerate(estimate.notes["faces"], 1):
        box = tuple(round(v * shrunk) for v in note["box"])
        name = note.get("person") or ("unknown" if note.get("similarity") is not None else "face")
        near = f" {note['similarity']:.2f}" if note.get("similarity") is not None else ""
        labels.append((box, f"{number}: {name}{near}"))
    return shown, labels


def _faces_text(estimate: DegradationEstimate) -> str:
    count = len(estimate.notes["faces"])
    found = "No face was found." if not count else f"{count} face{'s' * (count > 1)} found."
    return "\n".join([found, *(f"- {sentence}" for sentence in estimate.notes["warnings"])])


def _tokens_text(result: Restoration) -> str:
    source = result.token_source
    sentence = {
        "pair": "The degradation was estimated from the face pair.",
        "estimated": "The degradation was estimated from the photo, without a restored face.",
        "blind": "The degradation was estimated without a restored face.",
        "null": "The degradation was not estimated: the learned null tokens were used.",
    }.get(source, f"Tokens: {source}.")
    return "\n".join([f"**{sentence}**", *(f"- {warning}" for warning in result.notes["warnings"])])
