"""Sweeps of Weights & Biases: what is written, and that the command an agent makes of it composes that variant."""

import re

import pytest
import yaml
from composed_configs import compose_config
from repository_scripts import load_script

from face2scene.cli.options import UsageError, read
from face2scene.common.shipped import CONFIGS
from face2scene.eval.sweeps.plan import Sweep, SweepError
from face2scene.eval.sweeps.wandb_grid import METRICS, wandb_grid

SWEEPS = sorted(path.stem for path in (CONFIGS / "sweep").glob("*.yaml"))


def loaded(name: str) -> Sweep:
    return Sweep.from_dict(yaml.safe_load((CONFIGS / f"sweep/{name}.yaml").read_text()))


def agent_words(grid: dict, values: dict) -> list[str]:
    """A run's command as wandb's agent makes it: `${args_no_hyphens}` becomes a word KEY=VALUE for each parameter."""
    macros = {"env": ["/usr/bin/env"], "program": [grid["program"]]}
    macros["args_no_hyphens"] = [f"{key}={value}" for key, value in values.items()]
    return [part for word in grid["command"] for part in macros.get(re.sub(r"\$\{(\w+)\}", r"\1", word), [word])]


@pytest.mark.parametrize("name", SWEEPS)
def test_every_variant_composes_as_in_the_sweep(name):
    sweep = loaded(name)
    if not any(row.overrides.get(kind) for row in sweep.variants for kind in METRICS):
        with pytest.raises(SweepError, match="differ in no training"):
            wandb_grid(sweep, [], {})
        return
    grid = wandb_grid(sweep, ["experiment=quickstart"], {"fadex": "f.safetensors"})
    assert set(grid) == {"name", "description", "program", "method", "metric", "parameters", "command"}
    assert grid["method"] == "grid" and grid["metric"]["goal"] in ("minimize", "maximize")
    for value in grid["parameters"]["variant"]["values"]:
        env, program, command, *words = agent_words(grid, {"variant": value})
        assert (env, program) == ("/usr/bin/env", "face2scene")
        kind, label = command.removeprefix("train-"), value.partition("/")[2]
        overrides = read(command, words).overrides
        own = next(row.overrides[kind] for row in sweep.variants if row.label == label)
        assert set(own) < set(overrides) and "tracker.mode=online" in overrides
        cfg = compose_config(command.replace("-", "_"), *overrides)
        assert cfg.name.startswith(f"sweep/{name}/") and cfg.tracker.mode == "online"
        assert kind == "fadex" or cfg.fadex_weights == "f.safetensors"


def test_names_of_variants_differ_and_can_be_given():
    values = wandb_grid(loaded("lora_rank"), [], {})["parameters"]["variant"]["values"]
    names = {read("train-restorer", [f"variant={value}"]).overrides[-1] for value in values}
    assert len(names) == len(values) == 5 and "name=sweep/lora_rank/vae_4_unet_4/restorer" in names
    assert "name=mine" in read("train-restorer", [f"variant={values[0]}", "name=mine"]).overrides
    for wrong in ("variant=lora_rank/VAE 5", "variant=nothing/VAE 4 UNet 4", "variant=cfg/1.00"):
        with pytest.raises(UsageError, match="is no variant that trains a restorer"):
            read("train-restorer", [wrong])


def test_sweep_writes_the_file_and_starts_nothing(tmp_path, capsys):
    def nothing(*_):
        raise AssertionError("a step was started")

    cfg = compose_config("sweep", "sweep=lora_rank", f"wandb={tmp_path}/grid.yaml")
    assert load_script("sweep").sweep(cfg, ["seed=3", "wandb=grid.yaml"], "perturbed", nothing) == 0
    grid = yaml.safe_load((tmp_path / "grid.yaml").read_text())
    assert grid == wandb_grid(loaded("lora_rank"), ["seed=3", "ref_fr=perturbed"], {})
    assert "wandb agent" in capsys.readouterr().out and [path.name for path in tmp_path.iterdir()] == ["grid.yaml"]
