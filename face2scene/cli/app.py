"""The web page: upload a photo and photos of the person; shows faces, estimated degradation and restored image.

A downloaded image has the bytes that `scripts/restore.py` writes for the same photo, seed and settings.
"""

import functools
import json
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from face2scene.assets.catalogue import WeightsError
from face2scene.cli.visitors import Limits, VisitorLeft, VisitorLimits, keep_clean
from face2scene.common.memory import release_freed_memory
from face2scene.common.optional import import_optional
from face2scene.common.types import FacePair
from face2scene.image_io.arrays import to_array
from face2scene.image_io.photos import MAX_PIXELS, SUFFIXES, read_photo
from face2scene.inference.pipeline import Face2ScenePipeline
from face2scene.inference.results import DegradationEstimate, Restoration
from face2scene.models.fadex import FaDeX
from face2scene.models.fadex.factor_heads import Readout
from face2scene.models.fadex.linear_readout import FACTORS

log = logging.getLogger(__name__)

MOST_REFERENCES = 20  # photos of the person in one request (ours)
SHOWN = 1600  # pixels: longer sides are downscaled for the browser; the download is not
TITLE = "Face2Scene"
INTRODUCTION = """# Face2Scene
The face in a degraded photo measures the degradation, and the whole photo is restored with it.
Drop a photo; photos of the people in it help, where Stage I uses them. Nothing leaves this machine."""
CSS = """
#read-out table, #faces-found table {font-variant-numeric: tabular-nums}
#read-out th, #read-out td {word-break: normal; overflow-wrap: normal}
#read-out td:nth-child(2) {white-space: nowrap}
.gradio-container {max-width: 1400px; margin: auto}
"""


class DegradationReadout:
    """FaDeX with its heads: the degradation strengths of a face pair.

    Args:
        fadex: weights file of the encoder.
        heads: weights file of the heads that were fitted on it, see `models.fadex.factor_heads.Readout`.
    """

    def __init__(self, fadex: str | Path, heads: str | Path):
        self.readout = Readout(FaDeX.from_file(fadex), heads)

    def __call__(self, pair: FacePair) -> list[list[str]]:
        """Rows of factor, value with its interval where the heads have one, unit."""
        return [
            [name.replace("_", " "), str(reading), FACTORS[name][0]]
            for name, reading in self.readout(pair.restored, pair.degraded).items()
        ]


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
        readout: DegradationReadout | None = None,
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

    def close(self) -> None:
        """Delete uploads and results; a restoration in work stops."""
        self.closed.set()
        self._files.cleanup()

    def find_faces(self, photo: str | None, references: Sequence[str] | None) -> tuple[Any, str]:
        """Find and identify the faces, before anything is restored.

        Returns:
            image and its labelled boxes; a sentence.
        """
        if not photo:
            return None, ""
        scene, _ = self.pipeline.scene(photo, self._named(references), max_pixels=self.max_pixels, **self.reading)
        estimate = self.pipeline.find_faces(scene)
        return _boxed(scene.image, estimate), _faces_text(estimate)

    def restore(
        self,
        photo: str | None,
        references: Sequence[str] | None,
        guidance: float,
        scale: float,
        progress: Callable[[float, str], None],
    ) -> tuple[Any, ...]:
        """Restore a photo.

        Returns:
            boxed faces, sentence, (before, after), face pair, read-out rows, restoration log, path of the download.

        Raises:
            ValueError: no photo was given, or one that cannot be used.
        """
        if not photo:
            raise ValueError("Drop a photo first.")

        def report(stage: str, done: int, total: int) -> None:
            if self.closed.is_set():
                raise VisitorLeft("The page is closed.")
            progress(done / max(total, 1), f"{stage} {done} of {total}" if total > 1 else stage)

        reading = {"max_pixels": int(self.max_pixels / scale**2)} | self.reading
        before, file = self.pipeline.scene(photo, self._named(references), scale=scale, **reading)
        result = self.pipeline(before, seed=self.seed, guidance=guidance, progress=report).of(file)
        path = Path(tempfile.mkdtemp(dir=self.folder)) / f"{Path(photo).stem}.png"
        result.save(path)
        pair = result.estimate.face_estimates[0].pair if result.estimate.face_estimates else None
        gallery = [(_small(pair.degraded), "as it is"), (_small(pair.restored), "as restored")] if pair else []
        rows = self.readout(pair) if self.readout and pair else []
        why = json.loads(json.dumps({"name": Path(photo).name} | result.notes, default=str))
        boxed, sentence = _boxed(before.image, result.estimate), _tokens_text(result)
        return boxed, sentence, (_small(before.image), _small(result.image)), gallery, rows, why, str(path)

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


def build(page: AppController, *, guidance: float) -> Any:
    """The page as a `gradio.Blocks`; `launch` serves it."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    uploads = page.folder / "gradio"
    uploads.mkdir(mode=0o700, exist_ok=True)
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    gr = import_optional("gradio", "app", why="The web page")

    @contextmanager
    def errors_shown() -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, ImportError, FloatingPointError, VisitorLeft, WeightsError) as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error
        finally:
            release_freed_memory()

    def needed() -> None:
        from gradio.context import LocalContext

        jobs = [job for batch in blocks._queue.active_jobs for job in batch or ()]
        job = next((job for job in jobs if job._id == LocalContext.event_id.get(None)), None)
        open_jobs = blocks._queue.pending_event_ids_session.get(job.session_hash, ()) if job else ()
        if job and not (job.alive and job._id in open_jobs):
            raise VisitorLeft("The visitor has left.")

    def restore(
        photo: str | None,
        references: list[str] | None,
        guidance: float,
        scale: float,
        progress: Any = gr.Progress(),  # noqa: B008 (gradio finds it by its default)
    ) -> tuple[Any, ...]:
        def report(share: float, stage: str) -> None:
            needed()
            progress(share, stage)

        with errors_shown():
            boxed, said, slider, pair, rows, why, path = page.restore(photo, references, guidance, scale, report)
        return boxed, said, slider, pair, read_out(rows), why, gr.DownloadButton(value=path, interactive=True)

    with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                photo = gr.File(label="Photo", file_types=list(SUFFIXES), elem_id="photo")
                references = gr.File(
                    label="Photos of the person (optional)",
                    file_count="multiple",
                    file_types=list(SUFFIXES),
                    elem_id="references",
                )
                with gr.Accordion("Settings", open=False):
                    strength = gr.Slider(1.0, 1.3, value=guidance, step=0.01, label="Guidance (the paper's is 1.10)")
                    scale = gr.Radio([1, 2, 4], value=1, label="Enlarge")
                button = gr.Button("Restore", variant="primary", elem_id="restore")
                download = gr.DownloadButton("Download PNG", interactive=False, elem_id="download")
            with gr.Column(scale=2, min_width=300):
                slider = gr.ImageSlider(label="Before and after", interactive=False, elem_id="slider", max_height=700)
                said = gr.Markdown(elem_id="said")
                boxed = gr.AnnotatedImage(label="Faces found", elem_id="faces-found", height=420)
                pair = gr.Gallery(
                    label="The face pair that FaDeX reads", columns=2, height=340, object_fit="contain", elem_id="pair"
                )
                rows = gr.Markdown(elem_id="read-out")
                with gr.Accordion("Restoration log: every decision", open=False):
                    why = gr.JSON(label="restore.jsonl", elem_id="why")
        for part in (photo, references):
            inputs, find_faces = [photo, references], errors_shown()(page.find_faces)
            part.change(find_faces, inputs, [boxed, said], concurrency_id="model", api_name="look")
        button.click(
            restore,
            [photo, references, strength, scale],
            [boxed, said, slider, pair, rows, why, download],
            concurrency_id="model",
            concurrency_limit=1,
            api_name="restore",
        )
    blocks.page = page
    return blocks


def launch(
    blocks: Any,
    *,
    host: str,
    port: int,
    waiting: int,
    largest_mb: int,
    visitor: Limits | None = None,
    wait: bool = True,
) -> str:
    """Serve until interrupted or terminated; returns the address when `wait` is false.

    Uploads and results are deleted an hour after they were written, and all of them at the end.

    Args:
        host, port: address to listen at; 127.0.0.1 is reached from this machine only.
        waiting: largest number of requests in the queue; one more is refused with a message.
        largest_mb: largest size of an uploaded file, in MB.
        visitor: what one visitor may use; None for the defaults.

    Raises:
        OSError: the port is taken.
    """
    gr = import_optional("gradio", "app", why="The web page")
    blocks.queue(max_size=waiting, default_concurrency_limit=1, api_open=False)  # nothing goes past the queue

    def queued() -> list[str]:
        queue = blocks._queue
        working = [job for batch in queue.active_jobs for job in batch or ()]
        jobs = [job for one in queue.event_queue_per_concurrency_id.values() for job in one.queue] + working
        return [job.request.client.host for job in jobs if job.request.client]

    limits = functools.partial(VisitorLimits, limits=visitor or Limits(), queued=queued)
    page: AppController = blocks.page
    keep_clean(page.folder, page.closed)

    def terminated(*_: object) -> None:
        page.close()
        os._exit(143)  # the server would wait for visitors who are connected

    if wait:
        signal.signal(signal.SIGTERM, terminated)
    system = ["system-ui", "sans-serif"]  # gradio's own fonts are downloaded from the internet
    _, address, _ = blocks.launch(
        server_name=host,
        server_port=port,
        max_file_size=f"{largest_mb}mb",
        prevent_thread_lock=True,
        share=False,
        quiet=True,
        show_error=True,
        footer_links=[],
        theme=gr.themes.Base(font=system, font_mono=["ui-monospace", "monospace"]),
        css=CSS,
        app_kwargs={"middleware": [(limits, (), {})]},
    )
    if wait:
        log.info("Face2Scene is at %s (stop with Ctrl-C).", address)
        try:
            blocks.block_thread()
        finally:
            page.close()
    return address


def _small(image: Any) -> np.ndarray:
    """uint8 (h, w, 3) for the browser, at most `SHOWN` pixels long, whole pixels skipped."""
    array = to_array(image)
    step = -(-max(array.shape[:2]) // SHOWN)
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
        "blind": "The degradation was estimated without a restored face.",
        "null": "The degradation was not estimated: the learned null tokens were used.",
    }.get(source, f"Tokens: {source}.")
    return "\n".join([f"**{sentence}**", *(f"- {warning}" for warning in result.notes["warnings"])])
