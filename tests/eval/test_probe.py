import csv
import json
import math

import numpy as np
import pytest
import torch
from inscene_records import record
from torch.nn import functional as F

from face2scene.common.types import Face
from face2scene.data.records import write_manifest
from face2scene.degradation import PRESETS, Blur, GaussianNoise, Jpeg, Recipe, Resize, RestoreSize, Space
from face2scene.eval.probe.faces import faces_of_photos, faces_of_set
from face2scene.eval.probe.probe import FaDeXProbe
from face2scene.eval.probe.report import summary
from face2scene.image_io.arrays import write_png
from face2scene.models.fadex import FaDeX, LinearProbe, nuisance_retrieval, retrieval
from face2scene.models.fadex.linear_readout import FACTORS, factors
from face2scene.ref_fr import Copy, GroundTruth

SPACE = Space(scale=1, kernel_sizes=(3, 5), poisson_scale=(0.05, 0.1))


def unit_codes(*rows):
    return F.normalize(torch.tensor(rows, dtype=torch.float32), dim=-1)


# Measures


def test_operator_codes_are_retrieved():
    own = unit_codes([[1.0, 0, 0.0]] * 3, [[0.0, 1, 0.0]] * 3)
    assert retrieval(own) == {"retrieval_top1": 1, "map": 1, "one_picture_top1": 1, "chance": 0.5}
    found = nuisance_retrieval(
        unit_codes([[1, 0.01, 0], [1, 0, 0.01], [1, 0, 0]], [[0, 1, 0.01], [0.01, 1, 0], [0, 1, 0]]), "aab"
    )
    assert found["picture_chance"] == pytest.approx(1 / 3) and found["identity_chance"] == 0.5


def test_content_only_codes_are_detected():
    own = unit_codes(*[[[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]] * 4)
    found = nuisance_retrieval(own, ["a", "a", "b"])
    assert found["picture"] == 1
    twins = unit_codes(*[[[1.0, 0, 0], [1, 0.1, 0], [0, 0, 1], [0, 0.1, 1]]] * 2)
    assert (
        nuisance_retrieval(twins, list("aabb"))["identity"] == 1
        and nuisance_retrieval(twins, list("abab"))["identity"] == 0
    )
    assert nuisance_retrieval(twins, list("aabb"))["identity_chance"] == pytest.approx(1 / 3)
    assert nuisance_retrieval(twins, list("abcd"))["identity"] is None


def test_retrieval_matches_by_hand():
    # Operator 0 on images 0, 1 and operator 1 on both: each asks among the two embeddings of the other image.
    angles = [[0, 20], [90, 30]]  # degrees
    own = torch.tensor([[[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in row] for row in angles])
    found = retrieval(own)
    # 0 finds 20, 20 finds 0, 90 finds 30; 30 finds 0, which is wrong: its partner comes second.
    assert found["retrieval_top1"] == 0.75 and found["map"] == pytest.approx((1 + 1 + 1 + 0.5) / 4)


def test_recipe_factors():
    recipe = Recipe(
        (
            Blur("iso", 21, sigma_x=3.0),
            Resize(0.25, "area"),
            Blur("aniso", 11, sigma_x=1.0, sigma_y=0.5, theta_rad=0.3),
            Jpeg(30),
            Jpeg(80),
            RestoreSize(),
        )
    )
    found = factors(recipe)
    assert found["blur"] == pytest.approx(math.sqrt(9 + (1 + 0.25) / 2 * 16))  # 1 pixel of the small image is 4
    assert found["jpeg_quality"] == 80 and found["scale"] == 0.25 and found["noise"] < 0.5
    assert factors(Recipe((GaussianNoise(20.0),)))["noise"] == pytest.approx(20, rel=0.03)
    assert factors(Recipe()) == {"blur": 0, "noise": 0, "jpeg_quality": 100, "scale": 1}


def test_linear_probe_fits_and_reloads(tmp_path):
    rng = np.random.default_rng(0)
    recipes = [SPACE.draw(rng) for _ in range(60)]
    gt = torch.tensor([[factors(r)[name] for name in FACTORS] for r in recipes])
    gt[:, 3] = gt[:, 3].log2()
    embeddings = gt / gt.std(0) + 0.01 * torch.randn(60, 4)
    readout = LinearProbe.fitted(embeddings[:40], recipes[:40])
    assert all(value > 0.99 for value in readout.r_squared(embeddings[40:], recipes[40:]).values())
    shuffled = readout.r_squared(embeddings[40:].flip(0), recipes[40:])
    assert all(value < 0.6 for value in shuffled.values())
    readout.save(tmp_path / "readout.safetensors")
    again = LinearProbe.from_file(tmp_path / "readout.safetensors")
    found = again(embeddings[50])
    assert found == readout(embeddings[50][None]) and list(found) == list(FACTORS)
    assert found["jpeg_quality"] == pytest.approx(factors(recipes[50])["jpeg_quality"], abs=3)
    assert 0 < found["scale"] <= 1 and found["noise"] >= 0
    far = again(1000 * embeddings[50])
    assert all(FACTORS[name][1] <= value <= FACTORS[name][2] for name, value in far.items())
    with pytest.raises(ValueError, match="takes one embedding"):
        again(embeddings[:2])


# The whole probe


@pytest.fixture
def dataset(tmp_path):
    """Six images of four people in `val`, two in `train`; the faces have 32 to 40 pixels."""
    rng = np.random.default_rng(0)
    records = []
    for number, person in enumerate("aabcddef"):
        path = tmp_path / "set" / f"{number}.png"
        coarse = torch.from_numpy(rng.random((1, 3, 9, 9)))
        write_png(path, F.interpolate(coarse, (72, 72), mode="bicubic")[0].clamp(0, 1))
        known = {"split": "val" if person < "e" else "train", "identity": person, "source": f"s{person}"}
        records.append(record(path, (20.0, 20.0, 44.0 + number, 44.0 + number), **known))
    write_manifest(tmp_path / "set", records)
    return tmp_path / "set"


@pytest.fixture
def probe(tmp_path, dataset):
    def make(**options):
        torch.manual_seed(0)
        for name, inputs in (("pair", "pair"), ("lq_only", "lq_only")):
            FaDeX((4, 8), (1, 2), embedding=8, inputs=inputs).save(tmp_path / f"{name}.safetensors")
        settings = {
            "weights": tmp_path / "pair.safetensors",
            "against": {"lq_only": tmp_path / "lq_only.safetensors"},
            "data": dataset,
            "restorer": GroundTruth(),
            "restorers": {"truth": GroundTruth(), "copy": Copy()},
            "space": SPACE,
            "wide": SPACE,
            "images": 3,
            "operators": 4,
            "fit_operators": 6,
            "restorer_operators": 2,
            "nuisance_images": 6,
            "crop": 32,
            "margin": 8,
        }
        return FaDeXProbe(**(settings | options))

    return make


@pytest.mark.numerics
def test_probe_writes_json_csv_and_figure(tmp_path, probe):
    found = probe()(tmp_path / "run")
    stored = json.loads((tmp_path / "run/probe.json").read_text())
    assert stored["same"].keys() == PRESETS.keys()
    assert list(stored["cross"]) == ["d1-d2", "d1-d3", "d1-d4", "d2-d3", "d2-d4", "d3-d4"]
    assert {"blur", "noise", "jpeg_quality", "scale"} == stored["linear"].keys()
    assert (
        stored["pictures"] == 3 and stored["people"] == 3 and 0 <= stored["retrieval_top1"] <= 1 and stored["map"] > 0
    )
    assert stored["leak_pictures"] == 6 and stored["leakage"]["identity_chance"] == pytest.approx(1 / 5)
    assert stored["against"]["lq_only"]["same"] != stored["same"]
    assert stored["restorers"]["truth"]["same_mean"] != stored["restorers"]["copy"]["same_mean"]
    assert stored["protocol"]["crop_sides"] == [32, 32]
    rows = list(csv.DictReader((tmp_path / "run/probe.csv").read_text().splitlines()))
    d1 = next(r for r in rows if (r["encoder"], r["measure"], r["name"]) == ("pair", "same", "d1"))
    assert float(d1["value"]) == pytest.approx(stored["same"]["d1"], abs=1e-4) and d1["paper"] == "0.89"
    assert (tmp_path / "run/images/probe.png").stat().st_size > 10_000
    assert LinearProbe.from_file(tmp_path / "run/readout.safetensors").config == {"embedding": 8}
    assert "paper within +-0.06" in summary(found)
    assert probe()(tmp_path / "again") == found  # nothing is drawn from elsewhere
    with pytest.raises(ValueError, match=r"probe\.operators"):
        probe(operators=1)(tmp_path / "few")
    with pytest.raises(ValueError, match=r"two operators at least, got 6 images and .*probe\.fit_operators=0"):
        probe(fit_operators=0)(tmp_path / "few")


def test_faces_cover_people_first(dataset):
    faces = faces_of_set(dataset, "val", crop=36, margin=4, count=9)
    assert [face.identity for face in faces] == ["a", "b", "c", "d", "a", "d"]
    sides = [face.inner[0].stop - face.inner[0].start for face in faces]
    assert sides == [34, 36, 36, 36, 35, 36]  # at most the crop; 1.4 times the box below it
    assert faces[0].gt[(slice(None), *faces[0].inner)].shape == (3, 34, 34)


class FirstPixelDetector:
    """A detector that finds a face where the image's first pixel is bright."""

    def find(self, photo):
        return [Face((10.0, 10.0, 40.0, 40.0), 1.0, np.zeros((5, 2)))] if photo[0, 0, 0] > 0.5 else []


def test_photo_folder_is_probed(tmp_path, probe):
    rng = np.random.default_rng(0)
    for name, first in (("a.png", 1), ("b.png", 1), ("holiday/tree.png", 0), ("holiday/me.png", 1)):
        photo = rng.random((60, 64, 3), dtype=np.float32)
        photo[0, 0] = first
        write_png(tmp_path / "photos" / name, photo)
    (tmp_path / "photos/notes.txt").write_text("no image")
    found = probe(photos=tmp_path / "photos", detector=FirstPixelDetector())(tmp_path / "run")
    assert found["names"] == ["a.png", "b.png", "holiday/me.png"] and found["people"] == 3
    assert {"name": "holiday/tree.png", "reason": "no face found"} in found["left_out"]
    assert "left out: holiday/tree.png (no face found)" in summary(found)
    assert found["leakage"]["identity"] is None
    (tmp_path / "photos/a.png").unlink()
    (tmp_path / "photos/holiday/me.png").unlink()
    with pytest.raises(ValueError, match=r"has 1: holiday/tree\.png: no face found; notes\.txt: not an image"):
        faces_of_photos(tmp_path / "photos", FirstPixelDetector(), crop=32, margin=4, count=5)
    with pytest.raises(FileNotFoundError, match=r"probe\.photos="):
        faces_of_photos(tmp_path / "nowhere", FirstPixelDetector(), crop=32, margin=4, count=5)
