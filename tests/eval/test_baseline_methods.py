"""Baseline methods."""

import json

import pytest
import torch
from baseline_inputs import BASELINES, read_record
from basicsr_compat import srvgg
from tolerances import RELOADED

from face2scene.cli.options import UsageError, read
from face2scene.common.files import sha256_of
from face2scene.common.reproducibility import REPOSITORY
from face2scene.eval.baselines.adapter import Adapter, AdapterError
from face2scene.eval.baselines.methods import Bicubic, FFDNetColour, RealESRGANx4, predict_folder
from face2scene.eval.baselines.networks import load_ffdnet, load_real_esrgan_general, noise_level
from face2scene.eval.baselines.run import run_in_process
from face2scene.image_io.arrays import read_tensor, resize, write_png
from face2scene.inference.tasks import RestorationTask
from face2scene.models.fadex.encoder import FaDeX


def test_in_process_run_skips_unreadable_file(tmp_path, tasks):
    bad = tmp_path / "lq/bad.png"
    bad.write_bytes(b"no image")
    inputs = {task.path.stem: task.path for task in [*tasks, RestorationTask(bad)]}
    adapter = Adapter(title="Bicubic", kind="method", method=Bicubic())

    def predict():
        failed, seconds = predict_folder(adapter.method, inputs, tmp_path / "out")
        return len(inputs) - len(failed), 0, failed, seconds

    outcome = run_in_process(
        adapter, [*tasks, RestorationTask(bad)], tmp_path / "out", predict, weights={"w": bad}, scale=1
    )
    assert read_record(tmp_path / "out")["weights_sha256"] == {"w": sha256_of(bad)}
    assert list(outcome.missing) == ["bad"] and read_record(tmp_path / "out")["complete"] is False
    assert torch.equal(read_tensor(tmp_path / "out/images/c.png"), read_tensor(tasks[2].path))
    assert Bicubic()(torch.rand(3, 5, 6), 4).shape == (3, 20, 24)


def test_in_process_run_checks_weights_options(tmp_path, tasks, run_baseline_script):
    lq = f"input={tmp_path}/lq"
    assert run_baseline_script("baseline=bicubic", lq)
    write_png(tasks[0].path, 1 - read_tensor(tasks[0].path))
    assert run_baseline_script("baseline=bicubic", lq)
    assert torch.equal(read_tensor(tmp_path / "runs/baseline/x/images/a b.1.png"), read_tensor(tasks[0].path))

    ours = ["baseline=face2scene", "name=ours", "limit=1", "faces=none", "ref_fr=none", lq]
    tiny = REPOSITORY / "checkpoints/tiny"
    ours += [f"restorer_weights={tiny}/restorer.safetensors", f"fadex_weights={tiny}/fadex.safetensors"]
    assert run_baseline_script(*ours)
    kept = read_record(tmp_path / "runs/ours")
    assert list(kept["weights_sha256"]) == ["restorer_weights", "fadex_weights"]
    (launch,) = kept["launches"]
    assert launch["device"] and launch["peak_memory_mib"] > 50 and launch["seconds_per_picture"] > 0
    assert kept["ref_fr"] is None and kept["guidance"] is None and kept["options"]["colour"] == "wavelet"
    with pytest.raises(ValueError, match=r"different: guidance"):
        run_baseline_script(*ours, "guidance=1.5")
    weights = tmp_path / "fadex.safetensors"
    weights.write_bytes((tiny / "fadex.safetensors").read_bytes())
    assert run_baseline_script(*ours, f"fadex_weights={weights}"), "the same bytes elsewhere"
    network = FaDeX.from_file(weights)
    with torch.no_grad():
        next(network.parameters()).mul_(1.01)
    network.save(weights)
    with pytest.raises(ValueError, match=r"different: weights_sha256\.fadex_weights"):
        run_baseline_script(*ours, f"fadex_weights={weights}")


def test_record_holds_method_weights_hash(tmp_path, weights, baseline_script, run_baseline_script):
    weights("real_esrgan_x4plus")
    write_png(tmp_path / "tiny/x.png", torch.rand(3, 8, 8))
    assert run_baseline_script("baseline=real_esrgan", f"input={tmp_path}/tiny")
    kept = read_record(tmp_path / "runs/baseline/x")
    assert len(kept["weights_sha256"]["asset:real_esrgan_x4plus"]) == 64
    assert kept["method_options"]["tile"] == 192
    with pytest.raises(ValueError, match=r"different: method_options\.tile"):
        run_baseline_script("baseline=real_esrgan", "baseline.method.tile=64", f"input={tmp_path}/tiny")


def test_real_esrgan_tiled_matches_whole(weights):
    weights("real_esrgan_x4plus")
    method = RealESRGANx4(tile=24, overlap=8, device="cpu")
    method.network.body = torch.nn.Sequential(*method.network.body[:1])  # one of 23 blocks: the seams are the same
    torch.manual_seed(0)
    image = resize(torch.rand(3, 8, 10), (30, 40))
    tiled = method(image, 4)
    whole = RealESRGANx4(device="cpu")
    whole.network = method.network
    difference = (tiled - whole(image, 4)).abs()
    assert tiled.shape == (3, 120, 160) and difference.mean() < 5e-3 and difference.max() < 0.1, difference.max()
    assert method(image, 1).shape == (3, 30, 40)
    with pytest.raises(ValueError, match="enlarges by 4 or"):
        method(image, 2)


@pytest.mark.slow
def test_real_esrgan_sharpens_photo(weights, photo, tmp_path):
    weights("real_esrgan_x4plus")
    gt = torch.from_numpy(photo.copy()).permute(2, 0, 1)[:, 64:256, 160:352]
    small = resize(gt, (48, 48))
    made = RealESRGANx4(device="cpu")(small, 4)
    enlarged = Bicubic()(small, 4)
    detail = [(p[..., 1:] - p[..., :-1]).abs().mean() for p in (gt, made, enlarged)]
    assert detail[1] > 1.1 * detail[2], detail
    assert (made - gt).square().mean() < 0.02


@pytest.mark.numerics
def test_general_network_matches_basicsr(weights):
    network = load_real_esrgan_general(weights("real_esrgan_general"))
    theirs = srvgg(num_in_ch=3, num_out_ch=3, num_feat=64, num_conv=32, upscale=4)
    theirs.load_state_dict(network.state_dict())
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_213_296
    image = torch.rand(1, 3, 12, 9, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(network(image), theirs(image), **RELOADED["fp32"])


def test_general_network_cleans_photo(weights, photo):
    weights("real_esrgan_general")
    gt, noisy = noisy_photo(photo, 10)
    small = resize(noisy, (32, 33))
    method = RealESRGANx4(version="general-x4v3", device="cpu")
    made = method(small, 4)
    assert made.shape == (3, 128, 132) and method(noisy, 1).shape == gt.shape
    assert decibels(made[:, :127, :131], gt) > 22, "the right image, and no other range or order of colours"
    with pytest.raises(ValueError, match="version is 'x2': choose x4plus or general-x4v3"):
        RealESRGANx4(version="x2")


def noisy_photo(photo, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
    gt = torch.from_numpy(photo[60:187, 180:311].copy()).permute(2, 0, 1)  # sides are odd
    return gt, (gt + sigma / 255 * torch.randn(gt.shape, generator=torch.Generator().manual_seed(0)))


def decibels(image: torch.Tensor, gt: torch.Tensor) -> float:
    return float(-10 * (image - gt).square().mean().log10())


def test_ffdnet_needs_the_true_level(weights, photo):
    weights("ffdnet_color")
    gt, noisy = noisy_photo(photo, 25)
    told = {sigma: decibels(FFDNetColour(sigma=sigma, device="cpu")(noisy, 1), gt) for sigma in (10, 25, 50)}
    assert told[25] > 31 and decibels(noisy, gt) < 21, "the network's paper prints 31.21 dB on CBSD68"
    assert told[25] > told[50] + 1.5 and told[25] > told[10] + 5, told
    assert abs(noise_level(noisy) * 255 - 25) < 1.5
    estimated = decibels(FFDNetColour(device="cpu")(noisy, 1), gt)
    assert abs(estimated - told[25]) < 0.5 and FFDNetColour(device="cpu")(noisy, 4).shape == (3, 508, 524)
    with pytest.raises(ValueError, match=r"0 to 75 of 255; baseline\.method\.sigma is 80"):
        FFDNetColour(sigma=80)


def test_ffdnet_map_of_levels_acts_by_place(weights, photo):
    network = load_ffdnet(weights("ffdnet_color"))
    _, noisy = noisy_photo(photo, 25)
    levels = torch.full((1, 1, 127, 131), 25 / 255)
    with torch.inference_mode():
        whole = network(noisy[None], torch.tensor([25 / 255]))
        torch.testing.assert_close(network(noisy[None], levels), whole, rtol=0, atol=1e-5)
        levels[..., 70:] = 5 / 255
        halves = network(noisy[None], levels)
    torch.testing.assert_close(halves[..., :40], whole[..., :40], rtol=0, atol=1e-5)  # 24 pixels: the field of view
    assert (halves - whole)[..., 90:].abs().mean() > 0.02


def test_other_ffdnet_file_raises(tmp_path):
    torch.save({"model.0.weight": torch.zeros(64, 13, 3, 3)}, tmp_path / "ffdnet_color.pth")
    with pytest.raises(ValueError, match="does not hold the tensors of FFDNet for colour: fetch ffdnet_color"):
        load_ffdnet(tmp_path)
    (tmp_path / "ffdnet_color.pth").write_bytes(b"PK cut")
    with pytest.raises(ValueError, match="fetch ffdnet_color again"):
        load_ffdnet(tmp_path)


def test_script_flags_become_overrides():
    for words in (["--import-only", "F", "seed=1", "--dry-run"], ["--import-only=F", "seed=1", "--dry-run"]):
        assert read("run-baseline", words).overrides == ["seed=1", "import_only=F", "dry_run=true"]
    for words in (["--import-only"], ["--import-only="], ["--import-only", "--dry-run"]):
        with pytest.raises(UsageError, match=r"import.only"):
            read("run-baseline", words)


def test_script_list_dry_run_import_score(tmp_path, tasks, capsys, baseline_script, run_baseline_script):
    lines = baseline_script.listing().splitlines()
    assert len(lines) >= len(BASELINES) and any(line.startswith("supir ") and "missing" in line for line in lines)

    def run(*overrides: str) -> bool:
        return run_baseline_script(f"input={tmp_path}/lq", f"gt={tmp_path}/truth", *overrides)

    assert run("baseline=sinsr", "dry_run=true", "baseline.python=no-such-python")
    assert "environment: no-such-python" in capsys.readouterr().out
    assert run("baseline=sinsr", "dry_run=true")
    out = capsys.readouterr().out
    assert "missing  weights" in out and "--one_step" in out and "# 3 images" in out and "note     After" in out
    write_png(tmp_path / "lone/face.png", torch.rand(3, 64, 64))
    assert run_baseline_script("baseline=faceme", "dry_run=true", f"input={tmp_path}/lone")
    out = capsys.readouterr().out
    assert "missing  input: FaceMe needs references" in out and "does not fix its result" in out
    assert "infer.py" in out, "what is missing of the input hides neither the command nor what else is missing"
    assert not (tmp_path / "runs").exists()
    assert run("baseline=bicubic")
    assert "3 images made" in capsys.readouterr().out
    assert json.loads((tmp_path / "runs/baseline/x/scores.json").read_text())["complete"]
    with pytest.raises(AdapterError, match="SUPIR cannot be started here"):
        run("baseline=supir")
    write_png(tmp_path / "some/a b.1.png", read_tensor(tasks[0].path))
    assert not run(f"import_only={tmp_path}/some", "name=imported")
    assert json.loads((tmp_path / "runs/imported/scores.json").read_text())["complete"] is False


def write_pairs(folder, lq="LQ", hq="HQ", names=("0001", "0002")):
    """A stand-in of a test set's layout, of noise."""
    for name in names:
        gt = torch.rand(3, 24, 32)
        write_png(folder / lq / f"{name}.png", (gt + 0.1 * torch.randn(gt.shape)).clamp(0, 1))
        if hq:
            write_png(folder / hq / f"{name}.png", gt)


def test_persona_val_pairs_by_configuration(tmp_path, run_baseline_script, capsys):
    options = ["testset=persona_val", "baseline=bicubic", f"paths.data={tmp_path}/data"]
    with pytest.raises(FileNotFoundError, match=r"PERSONA-Val is not in .*_val/LQ: get it from the README"):
        run_baseline_script(*options)
    assert run_baseline_script(*options, "dry_run=true") and "PERSONA-Val is not in" in capsys.readouterr().out
    write_pairs(tmp_path / "data/persona_val")
    assert run_baseline_script(*options, "metrics=[psnr]")
    scores = json.loads((tmp_path / "runs/persona_val/x/scores.json").read_text())
    assert scores["complete"] and scores["counts"]["scored"] == 2 and 15 < scores["means"]["psnr"] < 25
    (tmp_path / "data/persona_val/HQ/0002.png").unlink()
    with pytest.raises(FileNotFoundError, match="lacks 1 of the images, such as 0002"):
        run_baseline_script(*options, "metrics=[psnr]", "name=again")


def test_mpii_test_is_scored_without_gt(tmp_path, run_baseline_script, monkeypatch):
    write_pairs(tmp_path / "data", "mpii_test", None)
    seen = []
    monkeypatch.setattr(
        "face2scene.eval.scoring.score.build_all",
        lambda chosen, device: (seen.extend(m.key for m in chosen), ({}, {m.key: "not here" for m in chosen}))[1],
    )
    options = ["testset=mpii_test", "baseline=bicubic", f"paths.data={tmp_path}/data", "metrics=[psnr,musiq,niqe]"]
    assert run_baseline_script(*options)
    assert seen == ["musiq", "niqe"], "metrics that need a ground truth are left out"
    assert json.loads((tmp_path / "runs/mpii_test/x/scores.json").read_text())["counts"]["expected"] == 2
