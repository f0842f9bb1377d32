"""The dataset builder: the cost of being resumable at any moment, its scaling over processes, and its peak memory.

Throughput: drawn people (no network, so that the builder itself is measured) at 512 pixels, ours with one and two
processes, against a plain loop that draws the same images, saves them as PNG and keeps its records in a list until the
end, so it cannot be resumed. Memory: peak of one process that builds sets of simulated records, whose images are a few
bytes; both peaks are relative to that after the imports.

    python benchmarks/build.py [--quick] [--json FILE]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from face2scene.common.files import sha256_of, write_json
from face2scene.data.building import build as building
from face2scene.data.building.build import BuildResult, RecordCandidate, build
from face2scene.data.building.finalize import FinalizePlan
from face2scene.data.generators.base import GenerationRequest
from face2scene.data.records import stream_manifest
from face2scene.data.sources.generated import DrawnPeople, GeneratedPeople
from face2scene.data.verify import verify
from face2scene.image_io.arrays import write_png

PEOPLE, SHOTS, SIDE = 24, 5, 512


def people(count: int) -> GeneratedPeople:
    """Drawn people, without a detector."""
    options = {"name": "drawn", "train_people": count, "train_shots": SHOTS, "size": SIDE, "licence": "CC0-1.0"}
    return GeneratedPeople(lambda: DrawnPeople(side=SIDE), None, **options)


def ours(folder: Path, count: int, rank: int, processes: int) -> float:
    """Seconds of one process's share; processes wait for each other through files, as accelerate's ranks do."""
    barriers = iter(range(10))

    def wait() -> None:
        barrier = next(barriers)
        (folder.parent / f"barrier{barrier}-{rank}").touch()
        while len(list(folder.parent.glob(f"barrier{barrier}-*"))) < processes:
            time.sleep(0.005)

    source = people(count)
    wait()  # imports are over
    start = time.perf_counter()
    build(folder, [source], settings={}, space=None, rank=rank, processes=processes, wait=wait)
    return time.perf_counter() - start


def plain(folder: Path, count: int) -> float:
    """Seconds of a loop without resume, checks or references."""
    start, records = time.perf_counter(), []
    for person in range(count):
        for shot in range(SHOTS):
            image = DrawnPeople(side=SIDE).draw(GenerationRequest(person, shot))
            path = folder / f"{person}_{shot}.png"
            write_png(path, image.astype(np.float32) / 255)
            records.append({"image": path.name, "identity": person, "sha256": sha256_of(path)})
    (folder / "metadata.json").write_text(json.dumps(records))
    return time.perf_counter() - start


class Simulated:
    """Chunks of records like those of a real set (68 landmarks, a 128-number identity), with images of one pixel."""

    def __init__(self, count: int):
        self.count = count

    def listing(self) -> None:
        return None

    def items(self) -> range:
        return range(1)

    def key(self, item: int) -> str:
        return "simulated"

    def chunks(self, item: int, start: int) -> Iterator[BuildResult]:
        for first in range(start * 250, self.count, 250):
            yield BuildResult([self.candidate(n) for n in range(first, min(first + 250, self.count))])

    def candidate(self, n: int) -> RecordCandidate:
        rng = np.random.default_rng(n)
        vector = rng.standard_normal(128)
        return RecordCandidate(
            name=f"p{n:09d}",
            image=np.full((1, 1, 3), n % 251, np.uint8),
            **{"split": "train", "identity": f"person{n // 10}", "prompt": "A photo.", "shot": "mid-up"},
            **{"face_box": (1.0, 2.0, 30.0, 40.0), "landmarks_68": rng.uniform(0, 512, (68, 2))},
            **{"vector": vector / np.linalg.norm(vector), "source": "simulated", "licence": "CC0-1.0"},
            generator={"name": "simulated", "seed": n, "file": f"{n:09d}.jpg"},
            measured={"sharpness": float(rng.uniform())},
        )


def memory(folder: Path, count: int) -> dict[str, float]:
    """Peak memory in MiB over what the imports took, of a build and of a check, and their seconds."""
    numbers = iter(range(10**9))

    def tiny(path: Path, image: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(next(numbers).to_bytes(8, "little"))  # no two alike

    building.write_png = tiny
    before, start = peak(), time.perf_counter()
    build(folder, [Simulated(count)], settings={}, space=None, plan=FinalizePlan(report=True))
    built, seconds = peak(), time.perf_counter() - start
    rows = sum(1 for _ in stream_manifest(folder))
    assert rows == count, rows
    sum(1 for _ in verify(folder))  # no file is an image, so each is reported
    return {"build": built - before, "verify": peak() - before, "seconds": seconds, "imports": before}


def peak() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(*arguments: object) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)


def measured(*processes: subprocess.Popen) -> list:
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("A process of the benchmark failed.")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def measure(kind: str, rest: list[str]) -> object:
    match kind:
        case "ours":
            return ours(Path(rest[0]), *map(int, rest[1:]))
        case "plain":
            return plain(Path(rest[0]), int(rest[1]))
        case "memory":
            return memory(Path(rest[0]), int(rest[1]))
    raise SystemExit(f"Unknown part {kind}.")


def main() -> None:
    """Run every side in processes of its own, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.child[0], arguments.child[1:])))
        return
    count = 6 if arguments.quick else PEOPLE
    sizes = (100, 2000) if arguments.quick else (100, 1000, 10_000, 100_000)
    rows: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        rate = {}
        for processes in (1, 2):
            (base / f"o{processes}").mkdir()
            folder = base / f"o{processes}" / "set"
            seconds = measured(*(child("ours", folder, count, rank, processes) for rank in range(processes)))
            rate[processes] = count * SHOTS / max(seconds)
        (base / "plain").mkdir()
        loop = count * SHOTS / measured(child("plain", base / "plain", count))[0]
        note = f"{count * SHOTS} images of {SIDE} pixels; other: a plain loop that cannot be resumed"
        rows["throughput"] = row(rate[1], loop, rate[1] / loop, "pictures/s", note)
        cores = len(os.sched_getaffinity(0))
        note = f"ours with two processes, other with one; {cores} cores"
        rows["two processes"] = row(rate[2], rate[1], rate[2] / rate[1], "pictures/s", note)
        flat = {size: measured(child("memory", base / f"m{size}", size))[0] for size in sizes}
        first, last = flat[sizes[0]], flat[sizes[-1]]
        for part in ("build", "verify"):
            total = [values[part] + values["imports"] for values in (last, first)]
            growth = ", ".join(f"{size}: +{values[part]:.0f}" for size, values in flat.items())
            note = f"ours {sizes[-1]} records, other {sizes[0]}; over the imports' {first['imports']:.0f} MiB: {growth}"
            rows[f"memory, {part}"] = row(total[0], total[1], total[1] / total[0], "MiB", note)
        per_second = sizes[-1] / last["seconds"]
        rows["records"] = row(per_second, None, None, "records/s", f"{sizes[-1]} simulated records, all but the images")
    for name, values in rows.items():
        other = "-" if values["other"] is None else f"{values['other']:.1f}"
        ratio = "-" if values["ratio"] is None else f"{values['ratio']:.2f}"
        print(f"{name:18} {values['ours']:9.1f} {other:>9} {values['unit']:11} ratio {ratio:>5}   {values['note']}")
    if arguments.json:
        write_json(arguments.json, rows)


def row(ours: float, other: float | None, ratio: float | None, unit: str, note: str) -> dict:
    rounded = [None if value is None else round(value, 3) for value in (ours, other, ratio)]
    return dict(zip(("ours", "other", "ratio", "unit", "note"), (*rounded, unit, note), strict=True))


if __name__ == "__main__":
    main()
