"""Quickstart report."""

import json
import re
import shutil

import numpy as np
import pytest

from face2scene.common.files import read_json, write_json
from face2scene.eval.reports.quickstart import quickstart_report
from face2scene.eval.reports.quickstart_page import findings
from face2scene.image_io.arrays import write_png


def test_report_is_self_contained(quickstart_run, capsys):
    run, places = quickstart_run
    scores = quickstart_report(run, **places)
    text = (run / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href|action|srcset)\s*=(?!["'](#|data:))""", text)
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttpRequest|WebSocket|sendBeacon|import\(", text)
    assert text.count('<figure class="card shot" ') == 2
    assert text.count("data:image/jpeg;base64,") == 2 * (5 + 2) + 2 * 5  # cards; what is seen before scrolling
    assert "blur 2 → JPEG 40<" in text and "&lt;b&gt;" in text and "SSIM is not measured: left out" in text
    assert text.count("<svg") == 4 and ">constant<" not in text
    assert "the ground-truth face with blur, a tint and grain" in text
    assert capsys.readouterr().out.count("[yes]") == 3
    block = scores["quickstart"]
    assert read_json(run / "scores.json")["quickstart"] == block
    assert set(block["restored"]) == {"psnr", "lpips", "dists"} and block["pictures"] == 2
    assert block["restored"]["psnr"] > block["trained_here"]["psnr"] > block["input"]["psnr"]
    assert block["seconds"] == {"train FaDeX": 12.5, "restore, shipped weights": 70.0}
    assert (run / "scores.csv").read_text() == (run / "restored/scores.csv").read_text()


def test_report_separates_trained_and_shipped(quickstart_run):
    run, places = quickstart_run
    block = quickstart_report(run, **places)["quickstart"]
    assert block["fadex"] == {"same": 0.8, "different": 0.1} and block["fadex_shipped"]["same"] == 0.9
    text = (run / "report.html").read_text(encoding="utf-8")
    assert '<th scope="row">restored, weights trained in this run (40 steps)</th>' in text
    assert '<th scope="row">restored, weights trained longer, shipped (4000 steps)</th>' in text
    assert "FaDeX, trained in this run (40 steps)" in text and "FaDeX, trained longer, shipped (4000 steps)" in text


def test_each_image_has_a_slider(quickstart_run):
    run, places = quickstart_run
    quickstart_report(run, **places)
    text = (run / "report.html").read_text(encoding="utf-8")
    style, script = (text.split(f"<{tag}>")[1].split(f"</{tag}>")[0] for tag in ("style", "script"))
    sliders = re.findall(r'<input type="range" min="0" max="100" value="50" aria-label="(\w+): share', text)
    assert sliders == 2 * ["anna_0", "ben_0"]  # a range input answers to dragging, touch and arrow keys by itself
    assert "document.addEventListener('input'" in script and "setProperty('--cut'" in script
    assert "var(--cut)" in style and ".compare:focus-within" in style and "touch-action:pan-y" in style


def test_findings_have_intervals(quickstart_run):
    run, places = quickstart_run
    block = quickstart_report(run, **places)["quickstart"]
    mean, low, high = block["differences"]["input"]["psnr"]
    assert low <= mean <= high
    assert mean == pytest.approx(block["restored"]["psnr"] - block["input"]["psnr"])
    found = findings(block)
    assert f"{mean:+.2f} [{low:+.2f}, {high:+.2f}] (difference, 95 % interval)" in str(found[0])
    assert found[1].columns == ("same degradation", "different") and len(found[2].figures[0]) == 4


def test_scenes_are_scored_by_region(quickstart_scenes):
    run, places = quickstart_scenes
    scores = quickstart_report(run, **places)
    regions = scores["quickstart"]["scenes"]["phone"]
    assert set(regions) == {"whole", "face", "background"}
    assert regions["face"]["restored"]["lpips"] < regions["face"]["input"]["lpips"]
    finding = findings(scores["quickstart"])[3]
    assert finding.verdict == "no" and finding.note == "not in background, phone"  # the fixture's is made worse
    text = (run / "report.html").read_text(encoding="utf-8")
    assert text.count('<figure class="card shot" ') == 4 and "a phone at ISO 800 to 3200" in text
    assert "background: degraded input" in text and text.index("eve_0") < text.index('id="findings"')
    assert re.search(r'data-middle="41.7% 41.7%"', text)  # zoomed about the face


def test_operators_share_one_chart(quickstart_run):
    run, places = quickstart_run
    lines = [{"step": step, **{f"validation/same/g{n}": step / n for n in (1, 2, 3)}} for step in (100, 200)]
    with open(run / "fadex/metrics.jsonl", "a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
    quickstart_report(run, **places)
    text = (run / "report.html").read_text(encoding="utf-8")
    assert text.count("validation/same by degradation</figcaption>") == 1 and text.count('<g class="one">') == 3
    assert "validation/same/g1" not in text


def test_failed_findings_are_reported(quickstart_run):
    run, places = quickstart_run
    shutil.copy(places["dataset"] / "lq/val/000/anna_0.png", run / "restored/images/anna_0.png")
    shutil.copy(places["dataset"] / "lq/val/000/ben_0.png", run / "restored/images/ben_0.png")
    write_png(run / "wrong_tokens/images/ben_0.png", np.zeros((32, 32, 3), np.float32))
    probe = read_json(run / "fadex/weights/probe.json")
    write_json(run / "fadex/weights/probe.json", probe | {"same_mean": 0.3})
    found = findings(quickstart_report(run, **places)["quickstart"])
    assert [finding.verdict for finding in found] == ["no", "no", "not measured"]
    assert found[0].note == "not in PSNR, LPIPS, DISTS"
    assert "incomplete: 1 of 2 images" in (run / "report.html").read_text(encoding="utf-8")


def test_page_size_limit_drops_images(quickstart_run, monkeypatch):
    run, places = quickstart_run
    monkeypatch.setattr("face2scene.eval.reports.quickstart_page.MAX_BYTES", 9_000)
    quickstart_report(run, **places)
    text = (run / "report.html").read_text(encoding="utf-8")
    assert text.count('<figure class="card shot" ') == 1 and "1 more images" in text


def test_noise_image_fits_page(quickstart_run):
    run, places = quickstart_run
    noise = np.random.default_rng(0).random((256, 256, 3), dtype=np.float32)  # hardly smaller as a JPEG
    write_png(run / "restored/faces/anna_0_degraded.png", noise)
    quickstart_report(run, **places)
    assert (run / "report.html").stat().st_size > 100_000


@pytest.mark.parametrize("step", ["restorer/weights/restorer.safetensors", "wrong_tokens/restore.jsonl"])
def test_unfinished_quickstart_is_refused(step, quickstart_run):
    run, places = quickstart_run
    (run / step).unlink()
    with pytest.raises(FileNotFoundError, match=f"{step} is not there yet: `make demo`"):
        quickstart_report(run, **places)


@pytest.mark.browser
def test_browser_sorts_and_magnifies_together(chromium, quickstart_run):
    run, places = quickstart_run
    quickstart_report(run, **places)
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.goto((run / "report.html").as_uri())
    assert page.query_selector(".first .compare").bounding_box()["y"] < 400
    names = "[...document.querySelectorAll('#images .card')].map(one => one.querySelector('h3').textContent)"
    values = "[...document.querySelectorAll('#images .card')].map(one => JSON.parse(one.dataset.worst).lpips)"
    built = page.evaluate(names)
    page.select_option("#order", "lpips")
    assert page.evaluate(values) == sorted(page.evaluate(values), reverse=True)
    page.select_option("#order", "")
    assert page.evaluate(names) == built
    shown = "[...document.querySelectorAll('#images img[data-view]:not([hidden])')]"
    page.select_option("#zoom", "4")
    assert set(page.evaluate(f"{shown}.map(one => getComputedStyle(one).transform)")) == {"matrix(4, 0, 0, 4, 0, 0)"}
    box = page.query_selector("#images .compare")
    box.scroll_into_view_if_needed()
    place = box.bounding_box()
    page.mouse.dblclick(place["x"] + 0.25 * place["width"], place["y"] + 0.25 * place["height"])
    style = "getComputedStyle(document.querySelector('#images .compare'))"
    x, y = page.evaluate(f"['--x', '--y'].map(one => parseFloat({style}.getPropertyValue(one)))")
    face = 100 * 12 / 32, 100 * 14 / 32  # the zoom began about the middle of the face
    assert (x, y) == pytest.approx([about + (25 - about) / 4 for about in face], abs=0.6)
    page.close()
