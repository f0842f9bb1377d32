"""The public commands, one after the other, on the tiny options: each reads what the one before wrote."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from composed_configs import TINY, paths_below

from face2scene.common.model_files import load_weights
from face2scene.common.reproducibility import REPOSITORY
from face2scene.data.records import read_manifest
from face2scene.image_io.arrays import read_image, write_png


def launch_command(script: str, *overrides: str, processes: int = 1) -> list[str]:
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


def run_command(command: list[str], folder: Path, *, expect: int = 0) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FACE2SCENE_DATA": str(folder / "data")}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )
    assert done.returncode == expect, done.stdout[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def trained_fadex(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("path")
    run_command(launch_command("build_inscene.py", "data=tiny", "faces=none", *paths_below(folder)), folder)
    run_command(launch_command("train_fadex.py", *TINY, "name=fadex", *paths_below(folder)), folder)
    return folder


def train_restorer_command(folder: Path, name: str, *more: str, processes: int = 1) -> list[str]:
    weights = f"fadex_weights={folder}/runs/fadex/weights/fadex.safetensors"
    return launch_command(
        "train_restorer.py", *TINY, f"name={name}", weights, *paths_below(folder), *more, processes=processes
    )


def test_build_train_restore_and_score(trained_fadex, weights):
    weights("lpips")  # fails with the command that fetches it
    assert {r.split for r in read_manifest(trained_fadex / "data/tiny")} == {"train", "val"}
    folder = trained_fadex / "runs/fadex"
    assert {p.name for p in folder.iterdir()} >= {
        "config.yaml",
        "commit.txt",
        "log.txt",
        "state",
        "weights",
        "metrics.jsonl",
    }

    run_command(train_restorer_command(trained_fadex, "restorer"), trained_fadex)
    _, config, about = load_weights(trained_fadex / "runs/restorer/weights/restorer.safetensors", kind="restorer")
    assert about["steps"] == 4 and config["mapnet"]["grids"] == [1, 2, 4]
    log = (trained_fadex / "runs/restorer/log.txt").read_text()
    assert (
        "2 images x 1 accumulated x 1 processes = 2 images per step." in log and "times as large in the latent" in log
    )
    steps = [
        json.loads(line)["step"] for line in (trained_fadex / "runs/restorer/metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [1, 2, 2, 3, 4, 4]  # numbers of every step, validation after the second and the fourth

    out = run_command(
        [
            sys.executable,
            str(REPOSITORY / "scripts/restore.py"),
            f"input={trained_fadex}/data/tiny",
            f"output={trained_fadex}/restored",
            "faces=none",
            "ref_fr=perturbed",
            f"fadex_weights={trained_fadex}/runs/fadex/weights/fadex.safetensors",
            f"restorer_weights={trained_fadex}/runs/restorer/weights/restorer.safetensors",
            *paths_below(trained_fadex),
        ],
        trained_fadex,
    )
    assert "2 restored, 0 were finished before, 0 failed" in out
    log = [json.loads(line) for line in (trained_fadex / "restored/restore.jsonl").read_text().splitlines()]
    assert [line["tokens"] for line in log] == ["pair", "pair"]

    scored = [
        f"predictions={trained_fadex}/restored/images",
        f"gt={trained_fadex}/data/tiny",
        "name=scores",
        "metrics=[psnr,ssim_y]",
        *paths_below(trained_fadex),
    ]
    run_command([sys.executable, str(REPOSITORY / "scripts/eval.py"), *scored], trained_fadex)
    scores = json.loads((trained_fadex / "runs/scores/scores.json").read_text())
    assert scores["means"]["psnr"] > 5 and "protocol" in json.dumps(scores)


def test_killed_training_resumes_exactly(trained_fadex):
    more = ("train.restorer.schedule.steps=8", "train.restorer.schedule.save_every=2")
    whole = train_restorer_command(trained_fadex, "whole", *more)
    run_command(whole, trained_fadex)
    halves = train_restorer_command(trained_fadex, "halves", *more)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FACE2SCENE_DATA": str(trained_fadex / "data")}
    process = subprocess.Popen(
        halves,
        cwd=trained_fadex,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not (trained_fadex / "runs/halves/state/2").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run_command(halves, trained_fadex)
    one, two = (
        load_weights(trained_fadex / f"runs/{name}/weights/restorer.safetensors", kind="restorer")[0]
        for name in ("whole", "halves")
    )
    assert one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)
    metrics = [(trained_fadex / f"runs/{name}/metrics.jsonl").read_text() for name in ("whole", "halves")]
    assert metrics[0] == metrics[1]


def test_script_rejects_changed_config(trained_fadex):
    command = launch_command("train_fadex.py", *TINY, "name=fadex", "train.fadex.lr=5", *paths_below(trained_fadex))
    out = run_command(command, trained_fadex, expect=1)
    assert "train.fadex.lr was 0.002, is 5" in out and "allow_config_change=true" in out


def test_two_processes_train_one_restorer(trained_fadex):
    run_command(train_restorer_command(trained_fadex, "two", processes=2), trained_fadex)
    _, _, about = load_weights(trained_fadex / "runs/two/weights/restorer.safetensors", kind="restorer")
    assert about["steps"] == 4


def test_two_processes_share_one_folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b", "sub/c"):
        write_png(tmp_path / f"in/{name}.png", rng.random((24, 40, 3), dtype=np.float32))
    (tmp_path / "in/broken.jpg").write_bytes(b"no image")
    options = [f"input={tmp_path}/in", f"output={tmp_path}/out", "faces=none", "device=cpu", *paths_below(tmp_path)]
    out = run_command(launch_command("restore.py", *options, processes=2), tmp_path, expect=1)
    assert "3 restored, 0 were finished before, 1 failed" in out and "broken.jpg" in out
    rows = [json.loads(line) for line in (tmp_path / "out/restore.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows if "failed" in row] == ["broken.jpg"]
    log = [row for row in rows if "failed" not in row]
    assert sorted(line["name"] for line in log) == ["a.png", "b.png", "sub/c.png"]
    alone = [option.replace("/out", "/one") for option in options]
    run_command([sys.executable, str(REPOSITORY / "scripts/restore.py"), *alone], tmp_path, expect=1)
    for line in log:
        shared, single = (read_image(tmp_path / side / line["output"]) for side in ("out", "one"))
        # Processes may round a float32's last bit differently, and the result is rounded to 256 values.
        assert np.abs(shared - single).max() < 1.01 / 255 and np.abs(shared - single).mean() < 1e-5
