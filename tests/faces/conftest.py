"""Fixtures of tests/faces."""

import shutil

import numpy as np
import pytest
from face_backends import write_constant_onnx

from face2scene.faces.backends.insightface import InsightBackend
from face2scene.faces.detect import Detector
from face2scene.image_io.arrays import read_image, resize, to_array, to_tensor


@pytest.fixture(scope="module")
def portraits(weights):
    folder = weights("photos_face_recognition")
    photos = {name: to_tensor(read_image(folder / f"{name}.jpg")) for name in ("obama", "obama2", "biden")}
    return {name: to_array(resize(p, (p.shape[1] * 480 // p.shape[2], 480))) for name, p in photos.items()}


@pytest.fixture(scope="module")
def insightface_small(weights):
    weights("insightface_small")
    return Detector(InsightBackend("insightface_small", det_size=640), max_side=640)


@pytest.fixture
def buffalo_like_pack(tmp_path, weights):
    """A folder shaped like buffalo_l: a real detector, a 3D landmark net of known answer, an identity net."""
    folder = tmp_path / "buffalo"
    folder.mkdir()
    shutil.copy(weights("insightface_small") / "scrfd_500m_bnkps.onnx", folder / "det_10g.onnx")
    circle = np.stack([np.cos(np.arange(68)), np.sin(np.arange(68)), np.zeros(68)], axis=1) * 0.5
    answer = np.concatenate([np.full((1035, 3), 9.0), circle])
    write_constant_onnx(folder / "1k3d68.onnx", ["None", 3, 192, 192], answer.ravel())
    write_constant_onnx(folder / "2d106det.onnx", ["None", 3, 192, 192], np.zeros(212))
    write_constant_onnx(folder / "genderage.onnx", ["None", 3, 96, 96], np.zeros(3))
    write_constant_onnx(folder / "w600k_r50.onnx", [1, 3, 112, 112], np.arange(1, 513))
    return folder
