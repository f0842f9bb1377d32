"""The package as users install it: built, installed elsewhere, and started in a folder that is no checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from contextlib import suppress
from email import message_from_bytes
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from face2scene.common.reproducibility import REPOSITORY

SOURCES = ("face2scene", "configs", "checkpoints", "setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE")
LARGEST = 40e6  # bytes of the wheel
COMMANDS = """
import sys
from hydra.core.global_hydra import GlobalHydra
from face2scene.cli.main import main
from face2scene.cli.options import COMMANDS
main(["fetch", "--list"])
for words in [*([name, "--cfg", "job", "--resolve"] for name in COMMANDS),
              ["run-baseline"], ["sweep", "--dry-run"]]:
    GlobalHydra.instance().clear()
    print("====", *words)
    try:
        main(words)
    except SystemExit as end:
        assert not end.code, (words, end.code)
"""
PYTHON = """
from face2scene import Face2ScenePipeline
Face2ScenePipeline.from_pretrained("photo")("photo.png").save("python.png")
"""


def run(*words: str | Path, folder: Path | None = None) -> str:
    """Output of a program in an environment without settings of ours, and a user's folders that are empty."""
    ours = [name for name in os.environ if name == "PYTHONPATH" or name.startswith("FACE2SCENE_")]
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    options = {"capture_output": True, "text": True, "timeout": 1500, "env": environment, "cwd": folder}
    with tempfile.TemporaryDirectory() as empty:
        environment["XDG_CACHE_HOME"] = empty
        done = subprocess.run(words, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """From a source archive, as an index has it; in a copy, since a build leaves files among the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (REPOSITORY / name).is_dir():
            left_out = shutil.ignore_patterns("__pycache__", "third_party")
            shutil.copytree(REPOSITORY / name, folder / "source" / name, ignore=left_out)
        else:
            shutil.copy(REPOSITORY / name, folder / "source")
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, folder, folder=folder / "source")
    (archive,) = folder.glob("*.tar.gz")
    offline = ("--no-deps", "--no-index", "--no-build-isolation")
    run(sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", folder, archive)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Folder of the programs of a new environment, which has the wheel and the packages that it requires, no extras."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    offline = ("--no-deps", "--no-index", "--no-compile")
    run(sys.executable, "-m", "pip", "--python", programs / "python", "install", *offline, wheel)
    packages = Path(run(programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # not sitecustomize, which some systems have one of
    (packages / "without_extras.py").write_text(
        f"import sys\nsys.modules.update(dict.fromkeys({not_required(wheel)}))\n"
    )
    (packages / "without_extras.pth").write_text("import without_extras\n")
    # a plain line: the .pth files over there, one of which leads to the checkout, are not read
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    return programs


def not_required(wheel: Path) -> list[str]:
    """Import names of this environment's packages that neither the wheel requires nor what it requires."""
    with zipfile.ZipFile(wheel) as archive:
        (file,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        wanted = message_from_bytes(archive.read(file)).get_all("Requires-Dist")
    core = {"face2scene"}
    while wanted:
        requirement = Requirement(wanted.pop())
        name = canonicalize_name(requirement.name)
        if name in core or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        core.add(name)
        with suppress(metadata.PackageNotFoundError):
            wanted += metadata.requires(name) or ()
    modules: dict[bool, set[str]] = {True: set(), False: set()}
    for one in metadata.distributions():  # by their files: top_level.txt does not name every module
        names = {file.parts[0].partition(".")[0] for file in one.files or () if file.suffix in (".py", ".so", ".pyd")}
        modules[canonicalize_name(one.name) in core] |= names
    return sorted(name for name in modules[False] - modules[True] if name.isidentifier())


def test_extras_are_out_of_reach(installed):
    """What the tests below show, they show for the required packages alone."""
    program = (
        "import importlib.util; print([n for n in ('cv2', 'dlib', 'pyiqa', 'gradio') if importlib.util.find_spec(n)])"
    )
    assert run(installed / "python", "-c", program).strip() == "[]"


@pytest.fixture
def elsewhere(installed, tmp_path, monkeypatch) -> Path:
    """Inside, the working folder is empty."""
    monkeypatch.chdir(tmp_path)
    return installed


def test_wheel_holds_what_inference_needs(wheel):
    assert wheel.stat().st_size < LARGEST
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = [path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "configs").rglob("*.yaml")]
    assert {f"face2scene/{name}" for name in configs} <= names
    weights = [path for path in (REPOSITORY / "checkpoints/tiny").rglob("*.safetensors")]
    assert {f"face2scene/{path.relative_to(REPOSITORY).as_posix()}" for path in weights} <= names
    modules = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "face2scene").rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}
    assert not [name for name in names if "third_party" in name or "/log/" in name]


def test_installed_wheel_restores_in_empty_folder(elsewhere, photo):
    Image.fromarray((photo[:128, 192:320] * 255).round().astype(np.uint8)).save("photo.png")
    out = run(elsewhere / "face2scene", "restore", "photo.png")
    assert "1 restored" in out and sorted(os.listdir()) == ["photo.png", "restored"]
    (line,) = (json.loads(text) for text in Path("restored/restore.jsonl").read_text().splitlines())
    assert "pip install" not in str(line)  # the default lacks nothing
    assert line["provenance"]["commit"] == "unknown"
    run(elsewhere / "python", "-c", PYTHON)
    assert Path("python.png").read_bytes() == Path("restored/images/photo.png").read_bytes()


def test_installed_commands_find_what_ships(elsewhere):
    out = run(elsewhere / "python", "-c", COMMANDS)
    assert str(REPOSITORY) not in out
    assert f"shipped: {elsewhere.parent}" in out and "-m face2scene restore" in out
    assert "SUPIR" in out and not os.listdir()
