"""Results that others can send, and the leaderboard made of them."""

import json
import shutil

import pytest
from PIL import Image
from scored_folders import SCORERS, score_images, write_images

from face2scene.cli import main as command
from face2scene.common.files import read_json, write_json
from face2scene.eval.reports.leaderboard import submit
from face2scene.eval.scoring.pairing import ScoreError
from face2scene.eval.scoring.score import score_folder
from face2scene.eval.scoring.submission import read_results, results_of


def make_run(tmp_path, title, noise=0.1, names="abcd", inputs="1", sha="c" * 64):
    """A scored run as run_baseline leaves it."""
    folder = title.lower().replace(" ", "_")
    score_images(tmp_path, folder, names, noise, keys=("psnr", "dists"))
    record = {
        "adapter": {"title": title, "repository": ""},
        "face2scene": "7bc9510e",
        "weights_sha256": {"w.pth": sha},
        "pictures": {name: {"input_sha256": inputs * 64} for name in names},
    }
    write_json(tmp_path / f"out_{folder}/baseline.json", record)
    return tmp_path / f"out_{folder}"


def change(run, **changes):
    """The results of a run as somebody else sends them, changed, in a folder of their own."""
    sent = run.with_name(f"sent_{run.name}")
    shutil.rmtree(sent, ignore_errors=True)
    write_json(sent / "results.json", results_of(run) | changes)
    return sent


def test_runs_become_sorted_page(tmp_path):
    for title, noise in (("Good", 0.05), ("<b>Bad & Co", 0.2)):
        page, lacking = submit(make_run(tmp_path, title, noise), tmp_path / "board")
        assert lacking == []
    text = page.read_text()
    assert "&lt;b&gt;Bad &amp; Co" in text and "<b>Bad" not in text
    assert "Content-Security-Policy" in text and "script-src" in text and "http" not in text.replace("http-equiv", "")
    assert text.count("commit 7bc9510e, weights cccccccc") == 2 and text.count("<table") == 1
    assert 'class="best"' in text and "localeCompare" in text and "[" in text.partition("<tbody>")[2]
    results = read_json(tmp_path / "out_good/results.json")
    assert results["images"]["a"]["width"] == 48 and results["images"]["a"]["bits"] == 8
    assert len(list((tmp_path / "board/entries").glob("*.json"))) == 2
    submit(tmp_path / "out_good", tmp_path / "board")
    assert len(list((tmp_path / "board/entries").glob("*.json"))) == 2, "it replaces itself"


def test_incomplete_entry_is_named_and_not_ranked(tmp_path):
    submit(make_run(tmp_path, "Whole"), tmp_path / "board")
    run = make_run(tmp_path, "Lacking", 0.01)
    (tmp_path / "lacking/b.png").unlink()
    score_folder(tmp_path / "lacking", tmp_path / "truth", ["psnr", "dists"], run, scorers=SCORERS)
    page, lacking = submit(run, tmp_path / "board")
    assert lacking == ["1 of 4 images are missing"]
    (line,) = [row for row in page.read_text().split("<tr") if "Lacking" in row]
    assert "INCOMPLETE: 1 of 4 images are missing" in line and "best" not in line

    sent = change(make_run(tmp_path, "Secret"), weights=[{"name": "w.pth", "sha256": None}])
    assert submit(sent, tmp_path / "board")[1] == ["the weights w.pth have no hash"]
    unrecorded = make_run(tmp_path, "Unrecorded")
    (unrecorded / "baseline.json").unlink()
    assert submit(unrecorded, tmp_path / "board")[1] == ["the weights not recorded have no hash"]
    images = results_of(tmp_path / "out_whole")["images"]
    del images["c"]["scores"]["dists"]
    sent = change(tmp_path / "out_whole", method="Half", images=images)
    assert submit(sent, tmp_path / "board")[1] == ["dists is missing for c"]


def test_names_alike_do_not_replace(tmp_path):
    run = make_run(tmp_path, "First")
    for method in ("A+B", "A-B", "方法", "另法", "A+B"):
        page, _ = submit(change(run, method=method), tmp_path / "board")
    assert len(list((tmp_path / "board/entries").iterdir())) == 4
    assert all(page.read_text().count(f">{method}<") == 1 for method in ("A+B", "A-B", "方法", "另法"))


@pytest.mark.parametrize("left", [b"{", b"\xff\xfe", b"[1]"])
def test_broken_entry_does_not_block_others(left, tmp_path):
    submit(run := make_run(tmp_path, "First"), tmp_path / "board")
    (tmp_path / "board/entries/broken.json").write_bytes(left)
    page, _ = submit(change(run, method="Second"), tmp_path / "board")
    assert "broken.json is" in page.read_text() and ">Second<" in page.read_text()


def test_psnr_of_chosen_images_is_incomplete(tmp_path):
    run = make_run(tmp_path, "Mine")
    images = results_of(run)["images"]
    for name in "abc":
        del images[name]["scores"]["psnr"]
    assert submit(change(run, images=images), tmp_path / "board")[1] == ["psnr is missing for a, b, c"]
    for name in "abc":  # the ground truth itself, whose PSNR is infinite
        images[name]["scores"]["dists"] = 0.0
    page, lacking = submit(change(run, images=images), tmp_path / "board")
    assert lacking == [] and "PSNR over 1" in page.read_text()


def test_image_changed_after_scoring_is_refused(tmp_path):
    run = make_run(tmp_path, "Mine")
    shutil.copy(tmp_path / "truth/a.png", tmp_path / "mine/a.png")
    (tmp_path / "mine/b.png").unlink()
    with pytest.raises(ScoreError, match=r"mine has changed since it was scored: a, b\. Score it again"):
        submit(run, tmp_path / "board")
    assert not (run / "results.json").exists()


def test_png_in_capitals_is_submitted(tmp_path):
    run = make_run(tmp_path, "Mine")
    for path in (tmp_path / "mine").iterdir():
        path.rename(path.with_suffix(".PNG"))
    assert submit(run, tmp_path / "board")[1] == []


def test_half_entry_of_a_kill_is_removed(tmp_path):
    left = tmp_path / "board/entries/.good_12345678.999999.partial.json"
    left.parent.mkdir(parents=True)
    left.write_text('{"method": ')
    page, _ = submit(make_run(tmp_path, "Good"), tmp_path / "board")
    assert "Good" in page.read_text() and not left.exists()


def test_other_size_or_inputs_are_refused(tmp_path):
    submit(run := make_run(tmp_path, "First"), tmp_path / "board")
    images = results_of(run)["images"]
    images["b"]["width"] = 96
    with pytest.raises(ScoreError, match="Other has images of another size than First: b is 96 x 40, not 48 x 40"):
        submit(change(run, method="Other", images=images), tmp_path / "board")
    with pytest.raises(ScoreError, match="Second was made from other inputs than First"):
        submit(make_run(tmp_path, "Second", inputs="2"), tmp_path / "board")
    fewer = results_of(run)["set"] | {"pictures": 5}
    with pytest.raises(ScoreError, match="Other states another size of this set than First: not 4"):
        submit(change(run, method="Other", set=fewer), tmp_path / "board")
    renamed = {f"x{name}": image for name, image in results_of(run)["images"].items()}
    with pytest.raises(ScoreError, match="Other has images of another set than First: xa, xb, xc, xd"):
        submit(change(run, method="Other", images=renamed), tmp_path / "board")
    assert [path.name[:5] for path in (tmp_path / "board/entries").iterdir()] == ["first"]


def test_foreign_name_beside_incomplete_is_refused(tmp_path):
    run = make_run(tmp_path, "Lacking")
    images = results_of(run)["images"]
    lacking = {name: image for name, image in images.items() if name != "b"}
    assert submit(change(run, images=lacking), tmp_path / "board")[1] == ["1 of 4 images are missing"]
    other = {("x" if name == "a" else name): image for name, image in images.items()}
    with pytest.raises(ScoreError, match="Other has images of another set than Lacking: x, b"):
        submit(change(run, method="Other", images=other), tmp_path / "board")
    submit(change(run, method="Whole"), tmp_path / "board")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("mode", "L", r'images\.a\.mode is "L" and has to be "RGB"'),
        ("bits", 16, r"images\.a\.bits is 16 and has to be 8"),
        ("sha256", "123", r"images\.a\.sha256 is '123' and has to match"),
        ("scores", {"psnr": "high"}, r"images\.a\.scores\.psnr is no number"),
        ("scores", {"psnr": float("inf")}, r"images\.a\.scores\.psnr is inf"),
        ("scores", {"psnr": 10**400}, r"images\.a\.scores\.psnr is 1000"),
        ("scores", {"psnr": -5}, r"psnr cannot be what it says of a \(-5\)"),
        ("scores", {"psnr": 20.0, "dists": 7.0}, r"dists cannot be what it says of a \(7\.0\)"),
        ("width", True, r"images\.a\.width is no integer"),
        ("extra", 1, r"images\.a\.extra is unknown"),
    ],
)
def test_invalid_value_is_refused_by_place(tmp_path, field, value, reason):
    run = make_run(tmp_path, "Mine")
    images = results_of(run)["images"]
    images["a"][field] = value
    sent = change(run)
    (sent / "results.json").write_text(json.dumps(results_of(run) | {"images": images}))
    with pytest.raises(ScoreError, match=reason):
        submit(sent, tmp_path / "board")
    assert not (tmp_path / "board").exists()


def test_run_with_another_sets_images_is_refused(tmp_path):
    write_images(tmp_path / "truth", "ab")
    write_images(tmp_path / "mixed", "abxy", 0.1)
    score_folder(tmp_path / "mixed", tmp_path / "truth", ["psnr"], tmp_path / "out", scorers=SCORERS)
    with pytest.raises(ScoreError, match="mixed holds 2 images that have no ground truth, so two sets are mixed in it"):
        submit(tmp_path / "out", tmp_path / "board")
    assert not (tmp_path / "board").exists() and not (tmp_path / "out/results.json").exists()


def test_mixed_sets_and_bad_files_are_refused(tmp_path):
    run = make_run(tmp_path, "Mine")
    results = results_of(run)
    images = results["images"] | {f"x{name}": image for name, image in results["images"].items()}
    with pytest.raises(ScoreError, match="8 images of a set of 4, so two sets are mixed in it"):
        submit(change(run, images=images), tmp_path / "board")
    sent = change(run)
    write_images(sent / "images", "ab", 0.3, seed=5)
    with pytest.raises(ScoreError, match=r"a\.png is not the image that was scored as a"):
        submit(sent, tmp_path / "board")
    shutil.rmtree(sent / "images")
    Image.new("L", (48, 40)).save(sent / "a.png")
    with pytest.raises(ScoreError, match=r"a\.png is not the image that was scored as a"):
        submit(sent, tmp_path / "board")
    (sent / "a.png").unlink()
    (sent / "results.json").write_text(json.dumps(results).replace('"b": {', '"b": {}, "b": {', 1))
    with pytest.raises(ScoreError, match=r"is no JSON \(b twice in one object\)"):
        read_results(sent / "results.json")
    for part, said in (
        ({"images": {"../a": results["images"]["a"]}}, r"images name '\.\./a'"),
        ({"images": {}}, "images is empty"),
        ({"method": "Good\n"}, "method is"),
        ({"method": "abc\u202egnp"}, "method is"),
        ({"protocol": results["protocol"] | {"fid": "x"}}, "fid is of whole sets and no image has it"),
    ):
        write_json(sent / "results.json", results | part)
        with pytest.raises(ScoreError, match=said):
            read_results(sent / "results.json")
    (sent / "results.json").write_text("{")
    with pytest.raises(ScoreError, match="is no JSON"):
        read_results(sent / "results.json")
    with pytest.raises(ScoreError, match=r"set\.sha256 is missing.*code is missing|method is missing"):
        write_json(sent / "results.json", {"format": "face2scene-results-1", "set": {"pictures": 1}})
        read_results(sent / "results.json")
    with pytest.raises(FileNotFoundError, match=r"neither results\.json nor the scores of a run"):
        submit(tmp_path / "truth", tmp_path / "board")


def test_other_protocol_is_not_shown(tmp_path):
    submit(run := make_run(tmp_path, "First"), tmp_path / "board")
    protocol = results_of(run)["protocol"] | {"dists": "another engine"}
    page, _ = submit(change(run, method="Other", protocol=protocol), tmp_path / "board")
    (line,) = [row for row in page.read_text().split("<tr") if "Other" in row]
    assert "DISTS by another protocol" in line and line.count("not measured") == 1


def test_submit_is_an_action_of_eval(monkeypatch):
    seen = []
    monkeypatch.setattr(command, "_command", lambda name, words: seen.append((name, words)) or 0)
    assert command.main(["eval", "submit", "runs/mine", "board=b"]) == 0
    assert seen == [("eval", ["submit=runs/mine", "board=b"])]
