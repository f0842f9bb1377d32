"""Sharded training on two CPU processes, against the same training with replicated models."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file
from torch import nn
from torch.distributed.fsdp import FSDPModule

from face2scene.common.types import FacePair
from face2scene.data.scene_batches import ValidationPair
from face2scene.models.mapnet import MapNet
from face2scene.models.restorer import lora
from face2scene.models.restorer.base_model import load_base
from face2scene.models.restorer.discriminator import Discriminator, load_features
from face2scene.models.restorer.one_step import OneStepRestorer
from face2scene.train import fsdp
from face2scene.train.loop import Schedule, train
from face2scene.train.restorer_task import RestorerTask
from face2scene.train.run import Run

MIN_PARAMS = 5000  # weights of a unit; the tiny networks have several of that size


def forget_processes():
    PartialState._reset_state()
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def make_task(base):
    from test_restorer_task import TINY_VIT, SeededSceneBatches, StubEncoder, StubPerceptualLoss

    torch.manual_seed(0)
    mapnet = MapNet(in_channels=8, channels=16, heads=2, width=32)
    layers = lora.VAE_ENCODER[:6]
    restorer = OneStepRestorer(load_base(base), mapnet, vae_rank=2, unet_rank=2, vae_layers=layers)
    discriminator = Discriminator(load_features(TINY_VIT), levels=(1, 2), width=4)
    image = torch.rand(3, 16, 16)
    held = [ValidationPair(None, image, image, FacePair(restored=image, degraded=image, box=(0, 0, 16, 16)))]
    settings = {"lr": 1e-3, "discriminator": discriminator, "ema": 0.9, "device": torch.device("cpu"), "about": {}}
    return RestorerTask(restorer, StubEncoder(), StubPerceptualLoss(), SeededSceneBatches(), held, **settings)


def train_to(base, folder, steps, shard_from):
    forget_processes()
    accelerator = Accelerator(cpu=True)
    task = make_task(base)
    schedule = Schedule(steps=steps, log_every=1, validate_every=1, save_every=1, best="validation/psnr_own_tokens")
    run = Run(folder, {}, main=accelerator.is_main_process)
    train(task, accelerator, schedule, run, seed=3, shard_from=shard_from)
    return task


def _train_rank(base, folder):
    task = train_to(base, folder / "sharded", 2, MIN_PARAMS)
    units = [m for m in task.phases[0].model.modules() if isinstance(m, FSDPModule)]
    parts = sum(p.to_local().numel() for p in task.phases[0].model.parameters())
    total = sum(p.numel() for p in task.phases[0].model.parameters())
    train_to(base, folder / "halves", 1, MIN_PARAMS)
    train_to(base, folder / "halves", 2, MIN_PARAMS)
    train_to(base, folder / "mixed", 1, None)  # replicated, and sharded from its state on
    train_to(base, folder / "mixed", 2, MIN_PARAMS)
    if torch.distributed.get_rank() == 0:
        (folder / "units.json").write_text(json.dumps([len(units), parts / total]))


LAUNCH_TWO = """
import sys
from pathlib import Path
from accelerate import debug_launcher
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/../support"]
from test_fsdp import _train_rank
debug_launcher(_train_rank, (Path(sys.argv[2]), Path(sys.argv[3])), num_processes=2)
"""


def test_sharded_training_matches_and_resumes(tmp_path, tiny_base):
    command = [sys.executable, "-c", LAUNCH_TWO, str(Path(__file__).parent), str(tiny_base), str(tmp_path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:]
    units, share = json.loads((tmp_path / "units.json").read_text())
    assert units > 3 and share < 0.6  # several units, and a process holds about half
    names = ("sharded", "halves", "mixed")
    files = {n: load_file(tmp_path / n / "weights/restorer.safetensors") for n in names}
    states = {n: load_file(tmp_path / n / "state/2/model.safetensors") for n in names}
    lines = {n: [json.loads(x) for x in (tmp_path / n / "metrics.jsonl").read_text().splitlines()] for n in names}
    for kind in (files, states):
        assert kind["sharded"].keys() == kind["halves"].keys() == kind["mixed"].keys()
        assert all(torch.equal(tensor, kind["halves"][name]) for name, tensor in kind["sharded"].items())
        for name, tensor in kind["sharded"].items():
            torch.testing.assert_close(kind["mixed"][name], tensor, atol=1e-4, rtol=1e-3)
    assert lines["sharded"] == lines["halves"]
    for one, two in zip(lines["sharded"], lines["mixed"], strict=True):
        assert one == pytest.approx(two, rel=1e-3, abs=1e-4)


def test_fsdp_settings_come_from_accelerate(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert fsdp.fsdp_min_params() is None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_MIN_NUM_PARAMS", "5000")
    assert fsdp.fsdp_min_params() == 5000
    assert fsdp.fsdp_min_params() is None


def test_single_process_cannot_shard():
    forget_processes()
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"two processes or more and there is one: give --num_processes"):
        fsdp.shard(Accelerator(cpu=True), model, torch.optim.SGD(model.parameters(), 0.1), min_params=1)
    forget_processes()
