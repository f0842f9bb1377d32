"""Skip connections from the VAE's encoder to its decoder, and restoring by correction."""

import shutil

import pytest
import torch
from tiny_restorer import tiny_restorer
from tolerances import RELOADED
from torch import nn

from face2scene.models.loading import load_merged, load_restorer, save_merged
from face2scene.models.restorer import skips, tiling
from face2scene.models.restorer.base_model import load_base
from face2scene.models.restorer.one_step import OneStepRestorer
from face2scene.models.restorer.skips import Skips, channels_of
from face2scene.models.restorer.tiling import TilePlan
from face2scene.train import tiny_base as pretraining


@pytest.fixture
def make(tiny_base):
    return lambda folder=tiny_base, **options: tiny_restorer(folder, **options)


def shaken(restorer: OneStepRestorer) -> OneStepRestorer:
    """Skip connections and LoRAs that start at zero get random weights."""
    torch.manual_seed(1)
    for name, parameter in restorer.named_parameters():
        if "lora_B" in name or name.startswith("vae.skips."):
            nn.init.normal_(parameter, std=0.05)
    return restorer


def with_skips(tiny_base, folder):
    """A copy of the base that was pretrained with skip connections, random here."""
    copy = shutil.copytree(tiny_base, folder)
    torch.manual_seed(2)
    skips = Skips(channels_of(load_base(tiny_base).vae))
    for conv in skips.convs:
        nn.init.normal_(conv.weight, std=0.05)
    skips.save_pretrained(copy / "skips")
    return copy


@pytest.mark.numerics
def test_fresh_skips_are_identity_residual_adds_input(make):
    image = torch.rand(2, 3, 16, 32)
    plain, with_skip, residual = make().eval(), make(skips=True).eval(), make(residual=True).eval()
    tokens = plain.tokens(None, 2)
    with torch.no_grad():
        expected = plain(image, tokens)
        torch.testing.assert_close(with_skip(image, tokens), expected)
        torch.testing.assert_close(residual(image, tokens), image + expected - 0.5)
    corrected = residual.restore(image, tokens, guidance=1.0)
    torch.testing.assert_close(corrected, (image + expected - 0.5).clamp(0, 1), atol=1e-5, rtol=0)


def test_skips_carry_what_the_latent_does_not(make):
    restorer = shaken(make(skips=True)).eval()
    latent, one, other = torch.zeros(1, 4, 16, 16), torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)
    assert (restorer.decode(latent, one) - restorer.decode(latent, other)).abs().mean() > 1e-3


@pytest.mark.numerics
@pytest.mark.parametrize("recomputed", [False, True])
def test_skips_are_the_only_further_trained_weights(make, recomputed):
    plain, restorer = make(), shaken(make(skips=True, residual=True)).train()
    if recomputed:
        restorer.checkpoint_gradients()
    image = torch.rand(2, 3, 16, 16)
    restorer(image, restorer.tokens(torch.randn(2, 8, 8, 8), 2)).square().mean().backward()
    trained = {n for n, p in restorer.named_parameters() if p.requires_grad}
    skips = {n for n in trained if n.startswith("vae.skips.")}
    assert trained - skips == {n for n, p in plain.named_parameters() if p.requires_grad} and len(skips) == 2
    grads = [p.grad for n, p in restorer.named_parameters() if n in skips]
    # the largest of each is 3e-3; rounding leaves 1e-9 of a true zero
    assert all(grad is not None and grad.abs().max() > 1e-4 for grad in grads)


@pytest.mark.numerics
def test_fresh_skips_have_gradients(make):
    restorer = make(skips=True).train()
    restorer(torch.rand(1, 3, 16, 16), restorer.tokens(None, 1)).square().mean().backward()
    assert all(conv.weight.grad.abs().max() > 1e-4 for conv in restorer.vae.skips.convs)  # it is 1e-3


@pytest.mark.numerics
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_skips_reload_from_file_and_train_on(make, tmp_path, dtype):
    restorer = shaken(make(dtype=dtype, skips=True, residual=True))
    image, tokens = torch.rand(1, 3, 17, 30), restorer.tokens(None, 1)
    restorer.save(tmp_path / "restorer.safetensors", about={})
    again = load_restorer(tmp_path / "restorer.safetensors", dtype=dtype, expected={"skips": True, "residual": True})
    assert again.skips and again.residual
    expected = restorer.eval().restore(image, tokens)
    torch.testing.assert_close(again.restore(image, tokens), expected, **RELOADED[dtype])
    trained = {n for n, p in restorer.named_parameters() if p.requires_grad}
    assert {n for n, p in again.unfreeze().named_parameters() if p.requires_grad} == trained
    with pytest.raises(ValueError, match=r"written with skips=True \(asked for: False\)"):
        load_restorer(tmp_path / "restorer.safetensors", expected={"skips": False})


@pytest.mark.numerics
def test_merged_file_keeps_skips(make, tmp_path):
    restorer = shaken(make(skips=True, residual=True)).eval()
    image, tokens = torch.rand(1, 3, 24, 16), restorer.tokens(None, 1)
    expected = restorer.restore(image, tokens)
    save_merged(restorer.merged(), tmp_path / "whole.safetensors", about={})
    whole = load_merged(tmp_path / "whole.safetensors")
    torch.testing.assert_close(whole.restore(image, tokens), expected, **RELOADED["fp32"])


def test_file_without_skips_is_refused_for_skips(make, tmp_path):
    make().save(tmp_path / "restorer.safetensors", about={})
    with pytest.raises(ValueError, match=r"written with skips=False \(asked for: True\)"):
        load_restorer(tmp_path / "restorer.safetensors", expected={"skips": True})


def test_base_brings_its_own_skips(make, tiny_base, tmp_path):
    folder = with_skips(tiny_base, tmp_path / "base")
    restorer = make(folder, skips=True)
    stored = Skips.from_pretrained(folder, subfolder="skips")
    for own, expected in zip(restorer.vae.skips.convs, stored.convs, strict=True):
        torch.testing.assert_close(own.weight, expected.weight)
    with pytest.raises(ValueError, match=r"set restorer\.adapters\.skips=true"):
        make(folder)


def test_skips_of_another_shape_are_refused(make, tiny_base, tmp_path):
    make(skips=True).save(tmp_path / "restorer.safetensors", about={})
    other = shutil.copytree(tiny_base, tmp_path / "base")
    pretraining.tiny_vae(channels=[8, 16, 24], latent_channels=4).save_pretrained(other / "vae")
    with pytest.raises(
        ValueError, match=r"skip connections .* 8 to 16, 8 to 16 channels.*base has 8 to 16, 8 to 24, 16 to 24"
    ):
        OneStepRestorer.from_file(tmp_path / "restorer.safetensors", source=other)


def test_skips_of_tiles_meet_their_own_pixels(make):
    # Tiles equal the whole, with the same margins, but for the estimated statistics.
    restorer = shaken(make(skips=True, residual=True)).eval()
    image, tokens = torch.rand(1, 3, 96, 128), restorer.tokens(None, 1)
    plan = TilePlan.of((96, 128), restorer, tile=64, overlap=16)
    tiled = next(restorer.restore_tiled(image, lambda box: tokens, plan, [1.0]))
    whole = plan.cropped(restorer.restore(plan.padded(image), tokens, guidance=1.0), (96, 128))
    moved = next(restorer.restore_tiled(image.roll(8, -1), lambda box: tokens, plan, [1.0]))
    assert (tiled - whole).abs().mean() < 0.2 * (moved - whole).abs().mean()


def test_encoder_runs_once_per_restoration(make):
    restorer = shaken(make(skips=True, residual=True)).eval()
    runs = []
    restorer.vae.encoder.down_blocks[0].register_forward_hook(lambda *_: runs.append(1))
    restorer.restore(torch.rand(1, 3, 16, 16), restorer.tokens(None, 1))
    restorer(torch.rand(1, 3, 16, 16), restorer.tokens(None, 1))
    assert len(runs) == 2


@pytest.mark.numerics
def test_tiles_beyond_kept_features_are_encoded_again(make, monkeypatch):
    restorer = shaken(make(skips=True, residual=True)).eval()
    image, tokens = torch.rand(1, 3, 96, 128), restorer.tokens(None, 1)
    plan = TilePlan.of((96, 128), restorer, tile=64, overlap=16, statistics="tile")
    kept = next(restorer.restore_tiled(image, lambda box: tokens, plan, [1.0]))
    one_tile = 4 * 8 * 32**2  # bytes of the second stage's input: 8 channels at half of 64 pixels
    monkeypatch.setattr(skips, "KEPT", 2 * one_tile)
    torch.testing.assert_close(next(restorer.restore_tiled(image, lambda box: tokens, plan, [1.0])), kept)


@pytest.mark.numerics
def test_tiles_encoded_again_have_kept_features(make, monkeypatch):
    monkeypatch.setattr(tiling, "SAMPLES", 1)  # 7 squares of 15, which differ between the image and the latent
    restorer = shaken(make(skips=True, residual=True)).eval()
    image, tokens = torch.rand(1, 3, 96, 160), restorer.tokens(None, 1)
    image[..., :64] *= 0.1
    plan = TilePlan.of((96, 160), restorer, tile=48, overlap=16)
    kept = next(restorer.restore_tiled(image, lambda box: tokens, plan, [1.0]))
    monkeypatch.setattr(skips, "KEPT", 0)
    again = next(restorer.restore_tiled(image, lambda box: tokens, plan, [1.0]))
    torch.testing.assert_close(again, kept)


@pytest.mark.numerics
def test_features_that_overflow_half_are_not_kept(make, caplog):
    restorer = make(dtype="fp16", skips=True, residual=True).eval()
    with torch.no_grad():
        restorer.vae.encoder.conv_in.base_layer.weight.fill_(6e4)  # 27 of them are above 65504, where half ends
        restorer.vae.encoder.conv_in.base_layer.bias.zero_()
    restorer.merged()
    tokens = restorer.tokens(None, 1)
    image = torch.full((1, 3, 64, 160), 0.5)  # grey is 0 for the encoder
    image[..., 96:] = 1.0
    plan = TilePlan.of((64, 160), restorer, tile=64, overlap=16, statistics="tile")
    output = next(restorer.restore_tiled(image, lambda box: tokens, plan, [1.0]))
    assert "The VAE encoder gave values that are not finite" in caplog.text and output.isfinite().all()


def test_the_paper_has_neither(make):
    config = make().config
    assert config["skips"] is False and config["residual"] is False and config["skip_channels"] is None
