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


def test_perceptual_distance_lets_noise_go(estimator):
    """Half the noise has the least squared error, none of it the least of a distance that sees nothing but noise."""
    torch.manual_seed(0)
    gt = torch.full((1, 3, 32, 32), 0.5)
    image, restored = gt + 0.1 * torch.randn_like(gt), gt + 0.1 * torch.randn(1, 3, 1, 1).expand_as(gt)

    def spread(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (output - target).var((2, 3)).mean(1)

    def best(perceptual) -> float:
        share = torch.linspace(0, 1, 21)
        batch = [x.expand(21, -1, -1, -1) for x in (image, restored, gt)]
        tokens = torch.zeros(1, 1, 32)
        losses = [
            estimator_losses(
                tokens, tokens, [one[None]], *(x[:1] for x in batch), torch.ones(1, dtype=torch.bool), perceptual
            )["fidelity"].item()
            for one in share
        ]
        return share[int(torch.tensor(losses).argmin())].item()

    assert 0.2 < best(None) < 0.8
    assert best(spread) < best(None) - 0.1


def test_unused_images_give_no_loss():
    zeros = torch.zeros(2, 3, 8, 8)
    given = [torch.ones(2, 1, 4), torch.zeros(2, 1, 4), [torch.full((2,), 0.5)], zeros, zeros + 0.5, zeros]
    assert all(v == 0 for v in estimator_losses(*given, torch.zeros(2, dtype=torch.bool)).values())
    one = estimator_losses(*given, torch.tensor([True, False]))
    assert one["tokens"] == 1 and 0.2 < one["fidelity"] < 0.26
