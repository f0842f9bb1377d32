"""The precompute command, killed in the middle and finished by two processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from inscene_records import record
from omegaconf import OmegaConf

from face2scene.common.reproducibility import REPOSITORY
from face2scene.data.precompute import faces_of
from face2scene.data.records import write_manifest
from face2scene.image_io.arrays import write_png
from face2scene.ref_fr.cache import Cached
from face2scene.ref_fr.faceme.model import FaceMe

STEPS = 60


@pytest.fixture
def inscene(tmp_path) -> Path:
    """Four training images, the last with the first one's content, and a fixed pair."""
    folder, rng = tmp_path / "data/set", np.random.default_rng(0)
    records = []
    for number in range(5):
        image, reference = folder / f"{number}.png", folder / f"r{number}.png"
        write_png(image, rng.random((96, 96, 3), dtype=np.float32))
        write_png(reference, np.full((40, 30, 3), 0.2 + 0.1 * number, np.float32))
        if number == 3:
            image.write_bytes((folder / "0.png").read_bytes())
            reference.write_bytes((folder / "r0.png").read_bytes())
        fixed = {"split": "val", "lq": image.name, "recipe": {"operators": []}} if number == 4 else {}
        records.append(record(image, (30.0, 30.0, 66.0, 70.0), references=(reference.name,), **fixed))
    write_manifest(folder, records)
    return folder


def test_killed_precompute_resumes_exactly(tmp_path, inscene):
    options = [
        f"data.root={inscene}",
        "data=tiny",
        "degradation=tiny",
        "ref_fr=faceme_tiny",
        f"ref_fr.steps={STEPS}",
        "recipes=2",
        "batch=1",
        f"paths.data={tmp_path}/data",
    ]
    script = str(REPOSITORY / "scripts/precompute_ref_fr.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    given = {"cwd": tmp_path, "env": environment, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen([sys.executable, script, *options], **given, start_new_session=True)
    cache, deadline = tmp_path / "data/ref_fr", time.monotonic() + 300

    def whole() -> dict[str, tuple[int, bytes]]:
        files = [p for p in cache.rglob("*.png") if not p.name.startswith(".")]
        return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in files}

    while len(list(cache.glob("*/??/[0-9a-f]*.png"))) < 2:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = whole()
    assert len(before) < 7, "it was killed too late to show anything"

    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += ["--config_file", str(REPOSITORY / "configs/accelerate/cpu_two.yaml"), script, *options]
    done = subprocess.run(launch, **given, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:]
    left = 7 - len(before)  # three contents under two operators each, and the fixed pair
    assert f"9 faces: {left} restored now, 0 refused" in done.stdout
    after = whole()
    assert len(after) == 7 and {name: after[name] for name in before} == before, "what was there was made again"

    fresh = FaceMe.tiny(steps=STEPS, size=64, device="cpu")
    reader = Cached(fresh, cache, missing="refuse")
    space = instantiate(OmegaConf.load(REPOSITORY / "configs/degradation/tiny.yaml"), _convert_="all")
    for split, number in (("train", 0), ("val", 0)):
        face, references, name = faces_of(inscene, space, size=64, recipes=2, splits=(split,))[number]
        stored = reader.read(reader.key(face, references, name)).image
        made = fresh.restore_aligned(face[None], [references])[0].image
        # Another process, with another number of threads, may round a float32's last bit differently, and the result is
        # rounded to 256 values.
        assert (stored - made).abs().max() < 1.01 / 255 and (stored - made).abs().mean() < 1e-5
    with pytest.raises(FileNotFoundError, match="other weights, settings or code"):
        Cached(FaceMe.tiny(steps=STEPS + 1, size=64, device="cpu"), cache, missing="refuse")
