"""Processes."""

import os
import signal
import subprocess
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


def ends_soon(process_id: int) -> bool:
    for _ in range(200):
        stat = Path(f"/proc/{process_id}/stat")
        try:
            if stat.read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    os.kill(process_id, signal.SIGKILL)
    return False


SLEEP = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(600)"


def test_killed_caller_takes_its_group_along(tmp_path):
    inner = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {SLEEP!r}])"
    code = (
        "import sys; from face2scene.common.processes import run_group\n"
        f"run_group([sys.executable, '-S', '-c', {inner!r}], log=sys.argv[1])"
    )
    caller = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "log.txt")])
    while not (tmp_path / "log.txt").is_file() or not (tmp_path / "log.txt").read_text().endswith("\n"):
        assert caller.poll() is None
        time.sleep(0.02)
    caller.kill()
    caller.wait()
    assert ends_soon(int((tmp_path / "log.txt").read_text()))


def test_killed_launcher_takes_its_script_along():
    script = f"from face2scene.common.processes import end_with_launcher; end_with_launcher(); {SLEEP}"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {script!r}])"
    environment = os.environ | {"ACCELERATE_MIXED_PRECISION": "no"}
    launcher = subprocess.Popen([sys.executable, "-S", "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    with launcher.stdout:
        script_id = int(launcher.stdout.readline())
    launcher.kill()
    launcher.wait()
    assert ends_soon(script_id)


def test_watch_ends_with_the_program(tmp_path):
    before = {path.name for path in Path("/proc").glob("[0-9]*")}
    assert run_group([sys.executable, "-S", "-c", "pass"], log=tmp_path / "log.txt").code == 0
    own = [p for p in Path("/proc").glob("[0-9]*/stat") if p.parent.name not in before and is_child(p)]
    assert not own


def is_child(stat: Path) -> bool:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid()
    except (OSError, ValueError):
        return False
