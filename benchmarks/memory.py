"""Memory of one restorer step at full shape (SD 2.1's networks) on this CPU, against what the rehearsal says.

    python benchmarks/memory.py [--settings 1x128 1x256] [--json FILE]

A setting is images x pixels of the crop. Each runs in a process of its own: first on tensors without values, as
`face2scene rehearse` does, then two real steps in bf16 with gradient checkpointing. `process` is what the process grew
by at its peak (resident memory), `tensors` what live tensors took at theirs.
"""

import argparse
import json
import logging
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import torch
from accelerate import Accelerator
from gpu import _forget, training
from restorer import row
from table import show

from face2scene.common.files import write_json
from face2scene.eval.cost import rehearsal
from face2scene.eval.cost.simulation import Costs, fake_tensors, like_cuda
from face2scene.train.loop import step


def measured(images: int, pixels: int) -> dict[str, float]:
    """MiB rehearsed, of live tensors and of the process, for one setting."""
    options = argparse.Namespace(tiny=False, batch=images, crop=pixels)
    device = torch.device("cpu")
    with fake_tensors(), Costs() as costs:
        task, batch = training("restorer", options, device)
        parts = rehearsal.training_step(task, Accelerator(cpu=True, mixed_precision="bf16"), batch, costs).peak
    del task, batch
    _forget()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with like_cuda(), Costs() as costs:
        task, batch = training("restorer", options, device)
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        rehearsal.training_step(task, accelerator, batch, costs)
    step(task, [batch], accelerator, 1.0)  # without the counting of each operation
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10  # KiB on Linux
    kept = {f"rehearsed, {name}": size / 2**20 for name, size in parts.items()}
    sums = {"rehearsed": sum(parts.values()), "tensors": sum(costs.peak.values())}
    return {name: size / 2**20 for name, size in sums.items()} | {"process": grown} | kept


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--settings", nargs="+", default=["1x128", "1x256"], help="IMAGESxPIXELS (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write the table here")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        logging.disable(logging.WARNING)
        warnings.filterwarnings("ignore")
        print(json.dumps(measured(*map(int, options.one.split("x")))))
        return
    rows: dict[str, dict] = {}
    parts = {}
    for setting in options.settings:
        words = [sys.executable, __file__, "--one", setting]
        found = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        for name, note in (("tensors", "rehearsed, live tensors"), ("process", "rehearsed, growth of the process")):
            rows[f"{setting}_{name}"] = row(found["rehearsed"], found[name], "MiB", note)
        parts[setting] = {name: round(size, 1) for name, size in found.items() if "," in name}
    show(rows)
    if options.json:
        write_json(options.json, rows | {"parts": parts})


if __name__ == "__main__":
    main()
