"""A folder of photos: names, places and formats of its files, unreadable ones, and a full disk."""

import errno
import os
from pathlib import Path

import pytest
import torch
from inverting_pipeline import InvertingPipeline, log_entries, make_image
from PIL import Image
from png_files import png_claiming

from face2scene.common import files
from face2scene.common.files import OutputError, fitting_name
from face2scene.common.types import DegradationTokens, FacePair
from face2scene.image_io.arrays import list_images, read_image
from face2scene.image_io.photos import read_photo, write_photo
from face2scene.inference import batch
from face2scene.inference.batch import Settings, restore_folder
from face2scene.inference.results import DegradationEstimate, FaceEstimate
from face2scene.inference.tasks import find_tasks


def test_outputs_keep_relative_paths(photo_folder, tmp_path):
    make_image(photo_folder / "sub/a.png")  # the name of another, in another folder
    pipeline = InvertingPipeline()
    result = restore_folder(pipeline, find_tasks(photo_folder), tmp_path / "out")
    assert result.restored == 4 and sorted(pipeline.seen) == ["a", "b", "sub/a", "sub/c"]
    assert read_photo(tmp_path / "out/images/sub/c.png").image[0, 0, 0] == pytest.approx(0.75, abs=0.005)
    assert log_entries(tmp_path / "out").keys() == {"a.png", "b.png", "sub/a.png", "sub/c.png"}


def test_output_inside_input_is_not_reread(photo_folder):
    assert (
        restore_folder(InvertingPipeline(), find_tasks(photo_folder, output=photo_folder), photo_folder).restored == 3
    )
    again = restore_folder(InvertingPipeline(), find_tasks(photo_folder, output=photo_folder), photo_folder)
    assert (again.restored, again.skipped, again.failed) == (0, 3, {})


def test_corrupt_files_fail_individually(photo_folder, tmp_path):
    whole = tmp_path / "whole.jpg"
    Image.effect_noise((64, 64), 50).save(whole)
    (photo_folder / "cut.jpg").write_bytes(whole.read_bytes()[:-600])
    (photo_folder / "empty.png").write_bytes(b"")
    (photo_folder / "text.jpeg").write_text("not an image")
    (photo_folder / "raw.dng").write_text("not an image")
    (photo_folder / "bomb.png").write_bytes(png_claiming(20_000, 20_000))
    (photo_folder / "lies.jpg").write_bytes((photo_folder / "a.png").read_bytes())
    result = restore_folder(InvertingPipeline(), find_tasks(photo_folder), tmp_path / "out")
    assert result.restored == 4  # one of them under a wrong suffix
    assert result.failed.keys() == {"cut.jpg", "empty.png", "text.jpeg", "raw.dng", "bomb.png"}
    assert "truncated" in result.failed["cut.jpg"] and "20000 x 20000 pixels" in result.failed["bomb.png"]
    assert all(name in sentence for name, sentence in result.failed.items())
    assert not list((tmp_path / "out").rglob("*partial*"))
    lines = log_entries(tmp_path / "out")
    assert {name: line["failed"] for name, line in lines.items() if "failed" in line} == result.failed
    whole.replace(photo_folder / "cut.jpg")  # mended: no other line is touched
    again = restore_folder(InvertingPipeline(), find_tasks(photo_folder), tmp_path / "out")
    assert (again.restored, again.skipped, len(again.failed)) == (1, 4, 4)
    assert log_entries(tmp_path / "out")["cut.jpg"]["output"] == "images/cut.png"


def test_leftovers_of_a_kill_are_removed(photo_folder, tmp_path):
    out = tmp_path / "out"
    left = [out / name for name in (".restore.999999.partial.jsonl", "images/sub/.c.999999.partial.png")]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    restore_folder(InvertingPipeline(), find_tasks(photo_folder), out)
    assert not any(path.exists() for path in left)


class FacesByBrightness(InvertingPipeline):
    """As many face pairs as the image's first value says in tenths, all of that value."""

    def estimate(self, scene, **_):
        value = scene.image[:, :1, :1]
        pairs = (FaceEstimate(FacePair(1 - value, value, (0, 0, 1, 1)), None, None),) * round(10 * value[0].item())
        notes = {"warnings": [], "faces": [{"box": [0, 0, 1, 1]}] * len(pairs)}
        tokens = DegradationTokens(torch.zeros(1, 1, 1), "pair" if pairs else "null")
        return DegradationEstimate(tokens, face_estimates=pairs, notes=notes)


def test_face_files_belong_to_their_image(tmp_path):
    make_image(tmp_path / "in/a.png", 0.2)
    make_image(tmp_path / "in/a_2.png", 0.1)
    tasks, faces = find_tasks(tmp_path / "in"), tmp_path / "out/faces"
    restore_folder(FacesByBrightness(), tasks, tmp_path / "out")
    stems = {path.name.removesuffix("_degraded.png") for path in faces.glob("*_degraded.png")}
    assert stems == {"a", "a_2_", "a_2"}  # of a.png: two; of a_2.png: one
    for stem, value in (("a", 0.2), ("a_2_", 0.2), ("a_2", 0.1)):
        assert read_image(faces / f"{stem}_degraded.png").mean() == pytest.approx(value, abs=0.003)
    make_image(tmp_path / "in/a.png", 0.0)  # an image without a face takes the place of one with two
    restore_folder(FacesByBrightness(), tasks, tmp_path / "out", overwrite=True)
    assert {path.name for path in faces.iterdir()} == {"a_2_degraded.png", "a_2_restored.png"}


def test_one_pixel_and_odd_names_work(tmp_path):
    names = ["with space", "😀" * 60, "n" * 251, "-dash", "a%20b", "dot.dot"]
    for name in names:
        make_image(tmp_path / "in" / f"{name}.png", size=(1, 1))
    result = restore_folder(InvertingPipeline(), find_tasks(tmp_path / "in"), tmp_path / "out", file_format="webp")
    assert result.failed == {} and result.restored == len(names)
    sizes = {read_photo(path).image.shape for path in (tmp_path / "out/images").iterdir()}
    assert sizes == {(1, 1, 3)} and len(list((tmp_path / "out/images").iterdir())) == len(names)


def test_long_names_are_cut_and_unique():
    one, two = fitting_name("ü" * 300 + "1", ".png"), fitting_name("ü" * 300 + "2", ".png")
    assert one != two and len(os.fsencode(one)) <= 255 and one.endswith(".png")
    assert fitting_name("short", ".png") == "short.png"


def test_unwritable_output_fails_before_work(photo_folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"Nothing can be written to .*file \("):
        restore_folder(InvertingPipeline(), find_tasks(photo_folder), tmp_path / "file")

    def refuse(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files, "TemporaryFile", refuse)
    pipeline = InvertingPipeline()
    with pytest.raises(OutputError, match="Read-only file system"):
        restore_folder(pipeline, find_tasks(photo_folder), tmp_path / "out")
    assert pipeline.seen == []


@pytest.mark.parametrize("name", [".lock", "restore.jsonl"])
def test_folder_in_place_of_a_file_is_named(photo_folder, tmp_path, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    pipeline = InvertingPipeline()
    with pytest.raises(FileExistsError, match=rf"{name} is a folder, and a file is kept there: rename it"):
        restore_folder(pipeline, find_tasks(photo_folder), tmp_path / "out")
    assert pipeline.seen == [] and not any((tmp_path / "out").glob("images/*"))


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_time_of_a_burst_is_from_zero_on(seconds):
    with pytest.raises(ValueError, match=r"burst_seconds is .*: it must be a number from 0 on"):
        Settings(burst_seconds=seconds)


def test_missing_input_is_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is nothing at .*no\.png"):
        find_tasks(tmp_path / "no.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match=r"file is no folder"):
        list_images(tmp_path / "file")


def test_full_disk_leaves_no_partial_files(photo_folder, tmp_path, monkeypatch):
    for n in range(9):
        make_image(photo_folder / f"z{n}.png")
    written = []

    def full(path, image, **options):
        if len(written) == 2:
            Path(path).write_bytes(b"half of a")
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return write_photo(path, image, **options)

    monkeypatch.setattr(batch, "write_photo", full)
    pipeline = InvertingPipeline()
    result = restore_folder(pipeline, find_tasks(photo_folder), tmp_path / "out")
    assert result.restored == 2 and "No space left on device" in result.stopped and len(pipeline.seen) < 9
    assert sum(path.is_file() for path in (tmp_path / "out/images").rglob("*")) == 2
    monkeypatch.undo()
    again = restore_folder(InvertingPipeline(), find_tasks(photo_folder), tmp_path / "out")
    assert (again.restored, again.skipped, again.failed) == (10, 2, {})


def test_reference_folder_layouts(photo_folder, tmp_path):
    def people(**options):
        tasks = find_tasks(photo_folder, **options)
        return {
            task.name: {name: [path.name for path in paths] for name, paths in task.people.items()} for task in tasks
        }

    refs = tmp_path / "refs"
    make_image(refs / "1.png")
    assert people(references=refs)["sub/c"] == {"refs": ["1.png"]}
    make_image(refs / "ann/2.png")
    make_image(refs / "bob/3.png")
    assert people(references=refs)["a"] == {"ann": ["2.png"], "bob": ["3.png"]}
    make_image(refs / "sub/c/4.png")
    assert people(references=refs) == {"a": {}, "b": {}, "sub/c": {"c": ["4.png"]}}
    gt = make_image(tmp_path / "gt/a.png").parent
    make_image(gt / "b.png")
    make_image(gt / "c.png")  # at another place
    with pytest.raises(FileNotFoundError, match="no image named sub/c in gt="):
        find_tasks(photo_folder, gt=gt)
