"""Every code block of README and docs/: executed, composed, checked or parsed; `doc_blocks.table` lists them all."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from doc_blocks import EXECUTED, LANGUAGES, Block, Command, blocks, commands, pages
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from PIL import Image
from toml_files import read_toml

from face2scene.assets import catalogue
from face2scene.cli import main as command_line
from face2scene.cli.command_line import path_values
from face2scene.cli.options import read
from face2scene.common.reproducibility import REPOSITORY
from face2scene.common.shipped import CONFIGS

PAGES = {path.relative_to(REPOSITORY).as_posix(): path for path in pages()}
OTHER_PROGRAMS = {
    ".",
    "cd",
    "cp",
    "git",
    "jupyter",
    "pre-commit",
    "wandb",
}  # of the shell and of others: nothing of ours in them
OTHER_PACKAGES = {"pre-commit", "jupyterlab", "playwright"}


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A folder with the files that the pages name: party.jpg, and two photos of Ann."""
    rng = np.random.default_rng(0)
    for name in ("party.jpg", "photos/ann/1.jpg", "photos/ann/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def of_page(page: str, *languages: str) -> list[Block]:
    return [block for block in blocks(PAGES[page]) if block.language in languages]


def commands_of(page: str) -> Iterator[tuple[Block, Command]]:
    known: dict[str, str] = {}
    for block in of_page(page, "bash", "sh"):
        for one in commands(block, known):
            yield block, one


def pages_with(*languages: str) -> list[str]:
    return [page for page in PAGES if of_page(page, *languages)]


def test_every_block_has_a_treatment():
    known = {*LANGUAGES, "bash", "sh"}
    unmarked = [block.where for page in PAGES for block in blocks(PAGES[page]) if block.language not in known]
    assert not unmarked, f"say what these blocks hold, {', '.join(sorted(known))}: {', '.join(unmarked)}"
    assert len(pages_with("bash")) > 10 and len(pages_with("python")) > 4


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_runs(page, workplace):
    from face2scene.degradation.operators import OPERATORS, STORED_NAMES

    space, registered = {"__name__": "__main__"}, (dict(OPERATORS), dict(STORED_NAMES))
    try:
        for block in of_page(page, "python"):
            exec(compile("\n" * block.line + block.text, str(PAGES[page]), "exec"), space)
    finally:
        for names, before in zip((OPERATORS, STORED_NAMES), registered, strict=True):
            names.clear()
            names.update(before)


@pytest.mark.parametrize("page", pages_with("json", "yaml"))
def test_data_is_read(page):
    for block in of_page(page, "json", "yaml"):
        read = json.loads(block.text) if block.language == "json" else yaml.safe_load(block.text)
        assert read, block.where


@pytest.mark.parametrize("page", pages_with("bash", "sh"))
def test_commands_are_possible(page, tmp_path):
    user = configs_of(page, tmp_path)
    found = [f"{block.where}: {one.text}: {why}" for block, one in commands_of(page) if (why := problem(one, user))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("command", EXECUTED)
def test_short_commands_end_well(command, workplace, monkeypatch, capfd):
    assert any(" ".join(one.words) == command for page in PAGES for _, one in commands_of(page)), "no page has it"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    code, said = started(shlex.split(command), monkeypatch), capfd.readouterr()
    assert code == 0, said.err
    assert said.out.strip()
    if " restore " in command:
        assert Image.open(workplace / "restored_in_tiles/images/party.png").size == (64, 64)


def started(words: list[str], monkeypatch) -> int:
    """Exit code of a command in this process; the doctor, which imports everything there is, has one of its own."""
    from scripts_here import run_script

    if words[1] == "doctor":  # it ends with 1 where something is missing
        return max(0, subprocess.run([sys.executable, "-m", "face2scene", "doctor"]).returncode - 1)
    if words[0] == "python":
        monkeypatch.setattr("sys.argv", [])
        return run_script(Path(words[1]).name, words[2:])
    monkeypatch.setattr("sys.argv", ["face2scene"])
    try:
        code = command_line.main(words[1:])
    except SystemExit as end:
        code = end.code or 0
    return code


def configs_of(page: str, folder: Path) -> Path:
    """The files of my_configs/ that a page shows."""
    for block in of_page(page, "yaml"):
        if named := re.match(r"# my_configs/(\S+)", block.text):
            (folder / named[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / named[1]).write_text(block.text, encoding="utf-8")
    return folder


def problem(one: Command, user: Path) -> str:
    """Why a command would be refused, or an empty text."""
    first, words = one.words[0], list(one.words[1:])
    try:
        if "accelerate" in one.words[:1] and "--config_file" in words:
            assert (REPOSITORY / words[words.index("--config_file") + 1]).is_file(), "no such file of accelerate"
        if one.script:
            composes(one.script, list(one.arguments), user)
        elif first == "face2scene":
            subcommand(words)
        elif first == "make":
            targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.M)
            assert words[0] in targets, "make has no such target"
        elif first == "pip":
            packages(words)
        elif first == "pytest":
            pytest_words(words)
        elif first == "docker":
            docker(words)
        elif first == "python":
            program(words)
        else:
            assert first in OTHER_PROGRAMS, "unknown program: add what it needs to tests/docs/test_code_blocks.py"
    except (AssertionError, ValueError, SystemExit, HydraException) as error:
        return str(error).partition("\n")[0] or type(error).__name__
    return ""


def composes(script: str, words: list[str], user: Path) -> None:
    """Read a command line as the script does, compose its configuration, and look for files of ours in it."""
    if words[:1] == ["submit"]:  # as the command line has it
        words = [f"submit={words[1]}", *words[2:]]
    read_words = read(script.replace("_", "-"), words)
    overrides = path_values(read_words.overrides)
    if "--config-dir" in read_words.hydra:
        assert "my_configs" in read_words.hydra
        overrides.append(f"hydra.searchpath=[file://{user}]")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose(script, overrides)
    for key in ("launch", "restorer_weights", "fadex_weights"):
        value = OmegaConf.select(cfg, key)
        if isinstance(value, str) and value.startswith(("configs/", "checkpoints/")):
            assert "third_party" in value or (REPOSITORY / value).exists(), f"{key}={value} is not there"


def subcommand(words: list[str]) -> None:
    """A command of `face2scene` that Hydra does not configure."""
    if words[0] == "rehearse":
        given = command_line._parser().commands["rehearse"].parse_intermixed_args(words[1:])
        composes("train_restorer", given.overrides, Path())
        return
    arguments = command_line._parser().parse_args(words)
    if words[0] == "fetch":
        catalogue.resolve(arguments.names)


def packages(words: list[str]) -> None:
    extras = read_toml(REPOSITORY / "pyproject.toml")["project"]["optional-dependencies"]
    for word in words[1:]:
        named = re.fullmatch(r"(?:face2scene|\.)(?:\[(.*)\])?", word)
        assert named or word in OTHER_PACKAGES or word == "-e", f"{word} is none of ours"
        unknown = set(filter(None, ((named and named[1]) or "").split(","))) - set(extras)
        assert not unknown, f"there are no extras {unknown}"


def pytest_words(words: list[str]) -> None:
    markers = read_toml(REPOSITORY / "pyproject.toml")["tool"]["pytest"]
    if "-m" in words:
        marker = words[words.index("-m") + 1]
        assert any(one.startswith(f"{marker}:") for one in markers["ini_options"]["markers"]), f"no marker {marker}"
    for word in words:
        assert not word.startswith("tests") or (REPOSITORY / word).exists(), f"there is no {word}"


def docker(words: list[str]) -> None:
    source = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    if words[0] == "build":
        given = [words[n + 1].partition("=")[0] for n, word in enumerate(words) if word == "--build-arg"]
        assert all(f"ARG {name}=" in source for name in given), "the Dockerfile has no such argument"
        return
    mounted = {words[n + 1].rpartition(":")[2] for n, word in enumerate(words) if word == "-v"}
    assert mounted <= {"/weights", "/data", "/work"} and all(place in source for place in mounted), "no such volume"
    own = words[words.index("face2scene") + 1 :]
    if own:
        composes(own[0], own[1:], Path())


def program(words: list[str]) -> None:
    """python FILE or python -m MODULE of ours, whose options stand in its source."""
    module = words[1].replace(".", "/") + ".py" if words[0] == "-m" else words[0]
    path = REPOSITORY / module
    assert path.is_file(), f"there is no {module}"
    source = path.read_text(encoding="utf-8")
    for word in words:
        assert not word.startswith("--") or f'"{word}"' in source, f"{module} has no {word}"
