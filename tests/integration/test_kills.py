"""A command that is killed at random moments and started again ends as one that was left alone.

`pytest -m chaos` kills every command thirty times; docs/robustness.md has the table. Here each is killed once or twice.
"""

import hashlib
import io
import os
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
from killed_commands import (
    SHIPPED,
    TINY,
    Command,
    SlowFiles,
    content_of,
    kill_and_finish,
    run_fetch,
    run_light_sweep,
    run_script,
)

from face2scene.image_io.arrays import write_png

KILLS = int(os.environ.get("FACE2SCENE_CHAOS_KILLS", "30"))
PEOPLE = [f"data.sources.drawn.{key}={n}" for key, n in {"train_people": 4, "train_shots": 3, "val_people": 2}.items()]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A set and four noisy photos."""
    folder, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng(0)
    for number in range(4):
        write_png(folder / f"photos/{number}.png", rng.random((64, 64, 3), dtype=np.float32))
    words = ["data=tiny", "faces=none", "degradation=tiny", f"data.root={folder}/set"]
    Command(run_script, lambda _: ("build_inscene.py", words), lambda _: {}).finish(folder)
    return folder


@pytest.fixture(scope="module")
def server():
    members = {f"{n}.bin": random.Random(n).randbytes(200_000) for n in range(3)}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as box:
        for name, content in members.items():
            box.writestr(name, content)
    files = SlowFiles(buffer.getvalue(), pause=0.01)
    files.members = {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
    yield files
    files.close()


def restore(inputs, _):
    options = [f"input={inputs}/photos", "faces=none", "device=cpu", SHIPPED]
    return Command(
        run_script,
        lambda folder: ("restore.py", [*options, f"output={folder}/out"]),
        lambda folder: content_of(folder / "out", "*.png", "restore*.jsonl"),
    )


def build(_, __):
    return Command(
        run_script,
        lambda folder: (
            "build_inscene.py",
            ["data=tiny", "faces=none", "degradation=tiny", *PEOPLE, f"data.root={folder}/set"],
        ),
        lambda folder: content_of(folder / "set", "*"),
    )


def train(inputs, _):
    steps = [f"train.fadex.schedule.{key}={n}" for key, n in {"steps": 12, "save_every": 1}.items()]
    options = [*TINY, *steps, f"data.root={inputs}/set", "name=run", SHIPPED]
    return Command(
        run_script,
        lambda folder: ("train_fadex.py", [*options, f"paths.runs={folder}/runs"]),
        lambda folder: content_of(folder / "runs/run", "weights/*", "state/*/*", "metrics.jsonl", "validation/*/*"),
    )


def precompute(inputs, _):
    options = ["data=tiny", "degradation=tiny", "ref_fr=faceme_tiny", "ref_fr.steps=8", "recipes=2", "batch=1"]
    return Command(
        run_script,
        lambda folder: (
            "precompute_ref_fr.py",
            [*options, f"data.root={inputs}/set", f"cache={folder}/cache"],
        ),
        lambda folder: content_of(folder / "cache", "*", hidden=False),  # others' too, removed an hour later
    )


def sweep(_, __):
    return Command(
        run_light_sweep,
        lambda folder: (str(folder / "sweep"),),
        lambda folder: content_of(folder / "sweep", "?", "*.json"),
    )


def sweep_script(inputs, _):
    options = ["sweep=cfg", "data=tiny", "degradation=tiny", "faces=none", "metrics=[psnr]", "device=cpu", SHIPPED]
    return Command(
        run_script,
        lambda folder: ("sweep.py", [*options, f"data.root={inputs}/set", "name=s", f"paths.runs={folder}/runs"]),
        lambda folder: content_of(folder / "runs/s", "*.png", "sweep.md", "sweep.json", "restore*.jsonl"),
    )


def fetch(_, server):
    archive = {"archive": "toy.zip", "sha256": server.digest, "size": server.size}
    return Command(
        run_fetch,
        lambda folder: (str(folder / "weights"), server.url, server.members, archive),
        lambda folder: content_of(folder / "weights", "*/[!.]*"),
    )


FEW = {restore: 1, build: 2, train: 1, precompute: 1, sweep: 2, fetch: 2}


def check(make, inputs, server, tmp_path, kills):
    survived, failures = kill_and_finish(make(inputs, server), tmp_path, kills, seed=1)
    print(f"{make.__name__}: killed {kills} times, survived {survived}")
    assert survived == kills, failures


@pytest.mark.parametrize("make", FEW, ids=lambda make: make.__name__)
def test_killed_command_ends_the_same(make, inputs, server, tmp_path):
    check(make, inputs, server, tmp_path, FEW[make])


@pytest.mark.chaos
@pytest.mark.parametrize("make", [*FEW, sweep_script], ids=lambda make: make.__name__)
def test_thirty_kills_change_nothing(make, inputs, server, tmp_path):
    check(make, inputs, server, tmp_path, KILLS)
