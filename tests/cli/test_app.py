"""The web page: what its buttons do, and the same through its own server."""

import hashlib
import io
import json
import os
import socket
import zipfile
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from face2scene.cli.app import EXAMPLES, AppController, build, launch
from face2scene.cli.app_controller import STAGES
from face2scene.common.reproducibility import REPOSITORY
from face2scene.faces.backends.yunet_dlib import OpenBackend
from face2scene.faces.detect import Detector
from face2scene.inference.batch import restore_folder
from face2scene.inference.pipeline import Face2ScenePipeline
from face2scene.inference.tasks import find_tasks
from face2scene.models.fadex import FaDeX, Readout
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
    return Readout(folder / "fadex.safetensors", folder / "readout.safetensors")


@pytest.fixture(scope="module")
def expected_png(pipeline, small_photo, tmp_path_factory):
    output = tmp_path_factory.mktemp("restored")
    restore_folder(pipeline, find_tasks(small_photo), output)
    (written,) = (output / "images").iterdir()
    return written.read_bytes()


@pytest.fixture(scope="module")
def served_app(pipeline, readout, expected_png):
    blocks = build(AppController(pipeline, readout), guidance=pipeline.restorer.guidance)
    address = launch(blocks, host="127.0.0.1", port=free_port(), waiting=2, largest_mb=20, wait=False)
    yield address, expected_png
    blocks.close()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


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
    named = [(name.replace("_", " "), unit) for name, (unit, _, _) in FACTORS.items()]
    assert [(name, unit) for name, _, unit in rows] == named
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


@pytest.fixture(scope="module", params=[1280, 400])
def restored_tab(request, chromium, make_pipeline):
    """The page at two widths with an example restored by networks for tests; beside it the page's controller."""
    controller = AppController(make_pipeline())
    blocks = build(controller, guidance=1.1)
    address = launch(blocks, host="127.0.0.1", port=free_port(), waiting=2, largest_mb=20, wait=False)
    tab = chromium.new_page(viewport={"width": request.param, "height": 900}, reduced_motion="reduce")
    tab.set_default_timeout(120_000)
    tab.goto(address)
    tab.locator("#examples .thumbnail-item").first.click()
    tab.get_by_text("found.").first.wait_for()
    tab.click("#restore")
    tab.wait_for_function("() => document.querySelectorAll('#slider img').length === 2")
    tab.wait_for_function("() => !document.querySelector('#download')?.disabled")
    yield tab, controller
    tab.close()
    blocks.close()
    controller.close()


def shown_boxes(tab) -> list[list[float]]:
    corners = "all => all.map(one => one.getBoundingClientRect()).map(one => [one.x, one.y, one.width, one.height])"
    return tab.eval_on_selector_all("#slider img", corners)


def margin_brightness(tab) -> float:
    """Of the page's left margin, 0 to 255."""
    return np.asarray(Image.open(io.BytesIO(tab.screenshot())).convert("L"))[400, :10].mean()


@pytest.mark.browser
def test_wheel_zooms_before_and_after_together(restored_tab):
    tab, _ = restored_tab
    tab.locator("#slider").scroll_into_view_if_needed()
    x, y, width, height = shown_boxes(tab)[0]
    tab.mouse.move(x + 0.25 * width, y + 0.25 * height)  # beside the handle, which takes no wheel
    for _ in range(6):  # 5 % each
        tab.mouse.wheel(0, -100)
    wide = "w => [...document.querySelectorAll('#slider img')].every(one => one.getBoundingClientRect().width > w)"
    tab.wait_for_function(wide, arg=1.3 * width)
    before, after = shown_boxes(tab)
    assert before == pytest.approx(after, abs=1)
    assert before[3] / before[2] == pytest.approx(height / width, rel=0.01)  # not stretched
    tab.get_by_label("Undo").first.click()
    tab.wait_for_function(f"w => !({wide})(w)", arg=1.01 * width)


@pytest.mark.browser
def test_fidelity_slider_acts_without_another_run(restored_tab):
    tab, controller = restored_tab
    restored, networks = next(reversed(controller._results.values())), controller.pipeline
    controller.pipeline = None  # a run would fail
    source = "document.querySelectorAll('#slider img')[1].src"
    before = tab.evaluate(source)
    track = tab.locator("#fidelity input[type=range]")
    track.scroll_into_view_if_needed()
    at = track.bounding_box()
    tab.mouse.click(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
    tab.wait_for_function(f"src => {source} !== src", arg=before)
    with tab.expect_download() as waiting:
        tab.click("#download")
    controller.pipeline = networks
    share = float(tab.input_value("#fidelity input[type=number]"))
    assert share == pytest.approx(0.5, abs=0.051)  # one step of the slider
    expected = controller.folder / "expected.png"
    restored.at_fidelity(share).save(expected)
    assert np.array_equal(np.asarray(Image.open(waiting.value.path())), np.asarray(Image.open(expected)))


@pytest.mark.browser
def test_page_fits_window_light_and_dark(restored_tab):
    tab, _ = restored_tab
    seen = {}
    for name in ("light", "dark"):
        seen[name] = margin_brightness(tab)
        assert tab.evaluate("document.documentElement.scrollWidth") <= tab.viewport_size["width"]
        if folder := os.environ.get("SCREENSHOTS"):
            tab.screenshot(path=str(Path(folder) / f"{name}_{tab.viewport_size['width']}.png"), full_page=True)
        tab.click("#dark")
    assert seen["dark"] < 64 < 192 < seen["light"]
    assert margin_brightness(tab) > 192  # the button goes back too


@pytest.mark.browser
def test_example_thumbnails_are_whole(restored_tab):
    tab, _ = restored_tab
    outer = tab.locator("#examples").bounding_box()
    for thumbnail in tab.locator("#examples .thumbnail-item").all():
        box = thumbnail.bounding_box()
        assert outer["y"] <= box["y"] and box["y"] + box["height"] <= outer["y"] + outer["height"]


@pytest.mark.browser
def test_batch_upload_and_an_error_without_folders(restored_tab, tmp_path):
    tab, controller = restored_tab
    for name, value in (("one.png", 60), ("two.png", 180)):
        Image.new("RGB", (64, 48), (value, value, value)).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no image")
    tab.get_by_role("tab", name="Several photos").click()
    tab.set_input_files("#photos input[type=file]", [str(tmp_path / name) for name in ("one.png", "two.png")])
    tab.wait_for_function("() => document.querySelectorAll('#photos tr.file').length === 2")
    tab.click("#restore-all")
    tab.get_by_text("2 of 2 photos restored.").wait_for()
    with tab.expect_download() as waiting:
        tab.click("#archive")
    with zipfile.ZipFile(waiting.value.path()) as file:
        assert file.namelist() == ["one.png", "two.png", "restore.jsonl"]
    tab.get_by_role("tab", name="One photo").click()
    tab.locator("#photo").get_by_label("Clear").first.click()
    tab.set_input_files("#photo input[type=file]", str(tmp_path / "broken.png"))
    tab.get_by_text("broken.png cannot be read as an image").first.wait_for()
    text = tab.inner_text("body")
    assert str(controller.folder) not in text and str(REPOSITORY) not in text and str(tmp_path) not in text
