"""External programs as process groups: run, timed, and killed with their child processes."""

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter, sleep


@dataclass(frozen=True)
class ProcessResult:
    """Exit code, cost and last output of a program."""

    code: int | None  # None: it could not be started
    seconds: float
    peak_memory_mib: int | None  # largest resident memory of one of its processes, polled
    peak_gpu_memory_mib: int | None  # of all its processes together, by nvidia-smi; None without a GPU
    last_line: str  # of its output; the reason if it was not started or was killed
    timed_out: bool = False

    def __str__(self) -> str:
        return f"exit code {self.code}, last line: {self.last_line}"


def run_group(
    words: Sequence[str],
    *,
    log: str | Path,
    folder: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> ProcessResult:
    """Run a program without a shell, in a process group of its own, and wait for it.

    When the wait ends for any reason (timeout, Ctrl-C, an error), the whole group is killed.

    Args:
        log: file that its output is appended to.
        environment: variables added to this process's.
        timeout: in seconds; None waits without limit.
    """
    log = Path(log)
    log.parent.mkdir(parents=True, exist_ok=True)
    start = perf_counter()
    with open(log, "ab") as output:
        begin = output.tell()
        try:
            process = subprocess.Popen(
                list(words),
                cwd=folder,
                env=os.environ | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return ProcessResult(None, 0.0, None, None, f"{words[0]} cannot be run ({error.strerror})")
        watch = _GpuWatch(process.pid)
        reason, peak = "", 0
        try:
            peak = _wait(process, timeout)
        except subprocess.TimeoutExpired:
            reason = f"it took longer than {timeout:g} s and was ended"
        finally:
            _kill(process.pid)
            process.wait()
            peak_gpu = watch.stop()
    seconds, line = perf_counter() - start, reason or last_line(log, begin)
    return ProcessResult(process.returncode, seconds, peak // 1024 or None, peak_gpu, line, timed_out=bool(reason))


def last_line(log: str | Path, begin: int = 0) -> str:
    """The last line of `log` after byte `begin` that is not empty, cut to 300 characters."""
    with open(log, "rb") as file:
        file.seek(max(begin, file.seek(0, os.SEEK_END) - 20_000))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def _wait(process: subprocess.Popen, timeout: float | None) -> int:
    # Memory is polled in /proc, because wait4's figure includes this process, which the child was forked from.
    deadline = None if timeout is None else monotonic() + timeout
    pause, peak = 0.005, 0
    while process.poll() is None:
        if deadline is not None and monotonic() > deadline:
            raise subprocess.TimeoutExpired(process.args, timeout or 0.0)
        peak = max(peak, _peak_memory(process.pid))
        sleep(pause)
        pause = min(0.3, pause * 1.3)
    return peak


def _peak_memory(group: int) -> int:
    """Largest VmHWM in KiB among the processes of a group; 0 where there is no /proc."""
    peak = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if os.getpgid(int(status.parent.name)) == group:
                lines = status.read_text().splitlines()
                peak = max(peak, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM")))
        except (OSError, TypeError, ValueError):
            continue  # the process ended meanwhile
    return peak


def _kill(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # no process of it is left
        os.killpg(group, signal.SIGKILL)


class _GpuWatch:
    """Polls the largest GPU memory of a process group with nvidia-smi, twice a second."""

    def __init__(self, group: int):
        self.group, self.peak = group, 0
        self.tool = shutil.which("nvidia-smi")
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        if self.tool:
            self._thread.start()

    def _look(self) -> None:
        assert self.tool
        query = [self.tool, "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
        while not self._end.wait(0.5):
            try:
                answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
            except (OSError, subprocess.SubprocessError):
                return
            used = 0
            for line in answer.splitlines():
                pid, _, memory = line.partition(",")
                if memory.strip().isdigit() and self._ours(int(pid)):
                    used += int(memory)
            self.peak = max(self.peak, used)

    def _ours(self, pid: int) -> bool:
        try:
            return os.getpgid(pid) == self.group
        except ProcessLookupError:
            return False

    def stop(self) -> int | None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(timeout=11)
        return self.peak or None
