"""The public commands, one after the other, on the tiny options: each eats what the one before wrote."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from face2scene.common.model_files import load_weights
from face2scene.common.reproducibility import REPOSITORY
from face2scene.data.records import read_manifest
from face2scene.image_io.arrays import read_image, write_png

TINY = ["data=tiny", "degradation=tiny", "fadex=tiny", "mapnet=tiny", "restorer=tiny", "train=tiny"]


def launch(script: str, *overrides: str, processes: int = 1) -> list[str]:
    options = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    if processes > 1:
        options = ["--config_file", str(REPOSITORY / "configs/accelerate/cpu_two.yaml")]
    return [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *options,
        str(REPOSITORY / "scripts" / script),
        *overrides,
    ]


def run(command: list[str], folder: Path, *, expect: int = 0) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FACE2SCENE_DATA": str(folder / "data")}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )
    assert done.returncode == expect, done.stdout[-3000:]
    return done.stdout


def paths(folder: Path) -> list[str]:
    return [f"paths.runs={folder}/runs", f"paths.shipped={REPOSITORY}/checkpoints"]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("path")
    run(launch("build_inscene.py", "data=tiny", "faces=none", *paths(folder)), folder)
    run(launch("train_fadex.py", *TINY, "name=fadex", *paths(folder)), folder)
    return folder


def restorer(folder: Path, name: str, *more: str, processes: int = 1) -> list[str]:
    weights = f"fadex_weights={folder}/runs/fadex/weights/fadex.safetensors"
    return launch("train_restorer.py", *TINY, f"name={name}", weights, *paths(folder), *more, processes=processes)


def test_build_train_train_restore_and_score(built, weights):
    weights("lpips")  # fails with the command that fetches it
    assert {r.split for r in read_manifest(built / "data/tiny")} == {"train", "val"}
    folder = built / "runs/fadex"
    assert {p.name for p in folder.iterdir()} >= {
        "config.yaml",
        "commit.txt",
        "log.txt",
        "state",
        "weights",
        "metrics.jsonl",
    }

    run(restorer(built, "restorer"), built)
    _, config, about = load_weights(built / "runs/restorer/weights/restorer.safetensors", kind="restorer")
    assert about["steps"] == 4 and config["mapnet"]["grids"] == [1, 2, 4]
    steps = [json.loads(line)["step"] for line in (built / "runs/restorer/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 2, 3, 4, 4]  # numbers of every step, validation after the second and the fourth

    out = run(
        [
            sys.executable,
            str(REPOSITORY / "scripts/restore.py"),
            f"input={built}/data/tiny",
            f"output={built}/restored",
            "faces=none",
            "ref_fr=perturbed",
            f"fadex_weights={built}/runs/fadex/weights/fadex.safetensors",
            f"restorer_weights={built}/runs/restorer/weights/restorer.safetensors",
            *paths(built),
        ],
        built,
    )
    assert "2 restored, 0 were finished before, 0 failed" in out
    log = [json.loads(line) for line in (built / "restored/restore.jsonl").read_text().splitlines()]
    assert [line["tokens"] for line in log] == ["pair", "pair"]

    scored = [
        f"predictions={built}/restored/images",
        f"gt={built}/data/tiny",
        "name=scores",
        "metrics=[psnr,ssim_y]",
        *paths(built),
    ]
    run([sys.executable, str(REPOSITORY / "scripts/eval.py"), *scored], built)
    scores = json.loads((built / "runs/scores/scores.json").read_text())
    assert scores["means"]["psnr"] > 5 and "protocol" in json.dumps(scores)


def test_a_killed_training_goes_on_to_the_same_weights(built):
    more = ("train.restorer.schedule.steps=8", "train.restorer.schedule.save_every=2")
    whole = restorer(built, "whole", *more)
    run(whole, built)
    halves = restorer(built, "halves", *more)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FACE2SCENE_DATA": str(built / "data")}
    process = subprocess.Popen(
        halves, cwd=built, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while not (built / "runs/halves/state/2").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run(halves, built)
    one, two = (
        load_weights(built / f"runs/{name}/weights/restorer.safetensors", kind="restorer")[0]
        for name in ("whole", "halves")
    )
    assert one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)
    metrics = [(built / f"runs/{name}/metrics.jsonl").read_text() for name in ("whole", "halves")]
    assert metrics[0] == metrics[1]


def test_a_run_of_another_configuration_is_refused_by_the_script(built):
    command = launch("train_fadex.py", *TINY, "name=fadex", "train.fadex.lr=5", *paths(built))
    out = run(command, built, expect=1)
    assert "train.fadex.lr was 0.002, is 5" in out and "allow_config_change=true" in out


def test_two_processes_train_one_restorer(built):
    run(restorer(built, "two", processes=2), built)
    _, _, about = load_weights(built / "runs/two/weights/restorer.safetensors", kind="restorer")
    assert about["steps"] == 4


def test_two_processes_restore_their_shares_of_a_folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b", "sub/c"):
        write_png(tmp_path / f"in/{name}.png", rng.random((24, 40, 3), dtype=np.float32))
    (tmp_path / "in/broken.jpg").write_bytes(b"no picture")
    options = [f"input={tmp_path}/in", f"output={tmp_path}/out", "faces=none", "device=cpu", *paths(tmp_path)]
    out = run(launch("restore.py", *options, processes=2), tmp_path, expect=1)
    assert "3 restored, 0 were finished before, 1 failed" in out and "broken.jpg" in out
    log = [json.loads(line) for line in (tmp_path / "out/restore.jsonl").read_text().splitlines()]
    assert sorted(line["name"] for line in log) == ["a.png", "b.png", "sub/c.png"]
    alone = [option.replace("/out", "/one") for option in options]
    run([sys.executable, str(REPOSITORY / "scripts/restore.py"), *alone], tmp_path, expect=1)
    for line in log:
        shared, single = (read_image(tmp_path / side / line["output"]) for side in ("out", "one"))
        # Processes may round a float32's last bit differently, and the result is rounded to 256 values.
        assert np.abs(shared - single).max() < 1.01 / 255 and np.abs(shared - single).mean() < 1e-5
