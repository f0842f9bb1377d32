"""The web page: upload a photo and photos of the person; shows faces, estimated degradation and restored image."""

import functools
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from face2scene.assets.catalogue import WeightsError
from face2scene.cli.app_controller import MOST_REFERENCES, AppController, read_out
from face2scene.cli.visitors import Limits, VisitorLeft, VisitorLimits, keep_clean
from face2scene.common.memory import release_freed_memory
from face2scene.common.optional import import_optional
from face2scene.image_io.photos import SUFFIXES

__all__ = ["MOST_REFERENCES", "AppController", "build", "launch"]
log = logging.getLogger(__name__)

TITLE = "Face2Scene"
EXAMPLES = sorted((Path(__file__).parent / "examples").glob("*.jpg"))  # their licences: README.md beside them
INTRODUCTION = """# Face2Scene
The face in a degraded photo measures the degradation, and the whole photo is restored with it.
Drop a photo; photos of the people in it help, where Stage I uses them. Nothing leaves this machine."""
CSS = """
#read-out table, #faces-found table {font-variant-numeric: tabular-nums}
#read-out th, #read-out td {word-break: normal; overflow-wrap: normal}
#read-out td:nth-child(2) {white-space: nowrap}
#examples .grid-container {grid-template-columns: repeat(auto-fill, 112px) !important}
#dark {position: absolute; top: 12px; right: 20px; width: auto; z-index: 1}
.gradio-container {max-width: 1400px; margin: auto}
"""
DARK = "() => {document.body.classList.toggle('dark')}"


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
            raise gr.Error(page.clean(str(error)), duration=None, print_exception=False) from error
        finally:
            release_freed_memory()

    def needed() -> None:
        from gradio.context import LocalContext

        jobs = [job for batch in blocks._queue.active_jobs for job in batch or ()]
        job = next((job for job in jobs if job._id == LocalContext.event_id.get(None)), None)
        open_jobs = blocks._queue.pending_event_ids_session.get(job.session_hash, ()) if job else ()
        if job and not (job.alive and job._id in open_jobs):
            raise VisitorLeft("The visitor has left.")

    def reporting(progress: Any) -> Any:
        def report(share: float, stage: str) -> None:
            needed()
            progress(share, stage)

        return report

    def restore(
        photo: str | None,
        references: list[str] | None,
        guidance: float,
        scale: float,
        progress: Any = gr.Progress(),  # noqa: B008 (gradio finds it by its default)
    ) -> tuple[Any, ...]:
        with errors_shown():
            boxed, said, slider, pair, rows, why, path = page.restore(
                photo, references, guidance, scale, reporting(progress)
            )
        blend = gr.Slider(value=page.fidelity_of(path), interactive=True)
        download = gr.DownloadButton(value=path, interactive=True)
        return boxed, said, slider, pair, read_out(rows), why, path, blend, download

    def restore_all(
        photos: list[str] | None,
        references: list[str] | None,
        guidance: float,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        with errors_shown():
            shown, said, path = page.restore_all(photos, references, guidance, reporting(progress))
        return shown, said, gr.DownloadButton(value=path, interactive=True)

    def blended(path: str | None, fidelity: float) -> tuple[Any, Any]:
        with errors_shown():
            shown, other = page.at_fidelity(path, fidelity)
        return shown, gr.DownloadButton(value=other, interactive=True)

    def chosen(event: gr.SelectData) -> str:
        return page.example(EXAMPLES[event.index])

    with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
        gr.Markdown(INTRODUCTION)
        gr.Button("Light or dark", size="sm", elem_id="dark").click(None, js=DARK)
        one_bar = {"concurrency_id": "model", "concurrency_limit": 1}
        with gr.Row():
            with gr.Column(scale=1, min_width=300), gr.Tabs():
                with gr.Tab("One photo"):
                    photo = gr.File(label="Photo", file_types=list(SUFFIXES), elem_id="photo")
                    if EXAMPLES:
                        gr.Gallery(
                            lambda: page.previews(list(map(str, EXAMPLES))),
                            label="Or one of these",
                            height=140,
                            allow_preview=False,
                            elem_id="examples",
                            buttons=[],
                        ).select(chosen, None, photo, api_visibility="private")
                    button = gr.Button("Restore", variant="primary", elem_id="restore")
                    download = gr.DownloadButton("Download PNG", interactive=False, elem_id="download")
                with gr.Tab("Several photos"):
                    photos = gr.File(label="Photos", file_count="multiple", file_types=list(SUFFIXES), elem_id="photos")
                    all_button = gr.Button("Restore all", variant="primary", elem_id="restore-all")
                    archive = gr.DownloadButton("Download zip", interactive=False, elem_id="archive")
                    results = gr.Gallery(label="Restored", columns=2, elem_id="results")
                    said_all = gr.Markdown(elem_id="said-all")
            with gr.Column(scale=1, min_width=300):
                references = gr.File(
                    label="Photos of the person (optional)",
                    file_count="multiple",
                    file_types=list(SUFFIXES),
                    elem_id="references",
                )
                seen = gr.Gallery(label="The person", columns=4, height=140, visible=False, elem_id="seen")
                with gr.Accordion("Settings", open=False):
                    strength = gr.Slider(1.0, 1.3, value=guidance, step=0.01, label="Guidance (the paper's is 1.10)")
                    scale = gr.Radio([1, 2, 4], value=1, label="Enlarge")
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                slider = gr.ImageSlider(
                    label="Before and after (zooms)",
                    interactive=False,
                    elem_id="slider",
                    max_height=700,
                    format="png",  # gradio's default is lossy
                )
                blend = gr.Slider(
                    0,
                    1,
                    value=0,
                    step=0.05,
                    label="Fidelity: share of the input",
                    interactive=False,
                    elem_id="fidelity",
                )
                said = gr.Markdown(elem_id="said")
            with gr.Column(scale=2, min_width=300):
                boxed = gr.AnnotatedImage(label="The photo, and faces found", elem_id="faces-found", height=320)
                pair = gr.Gallery(
                    label="The face pair that FaDeX reads",
                    columns=2,
                    height=240,
                    object_fit="contain",
                    elem_id="pair",
                    format="png",
                )
                rows = gr.Markdown(elem_id="read-out")
        with gr.Accordion("Restoration log: every decision", open=False):
            why = gr.JSON(label="restore.jsonl", elem_id="why")
        finished = gr.State()
        for part in (photo, references):
            inputs, find_faces = [photo, references], errors_shown()(page.find_faces)
            part.change(find_faces, inputs, [boxed, said], concurrency_id="model", api_name="look")

        def preview(paths: list[str] | None) -> Any:
            with errors_shown():
                return gr.Gallery(value=page.previews(paths), visible=bool(paths))

        references.change(preview, references, seen, api_visibility="private")
        button.click(
            restore,
            [photo, references, strength, scale],
            [boxed, said, slider, pair, rows, why, finished, blend, download],
            api_name="restore",
            show_progress_on=slider,
            **one_bar,
        )
        all_button.click(
            restore_all,
            [photos, references, strength],
            [results, said_all, archive],
            api_name="restore_all",
            show_progress_on=results,
            **one_bar,
        )
        blend.release(blended, [finished, blend], [slider, download], show_progress="hidden", api_visibility="private")
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
