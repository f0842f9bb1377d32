import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from composed_configs import compose_config

from face2scene.image_io.arrays import read_image
from face2scene.train.run import open_run

IMAGE = np.zeros((8, 6, 3), np.uint8) + np.array([255, 0, 51], np.uint8)


def open_tracked_run(tmp_path, tracker, *more):
    """A run as a script opens it."""
    options = [*more, f"tracker={tracker}", f"paths.runs={tmp_path}", "name=part/a", "train=tiny"]
    return open_run(compose_config("train_fadex", *options))


def test_jsonl_and_images_are_always_written(tmp_path):
    run = open_tracked_run(tmp_path, "jsonl")
    assert run.trackers == ()
    run.log({"loss": 0.5}, 3)
    run.show({"pairs": IMAGE}, 3)
    assert json.loads((tmp_path / "part/a/metrics.jsonl").read_text()) == {"step": 3, "loss": 0.5}
    stored = read_image(tmp_path / "part/a/validation/000003/pairs.png")
    assert np.array_equal((stored * 255).round().astype(np.uint8), IMAGE)


def test_tensorboard_logs_and_resumes(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = open_tracked_run(tmp_path, "tensorboard")
    for step in (1, 2, 3):
        run.log({"fadex/contrast": 10.0 * step}, step)
    run.show({"pairs": IMAGE}, 3)
    run = open_tracked_run(tmp_path, "tensorboard")  # goes on from the state of step 1
    run.log({"fadex/contrast": 21.0}, 2)
    events = EventAccumulator(str(tmp_path / "part/a/tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("fadex/contrast")] == [(1, 10.0), (2, 21.0)]
    fresh = open_tracked_run(tmp_path / "fresh", "tensorboard")
    fresh.show({"pairs": IMAGE}, 3)
    events = EventAccumulator(str(tmp_path / "fresh/part/a/tensorboard")).Reload()
    assert (events.Images("pairs")[0].width, events.Images("pairs")[0].height) == (6, 8)


def test_wandb_logs_and_is_offline_by_default(tmp_path, monkeypatch):
    seen = []
    fake = types.ModuleType("wandb")
    fake.init = lambda **options: types.SimpleNamespace(
        log=lambda values, step: seen.append((step, values)), options=seen.append(options)
    )
    fake.Image = lambda image: image.shape
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run = open_tracked_run(tmp_path, "wandb")
    run.log({"loss": 1}, 7)
    run.show({"pairs": IMAGE}, 7)
    options, line, image = seen
    assert (options["id"], options["mode"], options["dir"]) == ("part-a", "offline", str(tmp_path / "part/a"))
    assert options["resume"] == "allow"
    assert options["config"]["fadex"]["encoder"]["_target_"].startswith("face2scene.")  # as it is: nothing is built
    assert line == (7, {"loss": 1.0}) and image == (7, {"pairs": (8, 6, 3)})


def test_wandb_keeps_weights_and_images_as_artifacts(tmp_path, monkeypatch):
    kept = []

    class Artifact:
        def __init__(self, name, type):
            self.name, self.type, self.files = name, type, []

        def add_dir(self, folder):
            self.files = sorted(path.name for path in Path(folder).rglob("*.*"))

    fake = types.ModuleType("wandb")
    fake.Artifact, fake.Image = Artifact, lambda image: image.shape
    fake.init = lambda **options: types.SimpleNamespace(
        id=options["id"], log=lambda values, step: None, log_artifact=kept.append
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run = open_tracked_run(tmp_path, "wandb")
    run.show({"pairs": IMAGE}, 3)
    (run.folder / "weights").mkdir()
    (run.folder / "weights/fadex.safetensors").write_bytes(b"")
    run.share()
    assert [(one.name, one.type, one.files) for one in kept] == [
        ("part-a-weights", "model", ["fadex.safetensors"]),
        ("part-a-validation", "predictions", ["pairs.png"]),
    ]
    run.trackers[0].artifacts = False
    run.share()
    assert len(kept) == 2


def test_trackers_of_accelerate_by_name(tmp_path):
    from accelerate import PartialState
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    PartialState()
    run = open_tracked_run(tmp_path, "accelerate", "tracker.kind=tensorboard")
    run.log({"loss": 0.5}, 3)
    run.show({"pairs": IMAGE}, 3)
    (events,) = (path.parent for path in tmp_path.rglob("events.out.*") if path.parent.name == "a")
    seen = EventAccumulator(str(events)).Reload()
    assert [(event.step, event.value) for event in seen.Scalars("loss")] == [(3, 0.5)]
    assert seen.Images("pairs")[0].step == 3
    with pytest.raises(ValueError, match=r"tracker.kind=mlfow is no tracker of accelerate: choose aim, "):
        open_tracked_run(tmp_path / "b", "accelerate", "tracker.kind=mlfow")
    with pytest.raises(ModuleNotFoundError, match="needs its package: pip install comet-ml"):
        open_tracked_run(tmp_path / "c", "accelerate", "tracker.kind=comet_ml")
