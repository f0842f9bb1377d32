"""Builds of drawn people that log their items, and that end without any clean-up at a chosen change of a file."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
from colour_identities import SMALL

from face2scene.data.building.build import Rejection, build
from face2scene.data.building.finalize import FinalizePlan, Selection
from face2scene.data.building.identity_clusters import Grouping
from face2scene.data.sources.generated import DrawnPeople, GeneratedPeople


class TracedSource(GeneratedPeople):
    """Logs its items; its images exercise every decision of `finalize`."""

    def __init__(self, trace: Path, pause: float = 0.0, **options):
        sizes = {"train_people": 6, "train_shots": 3, "val_people": 2, "val_shots": 2, "size": 24, "reference_size": 32}
        super().__init__(lambda: DrawnPeople(side=32), None, name="drawn", licence="CC0-1.0", **sizes)
        self.trace, self.pause = trace, pause

    def make(self, item):
        with open(self.trace, "a") as file:
            file.write(f"{self.key(item)}\n")
        time.sleep(self.pause)
        made = super().make(item)
        for n, candidate in enumerate(made.candidates):
            unknown = {"split": None, "identity": None} if item >= 4 else {}
            vector = np.eye(8)[item] * 0.9 + 0.01
            about = {"measured": {"q": float((7 * item + n) % 11)}, "vector": vector / np.linalg.norm(vector)}
            object.__setattr__(candidate, "__dict__", vars(candidate) | about | unknown)
        rejected = [Rejection(f"odd_{item}", "odd: on purpose", measured={"q": 1.0})] if item % 3 == 0 else []
        return type(made)(made.candidates, rejected)


def run_build(folder: Path, trace: Path, pause: float = 0.0) -> None:
    plan = FinalizePlan(
        **{"selection": Selection({"q": "higher"}, 0.8), "grouping": Grouping(0.5), "val_share": 0.5, "report": True},
        max_references=2,
    )
    build(folder, [TracedSource(trace, pause)], settings={"a": 1}, space=SMALL, plan=plan)


def build_crashing_at(folder: Path, trace: Path, at: int, counter: Path) -> None:
    """A build whose process ends, without any clean-up, at its `at`-th change of the file system."""
    calls = 0

    def ends(function):
        def wrapped(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == at:
                os._exit(9)
            return function(*arguments, **options)

        return wrapped

    os.replace, os.unlink = ends(os.replace), ends(os.unlink)
    Path.replace, Path.unlink = ends(Path.replace), ends(Path.unlink)
    shutil.rmtree = ends(shutil.rmtree)
    run_build(folder, trace)
    counter.write_text(str(calls))
