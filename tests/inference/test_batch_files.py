"""A folder of photos: names, places and formats of its files, unreadable ones, and a full disk."""

import errno
import os
from pathlib import Path

import pytest
from inverting_pipeline import InvertingPipeline, log_entries, make_image
from PIL import Image
from png_files import png_claiming

from face2scene.common.files import fitting_name
from face2scene.image_io.photos import read_photo, write_photo
from face2scene.inference import batch
from face2scene.inference.batch import OutputError, restore_folder
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
    with pytest.raises(OutputError, match="Nothing can be written to output="):
        restore_folder(InvertingPipeline(), find_tasks(photo_folder), tmp_path / "file")

    def refuse(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(batch, "TemporaryFile", refuse)
    pipeline = InvertingPipeline()
    with pytest.raises(OutputError, match="Read-only file system"):
        restore_folder(pipeline, find_tasks(photo_folder), tmp_path / "out")
    assert pipeline.seen == []


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
