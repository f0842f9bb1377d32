import pytest
import timm
import torch
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from face2scene.assets.convert import CONVERTERS
from face2scene.models.restorer.discriminator import (
    VIT_B16,
    Discriminator,
    augmented,
    fill_features,
    load_features,
    multilevel_sigmoid,
)

pytestmark = pytest.mark.numerics

TINY_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 4,
}


def discriminator(**options) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(load_features(TINY_VIT), **({"levels": (1, 2, 3), "width": 8} | options))


def test_published_size_head_shapes():
    with torch.device("meta"):
        vit = ViTModel(ViTConfig(**VIT_B16, image_size=224, patch_size=16), add_pooling_layer=False)
    large = Discriminator(vit.to_empty(device="cpu"))
    shapes = [(9,), (9,), (1,)]
    with torch.no_grad():
        maps = [head(torch.zeros(1, 768, 14, 14)).flatten(1) for head in large.maps]
    assert [tuple(m.shape[1:]) for m in maps] == shapes[:2]
    assert large.size == (224, 224) and large.levels == (5, 9, 12)
    trained = sum(p.numel() for p in large.parameters() if p.requires_grad)
    assert trained == 2 * (768 * 9 * 128 + 128 + 128 + 1) + (768 * 128 + 128) + (128 + 1)


def test_only_heads_are_trained():
    model = discriminator()
    before = {name: tensor.clone() for name, tensor in model.features.state_dict().items()}
    assert not model.features.training and model.train().maps.training
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    real, fake = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32).round()
    first = None
    for _ in range(60):
        loss = multilevel_sigmoid(model(real), 0.8).mean() + multilevel_sigmoid(model(fake), 0.0).mean()
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < first - 0.05
    assert all(torch.equal(before[name], tensor) for name, tensor in model.features.state_dict().items())
    assert all(p.grad is None for p in model.features.parameters())


def test_gradient_reaches_image():
    image = torch.rand(2, 3, 40, 48, requires_grad=True)
    multilevel_sigmoid(discriminator(augment=False)(image), 0.8).sum().backward()
    assert (image.grad.flatten(2).abs().amax(-1) > 1e-5).all()  # 7e-4 and more; rounding leaves 1e-10 of a true zero


def test_loss_is_mean_per_head_summed():
    logits = [torch.tensor([[0.0, 2.0]]), torch.tensor([[-1.0]])]

    def entropy(x, target):
        return -target * F.logsigmoid(torch.tensor(x)) - (1 - target) * F.logsigmoid(torch.tensor(-x))

    expected = (entropy(0.0, 0.8) + entropy(2.0, 0.8)) / 2 + entropy(-1.0, 0.8)
    torch.testing.assert_close(multilevel_sigmoid(logits, 0.8), expected[None])


def test_dino_weights_match_timm_features(tmp_path):
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depth": 3, "num_heads": 2, "img_size": 32, "patch_size": 4, "mlp_ratio": 2}
    theirs = timm.models.VisionTransformer(num_classes=0, **sizes).eval()
    torch.save(theirs.state_dict(), tmp_path / "dino_vitbase16_pretrain.pth")
    CONVERTERS["dino"](tmp_path)
    from safetensors.torch import load_file

    vit = ViTModel(ViTConfig(**TINY_VIT, layer_norm_eps=1e-6), add_pooling_layer=False)
    ours = fill_features(vit, load_file(tmp_path / "dino.safetensors"), source="x").eval()
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs.get_intermediate_layers(image, n=[0, 2], norm=True, return_prefix_tokens=True)
        hidden = ours(image, output_hidden_states=True).hidden_states
    for level, (patches, first) in zip((1, 3), expected, strict=True):
        torch.testing.assert_close(ours.layernorm(hidden[level]), torch.cat([first, patches], 1), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"x does not fit ViTModel: missing"):
        fill_features(vit, {"norm.weight": torch.zeros(3)}, source="x")


def test_missing_weights_name_fetch_command(monkeypatch, tmp_path):
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="face2scene fetch dino_vitb16"):
        load_features("dino_vitb16")
    with pytest.raises(FileNotFoundError, match=r"train\.restorer\.discriminator\.features"):
        load_features(tmp_path / "nothing.safetensors")


def test_invalid_levels_are_refused():
    for levels in ((1, 4), (2, 1), (3,), (0, 2)):
        with pytest.raises(ValueError, match="two or more rising depths from 1 to 3"):
            discriminator(levels=levels)


def test_augmentation_is_seeded_per_image():
    images = torch.rand(1, 3, 32, 40).expand(3, -1, -1, -1).clone().requires_grad_()
    torch.manual_seed(4)
    one = augmented(images)
    torch.manual_seed(4)
    assert torch.equal(one, augmented(images))
    assert not torch.equal(one[0], one[1])
    holes = (one == 0).all(1).flatten(1).sum(1)
    assert (holes >= 8 * 10).all()  # a quarter of a square in a corner is the least that is cut out
    one.sum().backward()
    assert images.grad.abs().max() > 1e-2  # colours change by factors near 1


def test_augmentation_shift_is_bounded(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, low, high: self.fill_((low + high) / 2))  # no colour
    image = torch.rand(1, 3, 16, 16) + 1
    moved = augmented(image)
    found = [
        (down, right)
        for down in range(-2, 3)
        for right in range(-2, 3)
        if _matches_shift(F.pad(image, (2, 2, 2, 2)), moved, down, right)
    ]
    assert len(found) == 1


def _matches_shift(padded, moved, down, right):
    shifted = padded[..., 2 + down : 18 + down, 2 + right : 18 + right]
    seen = moved != 0
    return torch.allclose(moved[seen], shifted[seen], atol=1e-5)
