"""Facexlib."""

import shutil

import numpy as np
import pytest
import torch
from face_backends import UPRIGHT_POINTS

from face2scene.assets.catalogue import MissingWeights
from face2scene.common.types import Face
from face2scene.faces.backends import facexlib
from face2scene.faces.backends.facexlib import FacexBackend, IrSe50, peaks
from face2scene.faces.detect import Detector
from face2scene.faces.embedding import OnnxIdentity
from face2scene.faces.identity import cosine
from face2scene.faces.pose import upright_view


@pytest.fixture(scope="module")
def retinaface(weights):
    weights("retinaface_mobile025"), weights("w600k_mbf")
    return Detector(FacexBackend(network="mobile0.25", landmarks=False, identity=OnnxIdentity()))


class FixedMaps(torch.nn.Module):
    """In place of the landmark network: heat maps with one peak for each point, whatever the input."""

    def __init__(self, cells):
        super().__init__()
        self.cells, self.batches = cells, []

    def forward(self, images):
        self.batches.append(len(images))
        maps = torch.zeros(len(images), 99, 64, 64)
        for number, (x, y) in enumerate(self.cells):
            maps[:, number, y, x] = 1
        return [None, maps], None


def save_asset(folder, asset, file, state):
    (folder / asset).mkdir()
    torch.save(state, folder / asset / file)


def test_degenerate_face_has_no_identity(weights):
    weights("w600k_mbf")
    image = np.random.default_rng(0).uniform(size=(128, 128, 3)).astype(np.float32)
    whole, broken = (
        Face((30, 30, 90, 110), 1.0, UPRIGHT_POINTS),
        Face((0, 0, 20, 20), 1.0, np.full((5, 2), 7.0)),
    )
    backend = FacexBackend(network="mobile0.25", landmarks=False, identity=OnnxIdentity())
    faces = backend.describe(image, [broken, whole, broken], identities=True)
    assert [face.identity is None for face in faces] == [True, False, True]
    assert backend.describe(image, [], identities=True) == []


def test_retinaface_agrees_with_scrfd(retinaface, insightface_small, portraits, photo):
    for image in (*portraits.values(), photo):
        (face,), (witness,) = retinaface.find(image), insightface_small.find(image)
        assert np.linalg.norm(face.landmarks_5 - witness.landmarks_5, axis=1).mean() < 0.06 * face.size
        assert cosine(face, witness) > 0.9  # one identity network, two alignments
        assert face.landmarks_68 is None and face.pose is not None
    assert retinaface.find(np.full((200, 200, 3), 0.5, np.float32)) == []


def test_networks_are_loaded_once(retinaface, weights):
    retinaface.backend.search(np.zeros((64, 64, 3), np.uint8))
    opened = facexlib._network.cache_info().misses
    FacexBackend(network="mobile0.25", score_threshold=0.5).search(np.zeros((64, 64, 3), np.uint8))
    assert facexlib._network.cache_info().misses == opened


def test_heatmap_peaks_at_quarter_cell():
    maps = np.zeros((2, 2, 64, 64), np.float32)
    maps[0, 0, 10, 20], maps[0, 0, 10, 21], maps[0, 0, 9, 20] = 1, 0.5, 0.5  # right and up
    maps[0, 1, 63, 63] = 1  # where facexlib reads past the end
    maps[1, 0, 0, 0] = 1
    maps[1, 1, 30, 0], maps[1, 1, 31, 0] = 1, 0.5
    expected = [[[20.75, 10.25], [63.5, 63.5]], [[0.5, 0.5], [0.5, 30.75]]]
    np.testing.assert_allclose(peaks(maps), expected)


def test_98_landmarks_become_68(monkeypatch):
    cells = np.random.default_rng(0).integers(2, 62, (98, 2))
    net = FixedMaps(cells)
    monkeypatch.setattr(facexlib, "_opened", lambda *_: net)
    places = [Face((20.0 + n, 30 + n, 100 + n, 120 + n), 0.9, UPRIGHT_POINTS + n) for n in range(10)]
    image = np.zeros((160, 160, 3), np.float32)
    faces = FacexBackend().describe(image, places, identities=False)
    assert net.batches == [8, 2]
    view = upright_view(places[3].box, places[3].landmarks_5, 256, 1.1)
    seen = view(faces[3].landmarks_68)
    middles = cells * 4 + 1.5  # of cells of four pixels
    np.testing.assert_allclose(seen[[36, 39, 42, 45, 8, 30, 48]], middles[[60, 64, 68, 72, 16, 54, 76]], atol=1e-4)
    np.testing.assert_allclose(seen[18], (middles[34] + middles[41]) / 2, atol=1e-4)


@pytest.mark.numerics
def test_landmark_and_identity_files_run(tmp_path, monkeypatch):
    from facexlib.alignment import FAN
    from facexlib.recognition.arcface_arch import Backbone

    monkeypatch.setattr(facexlib.catalogue, "folder", lambda name: tmp_path / name)
    torch.manual_seed(0)
    score = np.float64(0.1)  # what a training script leaves beside the weights
    fan = FAN(num_modules=4, num_landmarks=98, device="cpu")
    save_asset(tmp_path, *facexlib._FAN, {"state_dict": fan.state_dict(), "best": score})
    save_asset(tmp_path, *facexlib._IR_SE50, Backbone(50, 0.6, "ir_se").state_dict())
    image = np.random.default_rng(0).uniform(size=(160, 160, 3)).astype(np.float32)
    faces = FacexBackend().describe(image, [Face((20, 30, 100, 120), 0.9, UPRIGHT_POINTS)], identities=True)
    assert all(face.landmarks_68.shape == (68, 2) and np.isfinite(face.landmarks_68).all() for face in faces)
    assert faces[0].identity.shape == (512,) and faces[0].identity_model == "facexlib_ir_se50"
    assert np.linalg.norm(faces[0].identity) == pytest.approx(1, abs=1e-5)
    crops = torch.rand(2, 3, 112, 112)
    one_by_one = np.concatenate([IrSe50().embed([crop]) for crop in crops])
    np.testing.assert_allclose(IrSe50().embed(list(crops)), one_by_one, atol=1e-4)
    facexlib._network.cache_clear()  # 70 M parameters of no further use


def test_identity_input_is_bgr(monkeypatch):
    seen = []

    def net(batch):
        seen.append(batch)
        return torch.ones(len(batch), 512)

    monkeypatch.setattr(facexlib, "_opened", lambda *_: net)
    crop = torch.tensor([1.0, 0.5, 0.0])[:, None, None].expand(3, 112, 112)
    IrSe50().embed([crop, crop])
    assert seen[0].shape == (2, 3, 112, 112) and seen[0][1, :, 5, 5].tolist() == [-1, 0, 1]


def test_bad_weights_files_are_reported(tmp_path, weights, monkeypatch):
    good = weights("retinaface_mobile025") / "mobilenet0.25_Final.pth"
    blank = np.zeros((64, 64, 3), np.uint8)
    with monkeypatch.context() as patched:
        patched.setattr(facexlib.catalogue, "folder", lambda name: tmp_path / name)
        (tmp_path / "retinaface_resnet50").mkdir()
        path = tmp_path / "retinaface_resnet50/detection_Resnet50_Final.pth"
        shutil.copy(good, path)
        with pytest.raises(ValueError, match=r"Resnet50_Final\.pth is not a readable network .*fetch retinaface_res"):
            FacexBackend().search(blank)
        path.write_bytes(good.read_bytes()[:5000])
        with pytest.raises(ValueError, match=r"Resnet50_Final\.pth is not a readable network"):
            FacexBackend().search(blank)
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path / "nothing"))
    with pytest.raises(MissingWeights, match="face2scene fetch retinaface_resnet50"):
        FacexBackend().search(blank)
    with pytest.raises(ValueError, match=r"faces\.backend\.network is 'vgg'"):
        FacexBackend(network="vgg")
