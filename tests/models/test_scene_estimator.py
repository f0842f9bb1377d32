"""The estimator that reads the degraded image alone, on random weights and synthetic degradations."""

import pytest
import torch

from face2scene.models.mapnet import MapNet
from face2scene.models.scene_estimator import SceneEstimator, estimator_losses


@pytest.fixture
def mapnet():
    torch.manual_seed(0)
    return MapNet(in_channels=8, channels=16, heads=2, width=32)


@pytest.fixture
def estimator():
    torch.manual_seed(0)
    return SceneEstimator(widths=[8, 8], strides=[2, 1], width=32)


def test_estimator_is_rebuilt_from_its_file(estimator, mapnet, tmp_path):
    estimator.save(tmp_path / "e.safetensors")
    loaded, estimator = SceneEstimator.from_file(tmp_path / "e.safetensors"), estimator.eval()
    image = torch.rand(2, 3, 24, 24)
    assert torch.equal(loaded.features(image), estimator.features(image))
    assert loaded.fits(mapnet) and not loaded.fits(MapNet(in_channels=16, channels=16, heads=2, width=32))


def test_fidelity_learns_the_best_blend(estimator):
    """Tokens of two kinds: one whose input needs nothing, one whose restoration is right."""
    torch.manual_seed(0)
    kinds = torch.randn(2, 1, 32)
    gt = torch.rand(2, 3, 8, 8)
    image = torch.stack([gt[0], gt[1] + 0.2 * torch.randn(3, 8, 8)])
    restored = torch.stack([gt[0] + 0.02 * torch.randn(3, 8, 8), gt[1]])
    optimizer = torch.optim.Adam(estimator.head.parameters(), lr=0.02)
    used = torch.ones(2, dtype=torch.bool)
    for _ in range(150):
        losses = estimator_losses(kinds, kinds, [estimator.fidelity(kinds)], image, restored, gt, used)
        optimizer.zero_grad()
        losses["fidelity"].backward()
        optimizer.step()
    needs_nothing, degraded = estimator.fidelity(kinds).tolist()
    assert needs_nothing > 0.95 and degraded < 0.05


def test_unused_images_give_no_loss():
    zeros = torch.zeros(2, 3, 8, 8)
    given = [torch.ones(2, 1, 4), torch.zeros(2, 1, 4), [torch.full((2,), 0.5)], zeros, zeros + 0.5, zeros]
    assert all(v == 0 for v in estimator_losses(*given, torch.zeros(2, dtype=torch.bool)).values())
    one = estimator_losses(*given, torch.tensor([True, False]))
    assert one["tokens"] == 1 and 0.2 < one["fidelity"] < 0.26
