import json
import shutil

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from face2scene.mapnet import MapNet
from face2scene.restorer import lora
from face2scene.restorer.backbone import clean_latent, load_base
from face2scene.restorer.one_step import NEGATIVE, POSITIVE, OneStepRestorer
from face2scene.train.loop import only

LAYERS = lora.VAE_ENCODER[:6]  # the tiny VAE has no attention


@pytest.fixture
def make(tiny_base):
    def build(**options) -> OneStepRestorer:
        torch.manual_seed(0)
        settings = {"vae_rank": 2, "unet_rank": 4, "vae_layers": LAYERS, "source": str(tiny_base)} | options
        mapnet = MapNet(in_channels=8, channels=16, heads=2, width=32)
        return OneStepRestorer(load_base(tiny_base), mapnet, **settings)

    return build


def shaken(restorer: OneStepRestorer) -> OneStepRestorer:
    """Give the LoRAs something to say: B starts at zero."""
    with torch.no_grad():
        for name, parameter in restorer.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return restorer


def test_the_papers_prompts_are_the_supplements():
    assert POSITIVE.startswith("a high-resolution, 8K, ultra-realistic sharp image")
    assert NEGATIVE.startswith("oil painting, cartoon, blur, dirty")


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_closed_form_is_the_schedulers_own_step(kind):
    scheduler = DDPMScheduler(timestep_spacing="trailing", prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(1)
    noisy, prediction = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    expected = scheduler.step(prediction, 999, noisy).prev_sample
    alpha = scheduler.alphas_cumprod[999].item()
    torch.testing.assert_close(clean_latent(noisy, prediction, alpha, kind), expected, atol=1e-4, rtol=1e-4)


def test_a_fresh_lora_changes_nothing(make, tiny_base):
    restorer, base = make().eval(), load_base(tiny_base)
    latent, context = torch.randn(1, 4, 8, 8), torch.randn(1, 98, 32)
    with torch.no_grad():
        ours = restorer.unet(latent, 999, context).sample
        torch.testing.assert_close(ours, base.unet(latent, 999, context).sample)


def test_only_the_named_parts_are_trained(make):
    trained = {name for name, p in make().named_parameters() if p.requires_grad}
    assert all(n.startswith(("mapnet.", "unet.conv_in.")) or ".lora_" in n or n == "null_tokens" for n in trained)
    assert any(n.startswith("vae.encoder.") for n in trained) and not any("decoder" in n for n in trained)


def test_gradients_reach_every_trained_weight(make):
    restorer = shaken(make())
    tokens = restorer.tokens(torch.randn(2, 8, 8, 8), 2, torch.tensor([True, False]))
    restorer(torch.rand(2, 3, 16, 16), tokens, torch.tensor([True, False])).square().mean().backward()
    dark = [n for n, p in restorer.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert dark == []


def test_dropped_tokens_are_the_null_tokens(make):
    restorer = make()
    nn.init.normal_(restorer.null_tokens)
    tokens = restorer.tokens(torch.randn(2, 8, 8, 8), 2, torch.tensor([True, False]))
    torch.testing.assert_close(tokens[0], restorer.null_tokens[0])
    assert not torch.allclose(tokens[1], restorer.null_tokens[0])
    torch.testing.assert_close(restorer.tokens(None, 2), restorer.null_tokens.expand(2, -1, -1))


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (5, 40)])
def test_any_size_comes_back_as_it_was(make, size):
    restorer = make().eval()
    output = restorer.restore(torch.rand(1, 3, *size), restorer.tokens(None, 1))
    assert output.shape == (1, 3, *size) and output.min() >= 0 and output.max() <= 1


def test_guidance_is_linear_between_the_prompts(make):
    restorer = shaken(make()).eval()
    image, tokens = torch.rand(1, 3, 16, 16), torch.randn(1, 21, 32)
    predictions = {}
    original = restorer._clean
    restorer._clean = lambda latent, prediction: predictions.update({scale: prediction}) or original(latent, prediction)
    for scale in (0.0, 1.0, 1.5):
        restorer.restore(image, tokens, guidance=scale)
    expected = predictions[0.0] + 1.5 * (predictions[1.0] - predictions[0.0])
    torch.testing.assert_close(predictions[1.5], expected, atol=1e-5, rtol=1e-5)
    assert not torch.equal(predictions[0.0], predictions[1.0])


def test_the_tokens_reach_the_picture(make):
    restorer = shaken(make()).eval()
    image = torch.rand(1, 3, 16, 16)
    one, two = (restorer.restore(image, tokens) for tokens in torch.randn(2, 1, 21, 32))
    assert not torch.equal(one, two)


def test_merged_equals_unmerged(make):
    restorer = shaken(make()).eval()
    image, tokens = torch.rand(1, 3, 24, 24), torch.randn(1, 21, 32)
    before = restorer.restore(image, tokens)
    after = restorer.merged().restore(image, tokens)
    assert not any("lora" in name for name, _ in restorer.named_parameters())
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)


def test_saved_and_read_it_restores_the_same(make, tmp_path):
    restorer = shaken(make()).eval()
    image, features = torch.rand(1, 3, 16, 16), torch.randn(1, 8, 8, 8)
    restorer.save(tmp_path / "restorer.safetensors", about={"steps": 3})
    again = OneStepRestorer.from_file(tmp_path / "restorer.safetensors")
    assert again.config == restorer.config
    torch.testing.assert_close(
        again.restore(image, again.tokens(features, 1)), restorer.restore(image, restorer.tokens(features, 1))
    )
    trained = {n for n, p in restorer.named_parameters() if p.requires_grad}
    assert {n for n, p in again.unfreeze().named_parameters() if p.requires_grad} == trained


def test_weights_of_another_rank_are_refused(make, tmp_path):
    from face2scene.checkpoints import fit, load_weights, trained_tensors

    make().save(tmp_path / "r.safetensors", about={})
    tensors, _, _ = load_weights(tmp_path / "r.safetensors", kind="restorer")
    other = make(unet_rank=2)
    with pytest.raises(ValueError, match=r"does not fit OneStepRestorer: .*lora_A"):
        fit(other, tensors, expected=set(trained_tensors(other)), source="r.safetensors")


def test_a_layer_pattern_that_fits_nothing_is_an_error(make):
    with pytest.raises(ValueError, match=r"No layer of UNet2DConditionModel fits \['\*to_x'\].*restorer"):
        make(unet_layers=["*to_q", "*to_x"])


def test_tokens_of_another_width_are_refused(tiny_base):
    with pytest.raises(ValueError, match=r"width 16, the base model reads 32: set mapnet\.width"):
        OneStepRestorer(load_base(tiny_base), MapNet(in_channels=8, channels=16, heads=2, width=16))


def test_an_empty_tokenizer_is_an_error_and_not_a_silent_one(tiny_base, tmp_path):
    copy = shutil.copytree(tiny_base, tmp_path / "base")
    tokenizer = json.loads((copy / "tokenizer/tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = dict(list(tokenizer["model"]["vocab"].items())[:3])
    tokenizer["model"]["merges"] = []
    (copy / "tokenizer/tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="instead of 49408"):
        load_base(copy)


def test_a_folder_without_a_model_says_which_option_to_set(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder 'unet' in it.*restorer\.base\.source"):
        load_base(tmp_path)


def test_the_published_lora_counts(monkeypatch):
    """1.477 M in the VAE encoder at rank 16, 32.434 M in the UNet at rank 32, conv_in 11,840 (S3Diff's layers)."""
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with init_empty_weights():
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[128, 256, 512, 512],
            layers_per_block=2,
        )
        unet = UNet2DConditionModel(
            cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True
        )
        vae.requires_grad_(False), unet.requires_grad_(False)
        assert len(lora.add_lora(vae, lora.VAE_ENCODER, rank=16, alpha=8)) == 31
        assert len(lora.add_lora(unet, lora.UNET, rank=32, alpha=8)) == 257

    def trained(network: nn.Module) -> int:
        return sum(p.numel() for p in network.parameters() if p.requires_grad)

    assert round(trained(vae) / 1e6, 3) == 1.477 and round(trained(unet) / 1e6, 3) == 32.434
    assert sum(p.numel() for p in unet.conv_in.parameters()) == 11_840


def test_a_phase_can_freeze_and_give_back_the_restorer(make):
    from face2scene.train.loop import Phase

    def phase(model: nn.Module) -> Phase:
        return Phase("p", model, torch.optim.SGD([torch.zeros(1)]), dict)

    one, two = phase(make()), phase(nn.Linear(2, 2))
    before = {n for n, p in one.model.named_parameters() if p.requires_grad}
    with only(two, [one, two]):
        assert not any(p.requires_grad for p in one.model.parameters())
    assert {n for n, p in one.model.named_parameters() if p.requires_grad} == before
