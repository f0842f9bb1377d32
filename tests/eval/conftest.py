"""Fixtures of tests/eval."""

import json
import sys

import numpy as np
import pytest
from baseline_inputs import FAKE_METHOD
from composed_configs import compose_config
from inscene_records import record
from repository_scripts import load_script
from scored_folders import PER_IMAGE, write_images

from face2scene.common.files import write_json
from face2scene.common.model_files import save_weights
from face2scene.data.records import write_manifest
from face2scene.eval.baselines.adapter import Adapter
from face2scene.image_io.arrays import read_image, write_png
from face2scene.inference.tasks import RestorationTask


@pytest.fixture
def tasks(tmp_path) -> list[RestorationTask]:
    """Three scenes of different sizes, with their ground truth."""
    rng = np.random.default_rng(0)
    made = []
    for name, size in (("a b.1", (48, 64)), ("a.b 1", (44, 40)), ("c", (37, 50))):
        gt = tmp_path / "truth" / f"{name}.png"
        write_png(gt, rng.random((*size, 3), dtype=np.float32))
        path = tmp_path / "lq" / f"{name}.png"
        write_png(path, rng.random((*size, 3), dtype=np.float32))
        made.append(RestorationTask(path, gt=gt))
    return made


@pytest.fixture
def make_adapter(tmp_path):
    checkout = tmp_path / "checkout"
    (checkout / "tools").mkdir(parents=True)
    (checkout / "tools/test.py").write_text(FAKE_METHOD)
    (checkout / "weights.bin").write_bytes(b"weights")

    def build(how: str = "good", **changes) -> Adapter:
        described = {
            "title": "Fake",
            "python": sys.executable,
            "checkout": str(checkout),
            "folder": "tools",
            "command": "{python} test.py {input} {output} {scale} {seed} {how}",
            "options": {"how": how},
            "output": "{stem}_0.png",
            "weights": [{"path": "weights.bin", "source": "nowhere", "licence": "none"}],
        }
        return Adapter.from_dict(described | changes)

    return build


@pytest.fixture(scope="module")
def baseline_script():
    return load_script("run_baseline")


@pytest.fixture
def run_baseline_script(tmp_path, baseline_script):
    """scripts/run_baseline.py on options, its runs in the test's folder."""

    def run(*overrides: str) -> bool:
        options = [f"paths.runs={tmp_path}/runs", "metrics=[psnr]", *overrides]
        return baseline_script.run(compose_config("run_baseline", *options), "x")

    return run


@pytest.fixture
def quickstart_run(tmp_path, monkeypatch):
    """A finished quickstart of two images as its steps leave it, and the metrics that a test can afford."""
    names = ["anna_0", "ben_0"]
    run, data, shipped = tmp_path / "runs/quickstart", tmp_path / "data", tmp_path / "checkpoints/tiny"
    gt = write_images(data / "images/val/000", names, size=(32, 32))
    write_images(data / "lq/val/000", names, noise=0.3, size=(32, 32))
    operators = [{"kind": "Blur", "sigma_x": 2.0}, {"kind": "Jpeg", "quality": 40}, {"kind": "RestoreSize"}]
    records = [
        record(
            gt / f"{n}.png",
            (4.0, 4.0, 20.0, 24.0),
            image=f"images/val/000/{n}.png",
            split="val",
            identity=n[:-2],
            source="drawn",
            licence="CC0",
            lq=f"lq/val/000/{n}.png",
            recipe={"operators": operators},
        )
        for n in names
    ]
    write_manifest(data, records)
    for row, noise in (("restored", 0.05), ("trained_here", 0.1), ("wrong_tokens", 0.2)):
        write_images(run / row / "images", names, noise=noise, size=(32, 32))
        write_images(run / row / "faces", [f"{n}_{side}" for n in names for side in ("degraded", "restored")])
        lines = [json.dumps({"name": f"{n}.png", "tokens": "pair", "ref_fr": "perturbed"}) for n in names]
        (run / row / "restore.jsonl").write_text("\n".join(lines) + "\n")
    for part, key in (("fadex", "fadex/contrast"), ("restorer", "generator/l2")):
        save_weights(run / part / f"weights/{part}.safetensors", {}, kind=part, config={}, about={"steps": 40})
        save_weights(shipped / f"{part}.safetensors", {}, kind=part, config={}, about={"steps": 4000})
        values = [{"step": step, key: 1 / (1 + step), "constant": 1.0} for step in range(0, 50, 10)]
        (run / part / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in values))
        (run / part / "config.yaml").write_text(f"name: quickstart/{part} # <b>\n")
    probe = {"same_mean": 0.8, "different_mean": 0.1, "matrix": [[1, 0.1], [0.1, 1]], "labels": ["g1", "g2"]}
    write_json(run / "fadex/weights/probe.json", probe)
    write_json(shipped / "probe.json", probe | {"same_mean": 0.9})
    write_json(run / "seconds.json", {"train FaDeX": 12.5, "restore, shipped weights": 70.0})
    monkeypatch.setattr(
        "face2scene.eval.scoring.score.build_all", lambda chosen, device: (PER_IMAGE, {"ssim_y": "left out"})
    )
    return run, {"dataset": data, "shipped": shipped}


@pytest.fixture
def quickstart_scenes(quickstart_run):
    """The same with two scenes under one degradation, restored better in the face and worse in the background."""
    run, places = quickstart_run
    names, size, box = ["eve_0", "max_0"], (96, 96), (20.0, 20.0, 60.0, 60.0)
    folder, restored = run.parents[1] / "scenes/phone", run / "scenes/phone"
    gt = write_images(folder / "images/val/000", names, size=size)
    write_images(folder / "lq/val/000", names, noise=0.1, size=size)
    write_images(restored / "images", names, noise=0.2, size=size)
    records = []
    for name in names:
        worse, clean = read_image(restored / f"images/{name}.png"), read_image(gt / f"{name}.png")
        worse[20:60, 20:60] = clean[20:60, 20:60] + 0.02
        write_png(restored / f"images/{name}.png", worse.clip(0, 1))
        known = {"split": "val", "identity": name[:-2], "recipe": {"operators": []}}
        place = {"image": f"images/val/000/{name}.png", "lq": f"lq/val/000/{name}.png"}
        records.append(record(gt / f"{name}.png", box, **known, **place))
    write_manifest(folder, records)
    lines = [json.dumps({"name": f"{name}.png", "tokens": "pair", "ref_fr": "perturbed"}) for name in names]
    (restored / "restore.jsonl").write_text("\n".join(lines) + "\n")
    return run, places | {"scenes": folder.parent}
