import functools
import weakref

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from tiny_restorer import LAYERS, randomise_loras, tiny_restorer
from tolerances import RELOADED
from torch import nn

from face2scene.models.loading import load_merged, load_restorer, save_merged
from face2scene.models.mapnet import MapNet
from face2scene.models.restorer.base_model import load_base
from face2scene.models.restorer.one_step import NEGATIVE, POSITIVE, OneStepRestorer
from face2scene.train.loop import freeze_other_phases

pytestmark = pytest.mark.numerics


@pytest.fixture
def make_restorer(tiny_base):
    return functools.partial(tiny_restorer, tiny_base, unet_rank=4)


def test_prompts_match_supplement():
    assert POSITIVE.startswith("a high-resolution, 8K, ultra-realistic sharp image")
    assert NEGATIVE.startswith("oil painting, cartoon, blur, dirty")


def test_fresh_lora_is_identity(make_restorer, tiny_base):
    restorer, base = make_restorer().eval(), load_base(tiny_base)
    latent, context = torch.randn(1, 4, 8, 8), torch.randn(1, 98, 32)
    with torch.no_grad():
        ours = restorer.unet(latent, 999, context).sample
        torch.testing.assert_close(ours, base.unet(latent, 999, context).sample)


def test_only_adapters_are_trainable(make_restorer):
    trained = {name for name, p in make_restorer().named_parameters() if p.requires_grad}
    assert all(n.startswith(("mapnet.", "unet.conv_in.")) or ".lora_" in n or n == "null_tokens" for n in trained)
    assert any(n.startswith("vae.encoder.") for n in trained) and not any("decoder" in n for n in trained)


def test_gradients_reach_trained_weights(make_restorer):
    restorer = randomise_loras(make_restorer())
    tokens = restorer.tokens(torch.randn(2, 8, 8, 8), 2, torch.tensor([True, False]))
    restorer(torch.rand(2, 3, 16, 16), tokens, torch.tensor([True, False])).square().mean().backward()
    # the smallest of the largest gradients is 5e-6, also in double precision; rounding leaves 1e-12 of a true zero
    gradients = {n: p.grad for n, p in restorer.named_parameters() if p.requires_grad}
    assert [n for n, g in gradients.items() if g is None or not g.isfinite().all() or g.abs().max() < 1e-7] == []


def test_dropped_tokens_are_null_tokens(make_restorer):
    restorer = make_restorer()
    nn.init.normal_(restorer.null_tokens)
    tokens = restorer.tokens(torch.randn(2, 8, 8, 8), 2, torch.tensor([True, False]))
    torch.testing.assert_close(tokens[0], restorer.null_tokens[0])
    assert not torch.allclose(tokens[1], restorer.null_tokens[0])
    torch.testing.assert_close(restorer.tokens(None, 2), restorer.null_tokens.expand(2, -1, -1))


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (5, 40)])
def test_output_keeps_any_size(make_restorer, size):
    restorer = make_restorer().eval()
    output = restorer.restore(torch.rand(1, 3, *size), restorer.tokens(None, 1))
    assert output.shape == (1, 3, *size) and output.min() >= 0 and output.max() <= 1


def test_guidance_is_linear(make_restorer):
    restorer = randomise_loras(make_restorer()).eval()
    image, tokens = torch.rand(1, 3, 16, 16), torch.randn(1, 21, 32)
    latent = restorer.draw(restorer.encode(image), None)
    clean = {scale: restorer.denoise(latent, tokens, guidances=[scale])[0] for scale in (0.0, 1.0, 1.5)}
    expected = clean[0.0] + 1.5 * (clean[1.0] - clean[0.0])  # the clean latent is affine in the prediction
    torch.testing.assert_close(clean[1.5], expected, atol=1e-4, rtol=1e-4)
    assert not torch.equal(clean[0.0], clean[1.0])


@pytest.mark.parametrize(("guidance", "sizes"), [(1.0, [2]), (1.1, [4])])
def test_guidance_runs_as_one_batch(make_restorer, guidance, sizes):
    restorer, seen = make_restorer().eval(), []
    restorer.unet.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    restorer.restore(torch.rand(2, 3, 16, 16), torch.randn(2, 21, 32), guidance=guidance)
    assert seen == sizes


def test_text_encoder_runs_once_and_is_freed(tiny_base):
    base = load_base(tiny_base)
    encoder, called = weakref.ref(base.text_encoder), []
    base.text_encoder.register_forward_hook(lambda *_: called.append(1))
    mapnet = MapNet(in_channels=8, channels=16, heads=2, width=32)
    restorer = OneStepRestorer(base, mapnet, vae_rank=2, unet_rank=2, vae_layers=LAYERS)
    del base
    restorer.restore(torch.rand(1, 3, 16, 16), restorer.tokens(None, 1))
    assert called == [1] and encoder() is None


def test_sampled_restore_is_per_image(make_restorer):
    restorer = randomise_loras(make_restorer(posterior="sample")).eval()
    images, tokens = torch.rand(2, 3, 16, 16), torch.randn(1, 21, 32).expand(2, -1, -1)
    seeds = torch.tensor([3, 4])
    drawn = restorer.restore(images, tokens, seeds=seeds)
    torch.testing.assert_close(restorer.restore(images[1:], tokens[1:], seeds=seeds[1:]), drawn[1:], atol=1e-5, rtol=0)
    assert (restorer.restore(images, tokens, seeds=seeds + 5) - drawn).abs().max() > 1e-4
    assert torch.equal(restorer.restore(images, tokens), restorer.restore(images, tokens))
    with pytest.raises(ValueError, match=r"adapters\.posterior must be one of mean, sample, not 'mode'"):
        make_restorer(posterior="mode")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_full_finetuning_has_no_lora(make_restorer, dtype, tmp_path):
    restorer = make_restorer(dtype=dtype, full=True)
    trained = {n for n, p in restorer.named_parameters() if p.requires_grad}
    assert not any("lora" in n for n in trained) and not any("decoder" in n for n in trained)
    assert {n for n, _ in restorer.named_parameters() if n.startswith(("unet.", "vae.encoder."))} <= trained
    image, features = torch.rand(1, 3, 16, 16), torch.randn(1, 8, 8, 8)
    restorer(image, restorer.tokens(features, 1)).float().square().mean().backward()
    dark = [n for n, p in restorer.named_parameters() if p.requires_grad and n != "null_tokens" and p.grad is None]
    assert dark == [] and restorer.unet.time_embedding.linear_1.weight.dtype == torch.float32
    restorer.save(tmp_path / "restorer.safetensors", about={"steps": 1})
    again = OneStepRestorer.from_file(tmp_path / "restorer.safetensors", dtype=dtype)
    expected = restorer.eval().restore(image, restorer.tokens(features, 1))
    torch.testing.assert_close(again.restore(image, again.tokens(features, 1)), expected, **RELOADED[dtype])
    assert {n for n, p in again.unfreeze().named_parameters() if p.requires_grad} == trained
    merged = restorer.merged()
    assert {p.dtype for p in merged.unet.parameters()} == {torch.float32}  # as it was trained
    assert (merged.restore(image, merged.tokens(features, 1)) - expected).abs().mean() < 0.02
    with pytest.raises(ValueError, match="has no LoRA: use save, or save_merged"):
        restorer.save_lora(tmp_path)


def test_tokens_change_output(make_restorer):
    restorer = randomise_loras(make_restorer()).eval()
    image = torch.rand(1, 3, 16, 16)
    one, two = (restorer.restore(image, tokens) for tokens in torch.randn(2, 1, 21, 32))
    assert not torch.equal(one, two)


def test_merged_matches_unmerged(make_restorer):
    restorer = randomise_loras(make_restorer()).eval()
    image, tokens = torch.rand(1, 3, 24, 24), torch.randn(1, 21, 32)
    before = restorer.restore(image, tokens)
    after = restorer.merged().restore(image, tokens)
    assert not any("lora" in name for name, _ in restorer.named_parameters())
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)


def test_save_load_round_trip(make_restorer, tmp_path):
    restorer = randomise_loras(make_restorer()).eval()
    image, features = torch.rand(1, 3, 16, 16), torch.randn(1, 8, 8, 8)
    restorer.save(tmp_path / "restorer.safetensors", about={"steps": 3})
    again = OneStepRestorer.from_file(tmp_path / "restorer.safetensors")
    assert again.config == restorer.config
    expected = restorer.restore(image, restorer.tokens(features, 1))
    torch.testing.assert_close(again.restore(image, again.tokens(features, 1)), expected, **RELOADED["fp32"])
    trained = {n for n, p in restorer.named_parameters() if p.requires_grad}
    assert {n for n, p in again.unfreeze().named_parameters() if p.requires_grad} == trained


def test_loaded_restorer_is_saved_whole(make_restorer, tmp_path):
    randomise_loras(make_restorer()).save(tmp_path / "first.safetensors", about={})
    loaded = OneStepRestorer.from_file(tmp_path / "first.safetensors")  # frozen
    loaded.save(tmp_path / "second.safetensors", about={})
    first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(ValueError, match=r"LoRAs .* merged .* save it by loading\.save_merged"):
        loaded.merged().save(tmp_path / "third.safetensors", about={})
    assert not (tmp_path / "third.safetensors").exists()


def test_wrong_rank_weights_raise(make_restorer, tmp_path):
    from face2scene.common.model_files import fit, load_weights, trained_tensors

    make_restorer().save(tmp_path / "r.safetensors", about={})
    tensors, _, _ = load_weights(tmp_path / "r.safetensors", kind="restorer")
    other = make_restorer(unet_rank=2)
    with pytest.raises(ValueError, match=r"does not fit OneStepRestorer: .*lora_A"):
        fit(other, tensors, expected=set(trained_tensors(other)), source="r.safetensors")


def test_wrong_rank_on_resume_names_option(make_restorer, tmp_path):
    file = tmp_path / "restorer.safetensors"
    make_restorer().save(file, about={})
    with pytest.raises(ValueError, match=r"unet_rank=4 \(asked for: 32\).*set restorer\.adapters\.unet_rank=4"):
        load_restorer(file, expected={"vae_rank": 2, "unet_rank": 32})
    assert load_restorer(file, expected={"vae_rank": 2, "unet_rank": 4}).config["unet_rank"] == 4


def test_unmatched_layer_pattern_raises(make_restorer):
    with pytest.raises(ValueError, match=r"No layer of UNet2DConditionModel matches \['\*to_x'\].*restorer"):
        make_restorer(unet_layers=["*to_q", "*to_x"])


def test_phase_freezes_and_unfreezes(make_restorer):
    from face2scene.train.loop import Phase

    def phase(model: nn.Module) -> Phase:
        return Phase("p", model, torch.optim.SGD([torch.zeros(1)]), dict)

    one, two = phase(make_restorer()), phase(nn.Linear(2, 2))
    before = {n for n, p in one.model.named_parameters() if p.requires_grad}
    with freeze_other_phases(two, [one, two]):
        assert not any(p.requires_grad for p in one.model.parameters())
    assert {n for n, p in one.model.named_parameters() if p.requires_grad} == before


def test_bf16_base_trains_in_fp32(make_restorer):
    restorer = randomise_loras(make_restorer(dtype="bf16"))
    dtypes = {name: p.dtype for name, p in restorer.named_parameters()}
    own = {name for name, p in restorer.named_parameters() if p.requires_grad}
    assert {dtypes[n] for n in own} == {torch.float32}
    assert {d for n, d in dtypes.items() if n not in own} == {torch.bfloat16}
    optimizer = torch.optim.AdamW([p for p in restorer.parameters() if p.requires_grad], lr=1e-5)
    before = {n: p.detach().clone() for n, p in restorer.named_parameters()}
    tokens = restorer.tokens(torch.randn(1, 8, 8, 8), 1)
    restorer(torch.rand(1, 3, 16, 16), tokens, seeds=torch.tensor([1])).float().square().mean().backward()
    optimizer.step()
    after = dict(restorer.named_parameters())
    # a step of 1e-5 on a weight of 1 would be lost in bf16
    assert {n for n in before if not torch.equal(before[n], after[n])} >= {n for n in own if "conv_in" in n}
    assert {n: p.dtype for n, p in after.items()} == dtypes


def test_bf16_output_is_near_fp32(make_restorer):
    image, tokens = torch.rand(1, 3, 16, 16), torch.randn(1, 21, 32)
    exact = randomise_loras(make_restorer()).eval().restore(image, tokens)
    near = randomise_loras(make_restorer(dtype="bf16")).eval()
    assert near.restore(image, tokens).sub(exact).abs().mean() < 0.02
    merged = near.merged()
    assert {p.dtype for p in merged.unet.parameters()} == {torch.bfloat16}
    assert merged.restore(image, tokens).sub(exact).abs().mean() < 0.02


@pytest.mark.parametrize("options", [{}, {"skips": True}, {"residual": True}])
def test_bf16_output_is_scaled_in_fp32(make_restorer, options):
    restorer, image = make_restorer(dtype="bf16", **options).eval(), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        output = restorer(image, restorer.tokens(None, 1))
    assert output.dtype == torch.float32
    assert (output != output.bfloat16()).float().mean() > 0.2  # else it has the few values of bf16 beyond 0.5


def test_lora_merge_sums_in_fp32(make_restorer):
    restorer = make_restorer(dtype="bf16").eval()
    with torch.no_grad():
        restorer.unet.conv_out.lora_B["default"].weight.normal_(std=0.05)
        layer = restorer.unet.conv_out
        update = layer.get_delta_weight("default").float()
        expected = (layer.base_layer.weight.float() + update).bfloat16()
    merged = restorer.merged()
    assert torch.equal(merged.unet.conv_out.weight, expected)


def test_fp16_overflow_reruns_in_fp32(make_restorer, caplog):
    restorer = randomise_loras(make_restorer(dtype="fp16")).eval().merged()
    image, tokens = torch.rand(1, 3, 16, 16), torch.randn(1, 21, 32)
    expected = randomise_loras(make_restorer()).eval().restore(image, tokens)
    restorer.restore(image, tokens)
    assert "not finite" not in caplog.text
    narrow = restorer.unet.forward

    def overflowing(sample, *args, **kwargs):
        output = narrow(sample, *args, **kwargs)
        if sample.dtype == torch.float16:
            output.sample[:, 0] = float("inf")
        return output

    restorer.unet.forward = overflowing
    before = {name: p.clone() for name, p in restorer.unet.named_parameters()}
    output = restorer.restore(image, tokens)
    assert "The UNet gave values that are not finite; it runs again in float32." in caplog.text
    assert "VAE" not in caplog.text
    assert output.sub(expected).abs().mean() < 0.02
    for name, parameter in restorer.unet.named_parameters():
        assert parameter.dtype == torch.float16 and torch.equal(parameter, before[name])


def test_non_finite_fp32_raises(make_restorer):
    restorer = make_restorer().eval()
    with torch.no_grad():
        restorer.unet.conv_out.base_layer.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="The UNet gives values that are not finite, in float32 too"):
        restorer.restore(torch.rand(1, 3, 16, 16), torch.randn(1, 21, 32))


def test_out_of_memory_names_options(make_restorer):
    restorer = make_restorer().eval()

    def exhaust(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    restorer.unet.forward = exhaust
    with pytest.raises(torch.OutOfMemoryError, match=r"lower pipeline\.tile, set guidance=1"):
        restorer.restore(torch.rand(1, 3, 16, 16), torch.randn(1, 21, 32))


def test_posterior_noise_is_per_image(make_restorer):
    restorer = randomise_loras(make_restorer()).eval().requires_grad_(False)
    images, tokens = torch.rand(3, 3, 16, 16), torch.randn(1, 21, 32).expand(3, -1, -1)
    seeds = torch.tensor([5, 6, 7])
    together = restorer(images, tokens, seeds=seeds)
    alone = restorer(images[1:2], tokens[:1], seeds=seeds[1:2])
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(restorer(images, tokens), restorer(images, tokens))  # the mean is not random
    assert (restorer(images, tokens, seeds=seeds + 1) - together).abs().max() > 1e-4


def test_posterior_sample_statistics(make_restorer):
    restorer = make_restorer().eval().requires_grad_(False)
    image = torch.rand(1, 3, 16, 16)
    posterior = restorer.vae.encode(image * 2 - 1).latent_dist
    drawn = restorer._encode(image.expand(400, -1, -1, -1), torch.arange(400)) / restorer.vae.config.scaling_factor
    deviation = posterior.std[0]
    assert ((drawn.mean(0) - posterior.mean[0]) / deviation).abs().mean() < 0.08  # 1 / sqrt(400) = 0.05
    assert (drawn.std(0) / deviation - 1).abs().mean() < 0.08


@pytest.mark.parametrize("with_tokens", [True, False])
def test_negative_branch_tokens(make_restorer, with_tokens):
    restorer = randomise_loras(make_restorer(negative_tokens=with_tokens)).eval()
    nn.init.normal_(restorer.null_tokens)
    contexts = []
    restorer.unet.register_forward_pre_hook(
        lambda module, args, kwargs: contexts.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    image, tokens = torch.rand(1, 3, 16, 16), torch.randn(1, 21, 32)
    expected = [tokens[0], tokens[0] if with_tokens else restorer.null_tokens[0]]
    restorer.restore(image, tokens, guidance=1.5)
    restorer(image.expand(2, -1, -1, -1), tokens.expand(2, -1, -1), torch.tensor([False, True]))
    for context in contexts:
        torch.testing.assert_close(list(context[:, 77:].detach()), [e.detach() for e in expected])


def test_merged_export_needs_no_base(make_restorer, tmp_path):
    restorer = randomise_loras(make_restorer(guidance=1.3)).eval()
    image, features = torch.rand(1, 3, 24, 24), torch.randn(1, 8, 8, 8)
    with pytest.raises(ValueError, match=r"call merged\(\) first"):
        save_merged(restorer, tmp_path / "whole.safetensors", about={})
    expected = restorer.restore(image, restorer.tokens(features, 1))
    restorer.config["source"] = "nowhere"
    save_merged(restorer.merged(), tmp_path / "whole.safetensors", about={"steps": 3})
    again = load_merged(tmp_path / "whole.safetensors")
    torch.testing.assert_close(again.restore(image, again.tokens(features, 1)), expected, **RELOADED["fp32"])
    half = restorer.merged(torch.bfloat16)
    save_merged(half, tmp_path / "half.safetensors", about={})
    again = load_merged(tmp_path / "half.safetensors")
    assert {p.dtype for p in again.unet.parameters()} == {torch.bfloat16}
    expected = half.restore(image, half.tokens(features, 1))
    torch.testing.assert_close(again.restore(image, again.tokens(features, 1)), expected, **RELOADED["bf16"])


def test_diffusers_loads_exported_lora(make_restorer, tiny_base, tmp_path):
    restorer = randomise_loras(make_restorer(lora_alpha=3.0)).eval()
    with torch.no_grad():
        restorer.unet.conv_in.weight.add_(0.01)
    restorer.save_lora(tmp_path)
    unet = UNet2DConditionModel.from_pretrained(tiny_base, subfolder="unet").eval()
    vae = AutoencoderKL.from_pretrained(tiny_base, subfolder="vae").eval()
    for name, network in (("unet", unet), ("vae", vae)):
        network.load_lora_adapter(
            tmp_path / name, prefix=None, weight_name="pytorch_lora_weights.safetensors", adapter_name="default"
        )
    unet.conv_in.load_state_dict(load_file(tmp_path / "conv_in.safetensors"))
    latent, context, image = torch.randn(1, 4, 8, 8), torch.randn(1, 98, 32), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(unet(latent, 999, context).sample, restorer.unet(latent, 999, context).sample)
        torch.testing.assert_close(vae.encode(image).latent_dist.mean, restorer.vae.encode(image).latent_dist.mean)
        plain = UNet2DConditionModel.from_pretrained(tiny_base, subfolder="unet").eval()
        assert not torch.allclose(plain(latent, 999, context).sample, restorer.unet(latent, 999, context).sample)
