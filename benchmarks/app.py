"""The web page under many visitors: latency, refusals, memory, and files that are left.

    python benchmarks/app.py [--quick] [--json FILE] [--clients 50] [--seconds 120] [--one-by-one 200] [--size 192]

The page runs in a process of its own with the tiny weights and without a face detector. First one visitor sends photos
one by one and the server's memory is read after every tenth; then many visitors, each with an address of its own,
upload a photo, wait for its restoration and start again. One in ten leaves in the middle.
"""

import argparse
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
from PIL import Image

from face2scene.common.files import write_json
from face2scene.common.provenance import provenance
from face2scene.common.reproducibility import REPOSITORY


class Page:
    """The page's process and what the kernel says of it."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address, self.folder = f"http://127.0.0.1:{port}", folder
        script = [sys.executable, "scripts/app.py", f"port={port}", "faces=none", "device=cpu", "readout=null"]
        self.process = subprocess.Popen(script, cwd=REPOSITORY, env=os.environ | {"TMPDIR": str(folder)})
        while True:
            try:
                httpx.get(self.address, timeout=30)
                return
            except httpx.HTTPError:
                if self.process.poll() is not None:
                    raise
                time.sleep(0.5)

    def memory(self, key: str = "VmRSS") -> float:
        """MiB, of `VmRSS` now or `VmHWM` at most."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return round(int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024)

    def files(self) -> float:
        """MB of uploads and results."""
        return round(sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file()) / 1e6, 1)

    def stop(self) -> dict[str, Any]:
        """End it with SIGTERM; the exit code and the folders that are left."""
        self.process.send_signal(signal.SIGTERM)
        return {
            "exit_code": self.process.wait(60),
            "left": sorted(p.name for p in self.folder.glob("face2scene-app-*")),
        }


def photo(seed: int, size: int) -> bytes:
    """A PNG of smooth noise whose size differs a little with the seed."""
    rng, file = np.random.default_rng(seed), io.BytesIO()
    small = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
    small.resize((size + 8 * (seed % 9), size - 8 * (seed % 7)), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def request(address: str, visitor: str, data: bytes, leave_after: float | None = None) -> str:
    """One restoration as the browser asks for it; `done`, `left`, or why not."""
    with httpx.Client(base_url=f"{address}/gradio_api", headers={"X-Forwarded-For": visitor}, timeout=600) as client:
        upload = client.post("/upload", files={"files": ("photo.png", data, "image/png")})
        if upload.status_code != 200:
            return f"refused {upload.status_code}"
        file = {"path": upload.json()[0], "meta": {"_type": "gradio.FileData"}}
        asked = client.post("/call/restore", json={"data": [file, None, 1.1, 1]})
        if asked.status_code != 200:
            return f"refused {asked.status_code}"
        start = time.monotonic()
        with client.stream("GET", f"/call/restore/{asked.json()['event_id']}") as stream:
            for line in stream.iter_lines():
                if line.startswith("event: complete"):
                    return "done"
                if line.startswith("event: error"):
                    return "error"
                if leave_after is not None and time.monotonic() - start > leave_after:
                    return "left"
    return "ended"


def one_by_one(page: Page, count: int, size: int) -> dict[str, Any]:
    """Memory after every tenth of `count` requests."""
    found, memory = Counter[str](), {}
    for number in range(count):
        found[request(page.address, "10.1.0.1", photo(number, size))] += 1
        if (number + 1) % 10 == 0:
            memory[number + 1] = page.memory()
    return {"answers": dict(found), "memory_mib": memory, "peak_mib": page.memory("VmHWM")}


def soak(page: Page, clients: int, seconds: float, size: int) -> dict[str, Any]:
    """Many visitors at once."""
    until, answers, waited, lock = time.monotonic() + seconds, Counter[str](), [], threading.Lock()

    def visit(number: int) -> None:
        visits = 0
        while time.monotonic() < until:
            visits += 1
            start = time.monotonic()
            leaves = 0.5 if (number + visits) % 10 == 0 else None
            try:
                said = request(page.address, f"10.2.{number // 200}.{number % 200}", photo(number, size), leaves)
            except httpx.HTTPError as error:
                said = type(error).__name__
            with lock:
                answers[said] += 1
                if said == "done":
                    waited.append(time.monotonic() - start)
            if said.startswith("refused"):
                time.sleep(1)  # a person would wait longer

    before, threads = page.memory(), [threading.Thread(target=visit, args=(n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cuts = quantiles(waited, n=20) if len(waited) > 1 else [0.0] * 19
    return {
        "clients": clients,
        "seconds": seconds,
        "answers": dict(answers),
        "per_second": round(len(waited) / seconds, 2),
        "latency_s": {"median": round(median(waited or [0]), 2), "p95": round(cuts[18], 2)},
        "memory_mib": [before, page.memory()],
        "peak_mib": page.memory("VmHWM"),
        "files_mb": page.files(),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 visitors for 10 seconds, 10 requests one by one")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--one-by-one", type=int, default=200)
    parser.add_argument("--size", type=int, default=192, help="pixels of the photos")
    options = parser.parse_args()
    if options.quick:
        options.clients, options.seconds, options.one_by_one = 5, 10, 10
    with TemporaryDirectory() as folder:
        page = Page(Path(folder))
        try:
            found: dict[str, Any] = {"load": os.getloadavg()[0], "memory_at_start_mib": page.memory()}
            found["one_by_one"] = one_by_one(page, options.one_by_one, options.size)
            print(found, flush=True)
            found["soak"] = soak(page, options.clients, options.seconds, options.size)
        finally:
            found["sigterm"] = page.stop()
    found["provenance"] = provenance()
    for key, value in found.items():
        print(f"{key}: {value}")
    if options.json:
        write_json(options.json, found)


if __name__ == "__main__":
    main()
