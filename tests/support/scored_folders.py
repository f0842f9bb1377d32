"""Inputs that several test files of tests/eval share."""

import threading
from pathlib import Path

import numpy as np
import torch

from face2scene.eval.scoring.score import score_folder, score_folders
from face2scene.image_io.arrays import write_png

SIZE = (40, 48)


def mean_abs_error(images, gts):
    """(B,) mean absolute differences. Sums of whole numbers below 2^24 are the same in any order, so in any batch."""
    return (images - gts).mul(255).round().abs().sum((1, 2, 3)) / (255 * images[0].numel())


class MeanColourDistance:
    """A metric of sets: how far the mean colours lie apart; counts the images it sees."""

    def __init__(self):
        self.seen = 0

    def features(self, images):
        self.seen += len(images)
        return images.mul(255).round().sum((2, 3)) / (255 * images[0, 0].numel())

    def distance(self, ours, theirs):
        return float((ours.mean(0) - theirs.mean(0)).abs().sum())


PER_IMAGE = {
    "psnr": lambda x, y: -10 * torch.log10(mean_abs_error(x, y) ** 2 + 1e-8),
    "lpips": mean_abs_error,
    "dists": mean_abs_error,
}
SCORERS = PER_IMAGE | {"fid": MeanColourDistance()}


KEYS = ("dists", "psnr", "fid")


def write_images(path: Path, names, noise=0.0, seed=0, size=SIZE) -> Path:
    for number, name in enumerate(names):
        base = np.random.default_rng([number]).random((*size, 3))
        change = np.random.default_rng([seed, number, 1]).normal(0, noise, base.shape) if noise else 0
        write_png(path / f"{name}.png", np.clip(base + change, 0, 1).astype(np.float32))
    return path


def score_images(tmp_path, name, names="abcdef", noise=0.1, seed=0, keys=KEYS, **options):
    gt = write_images(tmp_path / "truth", names)
    made = write_images(tmp_path / name, names, noise, seed)
    return score_folder(made, gt, keys, tmp_path / f"out_{name}", scorers=SCORERS, **options)


BATCH = 2 * SIZE[0] * SIZE[1]


def score_in_two_processes(rows, gt, keys=KEYS, scorers=SCORERS, **options) -> dict[int, dict]:
    """`score_folders` by two processes, here threads."""
    barrier, found = threading.Barrier(2, timeout=600), {}

    def share(rank):
        places = {"rank": rank, "processes": 2, "wait": barrier.wait, "batch_pixels": BATCH}
        found[rank] = score_folders(rows, gt, keys, scorers=scorers, **places, **options)

    threads = [threading.Thread(target=share, args=(rank,)) for rank in range(2)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    return found
