"""The parts of benchmarks/oracle.py that need no weights."""

import importlib.util
import sys

import pytest
import torch

from face2scene.common.reproducibility import REPOSITORY
from face2scene.degradation import Blur, Recipe


@pytest.fixture(scope="module")
def oracle():
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    try:
        specification = importlib.util.spec_from_file_location("oracle", REPOSITORY / "benchmarks/oracle.py")
        module = importlib.util.module_from_spec(specification)
        sys.modules["oracle"] = module
        specification.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(REPOSITORY / "benchmarks"))
        sys.modules.pop("oracle", None)


@pytest.fixture(scope="module")
def scene(photo):
    return torch.from_numpy(photo[:256, :256].transpose(2, 0, 1).copy()).float()


def blurred(scene, sigma):
    return Recipe((Blur("iso", 21, sigma_x=sigma),)).apply(scene)


def test_face_is_not_scored(oracle, scene):
    inside = (slice(50, 120), slice(60, 130))
    other = scene.clone()
    other[(slice(None), *inside)] = 1 - other[(slice(None), *inside)]
    assert oracle.psnr_outside(other, scene, inside) == pytest.approx(100)
    other = (scene + 0.1).clone()
    other[(slice(None), *inside)] = 0
    assert oracle.psnr_outside(other, scene, inside) == pytest.approx(20, abs=0.01)


def test_edges_tell_the_blur_in_order(oracle, scene):
    """The photo is soft itself by about a pixel, which adds to the narrowest blur (1.5 for 1)."""
    told = [oracle.edge_blur(blurred(scene, sigma)) for sigma in (1.0, 2.0, 3.0)]
    assert told == sorted(told)
    assert told == pytest.approx([1.0, 2.0, 3.0], abs=0.6)


def test_true_blur_deconvolves_best(oracle, scene):
    inside = (slice(0, 1), slice(0, 1))
    given = blurred(scene, 1.6)
    scores = {s: oracle.psnr_outside(oracle.deconvolved(given, s, "Wiener"), scene, inside) for s in (0.8, 1.6, 2.8)}
    assert max(scores, key=scores.get) == 1.6
    assert scores[1.6] > oracle.psnr_outside(given, scene, inside) + 1


def test_summary_is_against_the_truth(oracle):
    rows = [
        {"photo": photo, "case": "noise 10", "kind": "noise", "true": 10, "method": "FFDNet"}
        | {"told": told, "value": value, "psnr": psnr}
        for photo, offset in (("a", 0), ("b", 2))
        for told, value, psnr in ((oracle.TRUE, 10, 30 + offset), ("face", 7, 29 + 2 * offset))
    ]
    entry = oracle.summary(rows)["FFDNet | noise | face"]
    assert entry["lost"] == pytest.approx(0) and entry["lost_interval"] == pytest.approx([-1, 1])
    assert entry["error"] == pytest.approx(3) and entry["bias"] == pytest.approx(-3)
