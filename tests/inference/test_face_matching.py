"""Whose face is whose, whose photos restore it, and which tokens come of it."""

import numpy as np
import pytest
import torch
from PIL import Image

from face2scene.common.types import Face
from face2scene.image_io.arrays import write_png
from face2scene.ref_fr import Copy, FaceRestorationError


class StubDetector:
    """Finds the faces it was given in scenes; the brightness of a reference, 20 pixels high, is its identity."""

    identities, same_threshold, identity_model = True, 0.9, "test"

    def __init__(self, *faces: Face, restored: float | None = None):
        self.faces, self.restored = faces, restored
        self.backend = self

    def find(self, image: np.ndarray) -> list[Face]:
        if image.shape[0] != 20:
            return list(self.faces)
        return [face_with_identity((4, 4, 16, 16), float(image.mean()) * 2.55)]

    def describe(self, image, found, *, identities):
        one = self.restored
        return [face_with_identity(found[0].box, one if isinstance(one, float) else one[found[0].box])]


def face_with_identity(box, angle: float) -> Face:
    identity = np.array([np.cos(angle), np.sin(angle)])
    return Face(tuple(map(float, box)), 0.9, np.zeros((5, 2)), identity=identity, identity_model="test")


def reference(folder, name: str, angle: float):
    write_png(folder / f"{name}.png", np.full((20, 20, 3), angle / 2.55, dtype=np.float32))
    return folder / f"{name}.png"


class RecordingStageOne(Copy):
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
def two_people(tmp_path):
    folder = tmp_path / "people"
    return {"ann": [reference(folder, "ann", ANN)], "bob": [reference(folder, "bob", BOB)]}


def pipeline_with_faces(make_pipeline, *faces, **options):
    restored = options.pop("restored", ANN)
    detector = StubDetector(*faces, restored=restored)
    return make_pipeline(ref_fr=RecordingStageOne(), detector=detector, **options)


NOISE_IMAGE = torch.rand(3, 56, 64, generator=torch.Generator().manual_seed(0))


def test_faces_use_their_own_references(make_pipeline, two_people):
    pipeline = pipeline_with_faces(
        make_pipeline, face_with_identity(LARGE, BOB + 0.1), face_with_identity(SMALL, ANN), token_aggregation="mean"
    )
    pipeline.detector.describe = lambda image, found, identities: [
        face_with_identity(found[0].box, {2: BOB, 36: ANN}[found[0].box[0]])
    ]
    result = pipeline(NOISE_IMAGE, two_people)
    assert pipeline.ref_fr.given == [["bob.png"], ["ann.png"]] and result.notes["warnings"] == []
    assert [(f["person"], f["reference"]) for f in result.notes["faces"]] == [("bob", "bob.png"), ("ann", "ann.png")]
    assert [reading.person for reading in result.estimate.face_estimates] == ["bob", "ann"]
    areas = torch.tensor([(b[2] - b[0]) ** 2.0 for b in result.notes["token_faces"]])
    parts = [reading.tokens for reading in result.estimate.face_estimates]
    mean = (areas[0] * parts[0] + areas[1] * parts[1]) / areas.sum()
    torch.testing.assert_close(result.estimate.tokens.tokens, mean)


def test_known_face_precedes_larger_stranger(make_pipeline, two_people):
    pipeline = pipeline_with_faces(make_pipeline, face_with_identity(LARGE, 2.5), face_with_identity(SMALL, ANN))
    result = pipeline(NOISE_IMAGE, two_people)
    assert pipeline.ref_fr.given == [["ann.png"]] and result.token_source == "pair"
    assert result.notes["token_faces"][0][0] > 30


def test_nearest_keeps_tokens_per_face(make_pipeline, two_people):
    pipeline = pipeline_with_faces(
        make_pipeline,
        face_with_identity(LARGE, BOB),
        face_with_identity(SMALL, ANN),
        token_aggregation="nearest",
        identity_tolerance=2,
    )
    tokens = pipeline.estimate(pipeline.scene(NOISE_IMAGE, two_people)[0]).tokens
    assert len(tokens.tokens) == 2 and torch.equal(tokens.near((0, 0, 8, 8)), tokens.tokens[:1])
    assert torch.equal(tokens.near((40, 40, 64, 56)), tokens.tokens[1:])


def test_unmatched_references_are_not_used(make_pipeline, two_people):
    result = pipeline_with_faces(make_pipeline, face_with_identity(LARGE, 2.5))(NOISE_IMAGE, two_people)
    assert result.token_source == "null" and "show nobody in the image" in result.notes["warnings"][0]
    assert "it got no photos" in result.notes["warnings"][-1]


def test_identity_tolerance_accepts_with_note(make_pipeline, two_people):
    doubtful = float(np.arccos(0.87))  # of 0.9
    result = pipeline_with_faces(make_pipeline, face_with_identity(LARGE, doubtful))(NOISE_IMAGE, two_people["ann"])
    assert result.token_source == "pair" and "was taken for that person" in result.notes["warnings"][0]
    strict = pipeline_with_faces(make_pipeline, face_with_identity(LARGE, doubtful), identity_tolerance=0.0)(
        NOISE_IMAGE, two_people["ann"]
    )
    assert strict.token_source == "null" and "show nobody" in strict.notes["warnings"][0]


def test_changed_identity_is_rejected(make_pipeline, two_people):
    result = pipeline_with_faces(make_pipeline, face_with_identity(LARGE, ANN), restored=1.0)(NOISE_IMAGE, two_people)
    assert result.token_source == "null" and "resembles ann by 0.540 only" in result.notes["warnings"][0]


@pytest.mark.parametrize("given", ["folder", "files", "images", "one"])
def test_reference_input_types(make_pipeline, tmp_path, given):
    path = reference(tmp_path / "ann", "1", ANN)
    kinds = {
        "folder": tmp_path / "ann",
        "files": [path],
        "images": {"ann": [Image.open(path)]},
        "one": str(path),
    }
    pipeline = pipeline_with_faces(make_pipeline, face_with_identity(LARGE, ANN))
    assert pipeline(NOISE_IMAGE, kinds[given]).token_source == "pair" and len(pipeline.ref_fr.given[0]) == 1
    with pytest.raises(FileNotFoundError, match="no reference photo at"):
        pipeline(NOISE_IMAGE, [tmp_path / "gone.png"])


def test_replaced_reference_is_read_again(make_pipeline, two_people):
    pipeline = pipeline_with_faces(make_pipeline, face_with_identity(LARGE, BOB))
    scene, _ = pipeline.scene(NOISE_IMAGE, {"somebody": two_people["ann"]})
    assert pipeline.find_faces(scene).notes["faces"][0]["person"] is None
    reference(two_people["ann"][0].parent, "ann", BOB)
    assert pipeline.find_faces(scene).notes["faces"][0]["person"] == "somebody"
