"""The public commands at tiny size, in processes that may be killed at any moment, and what they leave."""

import hashlib
import json
import os
import random
import re
import runpy
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from other_processes import start

from face2scene.common.reproducibility import REPOSITORY

_MEASURED = re.compile("mtime_ns|seconds|peak_memory")
TINY = ("data=tiny", "degradation=tiny", "fadex=tiny", "train=tiny", "faces=none")
SHIPPED = f"paths.shipped={REPOSITORY / 'checkpoints'}"


def run_script(name: str, overrides: Sequence[str]) -> None:
    """A public script with its command line."""
    sys.argv = [str(REPOSITORY / "scripts" / name), *overrides]
    runpy.run_path(sys.argv[0], run_name="__main__")


def run_light_sweep(folder: str) -> None:
    """A sweep of six commands that take no time to start."""
    from sweep_inputs import plan_of_steps

    from face2scene.eval.sweeps.run import pending, run_steps

    write = "import sys, time; time.sleep(0.05); open(sys.argv[1], 'w').write('made'); time.sleep(0.05)"
    rows = [(name, write, (before,) if before else ()) for before, name in zip(" abcde", "abcdef", strict=True)]
    plan = plan_of_steps(Path(folder), *[(name, code, tuple("".join(n).split())) for name, code, n in rows])
    failed = run_steps(plan, pending(plan))
    if failed:
        raise SystemExit(str(failed))


def run_fetch(root: str, url: str, files: dict[str, str], archive: dict[str, Any]) -> None:
    """Fetch three assets of the same archive from a server."""
    from face2scene.assets.catalogue import parse_asset
    from face2scene.assets.download import fetch

    source = {"kind": "url", "url": url, "members": {name: name for name in files}} | archive
    facts = {name: {"sha256": digest} for name, digest in files.items()}
    entry = {"purpose": "Toy.", "licence": {"weights": "MIT"}, "open": True, "files": facts, "sources": [source]}
    assets = {name: parse_asset(name, entry) for name in ("one", "two", "three")}
    fetch(assets, offline=False, root=Path(root), assets=assets)


@dataclass(frozen=True)
class Command:
    """What to start in a folder, and what it leaves there: content by name, without times."""

    work: Callable[..., None]
    arguments: Callable[[Path], tuple[Any, ...]]
    leaves: Callable[[Path], dict[str, Any]]

    def start(self, folder: Path) -> BaseProcess:
        folder.mkdir(parents=True, exist_ok=True)
        return start(self.work, *self.arguments(folder), output=folder / "log")

    def finish(self, folder: Path) -> dict[str, Any]:
        """Run to the end.

        Raises:
            AssertionError: it failed; the message has its last output.
        """
        process = self.start(folder)
        process.join()
        assert process.exitcode == 0, (folder / "log").read_text(errors="replace")[-3000:]
        return self.leaves(folder)


def content_of(folder: Path, *patterns: str, hidden: bool = True) -> dict[str, Any]:
    """Files below a folder by name: bytes, or JSON without seconds, times of files, and the folder's own path."""
    found = {}
    paths = (path for pattern in patterns for path in folder.rglob(pattern) if path.is_file())
    for path in sorted(path for path in paths if hidden or not path.name.startswith(".")):
        name, read = path.relative_to(folder).as_posix(), path.read_bytes()
        text = read.replace(os.fsencode(folder), b"FOLDER")
        if path.suffix == ".jsonl" and path.name.startswith("restore"):
            found[name] = sorted((without_times(json.loads(line)) for line in text.splitlines()), key=str)
        elif path.suffix == ".safetensors":  # the order of its metadata is random
            end = 8 + int.from_bytes(read[:8], "little")
            found[name] = (json.loads(read[8:end]), read[end:])
        else:
            found[name] = without_times(json.loads(text)) if path.suffix == ".json" else read
    return found


def without_times(value: Any) -> Any:
    """JSON without the fields that tell when, how fast and in how much memory something was made."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if not _MEASURED.search(k)}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def kill_and_finish(command: Command, folder: Path, kills: int, seed: int) -> tuple[int, list[str]]:
    """Kill a command `kills` times at random moments, up to three times in a row, and finish it after each row.

    Returns:
        the kills after which the same command ended with what an undisturbed one leaves, and what else happened.
    """
    begin = time.monotonic()
    expected = command.finish(folder / "whole")
    length, dice = time.monotonic() - begin, random.Random(seed)
    assert expected, "an undisturbed run leaves nothing to compare"
    tried, survived, failures = 0, 0, []
    while tried < kills:
        place, killed = folder / "killed", 0
        shutil.rmtree(place, ignore_errors=True)
        for _ in range(min(dice.randint(1, 3), kills - tried)):
            process = command.start(place)
            process.join(dice.uniform(0, length))
            if process.exitcode is None:
                process.kill()
            process.join()
            if process.exitcode != -9:
                break  # it got through, and there is nothing left to kill
            killed += 1
        tried += killed
        if not killed:
            continue
        try:
            left = command.finish(place)
        except AssertionError as error:
            failures.append(f"after {tried} kills: {error}")
            continue
        if left == expected:
            survived += killed
        else:
            odd = sorted(name for name in {**left, **expected} if left.get(name) != expected.get(name))
            failures.append(f"after {tried} kills: {odd[:5]} differ")
    return survived, failures


class SlowFiles:
    """A server on this machine that sends one file in small pieces, so that a kill meets a download."""

    def __init__(self, content: bytes, pause: float):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                first = int((self.headers.get("Range") or "bytes=0-").partition("=")[2].partition("-")[0] or 0)
                self.send_response(206 if first else 200)
                self.send_header("Content-Length", str(len(content) - first))
                if first:
                    self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
                self.end_headers()
                with suppress(OSError):  # the client was killed
                    for at in range(first, len(content), 16384):
                        self.wfile.write(content[at : at + 16384])
                        time.sleep(pause)

            def log_message(self, *_: Any) -> None:
                pass

        self.digest = hashlib.sha256(content).hexdigest()
        self.size = len(content)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/toy.zip"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
