"""Selection and description of FaceMe's reference photos."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_faceme import tiny
from torch.nn import functional as F

from face2scene.image_io.arrays import to_bytes
from face2scene.ref_fr.faceme.id_encoder import clip_pixels
from face2scene.ref_fr.faceme.references import Antelope, Reference, ReferenceCache, ReferenceFace, choose, quality

pytestmark = pytest.mark.usefixtures("faceme_parts_made_once")


def make_reference(name: str, angle: float, quality: float) -> Reference:
    identity = np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)
    return Reference(Path(name), identity, torch.zeros(8), quality)


def test_majority_identity_is_used():
    described = [make_reference("a", 0, 0.1), make_reference("b", 2, 0.9), make_reference("c", 0.1, 0.2), None]
    chosen, notes = choose([Path(n) for n in "abcd"], described, max_references=4, same_person=0.3)
    assert [one.path.name for one in chosen] == ["a", "c"]
    assert "without a face" in notes[0] and "d" in notes[0]
    assert "several people" in notes[1] and notes[1].endswith("left out: b.")


def test_best_references_keep_order():
    described = [make_reference(n, 0, q) for n, q in zip("abcde", (0.5, 0.1, 0.9, 0.7, 0.6), strict=True)]
    chosen, notes = choose([Path(n) for n in "abcde"], described, max_references=3, same_person=0.3)
    assert [one.path.name for one in chosen] == ["c", "d", "e"] and "best 3 of 5" in notes[0]


def test_reference_cache_evicts_oldest(people):
    cache = ReferenceCache(size=2)
    for number, path in enumerate(people["ann"]):
        assert cache.missing([path, path]) == [path]
        cache.write(path, make_reference(f"{number}", 0, 0.5))
        assert cache.read([path])[0].path == Path(str(number))
    assert cache.missing(people["ann"]) == people["ann"][:1]
    model = tiny()
    model.reference_tokens(people["bob"])
    numbers = [entry.appearance.numel() + entry.identity.size for entry in model._references.read(people["bob"])]
    assert numbers == [32 + 8] * 3


def test_quality_prefers_large_frontal_sharp(photo):
    points = np.array([[70.0, 80], [130, 80], [100, 110], [75, 140], [125, 140]])
    image = to_bytes(photo)
    turned = points.copy()
    turned[2, 0] = 125
    face = ReferenceFace((0, 0, 300, 300), points, np.ones(2))
    sharp = clip_pixels(image, face.box)
    soft = F.avg_pool2d(F.pad(sharp[None], (4, 4, 4, 4), mode="replicate"), 9, 1)[0]
    best = quality(face, sharp)
    assert best > quality(face, soft) > 0
    assert best > quality(ReferenceFace(face.box, turned, np.ones(2)), sharp)
    assert best > quality(ReferenceFace((0, 0, 60, 60), points, np.ones(2)), sharp)


class FakeDetector:
    def __init__(self, found_at: int):
        self.found_at, self.sizes, self.images = found_at, [], []

    def detect(self, image, input_size):
        self.sizes.append(input_size[0])
        self.images.append(image)
        if input_size[0] != self.found_at:
            return np.empty((0, 5), np.float32), np.empty((0, 5, 2), np.float32)
        points = np.array([[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]], np.float32)
        return np.float32([[0, 0, 20, 20, 0.9], [10, 12, 112, 112, 0.8]]), np.stack([points / 5, points])


def test_arcface_gets_largest_face_as_rgb(weights, photo):
    """With the small ArcFace of the packaged weights: the embedding is that of swapped channels."""
    from insightface import model_zoo as zoo

    file = next(weights("w600k_mbf").glob("*.onnx"))
    recogniser = zoo.get_model(str(file), providers=["CPUExecutionProvider"])
    image = to_bytes(photo[10:290, 110:390])[::2, ::2].copy()
    antelope, detector = Antelope("unused"), FakeDetector(found_at=576)
    antelope.__dict__["_networks"] = [detector, recogniser]
    face = antelope.detect(image)
    assert detector.sizes == [512, 640, 576] and face.box == (10, 12, 112, 112)
    import cv2
    from insightface.utils.face_align import norm_crop

    crop = norm_crop(image, landmark=face.points, image_size=112)
    blob = cv2.dnn.blobFromImages([crop[..., ::-1]], 1 / 127.5, (112, 112), (127.5,) * 3, swapRB=False)
    swapped = recogniser.session.run(None, {recogniser.input_name: blob})[0][0]
    np.testing.assert_allclose(face.identity, swapped / np.linalg.norm(swapped), atol=1e-5)
    right = recogniser.get_feat(np.ascontiguousarray(crop[..., ::-1]))[0]  # BGR, as the network expects
    assert face.identity @ right / np.linalg.norm(right) < 0.999
    detector.found_at = 0
    assert antelope.detect(image) is None and detector.sizes[-1] == 256
