"""Sweeps: plans from their files, steps by the public scripts (here in this process), scores and plots."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from composed_configs import CONFIGS, TINY, compose_config, paths_below
from omegaconf import OmegaConf
from repository_scripts import load_script
from sweep_inputs import TOUCH, plan_of_steps
from tiny_restorer import randomise_loras
from tolerances import STORED_IN_8_BITS

from face2scene.common.reproducibility import REPOSITORY
from face2scene.common.types import Scene
from face2scene.data.records import read_manifest
from face2scene.eval.sweeps.plan import COMMANDS, Step, Sweep, SweepError, SweepPlan, plan
from face2scene.eval.sweeps.run import pending, run_steps
from face2scene.eval.sweeps.table import section
from face2scene.image_io.arrays import read_image, read_tensor, write_png
from face2scene.inference.batch import restore_folder
from face2scene.inference.tasks import find_tasks
from face2scene.models.fadex.encoder import FaDeX
from face2scene.models.loading import load_restorer
from face2scene.models.mapnet import MapNet
from face2scene.models.restorer.base_model import load_base
from face2scene.models.restorer.one_step import OneStepRestorer

SWEEPS = sorted(path.stem for path in (CONFIGS / "sweep").glob("*.yaml"))


TINY_FACELESS = [*TINY, "faces=none"]


LORA_RANKS = ((4, 4), (8, 8), (16, 16), (16, 32), (32, 32))


SHORT = ["train.fadex.schedule.steps=1", "train.restorer.schedule.steps=1", "train.restorer.discriminator=null"]


def command_of(step: Step) -> tuple[str, tuple[str, ...]]:
    """Module of a step's command, and its options."""
    at = step.words.index("face2scene") + 1
    assert step.words[at - 2] == "-m" and step.words[at] in COMMANDS.values()
    return step.words[at].replace("-", "_"), step.words[at + 1 :]


def run_in_process(step: Step, log: Path, environment) -> str:
    """The scripts' own `main`, without the half minute that an interpreter takes to start."""
    name, overrides = command_of(step)
    try:
        load_script(name).main(compose_config(name, *overrides))
    except SystemExit as error:
        return str(error.code) if error.code else ""
    return ""


@pytest.fixture(scope="module")
def trained_models(tmp_path_factory) -> Path:
    """A tiny set, and an untrained FaDeX and restorer that fit each other."""
    folder = tmp_path_factory.mktemp("sweeps")
    load_script("build_inscene").main(compose_config("build_inscene", *TINY_FACELESS, *paths_below(folder)))
    torch.manual_seed(0)
    tiny = compose_config("train_restorer", *TINY_FACELESS, *paths_below(folder))
    encoder = OmegaConf.to_container(tiny.fadex.encoder)
    encoder.pop("_target_")
    FaDeX(**encoder).save(folder / "fadex.safetensors", about={"steps": 0})
    mapnet = OmegaConf.to_container(tiny.mapnet)
    mapnet.pop("_target_")
    base = tiny.restorer.base.source
    adapters = OmegaConf.to_container(tiny.restorer.adapters)
    restorer = OneStepRestorer(load_base(base), MapNet(**mapnet), source=base, **adapters)
    torch.nn.init.normal_(restorer.null_tokens)
    randomise_loras(restorer, std=0.05)
    restorer.save(folder / "restorer.safetensors", about={"steps": 0})
    return folder


def use_trained(folder: Path) -> list[str]:
    return [f"use.fadex={folder}/fadex.safetensors", f"use.restorer={folder}/restorer.safetensors"]


def run_sweep(folder: Path, key: str, *more: str, runner=run_in_process) -> tuple[int, Path]:
    given = [f"sweep={key}", *TINY_FACELESS, *SHORT, *paths_below(folder), "metrics=[psnr,ssim_y]", *more]
    cfg = compose_config("sweep", *given)
    return load_script("sweep").sweep(cfg, given, "perturbed", runner), folder / "runs" / cfg.name


def images(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "images").glob("*.png"))}


def plan_of(key: str, **options) -> SweepPlan:
    data = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"sweep/{key}.yaml"))
    return plan(Sweep.from_dict(data), **{"name": key, "runs": "runs", "data": "data/x"} | options)


def together(pipeline, folder, output, **options):
    return restore_folder(pipeline, find_tasks(folder), output, **options)


def test_guidance_sweep_shares_unet_calls(trained_models, monkeypatch, capsys):
    calls = {"_predict": 0, "_decode": 0}
    for name in calls:
        original = getattr(OneStepRestorer, name)

        def counted(self, *args, name=name, original=original):
            calls[name] += 1
            return original(self, *args)

        monkeypatch.setattr(OneStepRestorer, name, counted)
    code, folder = run_sweep(trained_models, "cfg", *use_trained(trained_models))
    assert code == 0 and calls == {"_predict": 2, "_decode": 2 * 9}
    result = json.loads((folder / "sweep.json").read_text())
    rows = result["variants"]
    assert [row["label"] for row in rows] == [f"{1 + n / 50:.2f}" for n in range(9)]
    assert all(row["complete"] and row["counts"]["scored"] == 2 for row in rows)
    assert len({row["means"]["psnr"] for row in rows}) == 9, "the guidance changes nothing"
    assert result["sharing"]["values"] == 9 and 0 < result["sharing"]["ratio"] < 9
    assert (
        "1.10 *" in (folder / "sweep.md").read_text() and "restorations would take 9 times" in capsys.readouterr().out
    )
    assert (folder / "sweep.png").stat().st_size > 5000
    page = section(folder)
    assert '<img src="data:image/svg+xml;base64,' in page and page.count("<tr>") == 10
    assert "restorations would take 9 times" in page

    alone = trained_models / "alone"  # the same guidance by itself gives the same images
    options = [
        *TINY_FACELESS,
        *paths_below(trained_models),
        f"input={trained_models}/data/tiny",
        f"output={alone}",
        "guidance=1.16",
    ]
    weights = [
        f"fadex_weights={trained_models}/fadex.safetensors",
        f"restorer_weights={trained_models}/restorer.safetensors",
    ]
    load_script("restore").main(compose_config("restore", "ref_fr=perturbed", *options, *weights))
    for path in (alone / "images").glob("*.png"):
        ours = read_image(folder / "guidance_1.16/images" / path.name)
        assert abs(ours - read_image(path)).max() < 1.5 / 255


def test_token_sweep_trains_and_resumes(trained_models, capsys):
    code, folder = run_sweep(trained_models, "tokens", f"use.fadex={trained_models}/fadex.safetensors")
    assert code == 0
    counts = {}
    for label in ("1_token", "5_tokens", "21_tokens"):
        counts[label] = load_restorer(folder / label / "restorer/weights/restorer.safetensors").mapnet.num_tokens
        assert len(images(folder / label)) == 2
    assert list(counts.values()) == [1, 5, 21]

    def nothing(*_):
        raise AssertionError("a finished step was started again")

    code, _ = run_sweep(trained_models, "tokens", f"use.fadex={trained_models}/fadex.safetensors", runner=nothing)
    assert code == 0 and "0 of 6 steps to do" in capsys.readouterr().out
    with pytest.raises(SweepError, match=r"1_token/restorer was run with fewer.*train\.restorer\.lr=1\.0.*name="):
        run_sweep(
            trained_models,
            "tokens",
            f"use.fadex={trained_models}/fadex.safetensors",
            "train.restorer.lr=1.0",
            runner=nothing,
        )
    with pytest.raises(SweepError, match=r"leave use\.restorer out"):
        run_sweep(trained_models, "tokens", *use_trained(trained_models), "name=other", runner=nothing)


def test_sweeps_vary_with_given_weights(trained_models):
    code, degraded = run_sweep(trained_models, "spatially_varying", *use_trained(trained_models))
    assert code == 0
    recipes = [read_manifest(degraded / name / "degradation", "val") for name in ("face2scene_uniform", "face2scene")]
    kinds = [{operator["kind"] for record in records for operator in record.recipe["operators"]} for records in recipes]
    assert kinds[0] != kinds[1] and [r.sha256 for r in recipes[0]] == [r.sha256 for r in recipes[1]]
    assert images(degraded / "face2scene_uniform") != images(degraded / "face2scene")

    code, quality = run_sweep(trained_models, "ref_quality", *use_trained(trained_models))
    result = json.loads((quality / "sweep.json").read_text())
    assert code == 0 and result["left_out"] == {"S3Diff": "s3diff"}
    made = {row["label"]: images(quality / row["folder"]) for row in result["variants"]}
    assert [label.split()[-1] for label in made] == ["truth", "good", "medium", "bad", "copy"] and made[
        "ground truth"
    ] != made["copy"]

    code, used = run_sweep(trained_models, "tokens_used", *use_trained(trained_models), "limit=1")
    assert code == 0
    made = [images(used / f"tokens_{count}") for count in (0, 1, 5, 21)]
    assert all(len(one) == 1 for one in made) and len({str(one) for one in made}) == 4
    assert json.loads((used / "sweep.json").read_text())["variants"][0]["counts"]["expected"] == 1


def test_failed_variant_is_reported(trained_models, capsys):
    def broken(step, log, environment):
        if step.name == "face2scene_bad/restore":
            return "the disk is full"
        return run_in_process(step, log, environment)

    code, folder = run_sweep(trained_models, "ref_quality", *use_trained(trained_models), "name=broken", runner=broken)
    out = capsys.readouterr()
    assert code == 1 and "face2scene_bad/restore: the disk is full" in out.err
    result = json.loads((folder / "sweep.json").read_text())
    assert result["failed"] == {"face2scene_bad/restore": "the disk is full"}
    assert [row["label"] for row in result["variants"] if not row["complete"]] == ["Face2Scene bad"]
    (line,) = [line for line in (folder / "sweep.md").read_text().splitlines() if line.startswith("| Face2Scene bad")]
    assert line.count("not measured") == 2
    code, _ = run_sweep(
        trained_models, "ref_quality", *use_trained(trained_models), "name=broken"
    )  # mended: only that step is done
    assert code == 0 and "1 of 5 steps to do" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("key", SWEEPS)
def test_every_sweep_runs_as_commands(trained_models, key):
    """Each step an interpreter of its own, as a user starts them."""
    given = [
        f"sweep={key}",
        *TINY_FACELESS,
        *SHORT,
        *paths_below(trained_models),
        "metrics=[psnr]",
        f"name=commands/{key}",
    ]
    if key in ("cfg", "ref_quality", "spatially_varying", "tokens_used"):
        given += use_trained(trained_models)
    command = [sys.executable, str(REPOSITORY / "scripts/sweep.py"), *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000, cwd=trained_models)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads((trained_models / "runs/commands" / key / "sweep.json").read_text())
    assert result["variants"] and all(row["complete"] for row in result["variants"])


def test_sweep_of_an_earlier_version_goes_on(tmp_path):
    (tmp_path / "images").mkdir()
    words = ("python", "-m", "accelerate.commands.launch", "-m", "face2scene", "train-fadex", "a=1", "b=x.py")
    laid_out = SweepPlan(tmp_path, (Step("fadex", words, (), tmp_path / "images"),), (), {}, {}, None)
    for last, left in (("b=x.py", 0), ("b=y.py", None)):
        before = [*words[1:3], "/old/scripts/train_fadex.py", "a=1", last]
        (tmp_path / "steps").mkdir(exist_ok=True)
        (tmp_path / "steps/fadex.json").write_text(json.dumps({"command": before, "files": {}}))
        if left is None:
            with pytest.raises(SweepError, match=r"was run with b=y\.py"):
                pending(laid_out)
        else:
            assert len(pending(laid_out)) == left


@pytest.mark.parametrize("change", ["set", "weights", "old marker"])
def test_replaced_files_are_refused(tmp_path, change):
    for name in ("data/metadata.parquet", "data/SHA256SUMS", "w.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    words = ("python", f"restorer_weights={tmp_path / 'w.safetensors'}", "x=" + "y" * 5000)
    step = Step("restore", words, (), tmp_path / "sweep/images")
    laid_out = SweepPlan(tmp_path / "sweep", (step,), (), {}, {}, tmp_path / "data")
    make = lambda *_: step.product.mkdir(parents=True) or ""  # noqa: E731
    assert run_steps(laid_out, pending(laid_out), runner=make, report=str) == {}
    assert pending(laid_out) == []
    if change == "old marker":
        (tmp_path / "sweep/steps/restore.json").write_text(json.dumps({"command": list(words[1:])}))
    else:
        (tmp_path / {"set": "data/SHA256SUMS", "weights": "w.safetensors"}[change]).write_text("2")
    with pytest.raises(SweepError, match=r"since restore was run, these files were replaced.*remove the folder"):
        pending(laid_out)


@pytest.mark.parametrize("text", ["", '{"comma', "[]", "null", "\0\0"])
def test_damaged_marker_repeats_step(tmp_path, text):
    todo = plan_of_steps(tmp_path, ("a", TOUCH, ()))
    assert run_steps(todo, pending(todo), report=lambda _: None) == {} and pending(todo) == []
    (tmp_path / "steps/a.json").write_text(text)
    assert pending(todo) == list(todo.steps)


@pytest.mark.parametrize("key", SWEEPS)
def test_every_sweep_config_composes(key):
    planned = plan_of(key, use={"s3diff": "s3diff.safetensors"})
    seen = set()
    for step in planned.steps:
        root, overrides = command_of(step)
        keys = (root, *(word.partition("=")[0] for word in overrides))
        if keys not in seen:  # other values of the same keys
            seen.add(keys)
            compose_config(root, *overrides)
    assert planned.steps and {row.label for row in planned.variants} >= ({"21 tokens"} if key == "tokens" else set())


def test_shared_training_runs_once():
    steps = {step.name: step for step in plan_of("lora_rank").steps}
    trainings = [name for name in steps if not name.endswith("restore")]
    assert trainings == ["fadex", *(f"vae_{a}_unet_{b}/restorer" for a, b in LORA_RANKS)]
    assert steps["vae_8_unet_8/restorer"].needs == ("fadex",)
    steps = {step.name: step for step in plan_of("conditioning").steps}
    assert [name for name in steps if "restorer" in name] == ["trained_without/restorer", "null_tokens/restorer"]
    assert "null_tokens/restorer" in steps["its_own/restore"].needs
    steps = {step.name: step for step in plan_of("code_source").steps}
    assert steps["degraded_face_alone/restorer"].needs == ("degraded_face_alone/fadex",)
    assert any("degraded_face_alone/fadex/weights" in word for word in steps["degraded_face_alone/restore"].words)


def test_variant_option_overrides_common():
    step = plan_of("ref_quality", common=["experiment=quickstart", "ref_fr=copy"]).steps[0]
    assert [word for word in step.words if word.startswith("ref_fr=")] == ["ref_fr=ground_truth"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"chosen": "7"}, "marks '7', which is none of its variants"),
        ({"variants": {"a b": {}, "a-b": {}}}, "need different names"),
        ({"variants": {"a": {"restor": []}}}, r"unknown keys \['restor'\]"),
        ({"colour": 1}, r"unknown keys or trainings: \['colour'\]"),
    ],
)
def test_invalid_sweep_raises(change, sentence):
    data = {"key": "x", "title": "", "source": "", "axis": "", "variants": {"a": {}}}
    with pytest.raises(SweepError, match=sentence):
        Sweep.from_dict(data | change)


def test_dry_run_starts_nothing(trained_models, capsys):
    def nothing(*_):
        raise AssertionError("a dry run started a command")

    code, folder = run_sweep(trained_models, "lora_rank", "dry_run=true", "name=dry", runner=nothing)
    out = capsys.readouterr().out
    assert code == 0 and not folder.exists()
    assert "$ " in out and "restorer.adapters.unet_rank=32" in out and "(after fadex)" in out and "dry_run" not in out


@pytest.mark.numerics
def test_values_together_equal_alone(make_pipeline, photo, tmp_path):
    write_png(tmp_path / "in/a.png", photo[:64, :80])
    pipeline, out = make_pipeline(), tmp_path / "out"
    assert together(pipeline, tmp_path / "in", out, guidance=[1.0, 1.1]).restored == 1
    assert together(pipeline, tmp_path / "in", out, guidance=[1.0, 1.1]).skipped == 1
    images = [out / f"guidance_{value}/images/a.png" for value in ("1.00", "1.10")]
    assert sorted(out.glob("*/images/a.png")) == images and images[0].read_bytes() != images[1].read_bytes()
    scene = Scene("a", read_tensor(tmp_path / "in/a.png"))
    for guidance, path in zip((1.0, 1.1), images, strict=True):
        expected = pipeline.restore(scene, pipeline.estimate(scene), guidance=guidance).image
        assert (read_tensor(path) - expected).abs().max() <= STORED_IN_8_BITS
    (line,) = (out / "restore.jsonl").read_text().splitlines()
    assert json.loads(line)["guidance"] == [1.0, 1.1]
    sharing = json.loads((out / "sharing.json").read_text())
    assert sharing["values"] == 2 and sharing["together"] >= sharing["one"] > 0


@pytest.mark.numerics
def test_token_counts_together_equal_alone(make_pipeline, photo, tmp_path):
    write_png(tmp_path / "in/a.png", photo[:64, :80])
    pipeline, out = make_pipeline(), tmp_path / "out"
    assert together(pipeline, tmp_path / "in", out, token_counts=[1, 5]).failed == {}
    scene = Scene("a", read_tensor(tmp_path / "in/a.png"))
    for count in (1, 5):
        alone = make_pipeline(max_tokens=count)
        expected = alone.restore(scene, alone.estimate(scene)).image
        assert (read_tensor(out / f"tokens_{count}/images/a.png") - expected).abs().max() <= STORED_IN_8_BITS


@pytest.mark.parametrize("change", ["input", "weights", "one is gone", "no log"])
def test_changed_input_or_weights_need_overwrite(make_pipeline, photo, tmp_path, monkeypatch, change):
    write_png(tmp_path / "in/a.png", photo[:48, :48])
    pipeline, out = make_pipeline(), tmp_path / "out"
    together(pipeline, tmp_path / "in", out, guidance=[1.0, 1.1])
    made = {path: path.read_bytes() for path in out.glob("*/images/a.png")}
    if change == "one is gone":
        min(made).unlink()
        assert together(pipeline, tmp_path / "in", out, guidance=[1.0, 1.1]).restored == 1
        assert {path: path.read_bytes() for path in out.glob("*/images/a.png")} == made
        return
    if change == "input":
        write_png(tmp_path / "in/a.png", photo[8:56, :48])
    elif change == "weights":
        monkeypatch.setattr(pipeline, "fingerprint", "of a training that was repeated")
    else:
        (out / "restore.jsonl").unlink()
    outcome = together(pipeline, tmp_path / "in", out, guidance=[1.0, 1.1])
    assert outcome.skipped == outcome.restored == 0 and "say overwrite=true" in outcome.failed["a.png"]
    assert {path: path.read_bytes() for path in made} == made
    assert together(pipeline, tmp_path / "in", out, guidance=[1.0, 1.1], overwrite=True).restored == 1


@pytest.mark.parametrize(
    "options", [{"guidance": []}, {"guidance": [1.0, 1.001]}, {"guidance": [1], "token_counts": [1]}]
)
def test_equal_values_are_refused(make_pipeline, photo, tmp_path, options):
    write_png(tmp_path / "in/a.png", photo[:16, :16])
    with pytest.raises(ValueError, match=r"none twice|not of both"):
        together(make_pipeline(), tmp_path / "in", tmp_path / "out", **options)
