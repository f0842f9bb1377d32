"""The backends insightface and facexlib: real networks where a package index has them, else of the same shapes."""

import numpy as np
import pytest
from face_backends import UPRIGHT_POINTS, write_nested_pack

from face2scene.common.types import Face
from face2scene.faces import embedding
from face2scene.faces.align import five_points, warp
from face2scene.faces.backends import insightface
from face2scene.faces.backends.insightface import InsightBackend, sixty_eight_of_106
from face2scene.faces.backends.insightface_packs import open_pack, pack_folder
from face2scene.faces.backends.yunet_dlib import OpenBackend
from face2scene.faces.detect import Detector
from face2scene.faces.embedding import onnx_session
from face2scene.faces.identity import cosine
from face2scene.faces.pose import upright_view
from face2scene.image_io.arrays import resize, to_array, to_bytes, to_tensor


def test_insightface_separates_identities(insightface_small, portraits, photo):
    found = {name: insightface_small.find(image) for name, image in {**portraits, "astronaut": photo}.items()}
    assert {name: len(faces) for name, faces in found.items()} == dict.fromkeys(found, 1)
    same = cosine(found["obama"][0], found["obama2"][0])
    different = cosine(found["obama"][0], found["biden"][0])
    assert same > insightface_small.same_threshold + 0.2 and different < insightface_small.same_threshold - 0.1
    assert found["obama"][0].identity_model == insightface_small.backend.identity_model == "w600k_mbf"


def test_68_landmarks_agree_with_dlib(insightface_small, portraits, weights):
    weights("yunet"), weights("dlib")
    judge = Detector(OpenBackend(), identities=False)
    for name in ("obama2", "biden"):
        (ours,), (witness,) = insightface_small.find(portraits[name]), judge.find(portraits[name])
        eyes = np.linalg.norm(np.diff(five_points(witness.landmarks_68)[:2], axis=0))
        off = np.linalg.norm(ours.landmarks_68 - witness.landmarks_68, axis=1) / eyes
        assert off[17:].mean() < 0.07 and off.max() < 0.3  # the outline is drawn differently
        assert np.abs(np.subtract(ours.pose, witness.pose)).max() < 12


def test_faces_are_embedded_in_one_batch(insightface_small, portraits, monkeypatch):
    both = np.concatenate([portraits["obama"][:480], portraits["biden"][:480]], axis=1)
    runs = []
    real = embedding.run_batch
    monkeypatch.setattr(embedding, "run_batch", lambda session, batch: runs.append(len(batch)) or real(session, batch))
    together = insightface_small.find(both)
    assert len(together) == 2 and runs == [2]
    for face in together:
        place = Face(face.box, face.score, face.landmarks_5)
        (alone,) = insightface_small.backend.describe(both, [place], identities=True)
        assert cosine(face, alone) > 0.9999
        np.testing.assert_allclose(face.landmarks_68, alone.landmarks_68, atol=1e-3)


def test_detector_input_is_never_upscaled(insightface_small, monkeypatch):
    seen = []
    detector = insightface_small.backend._networks.detector
    nothing = (np.empty((0, 5)), np.empty((0, 5, 2)))
    monkeypatch.setattr(
        detector, "detect", lambda image, input_size, det_thresh: seen.append((image.shape, input_size)) or nothing
    )
    for shape in ((900, 1200, 3), (300, 200, 3)):
        assert insightface_small.backend.search(np.zeros(shape, np.uint8)) == []
    assert seen == [((900, 1200, 3), (640, 640)), ((320, 320, 3), (320, 320))]
    with pytest.raises(ValueError, match=r"det_size is 500.*multiple of 32"):
        InsightBackend(det_size=500)


def test_padding_does_not_move_boxes(insightface_small, portraits):
    little = to_bytes(resize(to_tensor(portraits["obama"][:400]), (150, 175)))
    found = max(insightface_small.backend.search(little), key=lambda f: f.score)
    x0, y0, x1, y1 = found.box
    assert 0 < x0 < x1 < 175 and 0 < y0 < y1 < 150
    assert ((found.landmarks_5 > [x0, y0]) & (found.landmarks_5 < [x1, y1])).all()


def test_detectors_share_networks(insightface_small, weights):
    other = InsightBackend("insightface_small", det_size=320)
    assert other._networks is insightface_small.backend._networks
    assert onnx_session(weights("w600k_mbf") / "w600k_mbf.onnx") is onnx_session(
        weights("w600k_mbf") / "w600k_mbf.onnx"
    )


def test_3d_landmarks_are_in_image_pixels(buffalo_like_pack, portraits):
    (face,) = Detector(InsightBackend(buffalo_like_pack, det_size=640), max_side=640).find(portraits["obama"])
    view = upright_view(face.box, face.landmarks_5, 192, 1.5)
    expected = np.stack([np.cos(np.arange(68)), np.sin(np.arange(68))], axis=1) * 48 + 95.5
    np.testing.assert_allclose(view(face.landmarks_68), expected, atol=1e-3)
    assert face.identity_model == "w600k_r50" and face.identity.shape == (512,)
    assert np.linalg.norm(face.identity) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("degrees", [0, 40, 90, 180, -90])
def test_upright_view_of_any_rotation(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned = (UPRIGHT_POINTS - 60) @ np.array([[c, s], [-s, c]]) + 60
    low, high = turned.min(0), turned.max(0)
    view = upright_view((*low, *high), turned, 192, 1.5)
    left, right, _, mouth, _ = view(turned)
    assert abs(left[1] - right[1]) < 1e-6 and left[0] < right[0] and mouth[1] > left[1]
    np.testing.assert_allclose(view((low + high) / 2 - 0.5), [95.5, 95.5])


def test_68_of_106_keep_outline_order():
    points = np.zeros((106, 2))
    points[insightface._OUTLINE] = np.stack([np.arange(33.0), np.zeros(33)], axis=1)
    outline = sixty_eight_of_106(points)[:17, 0]
    assert (np.diff(outline) > 1).all() and outline[8] == 16
    np.testing.assert_allclose(outline + outline[::-1], 32)
    assert sorted([*insightface._OUTLINE, *insightface._INNER]) == sorted({*insightface._OUTLINE, *insightface._INNER})


def test_nested_catalogue_pack_is_read_in_place(tmp_path, weights, monkeypatch):
    inner = write_nested_pack(tmp_path, weights)
    before = {path.name: path.read_bytes() for path in inner.iterdir()}
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path))
    assert pack_folder("insightface_small") == inner
    assert [path.name for path in inner.parent.iterdir()] == [inner.name]
    assert {path.name: path.read_bytes() for path in inner.iterdir() if path.name != ".complete"} == before
    assert open_pack("insightface_small").landmarks.lmk_num == 106


def test_nested_pack_with_other_bytes_is_refused(tmp_path, weights, monkeypatch):
    inner = write_nested_pack(tmp_path, weights)
    with open(inner / "w600k_mbf.onnx", "r+b") as file:
        file.write(b"other")
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path))
    with pytest.raises(ValueError, match=r"a file has other bytes\. Run `face2scene fetch insightface_small`"):
        pack_folder("insightface_small")


def test_inverted_head_keeps_identity(insightface_small, portraits):
    (upright,) = insightface_small.find(portraits["obama"])
    flipped = np.ascontiguousarray(portraits["obama"][::-1, ::-1])
    height, width = flipped.shape[:2]
    points = [width - 1, height - 1] - upright.landmarks_5
    x0, y0, x1, y1 = upright.box
    place = Face((width - x1, height - y1, width - x0, height - y0), 1.0, points)
    (turned,) = insightface_small.backend.describe(flipped, [place], identities=True)
    assert cosine(upright, turned) > 0.99
    back = [width - 1, height - 1] - turned.landmarks_68
    assert np.linalg.norm(back - upright.landmarks_68, axis=1).mean() < 0.02 * upright.size
    view = upright_view(place.box, points, 64, 1.5)
    assert to_array(warp(to_tensor(flipped), view, (64, 64))).shape == (64, 64, 3)
