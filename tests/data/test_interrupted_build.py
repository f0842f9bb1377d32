"""A build that is killed at any moment and restarted gives the same bytes as one without interruption."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from drawn_sets import folder_bytes
from interrupted_builds import build_crashing_at, run_build
from killed_commands import run_script
from other_processes import finish, start

from face2scene.cli.main import main
from face2scene.common.files import disk_error
from face2scene.common.reproducibility import REPOSITORY
from face2scene.data.building.build import build
from face2scene.data.records import read_manifest
from face2scene.data.sources.generated import DrawnPeople, GeneratedPeople
from face2scene.data.sources.photo_source import PhotoInfo, PhotoSource


def test_killed_build_resumes_to_same_bytes(tmp_path):
    run_build(tmp_path / "whole", tmp_path / "trace_whole")
    dice, kills, folder, trace = random.Random(7), 0, tmp_path / "killed", tmp_path / "trace"
    while kills < 10:
        done_before = {path.stem for path in (folder / "parts").glob("*.json")} if folder.exists() else set()
        traced_before = len(trace.read_text().splitlines()) if trace.exists() else 0
        process = start(run_build, folder, trace, 0.05)
        while process.is_alive() and not trace.exists():
            time.sleep(0.01)  # a kill before the first item would prove nothing
        process.join(dice.uniform(0.02, 0.25))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        made = trace.read_text().splitlines()[traced_before:] if trace.exists() else []
        assert not done_before & set(made)  # what was finished was never begun again
        if (folder / "metadata.parquet").exists():
            shutil.rmtree(folder)  # it got through: the next kills meet a new build
    run_build(folder, trace)
    assert folder_bytes(folder) == folder_bytes(tmp_path / "whole")
    assert main(["data", "verify", str(folder)]) == 0


def test_crash_at_any_file_change_is_safe(tmp_path):
    run_build(tmp_path / "whole", tmp_path / "trace")
    whole = folder_bytes(tmp_path / "whole")
    assert finish(build_crashing_at, tmp_path / "count", tmp_path / "trace", -1, tmp_path / "calls") == 0
    changes = int((tmp_path / "calls").read_text())
    assert changes > 60
    joining = changes - 45  # the images' own part is the same over and over: every fifth of it
    for at in [*range(1, joining, 5), *range(joining, changes + 1)]:
        folder = tmp_path / f"crash{at}"
        assert finish(build_crashing_at, folder, tmp_path / "trace", at, tmp_path / "calls") == 9, at
        run_build(folder, tmp_path / "trace")
        assert folder_bytes(folder) == whole, at
        shutil.rmtree(folder)


def test_build_fixture_covers_all_decisions(tmp_path):
    summary = str(run_build(tmp_path / "whole", tmp_path / "trace") or "")
    records = read_manifest(tmp_path / "whole")
    assert {r.split for r in records} == {"train", "val"} and any(r.references for r in records)
    assert any(r.identity.startswith("drawn_p") for r in records) and any(r.lq for r in records)
    rejected = (tmp_path / "whole" / "rejected.jsonl").read_text()
    assert '"selection"' in rejected and "odd: on purpose" in rejected and summary == ""


def test_full_disk_stops_and_resumes(tmp_path, monkeypatch):
    from face2scene.data.building import build as module

    run_build(tmp_path / "whole", tmp_path / "trace")
    written, real = [], module.write_png

    def full(path, image):
        if len(written) == 7:
            Path("/dev/full").write_bytes(b"image")  # as on a disk without room: No space left on device
        written.append(path)
        real(path, image)

    monkeypatch.setattr(module, "write_png", full)
    with pytest.raises(OSError, match="No space left"):
        run_build(tmp_path / "set", tmp_path / "trace")
    assert not list((tmp_path / "set").rglob("*.partial*"))
    monkeypatch.setattr(module, "write_png", real)
    run_build(tmp_path / "set", tmp_path / "trace")
    assert folder_bytes(tmp_path / "set") == folder_bytes(tmp_path / "whole")


@pytest.mark.slow  # not for its time: it needs a user who may mount
def test_full_tmpfs_is_reported(tmp_path):
    """On a file system of 256 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], check=True)
    try:
        people = {"train_people": 20, "train_shots": 3, "size": 64}
        source = GeneratedPeople(lambda: DrawnPeople(side=64), None, name="drawn", licence="CC0-1.0", **people)
        with pytest.raises((OSError, sqlite3.OperationalError)) as caught:
            build(place / "set", [source], settings={}, space=None)
        assert "Nothing more can be written" in disk_error(caught.value)
        assert not list(place.rglob("*.partial*"))
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_read_error_is_not_full_disk(tmp_path):
    class Broken(PhotoSource):
        def read(self, path):
            raise OSError(5, "Input/output error")

    (tmp_path / "a.png").write_bytes(b"x")
    source = Broken(None, name="p", size=32, licence="mine", stages=[])
    made = source.process(tmp_path / "a.png", "a", PhotoInfo("a.png"))
    assert made.stage == "input" and "Input/output error" in made.reason


# The same from the command line, with real processes; minutes.


def build_command(folder: Path, *overrides: str, processes: int = 1) -> list[str]:
    launcher = []
    if processes > 1:
        launcher = [
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            str(REPOSITORY / "configs/accelerate/cpu_two.yaml"),
        ]
    return [sys.executable, *launcher, str(REPOSITORY / "scripts/build_inscene.py"), f"data.root={folder}", *overrides]


# Sixty images of twelve people each; drawn ones, and the packaged generator's if asked for.
BUILD_OVERRIDES = {
    "drawn": [
        *("data=tiny", "faces=none", "data.size=192", "data.sources.drawn.generator.side=384"),
        *("data.sources.drawn.train_people=9", "data.sources.drawn.train_shots=5"),
        *("data.sources.drawn.val_people=3", "data.sources.drawn.val_shots=5", "+data.report=true"),
    ],
    "facegen": ["data=inscene_facegen", "data.size=256"],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", os.environ.get("FACE2SCENE_KILL_SETS", "drawn").split(","))
def test_killed_command_resumes_to_same_bytes(tmp_path, kind):
    begin = time.monotonic()
    given = [f"data.root={tmp_path}/whole", *BUILD_OVERRIDES[kind]]
    assert finish(run_script, "build_inscene.py", given, within=1200) == 0
    length, dice = time.monotonic() - begin, random.Random(11)
    folder, kills, seen = tmp_path / "killed", 0, {}
    given = [f"data.root={folder}", *BUILD_OVERRIDES[kind]]
    while kills < 10:
        process = start(run_script, "build_inscene.py", given)
        while not (folder / "build.json").exists():
            time.sleep(0.02)  # a kill before the first write would prove nothing
        process.join(dice.uniform(0.0, length / 2))
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:  # it got through: the next kills meet a new build
            assert process.exitcode == 0
            shutil.rmtree(folder)
            seen = {}
            continue
        kills += 1
        print("killed with", len(list((folder / "parts").glob("*.json"))), "items done")
        now = {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (folder / "parts").glob("*.json")}
        assert all(now.get(name, state) == state for name, state in seen.items())  # no finished item was written again
        seen = now
    assert finish(run_script, "build_inscene.py", given, within=1200) == 0
    assert folder_bytes(folder) == folder_bytes(tmp_path / "whole")
    assert len(read_manifest(folder)) == 60 and len({r.identity for r in read_manifest(folder)}) == 12
    assert main(["data", "verify", str(folder)]) == 0


@pytest.mark.slow
def test_two_process_command_equals_one(tmp_path):
    options = BUILD_OVERRIDES["drawn"]
    subprocess.run(build_command(tmp_path / "one", *options), cwd=tmp_path, check=True, timeout=1200)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    two = build_command(tmp_path / "two", *options, processes=2)
    done = subprocess.run(two, cwd=tmp_path, env=environment, check=True, timeout=1200, capture_output=True, text=True)
    assert done.stdout.count("60 images of 12 people") == 1  # one of them prints
    assert folder_bytes(tmp_path / "two") == folder_bytes(tmp_path / "one")
