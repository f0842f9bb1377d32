"""Alignment, and detection and identity on real photos."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from face2scene.common.types import Face
from face2scene.faces.align import (
    ARCFACE_112,
    FFHQ_512,
    AlignmentError,
    Similarity,
    align_face,
    face_crop_box,
    face_transform,
    paste_back,
    similarity,
    square_crop_box,
    warp,
)
from face2scene.faces.backends.yunet_dlib import OpenBackend
from face2scene.faces.detect import Detector
from face2scene.faces.identity import cosine
from face2scene.faces.matching import FaceMatch, ReferenceGallery
from face2scene.image_io.arrays import read_image, to_array, to_tensor

TILTED_FACE = np.array([[110.0, 140], [170, 118], [152, 168], [140, 200], [186, 182]])


def similarity_from_degrees(degrees: float, scale: float, dx: float, dy: float) -> Similarity:
    c, s = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    return Similarity(np.array([[c, -s, dx], [s, c, dy]]))


def smooth_scene(height: int = 240, width: int = 320) -> torch.Tensor:
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)[0] * 0.5 + 0.25


def make_face(vector, model="m") -> Face:
    vector = np.asarray(vector, dtype=np.float32)
    return Face((0, 0, 9, 9), 1.0, TILTED_FACE, identity=vector / np.linalg.norm(vector), identity_model=model)


@pytest.mark.parametrize("degrees", [0, 33, 90, 180, -120])
def test_similarity_recovers_transform(degrees):
    gt = similarity_from_degrees(degrees, 1.7, 40, -12)
    found = similarity(FFHQ_512, gt(FFHQ_512))
    np.testing.assert_allclose(found.matrix, gt.matrix, atol=1e-9)
    assert found.scale == pytest.approx(1.7)


def test_transform_inverse_round_trip():
    transform = face_transform(TILTED_FACE)
    points = np.random.default_rng(0).uniform(0, 4000, (100, 2))
    assert np.abs(transform.inverse()(transform(points)) - points).max() < 1e-4
    assert np.abs(transform(TILTED_FACE) - FFHQ_512).mean() < 20  # near the template


def test_similarity_never_reflects():
    mirrored = ARCFACE_112 * [-1, 1]
    assert np.linalg.det(similarity(mirrored, ARCFACE_112).matrix[:, :2]) > 0


@pytest.mark.parametrize(
    "points",
    [np.ones((5, 2)), np.outer(np.arange(5), [1.0, 2.0]), np.full((5, 2), np.nan), np.zeros((4, 2))],
    ids=["one point", "one line", "nan", "four points"],
)
def test_degenerate_landmarks_are_refused(points):
    with pytest.raises(AlignmentError):
        face_transform(points)


def test_identity_warp_is_identity():
    scene = smooth_scene()
    torch.testing.assert_close(warp(scene, similarity_from_degrees(0, 1, 0, 0), (240, 320)), scene, atol=1e-4, rtol=0)


def test_downscaling_warp_is_antialiased():
    stripes = (torch.arange(256) % 2).float().expand(3, 256, 256)
    small = warp(stripes, similarity_from_degrees(0, 1 / 4, -0.375, -0.375), (64, 64))
    assert (small - 0.5).abs().max() < 1e-3


def test_integer_crop_paste_back_is_exact():
    scene = torch.rand(3, 60, 80, generator=torch.Generator().manual_seed(1))
    shift = similarity_from_degrees(0, 1, -20, -10)
    face = warp(scene, shift, (32, 32))
    torch.testing.assert_close(face, scene[:, 10:42, 20:52], atol=1e-5, rtol=0)
    for feather in (0, 0.1):
        torch.testing.assert_close(paste_back(scene, face, shift, feather=feather), scene, atol=1e-5, rtol=0)


def test_aligned_face_paste_back():
    scene = smooth_scene()
    face, transform = align_face(scene, TILTED_FACE, size=512)
    pasted = paste_back(scene, face, transform)
    assert (pasted - scene).abs().max() < 3e-3  # bilinear error on a smooth scene
    assert (pasted - scene).abs().mean() < 1e-4


def test_paste_back_stays_inside_face():
    scene = smooth_scene()
    transform = similarity_from_degrees(0, 2, -100, -100)  # the 64-pixel face is the square 50 to 82 of the scene
    pasted = paste_back(scene, torch.zeros(3, 64, 64), transform, feather=0)
    touched = (pasted != scene).any(0).nonzero()
    assert touched.min(0).values.tolist() == [50, 50]
    assert touched.max(0).values.tolist() == [81, 81]
    assert pasted[:, 50:82, 50:82].abs().max() == 0


def test_paste_back_outside_scene_is_no_op():
    scene = smooth_scene()
    torch.testing.assert_close(
        paste_back(scene, torch.zeros(3, 64, 64), similarity_from_degrees(0, 1, 900, 900)), scene
    )


def test_square_crop_box_bounds():
    assert square_crop_box((40, 40, 60, 70), (100, 200), margin=0.2) == (29, 34, 71, 76)
    assert square_crop_box((-9, -9, 21, 21), (100, 200), margin=0.0) == (0, 0, 30, 30)
    assert square_crop_box((10, 10, 12, 13), (100, 200)) == (3, 4, 19, 20)
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = rng.integers(16, 90, 2)
        x, y = rng.uniform(-10, 80, 2)
        x0, y0, x1, y1 = square_crop_box((x, y, x + rng.uniform(1, 70), y + rng.uniform(1, 70)), (height, width))
        assert x0 >= 0 and x1 <= width and y0 >= 0 and y1 <= height
        assert x1 - x0 == y1 - y0 >= 16


def test_face_crop_is_native_and_at_most_max_size():
    assert face_crop_box((40, 40, 60, 70), (100, 200)) == square_crop_box((40, 40, 60, 70), (100, 200))
    large = (100.0, 100.0, 501.0, 500.0)  # its square is 561 pixels wide
    assert face_crop_box(large, (900, 900)) == (172, 172, 428, 428)
    assert face_crop_box(large, (900, 900), max_size=600) == square_crop_box(large, (900, 900))


def test_small_image_or_empty_box_is_refused():
    with pytest.raises(AlignmentError, match="at least 16"):
        square_crop_box((0, 0, 5, 5), (15, 90))
    with pytest.raises(AlignmentError, match="empty"):
        square_crop_box((5, 5, 5, 9), (64, 64))


def known(people, threshold):
    seen = {name: [(Path(f"{name}{n}.png"), face) for n, face in enumerate(faces)] for name, faces in people.items()}
    return ReferenceGallery({name: tuple(path for path, _ in photos) for name, photos in seen.items()}, seen, threshold)


def test_match_needs_threshold_and_margin():
    people = {"ann": [make_face([1, 0, 0])], "bea": [make_face([0, 1, 0]), make_face([0, 0.9, 0.1])]}
    faces = [
        make_face([1, 0.1, 0]),  # ann
        make_face([0.05, 1, 0.05]),  # bea
        make_face([0, 0, 1]),  # nobody
        make_face([1, 0.99, 0]),  # between the two
        make_face([1, 0.3, 0]),  # less ann than the first
        Face((0, 0, 9, 9), 1.0, TILTED_FACE),  # no identity
    ]
    found = known(people, 0.7).named(faces)
    assert [m.person for m in found] == ["ann", "bea", None, None, None, None]
    assert found[1].reference == "bea0.png" and found[4] == FaceMatch(similarity=cosine(faces[4], people["ann"][0]))
    assert known(people, 0.7).named(faces[::-1]) == found[::-1]
    assert known({}, 0.7).named(faces) == [FaceMatch()] * 6


def test_embeddings_of_two_models_are_refused():
    with pytest.raises(ValueError, match="different spaces"):
        cosine(make_face([1, 0]), make_face([1, 0], model="other"))


def test_no_backend_finds_no_faces():
    assert Detector(None).find(np.zeros((64, 64, 3), np.float32)) == []


def test_image_out_of_range_is_refused():
    with pytest.raises(ValueError, match="float image"):
        Detector(None).find(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        Detector(None).find(np.full((64, 64, 3), 128.0, np.float32))


@pytest.fixture(scope="module")
def detector():
    return Detector(OpenBackend())


def test_real_photos_match_by_identity(weights, detector):
    weights("yunet"), weights("dlib")
    photos = weights("photos_face_recognition")
    found = {n: detector.find(read_image(photos / f"{n}.jpg")) for n in ("obama", "obama2", "obama3", "biden")}
    assert [len(faces) for faces in found.values()] == [1, 1, 1, 1]
    people = {"obama": [found["obama"][0], found["obama3"][0]]}
    named = known(people, detector.same_threshold).named([found["biden"][0], found["obama2"][0]])
    assert [m.person for m in named] == [None, "obama"]
    assert named[1].similarity - named[0].similarity > 0.08


def test_tilted_head_keeps_identity(weights, detector):
    weights("yunet"), weights("dlib")
    photo = read_image(weights("photos_face_recognition") / "obama.jpg")[:640]
    tilt = similarity_from_degrees(25, 0.8, 250, -60)
    (upright,) = detector.find(photo)
    (tilted,) = detector.find(to_array(warp(to_tensor(photo), tilt, (800, 900))).clip(0, 1))
    assert cosine(upright, tilted) > 0.97
    off = np.linalg.norm(tilt(upright.landmarks_68) - tilted.landmarks_68, axis=1)
    assert off.mean() < 0.02 * tilted.size


def test_landmarks_agree_on_tight_crop(weights, detector):
    weights("yunet"), weights("dlib")
    photo = read_image(weights("photos_face_recognition") / "obama.jpg")
    (face,) = detector.find(photo)
    eye = face.landmarks_68[36:42].mean(0)
    assert np.linalg.norm(eye - face.landmarks_5[0]) < 0.05 * face.size
    x0, y0, x1, y1 = (int(v) for v in face.box)
    (tight,) = detector.find(photo[y0:y1, x0:x1])
    assert cosine(face, tight) > 0.95
    assert detector.find(np.full((200, 200, 3), 0.5, np.float32)) == []
