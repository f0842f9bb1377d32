"""Embedding."""

import pytest
import torch

from face2scene.common.types import Face
from face2scene.faces.backends.yunet_dlib import OpenBackend
from face2scene.faces.detect import Detector
from face2scene.faces.embedding import OnnxIdentity, WithIdentityNet
from face2scene.faces.identity import cosine


def test_fixed_batch_network_runs_per_face(buffalo_like_pack, portraits):
    crops = torch.rand(3, 3, 112, 112)
    assert OnnxIdentity(buffalo_like_pack / "w600k_r50.onnx").embed(list(crops)).shape == (3, 512)


def test_missing_provider_is_refused(weights):
    with pytest.raises(ValueError, match=r"ONNX Runtime has no NoSuchProvider here.*CPUExecutionProvider"):
        OnnxIdentity("w600k_mbf", providers=["NoSuchProvider"]).embed([torch.zeros(3, 112, 112)])


def test_invalid_identity_source_is_refused():
    with pytest.raises(ValueError, match="photos_pyiqa_calibration is neither an ONNX file"):
        OnnxIdentity("photos_pyiqa_calibration")


@pytest.mark.parametrize("source", ["w600k_mbf", "sface"])
def test_identity_network_can_be_replaced(source, portraits, weights):
    weights("yunet"), weights("dlib"), weights(source)
    detector = Detector(WithIdentityNet(OpenBackend(), OnnxIdentity(source)))
    (one,), (two,), (other,) = (detector.find(portraits[name]) for name in ("obama", "obama2", "biden"))
    assert cosine(one, two) > detector.same_threshold > cosine(one, other)
    assert one.landmarks_68.shape == (68, 2) and one.identity_model == detector.backend.identity_model
    place = Face(one.box, one.score, one.landmarks_5)
    assert detector.backend.describe(portraits["obama"], [place], identities=False)[0].identity is None
