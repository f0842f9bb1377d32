"""The base model: where it comes from, what is refused, its published sizes, and its doublings folded."""

import json
import resource
import shutil
from pathlib import Path
from time import perf_counter, process_time

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn
from torch.nn import functional as F

from face2scene.models.mapnet import MapNet
from face2scene.models.restorer import lora
from face2scene.models.restorer.acceleration import fuse_upsample_conv, upsampled_convolution
from face2scene.models.restorer.base_model import load_base, predict_x0
from face2scene.models.restorer.one_step import OneStepRestorer
from face2scene.models.restorer.random_base import SD_TURBO, networks


@pytest.mark.numerics
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_predict_x0_matches_scheduler_step(kind):
    scheduler = DDPMScheduler(timestep_spacing="trailing", prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(1)
    noisy, prediction = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    expected = scheduler.step(prediction, 999, noisy).prev_sample
    alpha = scheduler.alphas_cumprod[999].item()
    torch.testing.assert_close(predict_x0(noisy, prediction, alpha, kind), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("unet", {"cross_attention_dim": 16}, "text width 32 against cross-attention 16"),
        ("unet", {"in_channels": 9}, "4 latent channels against 9 UNet inputs"),
        ("unet", {"class_embed_type": "timestep"}, "needs conditions beyond latent, timestep and text"),
        ("scheduler", {"prediction_type": "sample"}, "predicts 'sample'"),
    ],
)
def test_incompatible_base_raises(tiny_base, tmp_path, part, change, message):
    copy = shutil.copytree(tiny_base, tmp_path / "base")
    file = copy / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_base(f"random:{copy}")


def test_random_base_is_deterministic(tiny_base, tmp_path):
    copy = shutil.copytree(tiny_base, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    one, two, stored = load_base(f"random:{copy}"), load_base(f"random:{copy}"), load_base(tiny_base)
    for name in ("vae", "unet", "text_encoder"):
        state, again, theirs = (getattr(base, name).state_dict() for base in (one, two, stored))
        assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in theirs.items()}
        assert all(torch.equal(t, again[n]) for n, t in state.items())
    assert torch.equal(one.alphas, stored.alphas)
    with pytest.raises(FileNotFoundError, match=r"needs .*config\.json.*source=random for SD-Turbo"):
        load_base(f"random:{tmp_path}")


@pytest.mark.numerics
@pytest.mark.parametrize(("height", "width"), [(5, 7), (8, 8), (1, 2)])
def test_fused_upsample_conv_matches_plain(height, width):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 3, height, width), torch.randn(4, 3, 3, 3), torch.randn(4)
    expected = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)
    torch.testing.assert_close(upsampled_convolution(x, weight, bias), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.numerics
def test_fused_network_matches_plain(tiny_base):
    base, plain = load_base(tiny_base), load_base(tiny_base)
    assert fuse_upsample_conv(base.vae) == 1 and fuse_upsample_conv(base.unet) == 2
    assert base.vae.state_dict().keys() == plain.vae.state_dict().keys()
    latent, context = torch.randn(1, 4, 8, 12), torch.randn(1, 98, 32)
    with torch.no_grad():
        for ours, theirs in ((base.vae.decode, plain.vae.decode),):
            torch.testing.assert_close(ours(latent).sample, theirs(latent).sample, atol=1e-5, rtol=1e-4)
        odd = latent[..., :11]  # 11 places are 6 and 3 below, so a doubling is cut to fit
        for z in (latent, odd):
            ours, theirs = base.unet(z, 999, context).sample, plain.unet(z, 999, context).sample
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_token_width_mismatch_raises(tiny_base):
    with pytest.raises(ValueError, match=r"width 16, the base model reads 32: set mapnet\.width"):
        OneStepRestorer(load_base(tiny_base), MapNet(in_channels=8, channels=16, heads=2, width=16))


def test_empty_tokenizer_raises(tiny_base, tmp_path):
    copy = shutil.copytree(tiny_base, tmp_path / "base")
    tokenizer = json.loads((copy / "tokenizer/tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = dict(list(tokenizer["model"]["vocab"].items())[:3])
    tokenizer["model"]["merges"] = []
    (copy / "tokenizer/tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="instead of 49408"):
        load_base(copy)


def test_folder_without_model_names_option(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder 'unet' in it.*restorer\.base\.source"):
        load_base(tmp_path)


def meta_sd21() -> tuple[AutoencoderKL, UNet2DConditionModel]:
    """SD 2.1's networks without values (on the meta device)."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        vae, unet, text_encoder = networks(SD_TURBO)
    assert round(sum(p.numel() for p in text_encoder.parameters()) / 1e6, 3) == 340.388
    return vae.requires_grad_(False), unet.requires_grad_(False)


def test_published_parameter_counts():
    """1.477 M in the VAE encoder at rank 16, 32.434 M in the UNet at rank 32, conv_in 11,840 (S3Diff's layers)."""
    from accelerate import init_empty_weights

    def count(network: nn.Module, *, trained: bool = False) -> int:
        return sum(p.numel() for p in network.parameters() if p.requires_grad or not trained)

    vae, unet = meta_sd21()
    assert round(count(unet) / 1e6, 3) == 865.911 and round(count(vae) / 1e6, 3) == 83.654
    with init_empty_weights():
        assert len(lora.add_lora(vae, lora.VAE_ENCODER, rank=16, alpha=8)) == 31
        assert len(lora.add_lora(unet, lora.UNET, rank=32, alpha=8)) == 257
    assert round(count(vae, trained=True) / 1e6, 3) == 1.477 and round(count(unet, trained=True) / 1e6, 3) == 32.434
    assert count(unet.conv_in) == 11_840
    unet.conv_in.requires_grad_(True)
    assert round((count(vae, trained=True) + count(unet, trained=True)) / 1e6, 2) == 33.92


@pytest.mark.slow
def test_full_size_restores_and_trains(capsys):
    """SD 2.1's shapes with random weights: 512 pixels forward, 256 forward and backward; prints seconds and memory.

    In bf16 where the processor computes in it, which a processor without it does a hundred times slower; then in fp32.
    """
    flags = Path("/proc/cpuinfo").read_text()
    dtype = "bf16" if "amx_bf16" in flags or "avx512_bf16" in flags else "fp32"
    restorer = OneStepRestorer(load_base("random", dtype=dtype), MapNet()).checkpoint_gradients()
    assert round(sum(p.numel() for n, p in restorer.named_parameters() if ".lora_" in n) / 1e6, 2) == 33.91
    optimizer = torch.optim.AdamW([p for p in restorer.parameters() if p.requires_grad], lr=2e-5)
    figures = []

    def measured(what: str, run) -> None:
        start, begun = perf_counter(), process_time()
        run()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        seconds, processor = perf_counter() - start, process_time() - begun
        figures.append(f"{dtype}, {what}: {seconds:.0f} s ({processor:.0f} of processor), peak so far {peak:.1f} GiB")

    def train() -> None:
        tokens = restorer.tokens(torch.randn(1, 256, 32, 32), 1, torch.tensor([False]))
        target = torch.rand(1, 3, 256, 256)
        output = restorer(torch.rand(1, 3, 256, 256), tokens, seeds=torch.tensor([0]))
        (output.float() - target).square().mean().backward()
        optimizer.step()

    measured("a training step at 256", train)
    dark = [
        n for n, p in restorer.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())
    ]
    assert dark == []
    optimizer.zero_grad()
    merged = restorer.merged()
    image, tokens = torch.rand(1, 3, 512, 512), torch.randn(1, 21, 1024)
    with torch.inference_mode():
        measured("512 pixels, merged, guided", lambda: figures.append(str(tuple(merged.restore(image, tokens).shape))))
    assert "(1, 3, 512, 512)" in figures
    with capsys.disabled():
        print("\n" + "\n".join(figures))


def test_unknown_dtype_raises(tiny_base):
    with pytest.raises(ValueError, match=r"dtype must be one of fp32, bf16, fp16, not 'int8'"):
        load_base(tiny_base, dtype="int8")
