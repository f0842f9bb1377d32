"""Inputs that several test files of tests/eval share."""

import json
from pathlib import Path

from face2scene.common.reproducibility import REPOSITORY

BASELINES = sorted(path.stem for path in (REPOSITORY / "configs/baseline").glob("*.yaml"))


# A program like the others: reads every file of a folder, enlarges, writes under names of its own, keeps a journal.
FAKE_METHOD = """
import json, os, sys
from PIL import Image
source, target, scale, seed, how = sys.argv[1:6]
os.makedirs(target, exist_ok=True)
print("loading weights", os.environ["CUDA_VISIBLE_DEVICES"], os.environ["HF_HUB_OFFLINE"], flush=True)
names = sorted(os.listdir(source))
for number, name in enumerate(names):
    image = Image.open(os.path.join(source, name)).convert("RGB")
    stem = name.split(".")[0]
    if how == "crash" and number == 1:
        sys.exit("CUDA out of memory")
    if how == "omit" and number == 1:
        continue
    size = [int(scale) * side for side in image.size]
    if how == "rounded" and number == 0:
        size = [side - 8 for side in size]
    made = image.resize(size, Image.BICUBIC)
    if how == "black" and number == 1:
        made = Image.new("RGB", size)
    made.save(os.path.join(target, stem + "_0.png"))
    if how == "cut" and number == 1:
        with open(os.path.join(target, stem + "_0.png"), "r+b") as file:
            file.truncate(60)
    if how == "slow":
        import time
        time.sleep(0.2 if number < 1 else 60)
if how == "scorer":
    import no_such_scorer
"""


def read_record(folder: Path) -> dict:
    return json.loads((folder / "baseline.json").read_text())
