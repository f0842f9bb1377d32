"""The rehearsal's counts against reality, its report, and tensors of two devices in one operation."""

import json
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from face2scene.cli import main, preflight, rehearse
from face2scene.data.records import read_manifest, write_manifest
from face2scene.eval.cost.cards import CARDS, Card
from face2scene.eval.cost.rehearsal import Rehearsed, modules_of
from face2scene.eval.cost.rehearsal_report import Findings, report
from face2scene.eval.cost.simulation import Costs, Work, fake_tensors, faked, real
from face2scene.train.loop import prepare

MIB = 2**20


def peak_of_step(device_of_values: bool) -> Costs:
    """Two optimiser steps of a small network, counted on real or on fake tensors."""
    with Costs(CARDS["a6000"]) as costs:
        network = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.SiLU(), nn.GroupNorm(8, 64), nn.Conv2d(64, 3, 3))
        optimizer = torch.optim.AdamW(network.parameters())
        costs.optimiser(optimizer)
        image = torch.rand(4, 3, 64, 64)
        costs.assign(image, "batch")
        for _ in range(2):
            costs.restart()
            network(image).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return costs


def test_fake_memory_matches_real():
    real_costs = peak_of_step(True)
    with fake_tensors():
        fake_costs = peak_of_step(False)
    assert fake_costs.peak == real_costs.peak
    assert fake_costs.peak["batch"] == 4 * 3 * 64 * 64 * 4
    assert fake_costs.peak["kept for backward"] >= 3 * 4 * 64 * 64 * 64 * 4, "three maps of 64 channels"
    assert fake_costs.peak["optimiser"] > 2 * 2 * 64 * 27 * 4, "two moments of a weight"


def test_operations_match_hand_count():
    with fake_tensors(), Costs(CARDS["a6000"]) as costs:
        layer, x = nn.Conv2d(8, 16, 3, padding=1), torch.rand(2, 8, 32, 32)
        costs.stages({"layer": layer})
        costs.restart()
        layer(x)
    assert costs.work["layer"].flops == 2 * 2 * 32 * 32 * 16 * 8 * 9
    assert costs.work["layer"].bytes == 4 * (2 * 8 * 1024 + 16 * 8 * 9 + 16 + 2 * 16 * 1024)


def test_released_memory_is_not_counted():
    with Costs() as costs:
        costs.restart()
        first = torch.empty(MIB)
        del first
        second = torch.empty(2 * MIB)
        assert costs.live.total() == second.nbytes == sum(costs.peak.values())


def test_two_devices_in_one_operation_fail():
    with fake_tensors(), pytest.raises(RuntimeError, match="same device"):
        torch.rand(3, device="cuda") + torch.rand(3)


def test_cuda_autocast_casts_norms():
    with fake_tensors(), torch.autocast("cpu", torch.bfloat16):
        assert nn.GroupNorm(2, 8)(torch.rand(1, 8, 4, 4, dtype=torch.bfloat16)).dtype == torch.float32
    with fake_tensors(), torch.autocast("cuda", torch.bfloat16):
        layer = nn.GroupNorm(2, 8, device="cuda")
        assert layer(torch.rand(1, 8, 4, 4, dtype=torch.bfloat16, device="cuda")).dtype == torch.float32


def test_data_are_read_with_values():
    with fake_tensors():
        with real():
            value = torch.arange(3).sum()
        assert value.item() == 3
        assert faked({"a": value, "n": 2})["n"] == 2


def program(gib: float, **known) -> Rehearsed:
    advice = {"memory": "lower train.restorer.batches.batch", "workers": "train.restorer.workers"}
    work = {"UNet": Work(1e12, 1e9, 0.5)}
    return Rehearsed("restorer", "step", {"weights": int(gib * 2**30)}, work, units=7200, advice=advice, **known)


def found(tmp_path: Path, *programs: Rehearsed) -> Findings:
    return Findings((64, 64), 100, 1000, list(programs), places={"data": tmp_path, "runs": tmp_path})


def test_report_ends_with_hours(tmp_path):
    text, fits = report(found(tmp_path, program(20)), CARDS["a6000"], 2, 0.4)
    assert fits and text.endswith("This run fits and takes about 1 hours (2 GPU hours).")


def test_small_card_names_option(tmp_path):
    text, fits = report(found(tmp_path, program(30)), CARDS["rtx4090"], 1, 0.4)
    assert not fits and "restorer needs 32.9 GiB" in text and "lower train.restorer.batches.batch" in text


def test_slow_loader_names_workers(tmp_path):
    text, fits = report(found(tmp_path, program(1, loader=4.0, workers=2)), CARDS["a6000"], 2, 0.4)
    assert fits and "set train.restorer.workers=8, on 16 cores" in text
    assert "about 4 hours" in text, "7200 steps of two seconds"


def test_full_disk_names_path(tmp_path):
    large = program(1, state=10**15, states=3)
    text, fits = report(found(tmp_path, large), CARDS["a6000"], 1, 0.4)
    assert not fits and "set paths.runs" in text


def test_unknown_option_is_refused():
    with pytest.raises(ValueError, match=r"no_such\.key=1"):
        rehearse.composed(["no_such.key=1"])


def test_option_of_one_script_is_accepted():
    configs = rehearse.composed(["recipes=7", "train=tiny"])
    assert configs["precompute_ref_fr"].recipes == 7 and configs["train_fadex"].train.fadex.crop == 16


@pytest.fixture
def tiny(tiny_base) -> list[str]:
    """A run of the trainings at the smallest size."""
    options = ["data=tiny", "train=tiny", "fadex=tiny", "mapnet=tiny", "restorer=tiny", "ref_fr=copy"]
    return [*options, f"restorer.base.source={tiny_base}", "mapnet.width=32", "restorer.adapters.vae_rank=2"]


def test_rehearse_command(tiny, tmp_path, capsys):
    files = set(Path.cwd().glob("runs/*"))
    code = main.main(["rehearse", *tiny, "--only", "fadex", "restorer", "--json", str(tmp_path / "r.json")])
    text = capsys.readouterr().out
    assert code == 0, text
    assert "This run fits and takes about 0 hours" in text
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["programs"]["restorer"]["stages"]["UNet"]["flops"] > 0
    assert record["programs"]["FaDeX"]["peak"]["weights"] > 0
    assert set(Path.cwd().glob("runs/*")) == files, "a rehearsal writes no run"


def test_small_set_is_refused(tiny, tmp_path):
    cfg = rehearse.composed([*tiny, "fadex.contrast.queue_size=8", f"data.root={tmp_path}"])["train_fadex"]
    rehearse.rehearsal.generated_set(tmp_path, size=(32, 32), count=1)
    keys, images = preflight.problems(cfg, "fadex", 4)
    assert "raise fadex.contrast.queue_size" in keys and "needs 2: lower train.fadex.images" in images
    assert "lower train.restorer.batches.batch" in preflight.problems(cfg, "restorer", 4)[0]


def test_missing_references_are_refused(tiny, tmp_path):
    words = [*tiny, f"data.root={tmp_path}", "ref_fr=faceme_cached"]
    cfg = rehearse.composed(words)["train_restorer"]
    rehearse.rehearsal.generated_set(tmp_path, size=(32, 32), count=2)
    assert not preflight.problems(cfg, "restorer", 1)
    records = [replace(record, references=()) for record in read_manifest(tmp_path)]
    write_manifest(tmp_path, records)
    (sentence,) = preflight.problems(cfg, "restorer", 1)
    assert "2 images without references" in sentence and "gt_without_references=true" in sentence


@pytest.mark.parametrize("name", ["fadex", "restorer", "s3diff"])
def test_trainings_stay_on_one_device(tiny, tmp_path, name):
    """Forward passes of every training on a GPU that is not there, which no mixture of devices survives."""
    cuda = torch.device("cuda")
    words = [*tiny, *(["restorer=s3diff_tiny"] if name == "s3diff" else [])]
    where = mock.patch.object(Accelerator, "device", new_callable=mock.PropertyMock, return_value=cuda)
    with fake_tensors(), where:
        task, accelerator, batch = rehearse.prepared(name, words, tmp_path)
        prepare(task.phases, accelerator)
        window = [faked(dict(batch), "cuda")]
        if hasattr(task, "before_step"):
            task.before_step(window, accelerator)
        for phase in task.phases:
            losses = phase.losses(window[0])
            assert losses and all(loss.device.type == "cuda" for loss in losses.values())
        task.after_step()
        devices = {p.device.type for module in modules_of(task).values() for p in module.parameters()}
        assert devices == {"cuda"}


def test_pipeline_stays_on_one_device(tiny):
    cfg = rehearse.composed(tiny)["restore"]
    with fake_tensors(), Costs() as costs:
        pipeline = rehearse.pipeline(cfg).to("cuda")
        rehearse.rehearsal.restoring(pipeline, costs, size=64, face=32)
        assert {p.device.type for p in pipeline.restorer.parameters()} == {"cuda"}


def test_card_rates():
    card = Card("test", 1, half=4, tf32=2, single=1, bandwidth=1)
    assert card.rate(2, tf32=False) == 4e12
    assert card.rate(4, tf32=True) == 2e12
    assert card.rate(4, tf32=False) == 1e12
