"""Baseline adapters."""

import argparse
import re
import subprocess

import pytest
import torch
from baseline_inputs import BASELINES
from hydra.utils import instantiate
from omegaconf import OmegaConf

from face2scene.common.files import sha256_of
from face2scene.common.reproducibility import REPOSITORY
from face2scene.eval.baselines.adapter import Adapter, AdapterError
from face2scene.eval.baselines.record import compat_warnings
from face2scene.eval.baselines.run import commands, run_command
from face2scene.image_io.arrays import write_png
from face2scene.inference.tasks import RestorationTask


def load_adapter(name: str, **changes) -> Adapter:
    described = OmegaConf.to_container(OmegaConf.load(REPOSITORY / f"configs/baseline/{name}.yaml"))
    return Adapter.from_dict(described | {"method": instantiate(described.get("method"))} | changes)


def test_missing_parts_are_listed_before_launch(tmp_path, tasks, make_adapter):
    adapter = make_adapter(
        python="no-such-python",
        checkout=str(tmp_path / "elsewhere"),
        repository="https://example.org/x",
        weights=[{"path": "w.pth", "source": "a release", "licence": "MIT"}],
    )
    assert [line.partition(":")[0] for line in adapter.missing()] == ["checkout", "environment", "weights"]
    assert "git clone https://example.org/x" in adapter.missing()[0] and "baseline.python=" in adapter.missing()[1]
    assert "w.pth from a release (MIT)" in adapter.missing()[2]
    with pytest.raises(AdapterError, match=r"Fake cannot be started here:\n  checkout"):
        run_command(adapter, tasks, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"command": "x {inptu} {input}"}, r"unknown fields \['inptu'\]"),
        ({"command": "x"}, r"neither command nor files have \{input\}"),
        ({"output": "all.png"}, r"has to hold \{stem\}"),
        ({"sizes": "x2"}, "sizes is 'x2'; choose any, x4, same, face"),
        ({"colour": "red"}, r"unknown keys or no title: \['colour'\]"),
    ],
)
def test_invalid_adapter_is_refused(make_adapter, change, sentence):
    with pytest.raises(AdapterError, match=sentence):
        make_adapter(**change)


@pytest.mark.parametrize("name", BASELINES)
def test_adapter_config_is_complete(name, tmp_path):
    adapter = load_adapter(name)
    assert adapter.licence != "unknown" and adapter.tried
    assert all(need.source and need.licence != "unknown" for need in adapter.weights)
    assert all(need.sha256 is None or re.fullmatch("[0-9a-f]{64}", need.sha256) for need in adapter.weights)
    if adapter.kind != "command":
        return
    described = OmegaConf.load(REPOSITORY / f"configs/baseline/{name}.yaml")
    assert {"python", "checkout", "commit", "command"} <= described.keys(), "what is not there cannot be overridden"
    assert adapter.repository.startswith("https://github.com/") and adapter.environment
    (line,) = commands(adapter, [], scale=4, seed=3)
    assert f"cd {adapter.place} && " in line and line.endswith("# 0 images")
    given = {"input": "IN", "output": "OUT", "references": "REF", "scratch": "S", "scale": 4, "seed": 3}
    given |= {"stem": "STEM", "side": 512}
    words = adapter.words(**given)
    texts = adapter.texts(**given)
    source = "IN/STEM.png" if adapter.per_image else "IN"
    assert source in words or any(source in text for text in texts.values())
    assert not any("{" in word for word in words)
    assert ("3" in words) == ("{seed}" in adapter.command) and (not adapter.seedable or "3" in words)
    # not installed: everything is named, the commit too
    nowhere = load_adapter(name, checkout=str(tmp_path / "nowhere"), python=str(tmp_path / "python"))
    checkout, environment, *weights = nowhere.missing()
    assert f"git clone {adapter.repository} {tmp_path}/nowhere" in checkout and "environment: " in environment
    assert len(weights) >= len([need for need in adapter.weights if not need.path.startswith(("hub:", "~", "{clip"))])
    assert re.fullmatch("[0-9a-f]{40}", adapter.commit) and f"nowhere checkout {adapter.commit}" in checkout


def test_pasd_captioner_is_off():
    parser = argparse.ArgumentParser()
    choices = ["classification", "detection", "caption"]
    parser.add_argument("--high_level_info", choices=choices, nargs="?", default="caption")
    words = load_adapter("pasd").words(input="IN", output="OUT", references="R", scratch="S", scale=4, seed=3)
    assert parser.parse_known_args(words[2:])[0].high_level_info is None


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("osediff", ["google-bert/bert-base-uncased"]),
        ("instantrestore", ["stabilityai/sd-turbo", "stabilityai/sd-vae-ft-mse"]),
        ("supir", ["openai/clip-vit-large-patch14", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"]),
        ("faceme", ["TencentARC/PhotoMaker"]),
        ("adcsr", ["stabilityai/stable-diffusion-2-1-base"]),
        ("faithdiff", ["jychen9811/FaithDiff", "SG161222/RealVisXL_V4.0", "madebyollin/sdxl-vae-fp16-fix"]),
    ],
)
def test_missing_hub_models_are_listed(name, needs, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    lines = [line for line in load_adapter(name).missing() if str(tmp_path) in line]
    for need in needs:
        place = tmp_path / f"models--{need.replace('/', '--')}"
        assert any(str(place) in line and f"hub {need}" in line for line in lines), lines
        (place / "snapshots/abc").mkdir(parents=True)
        assert any(str(place) in line for line in load_adapter(name).missing()), (
            "a snapshot that is not main is not used"
        )
        (place / "refs").mkdir()
        (place / "refs/main").write_text("abc")
    left = [line for line in load_adapter(name).missing() if str(tmp_path) in line]
    assert left == [line for line in lines if "buffalo_l" in line]
    assert len(left) == (name == "instantrestore")
    assert {path.name for key, path in load_adapter(name).found().items()} >= {"abc"}


def test_unexpected_commit_or_weights_warn(tmp_path, tasks, make_adapter, caplog, baseline_script, capsys):
    caplog.set_level("WARNING")
    place = tmp_path / "checkout"
    git = ["git", "-C", str(place), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["add", "tools"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    need = {"path": "weights.bin", "source": "a release", "licence": "none"}
    good = make_adapter(commit=head, weights=[need | {"sha256": sha256_of(place / "weights.bin")}])
    assert run_command(good, tasks, tmp_path / "good").complete and not caplog.text
    assert not compat_warnings(make_adapter(commit=head[:7])), "an abbreviation of it"
    bad = make_adapter(commit="a" * 40, weights=[need | {"sha256": "b" * 64}])
    assert run_command(bad, tasks, tmp_path / "bad").complete
    assert f"is at {head}, and the options were read at {'a' * 40}" in caplog.text and "checkout a" in caplog.text
    assert "weights.bin is another file than a release" in caplog.text
    assert make_adapter(commit="a" * 40, checkout=str(tmp_path / "none")).missing()
    assert not compat_warnings(make_adapter(commit="a" * 40, checkout=str(tmp_path / "none"), folder=".")), (
        "it is missing, not another"
    )
    baseline_script.show(bad, [], 1, 0, tmp_path)
    assert capsys.readouterr().out.count("  warning  ") == 2


def test_all_paper_methods_have_config():
    titles = set()
    for name in BASELINES:
        titles.add(OmegaConf.load(REPOSITORY / f"configs/baseline/{name}.yaml").title)
    paper = "SUPIR, DiffBIR, ResShift, PASD, OSEDiff, SinSR, InvSR, S3Diff, S3Diff retrained, Face2Scene, FaceMe"
    paper += ", CodeFormer, OSDFace, RestoreFormer++, RedegNet"
    beyond = "Real-ESRGAN, Real-ESRGAN general, FFDNet, Bicubic, PiSA-SR, HYPIR, InstantRestore, HAODiff, Ada-RefSR"
    beyond += ", TSD-SR, OMGSR-S, VOSR, AdcSR, FaithDiff, SeedVR2, DiT4SR, ReF-LDM"
    assert titles == {*paper.split(", "), *beyond.split(", ")}


def test_faithdiff_script_is_python():
    script = load_adapter("faithdiff").texts()["faithdiff.py"]
    compile(script, "faithdiff.py", "exec")
    assert "{" not in script and 'glob("*.png")' in script


def test_dry_run_prints_commands_of_2026(capsys, baseline_script, tmp_path):
    task = RestorationTask(tmp_path / "a b.png", people={"Ann": (tmp_path / "r.png",)})
    write_png(task.path, torch.rand(3, 60, 100))
    wanted = {
        "haodiff": "run_inference.py --input_image SCRATCH/input --output_dir SCRATCH/output",
        "adarefsr": "--lq_path SCRATCH/input/a_b.png --ref_path SCRATCH/references/reference_00.png",
        "tsd_sr": "test/test_tsdsr.py --pretrained_model_name_or_path",
        "omgsr_s": "--process_size 512 --upscale 4 --mid_timestep 273 --align_method adain",
        "vosr": "inference_vosr_onestep.py -c preset/ckpts/VOSR_0.5B_os -i SCRATCH/input -o SCRATCH/output -u 4",
        "adcsr": "test.py --LR_dir SCRATCH/input --SR_dir SCRATCH/output",
        "faithdiff": "SCRATCH/faithdiff.py SCRATCH/input SCRATCH/output 4 7",
        "seedvr2": "inference_cli.py SCRATCH/input/a_b.png --output SCRATCH/output/a_b.png",
        "dit4sr": "--image_path SCRATCH/input --prompt_path SCRATCH/prompts --output_dir SCRATCH/output",
        "hypir": "--txt_dir SCRATCH/prompts --output_dir SCRATCH/output --seed 7",
        "invsr": "inference_invsr.py -i SCRATCH/input -o SCRATCH/output --num_steps 1 --chopping_size 128",
        "resshift": "--task realsr --scale 4 --version v3 --chop_size 512 --chop_stride 448 --bs 1 --seed 7",
        "pisa_sr": "--pretrained_path preset/models/pisa_sr.pkl --upscale 4 --process_size 512 --default",
    }
    for name, words in wanted.items():
        baseline_script.show(load_adapter(name), [task], 4, 7, tmp_path)
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("$ ")]
        assert words in line, line
        assert "--resolution 256" in line or name != "seedvr2", "60 pixels, padded to 64, times 4"


def test_s3diff_settings_file_is_filled(tmp_path):
    described = OmegaConf.to_container(OmegaConf.load(REPOSITORY / "configs/baseline/s3diff_official.yaml"))
    text = Adapter.from_dict(described).texts(input="/in", scale=1, output="o", scratch="s", references="r", seed=0)
    assert OmegaConf.create(text["test.yaml"]) == {
        "sf": 1,
        "validation": {"lr_path": "/in", "io_backend": {"type": "disk"}},
    }
