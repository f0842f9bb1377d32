"""Nothing that a stranger made runs code: no full unpickling, no remote code, no program started for an image."""

import ast
import os
import pickle
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from face2scene.common.reproducibility import REPOSITORY
from face2scene.image_io.metadata import OPENED, shot_of
from face2scene.image_io.photos import ImageError, read_photo

FILES = [
    path for folder in ("face2scene", "scripts", "benchmarks") for path in sorted((REPOSITORY / folder).rglob("*.py"))
]
# What a call of this name has to say, or the names of modules that must not be called at all.
SAYS = {
    "torch.load": ("weights_only", "True"),
    "np.load": ("allow_pickle", "False"),
    "datasets.load_dataset": ("trust_remote_code", "False"),
    "Image.open": ("formats", None),
    "yaml.load": ("Loader", None),
}
NEVER = (
    *("pickle.load", "pickle.loads", "cPickle.load", "cPickle.loads", "dill.load", "joblib.load", "shelve.open"),
    *("marshal.load", "marshal.loads", "pd.read_pickle", "yaml.unsafe_load", "yaml.full_load", "eval", "exec"),
    *("accelerator.load_state", "accelerator.save_state", "os.system", "os.popen"),
)
# Classes that would run code of a hub's repository, if they were let.
CODE_OF_HUB = (
    "AutoModel",
    "AutoTokenizer",
    "AutoConfig",
    "AutoProcessor",
    "AutoImage",
    "AutoPipe",
    "DiffusionPipeline",
)
SAFE_LOADERS = ("SafeLoader", "CSafeLoader", "BaseLoader")
# Files of the catalogue with known hashes: TorchScript, and a pickle through an unpickler that knows numpy alone.
EXCEPTIONS = {("face2scene/assets/convert.py", "torch.jit.load"), ("face2scene/assets/convert.py", "pickle.Unpickler")}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Dotted names of the functions that a file calls; of deeper ones the last two parts."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def unsafe(name: str, call: ast.Call) -> str:
    given = {word.arg: ast.unparse(word.value) for word in call.keywords}
    for known, (option, value) in SAYS.items():
        if name == known and (option not in given or (value is not None and given[option] != value)):
            return f"{name} without {option}={value or '...'}"
    if name == "yaml.load" and not any(loader in given["Loader"] for loader in SAFE_LOADERS):
        return "yaml.load with another loader"
    last = name.rpartition(".")[0].rpartition(".")[2]
    if name.endswith(".from_pretrained") and last.startswith(CODE_OF_HUB):
        return "" if given.get("trust_remote_code") == "False" else f"{name} without trust_remote_code=False"
    if given.get("trust_remote_code", "False") != "False" or given.get("shell", "False") != "False":
        return f"{name} trusts code or a shell"
    return f"{name} is never needed" if name in NEVER else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_no_unsafe_load(path):
    found = [f"{path.name}:{call.lineno} {reason}" for name, call in calls(path) if (reason := unsafe(name, call))]
    assert not found, found


def test_exceptions_are_two_and_named():
    seen = {
        (path.relative_to(REPOSITORY).as_posix(), name)
        for path in FILES
        for name, _ in calls(path)
        if name in ("torch.jit.load", "pickle.Unpickler")
    }
    subclasses = {
        (path.relative_to(REPOSITORY).as_posix(), "pickle.Unpickler")
        for path in FILES
        if "(pickle.Unpickler)" in path.read_text(encoding="utf-8")
    }
    assert seen | subclasses == EXCEPTIONS


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "pickle.loads(data)",
        "yaml.load(text, Loader=yaml.Loader)",
        "AutoTokenizer.from_pretrained(name)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "Image.open(path)",
        "subprocess.run(line, shell=True)",
        "accelerator.load_state(folder)",
    ],
)
def test_check_finds_unsafe_calls(tmp_path, line):
    (tmp_path / "a.py").write_text(line)
    assert [reason for name, call in calls(tmp_path / "a.py") if (reason := unsafe(name, call))]


@pytest.fixture
def ghostscript(tmp_path, monkeypatch) -> Path:
    """A program `gs` on the path that notes that it was started."""
    program, note = tmp_path / "bin/gs", tmp_path / "started"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho x >> {note}\nexit 1\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return note


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".eps", ".ps", ".heic"])
def test_postscript_never_reaches_ghostscript(tmp_path, ghostscript, suffix):
    path = tmp_path / f"photo{suffix}"
    Image.new("RGB", (20, 20)).save(path, format="EPS")
    with pytest.raises(ImageError):
        read_photo(path)
    assert shot_of(path) is None
    assert "EPS" not in OPENED and not ghostscript.exists()


class RunsCode:
    def __init__(self, note: Path):
        self.note = note

    def __reduce__(self):
        return (Path.touch, (self.note,))


def test_pickle_in_place_of_weights_runs_nothing(tmp_path):
    from face2scene.common.model_files import load_weights

    path, note = tmp_path / "fadex.safetensors", tmp_path / "ran"
    path.write_bytes(pickle.dumps(RunsCode(note)))
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_weights(path, kind="fadex")
    torch.save({"a": RunsCode(note)}, tmp_path / "a.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pt", weights_only=True)
    assert not note.exists()
