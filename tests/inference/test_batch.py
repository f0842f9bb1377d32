"""A folder of photos: what is finished, what is done again, and what goes on after an interruption."""

import json
import logging
import os
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from inverting_pipeline import InvertingPipeline, SlowPipeline, log_entries, make_image
from other_processes import start
from PIL import Image

from face2scene.common.files import OutputError
from face2scene.faces.detect import Detector
from face2scene.image_io.metadata import Metadata
from face2scene.image_io.photos import Photo, read_photo, write_photo
from face2scene.inference import batch
from face2scene.inference.batch import restore_folder
from face2scene.inference.log import RESTORATION_LOG
from face2scene.inference.tasks import RestorationTask, find_tasks


def test_stale_outputs_need_overwrite(photo_folder, tmp_path):
    out, tasks = tmp_path / "out", find_tasks(photo_folder)
    restore_folder(InvertingPipeline(), tasks, out)
    os.utime(photo_folder / "b.png")  # touched and the same
    make_image(photo_folder / "a.png", 0.5)
    result = restore_folder(InvertingPipeline(), tasks, out)
    assert result.skipped == 2 and "another file of that name" in result.failed["a.png"]
    assert "overwrite=true" in result.failed["a.png"]
    assert restore_folder(InvertingPipeline(), tasks, out, overwrite=True).restored == 1
    assert len(restore_folder(InvertingPipeline(), tasks, out, scale=2).failed) == 3
    assert "other settings or weights" in restore_folder(InvertingPipeline(colour="adain"), tasks, out).failed["a.png"]
    assert restore_folder(InvertingPipeline(), tasks, out, overwrite=True).skipped == 3  # finished is finished


@dataclass(frozen=True)
class StageOne:
    """A Stage I with an option."""

    softness: float = 1.0
    name: str = "stage one"


@pytest.mark.parametrize("what", ["dtype", "ref_fr", "detector", "reference", "gt", "old line", "output", "donor"])
def test_changed_settings_need_overwrite(tmp_path, what):
    """Each changes the result, and neither the image's file nor any name."""
    reference, gt = make_image(tmp_path / "refs/r.png"), make_image(tmp_path / "gt/a.png")
    tasks = [
        RestorationTask(make_image(tmp_path / "in/a.png"), {"ann": (reference,)}, gt),
        RestorationTask(make_image(tmp_path / "in/b.png")),
    ]
    out, pipeline = tmp_path / "out", InvertingPipeline()
    pipeline.ref_fr, pipeline.detector = StageOne(), Detector(None)
    options = {"tokens_from": "other"} if what == "donor" else {}
    restore_folder(pipeline, tasks, out, **options)
    assert restore_folder(pipeline, tasks, out, **options).skipped == 2
    if what == "dtype":
        pipeline.dtype = torch.bfloat16
    elif what == "ref_fr":
        pipeline.ref_fr = StageOne(20.0)
    elif what == "detector":
        pipeline.detector = Detector(None, min_face=20)
    elif what == "output":
        target = out / "images/a.png"
        target.write_bytes(target.read_bytes()[:-1] + b"x")  # of the same size
    elif what == "old line":
        kept = [{key: v for key, v in line.items() if key != "settings"} for line in log_entries(out).values()]
        (out / RESTORATION_LOG).write_text("".join(json.dumps(line) + "\n" for line in kept))
    else:
        make_image({"reference": reference, "gt": gt, "donor": tasks[1].path}[what], 0.7)
    result = restore_folder(pipeline, tasks, out, **options)
    assert result.restored == 0 and "say overwrite=true" in result.failed["a.png"]
    assert restore_folder(pipeline, tasks, out, overwrite=True, **options).restored == len(result.failed)
    assert restore_folder(pipeline, tasks, out, **options).skipped == 2


def test_reference_replaced_during_use_is_noticed(photo_folder, tmp_path):
    reference = make_image(tmp_path / "refs/r.png")
    tasks = find_tasks(photo_folder, references=reference.parent)

    class Replaces(InvertingPipeline):
        def restore(self, *args, **options):
            make_image(reference, 0.9)
            return super().restore(*args, **options)

    restore_folder(Replaces(), tasks[:1], tmp_path / "out")
    assert restore_folder(InvertingPipeline(), tasks[:1], tmp_path / "out").skipped == 0


@pytest.mark.parametrize("corruption", ["cut in a letter", "filled with NUL", "glued"])
def test_corrupt_log_keeps_finished_images(tmp_path, corruption):
    for name in ("ü1", "ü2", "ü3"):
        make_image(tmp_path / f"in/{name}.png")
    tasks, out = find_tasks(tmp_path / "in"), tmp_path / "out"
    restore_folder(InvertingPipeline(), tasks, out)
    first, second, last = (out / RESTORATION_LOG).read_bytes().splitlines(keepends=True)
    place = last.index("ü".encode()) + 1
    last = {"cut in a letter": last[:place], "filled with NUL": bytes(len(last)), "glued": last[:place] + second}[
        corruption
    ]
    (out / RESTORATION_LOG).write_bytes(first + second + last)

    class Interrupted(InvertingPipeline):
        def restore(self, *args, **options):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore_folder(Interrupted(), tasks, out)
    result = restore_folder(InvertingPipeline(), tasks, out)
    assert (result.restored, result.skipped, result.failed) == (1, 2, {})
    assert restore_folder(InvertingPipeline(), tasks, out).skipped == 3


def test_input_of_equal_size_and_time_is_noticed(tmp_path):
    tasks, out = [], tmp_path / "out"
    for value in (0.25, 0.75):
        os.utime(make_image(tmp_path / "in/a.png", value), (10**9, 10**9))
        tasks = tasks or find_tasks(tmp_path / "in")
        result = restore_folder(InvertingPipeline(), tasks, out)
    assert result.skipped == 0 and "from another file of that name" in result.failed["a.png"]
    os.utime(make_image(tmp_path / "in/a.png", 0.25), (10**9, 10**9))  # the first one again
    assert restore_folder(InvertingPipeline(), tasks, out).skipped == 1


@pytest.mark.parametrize("place", ["link", "file", "file/below"])
def test_output_that_cannot_be_made_is_named(tmp_path, place):
    make_image(tmp_path / "in/a.png")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=rf"Nothing can be written to .*{place} \("):
        restore_folder(InvertingPipeline(), find_tasks(tmp_path / "in"), tmp_path / place)


@pytest.mark.parametrize("key", ["input", "written"])
@pytest.mark.parametrize("value", [3, "text", [], [3], [{}], {}, {"bytes": 1}, None])
def test_damaged_facts_are_of_no_file(tmp_path, key, value):
    make_image(tmp_path / "in/a.png")
    tasks, out = find_tasks(tmp_path / "in"), tmp_path / "out"
    restore_folder(InvertingPipeline(), tasks, out)
    line = json.loads((out / RESTORATION_LOG).read_text())
    (out / RESTORATION_LOG).write_text(json.dumps(line | {key: value}) + "\n")
    assert "is already there" in restore_folder(InvertingPipeline(), tasks, out).failed["a.png"]
    assert restore_folder(InvertingPipeline(), tasks, out, overwrite=True).restored == 1


def test_odd_names_are_found_again(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    names = ["new\nline", "line\u2028sep", "nel\u0085", os.fsdecode(b"latin1-\xe9"), '{"name": "a"}']
    for name in names:
        make_image(tmp_path / "in/x.png").rename(tmp_path / "in" / f"{name}.png")
    tasks = find_tasks(tmp_path / "in")
    assert restore_folder(InvertingPipeline(), tasks, tmp_path / "out").restored == len(names)
    assert restore_folder(InvertingPipeline(), tasks, tmp_path / "out").skipped == len(names)
    assert log_entries(tmp_path / "out").keys() == {f"{name}.png" for name in names}
    caplog.text.encode()  # no surrogates


def test_foreign_files_are_not_overwritten(photo_folder, tmp_path):
    foreign = make_image(tmp_path / "out/images/a.png", 1.0)
    before = foreign.read_bytes()
    result = restore_folder(InvertingPipeline(), find_tasks(photo_folder), tmp_path / "out")
    assert result.restored == 2 and "the restoration log does not list it" in result.failed["a.png"]
    assert foreign.read_bytes() == before
    restore_folder(InvertingPipeline(), find_tasks(photo_folder), tmp_path / "out", overwrite=True)
    assert foreign.read_bytes() != before


@pytest.mark.parametrize("how", ["same folder", "hard link", "reference"])
def test_input_is_never_overwritten(tmp_path, how):
    own = make_image(tmp_path / "out/images/a.png")
    if how == "hard link":
        (tmp_path / "in").mkdir()
        os.link(own, tmp_path / "in/a.png")
        tasks = find_tasks(tmp_path / "in")
    elif how == "reference":
        tasks = [RestorationTask(make_image(tmp_path / "in/a.png"), {"ann": (own,)})]
    else:
        tasks = [RestorationTask(own)]
    with pytest.raises(ValueError, match="would overwrite the images it reads"):
        restore_folder(InvertingPipeline(), tasks, tmp_path / "out", overwrite=True)


def test_read_restore_write_overlap(photo_folder, tmp_path, monkeypatch):
    """Each waits for what only another thread can do meanwhile: one after the other, this would never end."""
    read, restoring = [threading.Event() for _ in range(3)], [threading.Event() for _ in range(3)]
    order = [photo_folder / "a.png", photo_folder / "b.png", photo_folder / "sub/c.png"]

    def reading(path, **options):
        read[order.index(path)].set()
        return read_photo(path, **options)

    class Waiting(InvertingPipeline):
        def restore(self, scene, estimate, **options):
            number = ["a", "b", "sub/c"].index(scene.name)
            restoring[number].set()
            assert number == 2 or read[number + 1].wait(60)  # the next one is read while this one is in the models
            return super().restore(scene, estimate, **options)

    def writing(path, image, **options):
        number = sum(event.is_set() for event in restoring)
        assert number == 3 or restoring[number].wait(60)  # the next one is in the models while this one is written
        return write_photo(path, image, **options)

    monkeypatch.setattr(batch, "read_photo", reading)
    monkeypatch.setattr(batch, "write_photo", writing)
    result = restore_folder(Waiting(), find_tasks(photo_folder), tmp_path / "out")
    assert result.restored == 3 and result.failed == {} and 0 < result.seconds_models <= result.seconds


def test_no_face_image_uses_burst_tokens(tmp_path):
    def taken(name: str, second: int, camera: str = "C") -> None:
        exif = Image.Exif()
        exif[0x0110] = camera
        exif[0x8769] = {0x9003: f"2026:05:01 12:00:{second:02d}", 0x9291: "50"}
        image = np.full((8, 8, 3), 0.5, np.float32)
        path = tmp_path / f"in/{name}.jpg"
        path.parent.mkdir(exist_ok=True)
        write_photo(path, image, like=Photo(image, metadata=Metadata(exif.tobytes().removeprefix(b"Exif\0\0"))))

    for name, second in (("face2", 1), ("face4", 2), ("back", 3), ("face8", 30)):
        taken(name, second)
    taken("other", 3, "D")
    tasks = find_tasks(tmp_path / "in")
    restore_folder(InvertingPipeline(), tasks, tmp_path / "out", burst_seconds=2)
    log = log_entries(tmp_path / "out")
    assert log["back.jpg"]["tokens"] == "burst" and log["back.jpg"]["burst"] == ["face2.jpg", "face4.jpg"]
    assert log["other.jpg"]["tokens"] == "null" and log["face2.jpg"]["tokens"] == "pair"
    assert "because no face" in log["back.jpg"]["warnings"][-1]
    assert tasks[0].file == "back.jpg"
    whole = (tmp_path / "in/face2.jpg").read_bytes()
    (tmp_path / "in/face2.jpg").write_bytes(whole[:-2])  # cut short: its date can still be read
    result = restore_folder(InvertingPipeline(), tasks, tmp_path / "cut", burst_seconds=2)
    assert result.failed.keys() == {"face2.jpg"} and log_entries(tmp_path / "cut")["back.jpg"]["burst"] == ["face4.jpg"]
    (tmp_path / "in/face2.jpg").write_bytes(whole)
    restore_folder(InvertingPipeline(), tasks, tmp_path / "share", burst_seconds=2, processes=len(tasks))
    assert log_entries(tmp_path / "share")["back.jpg"]["burst"] == log["back.jpg"]["burst"]


def test_shards_are_disjoint_and_logs_merge(photo_folder, tmp_path):
    tasks, out = find_tasks(photo_folder), tmp_path / "out"
    results = [restore_folder(InvertingPipeline(), tasks, out, rank=rank, processes=2) for rank in (1, 0)]
    assert [one.restored for one in results] == [1, 2]
    assert log_entries(out).keys() == {"a.png", "b.png", "sub/c.png"} and not list(out.glob("restore.rank*"))


def test_resume_after_kill_is_bitwise_exact(tmp_path):
    for n in range(30):
        make_image(tmp_path / f"in/{n:02d}.png", n / 40)
    restore_folder(InvertingPipeline(), find_tasks(tmp_path / "in"), tmp_path / "whole")

    process = start(restore_folder, SlowPipeline(), find_tasks(tmp_path / "in"), tmp_path / "out")
    deadline = time.monotonic() + 300
    while not (tmp_path / "out/images/03.png").exists():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    done = len(log_entries(tmp_path / "out"))
    result = restore_folder(InvertingPipeline(), find_tasks(tmp_path / "in"), tmp_path / "out")
    assert result.failed == {} and result.restored + result.skipped == 30
    assert done - 1 <= result.skipped <= done and result.restored < 30
    for path in (tmp_path / "whole/images").iterdir():
        assert (tmp_path / "out/images" / path.name).read_bytes() == path.read_bytes()
    assert len((tmp_path / "out" / RESTORATION_LOG).read_text().splitlines()) == 30
