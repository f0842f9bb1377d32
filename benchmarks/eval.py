"""Scoring: PSNR, SSIM, LPIPS, DISTS and FID of 100 images of 512 x 512 on two processes, against
a plain loop of pyiqa calls, image by image, with torch's own threads.

Each side is a process of its own with its models loaded once, and both read the same PNGs and the same weights. Seconds
are of the scoring; loading is a measure of its own. CPU seconds are there because a shared machine disturbs them less.
The values of both sides must agree to 1e-5 (FID: relative), or the benchmark fails.

    python benchmarks/eval.py [--quick] [--images N] [--methods N] [--json FILE]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import torch

from face2scene.common.files import read_json, write_json
from face2scene.common.memory import keep_freed_memory
from face2scene.eval.metrics.registry import METRICS, build_all, choose
from face2scene.eval.scoring.results import read_scores
from face2scene.eval.scoring.score import score_folders
from face2scene.image_io.arrays import list_images, write_png

KEYS = ("psnr", "ssim_y", "lpips", "dists", "fid")
LAUNCH = Path(__file__).parents[1] / "configs/accelerate/cpu_two.yaml"
TOLERANCE = 1e-5


def draw(folder: Path, images: int, methods: int, side: int = 512) -> None:
    """Ground truths with structure at every scale, and predictions that are blurred and noisy by different amounts."""
    for number in range(images):
        rng = np.random.default_rng(number)
        gt = np.zeros((side, side, 3))
        for cell in (4, 16, 64, 256):
            coarse = rng.random((cell, cell, 3)).repeat(side // cell, 0).repeat(side // cell, 1)
            gt += coarse / 4
        write_png(folder / "gt" / f"{number:04d}.png", gt.astype(np.float32))
        for method in range(methods):
            soft = (gt + np.roll(gt, 1, 0) + np.roll(gt, 1, 1)) / 3
            made = np.clip(soft + rng.normal(0, 0.02 + 0.05 * rng.random(), gt.shape), 0, 1)
            write_png(folder / f"method_{method}" / f"{number:04d}.png", made.astype(np.float32))


def plain(folder: Path, out: Path) -> None:
    """The other side: pyiqa as its manual shows it."""
    start = perf_counter()
    from face2scene.eval.metrics.pyiqa_backend import Pyiqa

    specs = {key: METRICS[key].engine for key in KEYS}
    specs |= {"psnr": Pyiqa("psnr"), "ssim_y": Pyiqa("ssim", options={"color_space": "ycbcr"})}
    models = {key: spec.network("cpu") for key, spec in specs.items()}
    loaded, cpu = perf_counter(), process_time()
    values: dict[str, dict[str, dict[str, float]]] = {}
    for method in sorted(folder.glob("method_*")):
        rows = values[method.name] = {}
        for path in list_images(method):
            pair = str(path), str(folder / "gt" / path.name)
            rows[path.stem] = {key: float(models[key](*pair)) for key in KEYS if key != "fid"}
        rows["set"] = {"fid": float(models["fid"](str(method), str(folder / "gt"), verbose=False, num_workers=0))}
    times = {"load": loaded - start, "wall": perf_counter() - loaded, "cpu": process_time() - cpu}
    write_json(out, {"values": values, **times})


def ours(folder: Path, out: Path) -> None:
    """Our side, in every process of the launch."""
    from accelerate import PartialState

    start = perf_counter()
    state = PartialState(cpu=True)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // state.num_processes))
    ready, missing = build_all(choose(KEYS))
    if missing:
        sys.exit(f"Not all metrics are here: {missing}")
    state.wait_for_everyone()
    loaded, cpu = perf_counter(), process_time()
    rows = {method.name: (method, out.parent / method.name) for method in sorted(folder.glob("method_*"))}
    shared = {"rank": state.process_index, "processes": state.num_processes, "wait": state.wait_for_everyone}
    score_folders(rows, folder / "gt", KEYS, scorers=ready, **shared)
    times = {"load": loaded - start, "wall": perf_counter() - loaded, "cpu": process_time() - cpu}
    values = {}
    for name, (_, results) in rows.items() if state.is_main_process else ():
        scores, table = read_scores(results)
        values[name] = {**table, "set": scores["sets"]}
    write_json(out.with_name(f"{out.stem}.{state.process_index}.json"), {"values": values, **times})


def child(side: str, folder: Path, out: Path) -> float:
    """Seconds of a whole command."""
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(LAUNCH)] if side == "ours" else []
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OMP_NUM_THREADS")}
    environment |= {"OMP_NUM_THREADS": "1"} if side == "ours" else {}
    start = perf_counter()
    command = [sys.executable, *launch, __file__, "--side", side, "--folder", str(folder), "--out", str(out)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return perf_counter() - start


def apart(first: dict, second: dict) -> float:
    """Largest difference of any value, that of FID relative to its value."""
    worst = 0.0
    for method, rows in first.items():
        for name, row in rows.items():
            for key, value in row.items():
                other = second[method][name][key]
                worst = max(worst, abs(value - other) / (abs(value) if key == "fid" else 1))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="six images")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--methods", type=int, default=1, help="folders that are scored against the same ground truth")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=("plain", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    keep_freed_memory()  # both sides alike
    if args.side:
        {"plain": plain, "ours": ours}[args.side](args.folder, args.out)
        return
    images = 6 if args.quick else args.images
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        draw(folder, images, args.methods)
        commands = {side: child(side, folder, folder / "out" / f"{side}.json") for side in ("ours", "plain")}
        parts = [read_json(path) for path in sorted((folder / "out").glob("ours.[0-9].json"))]
        theirs = read_json(folder / "out/plain.json")
        scores_apart = apart(theirs["values"], parts[0]["values"])
    count = images * args.methods
    what = f"{count} predictions of 512 x 512, {images} ground truths, {', '.join(KEYS)}"
    measures = {
        "scoring, wall": (max(p["wall"] for p in parts) / count, theirs["wall"] / count, "s an image"),
        "scoring, CPU": (sum(p["cpu"] for p in parts) / count, theirs["cpu"] / count, "s an image"),
        "the whole command": (commands["ours"], commands["plain"], "s"),
    }
    found = {
        name: {"ours": a, "other": b, "ratio": b / a, "unit": unit, "note": f"{what}; values apart {scores_apart:.1e}"}
        for name, (a, b, unit) in measures.items()
    }
    print(f"{what}\n{'':20} {'ours':>9} {'pyiqa':>9} {'ratio':>7}")
    for name, row in found.items():
        print(f"{name:20} {row['ours']:9.3f} {row['other']:9.3f} {row['ratio']:7.2f}  {row['unit']}")
    print(f"largest difference of a value: {scores_apart:.1e}")
    if args.json:
        write_json(args.json, found)
    if scores_apart > TOLERANCE:
        sys.exit(f"The values differ by more than {TOLERANCE}: {json.dumps(scores_apart)}")


if __name__ == "__main__":
    main()
