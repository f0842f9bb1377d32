"""What the tests of whole commands share."""

import sys
from pathlib import Path

import pytest


@pytest.fixture
def own_argv(monkeypatch):
    """For tests that run scripts in this process: sys.argv is given back."""
    monkeypatch.setattr(sys, "argv", sys.argv)


@pytest.fixture(scope="package")
def tiny_set(tmp_path_factory) -> Path:
    """An InScene set of drawn people: four training images of two, and one fixed pair."""
    from face2scene.data.building.build import build
    from face2scene.data.sources.generated import DrawnPeople, GeneratedPeople
    from face2scene.degradation import Space

    folder = tmp_path_factory.mktemp("data") / "set"
    sizes = {"train_people": 2, "train_shots": 2, "val_people": 1, "val_shots": 2, "size": 64}
    sizes |= {"face_box": (0.2, 0.2, 0.8, 0.9)}
    source = GeneratedPeople(lambda: DrawnPeople(side=64), None, name="drawn", licence="CC0-1.0", **sizes)
    space = Space(scale=1, kernel_sizes=(7, 7), resize_probs=(0, 0, 1), resize_probs2=(0, 0, 1), final_sinc_prob=0)
    build(folder, [source], settings={}, space=space)
    return folder
