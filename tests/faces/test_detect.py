"""Detection of turned, many, large and dark faces; invalid images."""

import ast
import importlib.util
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from skimage import transform

from face2scene.common.reproducibility import REPOSITORY
from face2scene.common.types import Face
from face2scene.faces.align import (
    ARCFACE_112,
    FFHQ_512,
    AlignmentError,
    Similarity,
    align_face,
    face_transform,
    paste_back,
    similarity,
    warp,
)
from face2scene.faces.backends import yunet_dlib
from face2scene.faces.backends.yunet_dlib import OpenBackend
from face2scene.faces.detect import Detector
from face2scene.image_io.arrays import read_image, to_array, to_tensor

BALD_GUYS = Path("/usr/share/doc/libdlib19.1/examples/faces/bald_guys.jpg")  # of Debian's package libdlib19.1
OUTSIDE = np.array([[510.0, 40], [560, 40], [535, 70], [515, 95], [555, 95]])


class SpotBackend:
    """A backend whose faces are red squares with a blue chin, without a network."""

    identity_model = "spots"
    same_threshold = 1.0

    def __init__(self):
        self.sizes = []

    def search(self, image: np.ndarray) -> list[Face]:
        self.sizes.append(image.shape[:2])
        red = (image[..., 0] > 200) & (image[..., 2] < 60)
        blue = (image[..., 2] > 200) & (image[..., 0] < 60)
        if not red.any() or not blue.any():
            return []
        (y0, x0), (y1, x1) = (np.argwhere(red | blue).min(0), np.argwhere(red | blue).max(0) + 1)
        eyes, chin = np.argwhere(red).mean(0)[::-1], np.argwhere(blue).mean(0)[::-1]
        return [Face((x0, y0, x1, y1), 0.95, np.array([eyes, eyes, (eyes + chin) / 2, chin, chin], np.float64))]

    def describe(self, image, found, *, identities):
        return [Face(box=f.box, score=f.score, landmarks_5=f.landmarks_5) for f in found]


def spot_image(height: int, width: int, x: int, y: int, side: int = 40) -> np.ndarray:
    image = np.full((height, width, 3), 0.5, np.float32)
    image[y : y + side, x : x + side] = [1, 0, 0]
    image[y + side - side // 4 : y + side, x : x + side] = [0, 0, 1]
    return image


def package_file(package: str, path: str) -> Path:
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) / path


def rotate_about_centre(photo: np.ndarray, degrees: float) -> tuple[np.ndarray, Similarity]:
    height, width = photo.shape[:2]
    side = int(np.hypot(height, width)) + 1
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    linear = np.array([[cos, -sin], [sin, cos]])
    shift = (side - 1) / 2 - linear @ [(width - 1) / 2, (height - 1) / 2]
    turn = Similarity(np.column_stack([linear, shift]))
    return to_array(warp(to_tensor(photo), turn, (side, side))).clip(0, 1), turn


@pytest.fixture(scope="module")
def open_detector(weights):
    """configs/faces/open.yaml, without descriptions."""
    weights("yunet")
    config = OmegaConf.load(REPOSITORY / "configs/faces/open.yaml")
    return instantiate(config, landmarks=False, identities=False)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotated_search_maps_boxes_back(degrees):
    image = spot_image(300, 420, 250, 60)
    (straight,) = Detector(SpotBackend(), second_look=False).find(image)
    (turned,) = Detector(SpotBackend(), second_look=False, rotations=[degrees]).find(image)
    assert turned.box == straight.box == (250, 60, 290, 100)
    np.testing.assert_allclose(turned.landmarks_5, straight.landmarks_5, atol=1e-9)


def test_large_photo_is_downscaled_or_tiled():
    image = spot_image(2250, 3000, 2100, 1700, side=200)
    backend = SpotBackend()
    (face,) = Detector(backend, second_look=False).find(image)
    assert max(max(size) for size in backend.sizes) == 1024
    np.testing.assert_allclose(face.box, (2100, 1700, 2300, 1900), atol=6)
    backend = SpotBackend()
    (face,) = Detector(backend, max_side=3000, second_look=False).find(image)
    assert max(max(size) for size in backend.sizes) == 1536
    np.testing.assert_allclose(face.box, (2100, 1700, 2300, 1900), atol=6)


def test_min_face_size():
    image = spot_image(300, 420, 250, 60, side=14)
    assert Detector(SpotBackend(), second_look=False).find(image) == []
    assert len(Detector(SpotBackend(), second_look=False, min_face=10).find(image)) == 1


@pytest.mark.parametrize("degrees", [30, 45, 90, 135, 180, 270])
def test_rotated_head_landmarks(open_detector, photo, degrees):
    (upright,) = open_detector.find(photo)
    turned, turn = rotate_about_centre(photo, degrees)
    (face,) = open_detector.find(turned)
    off = np.linalg.norm(face.landmarks_5 - turn(upright.landmarks_5), axis=1).mean()
    assert off < 0.1 * upright.size  # the other way up it would be 0.4


def test_inverted_group_is_found(open_detector, weights):
    photo = read_image(weights("photos_face_api") / "sample5.jpg")[::2, ::2]
    upright = open_detector.find(photo)
    turned = open_detector.find(photo[::-1, ::-1])
    assert len(upright) == len(turned) == 5
    last = np.array(photo.shape[1::-1]) - 1
    for face in turned:
        off = [np.linalg.norm(last - other.landmarks_5 - face.landmarks_5, axis=1).mean() for other in upright]
        assert min(off) < 0.08 * face.size


def test_second_look_is_needed_when_inverted(open_detector, weights):
    # The reason for the second look: if this fails, it may no longer be needed.
    photo = read_image(weights("photos_face_api") / "sample5.jpg")[::2, ::2]
    plain = Detector(open_detector.backend, landmarks=False, identities=False, second_look=False, retries=[])
    faces = plain.find(photo[::-1, ::-1])
    assert any(face.landmarks_5[0, 1] < face.landmarks_5[3, 1] for face in faces)


def test_images_without_faces(open_detector):
    from skimage import data

    for name in ("coffee", "chelsea", "rocket"):
        assert open_detector.find(getattr(data, name)().astype(np.float32) / 255) == [], name


def test_dark_face_is_found_by_retry(open_detector, photo):
    dark = (photo * 0.02 * 255).round() / 255
    once = Detector(open_detector.backend, landmarks=False, identities=False, min_score=0.7, retries=[])
    assert once.find(dark.astype(np.float32)) == []
    (face,) = open_detector.find(dark.astype(np.float32))
    (bright,) = open_detector.find(photo)
    assert np.linalg.norm(face.landmarks_5 - bright.landmarks_5, axis=1).mean() < 0.08 * bright.size


@pytest.mark.slow
def test_bald_guys_photo_face_count(open_detector):
    assert BALD_GUYS.is_file(), "it comes with Debian's package libdlib19.1, not from a package index"
    faces = open_detector.find(read_image(BALD_GUYS))
    assert 22 <= sum(face.size > 100 for face in faces) <= 24


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((64, 64), np.float32), "a grey image"),
        (np.zeros((64, 64, 4), np.float32), "with transparency"),
        (np.zeros((3, 64, 64), np.float32), "channels first"),
        (np.zeros((64, 64, 3), np.uint8), "uint8"),
        (np.zeros((64, 64, 3), np.uint16), "uint16"),
        (np.full((64, 64, 3), 40000.0, np.float32), "16 bit by 65535"),
        (np.full((64, 64, 3), np.nan, np.float32), "NaN"),
    ],
    ids=["grey", "rgba", "tensor", "8 bit", "16 bit", "16-bit values", "nan"],
)
def test_invalid_image_names_reader(image, words):
    with pytest.raises(ValueError, match=words) as caught:
        Detector(None).find(image)
    assert "arrays.read_image" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rotations": [45]}, "faces.rotations"),
        ({"retries": ["louder"]}, "faces.retries"),
        ({"max_side": 9}, "max_side"),
    ],
)
def test_invalid_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Detector(None, **options)


def test_corrupt_network_names_fetch_command(monkeypatch, tmp_path):
    for name in ("yunet.onnx", "shape_predictor_68_face_landmarks.dat", "dlib_face_recognition_resnet_model_v1.dat"):
        (tmp_path / name).write_bytes(b"\x08\x07 no network" * 99)
    monkeypatch.setattr(yunet_dlib.catalogue, "folder", lambda name: tmp_path)
    backend = OpenBackend()
    with pytest.raises(ValueError, match=r"yunet\.onnx is not a readable network.*face2scene fetch yunet"):
        backend.search(np.zeros((64, 64, 3), np.uint8))
    for part in ("_predictor", "_embedder"):
        with pytest.raises(ValueError, match=r"\.dat is not a readable network.*face2scene fetch dlib"):
            getattr(backend, part)


def test_landmarks_outside_image_are_refused():
    with pytest.raises(AlignmentError, match="outside an image of 320 x 240"):
        align_face(torch.zeros(3, 240, 320), OUTSIDE)
    face_transform(OUTSIDE - [510, 40], image_size=(240, 320))  # one eye and a mouth corner at the very edge


def test_bad_landmarks_give_no_identity(photo):
    line = np.outer(np.arange(5.0), [20, 10]) + 100
    for points in (line, OUTSIDE + 400):
        (face,) = OpenBackend().describe(photo, [Face((90, 90, 200, 200), 0.9, points)], identities=True)
        assert face.identity is None and face.landmarks_68 is None and face.box == (90, 90, 200, 200)


def test_similarity_matches_skimage_and_opencv():
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = FFHQ_512 * rng.uniform(0.1, 4) + rng.uniform(-300, 3000, 2) + rng.normal(0, 3, (5, 2))
        ours = similarity(points, FFHQ_512).matrix
        umeyama = transform.SimilarityTransform.from_estimate(points, FFHQ_512).params[:2]
        np.testing.assert_allclose(ours, umeyama, rtol=1e-9, atol=1e-7)
        exact = Similarity(ours)(points)  # OpenCV's is robust and not least squares: equal only without noise
        theirs, _ = cv2.estimateAffinePartial2D(points, exact, method=cv2.LMEDS)
        assert np.abs(points @ theirs[:, :2].T + theirs[:, 2] - exact).max() < 1e-2


def test_templates_match_insightface_facexlib():
    face_align = package_file("insightface", "utils/face_align.py")
    spec = importlib.util.spec_from_file_location("face_align", face_align)  # the package itself takes long to import
    face_align = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(face_align)
    np.testing.assert_allclose(face_align.arcface_dst, ARCFACE_112, atol=1e-4)
    points = ARCFACE_112 * 2.5 + [300, 40] + np.random.default_rng(0).normal(0, 2, (5, 2))
    theirs = face_align.estimate_norm(points, 112)
    np.testing.assert_allclose(face_transform(points, 112, "arcface").matrix, theirs, rtol=1e-6, atol=1e-4)

    source = package_file("facexlib", "utils/face_restoration_helper.py").read_text()
    numbers = re.search(r"self\.face_template = np\.array\((\[\[192\..*?\]\])\)", source, re.DOTALL)
    np.testing.assert_allclose(ast.literal_eval(numbers[1]), FFHQ_512, atol=1e-4)


def test_real_face_paste_back_error(photo):
    points = np.array([[202.0, 107], [243, 106], [221, 129], [207, 149], [241, 148]])  # the astronaut's
    scene = to_tensor(photo)
    face, transform = align_face(scene, points)
    error = paste_back(scene, face, transform) - scene
    touched = error[:, (error != 0).any(0)]
    # Enlarged 3.2 times and averaged back, which softens single-pixel detail: 35 dB, 3 of 255 levels on average.
    assert -10 * torch.log10((touched**2).mean()) > 34
    assert touched.abs().mean() < 3.5 / 255
    corners = transform.inverse()(np.array([[-1.0, -1], [512, -1], [-1, 512], [512, 512]]))
    (x0, y0), (x1, y1) = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
    error[:, max(y0, 0) : y1 + 1, max(x0, 0) : x1 + 1] = 0
    assert error.abs().max() == 0
