"""The report of scored folders: its contents, and a thousand images in Chromium."""

import json
import os
import re
import shutil
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest

from face2scene.eval.reports.gallery import write_report
from face2scene.eval.scoring.pairing import ScoreError
from face2scene.eval.scoring.score import score_folder
from face2scene.eval.scoring.significance import compare
from face2scene.image_io.arrays import read_image, write_png

SCORERS = {"psnr": lambda x, y: -10 * ((x - y) ** 2).mean((1, 2, 3)).log10()}
NOISE = {"plain": 0.1, "Ours & more": 0.02}


def scored_methods(place: Path, count: int, size: int = 24) -> tuple[dict[str, Path], Path]:
    """Two methods on noise images; the farther an image is in the alphabet, the worse both restore it."""
    folders = {}
    for title, noise in NOISE.items():
        made = place / f"made {title}"
        for number in range(count):
            rng = np.random.default_rng(number)
            gt = rng.random((size, size, 3), dtype=np.float32)
            write_png(place / "truth" / f"{number:04d}.png", gt)
            change = rng.normal(0, noise * (1 + number / count), gt.shape).astype(np.float32)
            write_png(made / "images" / f"{number:04d}.png", np.clip(gt + change, 0, 1))
        folders[title] = place / f"scores {title}"
        score_folder(made, place / "truth", ["psnr"], folders[title], scorers=SCORERS)
    return folders, place / "truth"


def page_data(report: Path) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', report.read_text(encoding="utf-8"))[1])


def test_page_shows_values_and_log_entries(tmp_path):
    methods, gt = scored_methods(tmp_path, 4)
    (tmp_path / "made plain/restore.jsonl").write_text(
        json.dumps({"name": "0001.jpg", "warnings": ["</script>"]}) + "\n"
    )
    report = write_report(tmp_path / "report", methods, gt, title="Two & one")
    data, text = page_data(report), report.read_text(encoding="utf-8")
    assert data["names"] == ["0000", "0001", "0002", "0003"]
    assert list(data["views"]) == ["plain", "ours_more", "truth"]
    assert data["views"]["plain"]["why"] == [None, {"name": "0001.jpg", "warnings": ["</script>"]}, None, None]
    psnr = data["views"]["ours_more"]["values"]["psnr"]
    assert len(psnr) == 4 and min(psnr) > max(data["views"]["plain"]["values"]["psnr"])
    assert "Two &amp; one" in text and "Ours &amp; more" in text
    assert read_image(report.parent / "thumbnails/ours_more/0003.jpg").shape == (24, 24, 3)
    full = report.parent / data["views"]["plain"]["full"][2]
    assert full.resolve() == (tmp_path / "made plain/images/0002.png").resolve()


def test_p_values_are_corrected_jointly(tmp_path):
    methods, gt = scored_methods(tmp_path, 8)
    alone = compare(methods["plain"], methods["Ours & more"])[0].p
    methods["Again"] = methods["Ours & more"]
    text = write_report(tmp_path / "report", methods, gt).read_text(encoding="utf-8")
    assert text.count(f"<td>{2 * alone:.2g}</td>") == 2 and "correction for the 2 tests of this page" in text


def test_only_changed_thumbnails_are_remade(tmp_path):
    methods, gt = scored_methods(tmp_path, 2)
    report = write_report(tmp_path / "report", {"ours": methods["plain"]}, gt)
    thumbnails = {view: report.parent / f"thumbnails/{view}/0000.jpg" for view in ("ours", "truth")}
    first = {view: (path.stat().st_ino, path.read_bytes()) for view, path in thumbnails.items()}
    os.utime(tmp_path / "made Ours & more/images/0000.png", (1, 1))  # older than the thumbnail of the same title
    os.utime(gt / "0000.png")  # newer than its thumbnail, with the same content
    write_report(tmp_path / "report", {"ours": methods["Ours & more"]}, gt)
    assert thumbnails["ours"].read_bytes() != first["ours"][1]
    assert thumbnails["truth"].stat().st_ino == first["truth"][0]
    write_report(tmp_path / "report", {"ours": methods["plain"]}, gt)
    thumbnails["ours"].write_bytes(b"cut")
    write_report(tmp_path / "report", {"ours": methods["plain"]}, gt)
    assert thumbnails["ours"].read_bytes() == first["ours"][1]


def test_missing_image_is_marked(tmp_path):
    methods, gt = scored_methods(tmp_path, 3)
    (tmp_path / "made plain/images/0002.png").unlink()
    data = page_data(write_report(tmp_path / "report", methods, gt))
    assert data["views"]["plain"]["missing"] == ["0002"] and data["views"]["ours_more"]["missing"] == []


def test_uppercase_suffix_is_shown(tmp_path):
    methods, gt = scored_methods(tmp_path, 2)
    images = tmp_path / "made plain/images"
    (images / "0001.png").rename(images / "0001.PNG")
    score_folder(images.parent, gt, ["psnr"], methods["plain"], scorers=SCORERS)
    report = write_report(tmp_path / "report", methods, gt)
    view = page_data(report)["views"]["plain"]
    assert view["missing"] == [] and view["full"][1].endswith("/0001.PNG")
    assert (report.parent / "thumbnails/plain/0001.jpg").is_file()


def test_images_are_found_from_another_folder(tmp_path, monkeypatch):
    _, gt = scored_methods(tmp_path, 2)
    monkeypatch.chdir(tmp_path)
    score_folder("made plain", gt, ["psnr"], tmp_path / "runs/plain", scorers=SCORERS)  # a relative path
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    data = page_data(write_report(tmp_path / "report", {"plain": tmp_path / "runs/plain"}, gt))
    assert data["names"] == ["0000", "0001"] and data["views"]["plain"]["missing"] == []
    shutil.move(tmp_path / "made plain", tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"plain: the scored images are not in made plain/images; start where"):
        write_report(tmp_path / "report", {"plain": tmp_path / "runs/plain"}, gt)


def test_invalid_report_input_raises(tmp_path):
    methods, gt = scored_methods(tmp_path, 2)
    with pytest.raises(ScoreError, match="at least one scored folder"):
        write_report(tmp_path / "report", {}, gt)
    with pytest.raises(ScoreError, match="cannot be told apart as folder names"):
        write_report(tmp_path / "report", {"A b": methods["plain"], "a-b": methods["plain"]}, gt)
    with pytest.raises(FileNotFoundError, match=r"scores\.json"):
        write_report(tmp_path / "report", {"unscored": tmp_path / "truth"}, gt)
    shutil.copy(gt / "0000.png", gt / "0002.png")
    with pytest.raises(ScoreError, match=r"plain, Ours & more: not scored against this ground truth of 3 images"):
        write_report(tmp_path / "report", methods, gt)
    (gt / "0002.png").unlink()
    csv = methods["plain"] / "scores.csv"
    csv.write_text(csv.read_text().replace(".", "1.", 1))
    with pytest.raises(ScoreError, match=r"scores\.csv"):
        write_report(tmp_path / "report", methods, gt)
    assert not (tmp_path / "report/report.html").exists()


@pytest.mark.browser  # SCREENSHOTS=FOLDER keeps what was seen
@pytest.mark.parametrize(("width", "height"), [(1400, 1000), (420, 900)])
def test_thousand_images_sort_search_compare(chromium, tmp_path, width, height):
    methods, gt = scored_methods(tmp_path, 6, size=96)
    for folder in (gt, *(tmp_path / f"made {title}/images" for title in methods)):
        for number in range(6, 1000):  # a thousand by name, six of them painted
            shutil.copy(folder / f"{number % 6:04d}.png", folder / f"{number:04d}.png")
    for title, folder in methods.items():
        score_folder(tmp_path / f"made {title}", gt, ["psnr"], folder, scorers=SCORERS)
    report = write_report(tmp_path / "report", methods, gt)

    page = chromium.new_page(viewport={"width": width, "height": height})
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda request: errors.append(request.url))
    start = perf_counter()
    page.goto(report.as_uri())
    cards = page.locator("#gallery .card")
    cards.first.locator("img").first.wait_for()
    assert perf_counter() - start < 20
    assert cards.count() < 200  # the rest is made when it is scrolled to
    assert page.locator("#count").inner_text().startswith("1000 of 1000")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    def first() -> str:
        return cards.first.locator("h3").inner_text()

    page.select_option("#order", "psnr")
    worst = first()
    page.select_option("#direction", "-1")
    assert int(worst) % 6 == 5 and int(first()) % 6 == 0
    page.fill("#find", "099")
    assert page.locator("#count").inner_text().startswith("11 of 1000") and cards.count() == 11 and "099" in first()
    page.select_option("#left", "truth")
    assert cards.first.locator("img.over").get_attribute("data-view") == "truth"

    box = cards.first.locator(".compare")
    box.scroll_into_view_if_needed()
    place = box.bounding_box()
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    page.mouse.down()
    page.mouse.move(place["x"] + place["width"] * 0.2, place["y"] + place["height"] / 2, steps=5)
    page.mouse.up()
    cut = float(box.evaluate("box => getComputedStyle(box).getPropertyValue('--cut').replace('%', '')"))
    assert 15 < cut < 25
    box.locator("input").press("ArrowRight")
    assert float(box.evaluate("box => getComputedStyle(box).getPropertyValue('--cut').replace('%', '')")) == cut + 1
    assert errors == []
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"gallery_{width}.png"))
    page.close()
