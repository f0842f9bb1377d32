"""Processes."""

import os
import signal
import sys
import time
from pathlib import Path

from face2scene.common.processes import run_group


def test_timeout_kills_process_group(tmp_path):
    child = "import sys, time, os; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
    code = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-S', '-c', {child!r}, sys.argv[1]])\n"
        "time.sleep(600)"
    )
    place = tmp_path / "pid"
    ended = run_group([sys.executable, "-S", "-c", code, str(place)], log=tmp_path / "log.txt", timeout=3)
    assert ended.code == -signal.SIGKILL and "longer than 3 s" in ended.last_line
    child_id = int(place.read_text())
    for _ in range(200):
        if not Path(f"/proc/{child_id}").exists() or "Z" in Path(f"/proc/{child_id}/stat").read_text().split(")")[1]:
            return
        time.sleep(0.05)
    os.kill(child_id, signal.SIGKILL)
    raise AssertionError("a child outlived its program")


def test_process_memory_and_output(tmp_path):
    code = "block = bytearray(60 << 20); block[::4096] = b'x' * len(block[::4096]); print('made it');"
    code += "import time; time.sleep(0.5)"  # it is looked at now and then
    ended = run_group([sys.executable, "-S", "-c", code], log=tmp_path / "log.txt")
    assert ended.code == 0 and ended.last_line == "made it" and 60 <= ended.peak_memory_mib < 200
    assert run_group(["no-such-program"], log=tmp_path / "log.txt").last_line.startswith(
        "no-such-program cannot be run"
    )
