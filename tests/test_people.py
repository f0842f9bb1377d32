"""Whose face is whose, whose photos restore it, and which tokens come of it."""

import numpy as np
import pytest
import torch
from PIL import Image

from face2scene.common.types import Face
from face2scene.image_io.arrays import write_png
from face2scene.ref_fr import Copy, FaceRestorationError


class Crowd:
    """Finds the faces it was given in scenes; a reference, 20 pixels high, shows somebody by its brightness."""

    identities, same_threshold, identity_model = True, 0.9, "test"

    def __init__(self, *faces: Face, restored: float | None = None):
        self.faces, self.restored = faces, restored
        self.backend = self

    def find(self, image: np.ndarray) -> list[Face]:
        if image.shape[0] != 20:
            return list(self.faces)
        return [somebody((4, 4, 16, 16), float(image.mean()) * 2.55)]

    def describe(self, image, found, *, identities):
        one = self.restored
        return [somebody(found[0].box, one if isinstance(one, float) else one[found[0].box])]


def somebody(box, angle: float) -> Face:
    identity = np.array([np.cos(angle), np.sin(angle)])
    return Face(tuple(map(float, box)), 0.9, np.zeros((5, 2)), identity=identity, identity_model="test")


def reference(folder, name: str, angle: float):
    write_png(folder / f"{name}.png", np.full((20, 20, 3), angle / 2.55, dtype=np.float32))
    return folder / f"{name}.png"


class Recorded(Copy):
    """Stage I that does nothing and keeps whose photos it was given."""

    name = "recorded"

    def __init__(self):
        object.__setattr__(self, "given", [])

    def restore(self, degraded, references, *, gt, rng):
        self.given.append([path.name for path in references])
        if not references:
            raise FaceRestorationError("it got no photos")
        return degraded * 0.9


ANN, BOB, LARGE, SMALL = 0.0, 1.2, (2, 2, 30, 30), (36, 30, 56, 50)


@pytest.fixture
def two(tmp_path):
    folder = tmp_path / "people"
    return {"ann": [reference(folder, "ann", ANN)], "bob": [reference(folder, "bob", BOB)]}


def crowd(make_pipeline, *faces, **options):
    restored = options.pop("restored", ANN)
    detector = Crowd(*faces, restored=restored)
    return make_pipeline(ref_fr=Recorded(), detector=detector, **options)


NOISE = torch.rand(3, 56, 64, generator=torch.Generator().manual_seed(0))


def test_everybody_is_restored_by_own_photos_and_the_log_names_them(make_pipeline, two):
    pipeline = crowd(make_pipeline, somebody(LARGE, BOB + 0.1), somebody(SMALL, ANN), token_aggregation="mean")
    pipeline.detector.describe = lambda image, found, identities: [
        somebody(found[0].box, {2: BOB, 36: ANN}[found[0].box[0]])
    ]
    result = pipeline(NOISE, two)
    assert pipeline.ref_fr.given == [["bob.png"], ["ann.png"]] and result.notes["warnings"] == []
    assert [(f["person"], f["reference"]) for f in result.notes["faces"]] == [("bob", "bob.png"), ("ann", "ann.png")]
    assert [reading.person for reading in result.estimate.face_estimates] == ["bob", "ann"]
    areas = torch.tensor([(b[2] - b[0]) ** 2.0 for b in result.notes["token_faces"]])
    parts = [reading.tokens for reading in result.estimate.face_estimates]
    mean = (areas[0] * parts[0] + areas[1] * parts[1]) / areas.sum()
    torch.testing.assert_close(result.estimate.tokens.tokens, mean)


def test_the_largest_known_face_goes_before_a_larger_stranger(make_pipeline, two):
    pipeline = crowd(make_pipeline, somebody(LARGE, 2.5), somebody(SMALL, ANN))
    result = pipeline(NOISE, two)
    assert pipeline.ref_fr.given == [["ann.png"]] and result.token_source == "pair"
    assert result.notes["token_faces"][0][0] > 30


def test_nearest_keeps_one_set_of_tokens_for_each_face(make_pipeline, two):
    pipeline = crowd(
        make_pipeline, somebody(LARGE, BOB), somebody(SMALL, ANN), token_aggregation="nearest", identity_tolerance=2
    )
    tokens = pipeline.estimate(pipeline.scene(NOISE, two)[0]).tokens
    assert len(tokens.tokens) == 2 and torch.equal(tokens.near((0, 0, 8, 8)), tokens.tokens[:1])
    assert torch.equal(tokens.near((40, 40, 64, 56)), tokens.tokens[1:])


def test_references_of_nobody_in_the_picture_are_said_and_not_used(make_pipeline, two):
    result = crowd(make_pipeline, somebody(LARGE, 2.5))(NOISE, two)
    assert result.token_source == "null" and "show nobody in the image" in result.notes["warnings"][0]
    assert "it got no photos" in result.notes["warnings"][-1]


def test_a_damaged_face_may_resemble_its_person_less_but_the_log_says_so(make_pipeline, two):
    doubtful = float(np.arccos(0.87))  # of 0.9
    result = crowd(make_pipeline, somebody(LARGE, doubtful))(NOISE, two["ann"])
    assert result.token_source == "pair" and "was taken for that person" in result.notes["warnings"][0]
    strict = crowd(make_pipeline, somebody(LARGE, doubtful), identity_tolerance=0.0)(NOISE, two["ann"])
    assert strict.token_source == "null" and "show nobody" in strict.notes["warnings"][0]


def test_stage_one_that_makes_somebody_else_of_a_face_is_rejected(make_pipeline, two):
    result = crowd(make_pipeline, somebody(LARGE, ANN), restored=1.0)(NOISE, two)
    assert result.token_source == "null" and "resembles ann by 0.540 only" in result.notes["warnings"][0]


@pytest.mark.parametrize("given", ["folder", "files", "pictures", "one"])
def test_references_come_as_folders_files_or_pictures(make_pipeline, tmp_path, given):
    path = reference(tmp_path / "ann", "1", ANN)
    kinds = {
        "folder": tmp_path / "ann",
        "files": [path],
        "pictures": {"ann": [Image.open(path)]},
        "one": str(path),
    }
    pipeline = crowd(make_pipeline, somebody(LARGE, ANN))
    assert pipeline(NOISE, kinds[given]).token_source == "pair" and len(pipeline.ref_fr.given[0]) == 1
    with pytest.raises(FileNotFoundError, match="no reference photo at"):
        pipeline(NOISE, [tmp_path / "gone.png"])
