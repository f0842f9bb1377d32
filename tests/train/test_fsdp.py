"""Sharded training on two CPU processes, against the same training with replicated models."""

import json

import pytest
import torch
from accelerate import Accelerator
from accelerate_processes import run_in_two_processes
from safetensors.torch import load_file
from sharded_training import train_on_rank
from torch import nn

from face2scene.train import fsdp


@pytest.mark.numerics
def test_sharded_training_matches_and_resumes(tmp_path, tiny_base):
    run_in_two_processes(train_on_rank, tiny_base, tmp_path)
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


@pytest.mark.usefixtures("no_accelerator_of_another_test")
def test_single_process_cannot_shard():
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"two processes or more and there is one: give --num_processes"):
        fsdp.shard(Accelerator(cpu=True), model, torch.optim.SGD(model.parameters(), 0.1), min_params=1)
