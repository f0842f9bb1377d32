"""The web page: what its buttons do, and the same through its own server."""

import hashlib
import json
import os
import socket
import zipfile
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image

from face2scene.cli.app import EXAMPLES, AppController, DegradationReadout, build, launch
from face2scene.cli.app_controller import STAGES
from face2scene.common.reproducibility import REPOSITORY
from face2scene.faces.backends.yunet_dlib import OpenBackend
from face2scene.faces.detect import Detector
from face2scene.inference.batch import restore_folder
from face2scene.inference.pipeline import Face2ScenePipeline
from face2scene.inference.tasks import find_tasks
from face2scene.models.fadex import FaDeX
from face2scene.models.fadex.linear_readout import FACTORS, LinearProbe
from face2scene.ref_fr import Copy

TINY_WEIGHTS = REPOSITORY / "checkpoints/tiny"


@pytest.fixture(scope="module")
def pipeline():
    return Face2ScenePipeline.from_pretrained(TINY_WEIGHTS, ref_fr=Copy(), detector=Detector(OpenBackend()))


@pytest.fixture(scope="module")
def small_photo(photo, tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "an astronaut.png"
    Image.fromarray((photo[:256, 96:352] * 255).round().astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def readout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readout")
    fadex = FaDeX(widths=[8, 8], strides=[2, 1], embedding=8)
    fadex.save(folder / "fadex.safetensors")
    heads = LinearProbe(8)
    heads.save(folder / "readout.safetensors")
    return DegradationReadout(folder / "fadex.safetensors", folder / "readout.safetensors")


@pytest.fixture(scope="module")
def expected_png(pipeline, small_photo, tmp_path_factory):
    output = tmp_path_factory.mktemp("restored")
    restore_folder(pipeline, find_tasks(small_photo), output)
    (written,) = (output / "images").iterdir()
    return written.read_bytes()


@pytest.fixture(scope="module")
def served_app(pipeline, readout, expected_png):
    blocks = build(AppController(pipeline, readout), guidance=pipeline.restorer.guidance)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = launch(blocks, host="127.0.0.1", port=port, waiting=2, largest_mb=20, wait=False)
    yield address, expected_png
    blocks.close()


def no_progress(share: float, stage: str) -> None:
    assert 0 <= share <= 1
    assert stage


def test_preview_boxes_face_before_restoring(pipeline, small_photo):
    (image, labels), said = AppController(pipeline).find_faces(str(small_photo), None)
    assert image.shape == (256, 256, 3)
    assert said.startswith("1 face found.")
    ((x0, y0, x1, y1), name) = labels[0]
    assert 0 <= x0 < x1 <= 256
    assert 0 <= y0 < y1 <= 256
    assert name.startswith("1: ")


def test_face_is_matched_to_references(pipeline, small_photo):
    (_, labels), _ = AppController(pipeline).find_faces(str(small_photo), [str(small_photo)])
    assert labels[0][1].startswith("1: the person ")


def test_restore_returns_pair_readout_and_log(pipeline, readout, small_photo):
    page = AppController(pipeline, readout)
    boxed, said, (before, after), pair, rows, why, path = page.restore(str(small_photo), None, 1.1, 1, no_progress)
    assert before.shape == after.shape == (256, 256, 3)
    assert "estimated from the face pair" in said
    assert [caption for _, caption in pair] == ["as it is", "as restored"]
    assert [row[0] for row in rows] == [name.replace("_", " ") for name in FACTORS]
    assert why["name"] == small_photo.name
    assert why["tokens"] == "pair"
    assert len(boxed[1]) == 1
    assert Image.open(path).size == (256, 256)


def test_fidelity_acts_on_the_finished_restoration(pipeline, small_photo):
    page = AppController(pipeline)
    *_, path = page.restore(str(small_photo), None, 1.1, 1, no_progress)
    assert page.fidelity_of(path) == 0
    (before, after), other = page.at_fidelity(path, 1.0)
    assert np.array_equal(before, after)
    assert Path(other).name == Path(path).name and other != path
    assert np.array_equal(np.asarray(Image.open(other).convert("RGB")), np.asarray(Image.open(small_photo)))
    with pytest.raises(ValueError, match="no longer kept"):
        page.at_fidelity("elsewhere.png", 0.5)


def test_few_finished_restorations_are_kept(pipeline, small_photo, monkeypatch):
    monkeypatch.setattr("face2scene.cli.app_controller.KEPT_PIXELS", 100_000)
    page = AppController(pipeline)
    first, second = (page.restore(str(small_photo), None, 1.1, 1, no_progress)[-1] for _ in range(2))
    page.at_fidelity(second, 0.5)
    with pytest.raises(ValueError, match="no longer kept"):
        page.at_fidelity(first, 0.5)


def test_one_progress_bar_never_goes_back(pipeline, small_photo):
    seen = []
    AppController(pipeline).restore(str(small_photo), None, 1.1, 1, lambda share, stage: seen.append((share, stage)))
    shares = [share for share, _ in seen]
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert {stage.split()[0] for _, stage in seen} <= {name.split()[0] for name in STAGES}


def test_batch_restores_what_it_can(pipeline, small_photo, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    page = AppController(pipeline)
    shown, said, archive = page.restore_all([str(small_photo), str(broken)], None, 1.1, no_progress)
    assert [name for _, name in shown] == ["an astronaut.png"]
    assert said.startswith("1 of 2 photos restored.\n- broken.png: ") and str(tmp_path) not in said
    with zipfile.ZipFile(archive) as file:
        assert file.namelist() == ["an astronaut.png", "restore.jsonl"]
        assert json.loads(file.read("restore.jsonl"))["name"] == "an astronaut.png"
    with pytest.raises(ValueError, match="No photo could be restored"):
        page.restore_all([str(broken)], None, 1.1, no_progress)


def test_messages_name_no_folder_of_the_server(pipeline, tmp_path):
    page = AppController(pipeline)
    upload = page.folder / "gradio/0a1b/my photo.png"
    assert page.clean(f"{upload} cannot be read.") == "my photo.png cannot be read."
    assert page.clean("There is no /srv/weights/tiny/fadex.safetensors: fetch it.") == (
        "There is no fadex.safetensors: fetch it."
    )
    kept = "2 of 3 and/or https://example.org/a/b.html, 0.5/1"
    assert page.clean(kept) == kept


def test_examples_are_copied_among_the_uploads(pipeline):
    page = AppController(pipeline)
    assert len(EXAMPLES) == 2
    copied = page.example(EXAMPLES[0])
    assert gr.File().postprocess(copied).path == copied  # gradio takes a text, not a Path
    copy = Path(copied)
    assert copy.is_relative_to(page.folder) and copy.read_bytes() == EXAMPLES[0].read_bytes()
    assert [image.shape[2] for image in page.previews(list(map(str, EXAMPLES)))] == [3, 3]


def test_missing_photo_or_face_is_reported(pipeline, tmp_path):
    with pytest.raises(ValueError, match="Drop a photo first"):
        AppController(pipeline).restore(None, None, 1.1, 1, no_progress)
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "grey.png")
    _, said = AppController(pipeline).find_faces(str(tmp_path / "grey.png"), None)
    assert said.startswith("No face was found.")


def test_preview_and_boxes_are_downscaled(pipeline, photo, tmp_path):
    large = np.kron(photo[:256, 96:352], np.ones((8, 8, 1)))  # 2048 x 2048
    Image.fromarray((large * 255).round().astype(np.uint8)).save(tmp_path / "large.png")
    (image, labels), _ = AppController(pipeline).find_faces(str(tmp_path / "large.png"), None)
    assert image.shape == (1024, 1024, 3)
    assert max(labels[0][0]) <= 1024


def test_download_equals_cli_output(served_app, small_photo):
    from gradio_client import Client, handle_file

    address, expected_png = served_app
    client = Client(address, verbose=False)
    *_, download = client.predict(handle_file(str(small_photo)), None, 1.1, 1, api_name="/restore")
    path = download["value"] if isinstance(download, dict) else download
    with open(path, "rb") as file:
        assert file.read() == expected_png


def test_server_reports_unreadable_image(served_app, tmp_path):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n, but no more")
    with pytest.raises(AppError, match=r"^broken.png cannot be read as an image"):
        Client(served_app[0], verbose=False).predict(
            handle_file(str(tmp_path / "broken.png")), None, 1.1, 1, api_name="/restore"
        )


def test_readout_reports_all_factors_with_units(readout):
    from face2scene.common.types import FacePair

    rows = readout(FacePair(torch.rand(3, 32, 32), torch.rand(3, 32, 32), (0, 0, 32, 32)))
    assert [row[2] for row in rows] == [unit for unit, _, _ in FACTORS.values()]


@pytest.mark.browser  # with Chromium and `pip install playwright`; SCREENSHOTS=FOLDER keeps what was seen
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (400, 860)])
def test_browser_upload_slider_download(chromium, served_app, small_photo, tmp_path, width, height):
    address, expected_png = served_app
    page = chromium.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(300_000)
    page.goto(address)
    page.set_input_files("#photo input[type=file]", str(small_photo))
    page.get_by_text("found.").first.wait_for()
    page.click("#restore")
    page.wait_for_selector("#slider img")
    page.wait_for_function("() => !document.querySelector('#download')?.disabled")
    with page.expect_download() as waiting:
        page.click("#download")
    got = Path(waiting.value.path()).read_bytes()
    assert hashlib.sha256(got).hexdigest() == hashlib.sha256(expected_png).hexdigest()

    page.locator("#slider").scroll_into_view_if_needed()
    handle = page.locator("#slider .inner").first
    box = page.locator("#slider .slider-wrap, #slider [class*=slider]").first.bounding_box()
    before = handle.bounding_box()["x"]
    page.mouse.move(before + 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    assert handle.bounding_box()["x"] < before - 10
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"app_{width}.png"), full_page=True)
    page.close()


class QuickPage(AppController):
    """A page that restores nothing: the photo itself, and half of it for any fidelity."""

    def __init__(self):
        super().__init__(None)

    def find_faces(self, photo, references):
        return (np.zeros((64, 64, 3), np.uint8), []), "1 face found."

    def restore(self, photo, references, guidance, scale, progress):
        image, path = np.full((64, 64, 3), 200, np.uint8), self.folder / "restored.png"
        Image.fromarray(image).save(path)
        return (image, []), "", (image, image), [], [], {}, str(path)

    def at_fidelity(self, path, fidelity):
        assert path == str(self.folder / "restored.png")
        image, other = np.full((64, 64, 3), 100, np.uint8), self.folder / f"blended_{fidelity:g}.png"
        Image.fromarray(image).save(other)
        return (image, image), str(other)


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_browser_example_zoom_fidelity_and_dark(chromium, width):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    blocks = build(QuickPage(), guidance=1.1)
    address = launch(blocks, host="127.0.0.1", port=port, waiting=2, largest_mb=20, wait=False)
    page = chromium.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(300_000)
    page.goto(address)
    page.locator("#examples button img, #examples .thumbnail-item").first.click()
    page.get_by_text("1 face found.").first.wait_for()
    page.click("#restore")
    page.wait_for_selector("#slider img")
    page.wait_for_function("() => !document.querySelector('#download')?.disabled")

    page.locator("#slider").scroll_into_view_if_needed()
    box = page.locator("#slider img").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.wheel(0, -400)
    page.wait_for_function(
        "w => [...document.querySelectorAll('#slider img')].every(one => one.getBoundingClientRect().width > w)",
        arg=1.05 * box["width"],
    )
    zoomed = page.eval_on_selector_all("#slider img", "all => all.map(one => one.getBoundingClientRect().width)")
    assert len(zoomed) == 2
    assert abs(zoomed[0] - zoomed[1]) < 1  # both

    before = page.get_attribute("#slider img >> nth=0", "src")
    track = page.locator("#fidelity input[type=range]")
    track.scroll_into_view_if_needed()
    at = track.bounding_box()
    page.mouse.click(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
    page.wait_for_function("src => document.querySelector('#slider img').src !== src", arg=before)
    with page.expect_download() as waiting:
        page.click("#download")
    assert waiting.value.suggested_filename == "blended_0.5.png"

    assert not page.evaluate("document.body.classList.contains('dark')")
    page.click("#dark")
    assert page.evaluate("document.body.classList.contains('dark')")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"dark_{width}.png"), full_page=True)
    page.close()
    blocks.close()
