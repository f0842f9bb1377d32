"""The commands of the compared programs, against what the programs' own files say that they take."""

import argparse
import ast
import subprocess
import sys

import pytest
import yaml
from baseline_inputs import BASELINES
from omegaconf import OmegaConf

from face2scene.common.reproducibility import REPOSITORY
from face2scene.eval.baselines.adapter import Adapter

PROGRAMS = yaml.safe_load((REPOSITORY / "tests/support/program_options.yaml").read_text())
GIVEN = {"input": "IN", "output": "OUT", "references": "REF", "scratch": "S", "scale": 4, "seed": 3, "side": 512}


def adapter_of(name: str) -> Adapter:
    return Adapter.from_dict(OmegaConf.to_container(OmegaConf.load(REPOSITORY / f"configs/baseline/{name}.yaml")))


def parser_of(options: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    for option in options.split():
        names, _, kind = option.partition(":")
        how: dict = {"required": True} if names.endswith("!") and names.startswith("-") else {}
        if kind == "flag":
            how |= {"action": "store_true"}
        elif kind in ("int", "float"):
            how |= {"type": {"int": int, "float": float}[kind]}
        elif kind == "+":
            how |= {"nargs": "+"}
        elif kind:
            how |= {"choices": kind.removeprefix("?").split("|")} | ({"nargs": "?"} if kind.startswith("?") else {})
        parser.add_argument(*names.rstrip("!").split(","), **how)
    return parser


def options_of(name: str, words: list[str]) -> dict:
    script = next(n for n, word in enumerate(words) if word.endswith(".py"))
    return vars(parser_of(PROGRAMS[name]["options"]).parse_args(words[script + 1 :]))


def test_every_program_was_compared():
    assert {name for name in BASELINES if adapter_of(name).kind == "command"} == set(PROGRAMS)
    for name, program in PROGRAMS.items():
        assert adapter_of(name).tried == f"never run here; compared with {program['read']}"


@pytest.mark.parametrize("name", [name for name, program in PROGRAMS.items() if "options" in program])
def test_command_has_known_options(name):
    found = options_of(name, adapter_of(name).words(stem="STEM", **GIVEN))
    wanted = PROGRAMS[name]["wanted"]
    assert {key: found[key] for key in wanted} == wanted
    values = [value for given in found.values() for value in (given if isinstance(given, list) else [given])]
    assert any(str(value).startswith("IN") for value in values) or adapter_of(name).files
    seeds = "seed" in found and "{seed}" in adapter_of(name).command
    assert not seeds or found["seed"] == 3


def test_unknown_option_is_seen():
    words = adapter_of("supir").words(stem="STEM", **GIVEN)
    for wrong in (["--edm_step", "50"], ["--SUPIR_sign", "R"], ["--seed", "x"]):
        with pytest.raises((argparse.ArgumentError, SystemExit)):
            options_of("supir", [*words, *wrong])
    with pytest.raises((argparse.ArgumentError, SystemExit)):
        options_of("omgsr_s", ["infer.py", "--input_image", "IN", "--output_dir", "OUT"])


@pytest.mark.parametrize("name", [name for name, program in PROGRAMS.items() if "call" in program])
def test_script_calls_with_known_arguments(name):
    program, (text,) = PROGRAMS[name], adapter_of(name).texts(stem="STEM", **GIVEN).values()
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    (call,) = [node for node in calls if ast.unparse(node.func).split(".")[-1] == program["call"]]
    found = {word.arg: word.value for word in call.keywords}
    assert set(found) <= set(program["arguments"].split())
    assert {key: ast.literal_eval(found[key]) for key in program["wanted"]} == program["wanted"]


def test_adarefsr_settings_are_its_own():
    settings = OmegaConf.create(adapter_of("adarefsr").texts(stem="STEM", **GIVEN)["demo.yaml"])
    known = "sd_path pretrained_backbone_path pretrained_ref_gen_path de_net_path ram_path dape_path mixed_precision"
    assert set(settings) == {*known.split(), "fusion_blocks", "align_method", "is_image"}
    assert (settings.mixed_precision, settings.fusion_blocks, settings.align_method) == ("fp16", "full", "wavelet")


def test_page_of_baselines_is_current(tmp_path):
    page = tmp_path / "baselines.md"
    subprocess.run([sys.executable, REPOSITORY / "scripts/list_baselines.py", page], check=True, timeout=120)
    assert page.read_text() == (REPOSITORY / "docs/baselines.md").read_text(), "run python scripts/list_baselines.py"
