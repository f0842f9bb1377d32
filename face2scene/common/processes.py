"""Processes that end with the one that started them: external programs as process groups, and launched scripts."""

import ctypes
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import psutil


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

    When the wait ends for any reason (timeout, Ctrl-C, an error), or this process is killed, the whole group is killed.

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
        watch, reason = _MemoryWatch(process.pid), ""
        watch.start()
        try:
            with killed_with_this_process(-process.pid):
                process.wait(math.inf if timeout is None else timeout)  # with a timeout it polls: signals are seen
        except subprocess.TimeoutExpired:
            reason = f"it took longer than {timeout:g} s and was ended"
        finally:
            _kill_group(process.pid)
            process.wait()
            watch.ended.set()
            watch.join()
    seconds, line = perf_counter() - start, reason or last_line(log, begin)
    peaks = (watch.peak_kib // 1024 or None, watch.peak_gpu_mib or None)
    return ProcessResult(process.returncode, seconds, *peaks, line, timed_out=bool(reason))


@contextmanager
def killed_with_this_process(target: int) -> Iterator[None]:
    """Inside, `target` (a process, or minus a group) is killed if this process ends in any way, SIGKILL included."""
    # The watch's input ends when the last process that holds the other end of the pipe has ended.
    words = ["/bin/sh", "-c", 'read -r _; kill -s KILL -- "$1"', "watch", str(target)]
    if os.name == "nt":
        code = "import sys; from face2scene.common.processes import _kill_group; sys.stdin.read(); _kill_group({})"
        words = [sys.executable, "-c", code.format(abs(target))]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    watch = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True, **quiet)  # type: ignore[call-overload]
    try:
        yield
    finally:
        watch.kill()
        watch.communicate()


def end_with_launcher() -> None:
    """Let this process be killed when the `accelerate launch` that started it ends, SIGKILL included."""
    if "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()


def end_with_parent() -> None:
    """Let this process be killed when the thread that started it ends (PR_SET_PDEATHSIG; on Linux alone)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


def _kill_group(leader: int) -> None:
    """Kill a process group by its leader; where there are no groups (Windows), the leader and what it has started."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):  # no process of it is left
            os.killpg(leader, signal.SIGKILL)
        return
    for process in _started_by(leader):
        with suppress(psutil.Error):
            process.kill()


def _started_by(process: int) -> list[psutil.Process]:
    """A process and all that it has started; without those that have ended."""
    with suppress(psutil.Error):
        return [psutil.Process(process), *psutil.Process(process).children(recursive=True)]
    return []


def last_line(log: str | Path, begin: int = 0) -> str:
    """The last line of `log` after byte `begin` that is not empty, cut to 300 characters."""
    with open(log, "rb") as file:
        file.seek(max(begin, file.seek(0, os.SEEK_END) - 20_000))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


class _MemoryWatch(threading.Thread):
    """Polls the memory of a process and those that it starts, and their GPU memory with nvidia-smi."""

    def __init__(self, group: int):
        super().__init__(daemon=True)
        self.group, self.peak_kib, self.peak_gpu_mib = group, 0, 0
        self.ended = threading.Event()

    def run(self) -> None:
        # wait4's figure would include this process, which the child was forked from.
        smi, pause = shutil.which("nvidia-smi"), 0.005
        while not self.ended.wait(pause):
            self.peak_kib = max(self.peak_kib, self._peak_memory())
            if smi and pause == 0.3:
                self.peak_gpu_mib = max(self.peak_gpu_mib, self._gpu_memory(smi))
            pause = min(0.3, pause * 1.3)

    def _peak_memory(self) -> int:
        """Largest resident memory in KiB among the processes: its peak on Linux and Windows, else that of now."""
        peak = 0
        for process in _started_by(self.group):
            with suppress(psutil.Error):
                memory = process.memory_info()
                peak = max(peak, getattr(memory, "peak_wset", memory.rss) // 1024)
            with suppress(OSError, TypeError, ValueError):  # no /proc, or the process ended meanwhile
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                peak = max(peak, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM")))
        return peak

    def _gpu_memory(self, smi: str) -> int:
        """MiB of all the group's processes together."""
        used, ours = 0, {process.pid for process in _started_by(self.group)}
        with suppress(OSError, subprocess.SubprocessError):
            query = [smi, "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
            for line in subprocess.check_output(query, text=True, stderr=subprocess.DEVNULL, timeout=10).splitlines():
                pid, _, memory = line.partition(",")
                with suppress(ValueError):  # its memory is not known
                    used += int(memory) if int(pid) in ours else 0
        return used
