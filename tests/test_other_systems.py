"""Without what only Unix has: the core imports, restores, locks and runs programs; files are the same bytes."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from face2scene.common.ledger import content
from face2scene.common.memory import best_device
from face2scene.common.reproducibility import REPOSITORY
from face2scene.image_io.arrays import list_files, write_png

# Modules and functions that Windows lacks are taken away, and its locks put in their place. Libraries, which have ways
# of their own there, are imported before.
AS_ON_WINDOWS = """
import fcntl, logging, os, psutil, random, subprocess, sys, types
flock, exclusive = fcntl.flock, fcntl.LOCK_EX | fcntl.LOCK_NB
for name in ("fcntl", "resource"):
    sys.modules[name] = None
for name in ("killpg", "setsid", "getpgid", "register_at_fork", "sched_getaffinity", "pread", "pwrite", "sysconf"):
    delattr(os, name)
def locking(descriptor, mode, count):
    try:
        flock(descriptor, exclusive)
    except BlockingIOError as error:
        raise PermissionError(13, "Permission denied") from error
sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=locking)
"""
LIBRARIES = """
import accelerate, hydra, peft, torch, torchvision
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import AutoTokenizer, CLIPTextModel
"""
USES = """
import json, subprocess, time
from face2scene.common.locks import FolderInUse, locked
from face2scene.common.memory import free_memory, peak_memory
from face2scene.common.processes import run_group

with locked("held", "wait"):
    try:
        subprocess.run([sys.executable, "-c", sys.argv[1]], check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        said = error.stderr
with locked("held", "wait"):
    pass
ended = run_group([sys.executable, "-S", "-c", "print('made it')"], log="log.txt")
child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)']); "
start = time.monotonic()
killed = run_group([sys.executable, "-S", "-c", child + "time.sleep(600)"], log="log.txt", timeout=2)
print(json.dumps({
    "said": said, "ended": ended.last_line, "killed": killed.timed_out, "seconds": time.monotonic() - start,
    "free": free_memory(), "peak": peak_memory(), "left": os.listdir("held"),
}))
from face2scene.cli.main import main
main(["restore", "input=photo.png", "output=out", "faces=none"])
"""
HOLDS = AS_ON_WINDOWS + "from face2scene.common.locks import locked\nwith locked('held', 'wait'): pass"


def test_core_runs_without_unix_modules(tmp_path):
    write_png(tmp_path / "photo.png", np.full((64, 64, 3), 0.5, np.float32))
    words = [sys.executable, "-c", LIBRARIES + AS_ON_WINDOWS + USES, HOLDS]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert "held is in use by process" in found["said"] and found["left"] == []
    assert found["ended"] == "made it" and found["killed"] and found["seconds"] < 500
    assert found["free"] > 2**20 and found["peak"] > 2**20
    assert "1 restored" in done.stdout and (tmp_path / "out/images/photo.png").is_file()


@pytest.mark.parametrize(("cuda", "mps", "best"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_best_device_is_cuda_then_mps(monkeypatch, cuda, mps, best):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert best_device().type == best


def test_written_text_has_the_same_newlines_everywhere():
    """Windows writes CR LF where `newline` is not given, and checksums of files would differ."""
    found = []
    for path in sorted((REPOSITORY / "face2scene").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            mode = next((a.value for a in node.args[1:2] if isinstance(a, ast.Constant)), "")
            opens = name in ("open", "fdopen") and mode in ("w", "a", "x", "wt", "at")
            given = {keyword.arg for keyword in node.keywords}
            if (name == "write_text" or opens) and "newline" not in given:
                found.append(f"{path.relative_to(REPOSITORY)}:{node.lineno} {ast.unparse(node)}")
    allowed = ("'/proc/self/clear_refs'", "open(os.devnull", "tarfile.open(")
    assert [line for line in found if not any(part in line for part in allowed)] == []


def test_files_are_in_the_order_of_their_bytes(tmp_path, monkeypatch):
    for name in ("b.txt", "B.txt", "a/c.txt", "a.txt", "C/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    names, digest = [path.relative_to(tmp_path).as_posix() for path in list_files(tmp_path)], content(tmp_path)
    assert names == ["B.txt", "C/d.txt", "a/c.txt", "a.txt", "b.txt"]
    # as paths compare on Windows, without case
    monkeypatch.setattr(type(tmp_path), "__lt__", lambda one, other: str(one).lower() < str(other).lower())
    assert sorted(tmp_path.glob("*.txt"))[0].name == "a.txt"
    assert [path.relative_to(tmp_path).as_posix() for path in list_files(tmp_path)] == names
    assert content(tmp_path) == digest


def test_names_in_records_have_forward_slashes():
    folder = Path("a") / "b"
    from face2scene.common.shipped import CHECKPOINTS, portable, shipped

    recorded = portable({"source": str(CHECKPOINTS / "tiny" / "base"), "other": [str(folder)]})
    assert recorded == {"source": "checkpoints/tiny/base", "other": [str(folder)]}
    assert shipped(recorded["source"]) == CHECKPOINTS / "tiny/base" and shipped("checkpoints/gone") is None
