"""A command that is started while another process works in its folder says so and changes nothing."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scripts_here import SHIPPED, TINY, run_script

from face2scene.cli.main import main
from face2scene.image_io.arrays import write_png

HOLD = """
import sys
from face2scene.common.locks import locked
with locked(sys.argv[1], "", name=sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held(own_argv):
    """Lets another process hold a folder."""
    started = []

    def start(folder: Path, name: str = ".lock") -> int:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([sys.executable, "-c", HOLD, str(folder), name], **pipes))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1].pid

    yield start
    for process in started:
        process.communicate()


def says_who(capsys, code: int, holder: int, folder: Path, name: str = ".lock") -> None:
    said = capsys.readouterr().err.strip().splitlines()
    assert code == 1 and f"is in use by process {holder} on " in said[-1] and "Traceback" not in "".join(said)
    assert [path.name for path in folder.rglob("*")] == [name]


def test_second_training(tmp_path, held, tiny_set, capsys, no_accelerator_of_another_test):
    holder = held(tmp_path / "runs/run")
    options = [*TINY, f"data.root={tiny_set}", "name=run", f"paths.runs={tmp_path}/runs", SHIPPED]
    says_who(capsys, run_script("train_fadex.py", options), holder, tmp_path / "runs/run")


def test_second_build(tmp_path, held, capsys, no_accelerator_of_another_test):
    holder = held(tmp_path / "set")
    options = ["data=tiny", "degradation=tiny", "faces=none", f"data.root={tmp_path}/set", "data.overwrite=true"]
    says_who(capsys, run_script("build_inscene.py", options), holder, tmp_path / "set")


def test_second_restore(tmp_path, held, capsys, no_accelerator_of_another_test):
    write_png(tmp_path / "a.png", np.full((64, 64, 3), 0.5, np.float32))
    holder = held(tmp_path / "out")
    options = [f"input={tmp_path}/a.png", f"output={tmp_path}/out", "faces=none", "device=cpu", SHIPPED]
    says_who(capsys, run_script("restore.py", options), holder, tmp_path / "out")


def test_second_sweep(tmp_path, held, tiny_set, capsys, no_accelerator_of_another_test):
    holder = held(tmp_path / "runs/s", ".sweep.lock")
    options = ["sweep=cfg", "data=tiny", f"data.root={tiny_set}", "name=s", f"paths.runs={tmp_path}/runs", SHIPPED]
    says_who(capsys, run_script("sweep.py", options), holder, tmp_path / "runs/s", ".sweep.lock")


def test_second_precompute(tmp_path, held, tiny_set, capsys, no_accelerator_of_another_test):
    from face2scene.common.ledger import digest

    options = [
        "data=tiny",
        f"data.root={tiny_set}",
        "degradation=tiny",
        "ref_fr=faceme_tiny",
        "ref_fr.steps=1",
        f"cache={tmp_path}/cache",
    ]
    assert run_script("precompute_ref_fr.py", [*options, "splits=[]"]) == 0  # makes the folder of this restorer
    (folder,) = (tmp_path / "cache").iterdir()
    name = f".{digest([str(tiny_set), ['train']])}.lock"
    holder = held(folder, name)
    capsys.readouterr()
    code = run_script("precompute_ref_fr.py", [*options, "splits=[train]"])
    said = capsys.readouterr().err.strip().splitlines()
    assert code == 1 and f"is in use by process {holder} on " in said[-1]
    assert [path.name for path in folder.rglob("*")] == [name]


def run_writer(what: str, folder: Path, tiny_set: Path) -> int:
    """A command that writes into `folder`."""
    data = ["data=tiny", f"data.root={tiny_set}"]
    scored = [f"gt={tiny_set}", "metrics=[psnr]", f"paths.runs={folder.parent}", f"name={folder.name}", "device=cpu"]
    words = {
        "redegrade": [*data, f"output={folder}", "degradation=mild"],
        "export": [f"output={folder}", "parts=[merged]", SHIPPED],
        "run_baseline": ["baseline=bicubic", f"input={tiny_set}", *scored],
        "eval": [f"predictions={tiny_set}/lq/val/000", *scored],
    }
    if what == "pack":
        return main(["data", "pack", str(tiny_set), str(folder)])
    return run_script(f"{what}.py", words[what])


WRITERS = [
    ("redegrade", ".lock"),
    ("export", ".lock"),
    ("run_baseline", ".lock"),
    ("eval", ".eval.lock"),
    ("pack", ".lock"),
]


@pytest.mark.parametrize(("what", "lock"), WRITERS)
def test_second_writer(what, lock, tmp_path, held, tiny_set, capsys, no_accelerator_of_another_test):
    holder = held(tmp_path / "out", lock)
    says_who(capsys, run_writer(what, tmp_path / "out", tiny_set), holder, tmp_path / "out", lock)


@pytest.mark.parametrize("what", [what for what, _ in WRITERS])
def test_leftovers_of_a_killed_writer(what, tmp_path, tiny_set, own_argv, no_accelerator_of_another_test):
    assert run_writer(what, tmp_path / "out", tiny_set) == 0
    (tmp_path / "out/metadata.parquet").unlink(missing_ok=True)  # of a set, whose last rename a kill prevented
    left = tmp_path / "out/.left.999999.partial.json"
    left.write_text("half")
    os.utime(left, (0, 0))
    assert run_writer(what, tmp_path / "out", tiny_set) == 0
    assert not list((tmp_path / "out").rglob(".*"))
