"""One process at a time works in a folder."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from face2scene.common import locks
from face2scene.common.locks import FolderInUse, locked

HOLD = """
import sys, time
from face2scene.common.locks import locked
with locked(sys.argv[1], "choose another"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold():
    """Starts a process that holds a folder until its input is closed."""
    started = []

    def start(folder: Path) -> subprocess.Popen:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], **pipes))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.communicate()


def test_second_process_is_told_who_holds(tmp_path, hold):
    holder = hold(tmp_path / "set")
    before = (tmp_path / "set/.lock").read_bytes()
    said = (
        rf"set is in use by process {holder.pid} on .+ since 20\d\d-.*\. Wait until it has ended, or choose another\."
    )
    with pytest.raises(FolderInUse, match=said), locked(tmp_path / "set", "choose another"):
        raise AssertionError("it was entered")
    assert [path.name for path in (tmp_path / "set").iterdir()] == [".lock"]
    assert (tmp_path / "set/.lock").read_bytes() == before


def test_folder_is_free_and_clean_afterwards(tmp_path, hold):
    hold(tmp_path / "set").communicate()
    assert not list((tmp_path / "set").iterdir())
    with locked(tmp_path / "set", ""), locked(tmp_path / "set", ""):  # the same process may enter again
        assert (tmp_path / "set/.lock").exists()
    assert not list((tmp_path / "set").iterdir())


def test_lock_of_killed_process_is_recognised(tmp_path, hold, caplog):
    holder = hold(tmp_path)
    holder.kill()
    holder.wait()
    with locked(tmp_path, ""):
        assert re.search(rf"was left by process {holder.pid} on .*, which has ended; going on", caplog.text)
        assert f'"pid": {os.getpid()}' in (tmp_path / ".lock").read_text()


@pytest.mark.parametrize("content", [b"", b'{"pid": 3', b"\0\0\0", b"[1]"])
def test_damaged_lock_file_does_not_hinder(tmp_path, content):
    (tmp_path / ".lock").write_bytes(content)
    with locked(tmp_path, ""):
        assert f'"pid": {os.getpid()}' in (tmp_path / ".lock").read_text()


def test_forked_worker_does_not_keep_the_folder(tmp_path):
    code = """
import os, sys, time
from face2scene.common.locks import locked
begun, begin = os.pipe()
with locked(sys.argv[1], ""):
    worker = os.fork()
    if worker == 0:
        os.write(begin, b"x")
        time.sleep(60)
        os._exit(0)
    os.read(begun, 1)  # until the worker runs
    print(worker, flush=True)
    os.kill(os.getpid(), 9)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    process.wait()
    try:
        with locked(tmp_path, ""):
            assert (tmp_path / ".lock").exists()
    finally:
        os.kill(worker, signal.SIGKILL)
        process.stdout.close()


def test_read_only_folder_is_not_held(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(locks.os, "open", refuse)
    with locked(tmp_path, ""):
        assert not list(tmp_path.iterdir())


def test_file_system_without_locks_warns(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(37, os.strerror(37))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with locked(tmp_path, ""):
        assert "cannot be locked" in caplog.text
